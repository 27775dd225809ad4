//! What a session's record holds, and a session made of it again.

use super::super::Login;
use super::super::client::ProviderToken;
use super::super::completion::VerifiedIdToken;
use super::sealed::RecordContent;
use super::{LoginSession, Update};
use crate::auth::identify::{VerifiedClaims, identify_again};
use crate::auth::identity::{Expiry, VerifiedBy};
use crate::auth::kind::{Category, TokenKindHeader};
use crate::auth::{BrowserSession, KeyFingerprint, Rejection};
use crate::policy::AuthorizedParties;

impl RecordContent {
    /// Reads the content of a session's record, with its generation.
    pub(super) fn of(session: &LoginSession) -> (u64, Self) {
        let state = session.lock();
        let provider = state.identity.provider();
        let text = |token: &Option<ProviderToken>| token.as_ref().map(|token| token.expose().to_owned());
        let (id_token, identity) = (&state.verified_id_token, &state.identity);
        let content = Self {
            issuer: provider.issuer.clone(),
            client_id: match &provider.authorized_parties {
                AuthorizedParties::Client(id) => id.clone(),
                _ => String::new(),
            },
            preset: provider.preset.to_owned(),
            nonce: session.origin.nonce.to_string(),
            first_auth_time: session.origin.first_auth_time,
            issued_at: session.origin.issued_at.clone(),
            claims: (*identity.claims() != id_token.claims).then(|| identity.claims().clone()),
            id_token_claims: id_token.claims.clone(),
            is_access_token: id_token.kind.is_access_token,
            category: id_token.kind.category.name().to_owned(),
            key_fingerprint: id_token.key_fingerprint.text(),
            algorithm: format!("{:?}", id_token.algorithm),
            id_token_end: id_token.expires_at,
            auth_time: id_token.auth_time,
            id_token: text(&state.id_token),
            access_token: text(&state.access_token),
            refresh_token: text(&state.refresh_token),
            token_end: state.token_end,
            renew_at: state.renew_at,
        };
        (state.generation, content)
    }

    /// Verifies the user of the record by the current configuration of the login.
    pub(super) fn restore(self, generation: u64, login: &Login, session: &BrowserSession) -> Result<Update, Rejection> {
        let spec = &login.spec.provider_spec;
        if self.issuer != spec.issuer || self.client_id != login.spec.client_id {
            return Err(Rejection::UnknownIssuer(login.spec.name.clone()));
        }
        let unreadable = || Rejection::Malformed("the session's record cannot be read");
        let category = Category::from_name(&self.category).ok_or_else(unreadable)?;
        let kind = TokenKindHeader { is_access_token: self.is_access_token, category };
        let fingerprint = KeyFingerprint::from_text(&self.key_fingerprint).ok_or_else(unreadable)?;
        let algorithm = self.algorithm.parse().map_err(|_| unreadable())?;
        let verified = VerifiedClaims {
            claims: self.claims.unwrap_or_else(|| self.id_token_claims.clone()),
            kind,
            expiry: Expiry::At(session.last_end),
            verified_by: VerifiedBy::Key { fingerprint, algorithm, until: 0 },
        };
        let identity = identify_again(spec, &self.preset, verified)?.in_session(Some(session.clone()));
        let token = |text: Option<String>| text.map(|text| ProviderToken::new(&text));
        Ok(Update {
            identity,
            verified_id_token: VerifiedIdToken {
                claims: self.id_token_claims,
                kind,
                key_fingerprint: fingerprint,
                algorithm,
                expires_at: self.id_token_end,
                auth_time: self.auth_time,
            },
            id_token: token(self.id_token),
            access_token: token(self.access_token),
            refresh_token: token(self.refresh_token),
            token_end: self.token_end,
            renew_at: self.renew_at,
            generation,
        })
    }
}
