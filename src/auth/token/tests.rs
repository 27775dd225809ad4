//! Tests of the extraction of tokens from request heads.

use std::sync::Arc;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::SEC_WEBSOCKET_PROTOCOL;

use super::*;
use crate::policy::{
    CookieEncoding, CookieSource, ProviderTokens, QueryMode, QueryParameter, TokenEncoding, TokenSubprotocol,
};

fn sources() -> TokenSources {
    TokenSources {
        headers: vec![AUTHORIZATION],
        message: true,
        query: Some(QueryParameter {
            names: vec!["token".into(), "jwt".into()],
            issued: Arc::new(ProviderTokens { opaque: true, ..ProviderTokens::default() }),
            mode: QueryMode::Move,
            websocket: true,
            events: false,
            http: false,
        }),
        subprotocols: [
            ("plain.", TokenEncoding::Plain),
            ("k8s.", TokenEncoding::Base64url),
            ("url.", TokenEncoding::Url),
        ]
        .map(|(prefix, encoding)| TokenSubprotocol { prefix: prefix.into(), encoding })
        .to_vec(),
        cookie: Some(CookieSource { name: "__session".into(), suffixes: Vec::new(), encoding: CookieEncoding::Plain }),
        basic: false,
        upstream_secret: None,
    }
}

#[test]
fn a_subprotocol_token_leaves_its_siblings_as_offers() {
    for (offers, expected, left) in [
        (vec!["plain.abc"], Ok("abc"), None),
        (vec!["v1, plain.abc, v2"], Ok("abc"), Some("v1, v2")),
        (vec!["v1", "k8s.YS5iLmM"], Ok("a.b.c"), Some("v1")),
        (vec!["k8s.YS5iLmM=, v1"], Ok("a.b.c"), Some("v1")),
        (vec!["url.a%2Eb"], Ok("a.b"), None),
        (vec!["plain.a, plain.b"], Err(Some(Problem::Twice)), None),
        (vec!["plain.a, k8s.YQ"], Err(Some(Problem::Twice)), None),
        (vec!["k8s.!!"], Err(Some(Problem::NotAToken(TokenError::Characters))), None),
        (vec!["plain., v1"], Err(Some(Problem::NotAToken(TokenError::Empty))), Some("v1")),
        (vec!["v1"], Err(None), Some("v1")),
    ] {
        let mut headers = HeaderMap::new();
        for offer in &offers {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(offer).expect("value"));
        }
        let mut uri: Uri = "/ws?token=other".parse().expect("target");
        let mut sources = sources();
        sources.query = None;
        let found = match extract(&mut headers, &mut uri, &sources, Purpose::WebSocket, None, 64, None) {
            Ok(Extracted::Token(token, _)) => Ok(token.expose().to_owned()),
            Ok(Extracted::Nothing(_) | Extracted::Cookies(..)) => Err(None),
            Err(bad) => Err(Some(bad.problem)),
        };
        assert_eq!(found.as_deref().map_err(|e| *e), expected, "{offers:?}");
        assert_eq!(headers.get(SEC_WEBSOCKET_PROTOCOL).map(|v| v.to_str().expect("ascii")), left, "{offers:?}");
    }
}

fn run(authorization: &[&str], target: &str, purpose: Purpose) -> (Result<String, Option<Problem>>, String, bool) {
    let mut headers = HeaderMap::new();
    for value in authorization {
        headers.append(AUTHORIZATION, HeaderValue::from_str(value).expect("value"));
    }
    let mut uri: Uri = target.parse().expect("target");
    let found = match extract(&mut headers, &mut uri, &sources(), purpose, None, 64, None) {
        Ok(Extracted::Token(token, _)) => Ok(token.expose().to_owned()),
        Ok(Extracted::Nothing(_) | Extracted::Cookies(..)) => Err(None),
        Err(bad) => Err(Some(bad.problem)),
    };
    (found, uri.to_string(), headers.contains_key(AUTHORIZATION))
}

