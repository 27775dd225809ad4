//! The settings of sign-in by OpenID Connect at one provider, complete (docs/sign-in.md).

mod credential;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::check::Check;
use super::provider::{AuthorizedParties, Kinds};
use super::provider_preset::{LogoutRequest, RefreshTokens, SignIn, preset_named};
use super::{Audience, Claim, KeySource, Origin, ProviderSpec, Route, TrustedHeader, is_loopback_name};
use crate::config::{self, ClaimsFrom, ClientAuth, Config, LogoutScope};

pub use crate::config::{LoginPrompt, Pushed, Renew};
pub use credential::ClientCredential;

/// The default time from sign-in to the end of a session, where `browser.session.max_age` is not set.
const SESSION_MAX_AGE: Duration = Duration::from_secs(12 * 3_600);

/// The settings of a provider at which people sign in.
#[derive(Clone, Debug, PartialEq)]
pub struct LoginSpec {
    /// The provider's name.
    pub name: String,
    /// The settings by which ID tokens and login sessions are verified. The client id is the audience; the settings for
    /// Bearer tokens (`audience`, `authorized_parties`, `accept`, `remote`) do not apply.
    pub provider_spec: Arc<ProviderSpec>,
    /// The client id at the provider.
    pub client_id: String,
    /// The credential by which the proxy authenticates as that client.
    pub credential: ClientCredential,
    /// The place of the secret in a request to the token endpoint; `None`: as the discovery document lists.
    pub client_auth: Option<ClientAuth>,
    /// The requested scopes; `offline_access` is added where discovery lists it.
    pub scopes: Vec<String>,
    /// Whether the `UserInfo` endpoint is requested too.
    pub asks_userinfo: bool,
    /// The value of `prompt`, by which the provider asks its user again.
    pub prompt: Option<LoginPrompt>,
    /// The maximum age of the user's sign-in at the provider.
    pub max_age: Option<Duration>,
    /// Whether sessions are renewed by refresh token.
    pub renew: Renew,
    /// Whether authorization requests are pushed (RFC 9126).
    pub pushed: Pushed,
    /// Whether a sign-out redirects to the provider's `end_session_endpoint`.
    pub ends_provider_session: bool,
    /// Further parameters of the authorization request.
    pub parameters: Vec<(String, String)>,
    /// The label on the page that lists several providers.
    pub label: String,
    /// Whether a page of the proxy saves the URL's fragment before the sign-in.
    pub keep_fragment: bool,
    /// The time from sign-in to the end of a session.
    pub session_max_age: Duration,
    /// The time that a session continues after its tokens have expired, while the provider does not answer.
    pub renewal_grace: Duration,
    /// The proxy's own origin, from which every absolute URL is built.
    pub public_url: Origin,
    /// The path of the callback.
    pub callback_path: String,
    /// The claims that the policy uses, by their top-level names, in order. A session cookie holds no others.
    pub claims: Vec<String>,
}

impl LoginSpec {
    /// Returns the reason why this login may get no refresh token, with a remedy; `None` where the provider gives one
    /// without a request.
    #[must_use]
    pub fn refresh_token_doubt(&self) -> Option<String> {
        if self.renew == Renew::Off {
            return Some("renew: off".to_owned());
        }
        let is_certain = match self.refresh_tokens() {
            RefreshTokens::Always => true,
            RefreshTokens::ByScope => self.scopes.iter().any(|scope| scope == "offline_access"),
            RefreshTokens::ByParameter { parameter: (wanted, value), missing } => {
                let has_parameter = self.parameters.iter().any(|(name, given)| name == wanted && given == value);
                return (!has_parameter).then(|| missing.to_owned());
            }
        };
        (!is_certain)
            .then(|| "a provider that does not list the scope offline_access may give no refresh token".to_owned())
    }

    /// Returns the condition under which the provider gives a refresh token, by its preset.
    #[must_use]
    pub fn refresh_tokens(&self) -> RefreshTokens {
        preset_named(self.provider_spec.preset).map_or(RefreshTokens::ByScope, |preset| preset.refresh_tokens)
    }

