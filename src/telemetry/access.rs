//! Access lines: one per request and one per socket. They are encoded here, because `tracing` would cost ten times as
//! much.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use hyper::Method;

use super::label::Label;
use super::outcome::{self, AnsweredBy, Outcome};
use super::output::{self, Format};
use super::request_id::RequestId;
use super::text::{MAX_VALUE_BYTES, address, escape, number, quote, time, value};

/// The fields of an access line (docs/contract.md section 7). `path` has no query, and `user` comes from a verified
/// identity only.
#[derive(Clone, Debug, Default)]
#[allow(clippy::missing_docs_in_private_items, reason = "each is the field of its name in docs/contract.md section 7")]
pub struct AccessLine {
    pub request_id: RequestId,
    pub client: Option<IpAddr>,
    pub method: Method,
    pub path: Box<str>,
    pub route: Label,
    pub status: u16,
    pub answered_by: AnsweredBy,
    pub user: Option<String>,
    pub carrier: Option<&'static str>,
    pub outcome: Outcome,
    /// The reason of a refusal; for the log only.
    pub reason: String,
    pub duration: Duration,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Boxed, since the line is kept for as long as its socket is open.
    pub socket: Option<Box<SocketLife>>,
    /// The claims of a refused credential, without verification.
    pub unverified: Option<Box<UnverifiedCredential>>,
    /// The kind of rule that refused the request.
    pub rule: Option<Rule>,
    /// Whether the line is written at `debug` only, unless the request failed: a health check, or a path in `log.quiet`.
    pub quiet: bool,
    /// Whether the request declares itself a test of `vestibule doctor`. It is marked as such in the list of refusals.
    pub is_test: bool,
}

/// The claims of a refused credential and of its request, none of them verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnverifiedCredential {
    /// The token's `iss`.
    pub issuer: Option<String>,
    /// The `kid` of the token's header.
    pub key_id: Option<String>,
    /// The first 16 hex digits of the SHA-256 of the token's `sub`.
    pub subject_digest: Option<String>,
    /// The request's `Origin`.
    pub origin: Option<String>,
    /// The request's `User-Agent`.
    pub user_agent: Option<String>,
}

impl UnverifiedCredential {
    /// Returns the names and values of the fields that are present.
    fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("unverified_issuer", &self.issuer),
            ("unverified_kid", &self.key_id),
            ("unverified_sub_digest", &self.subject_digest),
            ("origin", &self.origin),
            ("user_agent", &self.user_agent),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

/// The kind of rule that refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `auth: deny`.
    Deny,
    /// A provider's `allow`.
    Allow,
    /// A route's `require`, or a claim that is not a valid header value.
    Require,
    /// The origin check of cookies and sockets.
    Origin,
}

impl Rule {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Deny, Self::Allow, Self::Require, Self::Origin];

    /// Returns the name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
            Self::Require => "require",
            Self::Origin => "origin",
        }
    }
}

/// The route of requests that were refused before a route was matched.
pub static NO_ROUTE: LazyLock<Label> = LazyLock::new(|| "none".into());
/// The route of the proxy's own endpoints.
pub static OWN_ROUTE: LazyLock<Label> = LazyLock::new(|| "/.vestibule".into());

/// The further fields of a socket's access line.
#[derive(Clone, Debug)]
#[allow(clippy::missing_docs_in_private_items, reason = "each is the field of its name in docs/contract.md section 7")]
pub struct SocketLife {
    pub close_code: Option<u16>,
    pub closed_by: &'static str,
    pub refreshes: u32,
}

