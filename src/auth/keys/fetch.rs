//! Fetches a JWKS or a discovery document: by https unless `allow_http` is set, within five seconds, and at most
//! half a megabyte.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, AGE, AUTHORIZATION, DATE, HeaderMap, HeaderName};
use url::Url;

use super::set::{BadKeys, KeySet};
use crate::auth::{Token, outbound, read_small_file};
use crate::config::shown_url;
use crate::json;
use crate::policy::{KeySource, ProviderSpec, is_loopback_name};

/// The timeout of one request.
pub(super) const TIME: Duration = Duration::from_secs(5);
/// The maximum length of a response body in bytes.
const BYTES: usize = 512 << 10;

/// The largest token in `jwks.token_file`.
const TOKEN_BYTES: usize = 16 << 10;
/// RFC 7517 section 8.5 registers the media type of a JWKS. The API server of Kubernetes answers 406 to a request that does
/// not accept it; most providers send `application/json`.
const MEDIA_TYPES: &str = "application/jwk-set+json, application/json, */*;q=0.5";

/// The reason why keys could not be fetched.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the HTTP client could not be created: {0}")]
    Client(String),
    #[error("{}: {reason}", shown_url(.url.as_str()))]
    Request { url: Url, reason: String },
    #[error(
        "{}: {reason}; if the issuer cannot be reached from here, write where its keys can be: jwks: {{ url: … }}, and leave issuer as the tokens have it",
        shown_url(.url.as_str())
    )]
    IssuerUnreachable { url: Url, reason: String },
    #[error("jwks.token_file {}: {reason}", .file.display())]
    TokenFile { file: PathBuf, reason: String },
    #[error("{} answered {status}", shown_url(.url.as_str()))]
    Status { url: Url, status: u16 },
    #[error("{} redirects, and key locations are not followed; write the final URL", shown_url(.url.as_str()))]
    Redirect { url: Url },
    #[error("{} answered more than {BYTES} bytes", shown_url(.url.as_str()))]
    TooLarge { url: Url },
    #[error("{} is not an OIDC discovery document", shown_url(.url.as_str()))]
    NotDiscovery { url: Url },
    #[error("{}", other_issuer(.found))]
    OtherIssuer { found: String },
    #[error("{}: {source}", shown_url(.url.as_str()))]
    Keys { url: Url, source: Arc<BadKeys> },
    #[error("the discovery document names keys at {}, which is not https", shown_url(.url.as_str()))]
    PlainHttp { url: Url },
}

/// Says what to configure where a discovery document names another issuer than the configuration.
fn other_issuer(found: &str) -> String {
    placeholder_issuer(found).unwrap_or_else(|| {
        format!(
            "the provider calls itself {found:?}; write exactly that, and if its keys cannot be fetched there from here, also jwks: {{ url: … }}"
        )
    })
}

/// Says what to configure where a discovery document's issuer is a pattern. Entra's document for all tenants has
/// `{tenantid}` in it, and no token does.
pub(in crate::auth) fn placeholder_issuer(found: &str) -> Option<String> {
    found.contains(['{', '}']).then(|| {
        format!(
            "this discovery document is for every tenant: it calls itself {found:?}, and a token names one tenant there; write the issuer of your tenant (for Entra preset: entra and tenant: the directory ID)"
        )
    })
}

pub(super) fn client(source: &KeySource) -> Result<reqwest::Client, FetchError> {
    let authority = match source {
        KeySource::Fetched { authority, .. } | KeySource::ById { authority, .. } => authority.as_ref(),
        _ => None,
    };
    // No idle connections: with ten minutes between two fetches, none would still be open.
    outbound::client(authority, TIME, 0).map_err(FetchError::Client)
}

/// A key set, and how far the clock of the server that sent it is ahead of this machine's.
#[derive(Debug)]
pub(super) struct FetchedKeys {
    pub(super) keys: KeySet,
    /// In seconds; negative if it is behind, `None` if the response has no `Date`.
    pub(super) clock_offset: Option<i64>,
}

pub(super) async fn keys(client: &reqwest::Client, provider: &ProviderSpec) -> Result<FetchedKeys, FetchError> {
    let KeySource::Fetched { url, discovery, allow_http, token_file, .. } = &provider.keys else {
        return Err(FetchError::Client("keys are given, not fetched".to_owned()));
    };
    let jwks = if *discovery { discover(client, url, provider, *allow_http).await? } else { url.clone() };
    // Validation lets a token be sent only where the configuration names the URL.
    let token = match token_file {
        Some(file) => Some(token_of(file).await?),
        None => None,
    };
    let Fetched { body, clock_offset } = get_with(client, &jwks, token.as_ref()).await?;
    let keys = KeySet::from_jwks(&body).map_err(|source| FetchError::Keys { url: jwks, source: Arc::new(source) })?;
    Ok(FetchedKeys { keys, clock_offset })
}

/// The data about a provider from its discovery document and the response's headers.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// The issuer in the document; `None` when the document has none.
    pub(super) issuer: Option<String>,
    /// The seconds by which the provider's clock is ahead of this machine's, by the `Date` header.
    pub(super) clock_offset: Option<i64>,
}

/// Fetches the discovery document below the issuer, even if the keys come from elsewhere.
pub(super) async fn inspect_discovery(client: &reqwest::Client, issuer: &str) -> Result<Discovery, FetchError> {
    let text = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let Ok(url) = Url::parse(&text) else { return Ok(Discovery::default()) };
    let fetched = get(client, &url).await?;
    let document = json::object(&fetched.body).ok();
    let name = document.as_ref().and_then(|document| document.get("issuer")).and_then(serde_json::Value::as_str);
    let issuer = name.map(|name| name.chars().take(256).collect());
    Ok(Discovery { issuer, clock_offset: fetched.clock_offset })
}