#[test]
fn authorization_is_read_as_rfc_6750_says() {
    let long = format!("Bearer {}", "x".repeat(65));
    for (values, expected) in [
        (vec!["Bearer abc"], Ok("abc")),
        (vec!["bearer abc"], Ok("abc")),
        (vec!["BEARER   abc=="], Ok("abc==")),
        (vec![""], Err(None)),
        (vec![" "], Err(None)),
        (vec![], Err(None)),
        (vec!["Basic abc"], Err(Some(Problem::Format))),
        (vec!["Basic eDphYmM="], Err(Some(Problem::Format))),
        (vec!["abc"], Err(Some(Problem::Format))),
        (vec!["Bearer"], Err(Some(Problem::Format))),
        (vec!["Bearer a b"], Err(Some(Problem::Format))),
        (vec!["Bearer a,b"], Err(Some(Problem::Format))),
        (vec!["Bearer a=b"], Err(Some(Problem::Format))),
        (vec!["Bearer\tabc"], Err(Some(Problem::Format))),
        (vec!["Bearer abc", "Bearer abc"], Err(Some(Problem::Twice))),
        (vec!["Bearer abc", ""], Err(Some(Problem::Twice))),
        (vec![long.as_str()], Err(Some(Problem::NotAToken(TokenError::TooLong { bytes: 65, limit: 64 })))),
    ] {
        let (found, _, left) = run(&values, "/x", Purpose::Plain);
        assert_eq!(found.as_deref().map_err(|e| *e), expected, "{values:?}");
        assert!(!left, "{values:?} stays in the head");
    }
}

#[test]
fn a_query_token_leaves_the_other_parameters_byte_for_byte() {
    for (target, expected, left) in [
        ("/ws?token=abc", Ok("abc"), "/ws"),
        ("/ws?a=%7e&token=abc&b=+", Ok("abc"), "/ws?a=%7e&b=+"),
        ("/ws?%74oken=abc&&x", Ok("abc"), "/ws?&x"),
        ("/ws?token=a%2Eb", Ok("a.b"), "/ws"),
        ("/ws?token=a&token=b", Err(Some(Problem::Twice)), "/ws"),
        ("/ws?jwt=abc&x", Ok("abc"), "/ws?x"),
        ("/ws?token=a&jwt=b", Err(Some(Problem::Twice)), "/ws"),
        ("/ws?token=a&token=", Ok("a"), "/ws?token="),
        ("/ws?token=a%20b", Err(Some(Problem::NotAToken(TokenError::Characters))), "/ws"),
        ("/ws?token=", Err(None), "/ws?token="),
        ("/ws?token", Err(None), "/ws?token"),
        ("/ws?tokens=a", Err(None), "/ws?tokens=a"),
    ] {
        let (found, uri, _) = run(&[], target, Purpose::WebSocket);
        assert_eq!(found.as_deref().map_err(|e| *e), expected, "{target}");
        assert_eq!(uri, left, "{target}");
    }
}

#[test]
fn where_a_query_token_is_not_read_it_is_taken_out_all_the_same() {
    let (found, uri, _) = run(&[], "/page?token=abc&a=1", Purpose::Plain);
    assert_eq!((found, uri.as_str()), (Err(None), "/page?a=1"));
}

