//! Compares a provider's discovery document with the configured sign-in, for `vestibule check --online`.

use std::sync::Arc;

use super::client::{ClientProbe, probe_client};
use super::discovery::Discovery;
use super::{LoginError, Metadata, TIMEOUT};
use crate::auth::{Inspection, outbound};
use crate::policy::{ClientAuth, ClientCredential, KeySource, LoginPrompt, LoginSpec, Pushed, RefreshTokens, Renew};

/// Requests a provider's discovery document, returns it, and reports the capabilities that it lacks for this login.
pub async fn inspect(spec: &LoginSpec, inspection: &mut Inspection) -> Option<Arc<Metadata>> {
    let metadata = match client(spec) {
        Ok(client) => Discovery::new(&spec.provider_spec).get(&client).await.map_err(|error| error.to_string()),
        Err(reason) => Err(reason),
    };
    match metadata {
        Ok(metadata) => {
            compare(spec, &metadata, inspection);
            Some(metadata)
        }
        Err(reason) => {
            inspection.problems.push(format!("sign-in is not possible: {reason}"));
            None
        }
    }
}

/// Checks whether a provider accepts the configured client, with a code that it never issued, and reports the result.
pub async fn inspect_client(spec: &LoginSpec, metadata: &Metadata, inspection: &mut Inspection) {
    let probed = match client(spec) {
        Ok(client) => probe_client(spec, &client, metadata).await,
        Err(reason) => Err(LoginError::down(reason)),
    };
    match probed {
        Ok(ClientProbe::Accepted) => inspection.found.push("accepts the client id and secret".to_owned()),
        Ok(ClientProbe::Unknown(reason)) => {
            inspection.found.push(format!("whether it accepts the client id and secret is not known: {reason}"));
        }
        Err(error @ LoginError::ClientRefused { .. }) => inspection.problems.push(error.to_string()),
        Err(error) => inspection.problems.push(format!("sign-in is not possible: {error}")),
    }
}

/// Sends an authorization request to the provider, as a browser without a session there would, and returns the status
/// and the `Location` of the answer.
///
/// # Errors
/// Returns the reason why there is no answer.
pub async fn authorization_answer(spec: &LoginSpec, url: &str) -> Result<(u16, Option<String>), String> {
    let request = client(spec)?.get(url).header("Accept", "text/html");
    let response = request.send().await.map_err(|error| outbound::reason(&error, TIMEOUT))?;
    let location = response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok((response.status().as_u16(), location))
}

fn client(spec: &LoginSpec) -> Result<reqwest::Client, String> {
    let authority = match &spec.provider_spec.keys {
        KeySource::Fetched { authority, .. } => authority.as_ref(),
        _ => None,
    };
    outbound::client(authority, TIMEOUT, 0)
}

fn compare(spec: &LoginSpec, metadata: &Arc<Metadata>, inspection: &mut Inspection) {
    let Inspection { found, problems } = inspection;
    found.push(format!("people sign in at {}", metadata.authorization_endpoint));
    if spec.asks_userinfo && metadata.userinfo_endpoint.is_none() {
        problems.push("claims_from: userinfo, and it lists no userinfo_endpoint".to_owned());
    }
    match (spec.pushed, &metadata.pushed_endpoint) {
        (Pushed::Required, None) => problems.push("pushed: required, and it lists no such endpoint".to_owned()),
        (Pushed::Off, _) if metadata.requires_pushed => {
            problems.push("pushed: off, and it takes pushed requests only".to_owned());
        }
        _ => {}
    }
    let method = match (&spec.credential, spec.client_auth) {
        (ClientCredential::Key(_) | ClientCredential::AssertionFile(_), _) => Some("private_key_jwt"),
        (ClientCredential::Secret(_), Some(ClientAuth::Post)) => Some("client_secret_post"),
        (ClientCredential::Secret(_), Some(ClientAuth::Basic)) => Some("client_secret_basic"),
        _ => None,
    };
    let lists = |name: &str| metadata.auth_methods.iter().any(|known| known == name);
    if let Some(method) = method.filter(|method| !metadata.auth_methods.is_empty() && !lists(method)) {
        problems.push(format!("it does not list {method} for its token endpoint"));
    }
    if metadata.has_s256 == Some(false) {
        found.push("it does not list PKCE with S256, which is sent all the same".to_owned());
    }
    // If the provider lists the scope, it is requested.
    let doubt = spec.refresh_token_doubt().filter(|_| spec.renew != Renew::Off);
    let is_by_parameter = matches!(spec.refresh_tokens(), RefreshTokens::ByParameter { .. });
    let is_listed = metadata.has_offline_access && !is_by_parameter;
    let doubt = doubt
        .filter(|_| !is_listed)
        .map(|doubt| if is_by_parameter { doubt } else { "it lists no offline_access".to_owned() });
    match doubt {
        Some(doubt) if spec.renew == Renew::Required => problems.push(format!("renew: required, and {doubt}")),
        Some(doubt) => {
            found.push(format!("{doubt}: it may give no refresh token, and sessions last to max_age"));
        }
        None if is_listed && spec.prompt != Some(LoginPrompt::Consent) => {
            found.push("some providers give a refresh token only with prompt: consent".to_owned());
        }
        None => {}
    }
    if spec.ends_provider_session && metadata.end_session_endpoint.is_none() {
        found.push("it has no end_session_endpoint: a sign-out leaves its own session open".to_owned());
    }
    if !metadata.has_backchannel_logout {
        found.push("it has no back-channel logout: a user who signs out there stays signed in here".to_owned());
    }
}
