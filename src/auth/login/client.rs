//! Sends requests to a provider as its client: to the token, pushed-authorization, revocation and `UserInfo` endpoints.
//! Redirects are not followed; a response has at most 64 KiB and ten seconds.
//!
//! The `oauth2` crate is not used: only its parameter names would be, and it depends on a second implementation of
//! SHA-256, a second `rand` and `chrono`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::Header;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::{BODY_BYTES, Login, LoginError, Metadata, TIMEOUT};
use crate::auth::{Token, outbound, read_small_file, unix_seconds};
use crate::json;
use crate::policy::{ClientAuth, ClientCredential, LoginSpec};
use crate::random::random;

/// The maximum length of an assertion file in bytes.
const ASSERTION_BYTES: usize = 16 << 10;
/// The validity of an assertion that the proxy signs, in seconds.
const ASSERTION_LIFE: u64 = 60;
/// The upper bound on a provider's `Retry-After`.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// A function that decides whether a request may still be sent.
pub(super) type MaySend<'a> = &'a (dyn Fn() -> Result<(), LoginError> + Send + Sync);

/// A token from the provider. Its text is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ProviderToken(Arc<str>);

impl ProviderToken {
    pub(super) fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Converts the token for forwarding, or returns `None` if an `Authorization` header cannot carry it.
    pub(super) fn to_token(&self) -> Option<Token> {
        Token::parse(&self.0, BODY_BYTES).ok()
    }

    /// Returns the token's text, for requests to the provider.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ProviderToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProviderToken({} bytes)", self.0.len())
    }
}

/// A response of the token endpoint.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) id_token: Option<ProviderToken>,
    /// Present only if its type is Bearer.
    pub(super) access_token: Option<ProviderToken>,
    pub(super) refresh_token: Option<ProviderToken>,
    /// The lifetime of the access token, in seconds.
    pub(super) expires_in: Option<u64>,
}

impl Tokens {
    fn from_response(answer: &Map<String, Value>) -> Result<Self, LoginError> {
        let token = |name: &str| match answer.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            // A header or a form can carry visible ASCII only.
            Some(Value::String(text)) if text.bytes().all(|b| (0x21..=0x7e).contains(&b)) => {
                Ok(Some(ProviderToken::new(text)))
            }
            Some(_) => Err(LoginError::refused(format!("the token endpoint answered a {name} that is not a token"))),
        };
        let is_bearer = match answer.get("token_type") {
            Some(Value::String(kind)) => kind.eq_ignore_ascii_case("bearer"),
            _ => false,
        };
        let expires_in = answer.get("expires_in").and_then(|value| match value {
            Value::Number(number) => number.as_u64(),
            // Some providers write the number as a string.
            Value::String(text) => text.parse().ok(),
            _ => None,
        });
        Ok(Self {
            id_token: token("id_token")?,
            access_token: token("access_token")?.filter(|_| is_bearer),
            refresh_token: token("refresh_token")?,
            expires_in,
        })
    }
}

/// A form in a request body.
#[derive(Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn add(&mut self, name: &str, value: &str) -> &mut Self {
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a parameter unless the form has it.
    fn add_once(&mut self, name: &str, value: &str) -> &mut Self {
        if self.0.iter().all(|(known, _)| known != name) {
            self.add(name, value);
        }
        self
    }

    fn encode(self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(self.0).finish()
    }
}

