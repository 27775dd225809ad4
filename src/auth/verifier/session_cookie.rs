//! Session cookies of ours: what one holds is judged by the provider as it is now, its key with it, and by revocations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::identify::identify_again;
use super::super::identity::VerifiedBy;
use super::super::login::{Grant, LoginSession, LoginSessions, OpenLoginSocket};
use super::super::remote::{Answer, Priority, RemoteCheck};
use super::super::{BrowserSession, Carrier, Identity, IssuedCookie, Rejection, SessionCookie, Token, claims};
use super::{Provider, Verified, Verifier, unix_seconds};

impl Verifier {
    /// Verifies a session cookie: its seal and end, all that its token would be asked by the policy in force, revocations,
    /// and where `revalidate_every` says so the provider's own word.
    ///
    /// # Errors
    /// Why it counts as absent, or that nobody can say.
    pub async fn verify_session_cookie(&self, cookie: &SessionCookie) -> Result<Verified, Rejection> {
        let judged = self.session_judged(cookie).await;
        let outcome = judged.as_ref().map_or_else(Rejection::outcome, |_| "accepted");
        let provider = judged.as_ref().ok().and_then(|(identity, _)| {
            self.providers.iter().find(|provider| provider.spec.name == identity.provider().name)
        });
        let label = provider.map_or(&self.nobody, |provider| &provider.label);
        self.metrics.credentials.verified(label, Carrier::Cookie.name(), outcome);
        judged.map(|(identity, token)| Verified { identity: Arc::new(identity), token, carrier: Carrier::Cookie })
    }

    /// Whose session a cookie is, by its seal and the provider as it is now; for the log.
    #[must_use]
    pub fn session_cookie_user(&self, cookie: &SessionCookie) -> Option<String> {
        let sessions = self.sessions.as_ref()?;
        if let Some(logins) = &self.logins
            && let Some(opened) = logins.open(cookie, sessions.seal())
        {
            return claims::user_id(self.provider(&opened.provider)?, opened.claims()).ok();
        }
        let opened = sessions.open(cookie)?;
        claims::user_id(self.provider(&opened.provider)?, &opened.claims).ok()
    }

    /// The session that a cookie is of, by its seal alone: to end it, whatever the policy thinks of it.
    #[must_use]
    pub fn browser_session_of(&self, cookie: &SessionCookie) -> Option<BrowserSession> {
        self.login_session_of(cookie).or_else(|| self.sessions.as_ref()?.decrypt_session(cookie))
    }

    /// As [`Self::browser_session_of`], where the session began with a sign-in.
    #[must_use]
    pub fn login_session_of(&self, cookie: &SessionCookie) -> Option<BrowserSession> {
        let opened = self.logins.as_ref()?.open(cookie, self.sessions.as_ref()?.seal())?;
        Some(opened.session)
    }

    /// Begins a session of what a sign-in gave.
    #[must_use]
    pub fn begin_login_session(&self, grant: Grant) -> Option<(IssuedCookie, Arc<LoginSession>)> {
        self.logins.as_ref()?.begin(grant, self.sessions.as_ref()?.seal())
    }

    /// Registers an open socket of a login session; `None` where this process knows nothing of the session.
    #[must_use]
    pub fn open_login_socket(&self, session: &BrowserSession) -> Option<OpenLoginSocket> {
        let sessions = &self.logins.as_ref()?.sessions;
        Some(sessions.get(&session.id)?.socket(sessions))
    }

    /// Moves a socket to the session that took its session's place, if one did, and returns whether anything has changed
    /// since this was last asked.
    #[must_use]
    pub fn follow_login_session(&self, socket: &mut OpenLoginSocket) -> bool {
        let Some(sessions) = self.logins.as_ref().map(|logins| &logins.sessions) else { return true };
        match socket.session().latest() {
            Some(next) => {
                *socket = next.socket(sessions);
                // Its backend has the token of the former one.
                socket.forget_token();
                true
            }
            None => socket.has_changed(),
        }
    }

    /// Who a login session is of now, by the policy in force.
    ///
    /// # Errors
    /// Why it does not go on, or that nobody can say.
    pub fn login_session_identity(&self, session: &LoginSession) -> Result<Identity, Rejection> {
        let gone = || Rejection::UnknownIssuer(session.provider.to_string());
        let login = self.logins.as_ref().and_then(|logins| logins.get(&session.provider)).ok_or_else(gone)?;
        if session.is_unavailable(login.spec.renewal_grace) {
            return Err(session.unavailable());
        }
        login.judge_again(&session.identity(), session.ends_at)
    }

