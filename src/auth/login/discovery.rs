//! Fetches a provider's discovery document (OpenID Connect Discovery 1.0) when a sign-in needs it, and caches it for as
//! long as the provider's keys. Concurrent callers share one request.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;
use url::Url;

use super::{BODY_BYTES, LoginError, TIMEOUT};
use crate::auth::keys::placeholder_issuer;
use crate::auth::outbound;
use crate::config::shown_url;
use crate::json;
use crate::policy::{KeySource, ProviderSpec, is_loopback_name};

/// The time for which a document is fresh, if the configuration has no refresh interval for keys.
const FRESH: Duration = Duration::from_secs(600);
/// The pause after a failed request while an older document is used.
const RETRY: Duration = Duration::from_secs(5);
/// The pause after a failed request while there is no document, and no sign-in is possible. The next sign-in finds a
/// provider that is back, and reports a cause that is a second old at most.
const RETRY_WITHOUT_DOCUMENT: Duration = Duration::from_secs(1);

/// The endpoints and capabilities of a provider that sign-in uses.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// The authorization endpoint.
    pub authorization_endpoint: String,
    /// The token endpoint.
    pub token_endpoint: String,
    /// The `UserInfo` endpoint.
    pub userinfo_endpoint: Option<String>,
    /// The token revocation endpoint (RFC 7009).
    pub revocation_endpoint: Option<String>,
    /// The pushed authorization request endpoint (RFC 9126).
    pub pushed_endpoint: Option<String>,
    /// Whether the provider accepts pushed requests only.
    pub requires_pushed: bool,
    /// The sign-out page (OpenID Connect RP-Initiated Logout 1.0).
    pub end_session_endpoint: Option<String>,
    /// Whether callbacks have `iss` (RFC 9207).
    pub names_issuer: bool,
    /// Whether `offline_access` is one of the scopes.
    pub has_offline_access: bool,
    /// The client authentication methods of the token endpoint; empty if the document lists none.
    pub auth_methods: Vec<String>,
    /// Whether the provider supports back-channel logout.
    pub has_backchannel_logout: bool,
    /// Whether ID tokens and logout tokens have the same `sid`.
    pub logout_names_session: bool,
    /// The supported values of `prompt`; `None` if the document lists none.
    pub prompts: Option<Vec<String>>,
    /// Whether S256 is among the code challenge methods; `None` if the document lists none.
    pub has_s256: Option<bool>,
}

impl Metadata {
    fn from_document(document: &Map<String, Value>, url: &Url, allow_http: bool) -> Result<Self, String> {
        let endpoint = |name: &str| match document.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => {
                check_endpoint(text, url, allow_http).map(Some).map_err(|why| format!("{name} {why}"))
            }
            Some(_) => Err(format!("{name} is not a string")),
        };
        let required = |name: &str| endpoint(name)?.ok_or_else(|| format!("has no {name}"));
        let flag = |name: &str| document.get(name).and_then(Value::as_bool).unwrap_or(false);
        let list = |name: &str| -> Option<Vec<String>> {
            let members = document.get(name)?.as_array()?;
            Some(members.iter().filter_map(Value::as_str).map(str::to_owned).take(64).collect())
        };
        Ok(Self {
            authorization_endpoint: required("authorization_endpoint")?,
            token_endpoint: required("token_endpoint")?,
            userinfo_endpoint: endpoint("userinfo_endpoint")?,
            revocation_endpoint: endpoint("revocation_endpoint")?,
            pushed_endpoint: endpoint("pushed_authorization_request_endpoint")?,
            requires_pushed: flag("require_pushed_authorization_requests"),
            end_session_endpoint: endpoint("end_session_endpoint")?,
            names_issuer: flag("authorization_response_iss_parameter_supported"),
            has_offline_access: list("scopes_supported")
                .is_some_and(|scopes| scopes.iter().any(|scope| scope == "offline_access")),
            auth_methods: list("token_endpoint_auth_methods_supported").unwrap_or_default(),
            has_backchannel_logout: flag("backchannel_logout_supported"),
            logout_names_session: flag("backchannel_logout_session_supported"),
            prompts: list("prompt_values_supported"),
            has_s256: list("code_challenge_methods_supported")
                .map(|methods| methods.iter().any(|method| method == "S256")),
        })
    }
}

/// Checks that an endpoint is https, unless endpoint and document are on this machine or `allow_http` is set.
fn check_endpoint(text: &str, document: &Url, allow_http: bool) -> Result<String, String> {
    let url = Url::parse(text).map_err(|_| "is not a URL".to_owned())?;
    if url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() || url.host_str().is_none() {
        return Err("is not a plain URL".to_owned());
    }
    let local = [document, &url].iter().all(|url| url.host_str().is_some_and(is_loopback_name));
    match url.scheme() {
        "https" => Ok(text.to_owned()),
        "http" if local || allow_http => Ok(text.to_owned()),
        _ => Err("is not https".to_owned()),
    }
}

#[derive(Default)]
struct Cached {
    document: Option<(Arc<Metadata>, Instant)>,
    failed: Option<(String, Instant)>,
}

/// The discovery document of one provider.
pub(super) struct Discovery {
    issuer: String,
    url: Result<Url, String>,
    allow_http: bool,
    fresh: Duration,
    cache: Mutex<Cached>,
    fetching: tokio::sync::Mutex<()>,
}

