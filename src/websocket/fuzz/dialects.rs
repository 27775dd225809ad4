//! Compares what a dialect takes from a message, and what it forwards, with other readers of JSON.

use crate::auth::Token;
use crate::fuzz::{Input, READERS, Tree, lower};
use crate::policy::{DialectSpec, FieldMode, FieldSpec, ReservedNames};
use crate::websocket::classify::{Classifier, MessageKind, Rules};
use crate::websocket::dialect::{FirstMessage, Forward, LaterMessage, PresentedToken, read_first, read_later};
use crate::websocket::field;

/// The largest token in bytes.
const TOKEN_BYTES: usize = 64;
/// The maximum depth of a message that is read.
const DEPTH: usize = 32;

/// The places of the token in a message of `graphql-transport-ws`, in their order.
const PLACES: [&[&str]; 3] =
    [&["payload", "Authorization"], &["payload", "headers", "Authorization"], &["payload", "authToken"]];
/// The members of such a message that servers read as request headers.
const HEADER_MAPS: [&[&str]; 2] = [&["payload"], &["payload", "headers"]];

/// Checks that a message is read as other readers read it, or refused, and that what is forwarded carries no token
/// that some reader could find.
///
/// The first byte chooses the dialect and the second one where a message is split. The rest is the message.
pub fn dialects(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.below(6);
    let cut = usize::from(input.byte());
    let message = input.rest();
    match choice {
        0 => vestibule(message, cut),
        1 => graphql(message, cut, false),
        2 => graphql(message, cut, true),
        3 => token_field(message, cut, FieldMode::Keep),
        4 => token_field(message, cut, FieldMode::Remove),
        _ => token_field(message, cut, FieldMode::Replace),
    }
}

/// Returns the token that is in a text, as it is read from a place called Authorization or another.
fn token_in<'t>(text: &'t str, place: &str) -> Option<&'t str> {
    let scheme = text.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("bearer "));
    let text =
        if lower(place) == "authorization" && scheme.is_some() { text[7..].trim_start_matches(' ') } else { text };
    (!text.is_empty()).then_some(text)
}

/// Returns whether a text is a token68 of RFC 9110 section 11.2.
fn is_token68(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty() && body.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c))
}

fn vestibule(message: &[u8], cut: usize) {
    let dialect = DialectSpec::vestibule();
    classified(&Rules::of(Some(&dialect), Some(&dialect)).expect("the upstream acts on it"), message, cut, |tree| {
        let types = tree.all(&["type"]);
        types.iter().any(|one| one.text().is_some_and(|text| matches!(&*lower(text), "authenticate" | "refresh_auth")))
    });
    let Ok(text) = std::str::from_utf8(message) else { return };
    let read = read_first(&dialect, text, TOKEN_BYTES, false);
    assert!(read.forward.is_none(), "a message for the proxy alone is forwarded");
    let tree = Tree::parse(message).filter(|tree| !tree.has_duplicates() && tree.depth() <= DEPTH);
    let Some(tree @ Tree::Object(_)) = tree else {
        assert!(matches!(read.message, FirstMessage::InvalidMessage), "{:?}", read.message);
        return;
    };
    // Without duplicates the exact readers agree.
    let find = |name| tree.find(&[name], READERS[0]).and_then(Tree::text);
    match (find("type"), find("token").filter(|token| !token.is_empty())) {
        (Some("authenticate"), Some(token)) => match &read.message {
            FirstMessage::Authenticate(found) => assert_eq!(found.expose(), token),
            other => {
                assert!(matches!(other, FirstMessage::NotAToken(_)), "{other:?}");
                assert!(token.len() > TOKEN_BYTES || !is_token68(token), "{token}");
            }
        },
        (Some("authenticate"), None) => assert!(matches!(read.message, FirstMessage::MissingToken)),
        (_, _) => assert!(matches!(read.message, FirstMessage::Unexpected), "{:?}", read.message),
    }
    // A later message is either for the proxy alone or forwarded as it came.
    let later = read_later(&dialect, message, TOKEN_BYTES, None, None).expect("nothing is refused");
    let is_known = matches!(find("type"), Some("authenticate" | "refresh_auth"));
    assert_eq!(matches!(later.forward, Forward::Nothing), is_known, "{later:?}");
    assert_eq!(later.messages.len(), usize::from(is_known));
    for (found, _) in &later.messages {
        if let LaterMessage::Authenticate(PresentedToken::Token(token))
        | LaterMessage::Refresh(PresentedToken::Token(token)) = found
        {
            assert_eq!(Some(token.expose()), find("token"));
        }
    }
}

