//! Tests the endpoints of sign-in by OpenID Connect (`browser.login`), without signing anyone in.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::Url;

use super::probe::{Answer, Request};
use super::{Line, MARKER, Outcome, Target};
use crate::auth::Inspection;
use crate::auth::login::{Metadata, authorization_answer, inspect};
use crate::policy::LoginSpec;

/// The length of a PKCE challenge by S256 (RFC 7636 section 4.2).
const CHALLENGE_LENGTH: usize = 43;

pub(super) async fn run_checks(target: &Target<'_>) -> Vec<Line> {
    let logins = &target.policy.browser.logins;
    let mut lines = Vec::new();
    for login in logins {
        let suffix = if logins.len() > 1 { format!(" {}", login.name) } else { String::new() };
        let mut inspection = Inspection::default();
        let metadata = inspect(login, &mut inspection).await;
        let is_available = inspection.problems.is_empty();
        lines.push((format!("sign-in: discovery{suffix}"), discovery(inspection)));
        let (request, url) = match authorization_url(target, login, logins.len() > 1).await {
            Ok(url) => (authorization_request(login, metadata.as_deref(), &url), Some(url)),
            // One cause is reported as one failure.
            Err((503, _)) if !is_available => (Outcome::Skipped("the provider is not available".to_owned()), None),
            Err((_, problem)) => (Outcome::Failed(problem), None),
        };
        lines.push((format!("sign-in: request{suffix}"), request));
        lines.push((format!("sign-in: provider{suffix}"), at_provider(login, url.as_ref()).await));
        lines.push((format!("sign-in: callback{suffix}"), callback(target, login).await));
    }
    if !logins.is_empty() {
        lines.push(("sign-in: logout".to_owned(), logout(target).await));
        lines.push(("sign-in: signed out".to_owned(), signed_out(target).await));
        lines.push(("sign-in: back channel".to_owned(), back_channel(target).await));
    }
    lines
}

fn discovery(inspection: Inspection) -> Outcome {
    if !inspection.problems.is_empty() {
        return Outcome::Failed(inspection.problems.join("; "));
    }
    Outcome::Passed(inspection.found.into_iter().next().unwrap_or_default())
}

/// Begins a sign-in as a browser does, and returns the URL of its redirect.
///
/// # Errors
/// Returns the status of the answer, 0 where there is none, and the text for the user.
async fn authorization_url(target: &Target<'_>, login: &LoginSpec, has_several: bool) -> Result<Url, (u16, String)> {
    // An empty fragment skips the page that saves the real one.
    let mut path = format!("/.vestibule/login?return_path=%2F{MARKER}&fragment=");
    if has_several {
        path = format!("{path}&provider={}", login.name);
    }
    let answer = target.get(&path).await.map_err(|problem| (0, format!("GET {path}: {problem}")))?;
    let problem = match (answer.status, answer.header("location")) {
        (302, Some(location)) => match Url::parse(location) {
            Ok(url) => return Ok(url),
            Err(_) => format!("GET {path} leads to {location}, and not to a provider"),
        },
        (404, _) => "/.vestibule/login is 404: browser.login is not in force in this process".to_owned(),
        (503, _) => "/.vestibule/login is 503: the proxy cannot reach the provider; its log has the reason".to_owned(),
        (status, _) => format!("GET {path} is answered {status}, and should lead to the provider"),
    };
    Err((answer.status, problem))
}

/// Checks the authorization request of a sign-in.
fn authorization_request(login: &LoginSpec, metadata: Option<&Metadata>, url: &Url) -> Outcome {
    if let Some(metadata) = metadata {
        let expected = Url::parse(&metadata.authorization_endpoint).ok();
        if expected.is_some_and(|expected| (expected.origin(), expected.path()) != (url.origin(), url.path())) {
            return Outcome::Failed(format!(
                "/.vestibule/login leads to {}, and not to {}: the process serves another configuration",
                without_query(url),
                metadata.authorization_endpoint
            ));
        }
    }
    let parameters: HashMap<String, String> = url.query_pairs().into_owned().collect();
    let is = |name: &str, value: &str| parameters.get(name).is_some_and(|found| found == value);
    if !is("client_id", &login.client_id) {
        return Outcome::Failed(format!("the client_id is not {}", login.client_id));
    }
    if parameters.contains_key("request_uri") {
        return Outcome::Passed(format!("leads to {}, its parameters were pushed there (PAR)", without_query(url)));
    }
    if !is("redirect_uri", &login.redirect_uri()) {
        return Outcome::Failed(format!(
            "the redirect URI is {}, and not {}: the process has another public_url",
            parameters.get("redirect_uri").map_or("missing", String::as_str),
            login.redirect_uri()
        ));
    }
    let challenge = parameters.get("code_challenge").map_or(0, String::len);
    if !is("code_challenge_method", "S256") || challenge != CHALLENGE_LENGTH {
        return Outcome::Failed("the request has no PKCE challenge by S256".to_owned());
    }
    for name in ["state", "nonce"] {
        if parameters.get(name).is_none_or(String::is_empty) {
            return Outcome::Failed(format!("the request has no {name}"));
        }
    }
    if !is("response_type", "code") {
        return Outcome::Failed("the response_type is not code".to_owned());
    }
    Outcome::Passed(format!(
        "leads to {} with redirect URI {}, state, nonce and PKCE",
        without_query(url),
        login.redirect_uri()
    ))
}

