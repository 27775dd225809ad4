//! Reads the messages of a dialect (docs/contract.md section 4.3): which of a client's messages are for the proxy, where
//! they carry their token, and what the upstream gets of a message that is forwarded.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::classify::{MessageKind, Rules, without_case};
use super::close_reason::CloseReason;
use super::field;
use super::template::{Copies, Values, render};
use crate::auth::token::TokenError;
use crate::auth::{Token, token};
use crate::json;
use crate::policy::{DialectSpec, Expectation, MessageSpec, fold};

/// The result of reading the first message of a client.
#[derive(Debug)]
pub(super) enum FirstMessage {
    /// The message carries a token.
    Authenticate(Token),
    /// A ping of the application, with its answer. The next message is the first one.
    Ping(String),
    /// The text is not one JSON object, or has duplicate members.
    InvalidMessage,
    /// The message is none of the dialect's.
    Unexpected,
    /// The message is the dialect's, without a token.
    MissingToken,
    /// The message is the dialect's, with a value that cannot be a token: a text, for this reason, or no text.
    NotAToken(Option<TokenError>),
}

/// A first message after it was read.
#[derive(Debug)]
pub(super) struct FirstMessageRead {
    pub(super) message: FirstMessage,
    /// The values that the answer copies from the message.
    pub(super) copies: Copies,
    /// The text to forward to the upstream once it is connected.
    pub(super) forward: Option<String>,
    /// Further messages in the same text, each on a line of its own.
    pub(super) lines_behind: String,
}

/// A later message of a client that is for the proxy.
#[derive(Debug)]
pub(super) enum LaterMessage {
    /// Another `authenticate`, which gets the answer to `authenticate`.
    Authenticate(PresentedToken),
    /// A refresh.
    Refresh(PresentedToken),
    /// A ping of the application, with its answer.
    Ping(String),
}

/// The token of a later message.
#[derive(Debug)]
pub(super) enum PresentedToken {
    /// A token to verify.
    Token(Token),
    /// No token.
    Missing,
    /// A text that cannot be a token.
    NotAToken(TokenError),
}

/// The part of a later text that is forwarded.
#[derive(Debug)]
pub(super) enum Forward {
    /// The text, byte for byte.
    Unchanged,
    /// This text in its place.
    Rewritten(String),
    /// The text waits for the verdict on this token. Then one of its forms is forwarded.
    AfterVerdict { token: Token, after: AfterVerdict },
    /// Nothing: the text was for the proxy alone.
    Nothing,
}

/// The texts of which one is forwarded after the verdict on the token of a later text.
#[derive(Debug)]
pub(super) struct AfterVerdict {
    pub(super) accepted: String,
    /// The text if the token has expired, and the session goes on: it authenticates with the token in force. The upstream
    /// answers it as it would the accepted one, and the client waits for that answer.
    pub(super) expired: Option<String>,
    /// The part that needs no token.
    pub(super) refused: Option<String>,
}

/// A line that is forwarded.
struct ForwardedLine<'a> {
    text: Cow<'a, str>,
    /// Whether it is forwarded only once the token that it carries is verified.
    waits: bool,
    /// The line that authenticates with the token in force instead.
    in_force: Option<String>,
}

impl<'a> ForwardedLine<'a> {
    fn unchanged(line: &'a str) -> Self {
        Self { text: line.into(), waits: false, in_force: None }
    }
}

/// A later text after it was read.
#[derive(Debug)]
pub(super) struct LaterMessageRead {
    /// The messages for the proxy, each with what its answer copies from it.
    pub(super) messages: Vec<(LaterMessage, Copies)>,
    pub(super) forward: Forward,
}