async fn discover(
    client: &reqwest::Client,
    url: &Url,
    provider: &ProviderSpec,
    allow_http: bool,
) -> Result<Url, FetchError> {
    let body = match get(client, url).await {
        Err(FetchError::Request { url, reason }) => return Err(FetchError::IssuerUnreachable { url, reason }),
        fetched => fetched?.body,
    };
    let not_discovery = || FetchError::NotDiscovery { url: url.clone() };
    let document = json::object(&body).map_err(|_| not_discovery())?;
    let text = |name: &str| document.get(name).and_then(serde_json::Value::as_str);
    // OpenID Connect Discovery section 4.3: the issuer must be identical, or the keys are another issuer's.
    let issuer = text("issuer").ok_or_else(not_discovery)?;
    if Some(issuer) != provider.issuer.as_deref() {
        return Err(FetchError::OtherIssuer { found: issuer.chars().take(256).collect() });
    }
    let jwks = text("jwks_uri").and_then(|uri| Url::parse(uri).ok()).ok_or_else(not_discovery)?;
    // A provider on another machine must not make this process send plain HTTP requests to local services.
    let local = [url, &jwks].iter().all(|url| url.host_str().is_some_and(is_loopback_name));
    match jwks.scheme() {
        "https" => Ok(jwks),
        "http" if local || allow_http => Ok(jwks),
        _ => Err(FetchError::PlainHttp { url: jwks }),
    }
}

struct Fetched {
    body: Vec<u8>,
    clock_offset: Option<i64>,
}

/// Fetches the key whose PEM file has the name `id`, which the caller has checked. Returns `None` if there is none.
pub(super) async fn key_by_id(client: &reqwest::Client, base: &Url, id: &str) -> Result<Option<KeySet>, FetchError> {
    let mut url = base.clone();
    // Only a URL that cannot be a base has no segments, and validation rejects those.
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().push(id);
    }
    match get(client, &url).await {
        Ok(fetched) => {
            let set = KeySet::from_pem(&fetched.body);
            set.map(Some).map_err(|source| FetchError::Keys { url, source: Arc::new(source) })
        }
        // The keys are objects of a store, which answers 403 for one that does not exist.
        Err(FetchError::Status { status: 403 | 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the token that is sent along to the provider; its platform may renew the file at any time.
async fn token_of(file: &Path) -> Result<Token, FetchError> {
    let wrong = |reason: String| FetchError::TokenFile { file: file.to_owned(), reason };
    let text = read_small_file(file, TOKEN_BYTES).await.map_err(|error| wrong(error.to_string()))?;
    let token = text.and_then(|text| Token::parse(text.trim(), TOKEN_BYTES).ok());
    token.ok_or_else(|| wrong(format!("holds no token: one line of at most {TOKEN_BYTES} bytes")))
}

async fn get(client: &reqwest::Client, url: &Url) -> Result<Fetched, FetchError> {
    get_with(client, url, None).await
}

async fn get_with(client: &reqwest::Client, url: &Url, token: Option<&Token>) -> Result<Fetched, FetchError> {
    let failed =
        |error: reqwest::Error| FetchError::Request { url: url.clone(), reason: outbound::reason(&error, TIME) };
    let mut request = client.get(url.clone()).header(ACCEPT, MEDIA_TYPES);
    if let Some(bearer) = token.and_then(Token::bearer) {
        request = request.header(AUTHORIZATION, bearer);
    }
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(FetchError::Redirect { url: url.clone() });
    }
    if status != reqwest::StatusCode::OK {
        return Err(FetchError::Status { url: url.clone(), status: status.as_u16() });
    }
    let clock_offset = clock_offset(response.headers());
    let Some(body) = outbound::body(response, BYTES).await.map_err(failed)? else {
        return Err(FetchError::TooLarge { url: url.clone() });
    };
    Ok(Fetched { body, clock_offset })
}

/// Returns the seconds by which the clock of a response's server is ahead of this machine's. A cache keeps the `Date` of the
/// server behind it, and says in `Age` how long ago that was (RFC 9111 section 4.2.3).
fn clock_offset(fields: &HeaderMap) -> Option<i64> {
    let text = |name: HeaderName| fields.get(name).and_then(|value| value.to_str().ok());
    let date = httpdate::parse_http_date(text(DATE)?).ok()?;
    let age = text(AGE).and_then(|age| age.trim().parse().ok()).unwrap_or(0_u32);
    Some(seconds_ahead(date).saturating_add(age.into()))
}

/// Returns the seconds by which another clock is ahead of this machine's.
fn seconds_ahead(theirs: SystemTime) -> i64 {
    let ours = SystemTime::now();
    let seconds = |offset: Duration| i64::try_from(offset.as_secs()).unwrap_or(i64::MAX);
    match theirs.duration_since(ours) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_cache_shows_the_clock_of_its_server() {
        let fields = |date: SystemTime, age: &str| {
            let mut fields = HeaderMap::new();
            fields.insert(DATE, httpdate::fmt_http_date(date).try_into().expect("a value"));
            fields.insert(AGE, age.try_into().expect("a value"));
            clock_offset(&fields).expect("an offset")
        };
        let now = SystemTime::now();
        for (date, age, expected) in [
            (now, "", 0),
            (now - Duration::from_secs(3_600), "3600", 0),
            (now - Duration::from_secs(3_600), "x", -3_600),
            (now + Duration::from_secs(120), "0", 120),
        ] {
            // `Date` has whole seconds, and the test may be slow.
            assert!((fields(date, age) - expected).abs() < 60, "{age} {expected}");
        }
        assert_eq!(clock_offset(&HeaderMap::new()), None);
    }
}
