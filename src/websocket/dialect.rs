//! Reads the messages of a dialect (docs/contract.md section 4.3): which of a client's messages are for us,
//! where they keep their token, and what of one that goes on the upstream may see.

#[cfg(test)]
mod tests;

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
                ..of(match read.token().map(|token| Token::parse(token, token_bytes)) {
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
    Token::parse(text, limit).map_or(Presented::NotAToken, Presented::Token)
}

fn is_authorization(name: &str) -> bool {
    fold(name).as_bytes() == b"authorization"
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
    let same = |a: &str, b: &str| fold(a) == fold(b);
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
