//! Revocations and sign-outs in the form in which instances share them: digests and times, no names. It also has the
//! digest by which two instances detect whether their entries are the same.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};

use crate::auth::digest::{DIGEST_BYTES, Digest};
use crate::auth::revocation_keys::RevocationKey;

/// The kind of target that an entry ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Tokens, by user, provider session or token id.
    Revocation,
    /// One browser session.
    SignOut,
    /// All browser sessions that a user began until the entry's time.
    AllSessions,
}

impl EntryKind {
    /// Returns the byte for the kind in stored entries.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Revocation => b'r',
            Self::SignOut => b's',
            Self::AllSessions => b'a',
        }
    }

    const fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            b'r' => Self::Revocation,
            b's' => Self::SignOut,
            b'a' => Self::AllSessions,
            _ => return None,
        })
    }
}

/// One revocation or sign-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedEntry {
    /// The kind of target that it ends.
    pub kind: EntryKind,
    /// The digest of the session's owner; zeros for a revocation.
    pub owner: RevocationKey,
    /// The digest of the target; zeros for all sessions of the owner.
    pub key: RevocationKey,
    /// The time of the revocation, in milliseconds since the epoch.
    pub at: u64,
    /// The Unix time in seconds until which it is kept.
    pub until: u64,
}

/// The number of bytes of [`SharedEntry::name`].
pub const NAME_BYTES: usize = 1 + 2 * DIGEST_BYTES;
/// The number of bytes of [`SharedEntry::times`].
pub const TIMES_BYTES: usize = 16;

impl SharedEntry {
    /// Returns the part that two entries about the same target have in common, as bytes.
    #[must_use]
    pub fn name(&self) -> [u8; NAME_BYTES] {
        let mut bytes = [0; NAME_BYTES];
        bytes[0] = self.kind.code();
        bytes[1..=DIGEST_BYTES].copy_from_slice(&self.owner.0.0);
        bytes[1 + DIGEST_BYTES..].copy_from_slice(&self.key.0.0);
        bytes
    }

    /// Returns the time and the end of the entry, as bytes.
    #[must_use]
    pub fn times(&self) -> [u8; TIMES_BYTES] {
        let mut bytes = [0; TIMES_BYTES];
        bytes[..8].copy_from_slice(&self.at.to_be_bytes());
        bytes[8..].copy_from_slice(&self.until.to_be_bytes());
        bytes
    }

    /// Parses the bytes of [`Self::name`] and [`Self::times`].
    #[must_use]
    pub fn read(name: &[u8], times: &[u8]) -> Option<Self> {
        let (code, digests) = name.split_first()?;
        let (owner, key) = digests.split_at_checked(DIGEST_BYTES)?;
        let (at, until) = times.split_at_checked(8)?;
        let digest = |bytes: &[u8]| Some(RevocationKey(Digest(bytes.try_into().ok()?)));
        Some(Self {
            kind: EntryKind::of_code(*code)?,
            owner: digest(owner)?,
            key: digest(key)?,
            at: u64::from_be_bytes(at.try_into().ok()?),
            until: u64::from_be_bytes(until.try_into().ok()?),
        })
    }

    fn weight(&self) -> u128 {
        let bytes = [&self.name()[..], &self.times()].concat();
        let hash = digest(&SHA256, &bytes);
        hash.as_ref().iter().take(16).fold(0, |weight, byte| weight << 8 | u128::from(*byte))
    }
}

/// The number of entries and a digest of them that does not depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyDigest {
    /// The number of entries.
    pub count: u64,
    /// The exclusive or of a hash of each entry.
    pub sum: u128,
}

impl CopyDigest {
    fn toggle(&mut self, entry: &SharedEntry) {
        self.sum ^= entry.weight();
    }
}

/// The number of minutes by which an instance's clock may be behind so that its digest can still be compared.
const BEHIND: u64 = 5;
const MINUTE: u64 = 60;

/// The digests of the entries, updated at each change, by the minute in which the entries end. Each instance removes
/// ended entries at another time, so these must not count.
///
/// Two threads may note their changes in another order than they made them, so an entry may be removed before it is
/// added. The counts wrap around meanwhile.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<u64, CopyDigest>);

impl Tally {
    pub(super) fn add(&mut self, entry: &SharedEntry) {
        let minute = self.0.entry(entry.until / MINUTE).or_default();
        minute.count = minute.count.wrapping_add(1);
        minute.toggle(entry);
    }

    pub(super) fn remove(&mut self, entry: &SharedEntry) {
        let minute = self.0.entry(entry.until / MINUTE).or_default();
        minute.count = minute.count.wrapping_sub(1);
        minute.toggle(entry);
    }

    /// Removes the digests of entries that ended long before this minute.
    pub(super) fn forget_before(&mut self, minute: u64) {
        self.0 = self.0.split_off(&minute.saturating_sub(BEHIND));
    }

    /// Returns the digest of the entries that end after this minute, counted from the epoch.
    pub(super) fn digest(&self, minute: u64) -> CopyDigest {
        self.0.range(minute.saturating_add(1)..).fold(CopyDigest::default(), |all, (_, of_minute)| CopyDigest {
            count: all.count.wrapping_add(of_minute.count),
            sum: all.sum ^ of_minute.sum,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u8, at: u64, until: u64) -> SharedEntry {
        let key = RevocationKey(Digest([key; DIGEST_BYTES]));
        SharedEntry { kind: EntryKind::Revocation, owner: RevocationKey::default(), key, at, until }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written_and_nothing_else_is() {
        let written = SharedEntry { kind: EntryKind::SignOut, owner: entry(7, 0, 0).key, ..entry(9, 1, 2) };
        assert_eq!(SharedEntry::read(&written.name(), &written.times()), Some(written));
        let (name, times) = (written.name(), written.times());
        for (name, times) in [(&name[1..], &times[..]), (&name[..], &times[1..]), (b"", &times[..]), (&name, b"")] {
            assert_eq!(SharedEntry::read(name, times), None);
        }
        assert_eq!(SharedEntry::read(&[b"x", &name[1..]].concat(), &times), None);
    }

    #[test]
    fn a_digest_tells_of_what_is_there_and_not_of_the_order_nor_of_what_is_over() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        let (a, b, over) = (entry(1, 5, 10 * MINUTE), entry(2, 6, 20 * MINUTE), entry(3, 7, 4 * MINUTE));
        one.add(&a);
        one.add(&b);
        one.add(&over);
        other.add(&b);
        assert_ne!(one.digest(5), other.digest(5));
        other.add(&a);
        assert_eq!(one.digest(5), other.digest(5));
        assert_eq!(one.digest(5).count, 2);
        other.remove(&a);
        other.add(&entry(1, 5, 11 * MINUTE));
        assert_ne!(one.digest(5), other.digest(5), "another end");
        assert_eq!(one.digest(10), {
            other.remove(&entry(1, 5, 11 * MINUTE));
            other.digest(10)
        });
    }

    #[test]
    fn a_digest_is_the_same_where_an_entry_is_noted_as_replaced_before_it_is_noted_as_added() {
        let (former, later) = (entry(1, 5, 10 * MINUTE), entry(1, 6, 11 * MINUTE));
        let (mut in_order, mut swapped) = (Tally::default(), Tally::default());
        in_order.add(&former);
        in_order.remove(&former);
        in_order.add(&later);
        swapped.remove(&former);
        swapped.add(&later);
        swapped.add(&former);
        assert_eq!(swapped.digest(5), in_order.digest(5));
        assert_eq!(swapped.digest(5).count, 1);
    }
}
