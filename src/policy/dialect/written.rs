//! Reads the dialects of the configuration and reports their errors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{CLOSE_KEYS, Close, DialectSpec, Dialects, Expectation, FieldSpec, MessageSpec, PingSpec};
use crate::config::{self, Config, CookieChoice};
use crate::policy::check::Check;
use crate::policy::{CookieSource, ReservedNames};

/// The values of `websocket.dialect` that name no dialect with a first message.
const WITHOUT_FIRST_MESSAGE: [&str; 2] = ["token-field", "none"];

/// Returns whether a code may be sent in a Close (RFC 6455 section 7.4).
pub(in crate::policy) fn is_sendable(code: u16) -> bool {
    matches!(code, 1000 | 1001 | 1008 | 1011..=1014 | 3000..=4999)
}

impl Check {
    /// Returns the built-in dialects and those of the configuration.
    pub(in crate::policy) fn dialects(
        &mut self,
        config: &Config,
        reserved: &ReservedNames,
        cookie_suffixes: &[String],
    ) -> Dialects {
        let (credentials, cookies) = (credential_headers(config), credential_cookies(config, cookie_suffixes));
        let with_credentials = |mut spec: DialectSpec| {
            spec.credentials.clone_from(&credentials);
            spec.cookies.clone_from(&cookies);
            (spec.name.clone(), Arc::new(spec))
        };
        let built_in = [DialectSpec::vestibule(), DialectSpec::graphql_transport_ws(reserved.clone())];
        let mut out: BTreeMap<_, _> = built_in.map(with_credentials).into();
        for (name, dialect) in &config.dialects {
            let at = format!("dialects.{name}");
            // The names in the file differ from each other, so a name in use is that of a built-in dialect.
            if out.contains_key(name) || WITHOUT_FIRST_MESSAGE.contains(&name.as_str()) {
                self.error(&at, "is the name of a built-in dialect; choose another");
            }
            let (name, spec) = with_credentials(self.dialect(&at, name, dialect, reserved));
            out.insert(name, spec);
        }
        out
    }

    /// Returns the dialect that a route names.
    pub(in crate::policy) fn chosen_dialect(
        &mut self,
        at: &str,
        choice: &config::DialectChoice,
        dialects: &Dialects,
    ) -> Option<Arc<DialectSpec>> {
        if choice.name == "token-field" {
            let pointer = choice.field.as_deref().unwrap_or("/auth_token");
            let Some(rest) = pointer.strip_prefix('/') else {
                self.error(
                    format!("{at}.field"),
                    format!("\"{pointer}\" is not an RFC 6901 pointer; write /{pointer}"),
                );
                return None;
            };
            let pointer = rest.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect();
            let field = FieldSpec { pointer, upstream: choice.upstream.unwrap_or_default() };
            return Some(Arc::new(DialectSpec::token_field(field)));
        }
        if choice.field.is_some() || choice.upstream.is_some() {
            self.error(
                at,
                "field and upstream belong to the dialect token-field; write { name: token-field, field: /auth_token }",
            );
        }
        let dialect = dialects.get(&choice.name).cloned();
        if dialect.is_none() && choice.name != "none" {
            let known: Vec<&str> = dialects.keys().map(String::as_str).chain(WITHOUT_FIRST_MESSAGE).collect();
            let message = format!(
                "\"{}\" is not one of {}; further ones are written under `dialects`",
                choice.name,
                known.join(", ")
            );
            self.error(at, message);
        }
        dialect
    }

    fn dialect(&mut self, at: &str, name: &str, dialect: &config::Dialect, reserved: &ReservedNames) -> DialectSpec {
        let path = format!("{at}.authenticate");
        let authenticate = MessageSpec {
            matches: self.matches(&path, &dialect.authenticate.matches),
            token: self.pointers(&path, &dialect.authenticate.token),
            forward: dialect.forward,
            acknowledge: dialect.acknowledge.clone(),
        };
        let refresh = dialect.refresh.as_ref().map(|refresh| {
            let path = format!("{at}.refresh");
            MessageSpec {
                matches: self.matches(&path, &refresh.matches),
                token: self.pointers(&path, &refresh.token),
                forward: refresh.forward,
                acknowledge: refresh.acknowledge.clone(),
            }
        });
        let ping = dialect.ping.as_ref().and_then(|ping| {
            let path = format!("{at}.ping");
            let matches = self.matches(&path, &ping.matches);
            if ping.reply.is_none() {
                self.error(&path, "has no reply; write reply: { type: pong }");
            }
            ping.reply.clone().map(|reply| PingSpec { matches, reply })
        });
        let close = self.close_codes(at, &dialect.close);
        for (index, pointer) in dialect.header_maps.iter().enumerate() {
            if !pointer.starts_with('/') {
                let at = format!("{at}.header_maps[{index}]");
                self.error(at, format!("\"{pointer}\" is not an RFC 6901 pointer; write /{pointer}"));
            }
        }
        let mut copied = Vec::new();
        let templates = [
            authenticate.acknowledge.as_ref(),
            refresh.as_ref().and_then(|refresh| refresh.acknowledge.as_ref()),
            dialect.error.as_ref(),
            ping.as_ref().map(|ping| &ping.reply),
        ];
        for template in templates.into_iter().flatten() {
            collect_pointers(template, &mut copied);
        }
        DialectSpec {
            name: name.to_owned(),
            greeting: dialect.greeting.clone(),
            authenticate,
            refresh,
            error: dialect.error.clone(),
            ping,
            copied,
            close,
            lines: dialect.lines,
            header_maps: dialect.header_maps.clone(),
            reserved: reserved.clone(),
            credentials: Vec::new(),
            cookies: Vec::new(),
            subprotocol: None,
            field: None,
        }
    }

