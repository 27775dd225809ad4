//! Sessions of ours: what a cookie's seal vouches for is judged by the provider as it is now, and by revocations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::remote::{Answer, Occasion, Question};
use super::super::{Carrier, Identity, Rejection, Remembered, SessionCookie};
use super::{Verified, Verifier, now};

impl Verifier {
    /// Verifies a session of ours: the seal, its end, its provider as it is now, revocations, and where
    /// `revalidate_every` says so the provider's own word.
    ///
    /// # Errors
    /// Why it counts as absent, or that nobody can say.
    pub async fn verify_session(&self, cookie: &SessionCookie) -> Result<Verified, Rejection> {
        let judged = self.session_judged(cookie).await;
        let outcome = judged.as_ref().map_or_else(Rejection::outcome, |_| "accepted");
        let provider = judged
            .as_ref()
            .ok()
            .and_then(|identity| self.providers.iter().find(|provider| provider.spec.name == identity.provider().name));
        let label = provider.map_or(&self.nobody, |provider| &provider.label);
        self.metrics.credentials.verified(label, Carrier::Cookie.name(), outcome);
        judged.map(|identity| Verified { identity: Arc::new(identity), token: None })
    }

    async fn session_judged(&self, cookie: &SessionCookie) -> Result<Identity, Rejection> {
        let sessions = self.sessions.as_ref().ok_or(Rejection::Malformed("no sessions here"))?;
        let opened =
            sessions.open(cookie).ok_or(Rejection::Malformed("no session of ours, or sealed by another key"))?;
        let now = now();
        if now >= opened.until {
            return Err(Rejection::Expired { exp: opened.until, now });
        }
        let gone = || Rejection::UnknownIssuer(opened.provider.clone());
        let spec = self.provider(&opened.provider).ok_or_else(gone)?;
        let remembered = Remembered::opened(spec, &opened.claims, opened.until);
        let identity = remembered.recalled_by(self).ok_or_else(gone)?.in_session(Arc::clone(&opened.id));
        self.revocations.check(&identity, now)?;
        self.session_asked(&opened.id, &identity, sessions.spec().revalidate_every).await?;
        Ok(identity)
    }

    /// Asks the provider about a session of ours, where it can be asked without a token, unless it said yes lately.
    async fn session_asked(
        &self,
        id: &Arc<str>,
        identity: &Identity,
        every: Option<Duration>,
    ) -> Result<(), Rejection> {
        let provider = self.providers.iter().find(|provider| provider.spec.name == identity.provider().name);
        let Some(remote) = provider.and_then(|provider| provider.remote.as_ref()) else { return Ok(()) };
        let Some(session) = identity.session_id().filter(|_| !remote.spec().question.carries_token()) else {
            return Ok(());
        };
        // A provider that is asked beside every signature is asked here too, as often as its answers are kept.
        let beside = (!remote.spec().instead).then_some(remote.spec().cache);
        let Some(every) = every.into_iter().chain(beside).min() else { return Ok(()) };
        if self.asked.get(id).is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        let name = || identity.provider().name.clone();
        match remote.ask(&Question::session(session), Occasion::Revalidation).await {
            Ok(Answer::Yes(_)) => {
                self.asked.insert(Arc::clone(id), Instant::now());
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
