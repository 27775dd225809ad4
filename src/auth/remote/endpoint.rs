//! The requests of remote checks and the interpretation of their responses: RFC 7662 introspection, Clerk's client and
//! session endpoints, Supabase's user endpoint. Only a response about the token or session counts as "inactive". One
//! about this proxy (an unknown secret, too many requests), or no response, counts as no answer.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Map, Value, json};
use url::{Url, form_urlencoded};

use super::{DEFAULT_PAUSE, MAX_PAUSE, RemoteAnswer, Subject};
use crate::auth::outbound;
use crate::config::Time;
use crate::json;
use crate::policy::{RemoteQuestion, RemoteSpec};

/// The maximum length of a response body in bytes.
const BYTES: usize = 64 << 10;

/// The reason why a check has no answer.
pub(super) struct CheckFailed {
    pub(super) reason: String,
    /// The time for which the provider must not be asked, after a 429.
    pub(super) pause: Option<Duration>,
}

impl CheckFailed {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), pause: None }
    }

    pub(super) fn slow(limit: Duration) -> Self {
        Self::new(format!("no answer within {}", Time(limit)))
    }
}

/// A response; each endpoint interprets it differently.
struct ProviderResponse {
    status: StatusCode,
    body: Map<String, Value>,
}

impl ProviderResponse {
    fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name).and_then(Value::as_str)
    }

    fn unexpected(&self) -> CheckFailed {
        CheckFailed::new(match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!("the provider answered {}: it does not accept our credential", self.status.as_u16())
            }
            status => format!("the provider answered {}", status.as_u16()),
        })
    }
}

pub(super) async fn ask(client: &Client, spec: &RemoteSpec, subject: &Subject) -> Result<RemoteAnswer, CheckFailed> {
    match (&spec.question, subject) {
        (RemoteQuestion::Introspection { url, client_id, client_secret }, Subject::Token(token, _)) => {
            let form = format!("token={}&token_type_hint=access_token", encoded(token.expose().as_bytes()));
            let request = client
                .post(url.clone())
                .header(AUTHORIZATION, basic(client_id, client_secret.expose()))
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form);
            introspected(reply(request, spec).await?)
        }
        (RemoteQuestion::Clerk { base, secret_key }, Subject::Token(token, session)) => {
            let request = client
                .post(below(base, &["v1", "clients", "verify"]))
                .header(AUTHORIZATION, bearer(secret_key.expose()))
                .header(CONTENT_TYPE, "application/json")
                .body(json!({ "token": token.expose() }).to_string());
            clerk_client(&reply(request, spec).await?, session.as_deref())
        }
        (RemoteQuestion::Clerk { base, secret_key }, Subject::Session(id)) => {
            let url = below(base, &["v1", "sessions", id]);
            let request = client.get(url).header(AUTHORIZATION, bearer(secret_key.expose()));
            let reply = reply(request, spec).await?;
            match reply.status {
                StatusCode::OK => Ok(clerk_session(&reply.body)),
                StatusCode::NOT_FOUND => Ok(no("the provider knows no such session")),
                _ => Err(reply.unexpected()),
            }
        }
        (RemoteQuestion::Supabase { base, apikey }, Subject::Token(token, _)) => {
            let request = client
                .get(below(base, &["auth", "v1", "user"]))
                .header(AUTHORIZATION, bearer(token.expose().as_bytes()))
                .header("apikey", sensitive(apikey.expose()));
            supabase_user(&reply(request, spec).await?)
        }
        (RemoteQuestion::Introspection { .. } | RemoteQuestion::Supabase { .. }, Subject::Session(_)) => {
            Err(CheckFailed::new("this provider can be asked about tokens only"))
        }
    }
}

/// Sends the request and handles what is the same for all providers.
async fn reply(request: RequestBuilder, spec: &RemoteSpec) -> Result<ProviderResponse, CheckFailed> {
    let failed = |error: reqwest::Error| CheckFailed::new(outbound::reason(&error.without_url(), spec.timeout));
    #[cfg(test)]
    if let Some(answered) = simulated(&request) {
        let body = answered.await.ok().and_then(|body| json::object(&body).ok());
        let lost = || CheckFailed::new("the connection was lost");
        return body.map(|body| ProviderResponse { status: StatusCode::OK, body }).ok_or_else(lost);
    }
    let response = request.header(ACCEPT, "application/json").send().await.map_err(failed)?;
    let status = response.status();
    if status == StatusCode::TOO_MANY_REQUESTS {
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let reason = "the provider limits requests (429)".to_owned();
        let pause = seconds.map_or(DEFAULT_PAUSE, Duration::from_secs).min(MAX_PAUSE);
        return Err(CheckFailed { reason, pause: Some(pause) });
    }
    if status.is_redirection() {
        return Err(CheckFailed::new(
            "the provider redirects, and redirects are not followed; configure the final URL",
        ));
    }
    if status.is_server_error() {
        return Err(CheckFailed::new(format!("the provider answered {}", status.as_u16())));
    }
    let Some(body) = outbound::body(response, BYTES).await.map_err(failed)? else {
        return Err(CheckFailed::new(format!("the provider answered more than {BYTES} bytes")));
    };
    match json::object(&body) {
        Ok(body) => Ok(ProviderResponse { status, body }),
        // An error may have any body; a success must have an object.
        Err(_) if !status.is_success() => Ok(ProviderResponse { status, body: Map::new() }),
        Err(_) => Err(CheckFailed::new("the provider's answer is not a JSON object with each member once")),
    }
}

