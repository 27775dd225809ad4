//! Each provider's question and what its answer means: RFC 7662 introspection, Clerk's client and session
//! endpoints, Supabase's user endpoint. A "no" is only what the provider says about the token or session; an
//! answer about us (a secret it does not know, too many questions) or none at all decides nothing.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Map, Value, json};
use url::Url;

use super::{About, Answer, LONGEST_REST, USUAL_REST};
use crate::auth::outbound;
use crate::config::Time;
use crate::json;
use crate::policy::{RemoteQuestion, RemoteSpec};

/// No answer about one token is longer.
const BYTES: usize = 64 << 10;

/// Why there is no answer.
pub(super) struct Failed {
    pub(super) reason: String,
    /// The provider wants to be left alone, for as long as it says.
    pub(super) rest: Option<Duration>,
}

impl Failed {
    fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), rest: None }
    }

    pub(super) fn slow(limit: Duration) -> Self {
        Self::because(format!("no answer within {}", Time(limit)))
    }
}

/// A status and a body; what it means is its question's.
struct Reply {
    status: StatusCode,
    body: Map<String, Value>,
}

impl Reply {
    fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name).and_then(Value::as_str)
    }

    fn unexpected(&self) -> Failed {
        Failed::because(match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!("the provider answered {}: it does not accept our credential", self.status.as_u16())
            }
            status => format!("the provider answered {}", status.as_u16()),
        })
    }
}

pub(super) async fn ask(client: &Client, spec: &RemoteSpec, about: &About) -> Result<Answer, Failed> {
    match (&spec.question, about) {
        (RemoteQuestion::Introspection { url, client_id, client_secret }, About::Token(token, _)) => {
            let form = format!("token={}&token_type_hint=access_token", encoded(token.expose()));
            let request = client
                .post(url.clone())
                .header(AUTHORIZATION, basic(client_id, client_secret.expose()))
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form);
            introspected(reply(request, spec).await?)
        }
        (RemoteQuestion::Clerk { base, secret_key }, About::Token(token, session)) => {
            let request = client
                .post(below(base, &["v1", "clients", "verify"]))
                .header(AUTHORIZATION, bearer(secret_key.expose()))
                .header(CONTENT_TYPE, "application/json")
                .body(json!({ "token": token.expose() }).to_string());
            clerk_client(&reply(request, spec).await?, session.as_deref())
        }
        (RemoteQuestion::Clerk { base, secret_key }, About::Session(id)) => {
            let url = below(base, &["v1", "sessions", id]);
            let request = client.get(url).header(AUTHORIZATION, bearer(secret_key.expose()));
            let reply = reply(request, spec).await?;
            match reply.status {
                StatusCode::OK => Ok(clerk_session(&reply.body)),
                StatusCode::NOT_FOUND => Ok(no("the provider knows no such session")),
                _ => Err(reply.unexpected()),
            }
        }
        (RemoteQuestion::Supabase { base, apikey }, About::Token(token, _)) => {
            let request = client
                .get(below(base, &["auth", "v1", "user"]))
                .header(AUTHORIZATION, bearer(token.expose().as_bytes()))
                .header("apikey", sensitive(apikey.expose()));
            supabase_user(&reply(request, spec).await?)
        }
        (RemoteQuestion::Introspection { .. } | RemoteQuestion::Supabase { .. }, About::Session(_)) => {
            Err(Failed::because("this provider can be asked about tokens only"))
        }
    }
}

/// Sends it and reads the answer as far as all providers agree.
async fn reply(request: RequestBuilder, spec: &RemoteSpec) -> Result<Reply, Failed> {
    let failed = |error: reqwest::Error| Failed::because(outbound::reason(&error.without_url(), spec.timeout));
    let response = request.header(ACCEPT, "application/json").send().await.map_err(failed)?;
    let status = response.status();
    if status == StatusCode::TOO_MANY_REQUESTS {
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let reason = "the provider asked for fewer questions (429)".to_owned();
        let rest = seconds.map_or(USUAL_REST, Duration::from_secs).min(LONGEST_REST);
        return Err(Failed { reason, rest: Some(rest) });
    }
    if status.is_redirection() {
        return Err(Failed::because("the provider redirects, and questions do not follow; write the final URL"));
    }
    if status.is_server_error() {
        return Err(Failed::because(format!("the provider answered {}", status.as_u16())));
    }
    let Some(body) = outbound::body(response, BYTES).await.map_err(failed)? else {
        return Err(Failed::because(format!("the provider answered more than {BYTES} bytes")));
    };
    match json::object(&body) {
        Ok(body) => Ok(Reply { status, body }),
        // An error may have any body; an answer is an object.
        Err(_) if !status.is_success() => Ok(Reply { status, body: Map::new() }),
        Err(_) => Err(Failed::because("the provider's answer is not a JSON object with each member once")),
    }
}