    /// Returns the parameters of the provider's sign-out page, by its preset.
    #[must_use]
    pub fn logout_request(&self) -> LogoutRequest {
        preset_named(self.provider_spec.preset).map_or(LogoutRequest::Standard, |preset| preset.logout_request)
    }

    /// Returns the redirect URI of the callback.
    #[must_use]
    pub fn redirect_uri(&self) -> String {
        format!("{}{}", self.public_url, self.callback_path)
    }

    /// Returns the URI to which the provider redirects after a sign-out.
    #[must_use]
    pub fn signed_out_uri(&self) -> String {
        format!("{}/.vestibule/signed-out", self.public_url)
    }

    /// Returns the URI at which the provider reports sign-outs (back-channel logout).
    #[must_use]
    pub fn backchannel_logout_uri(&self) -> String {
        format!("{}/.vestibule/backchannel-logout", self.public_url)
    }
}

/// The parameters of the authorization request that the proxy sets itself.
const RESERVED_PARAMETERS: [&str; 17] = [
    "response_type",
    "response_mode",
    "client_id",
    "client_secret",
    "client_assertion",
    "client_assertion_type",
    "redirect_uri",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
    "prompt",
    "max_age",
    "request",
    "request_uri",
    "id_token_hint",
];

/// The claims that identify the user, the audience and the kind of a token. A session is checked by them at each use.
const IDENTITY_CLAIMS: [&str; 13] = [
    "iss",
    "sub",
    "aud",
    "azp",
    "iat",
    "exp",
    "sid",
    "jti",
    "auth_time",
    "token_use",
    "typ",
    "_claim_names",
    "client_id",
];

impl Check {
    pub(super) fn logins(
        &mut self,
        config: &Config,
        providers: &[Arc<ProviderSpec>],
        routes: &[Arc<Route>],
        headers: &[TrustedHeader],
        public_url: Option<&Origin>,
    ) -> Vec<Arc<LoginSpec>> {
        let logins = config.browser.login.as_ref().map_or(&[][..], |logins| &logins.0);
        if logins.is_empty() {
            if config.browser.login.is_some() {
                self.error("browser.login", "is an empty list; name a provider, or write null");
            }
            return Vec::new();
        }
        if config.browser.sign_in_url.is_some() {
            self.error("browser.sign_in_url", "is set beside browser.login, which has a page of its own; keep one");
        }
        let Some(public_url) = self.login_url(config, public_url) else { return Vec::new() };
        let session_max_age = config
            .browser
            .session
            .as_ref()
            .and_then(|session| session.as_ref()?.max_age)
            .map_or(SESSION_MAX_AGE, |age| age.0);
        let renewal_grace = routes.last().map_or(Duration::ZERO, |route| route.websocket.revalidate_grace);
        let times = SessionTimes { session_max_age, renewal_grace };
        let mut out: Vec<Arc<LoginSpec>> = Vec::new();
        for (index, login) in logins.iter().enumerate() {
            let at = format!("browser.login[{index}]");
            let Some(provider) = self.login_provider(&at, login, providers, config) else { continue };
            if out.iter().any(|other| other.name == provider.name) {
                self.error(format!("{at}.provider"), format!("provider {} is listed twice; keep one", provider.name));
            }
            let callback_path = if logins.len() == 1 {
                "/.vestibule/callback".to_owned()
            } else {
                format!("/.vestibule/callback/{}", provider.name)
            };
            if logins.len() > 1 && !is_path_segment(&provider.name) {
                self.error(
                    format!("{at}.provider"),
                    format!("\"{}\" becomes a part of the path of its callback; give the provider a name of letters, digits, - and _", provider.name),
                );
            }
            let claims = claims_of(&provider, routes, headers);
            if let Some(spec) = self.login(&at, login, &provider, callback_path, public_url, times, claims) {
                out.push(Arc::new(spec));
            }
        }
        out
    }