/// A response that was read completely.
struct ProviderResponse {
    status: u16,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Login {
    /// Exchanges a code for tokens.
    pub(super) async fn exchange(
        &self,
        metadata: &Metadata,
        code: &str,
        verifier: &str,
        client: Option<IpAddr>,
    ) -> Result<Tokens, LoginError> {
        let mut form = Form::new();
        form.add("grant_type", "authorization_code").add("code", code).add("code_verifier", verifier);
        form.add("redirect_uri", &self.spec.redirect_uri());
        let _permit = self.sign_in_permit(client)?;
        self.tokens(metadata, form, &|| Ok(())).await
    }

    /// Exchanges a refresh token for new tokens. `may_send` is called directly before the request is sent.
    pub(super) async fn refresh(
        &self,
        metadata: &Metadata,
        token: &ProviderToken,
        may_send: MaySend<'_>,
    ) -> Result<Tokens, LoginError> {
        let mut form = Form::new();
        form.add("grant_type", "refresh_token").add("refresh_token", token.expose());
        self.tokens(metadata, form, may_send).await
    }

    async fn tokens(&self, metadata: &Metadata, form: Form, may_send: MaySend<'_>) -> Result<Tokens, LoginError> {
        request_tokens(&self.spec, self.http().map_err(LoginError::down)?, metadata, form, may_send).await
    }

    /// Pushes an authorization request (RFC 9126) and returns its `request_uri`.
    pub(super) async fn push(
        &self,
        metadata: &Metadata,
        endpoint: &str,
        form: Form,
        client: Option<IpAddr>,
    ) -> Result<String, LoginError> {
        let _permit = self.sign_in_permit(client)?;
        let response = self.post(metadata, endpoint, form).await?;
        let what = "the pushed authorization request endpoint";
        let answer = json::object(&response.body).ok();
        let text = |name: &str| answer.as_ref().and_then(|answer| answer.get(name)).and_then(Value::as_str);
        match (response.status, text("request_uri"), text("error")) {
            (200 | 201, Some(uri), _) if !uri.is_empty() => Ok(uri.to_owned()),
            (status @ 400..=499, _, Some(code)) if refuses_client(status, code) => {
                Err(client_refused(&self.spec, code))
            }
            (400..=499, _, Some(code)) => Err(LoginError::PushRefused(printable(code))),
            (status, ..) => Err(LoginError::unavailable(format!("{what} answered {status}"), response.retry_after)),
        }
    }

    /// Revokes a token (RFC 7009), if the provider has that endpoint.
    pub(super) async fn revoke(&self, metadata: &Metadata, token: &ProviderToken) -> Result<(), LoginError> {
        let Some(endpoint) = &metadata.revocation_endpoint else { return Ok(()) };
        let mut form = Form::new();
        form.add("token", token.expose()).add("token_type_hint", "refresh_token");
        let _permit = self.session_permit().await?;
        let response = self.post(metadata, endpoint, form).await?;
        if response.status == 200 { Ok(()) } else { Err(response.unexpected("the revocation endpoint")) }
    }

    /// Requests the claims of the user to whom the access token belongs.
    pub(super) async fn userinfo(
        &self,
        metadata: &Metadata,
        token: &ProviderToken,
    ) -> Result<Map<String, Value>, LoginError> {
        let what = "the userinfo endpoint";
        let Some(endpoint) = &metadata.userinfo_endpoint else {
            return Err(LoginError::refused(format!("claims_from: userinfo, and the provider lists no {what}")));
        };
        let request = self.http().map_err(LoginError::down)?.get(endpoint.as_str());
        let request = request.bearer_auth(token.expose()).header("accept", "application/json");
        let response = read(request).await?;
        match json::object(&response.body) {
            Ok(claims) if response.status == 200 => Ok(claims),
            _ => Err(response.unexpected(what)),
        }
    }

    async fn post(&self, metadata: &Metadata, endpoint: &str, form: Form) -> Result<ProviderResponse, LoginError> {
        post(&self.spec, self.http().map_err(LoginError::down)?, metadata, endpoint, form, &|| Ok(())).await
    }
}

/// The result of asking a provider whether it accepts the proxy as its client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientProbe {
    /// The provider accepts the client.
    Accepted,
    /// The provider's response does not show it.
    Unknown(String),
}