/// Reads the first message. With `with_token` the upstream reads this dialect itself, so the forwarded message keeps
/// its token.
#[must_use]
pub(super) fn read_first(dialect: &DialectSpec, text: &str, token_bytes: usize, with_token: bool) -> FirstMessageRead {
    let of =
        |message| FirstMessageRead { message, copies: Copies::default(), forward: None, lines_behind: String::new() };
    if let Some(spec) = &dialect.field {
        return match field::read(spec, text) {
            Err(_) => of(FirstMessage::InvalidMessage),
            Ok(read) => FirstMessageRead {
                forward: Some(read.edited.clone().unwrap_or_else(|| text.to_owned())),
                ..of(match read.token().map(|token| Token::parse(token, token_bytes)) {
                    Some(Ok(token)) => FirstMessage::Authenticate(token),
                    Some(Err(error)) => FirstMessage::NotAToken(Some(error)),
                    None if read.is_not_text => FirstMessage::NotAToken(None),
                    None => FirstMessage::MissingToken,
                })
            },
        };
    }
    let (text, lines_behind) = if dialect.lines { first_line(text) } else { (text, "") };
    let lines_behind = lines_behind.to_owned();
    let Some(message) = parsed(dialect, text) else {
        return FirstMessageRead { lines_behind, ..of(FirstMessage::InvalidMessage) };
    };
    let copies = copies(dialect, &message);
    if let Some(reply) = pong(dialect, &message, &copies) {
        return FirstMessageRead { copies, lines_behind, ..of(FirstMessage::Ping(reply)) };
    }
    let spec = &dialect.authenticate;
    if !matches(&spec.matches, &message) {
        return FirstMessageRead { copies, lines_behind, ..of(FirstMessage::Unexpected) };
    }
    match presented(spec, &message, token_bytes) {
        PresentedToken::Token(token) => {
            let with = with_token.then_some(&token);
            let forward = spec.forward.then(|| without_credentials(dialect, spec, message, Some(&token), with));
            FirstMessageRead { message: FirstMessage::Authenticate(token), copies, forward, lines_behind }
        }
        PresentedToken::Missing => FirstMessageRead { copies, lines_behind, ..of(FirstMessage::MissingToken) },
        PresentedToken::NotAToken(error) => {
            FirstMessageRead { copies, lines_behind, ..of(FirstMessage::NotAToken(Some(error))) }
        }
    }
}