    /// Returns `public_url`, if the provider's way back can be built from it.
    fn login_url<'a>(&mut self, config: &Config, public_url: Option<&'a Origin>) -> Option<&'a Origin> {
        let Some(public_url) = public_url else {
            if config.public_url.is_none() {
                self.error(
                    "browser.login",
                    "needs public_url, from which the redirect URI is built: public_url: https://nb.example.com",
                );
            }
            return None;
        };
        if public_url.as_str().starts_with("http://") && !is_loopback_name(public_url.host()) {
            self.error(
                "public_url",
                "is plain http, and browser.login needs https: codes and cookies would cross the network in the clear",
            );
        }
        Some(public_url)
    }

    fn login_provider(
        &mut self,
        at: &str,
        login: &config::Login,
        providers: &[Arc<ProviderSpec>],
        config: &Config,
    ) -> Option<Arc<ProviderSpec>> {
        let found = match &login.provider {
            Some(name) => providers.iter().find(|provider| provider.name == *name),
            None if config.providers.len() > 1 => {
                self.error(at, "does not name its provider, and there are several; write provider: NAME");
                return None;
            }
            None => providers.first(),
        };
        let Some(provider) = found else {
            // If the provider that is meant has errors itself, those are reported already.
            if let Some(name) = &login.provider
                && !config
                    .providers
                    .iter()
                    .any(|written| written.name.as_deref().or(written.preset.as_deref()).unwrap_or("oidc") == name)
            {
                let known: Vec<&str> = providers.iter().map(|provider| provider.name.as_str()).collect();
                self.error(
                    format!("{at}.provider"),
                    format!("\"{name}\" is not the name of a provider; known here: {}", known.join(", ")),
                );
            }
            return None;
        };
        let sign_in = preset_named(provider.preset).map(|preset| preset.sign_in);
        if let Some(SignIn::Unavailable(remedy)) = sign_in {
            self.error(format!("{at}.provider"), format!("preset {} cannot sign people in: {remedy}", provider.preset));
            return None;
        }
        if matches!(provider.keys, KeySource::Secret(_)) {
            self.error(format!("{at}.provider"), "signs with a shared secret; ID tokens need public keys");
            return None;
        }
        Some(Arc::clone(provider))
    }

    #[expect(clippy::too_many_arguments, reason = "all of one login, each made once by the caller")]
    fn login(
        &mut self,
        at: &str,
        login: &config::Login,
        provider: &Arc<ProviderSpec>,
        callback_path: String,
        public_url: &Origin,
        times: SessionTimes,
        claims: Vec<String>,
    ) -> Option<LoginSpec> {
        let client_id = login.client_id.clone().filter(|id| !id.trim().is_empty());
        if client_id.is_none() {
            self.error(at, "has no client_id; write the id of the client that you registered at the provider");
        }
        let credential = self.client_credential(at, login);
        let scopes = self.scopes(at, login);
        self.check_parameters(at, login);
        let is_open = preset_named(provider.preset).is_some_and(|preset| preset.quirks.is_open_to_everyone);
        if is_open && provider.allow.is_empty() && provider.require.claims.is_empty() {
            self.warn_at(at, format!(
                "everyone with an account of this provider may sign in; set allow: {{ emails: […] }} or {{ email_domains: […] }} of provider {}",
                provider.name
            ));
        }
        let client_id = client_id?;
        Some(LoginSpec {
            name: provider.name.clone(),
            provider_spec: Arc::new(provider_spec(provider, &client_id)),
            credential: credential?,
            client_auth: login.client_auth,
            scopes,
            asks_userinfo: login.claims_from == ClaimsFrom::Userinfo,
            prompt: login.prompt,
            max_age: login.max_age.map(|age| age.0),
            renew: login.renew,
            pushed: login.pushed,
            ends_provider_session: login.logout == LogoutScope::Provider,
            parameters: login.parameters.clone().into_iter().collect(),
            label: login.label.clone().unwrap_or_else(|| provider.name.clone()),
            keep_fragment: login.keep_fragment,
            session_max_age: times.session_max_age,
            renewal_grace: times.renewal_grace,
            public_url: public_url.clone(),
            callback_path,
            claims,
            client_id,
        })
    }

    fn scopes(&mut self, at: &str, login: &config::Login) -> Vec<String> {
        let scopes = login.scopes.clone().unwrap_or_else(|| vec!["openid".to_owned(), "email".to_owned()]);
        if !scopes.iter().any(|scope| scope == "openid") {
            self.error(format!("{at}.scopes"), "lacks openid, without which a provider gives no ID token; add openid");
        }
        for (index, scope) in scopes.iter().enumerate() {
            // The characters allowed by RFC 6749 section 3.3.
            let fits = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            if scope.is_empty() || !scope.bytes().all(fits) {
                self.error(
                    format!("{at}.scopes[{index}]"),
                    format!("\"{scope}\" is not one scope; write each by itself"),
                );
            }
        }
        scopes
    }

    /// Rejects parameters that every request to the provider has.
    fn check_parameters(&mut self, at: &str, login: &config::Login) {
        for name in login.parameters.keys() {
            if RESERVED_PARAMETERS.contains(&name.as_str()) {
                let key = match name.as_str() {
                    "scope" => "; here it is `scopes`",
                    "prompt" | "max_age" | "client_id" => "; it is a key of its own",
                    _ => "",
                };
                self.error(format!("{at}.parameters.{name}"), format!("is set by Vestibule itself{key}"));
            }
        }
    }
}