    /// Returns the close codes that a dialect has in place of the usual ones.
    fn close_codes(&mut self, at: &str, written: &BTreeMap<String, u16>) -> Vec<(Close, u16)> {
        let mut close = Vec::new();
        for (key, code) in written {
            let path = format!("{at}.close.{key}");
            match CLOSE_KEYS.iter().find(|(name, _)| name == key) {
                None => {
                    let known: Vec<&str> = CLOSE_KEYS.iter().map(|(name, _)| *name).collect();
                    self.error(path, format!("unknown key; known here: {}", known.join(", ")));
                }
                Some(_) if !is_sendable(*code) => {
                    self.error(path, format!("{code} cannot be sent in a Close; write 1008, 1011, or 3000 to 4999"));
                }
                Some((_, close_key)) => close.push((*close_key, *code)),
            }
        }
        close
    }

    fn matches(&mut self, at: &str, written: &BTreeMap<String, Value>) -> Vec<(String, Expectation)> {
        if written.is_empty() {
            self.error(at, "has no match: every message would be taken for it; write match: { type: authenticate }");
        }
        let present = json!({"present": true});
        written
            .iter()
            .map(|(key, value)| {
                let expectation =
                    if *value == present { Expectation::Present } else { Expectation::Equals(value.clone()) };
                (key.clone(), expectation)
            })
            .collect()
    }

    fn pointers(&mut self, at: &str, written: &[String]) -> Vec<String> {
        if written.is_empty() {
            self.error(at, "has no token; write where it stands, as in token: [/token]");
        }
        for (index, pointer) in written.iter().enumerate() {
            if !pointer.starts_with('/') {
                self.error(
                    format!("{at}.token[{index}]"),
                    format!("\"{pointer}\" is not an RFC 6901 pointer; write /{pointer}"),
                );
            }
        }
        written.to_vec()
    }
}

/// Returns the headers that carry credentials on any route or to any upstream, in addition to `Authorization` and
/// `Cookie`.
fn credential_headers(config: &Config) -> Vec<String> {
    let routes = config.routes.iter().filter_map(|route| route.token_from.header.as_ref()?.as_ref());
    let sources = config.token_from.header.iter().chain(routes).flat_map(|names| &names.0);
    let upstreams = config.upstream.iter().chain(config.routes.iter().filter_map(|route| route.upstream.as_ref()));
    let added = upstreams.filter_map(|upstream| upstream.credential.as_ref()?.header.as_ref());
    // A subprotocol entry may be a token.
    let always = ["Proxy-Authorization", "Sec-WebSocket-Protocol"].into_iter().map(str::to_owned);
    sources.chain(added).cloned().chain(always).collect()
}

/// Collects every `{/pointer}` of a template.
fn collect_pointers(template: &Value, out: &mut Vec<String>) {
    match template {
        Value::String(text) => {
            for part in text.split("{/").skip(1) {
                if let Some((pointer, _)) = part.split_once('}') {
                    let pointer = format!("/{pointer}");
                    if !out.contains(&pointer) {
                        out.push(pointer);
                    }
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_pointers(item, out)),
        Value::Object(members) => members.values().for_each(|item| collect_pointers(item, out)),
        _ => {}
    }
}

/// Returns the cookies that carry tokens on any route.
fn credential_cookies(config: &Config, cookie_suffixes: &[String]) -> Vec<CookieSource> {
    let routes = config.routes.iter().filter_map(|route| route.token_from.cookie.as_ref()?.as_ref());
    let cookies: BTreeSet<&CookieChoice> = config.token_from.cookie.iter().chain(routes).collect();
    let source = |cookie: &CookieChoice| CookieSource {
        name: cookie.name.clone(),
        suffixes: cookie_suffixes.to_vec(),
        encoding: cookie.encoding,
    };
    cookies.into_iter().map(source).collect()
}