/// RFC 7662 section 2.2: `active` is required, and a boolean.
fn introspected(reply: Reply) -> Result<Answer, Failed> {
    if reply.status != StatusCode::OK {
        return Err(reply.unexpected());
    }
    match reply.body.get("active") {
        Some(Value::Bool(true)) => Ok(Answer::Yes(Arc::new(reply.body))),
        Some(Value::Bool(false)) => Ok(no("the token is not active")),
        _ => Err(Failed::because("the provider's answer has no boolean `active`")),
    }
}

/// A client may hold sessions of several users: the token's own counts, and only for a token that names none
/// the one that was active last. Never the first of a list.
fn clerk_client(reply: &Reply, session: Option<&str>) -> Result<Answer, Failed> {
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
        return Err(Failed::because("the provider's answer has no list `sessions`"));
    };
    let is_wanted = |session: &&Map<String, Value>| session.get("id").and_then(Value::as_str) == Some(wanted);
    let mut found = sessions.iter().filter_map(Value::as_object).filter(is_wanted);
    match (found.next(), found.next()) {
        (Some(session), None) => Ok(clerk_session(session)),
        (None, _) => Ok(no("the token's session is none of the client's")),
        (Some(_), Some(_)) => Err(Failed::because("the provider lists one session twice")),
    }
}

fn clerk_session(session: &Map<String, Value>) -> Answer {
    let text = |name: &str| session.get(name).and_then(Value::as_str);
    match (text("status"), text("user_id"), text("id")) {
        (Some("active"), Some(user), Some(id)) => {
            let mut claims = Map::new();
            claims.insert("sub".to_owned(), user.into());
            claims.insert("sid".to_owned(), id.into());
            Answer::Yes(Arc::new(claims))
        }
        (Some("active"), ..) => no("the session names no user"),
        _ => no("the session is not active"),
    }
}

/// The gateway before it answers 401 too, about our key; what is about the token has an error code of its own.
fn supabase_user(reply: &Reply) -> Result<Answer, Failed> {
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
        return Err(Failed::because("the provider's answer names no user"));
    };
    let mut claims = Map::new();
    claims.insert("sub".to_owned(), id.into());
    Ok(Answer::Yes(Arc::new(claims)))
}

fn no(reason: &str) -> Answer {
    Answer::No(reason.into())
}

/// Below a base, each segment encoded: an id from a token cannot leave its place.
fn below(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    // Only a URL that cannot be a base has no segments, and `validate` lets none through.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// RFC 6749 section 2.3.1: both parts form-encoded first.
fn basic(client_id: &str, secret: &[u8]) -> HeaderValue {
    let pair = format!("{}:{}", encoded(client_id), encoded(&String::from_utf8_lossy(secret)));
    sensitive(format!("Basic {}", STANDARD.encode(pair)).as_bytes())
}

fn bearer(secret: &[u8]) -> HeaderValue {
    sensitive(&[b"Bearer ", secret].concat())
}

fn sensitive(value: &[u8]) -> HeaderValue {
    // `validate` and the token's own bounds let only visible ASCII through; anything else is sent as nothing.
    let mut value = HeaderValue::from_bytes(value).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: Value) -> Reply {
        let Value::Object(body) = body else { unreachable!("an object") };
        Reply { status: StatusCode::from_u16(status).expect("a status"), body }
    }

    fn said(answer: Result<Answer, Failed>) -> String {
        match answer {
            Ok(Answer::Yes(claims)) => format!("yes {}", claims.get("sub").and_then(Value::as_str).unwrap_or("?")),
            Ok(Answer::No(_)) => "no".to_owned(),
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