/// Asks the provider of a simulation; `None` outside one.
#[cfg(test)]
fn simulated(request: &RequestBuilder) -> Option<tokio::sync::oneshot::Receiver<Vec<u8>>> {
    let request = request.try_clone()?.build().ok()?;
    crate::simulation::ask(request.body()?.as_bytes()?)
}

/// Interprets an introspection response. RFC 7662 section 2.2: `active` is required and a boolean.
fn introspected(reply: ProviderResponse) -> Result<RemoteAnswer, CheckFailed> {
    if reply.status != StatusCode::OK {
        return Err(reply.unexpected());
    }
    match reply.body.get("active") {
        Some(Value::Bool(true)) => Ok(RemoteAnswer::Active(Arc::new(reply.body))),
        Some(Value::Bool(false)) => Ok(no("the token is not active")),
        _ => Err(CheckFailed::new("the provider's answer has no boolean `active`")),
    }
}

/// Interprets Clerk's response about a client, which may have sessions of several users: the session that the token
/// names counts, or, for a token that names none, the one that was active last; never simply the first.
fn clerk_client(reply: &ProviderResponse, session: Option<&str>) -> Result<RemoteAnswer, CheckFailed> {
    match reply.status {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
            return Ok(no("the provider knows no client of this token"));
        }
        _ => return Err(reply.unexpected()),
    }
    let Some(wanted) = session.or_else(|| reply.text("last_active_session_id")) else {
        return Ok(no("the client has no active session"));
    };
    let Some(Value::Array(sessions)) = reply.body.get("sessions") else {
        return Err(CheckFailed::new("the provider's answer has no list `sessions`"));
    };
    let is_wanted = |session: &&Map<String, Value>| session.get("id").and_then(Value::as_str) == Some(wanted);
    let mut found = sessions.iter().filter_map(Value::as_object).filter(is_wanted);
    match (found.next(), found.next()) {
        (Some(session), None) => Ok(clerk_session(session)),
        (None, _) => Ok(no("the token's session is not one of the client's")),
        (Some(_), Some(_)) => Err(CheckFailed::new("the provider lists one session twice")),
    }
}

fn clerk_session(session: &Map<String, Value>) -> RemoteAnswer {
    let text = |name: &str| session.get(name).and_then(Value::as_str);
    match (text("status"), text("user_id"), text("id")) {
        (Some("active"), Some(user), Some(id)) => {
            let mut claims = Map::new();
            claims.insert("sub".to_owned(), user.into());
            claims.insert("sid".to_owned(), id.into());
            RemoteAnswer::Active(Arc::new(claims))
        }
        (Some("active"), ..) => no("the session names no user"),
        _ => no("the session is not active"),
    }
}

/// Interprets Supabase's response about a user. Supabase's gateway responds 401 too, about the proxy's API key; a
/// response about the token has `error_code` or `msg`.
fn supabase_user(reply: &ProviderResponse) -> Result<RemoteAnswer, CheckFailed> {
    match reply.status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
            if reply.body.contains_key("error_code") || reply.body.contains_key("msg") =>
        {
            return Ok(no("the provider knows no session of this token"));
        }
        _ => return Err(reply.unexpected()),
    }
    let Some(id) = reply.text("id").filter(|id| !id.is_empty()) else {
        return Err(CheckFailed::new("the provider's answer names no user"));
    };
    let mut claims = Map::new();
    claims.insert("sub".to_owned(), id.into());
    Ok(RemoteAnswer::Active(Arc::new(claims)))
}

fn no(reason: &str) -> RemoteAnswer {
    RemoteAnswer::Inactive(reason.into())
}

