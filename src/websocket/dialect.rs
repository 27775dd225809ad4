//! Reads the messages of a dialect (docs/contract.md section 4.3): which of a client's messages are for us,
//! where they keep their token, and what of one that goes on the upstream may see.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::classify::{Kind, Rules, without_case};
use super::ending::Ending;
use super::field;
use super::template::{Copies, Values, render};
use crate::auth::{Token, token};
use crate::json;
use crate::policy::{DialectSpec, Expectation, MessageSpec, fold};

/// What a client's first message was.
#[derive(Debug)]
pub enum First {
    /// It carries a token.
    Authenticate(Token),
    /// A ping of the application's, and its answer; what follows is the first message.
    Ping(String),
    /// Not one JSON object, or with a member twice.
    InvalidMessage,
    /// Another message.
    Unexpected,
    /// The right message without a token.
    MissingToken,
    /// What it carries cannot be a token.
    NotAToken,
}

/// A first message, read.
#[derive(Debug)]
pub(super) struct FirstRead {
    pub(super) first: First,
    /// What its answer copies from it.
    pub(super) copies: Copies,
    /// What of it goes on once the upstream stands.
    pub(super) forward: Option<String>,
    /// Further messages in the same text, each on a line of its own.
    pub(super) behind: String,
}

/// What a later message of a client is to us.
#[derive(Debug)]
pub enum Later {
    /// `authenticate` again; answered as such.
    Authenticate(Presented),
    /// A refresh.
    Refresh(Presented),
    /// A ping of the application's, and its answer.
    Ping(String),
}

/// The token of a later message.
#[derive(Debug)]
pub enum Presented {
    /// One to verify.
    Token(Token),
    /// None there.
    Missing,
    /// What is there cannot be one.
    NotAToken,
}

/// What becomes of a later text.
#[derive(Debug)]
pub(super) enum GoesOn {
    /// Byte for byte.
    AsItCame,
    /// This in its place.
    Instead(String),
    /// Nothing until the verdict on its token: then this, or what of it needs no token.
    Waits { accepted: String, refused: Option<String> },
    /// It was for us alone.
    Nothing,
}

/// A later text, read.
#[derive(Debug)]
pub(super) struct LaterRead {
    pub(super) said: Vec<(Later, Copies)>,
    pub(super) goes_on: GoesOn,
}

/// Reads the first message. `with_token`: the upstream is spoken to in this very dialect, so what goes on
/// keeps its token.
#[must_use]
pub(super) fn first(dialect: &DialectSpec, text: &str, token_bytes: usize, with_token: bool) -> FirstRead {
    let of = |first| FirstRead { first, copies: Vec::new(), forward: None, behind: String::new() };
    if let Some(spec) = &dialect.field {
        return match field::read(spec, text) {
            Err(_) => of(First::InvalidMessage),
            Ok(read) => FirstRead {
                forward: Some(read.edited.clone().unwrap_or_else(|| text.to_owned())),
                ..of(match read.token().map(|token| Token::presented(token, token_bytes)) {
                    Some(Ok(token)) => First::Authenticate(token),
                    Some(Err(_)) => First::NotAToken,
                    None if read.is_no_text => First::NotAToken,
                    None => First::MissingToken,
                })
            },
        };
    }
    let (text, behind) = if dialect.lines { first_line(text) } else { (text, "") };
    let behind = behind.to_owned();
    let Some(message) = parsed(dialect, text) else { return FirstRead { behind, ..of(First::InvalidMessage) } };
    let copies = copies(dialect, &message);
    if let Some(reply) = pong(dialect, &message, &copies) {
        return FirstRead { copies, behind, ..of(First::Ping(reply)) };
    }
    let spec = &dialect.authenticate;
    if !matches(&spec.matches, &message) {
        return FirstRead { copies, behind, ..of(First::Unexpected) };
    }
    match presented(spec, &message, token_bytes) {
        Presented::Token(token) => {
            let with = with_token.then_some(&token);
            let forward = spec.forward.then(|| cleaned(dialect, spec, message, Some(&token), with));
            FirstRead { first: First::Authenticate(token), copies, forward, behind }
        }
        Presented::Missing => FirstRead { copies, behind, ..of(First::MissingToken) },
        Presented::NotAToken => FirstRead { copies, behind, ..of(First::NotAToken) },
    }
}