/// Sends a code that the token endpoint never issued. A provider authenticates the client first (RFC 6749 section 5.2),
/// so `invalid_grant` means that it accepts the client.
///
/// # Errors
/// Returns [`LoginError::ClientRefused`], or [`LoginError::Unavailable`].
pub(super) async fn probe_client(
    spec: &LoginSpec,
    http: &reqwest::Client,
    metadata: &Metadata,
) -> Result<ClientProbe, LoginError> {
    let made_up = random::<32>()?;
    let made_up = URL_SAFE_NO_PAD.encode(made_up);
    let mut form = Form::new();
    form.add("grant_type", "authorization_code").add("code", &made_up).add("code_verifier", &made_up);
    form.add("redirect_uri", &spec.redirect_uri());
    match request_tokens(spec, http, metadata, form, &|| Ok(())).await {
        Err(LoginError::InvalidGrant) => Ok(ClientProbe::Accepted),
        Err(error @ (LoginError::ClientRefused { .. } | LoginError::Unavailable { .. })) => Err(error),
        Err(other) => Ok(ClientProbe::Unknown(other.to_string())),
        Ok(_) => Ok(ClientProbe::Unknown("the token endpoint accepted a code that it never gave".to_owned())),
    }
}

async fn request_tokens(
    spec: &LoginSpec,
    http: &reqwest::Client,
    metadata: &Metadata,
    form: Form,
    may_send: MaySend<'_>,
) -> Result<Tokens, LoginError> {
    let response = post(spec, http, metadata, &metadata.token_endpoint, form, may_send).await?;
    let what = "the token endpoint";
    let answer = json::object(&response.body).ok();
    let code = answer.as_ref().and_then(|answer| answer.get("error")).and_then(Value::as_str);
    match (response.status, &answer, code) {
        (200, Some(answer), _) => Tokens::from_response(answer),
        (400 | 401, _, Some("invalid_grant")) => Err(LoginError::InvalidGrant),
        (status @ (400 | 401), _, Some(code)) if refuses_client(status, code) => Err(client_refused(spec, code)),
        (400, _, Some(code)) => Err(LoginError::refused(format!("{what} answered {}", printable(code)))),
        (401, ..) => Err(client_refused(spec, "401")),
        _ => Err(response.unexpected(what)),
    }
}

/// Returns whether an error response means that the client was not authenticated. RFC 6749 section 5.2 defines
/// `invalid_client`, with status 401; Keycloak responds `unauthorized_client`, Auth0 401 `access_denied`.
fn refuses_client(status: u16, code: &str) -> bool {
    status == 401 || matches!(code, "invalid_client" | "unauthorized_client")
}

fn client_refused(spec: &LoginSpec, answer: &str) -> LoginError {
    let key = match &spec.credential {
        ClientCredential::Public => "browser.login.client_id",
        ClientCredential::Secret(_) => "browser.login.client_secret",
        ClientCredential::Key(_) => "browser.login.client_key_file",
        ClientCredential::AssertionFile(_) => "browser.login.client_assertion_file",
    };
    LoginError::ClientRefused { answer: printable(answer), key }
}

