//! Verifies session cookies: the claims in a cookie are checked by the provider's current configuration and keys,
//! and by revocations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::identify::identify_again;
use super::super::identity::VerifiedBy;
use super::super::login::{
    CompletedSignIn, LoginCookie, LoginSession, LoginSessionCookie, LoginSessions, OpenLoginSocket,
};
use super::super::provider_state::ProviderState;
use super::super::remote::{Priority, RemoteAnswer, RemoteCheck};
use super::super::{
    BrowserSession, Carrier, Identity, IssuedCookie, Rejection, SessionCookie, SessionCookies, Token, claims,
    unix_seconds,
};
use super::{Verified, Verifier};

/// The content of a session cookie that was decrypted and not checked further.
pub struct OpenedSessionCookie {
    /// The browser session.
    pub session: BrowserSession,
    /// The provider's name.
    pub provider: String,
    /// The user id, if the configuration still has the provider; for the log.
    pub user: Option<String>,
    /// The whole content, if the session began with a sign-in.
    login: Option<LoginSessionCookie>,
}

impl OpenedSessionCookie {
    /// Returns whether the session began with a sign-in.
    #[must_use]
    pub fn is_of_a_sign_in(&self) -> bool {
        self.login.is_some()
    }

    /// Returns the session at the provider in which the session began, if the cookie names it.
    #[must_use]
    pub fn session_at_provider(&self) -> Option<&str> {
        self.login.as_ref()?.claims().get("sid")?.as_str()
    }
}

impl Verifier {
    /// Verifies a session cookie: decrypts it, and checks its expiry, everything that the current configuration would
    /// check of its token, and revocations. With `revalidate_every` the provider is asked too.
    ///
    /// # Errors
    /// Returns the reason why the cookie counts as absent, or that this cannot be decided now
    /// ([`Rejection::is_unavailable`]).
    pub async fn verify_session_cookie(&self, cookie: &SessionCookie) -> Result<Verified, Rejection> {
        let result = self.session_cookie_identity(cookie).await;
        let outcome = result.as_ref().map_or_else(Rejection::outcome, |_| "accepted");
        let provider = result.as_ref().ok().and_then(|(identity, _)| {
            self.providers.iter().find(|provider| provider.spec.name == identity.provider().name)
        });
        let label = provider.map_or(&self.no_provider, |provider| &provider.label);
        self.metrics.credentials.verified(label, Carrier::Cookie.name(), outcome);
        result.map(|(identity, token)| Verified { identity: Arc::new(identity), token, carrier: Carrier::Cookie })
    }

    /// Decrypts a session cookie, without any other check; to end its session. Returns `None` if another key was used.
    #[must_use]
    pub fn open_session_cookie(&self, cookie: &SessionCookie) -> Option<OpenedSessionCookie> {
        let sessions = self.session_cookies.as_ref()?;
        let user = |provider: &str, claims| claims::user_id(self.provider(provider)?, claims).ok();
        if let Some(logins) = &self.logins
            && let Some(opened) = logins.decrypt_session_cookie(cookie, sessions.key_fingerprint())
        {
            return Some(OpenedSessionCookie {
                session: opened.session.clone(),
                provider: opened.provider.clone(),
                user: user(&opened.provider, opened.claims()),
                login: Some(opened),
            });
        }
        let content = sessions.decrypt(cookie)?;
        let user = user(&content.provider, &content.claims);
        Some(OpenedSessionCookie { session: content.session, provider: content.provider, user, login: None })
    }

    /// Returns the record of the session that a sign-in began, without any check, to end it. It may be read from the shared
    /// state.
    pub async fn login_record_of(&self, opened: &OpenedSessionCookie) -> Option<Arc<LoginSession>> {
        self.logins.as_ref()?.record_of(opened.login.as_ref()?).await
    }

    /// Begins a login session after a completed sign-in, in the browser that has this login cookie.
    #[must_use]
    pub fn begin_login_session(
        &self,
        completed: CompletedSignIn,
        cookie: &LoginCookie,
    ) -> Option<(IssuedCookie, Arc<LoginSession>)> {
        self.logins.as_ref()?.begin(completed, cookie, self.session_cookies.as_ref()?.key_fingerprint())
    }

    /// Registers an open WebSocket of a login session. Returns `None` when this process has no record of the session.
    #[must_use]
    pub fn open_login_socket(&self, session: &BrowserSession) -> Option<OpenLoginSocket> {
        let sessions = &self.logins.as_ref()?.sessions;
        Some(sessions.get(&session.id)?.socket(sessions))
    }

    /// Moves a WebSocket to the session that replaced its session, if one did. Returns whether anything has changed
    /// since the last call.
    #[must_use]
    pub fn follow_login_session(&self, socket: &mut OpenLoginSocket) -> bool {
        let Some(sessions) = self.logins.as_ref().map(|logins| &logins.sessions) else { return true };
        match socket.session().latest() {
            Some(next) => {
                *socket = next.socket(sessions);
                socket.note_move();
                true
            }
            None => socket.has_changed(),
        }
    }

    /// Returns the identity of a login session by the current configuration.
    ///
    /// # Errors
    /// Returns the reason why the session ends, or that this cannot be decided now.
    pub fn login_session_identity(&self, session: &LoginSession) -> Result<Identity, Rejection> {
        let gone = || Rejection::UnknownIssuer(session.provider.to_string());
        let login = self.logins.as_ref().and_then(|logins| logins.get(&session.provider)).ok_or_else(gone)?;
        // A changed session secret ends every session, including those with an open WebSocket.
        let key = self.session_cookies.as_ref().map(SessionCookies::key_fingerprint);
        if key != Some(session.session.key) {
            return Err(Rejection::Malformed("the session's cookie is encrypted with another key"));
        }
        let (ends_at, now) = (session.ends_at_under(login), unix_seconds());
        if now >= ends_at {
            return Err(Rejection::Expired { exp: ends_at, now });
        }
        if session.is_unavailable(login.spec.renewal_grace) {
            return Err(session.unavailable());
        }
        login.reidentify(&session.identity(), ends_at)
    }

