//! Caches verified tokens (docs/contract.md section 5) by the digest of the whole token, until the token expires or
//! `cache_ttl` has passed. The caller checks that the key that verified the token is still current. Decisions about
//! routes are never cached.
//!
//! Only accepted tokens are cached, so clients without a valid token cannot fill the cache. A cache belongs to one
//! [`Verifier`](super::Verifier), so a reload starts with an empty one.
//!
//! Each connection also caches its last token as text ([`LastToken`]): clients mostly repeat the same token, and
//! comparing two strings costs a tenth of computing a digest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::token_digest::TokenDigest;
use super::{Identity, Token};
use crate::policy::Family;

/// A bounded cache of verified tokens.
pub(super) struct TokenCache {
    entries: Cache<TokenDigest, CachedToken>,
}

/// The identity of a verified token, and the time until which it may be used without verifying the token again.
#[derive(Clone)]
pub(super) struct CachedToken {
    pub(super) identity: Arc<Identity>,
    until: Instant,
}

impl CachedToken {
    /// Creates an entry that may be used for `ttl` from now.
    pub(super) fn new(identity: Arc<Identity>, ttl: Duration) -> Self {
        Self { identity, until: Instant::now() + ttl }
    }
}

impl TokenCache {
    /// Creates a cache of at most `limit` tokens, or returns `None` when `limit` is 0.
    pub(super) fn new(limit: usize) -> Option<Self> {
        (limit > 0).then(|| Self { entries: Cache::new(limit) })
    }

    /// Looks a token up. The caller must check that the token has not expired since, and that its key is current.
    pub(super) fn get(&self, digest: &TokenDigest) -> Option<CachedToken> {
        let entry = self.entries.get(digest)?;
        if entry.until > Instant::now() {
            return Some(entry);
        }
        self.entries.remove(digest);
        None
    }

    /// Inserts an entry, unless its time has passed.
    pub(super) fn insert(&self, digest: TokenDigest, entry: &CachedToken) {
        if entry.until > Instant::now() {
            self.entries.insert(digest, entry.clone());
        }
    }

    /// Removes a token.
    pub(super) fn remove(&self, digest: &TokenDigest) {
        self.entries.remove(digest);
    }

    /// Returns the number of cached tokens.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The token that was last verified on one connection.
#[derive(Default)]
pub struct LastToken(Mutex<Option<LastVerified>>);

struct LastVerified {
    token: Token,
    digest: TokenDigest,
    entry: CachedToken,
    /// The verifier that accepted it. Another one, with another configuration, must verify the token itself.
    verifier: Arc<()>,
}

impl LastToken {
    /// Returns the digest and the identity if this verifier accepted exactly this token before and the entry's time has
    /// not passed.
    pub(super) fn get(&self, token: &Token, verifier: &Arc<()>) -> Option<(TokenDigest, Arc<Identity>)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.as_ref()?;
        let is_same =
            last.token.is_same(token) && Arc::ptr_eq(&last.verifier, verifier) && last.entry.until > Instant::now();
        is_same.then(|| (last.digest, Arc::clone(&last.entry.identity)))
    }

    /// Returns the token, also where it has expired: only its text counts. That of a load balancer is left out: the padding
    /// inside it is allowed in the balancer's header, and not in `Authorization`, with which the text is compared.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.as_ref().filter(|last| last.entry.identity.provider().family != Family::AwsAlb);
        last.map(|last| last.token.duplicate())
    }

    /// Removes the token, which is no longer valid.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Stores the token that this verifier has just accepted, with the entry that limits how long it may be used.
    pub(super) fn set(&self, token: &Token, digest: TokenDigest, entry: CachedToken, verifier: &Arc<()>) {
        let last = LastVerified { token: token.duplicate(), digest, entry, verifier: Arc::clone(verifier) };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }
}

impl std::fmt::Debug for LastToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LastToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Expiry, identity::VerifiedBy};

    fn identity() -> Arc<Identity> {
        let config = crate::config::Config {
            upstream: Some(crate::config::Upstream { url: Some("http://127.0.0.1:1".into()), ..Default::default() }),
            providers: vec![crate::config::Provider {
                preset: Some("shared-secret".into()),
                secret: Some("0123456789abcdef0123456789abcdefX".into()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let policy = crate::policy::validate(&config).expect("valid");
        let provider = Arc::clone(&policy.providers[0]);
        Arc::new(Identity::new(
            provider,
            "alice".into(),
            serde_json::Map::new(),
            Expiry::At(0),
            VerifiedBy::Provider(super::super::KeyFingerprint::default()),
            super::super::kind::TokenKindHeader::default(),
        ))
    }

    fn digest(number: u32) -> TokenDigest {
        TokenDigest::of(&Token::parse(&number.to_string(), 16).expect("token"))
    }

    #[test]
    fn a_cache_holds_no_more_than_its_limit() {
        assert!(TokenCache::new(0).is_none());
        let cache = TokenCache::new(100).expect("a cache");
        let identity = identity();
        for number in 0..10_000 {
            cache.insert(digest(number), &CachedToken::new(Arc::clone(&identity), Duration::from_secs(60)));
        }
        assert!(cache.len() <= 100, "{}", cache.len());
    }

    #[test]
    fn the_last_token_is_found_by_its_exact_text_by_its_verifier_and_within_its_ttl() {
        let token = |text: &str| Token::parse(text, 16).expect("token");
        let (ours, other) = (Arc::new(()), Arc::new(()));
        let last = LastToken::default();
        let set = |ttl| last.set(&token("abc"), digest(1), CachedToken::new(identity(), ttl), &ours);
        assert!(last.get(&token("abc"), &ours).is_none());
        set(Duration::from_secs(60));
        assert!(last.get(&token("abc"), &ours).is_some());
        for (text, verifier) in [("abd", &ours), ("ab", &ours), ("abcd", &ours), ("abc", &other)] {
            assert!(last.get(&token(text), verifier).is_none(), "{text}");
        }
        set(Duration::ZERO);
        assert!(last.get(&token("abc"), &ours).is_none());
    }

    #[test]
    fn an_entry_expires_with_its_ttl_and_one_without_a_ttl_is_not_stored() {
        let cache = TokenCache::new(10).expect("a cache");
        cache.insert(digest(1), &CachedToken::new(identity(), Duration::ZERO));
        assert!(cache.get(&digest(1)).is_none());
        cache.insert(digest(1), &CachedToken::new(identity(), Duration::from_nanos(1)));
        assert!(cache.get(&digest(1)).is_none());
        cache.insert(digest(1), &CachedToken::new(identity(), Duration::from_secs(60)));
        assert!(cache.get(&digest(1)).is_some());
        assert!(cache.get(&digest(2)).is_none());
        cache.remove(&digest(1));
        assert!(cache.get(&digest(1)).is_none());
    }
}