/// Whether a later text is for us, and what of it goes on. `in_force`: the verified token, where the
/// upstream hears it in messages of this very dialect. `rules`: what the upstream acts on itself.
///
/// # Errors
/// For a text that the upstream could take for one of the dialect's and that is not it in every reading: what we
/// would take, or clean, need not be what the upstream reads.
pub(super) fn later(
    dialect: &DialectSpec,
    text: &[u8],
    token_bytes: usize,
    in_force: Option<&Token>,
    rules: Option<&Rules>,
) -> Result<LaterRead, Ending> {
    let untouched = LaterRead { said: Vec::new(), goes_on: GoesOn::AsItCame };
    let is_acted_on =
        |text: &str| rules.is_some_and(|rules| rules.kinds_of(text).into_iter().any(|kind| kind != Kind::OursAlone));
    if rules.is_none() {
        let rules = [Some(&dialect.authenticate.matches), dialect.refresh.as_ref().map(|refresh| &refresh.matches)];
        let rules = rules.into_iter().chain([dialect.ping.as_ref().map(|ping| &ping.matches)]);
        if !rules.flatten().any(|matches| could_match(matches, text)) {
            return Ok(untouched);
        }
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return if is_acted_on(&String::from_utf8_lossy(text)) { Err(Ending::InvalidMessage) } else { Ok(untouched) };
    };
    let mut said = Vec::new();
    // What goes on of each line, and whether only once the token it carries is verified.
    let mut kept: Vec<(Cow<'_, str>, bool)> = Vec::new();
    let (mut changed, mut is_known) = (false, false);
    let lines = text.split(|c| dialect.lines && c == '\n').filter(|line| !dialect.lines || !line.trim().is_empty());
    for line in lines {
        let Some(message) = parsed(dialect, line) else {
            if is_acted_on(line) {
                return Err(Ending::InvalidMessage);
            }
            kept.push((line.into(), false));
            continue;
        };
        let copies = copies(dialect, &message);
        if let Some(reply) = pong(dialect, &message, &copies) {
            changed = true;
            said.push((Later::Ping(reply), copies));
            continue;
        }
        let refresh = dialect.refresh.as_ref().filter(|refresh| matches(&refresh.matches, &message));
        let authenticate = Some(&dialect.authenticate).filter(|spec| matches(&spec.matches, &message));
        let Some(spec) = refresh.or(authenticate) else {
            if is_acted_on(line) {
                return Err(Ending::InvalidMessage);
            }
            kept.push((line.into(), false));
            continue;
        };
        (changed, is_known) = (true, true);
        let found = presented(spec, &message, token_bytes);
        if spec.forward {
            let (with, waits) = match &found {
                Presented::Token(token) if in_force.is_some() => (Some(token), true),
                _ => (in_force, false),
            };
            let carried = match &found {
                Presented::Token(token) => Some(token),
                _ => None,
            };
            kept.push((cleaned(dialect, spec, message, carried, with).into(), waits));
        }
        // One that goes on and carries no token is the upstream's affair alone.
        if !(spec.forward && matches!(found, Presented::Missing)) {
            let later = if refresh.is_some() { Later::Refresh(found) } else { Later::Authenticate(found) };
            said.push((later, copies));
        }
    }
    // Over its lines, as one text.
    if !is_known && is_acted_on(text) {
        return Err(Ending::InvalidMessage);
    }
    let joined = |also_waiting: bool| {
        let lines: Vec<&str> =
            kept.iter().filter(|(_, waits)| also_waiting || !waits).map(|(line, _)| line.as_ref()).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    let waits = kept.iter().any(|(_, waits)| *waits);
    let goes_on = match joined(true) {
        _ if !changed => GoesOn::AsItCame,
        None => GoesOn::Nothing,
        Some(accepted) if waits => GoesOn::Waits { accepted, refused: joined(false) },
        Some(text) => GoesOn::Instead(text),
    };
    Ok(LaterRead { said, goes_on })
}

/// Whether a text could be for us by its first byte that is no white space.
#[must_use]
pub(super) fn could_be_ours(dialect: &DialectSpec, text: &[u8]) -> bool {
    match text.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
        Some(first) => *first == b'{' || (*first == b'[' && dialect.takes_arrays()),
        None => true,
    }
}

/// The message with which we introduce a user to the upstream ourselves, or renew its token there.
#[must_use]
pub(super) fn said_upstream(spec: &MessageSpec, token: &Token) -> String {
    let arrays = spec.matches.iter().all(|(key, _)| key.starts_with('/'))
        && spec.matches.iter().any(|(key, _)| key[1..].split('/').next().is_some_and(is_index));
    let mut message = if arrays { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
    for (key, expectation) in &spec.matches {
        let pointer = if key.starts_with('/') { key.clone() } else { format!("/{}", escaped(key)) };
        if let Expectation::Equals(value) = expectation {
            put(&mut message, &pointer, value.clone());
        }
    }
    if let Some(pointer) = spec.token.first() {
        put(&mut message, pointer, Value::String(token.expose().to_owned()));
    }
    message.to_string()
}

fn parsed(dialect: &DialectSpec, text: &str) -> Option<Value> {
    let value = json::value(text.as_bytes()).ok()?;
    (value.is_object() || (value.is_array() && dialect.takes_arrays())).then_some(value)
}

/// The first line that is not empty, and what stands behind it.
fn first_line(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(['\n', '\r', ' ', '\t']);
    text.split_once('\n').unwrap_or((text, ""))
}

fn copies(dialect: &DialectSpec, message: &Value) -> Copies {
    dialect
        .copied
        .iter()
        .map(|pointer| (pointer.clone(), member(message, pointer).cloned().unwrap_or(Value::Null)))
        .collect()
}

fn pong(dialect: &DialectSpec, message: &Value, copies: &Copies) -> Option<String> {
    let ping = dialect.ping.as_ref()?;
    matches(&ping.matches, message).then(|| render(&ping.reply, &Values { copies, ..Values::default() }))
}

/// Spares the parser the messages that cannot match: a literal or a member of the rule is not in the
/// text, and no escape could spell it otherwise.
fn could_match(matches: &[(String, Expectation)], text: &[u8]) -> bool {
    if text.contains(&b'\\') {
        return true;
    }
    let holds = |literal: &str| text.windows(literal.len()).any(|window| window == literal.as_bytes());
    matches.iter().all(|(key, expectation)| {
        let last = key.rsplit('/').next().unwrap_or(key);
        let named = last.is_empty() || is_index(last) || last.contains('~') || holds(last);
        named
            && match expectation {
                Expectation::Equals(Value::String(literal)) if !literal.is_empty() => holds(literal),
                _ => true,
            }
    })
}

fn is_index(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit())
}

fn escaped(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

fn unescaped(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

fn member<'a>(message: &'a Value, key: &str) -> Option<&'a Value> {
    if key.starts_with('/') { message.pointer(key) } else { message.get(key) }
}

fn matches(rule: &[(String, Expectation)], message: &Value) -> bool {
    rule.iter().all(|(key, expectation)| match (member(message, key), expectation) {
        (Some(found), Expectation::Equals(value)) => found == value,
        (Some(_), Expectation::Present) => true,
        (None, _) => false,
    })
}

fn presented(spec: &MessageSpec, message: &Value, limit: usize) -> Presented {
    let Some((pointer, Value::String(text))) =
        spec.token.iter().find_map(|pointer| member(message, pointer).map(|found| (pointer, found)))
    else {
        return Presented::Missing;
    };
    // A member called Authorization is read as the header of that name is.
    let text =
        if is_authorization(pointer.rsplit('/').next().unwrap_or(pointer)) { without_scheme(text) } else { text };
    if text.is_empty() {
        return Presented::Missing;
    }
    Token::presented(text, limit).map_or(Presented::NotAToken, Presented::Token)
}

fn is_authorization(name: &str) -> bool {
    fold(name).is_some_and(|folded| folded.as_bytes() == b"authorization")
}

/// A token without a leading `Bearer `, which some front ends write everywhere.
pub(super) fn without_scheme(text: &str) -> &str {
    match text.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer ") => rest.trim_start_matches(' '),
        _ => text,
    }
}