#[test]
fn only_what_a_provider_could_have_issued_is_a_token_in_a_url() {
    let jwt = |claims: &str| {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#), URL_SAFE_NO_PAD.encode(claims))
    };
    let (ours, foreign) = (jwt(r#"{"iss":"https://a"}"#), jwt(r#"{"iss":"https://b"}"#));
    let (nameless, unreadable) = (jwt("{}"), jwt("["));
    let strict = ProviderTokens { issuers: vec!["https://a".into()], ..ProviderTokens::default() };
    let any = ProviderTokens { any_issuer: true, ..ProviderTokens::default() };
    let no_issuer = ProviderTokens { no_issuer: true, ..strict.clone() };
    let opaque = ProviderTokens { opaque: true, ..strict.clone() };
    for (issued, value, is_taken) in [
        (&strict, ours.as_str(), true),
        (&strict, &format!("Bearer%20{ours}"), true),
        (&strict, &format!("bearer+{ours}"), true),
        (&strict, &ours.replace('.', "%2E"), true),
        (&strict, &foreign, false),
        (&strict, &nameless, false),
        (&strict, &unreadable, false),
        (&strict, "vite-1f2e3d", false),
        (&any, &foreign, true),
        (&any, &nameless, true),
        (&any, "vite-1f2e3d", false),
        (&no_issuer, &nameless, true),
        (&no_issuer, &foreign, false),
        (&opaque, &ours, true),
        (&opaque, &foreign, false),
        (&opaque, "vite-1f2e3d", true),
        // A credential that was presented elsewhere is removed, whatever it is.
        (&strict, "in-the-header", true),
    ] {
        let mut sources = sources();
        sources.query.as_mut().expect("a query").issued = Arc::new(issued.clone());
        for purpose in [Purpose::Plain, Purpose::Events, Purpose::WebSocket] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer in-the-header"));
            headers.append(REFERER, HeaderValue::from_static("https://a.example/"));
            let page = format!("https://a.example/p?token={value}");
            headers.append(REFERER, HeaderValue::from_str(&page).expect("value"));
            let mut uri: Uri = format!("/x?a=1&token={value}").parse().expect("target");
            extract(&mut headers, &mut uri, &sources, purpose, None, 256, None).expect("the header's");
            assert_eq!(uri.query() == Some("a=1"), is_taken, "{issued:?} {value} {purpose:?}");
            let pages: Vec<_> = headers.get_all(REFERER).iter().collect();
            let expected = if is_taken { "https://a.example/p" } else { page.as_str() };
            assert_eq!(pages, ["https://a.example/", expected], "{issued:?} {value}");
        }
    }
}

#[test]
fn the_first_kind_decides_and_the_others_are_taken_out_unread() {
    let (found, uri, _) = run(&["Bearer good"], "/ws?token=other&x=1", Purpose::WebSocket);
    assert_eq!((found.as_deref(), uri.as_str()), (Ok("good"), "/ws?x=1"));
    let (found, uri, _) = run(&["Basic good"], "/ws?token=other", Purpose::WebSocket);
    assert_eq!((found, uri.as_str()), (Err(Some(Problem::Format)), "/ws"));
}

#[test]
fn debug_shows_the_length_only() {
    let token = Token::parse("secret-token", 64).expect("token");
    assert_eq!(format!("{token:?}"), "Token(12 bytes)");
}

#[test]
fn referer_loses_the_parameter_too() {
    let mut headers = HeaderMap::new();
    headers.insert(REFERER, HeaderValue::from_static("https://a.example/p?x=1&token=abc"));
    let mut uri: Uri = "/ws?token=abc".parse().expect("target");
    extract(&mut headers, &mut uri, &sources(), Purpose::WebSocket, None, 64, None).expect("token");
    assert_eq!(headers[REFERER], "https://a.example/p?x=1");
}

#[test]
fn a_token_that_was_presented_before_changes_nothing_of_what_is_found() {
    let long = "x".repeat(65);
    let with = |values: &[&str], sources: &TokenSources, known: Option<&Token>| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).expect("value"));
        }
        let mut uri = Uri::from_static("/x");
        let found = match extract(&mut headers, &mut uri, sources, Purpose::Plain, None, 64, known) {
            Ok(Extracted::Token(token, carrier)) => Ok(Some((token.expose().to_owned(), carrier))),
            Ok(Extracted::Nothing(_) | Extracted::Cookies(..)) => Ok(None),
            Err(bad) => Err(bad),
        };
        assert!(!headers.contains_key(AUTHORIZATION), "{values:?}");
        found
    };
    let guarded = TokenSources { upstream_secret: Some(Secret::for_tests(b"abc")), ..sources() };
    for known in ["abc", long.as_str()] {
        let known = Token::parse(known, 65).expect("a token");
        for value in ["abc", "abcd", "ab", "", " abc", "abc ", long.as_str()] {
            for scheme in ["Bearer", "bearer", "token", "Basic"] {
                let value = format!("{scheme} {value}");
                for values in [&[value.as_str()][..], &[&value, &value]] {
                    for sources in [&sources(), &guarded] {
                        assert_eq!(with(values, sources, Some(&known)), with(values, sources, None), "{values:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_beside_other_bytes_than_ascii_is_taken_out_too() {
    let mut headers = HeaderMap::new();
    let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).expect("value");
    headers.insert(REFERER, value(b"https://a.example/caf\xc3\xa9?x=\xff&token=abc"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, value(b"v\xe9, plain.abc"));
    let mut uri: Uri = "/ws".parse().expect("target");
    let found = extract(&mut headers, &mut uri, &sources(), Purpose::WebSocket, None, 64, None);
    assert!(matches!(found, Ok(Extracted::Token(token, Carrier::Subprotocol)) if token.expose() == "abc"));
    assert_eq!(headers[REFERER].as_bytes(), b"https://a.example/caf\xc3\xa9?x=\xff");
    assert_eq!(headers[SEC_WEBSOCKET_PROTOCOL].as_bytes(), b"v\xe9");
}

#[test]
fn the_backends_own_secret_that_its_pages_send_back_is_no_credential_of_ours() {
    let mut sources = sources();
    sources.upstream_secret = Some(Secret::for_tests(b"its-own"));
    for (field, target, expected, left) in [
        ("token its-own", "/ws", Ok(None), "/ws"),
        ("", "/ws?a=1&token=its-own", Ok(None), "/ws?a=1"),
        ("token its-own", "/ws?token=its-own", Ok(None), "/ws"),
        ("token its-ow", "/ws", Err(Problem::Format), "/ws"),
        ("token its-own2", "/ws", Err(Problem::Format), "/ws"),
        ("Bearer x.y.z", "/ws?token=its-own", Ok(Some("x.y.z")), "/ws"),
        ("", "/ws?token=x.y.z", Ok(Some("x.y.z")), "/ws"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(field).expect("value"));
        let mut uri: Uri = target.parse().expect("target");
        let found = extract(&mut headers, &mut uri, &sources, Purpose::WebSocket, None, 64, None);
        let found = match &found {
            Ok(Extracted::Token(token, _)) => Ok(Some(token.expose())),
            Ok(_) => Ok(None),
            Err(bad) => Err(bad.problem),
        };
        assert_eq!(found, expected, "{field} {target}");
        assert_eq!(uri, left, "{field} {target}");
        assert!(headers.get(AUTHORIZATION).is_none());
    }
}

#[test]
fn the_password_of_basic_is_a_token_where_that_is_configured() {
    for (credentials, expected) in [
        ("Basic Z2l0OmEuYi5j", Ok("a.b.c")),
        ("bAsIc   Z2l0OmEuYi5j", Ok("a.b.c")),
        ("Basic OmEuYi5j", Ok("a.b.c")),
        // `git:` and `git`.
        ("Basic Z2l0Og==", Err(Problem::Format)),
        ("Basic Z2l0", Err(Problem::Format)),
        // `git:a:b`: the user name ends at the first colon, and no token has one.
        ("Basic Z2l0OmE6Yg==", Err(Problem::Format)),
        ("Basic %%%", Err(Problem::Format)),
        ("Basic", Err(Problem::Format)),
        ("Digest Z2l0OmEuYi5j", Err(Problem::Format)),
        ("Bearer a.b.c", Ok("a.b.c")),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static(credentials));
        let mut uri: Uri = "/x".parse().expect("target");
        let sources = TokenSources { basic: true, ..sources() };
        let found = match extract(&mut headers, &mut uri, &sources, Purpose::Plain, None, 64, None) {
            Ok(Extracted::Token(token, carrier)) => {
                assert_eq!(carrier, Carrier::Header);
                Ok(token.expose().to_owned())
            }
            Ok(Extracted::Nothing(_) | Extracted::Cookies(..)) => panic!("{credentials} is a credential"),
            Err(bad) => Err(bad.problem),
        };
        assert_eq!(found.as_deref().map_err(|problem| *problem), expected, "{credentials}");
        assert!(headers.is_empty(), "{credentials}");
    }
}

#[test]
fn beside_a_load_balancer_s_header_no_other_one_is_its_own() {
    let other = HeaderName::from_static("x-token");
    for (names, presented, expected) in [
        (vec![other.clone(), BALANCER_HEADER, AUTHORIZATION], BALANCER_HEADER, Carrier::OwnHeader),
        (vec![other.clone(), BALANCER_HEADER, AUTHORIZATION], other.clone(), Carrier::Header),
        (vec![other.clone(), AUTHORIZATION], other.clone(), Carrier::OwnHeader),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(&presented, HeaderValue::from_static("a.b.c"));
        let mut uri: Uri = "/x".parse().expect("target");
        let sources = TokenSources { headers: names, ..sources() };
        match extract(&mut headers, &mut uri, &sources, Purpose::Plain, None, 64, None) {
            Ok(Extracted::Token(_, carrier)) => assert_eq!(carrier, expected, "{presented}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_opaque_query_value_waits_behind_a_cookie() {
    let jwt = "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl";
    for (cookie, target, expected) in [
        ("__session=c", "/ws?token=abc", Some((Some("c"), Some("abc")))),
        ("other=c", "/ws?token=abc", None),
        ("__session=c", "/ws?x=1", Some((Some("c"), None))),
        ("__session=c", &format!("/ws?token={jwt}"), None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(hyper::header::COOKIE, HeaderValue::from_static(cookie));
        let mut uri: Uri = target.parse().expect("target");
        let mut sources = sources();
        if let Some(query) = &mut sources.query {
            query.issued = Arc::new(ProviderTokens { opaque: true, any_issuer: true, ..ProviderTokens::default() });
        }
        let found = match extract(&mut headers, &mut uri, &sources, Purpose::WebSocket, None, 64, None) {
            Ok(Extracted::Cookies(cookies, _)) => Some(cookies),
            Ok(Extracted::Token(..)) => None,
            other => panic!("{cookie} {target}: {other:?}"),
        };
        let found = found.as_ref().map(|cookies| {
            let in_query = cookies.opaque_in_query.as_ref().and_then(|found| found.as_ref().ok());
            (cookies.token.as_ref().map(Token::expose), in_query.map(|(token, _)| token.expose()))
        });
        assert_eq!(found, expected, "{cookie} {target}");
        assert!(!uri.to_string().contains("token="), "{uri}");
    }
}

#[test]
fn a_repeated_token_is_equal_in_every_byte() {
    for length in (1..100).chain([700]) {
        let token = Token::parse(&"a".repeat(length), 1_000).expect("a token");
        let value = format!("Bearer {}", "a".repeat(length));
        assert!(token.repeated(value.as_bytes(), 1_000).is_some(), "{length}");
        assert!(token.repeated(value.as_bytes(), length - 1).is_none(), "longer than the limit: {length}");
        for at in 0..value.len() {
            let mut other = value.clone().into_bytes();
            other[at] ^= 1;
            assert!(token.repeated(&other, 1_000).is_none(), "{length}, another byte at {at}");
        }
        for other in [&value[..value.len() - 1], &format!("{value}a"), &value[7..]] {
            assert!(token.repeated(other.as_bytes(), 1_000).is_none(), "{length}, {other}");
        }
    }
}