/// Posts a form with the client's authentication.
async fn post(
    spec: &LoginSpec,
    http: &reqwest::Client,
    metadata: &Metadata,
    endpoint: &str,
    mut form: Form,
    may_send: MaySend<'_>,
) -> Result<ProviderResponse, LoginError> {
    let client_id = spec.client_id.as_str();
    let mut basic = None;
    match &spec.credential {
        ClientCredential::Public => {
            form.add_once("client_id", client_id);
        }
        ClientCredential::Secret(secret) => {
            let secret = String::from_utf8_lossy(secret.expose()).into_owned();
            if sends_basic(spec, metadata) {
                // RFC 6749 section 2.3.1: both are form-encoded before Base64.
                let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                basic = Some(STANDARD.encode(format!("{}:{}", encoded(client_id), encoded(&secret))));
            } else {
                form.add_once("client_id", client_id).add("client_secret", &secret);
            }
        }
        ClientCredential::Key(_) | ClientCredential::AssertionFile(_) => {
            let assertion = assertion(spec).await?;
            form.add_once("client_id", client_id)
                .add("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
                .add("client_assertion", &assertion);
        }
    }
    let request = http.post(endpoint);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let mut request = request.header("accept", "application/json").body(form.encode());
    if let Some(basic) = basic {
        let mut value = reqwest::header::HeaderValue::try_from(format!("Basic {basic}"))
            .map_err(|_| LoginError::refused("the client's secret cannot be sent in a header".to_owned()))?;
        value.set_sensitive(true);
        request = request.header("authorization", value);
    }
    may_send()?;
    read(request).await
}

/// Returns whether the secret is sent by HTTP Basic. If not configured, it is unless discovery lists only
/// `client_secret_post`.
fn sends_basic(spec: &LoginSpec, metadata: &Metadata) -> bool {
    let lists = |name: &str| metadata.auth_methods.iter().any(|method| method == name);
    match spec.client_auth {
        Some(ClientAuth::Basic) => true,
        Some(ClientAuth::Post) => false,
        _ => lists("client_secret_basic") || !lists("client_secret_post"),
    }
}

/// Returns the client assertion (RFC 7523): signed here, or read from the file that the platform writes.
async fn assertion(spec: &LoginSpec) -> Result<String, LoginError> {
    match &spec.credential {
        ClientCredential::Key(key) => {
            let mut header = Header::new(key.algorithm);
            header.kid = Some(key.thumbprint.clone());
            let id = random::<16>()?;
            let now = unix_seconds();
            let claims = json!({
                "iss": spec.client_id, "sub": spec.client_id,
                "aud": spec.provider_spec.issuer, "jti": URL_SAFE_NO_PAD.encode(id),
                "iat": now, "exp": now + ASSERTION_LIFE,
            });
            jsonwebtoken::encode(&header, &claims, &key.key)
                .map_err(|error| LoginError::down(format!("the client assertion could not be signed: {error}")))
        }
        ClientCredential::AssertionFile(path) => {
            let text = read_small_file(path, ASSERTION_BYTES)
                .await
                .map_err(|error| LoginError::down(format!("{}: {error}", path.display())))?;
            let too_large = || LoginError::down(format!("{} is larger than {ASSERTION_BYTES} bytes", path.display()));
            Ok(text.ok_or_else(too_large)?.trim().to_owned())
        }
        ClientCredential::Public | ClientCredential::Secret(_) => Ok(String::new()),
    }
}

impl ProviderResponse {
    /// Returns the error for a response that lacks the requested data: unavailable if its status indicates that,
    /// otherwise refused.
    fn unexpected(&self, what: &str) -> LoginError {
        let reason = format!("{what} answered {} without what was requested", self.status);
        match self.status {
            429 | 500..=599 => LoginError::unavailable(reason, self.retry_after),
            _ => LoginError::refused(reason),
        }
    }
}

async fn read(request: reqwest::RequestBuilder) -> Result<ProviderResponse, LoginError> {
    let failed = |error: reqwest::Error| LoginError::unavailable(outbound::reason(&error, TIMEOUT), None);
    let response = request.send().await.map_err(failed)?;
    let status = response.status().as_u16();
    if (300..400).contains(&status) {
        return Err(LoginError::refused(format!("the provider answered {status}; redirects are not followed")));
    }
    let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_RETRY));
    let body = outbound::body(response, BODY_BYTES).await.map_err(failed)?;
    let body =
        body.ok_or_else(|| LoginError::refused(format!("the provider answered more than {BODY_BYTES} bytes")))?;
    Ok(ProviderResponse { status, retry_after, body })
}

/// Truncates a provider's error code and replaces characters that are not visible ASCII (RFC 6749 section 5.2), for log
/// and page.
#[must_use]
pub fn printable(code: &str) -> String {
    code.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_strictly_and_never_printed() {
        let read = |answer: Value| Tokens::from_response(answer.as_object().expect("object"));
        let tokens = read(json!({
            "id_token": "a.b.c", "access_token": "secret-access", "token_type": "bearer", "expires_in": "300",
            "refresh_token": null,
        }))
        .expect("fits");
        assert_eq!(tokens.access_token.as_ref().map(ProviderToken::expose), Some("secret-access"));
        assert_eq!((tokens.expires_in, tokens.refresh_token.is_none()), (Some(300), true));
        assert!(!format!("{tokens:?}").contains("secret-access"));
        let other = read(json!({ "access_token": "x", "token_type": "DPoP" })).expect("fits");
        assert!(other.access_token.is_none(), "no Bearer token");
        for bad in [json!({ "id_token": 7 }), json!({ "access_token": "a b" }), json!({ "refresh_token": ["x"] })] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