/// The durations that end sessions.
#[derive(Clone, Copy)]
struct SessionTimes {
    session_max_age: Duration,
    renewal_grace: Duration,
}

/// Returns whether a text is letters, digits, `-` and `_` only.
fn is_path_segment(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Returns the settings by which ID tokens for this client are verified.
fn provider_spec(provider: &ProviderSpec, client_id: &str) -> ProviderSpec {
    ProviderSpec {
        audience: Audience::OneOf(vec![client_id.to_owned()]),
        authorized_parties: AuthorizedParties::Client(client_id.to_owned()),
        // The kind of these tokens is known from their source, and an ID token need not name its kind.
        accept: Kinds { access_token: true, id_token: true, template: false },
        remote: None,
        ..provider.clone()
    }
}

/// Returns the top-level names of all claims that decide about users or name them under this policy.
fn claims_of(provider: &ProviderSpec, routes: &[Arc<Route>], headers: &[TrustedHeader]) -> Vec<String> {
    let mut names: BTreeSet<String> = IDENTITY_CLAIMS.iter().map(|name| (*name).to_owned()).collect();
    let mut add = |claim: &Claim| {
        let name = match claim {
            Claim::UserId => "sub".to_owned(),
            Claim::Name(name) => name.clone(),
            Claim::Pointer(pointer) => {
                let first = pointer.trim_start_matches('/').split('/').next().unwrap_or_default();
                first.replace("~1", "/").replace("~0", "~")
            }
        };
        if name == "email" {
            names.insert("email_verified".to_owned());
        }
        names.insert(name);
    };
    add(&provider.user_id);
    let requirements = routes.iter().map(|route| &route.require).chain([&provider.require]);
    requirements.flat_map(|require| &require.claims).for_each(|(claim, _)| add(claim));
    for header in headers {
        add(&header.claim);
    }
    if !provider.allow.emails.is_empty() || !provider.allow.email_domains.is_empty() {
        add(&Claim::Name("email".to_owned()));
    }
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::validate;

    fn findings(yaml: &str) -> Vec<(String, String)> {
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        validate(&config)
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|finding| (finding.path.clone(), finding.message.clone()))
            .collect()
    }

    const BASE: &str = "upstream: http://127.0.0.1:1\n";
    const PUBLIC: &str = "public_url: https://nb.example.com\n";
    const PROVIDER: &str = "providers: [{ preset: oidc, issuer: \"https://id.example.com\" }]\n";

    #[test]
    fn each_error_of_a_login_names_its_key() {
        for (yaml, path, part) in [
            (format!("{BASE}{PROVIDER}browser: {{ login: {{ client_id: a }} }}"), "browser.login", "needs public_url"),
            (
                format!(
                    "{BASE}{PUBLIC}{PROVIDER}browser: {{ sign_in_url: /in, login: {{ client_id: a }} }}\nroutes: [{{ path: /in, auth: none }}]"
                ),
                "browser.sign_in_url",
                "keep one",
            ),
            (
                format!("{BASE}{PUBLIC}{PROVIDER}browser: {{ login: {{ client_id: a, parameters: {{ state: x }} }} }}"),
                "browser.login[0].parameters.state",
                "by Vestibule itself",
            ),
            (
                format!("{BASE}{PUBLIC}{PROVIDER}browser: {{ login: {{ client_id: a, scopes: [email] }} }}"),
                "browser.login[0].scopes",
                "lacks openid",
            ),
            (
                format!("{BASE}{PUBLIC}{PROVIDER}browser: {{ login: [{{ client_id: a }}, {{ client_id: b }}] }}"),
                "browser.login[1].provider",
                "twice",
            ),
            (
                format!(
                    "{BASE}{PUBLIC}{PROVIDER}browser: {{ login: {{ client_id: a, client_secret: b, client_assertion_file: /c }} }}"
                ),
                "browser.login[0]",
                "more than one of",
            ),
            (
                format!("{BASE}{PUBLIC}{PROVIDER}browser: {{ login: {{ client_id: a, client_auth: basic }} }}"),
                "browser.login[0].client_auth",
                "needs client_secret_file",
            ),
            (
                format!(
                    "{BASE}{PUBLIC}{PROVIDER}browser: {{ login: {{ client_id: a, client_secret: b, client_auth: private_key_jwt }} }}"
                ),
                "browser.login[0].client_auth",
                "needs client_key_file",
            ),
            (format!("{BASE}{PUBLIC}{PROVIDER}browser: {{ login: {{}} }}"), "browser.login[0]", "no client_id"),
            (
                format!("{BASE}{PUBLIC}{PROVIDER}browser: {{ login: {{ client_id: a, provider: other }} }}"),
                "browser.login[0].provider",
                "not the name",
            ),
            (
                format!("{BASE}public_url: http://nb.example.com\n{PROVIDER}browser: {{ login: {{ client_id: a }} }}"),
                "public_url",
                "https",
            ),
            (
                format!(
                    "{BASE}{PUBLIC}providers: [{{ preset: clerk, issuer: \"https://c.example.com\" }}]\nbrowser: {{ login: {{ client_id: a }} }}"
                ),
                "browser.login[0].provider",
                "Clerk",
            ),
        ] {
            let found = findings(&yaml);
            assert!(found.iter().any(|(at, message)| at == path && message.contains(part)), "{yaml}\n{found:?}");
        }
    }

    #[test]
    fn a_login_is_judged_by_its_client_id_and_takes_no_bearer_token() {
        let yaml = format!(
            "{BASE}{PUBLIC}{PROVIDER}browser: {{ login: {{ client_id: a }} }}\nidentity: {{ headers: {{ X-User-Id: sub, X-Groups: /groups/0 }} }}"
        );
        let config = crate::config::load_yaml(&yaml).expect("loads").config;
        let policy = validate(&config).expect("valid");
        assert_eq!(policy.providers[0].audience, Audience::OneOf(Vec::new()), "for Bearer tokens");
        let login = &policy.browser.logins[0];
        assert_eq!(login.provider_spec.audience, Audience::OneOf(vec!["a".to_owned()]));
        assert_eq!(login.redirect_uri(), "https://nb.example.com/.vestibule/callback");
        assert_eq!(login.session_max_age, Duration::from_secs(43_200));
        assert!(login.claims.contains(&"groups".to_owned()) && !login.claims.contains(&"email".to_owned()));
        assert!(policy.browser.session.is_some(), "implied");
    }
}