/// A line that an observer receives.
#[derive(Clone, Copy, Debug)]
pub enum Observed<'a> {
    /// The access line of a request or a socket.
    Access(&'a AccessLine),
    /// The message of a log line.
    Message(&'a str),
}

/// A callback that receives every line of this process, for the page of `vestibule demo`.
pub type Observer = Box<dyn Fn(Observed<'_>) + Send + Sync>;

static OBSERVER: OnceLock<Observer> = OnceLock::new();

/// Sets the observer of this process; a second call has no effect.
pub fn observe(observer: Observer) {
    let _ = OBSERVER.set(observer);
}

pub(super) fn observed(observed: Observed<'_>) {
    if let Some(observer) = OBSERVER.get() {
        observer(observed);
    }
}

/// Writes an access line; `ended` is the time since 1970.
pub fn access(line: &AccessLine, ended: Duration, enabled: bool) {
    debug_assert!(
        line.outcome == Outcome::Undecided || outcome::all().any(|known| known == line.outcome.name()),
        "docs/operation.md has no outcome {}",
        line.outcome
    );
    observed(Observed::Access(line));
    if !enabled || (is_quiet(line) && !tracing::enabled!(tracing::Level::DEBUG)) {
        return;
    }
    match output::format() {
        Format::Json => output::line(&json(line, ended)),
        Format::Pretty => output::line(&pretty(line, ended)),
        Format::Silent => {}
    }
}

/// Whether a line is not worth being read. A health check that the upstream fails is; our own, while this instance is not
/// ready, is not.
fn is_quiet(line: &AccessLine) -> bool {
    line.quiet && (line.status < 500 || line.outcome == Outcome::Own)
}

/// The beginning of a further field, as one text: every line has a dozen of them.
macro_rules! field {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

fn json(line: &AccessLine, ended: Duration) -> String {
    let mut out = String::with_capacity(384);
    out.push_str("{\"time\":\"");
    time(&mut out, ended);
    out.push_str("\",\"level\":\"info\",\"msg\":\"");
    out.push_str(if line.socket.is_some() { "socket\"" } else { "request\"" });
    // No id has a character that needs an escape.
    plain_field(&mut out, field!("request_id"), &line.request_id.text());
    out.push_str(field!("client"));
    out.push('"');
    if let Some(client) = line.client {
        address(&mut out, client);
    }
    out.push('"');
    text_field(&mut out, field!("method"), line.method.as_str());
    text_field(&mut out, field!("path"), &line.path);
    text_field(&mut out, field!("route"), &line.route);
    if let Some(user) = &line.user {
        text_field(&mut out, field!("user"), user);
    }
    if let Some(carrier) = line.carrier {
        plain_field(&mut out, field!("carrier"), carrier);
    }
    plain_field(&mut out, field!("answered_by"), line.answered_by.name());
    plain_field(&mut out, field!("outcome"), line.outcome.name());
    if !line.reason.is_empty() {
        text_field(&mut out, field!("reason"), &line.reason);
    }
    for (name, value) in line.unverified.iter().flat_map(|unverified| unverified.fields()) {
        out.push_str(",\"");
        out.push_str(name);
        text_field(&mut out, "\":", value);
    }
    number_field(&mut out, field!("status"), line.status.into());
    number_field(&mut out, field!("duration_ms"), u64::try_from(line.duration.as_millis()).unwrap_or(u64::MAX));
    number_field(&mut out, field!("bytes_in"), line.bytes_in);
    number_field(&mut out, field!("bytes_out"), line.bytes_out);
    if let Some(socket) = &line.socket {
        if let Some(code) = socket.close_code {
            number_field(&mut out, field!("close_code"), code.into());
        }
        plain_field(&mut out, field!("closed_by"), socket.closed_by);
        number_field(&mut out, field!("refreshes"), socket.refreshes.into());
    }
    out.push('}');
    out
}

/// Appends a field whose value may be any text.
fn text_field(out: &mut String, beginning: &'static str, value: &str) {
    out.push_str(beginning);
    quote(out, value, MAX_VALUE_BYTES);
}

/// Appends a field whose value has no character that needs an escape, such as this program's own names.
fn plain_field(out: &mut String, beginning: &'static str, value: &str) {
    out.push_str(beginning);
    out.push('"');
    out.push_str(value);
    out.push('"');
}

fn number_field(out: &mut String, beginning: &'static str, value: u64) {
    out.push_str(beginning);
    number(out, value);
}

fn pretty(line: &AccessLine, ended: Duration) -> String {
    let mut out = String::with_capacity(192);
    time(&mut out, ended);
    out.push(' ');
    let _ = write!(out, "{} ", line.status);
    escape(&mut out, line.method.as_str(), 16);
    out.push(' ');
    value(&mut out, &line.path, MAX_VALUE_BYTES);
    if let Some(user) = &line.user {
        out.push_str("  user=");
        value(&mut out, user, MAX_VALUE_BYTES);
    }
    let _ = write!(out, "  by={} outcome={} {} ms", line.answered_by, line.outcome, line.duration.as_millis());
    if !line.reason.is_empty() {
        out.push_str("  reason=");
        value(&mut out, &line.reason, MAX_VALUE_BYTES);
    }
    for (name, text) in line.unverified.iter().flat_map(|unverified| unverified.fields()) {
        let _ = write!(out, "  {name}=");
        value(&mut out, text, MAX_VALUE_BYTES);
    }
    if let Some(socket) = &line.socket {
        let _ = write!(
            out,
            "  closed_by={} code={} refreshes={}",
            socket.closed_by,
            socket.close_code.unwrap_or(0),
            socket.refreshes
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_valid_json_whatever_came_from_outside() {
        let line = AccessLine {
            path: "/\"\n\u{1b}".into(),
            user: Some("a\u{202e}b".into()),
            answered_by: AnsweredBy::Vestibule,
            outcome: Outcome::Refused("missing_token"),
            socket: Some(Box::new(SocketLife { close_code: Some(1008), closed_by: "client", refreshes: 2 })),
            ..AccessLine::default()
        };
        let parsed: serde_json::Value = serde_json::from_str(&json(&line, Duration::ZERO)).expect("JSON");
        assert_eq!(parsed["path"], "/\"\n\u{1b}");
        assert_eq!(parsed["close_code"], 1008);
    }

    #[test]
    fn for_people_too_no_value_from_outside_can_be_read_as_a_field() {
        let forged = "x  outcome=accepted  y=\"";
        let line = AccessLine {
            path: forged.into(),
            user: Some(forged.into()),
            reason: forged.into(),
            unverified: Some(Box::new(UnverifiedCredential {
                issuer: Some(forged.into()),
                key_id: Some(forged.into()),
                subject_digest: None,
                origin: Some(forged.into()),
                user_agent: Some(forged.into()),
            })),
            outcome: Outcome::Refused("missing_token"),
            ..AccessLine::default()
        };
        let text = pretty(&line, Duration::ZERO);
        let quoted = "\"x  outcome=accepted  y=\\\"\"";
        assert_eq!(text.matches(quoted).count(), 7, "{text}");
        let fields = text.replace(quoted, "");
        assert!(fields.matches("outcome=").count() == 1 && fields.contains(" outcome=missing_token "), "{text}");
    }
}
