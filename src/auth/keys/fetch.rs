//! The bounded GET of a JWKS or a discovery document: https unless told otherwise, five seconds, half a
//! megabyte.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use url::Url;

use super::set::{BadKeys, KeySet};
use crate::auth::outbound;
use crate::json;
use crate::policy::{KeySource, ProviderSpec, is_loopback_name};

const TIME: Duration = Duration::from_secs(5);
const BYTES: usize = 512 << 10;

/// Why keys could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the HTTP client could not be made: {0}")]
    Client(String),
    #[error("{url}: {reason}")]
    Request { url: Url, reason: String },
    #[error("{url} answered {status}")]
    Status { url: Url, status: u16 },
    #[error("{url} redirects, and key locations are not followed; write the final URL")]
    Redirect { url: Url },
    #[error("{url} answered more than {BYTES} bytes")]
    TooLarge { url: Url },
    #[error("{url} is not an OIDC discovery document")]
    NotDiscovery { url: Url },
    #[error("the provider calls itself {found:?}; write exactly that")]
    OtherIssuer { found: String },
    #[error("{url}: {source}")]
    Keys { url: Url, source: Arc<BadKeys> },
    #[error("the discovery document names keys at {url}, which is not https")]
    PlainHttp { url: Url },
}

pub(super) fn client(source: &KeySource) -> Result<reqwest::Client, FetchError> {
    let authority = match source {
        KeySource::Fetched { authority, .. } => authority.as_ref(),
        _ => None,
    };
    // A key set is fetched every ten minutes: no connection is worth keeping for the next.
    outbound::client(authority, TIME, 0).map_err(FetchError::Client)
}

pub(super) async fn keys(client: &reqwest::Client, provider: &ProviderSpec) -> Result<KeySet, FetchError> {
    let KeySource::Fetched { url, discovery, allow_http, .. } = &provider.keys else {
        return Err(FetchError::Client("keys are given, not fetched".to_owned()));
    };
    let jwks = if *discovery { discover(client, url, provider, *allow_http).await? } else { url.clone() };
    let body = get(client, &jwks).await?.body;
    KeySet::from_jwks(&body).map_err(|source| FetchError::Keys { url: jwks, source: Arc::new(source) })
}

/// What a look at the provider itself says beyond its keys.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// What its discovery document calls it; `None` when it has none.
    pub(super) calls_itself: Option<String>,
    /// Its clock's lead over ours in seconds, by the `Date` of its answer.
    pub(super) clock: Option<i64>,
}

/// Looks at the discovery document below the issuer, also where keys come from elsewhere.
pub(super) async fn look(client: &reqwest::Client, issuer: &str) -> Result<Look, FetchError> {
    let text = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let Ok(url) = Url::parse(&text) else { return Ok(Look::default()) };
    let answer = get(client, &url).await?;
    let document = json::object(&answer.body).ok();
    let name = document.as_ref().and_then(|document| document.get("issuer")).and_then(serde_json::Value::as_str);
    Ok(Look { calls_itself: name.map(|name| name.chars().take(256).collect()), clock: answer.clock })
}

async fn discover(
    client: &reqwest::Client,
    url: &Url,
    provider: &ProviderSpec,
    allow_http: bool,
) -> Result<Url, FetchError> {
    let body = get(client, url).await?.body;
    let not_discovery = || FetchError::NotDiscovery { url: url.clone() };
    let document = json::object(&body).map_err(|_| not_discovery())?;
    let text = |name: &str| document.get(name).and_then(serde_json::Value::as_str);
    // OpenID Connect Discovery section 4.3: it must be identical, or this is another issuer's set.
    let issuer = text("issuer").ok_or_else(not_discovery)?;
    if Some(issuer) != provider.issuer.as_deref() {
        return Err(FetchError::OtherIssuer { found: issuer.chars().take(256).collect() });
    }
    let jwks = text("jwks_uri").and_then(|uri| Url::parse(uri).ok()).ok_or_else(not_discovery)?;
    // A provider elsewhere has no business pointing at this machine.
    let local = [url, &jwks].iter().all(|url| url.host_str().is_some_and(is_loopback_name));
    match jwks.scheme() {
        "https" => Ok(jwks),
        "http" if local || allow_http => Ok(jwks),
        _ => Err(FetchError::PlainHttp { url: jwks }),
    }
}

struct Answer {
    body: Vec<u8>,
    clock: Option<i64>,
}

async fn get(client: &reqwest::Client, url: &Url) -> Result<Answer, FetchError> {
    let failed =
        |error: reqwest::Error| FetchError::Request { url: url.clone(), reason: outbound::reason(&error, TIME) };
    let response = client.get(url.clone()).header("accept", "application/json").send().await.map_err(failed)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(FetchError::Redirect { url: url.clone() });
    }
    if status != reqwest::StatusCode::OK {
        return Err(FetchError::Status { url: url.clone(), status: status.as_u16() });
    }
    let date = response.headers().get("date").and_then(|date| date.to_str().ok());
    let clock = date.and_then(|date| httpdate::parse_http_date(date).ok()).map(lead);
    let Some(body) = outbound::body(response, BYTES).await.map_err(failed)? else {
        return Err(FetchError::TooLarge { url: url.clone() });
    };
    Ok(Answer { body, clock })
}

/// Seconds by which a clock is ahead of ours.
fn lead(theirs: SystemTime) -> i64 {
    let ours = SystemTime::now();
    let seconds = |lead: Duration| i64::try_from(lead.as_secs()).unwrap_or(i64::MAX);
    match theirs.duration_since(ours) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}