/// A message that goes on, written anew: no token in any place that could carry one, and in the members
/// that backends read as request headers no credential and no name that says who someone is (CVE-2026-71485).
/// Members are found without regard to case, since some backends find them so.
fn cleaned(
    dialect: &DialectSpec,
    spec: &MessageSpec,
    mut message: Value,
    presented: Option<&Token>,
    with: Option<&Token>,
) -> String {
    for pointer in dialect.token_places() {
        take(&mut message, pointer);
    }
    for map in &dialect.header_maps {
        let names_of_tokens: Vec<String> = dialect
            .token_places()
            .filter_map(|place| place.strip_prefix(map.as_str())?.strip_prefix('/'))
            .filter(|name| !name.contains('/'))
            .map(|name| without_case(&unescaped(name)))
            .collect();
        each_at(&mut message, &segments(map), &mut |found| {
            if let Value::Object(members) = found {
                clean_headers(dialect, members, &names_of_tokens, presented);
            }
        });
    }
    if let (Some(token), Some(pointer)) = (with, spec.token.first()) {
        put(&mut message, pointer, Value::String(token.expose().to_owned()));
    }
    message.to_string()
}

/// Takes out of request headers what a request of this client would not carry to the upstream either.
fn clean_headers(
    dialect: &DialectSpec,
    members: &mut Map<String, Value>,
    names_of_tokens: &[String],
    presented: Option<&Token>,
) {
    let same = |a: &str, b: &str| match (fold(a), fold(b)) {
        (Some(a), Some(b)) => a.as_bytes() == b.as_bytes(),
        _ => false,
    };
    members.retain(|name, value| {
        let plain = without_case(name);
        let carries_token = is_authorization(&plain)
            || names_of_tokens.iter().chain(&dialect.credentials).any(|known| same(known, &plain));
        if carries_token || dialect.reserved.classify(&plain).is_some() {
            return false;
        }
        if same(&plain, "cookie") {
            clean_cookies(dialect, value);
        }
        !presented.is_some_and(|token| holds(value, token.expose()))
    });
}