/// Reads a later text: finds the messages for the proxy, and what is forwarded. `current` is the verified token, where
/// the upstream gets it in messages of this dialect. `rules` are those for messages that the upstream acts on itself.
///
/// # Errors
/// Returns the close reason for a text that the upstream could take as a message of the dialect, but not in every
/// reading: what the proxy reads or rewrites might not be what the upstream reads. It also refuses a text that carries two
/// different tokens for the upstream.
pub(super) fn read_later(
    dialect: &DialectSpec,
    text: &[u8],
    token_bytes: usize,
    current: Option<&Token>,
    rules: Option<&Rules>,
) -> Result<LaterMessageRead, CloseReason> {
    let unchanged = LaterMessageRead { messages: Vec::new(), forward: Forward::Unchanged };
    let is_acted_on = |text: &str| {
        rules.is_some_and(|rules| rules.kinds_of(text).into_iter().any(|kind| kind != MessageKind::ProxyOnly))
    };
    if rules.is_none() {
        let rules = [Some(&dialect.authenticate.matches), dialect.refresh.as_ref().map(|refresh| &refresh.matches)];
        let rules = rules.into_iter().chain([dialect.ping.as_ref().map(|ping| &ping.matches)]);
        if !rules.flatten().any(|matches| could_match(matches, text)) {
            return Ok(unchanged);
        }
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return if is_acted_on(&String::from_utf8_lossy(text)) {
            Err(CloseReason::InvalidMessage)
        } else {
            Ok(unchanged)
        };
    };
    let mut messages = Vec::new();
    let mut kept: Vec<ForwardedLine<'_>> = Vec::new();
    // The token that the forwarded text carries, and that must be verified first.
    let mut awaited: Option<Token> = None;
    let (mut changed, mut is_known) = (false, false);
    let lines = text.split(|c| dialect.lines && c == '\n').filter(|line| !dialect.lines || !line.trim().is_empty());
    for line in lines {
        let Some(message) = parsed(dialect, line) else {
            if is_acted_on(line) {
                return Err(CloseReason::InvalidMessage);
            }
            kept.push(ForwardedLine::unchanged(line));
            continue;
        };
        let copies = copies(dialect, &message);
        if let Some(reply) = pong(dialect, &message, &copies) {
            changed = true;
            messages.push((LaterMessage::Ping(reply), copies));
            continue;
        }
        let refresh = dialect.refresh.as_ref().filter(|refresh| matches(&refresh.matches, &message));
        let authenticate = Some(&dialect.authenticate).filter(|spec| matches(&spec.matches, &message));
        let Some(spec) = refresh.or(authenticate) else {
            if is_acted_on(line) {
                return Err(CloseReason::InvalidMessage);
            }
            kept.push(ForwardedLine::unchanged(line));
            continue;
        };
        (changed, is_known) = (true, true);
        let found = presented(spec, &message, token_bytes);
        if spec.forward {
            let (with, waits) = match &found {
                PresentedToken::Token(token) if current.is_some() => {
                    // The verdict on one token would let the other through.
                    if !awaited.get_or_insert_with(|| token.duplicate()).is_same(token) {
                        return Err(CloseReason::InvalidMessage);
                    }
                    (Some(token), true)
                }
                _ => (current, false),
            };
            let carried = match &found {
                PresentedToken::Token(token) => Some(token),
                _ => None,
            };
            let in_force = (waits && refresh.is_none())
                .then(|| without_credentials(dialect, spec, message.clone(), carried, current));
            let text = without_credentials(dialect, spec, message, carried, with).into();
            kept.push(ForwardedLine { text, waits, in_force });
        }
        // A forwarded message without a token is meant for the upstream alone.
        if !(spec.forward && matches!(found, PresentedToken::Missing)) {
            let later =
                if refresh.is_some() { LaterMessage::Refresh(found) } else { LaterMessage::Authenticate(found) };
            messages.push((later, copies));
        }
    }
    // A reader that does not split lines takes the text as one message.
    if !is_known && is_acted_on(text) {
        return Err(CloseReason::InvalidMessage);
    }
    if !changed {
        return Ok(LaterMessageRead { messages, forward: Forward::Unchanged });
    }
    let joined = |text_of: for<'l> fn(&'l ForwardedLine<'_>) -> Option<&'l str>| {
        let lines: Vec<&str> = kept.iter().filter_map(text_of).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    let forward = match (joined(|line| Some(&line.text)), awaited) {
        (None, _) => Forward::Nothing,
        (Some(accepted), Some(token)) => {
            let expired = joined(|line| if line.waits { line.in_force.as_deref() } else { Some(&line.text) });
            let refused = joined(|line| (!line.waits).then_some(&*line.text));
            Forward::AfterVerdict { token, after: AfterVerdict { accepted, expired, refused } }
        }
        (Some(text), None) => Forward::Rewritten(text),
    };
    Ok(LaterMessageRead { messages, forward })
}

/// Returns whether a text could be a message of the dialect, by its first byte that is not white space.
#[must_use]
pub(super) fn may_be_dialect_message(dialect: &DialectSpec, text: &[u8]) -> bool {
    match text.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
        Some(first) => *first == b'{' || (*first == b'[' && dialect.takes_arrays()),
        None => true,
    }
}

