//! Tests of first and later messages, in built-in dialects and in those from the configuration.

use serde_json::json;

use super::*;

fn first_of(text: &str) -> &'static str {
    match read_first(&DialectSpec::vestibule(), text, 64, false).message {
        FirstMessage::Authenticate(_) => "token",
        FirstMessage::InvalidMessage => "invalid",
        FirstMessage::Unexpected => "unexpected",
        FirstMessage::MissingToken => "missing",
        FirstMessage::NotAToken(_) => "not a token",
        FirstMessage::Ping(_) => "ping",
    }
}

#[test]
fn the_first_message_is_read_strictly() {
    for (text, expected) in [
        (r#"{"type":"authenticate","token":"abc"}"#, "token"),
        (r#" {"token":"abc","type":"authenticate","more":[1]} "#, "token"),
        (r#"{"\u0074ype":"authenticate","token":"abc"}"#, "token"),
        (r#"{"type":"authenticate"}"#, "missing"),
        (r#"{"type":"authenticate","token":""}"#, "missing"),
        (r#"{"type":"authenticate","token":null}"#, "missing"),
        (r#"{"type":"authenticate","token":7}"#, "missing"),
        (r#"{"type":"authenticate","token":"a b"}"#, "not a token"),
        (r#"{"type":"hello","token":"abc"}"#, "unexpected"),
        (r#"{"token":"abc"}"#, "unexpected"),
        (r#"{"type":"authenticate","token":"abc","token":"abd"}"#, "invalid"),
        (r#"{"type":"authenticate","token":"abc"}x"#, "invalid"),
        (r#"["authenticate"]"#, "invalid"),
        ("hello", "invalid"),
        ("", "invalid"),
    ] {
        assert_eq!(first_of(text), expected, "{text}");
    }
}

#[test]
fn later_messages_pass_unless_they_are_ours() {
    let dialect = DialectSpec::vestibule();
    let is_ours = |text: &str| {
        let read = read_later(&dialect, text.as_bytes(), 64, None, None).expect("passes or is ours");
        matches!(read.forward, Forward::Nothing) && read.messages.len() == 1
    };
    for (text, ours) in [
        (r#"{"type":"refresh_auth","token":"abc"}"#, true),
        (r#"{"token":"abc","type":"refresh_auth"}"#, true),
        (r#"{"type":"refresh\u005fauth","token":"abc"}"#, true),
        (r#"{"type":"refresh_auth"}"#, true),
        (r#"{"type":"authenticate","token":"abc"}"#, true),
        (r#"{"type":"run_cell","code":"refresh_auth"}"#, false),
        (r#"{"type":"refresh_auth","token":"a","token":"b"}"#, false),
        (r#"{"type":"refresh_auth""#, false),
        (r#"{"type":["refresh_auth"]}"#, false),
    ] {
        assert_eq!(is_ours(text), ours, "{text}");
    }
}

#[test]
fn pings_of_an_application_are_answered_with_what_they_asked() {
    let mut dialect = DialectSpec::vestibule();
    let matches =
        vec![("/m/type".to_owned(), Expectation::Equals(json!("ping"))), ("n".to_owned(), Expectation::Present)];
    dialect.ping = Some(crate::policy::PingSpec { matches, reply: json!({"pong": "{/n}"}) });
    dialect.copied = vec!["/n".to_owned()];
    for (text, expected) in [
        (r#"{"m":{"type":"ping"},"n":[1]}"#, Some(r#"{"pong":[1]}"#)),
        (r#"{"m":{"type":"ping"}}"#, None),
        (r#"{"m":{"type":"pong"},"n":1}"#, None),
    ] {
        let mut read = read_later(&dialect, text.as_bytes(), 64, None, None).expect("read");
        let found = match read.messages.pop() {
            Some((LaterMessage::Ping(reply), _)) => Some(reply),
            _ => None,
        };
        assert_eq!(found.as_deref(), expected, "{text}");
    }
}

fn graphql() -> DialectSpec {
    DialectSpec::graphql_transport_ws(crate::policy::ReservedNames::default())
}

#[test]
fn a_message_that_goes_on_has_no_token_and_no_name_of_ours() {
    let init = json!({"type": "connection_init", "payload": {
        "Authorization": "Bearer abc", "authorization": "Bearer x", "AUTH_TOKEN": "x", "X-User-Id": "bob",
        "x_user.id": "bob", "X-Forwarded-For": "1.2.3.4", "Remote-User": "bob", "lang": "de",
        "headers": {"Authorization": "x", "X-USER-ID": "bob", "accept": "x"}, "authToken": "y"
    }});
    let read = read_first(&graphql(), &init.to_string(), 64, false);
    assert!(matches!(&read.message, FirstMessage::Authenticate(token) if token.expose() == "abc"));
    let expected = r#"{"type":"connection_init","payload":{"lang":"de","headers":{"accept":"x"}}}"#;
    assert_eq!(read.forward.as_deref(), Some(expected));
    let read = read_first(&graphql(), &init.to_string(), 64, true);
    let forward = read.forward.expect("goes on");
    assert!(forward.contains(r#""Authorization":"abc""#) && forward.matches("Authorization").count() == 1, "{forward}");
}

#[test]
fn header_maps_carry_no_credential_on_in_any_spelling() {
    let mut dialect = graphql();
    dialect.credentials = vec!["Cf-Access-Jwt-Assertion".to_owned()];
    dialect.cookies = vec![crate::policy::CookieSource {
        name: "__session".to_owned(),
        suffixes: Vec::new(),
        encoding: crate::policy::CookieEncoding::Plain,
    }];
    let init = json!({"type": "connection_init", "Payload": {"Authorization": "x", "X-User-Id": "bob"}, "payload": {
        "authToken": "abc", "HEADERS": {"authori\u{17a}ation": 1, "AUTHORIZATION": "x", "x-uſer-id": "bob"},
        "Cookie": "a=1; __session=abd; __Host-vestibule=s; b=2", "cooKie": ["__session=abd", "c=3"],
        "cf_access_jwt_assertion": "abd", "Referer": "https://example.com/?token=abc", "lang": "de"
    }});
    let read = read_first(&dialect, &init.to_string(), 64, false);
    let found: Value = serde_json::from_str(&read.forward.expect("goes on")).expect("json");
    assert_eq!(
        found,
        json!({"type": "connection_init", "Payload": {}, "payload": {
            "HEADERS": {"authori\u{17a}ation": 1}, "Cookie": "a=1; b=2", "cooKie": ["", "c=3"], "lang": "de"
        }})
    );
}

#[test]
fn where_messages_go_on_a_later_one_is_cleaned_and_one_with_two_readings_refused() {
    let rules = Rules::of(Some(&graphql()), None).expect("it forwards");
    let read = |text: &[u8]| read_later(&graphql(), text, 64, None, Some(&rules));
    for (text, expected) in [
        (
            r#"{"type":"connection_init","payload":{"X-User-Id":"bob"}}"#,
            Some(r#"{"type":"connection_init","payload":{}}"#),
        ),
        (
            r#"{"type":"connection\u005finit","payload":{"X-User-Id":"bob"}}"#,
            Some(r#"{"type":"connection_init","payload":{}}"#),
        ),
        (r#"{"type":"subscribe","payload":{"query":"{\n a }"}}"#, None),
    ] {
        let read = read(text.as_bytes()).expect("one reading");
        assert!(read.messages.is_empty(), "{text}");
        let found = match &read.forward {
            Forward::Rewritten(text) => Some(text.as_str()),
            Forward::Unchanged => None,
            Forward::Nothing | Forward::AfterVerdict { .. } => Some(""),
        };
        assert_eq!(found, expected, "{text}");
    }
    for text in [
        &br#"{"type":"x","type":"connection_init","payload":{"X-User-Id":"bob"}}"#[..],
        br#"{"type":"connection_init"}{}"#,
        b"\xef\xbb\xbf{\"type\":\"connection_init\"}",
        br#"{"Type":"connection_init"}"#,
        br#"{"type":"connection_init","n":NaN}"#,
    ] {
        assert_eq!(read(text).err(), Some(CloseReason::InvalidMessage), "{}", String::from_utf8_lossy(text));
    }
    let read = read(br#"{"type":"connection_init","payload":{"authToken":"abc"}}"#).expect("read");
    assert!(matches!(read.messages.as_slice(), [(LaterMessage::Authenticate(PresentedToken::Token(_)), _)]));
}

#[test]
fn lines_are_looked_at_one_by_one_and_arrays_by_pointers() {
    let mut dialect = DialectSpec::vestibule();
    dialect.lines = true;
    let text = "\n{\"type\":\"authenticate\",\"token\":\"abc\"}\n{\"a\":1}\n";
    let read = read_first(&dialect, text, 64, false);
    assert!(matches!(read.message, FirstMessage::Authenticate(_)));
    assert_eq!(read.lines_behind, "{\"a\":1}\n");
    let read =
        read_later(&dialect, b"{\"a\":1}\n{\"type\":\"refresh_auth\",\"token\":\"abc\"}\n{\"b\":2}", 64, None, None)
            .expect("read");
    assert!(matches!(read.forward, Forward::Rewritten(text) if text == "{\"a\":1}\n{\"b\":2}"));
    assert_eq!(read.messages.len(), 1);
    let mut dialect = DialectSpec::vestibule();
    dialect.authenticate.matches = vec![("/3".to_owned(), Expectation::Equals(json!("phx_join")))];
    dialect.authenticate.token = vec!["/4/token".to_owned()];
    assert!(matches!(
        read_first(&dialect, r#"["1","1","t","phx_join",{"token":"abc"}]"#, 64, false).message,
        FirstMessage::Authenticate(_)
    ));
    assert_eq!(
        upstream_message(&dialect.authenticate, &Token::parse("abc", 9).expect("token")),
        r#"[null,null,null,"phx_join",{"token":"abc"}]"#
    );
}