    /// What is known of login sessions.
    #[must_use]
    pub fn login_sessions(&self) -> Option<&Arc<LoginSessions>> {
        self.logins.as_ref().map(|logins| &logins.sessions)
    }

    /// Who it is, and the token of a session that began with a sign-in.
    async fn session_judged(&self, cookie: &SessionCookie) -> Result<(Identity, Option<Token>), Rejection> {
        let sessions = self.sessions.as_ref().ok_or(Rejection::Malformed("no sessions here"))?;
        if let Some(logins) = &self.logins
            && let Some(opened) = logins.open(cookie, sessions.seal())
        {
            // One that was ended is not renewed first.
            if self.revocations.is_ended(&opened.session, unix_seconds()) {
                return Err(Rejection::Revoked("session"));
            }
            let (identity, known) = logins.judge_session(opened).await?;
            // Last: whoever is revoked while we asked is refused.
            self.revocations.check(&identity, unix_seconds())?;
            return Ok((identity, known.and_then(|known| known.passed_token())));
        }
        let opened =
            sessions.open(cookie).ok_or(Rejection::Malformed("no session of ours, or sealed by another key"))?;
        let named = |provider: &&Arc<Provider>| provider.spec.name == opened.provider;
        let provider =
            self.providers.iter().find(named).ok_or_else(|| Rejection::UnknownIssuer(opened.provider.clone()))?;
        let now = unix_seconds();
        let mut until = sessions.end_of(&opened);
        if asked_only_with_the_token(provider, &opened.claims) {
            until = until.min(opened.token_end);
        }
        if now >= until {
            return Err(Rejection::Expired { exp: until, now });
        }
        let (preset, session) = (opened.preset.clone(), opened.session.clone());
        let identity = identify_again(&provider.spec, &preset, opened.said(until))?.in_session(Some(session));
        // A token that has ended is not judged by its key, or every rotation would end the sessions that outlive it. Where
        // the provider has no issuer, nothing but its keys tells it from another instance's provider of the same name.
        if let VerifiedBy::Key { print, algorithm, until } = identity.verified_by()
            && (now < until || provider.spec.issuer.is_none())
            && !provider.keys.still_verifies_with(print, algorithm).await?
        {
            return Err(Rejection::UnknownKey(None));
        }
        self.session_asked(&identity, sessions.spec().revalidate_every).await?;
        // Last: whoever is revoked while we asked is refused.
        self.revocations.check(&identity, now)?;
        Ok((identity, None))
    }

    /// Asks the provider about a session of ours, where it can be asked without a token, unless it said yes lately.
    async fn session_asked(&self, identity: &Identity, every: Option<Duration>) -> Result<(), Rejection> {
        let provider = self.providers.iter().find(|provider| provider.spec.name == identity.provider().name);
        let Some(remote) = provider.and_then(|provider| provider.remote.as_ref()) else { return Ok(()) };
        let Some(session) = identity.session_id().filter(|_| !remote.spec().question.carries_token()) else {
            return Ok(());
        };
        // A provider that is asked beside every signature is asked here too, as often as its answers are kept.
        let beside = (!remote.spec().instead).then_some(remote.spec().cache);
        let Some(every) = every.into_iter().chain(beside).min() else { return Ok(()) };
        let Some(id) = identity.browser_session().map(|own| Arc::clone(&own.id)) else { return Ok(()) };
        if self.asked.get(&id).is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        let name = || identity.provider().name.clone();
        match remote.ask(&RemoteCheck::session(session), Priority::Revalidation).await {
            Ok(Answer::Yes(_)) => {
                self.asked.insert(id, Instant::now());
                Ok(())
            }
            Ok(Answer::No(reason)) => Err(Rejection::NoSession { provider: name(), reason: reason.to_string() }),
            Err(unanswered) => Err(Rejection::RemoteUnavailable {
                provider: name(),
                reason: unanswered.reason,
                retry_after: unanswered.retry_after,
            }),
        }
    }
}

/// Whether its provider is asked beside every signature, and could be about this one only with the token that the
/// cookie does not hold: then the session ends with that token.
fn asked_only_with_the_token(provider: &Provider, claims: &serde_json::Map<String, serde_json::Value>) -> bool {
    let has_session = claims.get("sid").is_some_and(serde_json::Value::is_string);
    provider.remote.as_ref().is_some_and(|remote| {
        let spec = remote.spec();
        !spec.instead && (spec.question.carries_token() || !has_session)
    })
}