/// Writes the message by which the proxy authenticates a user to the upstream, or forwards a renewed token.
#[must_use]
pub(super) fn upstream_message(spec: &MessageSpec, token: &Token) -> String {
    let arrays = spec.matches.iter().all(|(key, _)| key.starts_with('/'))
        && spec.matches.iter().any(|(key, _)| key[1..].split('/').next().is_some_and(is_index));
    let mut message = if arrays { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
    for (key, expectation) in &spec.matches {
        let pointer = if key.starts_with('/') { key.clone() } else { format!("/{}", escaped(key)) };
        if let Expectation::Equals(value) = expectation {
            set_member(&mut message, &pointer, value.clone());
        }
    }
    if let Some(pointer) = spec.token.first() {
        set_member(&mut message, pointer, Value::String(token.expose().to_owned()));
    }
    message.to_string()
}

fn parsed(dialect: &DialectSpec, text: &str) -> Option<Value> {
    let value = json::value(text.as_bytes()).ok()?;
    (value.is_object() || (value.is_array() && dialect.takes_arrays())).then_some(value)
}

/// Splits a text after its first line that is not empty.
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

/// Returns whether a text could match the rule, without parsing it: unless there are escapes, every literal and member
/// of the rule must occur in the text.
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

fn presented(spec: &MessageSpec, message: &Value, limit: usize) -> PresentedToken {
    let Some((pointer, Value::String(text))) =
        spec.token.iter().find_map(|pointer| member(message, pointer).map(|found| (pointer, found)))
    else {
        return PresentedToken::Missing;
    };
    // The value of a member called Authorization is read as that of the header.
    let text = if is_authorization(pointer.rsplit('/').next().unwrap_or(pointer)) {
        field::without_scheme(text)
    } else {
        text
    };
    if text.is_empty() {
        return PresentedToken::Missing;
    }
    Token::parse(text, limit).map_or_else(PresentedToken::NotAToken, PresentedToken::Token)
}

fn is_authorization(name: &str) -> bool {
    fold(name).as_bytes() == b"authorization"
}

/// Rewrites a message that is forwarded. It removes the token from every place that could carry one, and credentials
/// and trusted headers from the members that backends read as request headers (CVE-2026-71485). Members are compared
/// without regard to case, as some backends do. `with` is the token that the upstream gets.
fn without_credentials(
    dialect: &DialectSpec,
    spec: &MessageSpec,
    mut message: Value,
    presented: Option<&Token>,
    with: Option<&Token>,
) -> String {
    for pointer in dialect.token_places() {
        remove_member(&mut message, pointer);
    }
    for map in &dialect.header_maps {
        let names_of_tokens: Vec<String> = dialect
            .token_places()
            .filter_map(|place| place.strip_prefix(map.as_str())?.strip_prefix('/'))
            .filter(|name| !name.contains('/'))
            .map(|name| without_case(&unescaped(name)))
            .collect();
        for_each_at(&mut message, &segments(map), &mut |found| {
            if let Value::Object(members) = found {
                remove_credential_headers(dialect, members, &names_of_tokens, presented);
            }
        });
    }
    if let (Some(token), Some(pointer)) = (with, spec.token.first()) {
        set_member(&mut message, pointer, Value::String(token.expose().to_owned()));
    }
    message.to_string()
}

/// Removes from request headers in a message what is also removed from the client's HTTP requests.
fn remove_credential_headers(
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
            remove_credential_cookies(dialect, value);
        }
        !presented.is_some_and(|token| holds(value, token.expose()))
    });
}

/// Returns whether a header's value holds the token, as a query or a subprotocol may.
fn holds(value: &Value, token: &str) -> bool {
    match value {
        Value::String(text) => text.contains(token),
        Value::Array(items) => items.iter().any(|item| holds(item, token)),
        _ => false,
    }
}

/// Removes the cookies that are credentials from a `Cookie` header of one or several lines.
fn remove_credential_cookies(dialect: &DialectSpec, value: &mut Value) {
    match value {
        Value::String(line) => *line = token::without_credentials(line, &dialect.cookies),
        Value::Array(lines) => lines.iter_mut().for_each(|line| remove_credential_cookies(dialect, line)),
        // No backend reads a header value of another type.
        other => *other = Value::Null,
    }
}

fn segments(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|part| without_case(&unescaped(part))).collect()
}

/// Calls `then` for every value that a reader without regard to case may find at a JSON pointer.
fn for_each_at(message: &mut Value, segments: &[String], then: &mut impl FnMut(&mut Value)) {
    let Some((first, rest)) = segments.split_first() else { return then(message) };
    match message {
        Value::Object(members) => {
            for (name, member) in members {
                if without_case(name) == *first {
                    for_each_at(member, rest, then);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = first.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                for_each_at(item, rest, then);
            }
        }
        _ => {}
    }
}

/// Removes a member. In an array null replaces it, so that the other elements keep their indices.
fn remove_member(message: &mut Value, pointer: &str) {
    let segments = segments(pointer);
    let Some((last, parents)) = segments.split_last() else { return };
    for_each_at(message, parents, &mut |parent| match parent {
        Value::Object(members) => members.retain(|name, _| without_case(name) != *last),
        Value::Array(items) => {
            if let Some(item) = last.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                *item = Value::Null;
            }
        }
        _ => {}
    });
}

/// Sets the value at a JSON pointer and creates the missing containers on the path.
fn set_member(message: &mut Value, pointer: &str, value: Value) {
    let mut at = message;
    let segments: Vec<String> = pointer.split('/').skip(1).map(unescaped).collect();
    for (position, segment) in segments.iter().enumerate() {
        let empty = match segments.get(position + 1) {
            Some(next) if is_index(next) => Value::Array(Vec::new()),
            _ => Value::Object(Map::new()),
        };
        at = match at {
            Value::Array(items) => {
                // The index comes from the configuration, not from a client.
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
