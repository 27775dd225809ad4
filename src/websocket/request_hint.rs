//! Says for the log what the URL of an upgrade tells of a client that sent no first message with a token.

use percent_encoding::percent_decode_str;

use super::close_reason::CloseReason;
use crate::policy::TokenSources;

/// The longest name of a parameter that is logged, in bytes.
const MAX_NAME: usize = 64;
/// The shortest value that is taken for a token by the name of its parameter alone, in bytes.
const MIN_TOKEN: usize = 16;

/// Returns the likely cause for the log: a client whose protocol lets the server speak first, or a token in a parameter
/// that is not read. Names a parameter, never its value.
pub(super) fn of_missing_token(reason: Option<CloseReason>, query: &str, sources: &TokenSources) -> Option<String> {
    let concerns_first_message = reason.is_none_or(|reason| {
        matches!(
            reason,
            CloseReason::Timeout | CloseReason::InvalidMessage | CloseReason::Unexpected | CloseReason::MissingToken
        )
    });
    if !concerns_first_message {
        return None;
    }
    let parameters: Vec<(String, String)> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    if let Some((name, _)) = parameters.iter().find(|(name, value)| is_printable(name) && is_like_token(name, value)) {
        let is_read = sources.query.as_ref().is_some_and(|query| query.websocket && query.is_named(name));
        return Some(if is_read {
            format!("the URL has a token in the parameter {name} that no configured provider issued")
        } else {
            format!(
                "the URL has the parameter {name}, which looks like a token and is not read; token_from: {{ query: {{ name: {name} }} }} reads it"
            )
        });
    }
    let is = |wanted: &str, value: Option<&str>| {
        parameters.iter().any(|(name, found)| name == wanted && value.is_none_or(|value| value == found))
    };
    (is("EIO", None) && is("transport", Some("websocket"))).then(|| {
        "a socket.io client, which sends no first message before its server; it can send the token in the query, or use a session cookie (docs/socket-io.md)"
            .to_owned()
    })
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn is_printable(name: &str) -> bool {
    name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Whether a value has the shape of a JWT, or is long enough to be a token and its parameter is called like one.
fn is_like_token(name: &str, value: &str) -> bool {
    let is_jwt = value.starts_with("eyJ") && value.bytes().filter(|b| *b == b'.').count() == 2;
    let name = name.to_ascii_lowercase();
    is_jwt || (value.len() >= MIN_TOKEN && ["token", "jwt", "auth", "bearer"].iter().any(|word| name.contains(word)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::{ProviderTokens, QueryMode, QueryParameter};

    #[test]
    fn the_hint_names_the_parameter_or_the_client_and_never_a_value() {
        let sources = TokenSources {
            headers: Vec::new(),
            message: true,
            query: Some(QueryParameter {
                names: vec!["token".into()],
                issued: Arc::new(ProviderTokens::default()),
                mode: QueryMode::Move,
                websocket: true,
                events: false,
                http: false,
            }),
            subprotocols: Vec::new(),
            cookie: None,
            basic: false,
            upstream_secret: None,
        };
        for (query, expected) in [
            (
                "access_token=eyJhbGciOiJIUzI1NiJ9.e30.c2VjcmV0",
                Some("the parameter access_token, which looks like a token"),
            ),
            ("x=eyJh.e30.secret", Some("the parameter x, which")),
            ("a=1&%74oken=0123456789secret0", Some("in the parameter token that no configured provider issued")),
            ("token=secret", None),
            ("id=0123456789secret0", None),
            ("to%0Aken=0123456789secret0", None),
            ("EIO=4&transport=websocket", Some("a socket.io client")),
            ("EIO=4&transport=polling", None),
            ("", None),
        ] {
            let found = of_missing_token(Some(CloseReason::Timeout), query, &sources);
            assert_eq!(found.is_some(), expected.is_some(), "{query}: {found:?}");
            assert!(found.as_deref().unwrap_or_default().contains(expected.unwrap_or_default()), "{query}: {found:?}");
            assert!(!found.unwrap_or_default().contains("secret"), "{query}");
        }
        assert_eq!(of_missing_token(Some(CloseReason::InvalidToken), "EIO=4&transport=websocket", &sources), None);
    }
}