/// Whether a header's value holds the token, as a query or a subprotocol may.
fn holds(value: &Value, token: &str) -> bool {
    match value {
        Value::String(text) => text.contains(token),
        Value::Array(items) => items.iter().any(|item| holds(item, token)),
        _ => false,
    }
}

/// Takes the cookies that are credentials out of a `Cookie` header, one line or several.
fn clean_cookies(dialect: &DialectSpec, value: &mut Value) {
    match value {
        Value::String(line) => *line = token::without_credentials(line, &dialect.cookies),
        Value::Array(lines) => lines.iter_mut().for_each(|line| clean_cookies(dialect, line)),
        // No backend reads a header of another type.
        other => *other = Value::Null,
    }
}

fn segments(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|part| without_case(&unescaped(part))).collect()
}

/// Every value that a reader without regard to case may find at a pointer.
fn each_at(message: &mut Value, segments: &[String], then: &mut impl FnMut(&mut Value)) {
    let Some((first, rest)) = segments.split_first() else { return then(message) };
    match message {
        Value::Object(members) => {
            for (name, member) in members {
                if without_case(name) == *first {
                    each_at(member, rest, then);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = first.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                each_at(item, rest, then);
            }
        }
        _ => {}
    }
}

/// Takes a member out; in an array, where the others must keep their places, null stands in for it.
fn take(message: &mut Value, pointer: &str) {
    let segments = segments(pointer);
    let Some((last, parents)) = segments.split_last() else { return };
    each_at(message, parents, &mut |parent| match parent {
        Value::Object(members) => members.retain(|name, _| without_case(name) != *last),
        Value::Array(items) => {
            if let Some(item) = last.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                *item = Value::Null;
            }
        }
        _ => {}
    });
}