impl Discovery {
    pub(super) fn new(provider: &ProviderSpec) -> Self {
        let issuer = provider.issuer.clone().unwrap_or_default();
        // OpenID Connect Discovery section 4.1: a trailing slash of the issuer is removed first.
        let text = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let (allow_http, fresh) = match &provider.keys {
            KeySource::Fetched { allow_http, refresh, .. } => (*allow_http, *refresh),
            _ => (false, FRESH),
        };
        Self {
            url: Url::parse(&text).map_err(|_| format!("{text} is not a URL")),
            issuer,
            allow_http,
            fresh,
            cache: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the document, from the cache while it is fresh. A stale document is used while the provider is down.
    ///
    /// # Errors
    /// [`LoginError::Unavailable`] when there is no document.
    pub(super) async fn get(&self, client: &reqwest::Client) -> Result<Arc<Metadata>, LoginError> {
        if let Some(known) = self.cached() {
            return known;
        }
        // A caller that has waited uses the document of the one before it.
        let _turn = self.fetching.lock().await;
        if let Some(known) = self.cached() {
            return known;
        }
        let fetched = self.fetch(client).await;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match fetched {
            Ok(document) => {
                let document = Arc::new(document);
                *cache = Cached { document: Some((Arc::clone(&document), Instant::now())), failed: None };
                Ok(document)
            }
            Err(reason) => {
                // The warning is logged once for each cause, since each failed sign-in has a line of its own.
                if cache.failed.as_ref().is_none_or(|(former, _)| *former != reason) {
                    tracing::warn!(issuer = %self.issuer, reason, "discovery failed");
                }
                cache.failed = Some((reason.clone(), Instant::now()));
                match &cache.document {
                    Some((document, _)) => Ok(Arc::clone(document)),
                    None => Err(LoginError::unavailable(reason, Some(RETRY_WITHOUT_DOCUMENT))),
                }
            }
        }
    }

    /// Returns the last document, however old.
    pub(super) fn last_document(&self) -> Option<Arc<Metadata>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.document.as_ref().map(|(document, _)| Arc::clone(document))
    }

    fn cached(&self) -> Option<Result<Arc<Metadata>, LoginError>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = if cache.document.is_some() { RETRY } else { RETRY_WITHOUT_DOCUMENT };
        let has_just_failed = cache.failed.as_ref().filter(|(_, at)| at.elapsed() < pause);
        match (&cache.document, has_just_failed) {
            (Some((document, at)), failed) if at.elapsed() < self.fresh || failed.is_some() => {
                Some(Ok(Arc::clone(document)))
            }
            (None, Some((reason, at))) => {
                let wait = pause.saturating_sub(at.elapsed());
                Some(Err(LoginError::unavailable(reason.clone(), Some(wait))))
            }
            _ => None,
        }
    }

    async fn fetch(&self, client: &reqwest::Client) -> Result<Metadata, String> {
        let url = self.url.as_ref().map_err(Clone::clone)?;
        let shown = shown_url(url.as_str());
        let failed = |error: reqwest::Error| format!("{shown}: {}", outbound::reason(&error, TIMEOUT));
        let response = client.get(url.clone()).header("accept", "application/json").send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("{shown} answered {}", response.status().as_u16()));
        }
        let body = outbound::body(response, BODY_BYTES).await.map_err(failed)?;
        let body = body.ok_or_else(|| format!("{shown} answered more than {BODY_BYTES} bytes"))?;
        let document = json::object(&body).map_err(|_| format!("{shown} is not an OIDC discovery document"))?;
        match document.get("issuer").and_then(Value::as_str) {
            // OpenID Connect Discovery section 4.3: it must be identical.
            Some(issuer) if issuer == self.issuer => {}
            Some(other) => {
                let other: String = other.chars().take(256).collect();
                let advice = placeholder_issuer(&other);
                return Err(
                    advice.unwrap_or_else(|| format!("the provider calls itself {other:?}; write exactly that"))
                );
            }
            None => return Err(format!("{shown} is not an OIDC discovery document")),
        }
        Metadata::from_document(&document, url, self.allow_http).map_err(|why| format!("{shown}: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(url: &str, more: &Value, allow_http: bool) -> Result<Metadata, String> {
        let mut document = json!({
            "authorization_endpoint": "https://id.example.com/a", "token_endpoint": "https://id.example.com/t",
        });
        for (name, value) in more.as_object().expect("object") {
            document[name] = value.clone();
        }
        let document = document.as_object().expect("object").clone();
        Metadata::from_document(&document, &Url::parse(url).expect("a URL"), allow_http)
    }

    #[test]
    fn every_endpoint_is_https_or_on_this_machine() {
        let (there, here) = ("https://id.example.com/x", "http://127.0.0.1:1/x");
        assert!(read(there, &json!({}), false).is_ok());
        for name in [
            "authorization_endpoint",
            "token_endpoint",
            "userinfo_endpoint",
            "revocation_endpoint",
            "end_session_endpoint",
            "pushed_authorization_request_endpoint",
        ] {
            for (endpoint, document, allow_http, expected) in [
                ("http://id.example.com/e", there, false, false),
                ("http://id.example.com/e", there, true, true),
                ("http://127.0.0.1:2/e", there, false, false),
                ("http://127.0.0.1:2/e", here, false, true),
                ("javascript:alert(1)", there, true, false),
                ("https://u:p@id.example.com/e", there, false, false),
                ("https://id.example.com/e#f", there, false, false),
                ("/e", there, false, false),
            ] {
                let result = read(document, &json!({ name: endpoint }), allow_http);
                assert_eq!(result.is_ok(), expected, "{name} {endpoint} in {document}: {result:?}");
            }
        }
        assert!(read(there, &json!({ "token_endpoint": 7 }), false).is_err());
    }
}
