//! What a provider says of itself (OpenID Connect Discovery 1.0): fetched when a sign-in needs it, kept for as long as
//! its keys are fresh, one request however many wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;
use url::Url;

use super::{BODY_BYTES, LoginError, TIMEOUT};
use crate::auth::outbound;
use crate::json;
use crate::policy::{KeySource, ProviderSpec, is_loopback_name};

/// How long a document is fresh, where the provider's keys do not say.
const FRESH: Duration = Duration::from_secs(600);
/// After a failed fetch nobody asks again for so long.
const RETRY: Duration = Duration::from_secs(5);

/// The endpoints and abilities that sign-in uses.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Where people sign in.
    pub authorization_endpoint: String,
    /// Where codes and refresh tokens are exchanged.
    pub token_endpoint: String,
    /// Where claims are asked for.
    pub userinfo_endpoint: Option<String>,
    /// RFC 7009.
    pub revocation_endpoint: Option<String>,
    /// RFC 9126.
    pub pushed_endpoint: Option<String>,
    /// Whether the provider takes pushed requests only.
    pub requires_pushed: bool,
    /// RP-Initiated Logout.
    pub end_session_endpoint: Option<String>,
    /// RFC 9207: whether a callback names its issuer.
    pub names_issuer: bool,
    /// Whether `offline_access` is one of its scopes.
    pub has_offline_access: bool,
    /// Client authentication at the token endpoint; empty where it does not say.
    pub auth_methods: Vec<String>,
    /// Whether it reports sign-outs by back channel.
    pub has_backchannel_logout: bool,
    /// Whether ID and logout tokens hold the same `sid`.
    pub logout_names_session: bool,
    /// What it can be told to ask its user; `None` where it does not say.
    pub prompts: Option<Vec<String>>,
    /// Whether S256 is among its code challenge methods; `None` where it does not say.
    pub has_s256: Option<bool>,
}

impl Metadata {
    fn read(document: &Map<String, Value>, url: &Url, allow_http: bool) -> Result<Self, String> {
        let endpoint = |name: &str| match document.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => {
                checked(text, url, allow_http).map(Some).map_err(|why| format!("{name} {why}"))
            }
            Some(_) => Err(format!("{name} is not a text")),
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

/// An endpoint is https, unless it and the document are on this machine or plain http was allowed.
fn checked(text: &str, document: &Url, allow_http: bool) -> Result<String, String> {
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
struct Known {
    document: Option<(Arc<Metadata>, Instant)>,
    failed: Option<(String, Instant)>,
}

/// The discovery document of one provider.
pub(super) struct Discovery {
    issuer: String,
    url: Result<Url, String>,
    allow_http: bool,
    fresh: Duration,
    known: Mutex<Known>,
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
            known: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        }
    }

    /// The document, from memory while it is fresh. A stale one serves while the provider is down.
    pub(super) async fn get(&self, client: &reqwest::Client) -> Result<Arc<Metadata>, LoginError> {
        if let Some(known) = self.at_hand() {
            return known;
        }
        // Whoever waited takes what the one before has fetched.
        let _turn = self.fetching.lock().await;
        if let Some(known) = self.at_hand() {
            return known;
        }
        let fetched = self.fetch(client).await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match fetched {
            Ok(document) => {
                let document = Arc::new(document);
                *known = Known { document: Some((Arc::clone(&document), Instant::now())), failed: None };
                Ok(document)
            }
            Err(reason) => {
                tracing::warn!(issuer = %self.issuer, reason, "discovery failed");
                known.failed = Some((reason.clone(), Instant::now()));
                match &known.document {
                    Some((document, _)) => Ok(Arc::clone(document)),
                    None => Err(LoginError::unavailable(reason, Some(RETRY))),
                }
            }
        }
    }

    /// The last document, however old.
    pub(super) fn known(&self) -> Option<Arc<Metadata>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.document.as_ref().map(|(document, _)| Arc::clone(document))
    }

    fn at_hand(&self) -> Option<Result<Arc<Metadata>, LoginError>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let has_just_failed = known.failed.as_ref().filter(|(_, at)| at.elapsed() < RETRY);
        match (&known.document, has_just_failed) {
            (Some((document, at)), failed) if at.elapsed() < self.fresh || failed.is_some() => {
                Some(Ok(Arc::clone(document)))
            }
            (None, Some((reason, at))) => {
                let wait = RETRY.saturating_sub(at.elapsed());
                Some(Err(LoginError::unavailable(reason.clone(), Some(wait))))
            }
            _ => None,
        }
    }

    async fn fetch(&self, client: &reqwest::Client) -> Result<Metadata, String> {
        let url = self.url.as_ref().map_err(Clone::clone)?;
        let failed = |error: reqwest::Error| format!("{url}: {}", outbound::reason(&error, TIMEOUT));
        let response = client.get(url.clone()).header("accept", "application/json").send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("{url} answered {}", response.status().as_u16()));
        }
        let body = outbound::body(response, BODY_BYTES).await.map_err(failed)?;
        let body = body.ok_or_else(|| format!("{url} answered more than {BODY_BYTES} bytes"))?;
        let document = json::object(&body).map_err(|_| format!("{url} is not an OIDC discovery document"))?;
        match document.get("issuer").and_then(Value::as_str) {
            // OpenID Connect Discovery section 4.3: it must be identical.
            Some(issuer) if issuer == self.issuer => {}
            Some(other) => {
                let other: String = other.chars().take(256).collect();
                return Err(format!("the provider calls itself {other:?}; write exactly that"));
            }
            None => return Err(format!("{url} is not an OIDC discovery document")),
        }
        Metadata::read(&document, url, self.allow_http).map_err(|why| format!("{url}: {why}"))
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
        Metadata::read(&document, &Url::parse(url).expect("a URL"), allow_http)
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