fn without_query(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// Follows the authorization request for one step. A provider refuses a client or a redirect URI that is not
/// registered.
async fn at_provider(login: &LoginSpec, url: Option<&Url>) -> Outcome {
    let Some(url) = url else { return Outcome::Skipped("no sign-in could be begun".to_owned()) };
    let redirect_uri = login.redirect_uri();
    match authorization_answer(login, url.as_str()).await {
        Ok((_, Some(location))) if location.starts_with(&redirect_uri) => {
            let error = Url::parse(&location).ok().and_then(|location| {
                location.query_pairs().find(|(name, _)| name == "error").map(|(_, value)| value.into_owned())
            });
            match error {
                Some(error) => Outcome::Failed(format!(
                    "the provider answers error={error}: compare client {} and its scopes with what is registered there",
                    login.client_id
                )),
                None => Outcome::Passed("the provider knows this client and its redirect URI".to_owned()),
            }
        }
        Ok((status @ 500.., _)) => Outcome::Failed(format!("the provider answers {status}")),
        Ok((status @ 400.., _)) => Outcome::Failed(format!(
            "the provider answers {status} to this request: register redirect URI {redirect_uri} for client {} there",
            login.client_id
        )),
        Ok((status, _)) => Outcome::Passed(format!("the provider takes this request ({status})")),
        Err(reason) => Outcome::Skipped(format!("the provider cannot be reached from here: {reason}")),
    }
}

/// Returns a cookie of this answer that holds a session.
fn session_cookie(answer: &Answer) -> Option<&str> {
    let cookies = answer.fields().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    let mut pairs = cookies.filter_map(|(_, cookie)| cookie.split(';').next()?.split_once('='));
    pairs.find(|(name, value)| !name.contains("-login") && !value.is_empty()).map(|(name, _)| name)
}

/// Checks that a callback with a state that the proxy did not make signs nobody in.
async fn callback(target: &Target<'_>, login: &LoginSpec) -> Outcome {
    let path = format!("{}?code={MARKER}&state={MARKER}", login.callback_path);
    let answer = match target.get(&path).await {
        Ok(answer) => answer,
        Err(problem) => return Outcome::Failed(format!("GET {path}: {problem}")),
    };
    if let Some(name) = session_cookie(&answer) {
        return Outcome::Failed(format!("a callback with a made-up state sets the cookie {name}"));
    }
    let location = answer.header("location").unwrap_or_default();
    match answer.status {
        302 | 303 if location.starts_with("/.vestibule/login") => {
            Outcome::Passed("a made-up state signs nobody in: the sign-in begins again".to_owned())
        }
        400 => Outcome::Passed("a made-up state is refused".to_owned()),
        status => Outcome::Failed(format!(
            "{} with a made-up state is answered {status}, and should begin the sign-in again",
            login.callback_path
        )),
    }
}

/// Checks that the page of sign-out is served, and that another website cannot sign people out.
async fn logout(target: &Target<'_>) -> Outcome {
    const PATH: &str = "/.vestibule/logout";
    match target.get(PATH).await {
        Ok(answer) if answer.status == 200 && answer.body.contains("<form") => {}
        Ok(answer) => {
            return Outcome::Failed(format!("GET {PATH} is answered {}, and should be a page", answer.status));
        }
        Err(problem) => return Outcome::Failed(format!("GET {PATH}: {problem}")),
    }
    let fields = [format!("Origin: https://{MARKER}.example")];
    let request = Request { method: "POST", target: PATH, host: &target.host, fields: &fields, ..Request::default() };
    match request.send(&target.proxy).await {
        Ok(answer) if answer.status == 403 => {
            Outcome::Passed("the page answers, and a foreign Origin cannot sign out".to_owned())
        }
        Ok(answer) => Outcome::Failed(format!("POST {PATH} from a foreign Origin is answered {}", answer.status)),
        Err(problem) => Outcome::Failed(format!("POST {PATH}: {problem}")),
    }
}

async fn signed_out(target: &Target<'_>) -> Outcome {
    const PATH: &str = "/.vestibule/signed-out";
    match target.get(PATH).await {
        Ok(answer) if answer.status == 200 && answer.header("location").is_none() => {
            Outcome::Passed("the page answers and leads nowhere by itself".to_owned())
        }
        Ok(answer) => Outcome::Failed(format!("GET {PATH} is answered {}, and should be a page", answer.status)),
        Err(problem) => Outcome::Failed(format!("GET {PATH}: {problem}")),
    }
}

/// Checks that a logout token that no provider signed is refused.
async fn back_channel(target: &Target<'_>) -> Outcome {
    const PATH: &str = "/.vestibule/backchannel-logout";
    let login = target.policy.browser.logins.first();
    let claims = serde_json::json!({
        "iss": login.and_then(|login| login.provider_spec.issuer.as_deref()),
        "aud": login.map(|login| &login.client_id),
        "sub": MARKER,
        "jti": target.spoofed_user,
        "iat": crate::auth::unix_seconds(),
        "exp": crate::auth::unix_seconds() + 60,
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
    });
    let header = r#"{"alg":"none","typ":"logout+jwt"}"#;
    let body =
        format!("logout_token={}.{}.", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let request = Request { method: "POST", target: PATH, host: &target.host, body: &body, ..Request::default() };
    match request.send(&target.proxy).await {
        Ok(answer) if answer.status == 400 => Outcome::Passed("an unsigned logout token is refused".to_owned()),
        Ok(answer) if answer.status == 503 => {
            Outcome::Skipped("503: the provider has no keys yet to verify a logout token with".to_owned())
        }
        Ok(answer) => Outcome::Failed(format!("POST {PATH} with an unsigned token is answered {}", answer.status)),
        Err(problem) => Outcome::Failed(format!("POST {PATH}: {problem}")),
    }
}