/// Puts a value where a pointer says, making what is missing on the way.
fn put(message: &mut Value, pointer: &str, value: Value) {
    let mut at = message;
    let segments: Vec<String> = pointer.split('/').skip(1).map(unescaped).collect();
    for (position, segment) in segments.iter().enumerate() {
        let empty = match segments.get(position + 1) {
            Some(next) if is_index(next) => Value::Array(Vec::new()),
            _ => Value::Object(Map::new()),
        };
        at = match at {
            Value::Array(items) => {
                // Written in the configuration, so no client chooses how long this gets.
                let Some(index) = segment.parse::<usize>().ok().filter(|index| *index < 64) else { return };
                while items.len() <= index {
                    items.push(Value::Null);
                }
                let item = &mut items[index];
                if item.is_null() {
                    *item = empty;
                }
                item
            }
            Value::Object(members) => {
                let item = members.entry(segment.clone()).or_insert(Value::Null);
                if !item.is_object() && !item.is_array() {
                    *item = empty;
                }
                item
            }
            _ => return,
        };
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn first_of(text: &str) -> &'static str {
        match first(&DialectSpec::vestibule(), text, 64, false).first {
            First::Authenticate(_) => "token",
            First::InvalidMessage => "invalid",
            First::Unexpected => "unexpected",
            First::MissingToken => "missing",
            First::NotAToken => "not a token",
            First::Ping(_) => "ping",
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
            let read = later(&dialect, text.as_bytes(), 64, None, None).expect("passes or is ours");
            matches!(read.goes_on, GoesOn::Nothing) && read.said.len() == 1
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
            let mut read = later(&dialect, text.as_bytes(), 64, None, None).expect("read");
            let found = match read.said.pop() {
                Some((Later::Ping(reply), _)) => Some(reply),
                _ => None,
            };
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    fn graphql() -> DialectSpec {
        DialectSpec::graphql_transport_ws(crate::policy::ReservedNames::new(["X-User-Id"], false))
    }

    #[test]
    fn a_message_that_goes_on_has_no_token_and_no_name_of_ours() {
        let init = json!({"type": "connection_init", "payload": {
            "Authorization": "Bearer abc", "authorization": "Bearer x", "AUTH_TOKEN": "x", "X-User-Id": "bob",
            "x_user.id": "bob", "X-Forwarded-For": "1.2.3.4", "Remote-User": "bob", "lang": "de",
            "headers": {"Authorization": "x", "X-USER-ID": "bob", "accept": "x"}, "authToken": "y"
        }});
        let read = first(&graphql(), &init.to_string(), 64, false);
        assert!(matches!(&read.first, First::Authenticate(token) if token.expose() == "abc"));
        let expected = r#"{"type":"connection_init","payload":{"lang":"de","headers":{"accept":"x"}}}"#;
        assert_eq!(read.forward.as_deref(), Some(expected));
        let read = first(&graphql(), &init.to_string(), 64, true);
        let forward = read.forward.expect("goes on");
        assert!(
            forward.contains(r#""Authorization":"abc""#) && forward.matches("Authorization").count() == 1,
            "{forward}"
        );
    }

    #[test]
    fn header_maps_carry_no_credential_on_in_any_spelling() {
        let mut dialect = graphql();
        dialect.credentials = vec!["Cf-Access-Jwt-Assertion".to_owned()];
        dialect.cookies = vec![crate::policy::CookieSource { name: "__session".to_owned(), suffixes: Vec::new() }];
        let init = json!({"type": "connection_init", "Payload": {"Authorization": "x", "X-User-Id": "bob"}, "payload": {
            "authToken": "abc", "HEADERS": {"authori\u{17a}ation": 1, "AUTHORIZATION": "x", "x-uſer-id": "bob"},
            "Cookie": "a=1; __session=abd; __Host-vestibule=s; b=2", "cooKie": ["__session=abd", "c=3"],
            "cf_access_jwt_assertion": "abd", "Referer": "https://example.com/?token=abc", "lang": "de"
        }});
        let read = first(&dialect, &init.to_string(), 64, false);
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
        let read = |text: &[u8]| later(&graphql(), text, 64, None, Some(&rules));
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
            assert!(read.said.is_empty(), "{text}");
            let found = match &read.goes_on {
                GoesOn::Instead(text) => Some(text.as_str()),
                GoesOn::AsItCame => None,
                GoesOn::Nothing | GoesOn::Waits { .. } => Some(""),
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
            assert_eq!(read(text).err(), Some(Ending::InvalidMessage), "{}", String::from_utf8_lossy(text));
        }
        let read = read(br#"{"type":"connection_init","payload":{"authToken":"abc"}}"#).expect("read");
        assert!(matches!(read.said.as_slice(), [(Later::Authenticate(Presented::Token(_)), _)]));
    }

    #[test]
    fn lines_are_looked_at_one_by_one_and_arrays_by_pointers() {
        let mut dialect = DialectSpec::vestibule();
        dialect.lines = true;
        let text = "\n{\"type\":\"authenticate\",\"token\":\"abc\"}\n{\"a\":1}\n";
        let read = first(&dialect, text, 64, false);
        assert!(matches!(read.first, First::Authenticate(_)));
        assert_eq!(read.behind, "{\"a\":1}\n");
        let read =
            later(&dialect, b"{\"a\":1}\n{\"type\":\"refresh_auth\",\"token\":\"abc\"}\n{\"b\":2}", 64, None, None)
                .expect("read");
        assert!(matches!(read.goes_on, GoesOn::Instead(text) if text == "{\"a\":1}\n{\"b\":2}"));
        assert_eq!(read.said.len(), 1);
        let mut dialect = DialectSpec::vestibule();
        dialect.authenticate.matches = vec![("/3".to_owned(), Expectation::Equals(json!("phx_join")))];
        dialect.authenticate.token = vec!["/4/token".to_owned()];
        assert!(matches!(
            first(&dialect, r#"["1","1","t","phx_join",{"token":"abc"}]"#, 64, false).first,
            First::Authenticate(_)
        ));
        assert_eq!(
            said_upstream(&dialect.authenticate, &Token::presented("abc", 9).expect("token")),
            r#"[null,null,null,"phx_join",{"token":"abc"}]"#
        );
    }
}