fn graphql(message: &[u8], cut: usize, with_token: bool) {
    let dialect = DialectSpec::graphql_transport_ws(ReservedNames::default());
    let rules = Rules::of(Some(&dialect), None).expect("it forwards");
    let is_init = |tree: &Tree| {
        tree.all(&["type"]).iter().any(|one| one.text().is_some_and(|text| lower(text) == "connection_init"))
    };
    classified(&rules, message, cut, is_init);
    let tree = Tree::parse(message);
    let expected = tree.as_ref().and_then(|tree| {
        let (place, value) = PLACES
            .iter()
            .find_map(|place| tree.find(place, READERS[0]).map(|value| (place[place.len() - 1], value)))?;
        token_in(value.text()?, place)
    });
    if let Ok(text) = std::str::from_utf8(message) {
        let read = read_first(&dialect, text, TOKEN_BYTES, with_token);
        if let FirstMessage::Authenticate(token) = &read.message {
            assert!(tree.as_ref().is_some_and(|tree| !tree.has_duplicates()), "a message with two readings is read");
            assert_eq!(Some(token.expose()), expected);
            let forward = read.forward.as_deref().expect("it goes on");
            carries_only(forward, Some(token), with_token.then_some(token));
        } else {
            assert!(read.forward.is_none(), "forwarded without a token");
        }
    }
    let current = Token::parse("current", TOKEN_BYTES).expect("a token");
    let current = with_token.then_some(&current);
    let Ok(later) = read_later(&dialect, message, TOKEN_BYTES, current, Some(&rules)) else { return };
    let presented = later.messages.iter().find_map(|(found, _)| match found {
        LaterMessage::Authenticate(PresentedToken::Token(token)) => Some(token),
        _ => None,
    });
    if let Some(token) = presented {
        assert_eq!(Some(token.expose()), expected);
    }
    match &later.forward {
        Forward::Unchanged => {
            let could_be = tree.as_ref().is_some_and(is_init);
            assert!(!could_be, "passes though some reader takes it for connection_init");
        }
        Forward::Rewritten(text) => carries_only(text, presented, current),
        Forward::AfterVerdict { token, after } => {
            assert_eq!(Some(token.expose()), presented.map(Token::expose));
            assert_eq!(after.refused, None);
            carries_only(&after.accepted, presented, presented);
            carries_only(after.expired.as_deref().expect("it authenticates"), presented, current);
        }
        Forward::Nothing => panic!("a message for the upstream is dropped"),
    }
}

/// Checks that no reader finds a token in a forwarded message but `with`, at the first place.
fn carries_only(forward: &str, presented: Option<&Token>, with: Option<&Token>) {
    let tree = Tree::parse(forward.as_bytes()).expect("JSON goes on");
    for place in PLACES {
        let found: Vec<Option<&str>> = tree.all(place).into_iter().map(Tree::text).collect();
        match with {
            // There is no such member in an array.
            Some(token)
                if place == PLACES[0] && !tree.all(&["payload"]).iter().any(|one| matches!(one, Tree::Array(_))) =>
            {
                assert_eq!(found, [Some(token.expose())], "{forward}");
            }
            _ => assert!(found.is_empty(), "{forward}"),
        }
    }
    for map in HEADER_MAPS {
        for members in tree.all(map) {
            let Tree::Object(members) = members else { continue };
            for (name, value) in members {
                let folded: String = lower(name).chars().filter(char::is_ascii_alphanumeric).collect();
                if with.is_some() && map == HEADER_MAPS[0] && name == "Authorization" {
                    continue;
                }
                assert!(folded != "authorization" && !folded.starts_with("xforwarded"), "{name} in {forward}");
                assert!(presented.is_none_or(|token| !value.holds(token.expose())), "the token in {forward}");
            }
        }
    }
}