    /// Returns the login sessions of which this process has records.
    #[must_use]
    pub fn login_sessions(&self) -> Option<&Arc<LoginSessions>> {
        self.logins.as_ref().map(|logins| &logins.sessions)
    }

    /// Returns the identity, and the token if the session began with a sign-in.
    async fn session_cookie_identity(&self, cookie: &SessionCookie) -> Result<(Identity, Option<Token>), Rejection> {
        let cookies =
            self.session_cookies.as_ref().ok_or(Rejection::Malformed("session cookies are not configured"))?;
        if let Some(logins) = &self.logins
            && let Some(opened) = logins.decrypt_session_cookie(cookie, cookies.key_fingerprint())
        {
            // This is checked before the renewal too, so that an ended session is not renewed.
            if self.revocations.is_ended(&opened.session, unix_seconds()) {
                return Err(Rejection::Revoked("session"));
            }
            let (identity, known) = logins.verify_session(opened).await?;
            // This is checked last, so that a revocation that arrives while the provider is asked takes effect.
            self.revocations.check_presented(&identity, unix_seconds())?;
            return Ok((identity, known.and_then(|known| known.passed_token())));
        }
        let content = cookies
            .decrypt(cookie)
            .ok_or(Rejection::Malformed("not a session cookie of this proxy, or encrypted with another key"))?;
        let is_its_provider = |provider: &&Arc<ProviderState>| provider.spec.name == content.provider;
        let provider = self
            .providers
            .iter()
            .find(is_its_provider)
            .ok_or_else(|| Rejection::UnknownIssuer(content.provider.clone()))?;
        let now = unix_seconds();
        let mut times = content.times;
        if needs_token_for_remote_check(provider, &content.claims) {
            times.expires_at = times.expires_at.min(times.token_end);
        }
        let until = cookies.expiry_of(times);
        if now >= until {
            return Err(Rejection::Expired { exp: until, now });
        }
        let (preset, session) = (content.preset.clone(), content.session.clone());
        let session = BrowserSession { cookie_times: Some(times), ..session };
        let identity = identify_again(&provider.spec, &preset, content.into_claims(until))?.in_session(Some(session));
        // The key of an expired token is not checked, or every key rotation would end the sessions that continue after
        // their tokens. It is checked where the provider has no issuer, because nothing else distinguishes this
        // provider from one of the same name in another deployment with the same secret.
        if let VerifiedBy::Key { fingerprint, algorithm, until } = identity.verified_by()
            && (now < until || provider.spec.issuer.is_none())
            && !provider.keys.is_usable_or_refetch(fingerprint, algorithm).await?
        {
            return Err(Rejection::UnknownKey(None));
        }
        self.revalidate_browser_session(&identity, cookies.spec().revalidate_every).await?;
        // This is checked last, so that a revocation that arrives while the provider is asked takes effect.
        self.revocations.check_presented(&identity, now)?;
        Ok((identity, None))
    }

    /// Asks the provider about a browser session, where that is possible without a token, unless the provider has
    /// confirmed the session within `every`.
    async fn revalidate_browser_session(&self, identity: &Identity, every: Option<Duration>) -> Result<(), Rejection> {
        let provider = self.providers.iter().find(|provider| provider.spec.name == identity.provider().name);
        let Some(remote) = provider.and_then(|provider| provider.remote.as_ref()) else { return Ok(()) };
        let Some(session) = identity.session_id().filter(|_| !remote.spec().question.carries_token()) else {
            return Ok(());
        };
        // A provider that is asked about every signed token is asked here too, as often as its cached answers expire.
        let cache_ttl = (!remote.spec().verifies_opaque_tokens).then_some(remote.spec().cache);
        let Some(every) = every.into_iter().chain(cache_ttl).min() else { return Ok(()) };
        let Some(id) = identity.browser_session().map(|session| Arc::clone(&session.id)) else { return Ok(()) };
        if self.confirmed_sessions.get(&id).is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        let name = || identity.provider().name.clone();
        match remote.ask(&RemoteCheck::session(session), Priority::BrowserSession).await {
            Ok(RemoteAnswer::Active(_)) => {
                self.confirmed_sessions.insert(id, Instant::now());
                Ok(())
            }
            Ok(RemoteAnswer::Inactive(reason)) => {
                Err(Rejection::NoSession { provider: name(), reason: reason.to_string() })
            }
            Err(error) => Err(Rejection::RemoteUnavailable {
                provider: name(),
                reason: error.reason,
                retry_after: error.retry_after,
            }),
        }
    }
}

/// Returns whether the provider is asked about every signed token, and could be asked about this session only with the
/// token, which the cookie does not contain. Such a session ends with its token.
fn needs_token_for_remote_check(provider: &ProviderState, claims: &serde_json::Map<String, serde_json::Value>) -> bool {
    let has_session = claims.get("sid").is_some_and(serde_json::Value::is_string);
    provider.remote.as_ref().is_some_and(|remote| {
        let spec = remote.spec();
        !spec.verifies_opaque_tokens && (spec.question.carries_token() || !has_session)
    })
}