/// Appends path segments to a base URL, each encoded, so that an id from a token cannot change the path.
fn below(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    // Only a URL that cannot be a base has no segments, and validation rejects those.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// Formats HTTP Basic credentials. RFC 6749 section 2.3.1: both parts are form-encoded first.
fn basic(client_id: &str, secret: &[u8]) -> HeaderValue {
    let pair = format!("{}:{}", encoded(client_id.as_bytes()), encoded(secret));
    sensitive(format!("Basic {}", STANDARD.encode(pair)).as_bytes())
}

fn bearer(secret: &[u8]) -> HeaderValue {
    sensitive(&[b"Bearer ", secret].concat())
}

fn sensitive(value: &[u8]) -> HeaderValue {
    // Validation and `Token::parse` admit only visible ASCII; for anything else the value is empty.
    let mut value = HeaderValue::from_bytes(value).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// Encodes a value as `application/x-www-form-urlencoded`. Many servers do not decode the credentials of HTTP Basic, so
/// no other character may be encoded: `-`, `.` and `_` stand in most client ids.
fn encoded(value: &[u8]) -> String {
    form_urlencoded::byte_serialize(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: Value) -> ProviderResponse {
        let Value::Object(body) = body else { unreachable!("an object") };
        ProviderResponse { status: StatusCode::from_u16(status).expect("a status"), body }
    }

    fn said(answer: Result<RemoteAnswer, CheckFailed>) -> String {
        match answer {
            Ok(RemoteAnswer::Active(claims)) => {
                format!("yes {}", claims.get("sub").and_then(Value::as_str).unwrap_or("?"))
            }
            Ok(RemoteAnswer::Inactive(_)) => "no".to_owned(),
            Err(_) => "unanswered".to_owned(),
        }
    }

    #[test]
    fn of_a_client_with_two_users_the_token_s_own_session_counts() {
        let client = |status: &str| {
            json!({"last_active_session_id": "sess_bob", "sessions": [
                {"id": "sess_alice", "user_id": "alice", "status": status},
                {"id": "sess_bob", "user_id": "bob", "status": "active"},
                {"id": "sess_twin", "user_id": "x", "status": "active"},
                {"id": "sess_twin", "user_id": "y", "status": "active"},
            ]})
        };
        for (session, status, expected) in [
            (Some("sess_alice"), "active", "yes alice"),
            (Some("sess_bob"), "active", "yes bob"),
            (Some("sess_alice"), "ended", "no"),
            (Some("sess_alice"), "revoked", "no"),
            (Some("sess_alice"), "pending", "no"),
            (Some("sess_alice"), "Active", "no"),
            (Some("sess_carol"), "active", "no"),
            (Some(""), "active", "no"),
            (None, "active", "yes bob"),
            (Some("sess_twin"), "active", "unanswered"),
        ] {
            assert_eq!(said(clerk_client(&reply(200, client(status)), session)), expected, "{session:?} {status}");
        }
        for (status, body, expected) in [
            (200, json!({"sessions": []}), "no"),
            (
                200,
                json!({"last_active_session_id": null, "sessions": [{"id": "a", "status": "active", "user_id": "u"}]}),
                "no",
            ),
            (200, json!({"last_active_session_id": "a"}), "unanswered"),
            (
                200,
                json!({"last_active_session_id": "a", "sessions": [{"id": "a", "status": "active", "user_id": null}]}),
                "no",
            ),
            (400, json!({}), "no"),
            (404, json!({}), "no"),
            (401, json!({}), "unanswered"),
            (403, json!({}), "unanswered"),
        ] {
            assert_eq!(said(clerk_client(&reply(status, body.clone()), None)), expected, "{status} {body}");
        }
    }

    #[test]
    fn introspection_says_yes_with_a_boolean_only() {
        for (status, body, expected) in [
            (200, json!({"active": true, "sub": "alice"}), "yes alice"),
            (200, json!({"active": false}), "no"),
            (200, json!({"active": "true", "sub": "alice"}), "unanswered"),
            (200, json!({"active": 1}), "unanswered"),
            (200, json!({"sub": "alice"}), "unanswered"),
            (401, json!({"active": true}), "unanswered"),
            (400, json!({"active": false}), "unanswered"),
            (204, json!({}), "unanswered"),
        ] {
            assert_eq!(said(introspected(reply(status, body.clone()))), expected, "{status} {body}");
        }
    }

    #[test]
    fn supabase_s_gateway_is_told_from_its_word_on_the_token() {
        for (status, body, expected) in [
            (200, json!({"id": "alice"}), "yes alice"),
            (200, json!({"id": ""}), "unanswered"),
            (200, json!({}), "unanswered"),
            (401, json!({"code": 401, "msg": "invalid JWT"}), "no"),
            (403, json!({"code": 403, "error_code": "session_not_found", "msg": "…"}), "no"),
            (401, json!({"message": "Invalid API key", "hint": "…"}), "unanswered"),
        ] {
            assert_eq!(said(supabase_user(&reply(status, body.clone()))), expected, "{status} {body}");
        }
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_the_url() {
        let base = Url::parse("https://api.clerk.com").expect("a URL");
        for (id, expected) in [
            ("sess_1", "https://api.clerk.com/v1/sessions/sess_1"),
            ("../users/u", "https://api.clerk.com/v1/sessions/..%2Fusers%2Fu"),
            ("a?b#c", "https://api.clerk.com/v1/sessions/a%3Fb%23c"),
        ] {
            assert_eq!(below(&base, &["v1", "sessions", id]).as_str(), expected);
        }
        let below_path = Url::parse("https://proxy.example/clerk/").expect("a URL");
        assert_eq!(below(&below_path, &["v1", "x"]).as_str(), "https://proxy.example/clerk/v1/x");
    }
}
