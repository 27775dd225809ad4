//! Tokens that were verified before (docs/contract.md section 5): by the digest of the whole token, until its end or
//! `cache_ttl`, and only while the key that verified it stands. What a route asks is never kept with it.
//!
//! Only accepted tokens are kept, so a stranger cannot fill it. It belongs to one verifier, so a change of
//! configuration begins with an empty one.
//!
//! The token last seen on a connection is kept beside it as it came: a client mostly repeats its own, and comparing
//! two texts costs a tenth of a digest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use quick_cache::sync::Cache;

use super::{Identity, Token};

/// The whole token, as SHA-256: half a microsecond beside the twenty and more of a signature (measured:
/// RS256 21 µs, ES256 60 µs).
pub(super) type Digest = [u8; 32];

/// Verified tokens.
pub(super) struct TokenCache {
    entries: Cache<Digest, Entry>,
}

/// What was found of a token, and until when it may be believed unasked.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) identity: Arc<Identity>,
    until: Instant,
}

impl Entry {
    /// Good for `ttl` from now.
    pub(super) fn new(identity: Arc<Identity>, ttl: Duration) -> Self {
        Self { identity, until: Instant::now() + ttl }
    }
}

impl TokenCache {
    /// Keeps at most `limit` tokens; `None` for a limit of zero.
    pub(super) fn new(limit: usize) -> Option<Self> {
        (limit > 0).then(|| Self { entries: Cache::new(limit) })
    }

    pub(super) fn digest(token: &Token) -> Digest {
        let digest = digest::digest(&digest::SHA256, token.expose().as_bytes());
        digest.as_ref().try_into().unwrap_or_default()
    }

    /// What was verified from this very token. Whether the token has ended since, and whether its key still
    /// stands, is the caller's to ask.
    pub(super) fn get(&self, digest: &Digest) -> Option<Entry> {
        let entry = self.entries.get(digest)?;
        if entry.until > Instant::now() {
            return Some(entry);
        }
        self.entries.remove(digest);
        None
    }

    /// Keeps what was verified as long as it is good.
    pub(super) fn insert(&self, digest: Digest, entry: &Entry) {
        if entry.until > Instant::now() {
            self.entries.insert(digest, entry.clone());
        }
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.entries.remove(digest);
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The token last verified on one connection.
#[derive(Default)]
pub struct LastToken(Mutex<Option<Last>>);

struct Last {
    token: Token,
    digest: Digest,
    entry: Entry,
    /// Whose verdict it was: another configuration's does not count.
    verifier: Arc<()>,
}

impl LastToken {
    /// The identity, when this verifier verified this very token here and may still remember it.
    pub(super) fn get(&self, token: &Token, verifier: &Arc<()>) -> Option<(Digest, Arc<Identity>)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.as_ref()?;
        // Whoever could tell how far two texts agree would learn only about a token of the same connection's.
        let is_it = last.token.expose() == token.expose()
            && Arc::ptr_eq(&last.verifier, verifier)
            && last.entry.until > Instant::now();
        is_it.then(|| (last.digest, Arc::clone(&last.entry.identity)))
    }

    /// Keeps what was found, for no longer than it was good when it was found.
    pub(super) fn set(&self, token: &Token, digest: Digest, entry: Entry, verifier: &Arc<()>) {
        let last = Last { token: token.duplicate(), digest, entry, verifier: Arc::clone(verifier) };
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
    use crate::auth::{Expiry, VerifiedBy};

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
            super::super::kind::KindHeader::default(),
        ))
    }

    fn digest(number: u32) -> Digest {
        TokenCache::digest(&Token::parse(&number.to_string(), 16).expect("token"))
    }

    #[test]
    fn it_keeps_no_more_than_its_limit() {
        assert!(TokenCache::new(0).is_none());
        let cache = TokenCache::new(100).expect("a cache");
        let identity = identity();
        for number in 0..10_000 {
            cache.insert(digest(number), &Entry::new(Arc::clone(&identity), Duration::from_secs(60)));
        }
        assert!(cache.len() <= 100, "{}", cache.len());
    }

    #[test]
    fn the_last_token_is_that_token_alone_of_that_verifier_and_for_its_time() {
        let token = |text: &str| Token::parse(text, 16).expect("token");
        let (ours, other) = (Arc::new(()), Arc::new(()));
        let last = LastToken::default();
        let set = |ttl| last.set(&token("abc"), digest(1), Entry::new(identity(), ttl), &ours);
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
    fn an_entry_ends_with_its_ttl_and_none_begins_without_one() {
        let cache = TokenCache::new(10).expect("a cache");
        cache.insert(digest(1), &Entry::new(identity(), Duration::ZERO));
        assert!(cache.get(&digest(1)).is_none());
        cache.insert(digest(1), &Entry::new(identity(), Duration::from_nanos(1)));
        assert!(cache.get(&digest(1)).is_none());
        cache.insert(digest(1), &Entry::new(identity(), Duration::from_secs(60)));
        assert!(cache.get(&digest(1)).is_some());
        assert!(cache.get(&digest(2)).is_none());
        cache.remove(&digest(1));
        assert!(cache.get(&digest(1)).is_none());
    }
}