fn token_field(message: &[u8], cut: usize, upstream: FieldMode) {
    const PATH: &[&str] = &["meta", "auth_token"];
    let nested = cut % 2 == 1;
    let path = if nested { PATH } else { &PATH[1..] };
    let pointer = path.iter().map(|name| (*name).to_owned()).collect();
    let dialect = DialectSpec::token_field(FieldSpec { pointer, upstream });
    let spec = dialect.field.as_ref().expect("a field");
    let rules = Rules::of(Some(&dialect), None).expect("a field");
    classified(&rules, message, cut, |tree| !tree.all(path).is_empty());
    let Ok(text) = std::str::from_utf8(message) else { return };
    let first = read_first(&dialect, text, TOKEN_BYTES, false);
    let Ok(read) = field::read(spec, text) else {
        assert!(matches!(first.message, FirstMessage::InvalidMessage));
        return;
    };
    match (&first.message, read.token()) {
        (FirstMessage::Authenticate(token), found) => assert_eq!(Some(token.expose()), found),
        (FirstMessage::NotAToken(_), Some(_)) => {}
        (FirstMessage::NotAToken(_), None) => assert!(read.is_not_text),
        (FirstMessage::MissingToken, found) => assert_eq!(found, None),
        (other, _) => panic!("{other:?}"),
    }
    let forwarded = read.edited.as_deref().unwrap_or(text);
    assert_eq!(first.forward.as_deref(), Some(forwarded));
    // What is in other members is not looked at, so a lone surrogate may be there.
    let Some(tree) = Tree::parse(message) else { return };
    let after = Tree::parse(forwarded.as_bytes()).expect("JSON goes on");
    for reader in READERS {
        let found = tree.find(path, reader);
        let text = found.and_then(Tree::text).filter(|text| !text.is_empty());
        assert_eq!(read.token.as_deref(), text, "{reader:?} reads another token");
        assert_eq!(read.is_not_text, found.is_some_and(|found| !matches!(found, Tree::Text(_) | Tree::Null)));
        match (upstream, found) {
            (FieldMode::Keep, _) | (_, None) => assert_eq!(forwarded, text_of(message)),
            (FieldMode::Remove, _) => assert_eq!(after.find(path, reader), None, "{forwarded}"),
            (FieldMode::Replace, _) => {
                assert_eq!(after.find(path, reader), Some(&Tree::Text(String::new())), "{forwarded}");
            }
        }
    }
    assert_eq!(without(after, path), without(tree, path), "another member was changed: {forwarded}");
}

fn text_of(message: &[u8]) -> &str {
    std::str::from_utf8(message).expect("checked before")
}

/// Returns a value without the member at a path.
fn without(tree: Tree, path: &[&str]) -> Tree {
    let (Tree::Object(mut members), Some((name, rest))) = (tree.clone(), path.split_first()) else { return tree };
    if rest.is_empty() {
        members.retain(|(member, _)| member != name);
        return Tree::Object(members);
    }
    let inner = |(member, value): (String, Tree)| {
        let value = if member == *name { without(value, rest) } else { value };
        (member, value)
    };
    Tree::Object(members.into_iter().map(inner).collect())
}

/// Checks that the classifier finds the same wherever a message is split, and what any reader takes for a message of
/// the dialect.
fn classified(rules: &Rules, message: &[u8], cut: usize, could_be: impl Fn(&Tree) -> bool) {
    let kinds = |parts: &[&[u8]]| {
        let mut classifier = Classifier::new(rules, true);
        for part in parts {
            classifier.feed(rules, part);
        }
        classifier.end(rules);
        (
            classifier.kinds(rules).collect::<Vec<MessageKind>>(),
            classifier.is_guarded(rules),
            classifier.proxy_may_read(),
        )
    };
    let whole = kinds(&[message]);
    let (before, behind) = message.split_at(cut.min(message.len()));
    assert_eq!(kinds(&[before, behind]), whole, "depends on where the message is split");
    assert_eq!(kinds(&message.chunks(1).collect::<Vec<_>>()), whole, "depends on where the message is split");
    if Tree::parse(message).is_some_and(|tree| could_be(&tree)) {
        assert!(whole.1, "a message that some reader takes for one of the dialect passes");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_dialects_is_read_alike() {
        crate::fuzz::run_corpus("dialects", super::dialects);
    }
}
