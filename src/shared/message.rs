//! The messages between instances, and the codes that authenticate them. The engine is not trusted, so every message
//! without a code made with a shared secret is counted and ignored.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use super::engine::EngineError;
use crate::auth::digest::{DIGEST_BYTES, Digest, derive, digest};
use crate::auth::{CopyDigest, NAME_BYTES, SharedEntry, TIMES_BYTES};
use crate::policy::Secret;

/// A random id.
pub(super) type Id = [u8; 16];

/// The version, a part of the authenticated data in addition to the deployment's name and the message.
const VERSION: &[u8] = b"1";

/// The keys that make and verify authentication codes.
pub(super) struct Codes {
    /// The keys: the first makes codes, all verify them.
    keys: Vec<hmac::Key>,
    fingerprint: String,
}

impl Codes {
    /// Derives the keys of these secrets.
    ///
    /// # Errors
    /// [`EngineError::UnusableSecret`].
    pub(super) fn new(secrets: &[Secret], name: &str) -> Result<Self, EngineError> {
        let keys: Option<Vec<_>> = secrets.iter().map(|secret| derive(secret, name, b"authenticate")).collect();
        let fingerprint = secrets.first().and_then(fingerprint);
        let codes = keys.zip(fingerprint).map(|(keys, fingerprint)| Self { keys, fingerprint });
        codes.ok_or(EngineError::UnusableSecret)
    }

    /// Returns the fingerprint of the first secret, which distinguishes secrets without revealing them.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Appends the authentication code to the bytes.
    pub(super) fn seal(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some(key) = self.keys.first() {
            let code = digest(key, &[VERSION, &bytes]);
            bytes.extend_from_slice(&code.0);
        }
        bytes
    }

    /// Returns the bytes before the authentication code, if one of the secrets made it.
    pub(super) fn open<'a>(&self, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (bytes, code) = sealed.split_at_checked(sealed.len().checked_sub(DIGEST_BYTES)?)?;
        let is_made_by = |key: &hmac::Key| verify_slices_are_equal(&digest(key, &[VERSION, bytes]).0, code).is_ok();
        self.keys.iter().any(is_made_by).then_some(bytes)
    }

    /// Returns the value of an entry in the hash, whose field is its name.
    pub(super) fn seal_entry(&self, entry: &SharedEntry) -> Vec<u8> {
        let sealed = self.seal(Message::Entry(*entry, None).bytes());
        sealed.get(1 + NAME_BYTES..).unwrap_or_default().to_vec()
    }

    /// Verifies and parses a value that [`Self::seal_entry`] made.
    pub(super) fn open_entry(&self, field: &[u8], value: &[u8]) -> Option<SharedEntry> {
        let sealed = [b"e", field, value].concat();
        match Message::read(self.open(&sealed)?)? {
            Message::Entry(entry, None) => Some(entry),
            _ => None,
        }
    }
}

/// Returns the fingerprint of a secret.
pub(super) fn fingerprint(secret: &Secret) -> Option<String> {
    let print = digest(&derive(secret, "", b"fingerprint")?, &[]);
    Some(print.0.iter().take(4).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}")))
}

/// A message between instances in the stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    /// A revocation or sign-out, with an id if its writer waits until instances have applied it.
    Entry(SharedEntry, Option<Id>),
    /// A heartbeat of an instance.
    Heartbeat(Heartbeat),
    /// Entries were added to the hash without messages in the log.
    LoadAgain,
    /// A mark from which an instance reads the log.
    Position,
    /// The users near the limit of sockets at an instance. It is not in the log.
    Open { instance: u128, at: u64, users: Vec<(Digest, u32)> },
    /// An instance has applied an entry.
    Taken { question: Id, instance: Id },
}

/// An instance's heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Heartbeat {
    /// The random id of the instance, which changes at each start.
    #[serde(rename = "i")]
    pub(super) instance: u128,
    /// The number of this heartbeat of the instance.
    #[serde(rename = "n")]
    pub(super) number: u64,
    /// The time by its clock, in milliseconds since the epoch.
    #[serde(rename = "t")]
    pub(super) at: u64,
    /// The host name and local address of the instance.
    #[serde(rename = "h")]
    pub(super) host: String,
    #[serde(rename = "v")]
    pub(super) version: String,
    /// The digest of its configuration.
    #[serde(rename = "c")]
    pub(super) config: String,
    /// The fingerprint of its shared secret.
    #[serde(rename = "s")]
    pub(super) secret: String,
    /// The fingerprint of its session secret; empty where it has none.
    #[serde(rename = "k")]
    pub(super) session_secret: String,
    /// The minute whose entries the digest leaves out, with those that end before.
    #[serde(rename = "o")]
    pub(super) minute: u64,
    #[serde(rename = "x")]
    pub(super) count: u64,
    #[serde(rename = "y")]
    pub(super) sum: u128,
    /// Whether its copy is complete. If not, it asks the others for theirs.
    #[serde(rename = "r")]
    pub(super) is_complete: bool,
    /// The number of users near the limit of sockets that it publishes.
    #[serde(rename = "u")]
    pub(super) published_users: usize,
    /// The question of an instance whose copy is not complete; zero where there is none.
    #[serde(rename = "q", default)]
    pub(super) question: u128,
    /// The questions that this heartbeat answers with its digest.
    #[serde(rename = "a", default)]
    pub(super) answers: Vec<u128>,
    /// Whether the instance stops after this heartbeat.
    #[serde(rename = "l", default)]
    pub(super) is_leaving: bool,
}

impl Heartbeat {
    pub(super) fn digest(&self) -> CopyDigest {
        CopyDigest { count: self.count, sum: self.sum }
    }
}

impl Message {
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Entry(entry, question) => {
                let question = question.as_ref().map_or(&[][..], |id| &id[..]);
                [b"e", &entry.name()[..], &entry.times()[..], question].concat()
            }
            Self::Heartbeat(heartbeat) => {
                let mut bytes = b"b".to_vec();
                // Numbers and texts can always be written.
                bytes.extend(serde_json::to_vec(heartbeat).unwrap_or_default());
                bytes
            }
            Self::LoadAgain => b"l".to_vec(),
            Self::Position => b"p".to_vec(),
            Self::Open { instance, at, users } => {
                let mut bytes = [b"o", &instance.to_le_bytes()[..], &at.to_be_bytes()[..]].concat();
                for (user, count) in users {
                    bytes.extend_from_slice(&user.0);
                    bytes.extend_from_slice(&count.to_be_bytes());
                }
                bytes
            }
            Self::Taken { question, instance } => [b"t", &question[..], &instance[..]].concat(),
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            b'e' => {
                let (name, rest) = rest.split_at_checked(NAME_BYTES)?;
                let (times, question) = rest.split_at_checked(TIMES_BYTES)?;
                let question = if question.is_empty() { None } else { Some(question.try_into().ok()?) };
                Self::Entry(SharedEntry::read(name, times)?, question)
            }
            b'b' => Self::Heartbeat(serde_json::from_slice(rest).ok()?),
            b'l' if rest.is_empty() => Self::LoadAgain,
            b'p' if rest.is_empty() => Self::Position,
            b'o' => {
                let (instance, rest) = rest.split_at_checked(16)?;
                let (at, users) = rest.split_at_checked(8)?;
                let users = users.chunks(DIGEST_BYTES + 4).map(|user| {
                    let (digest, count) = user.split_at_checked(DIGEST_BYTES)?;
                    Some((Digest(digest.try_into().ok()?), u32::from_be_bytes(count.try_into().ok()?)))
                });
                Self::Open {
                    instance: u128::from_le_bytes(instance.try_into().ok()?),
                    at: u64::from_be_bytes(at.try_into().ok()?),
                    users: users.collect::<Option<_>>()?,
                }
            }
            b't' => {
                let (question, instance) = rest.split_at_checked(16)?;
                Self::Taken { question: question.try_into().ok()?, instance: instance.try_into().ok()? }
            }
            _ => return None,
        })
    }

    /// Parses the heartbeat of an instance with another secret. It is shown to operators and never trusted.
    pub(super) fn foreign_heartbeat(sealed: &[u8]) -> Option<Heartbeat> {
        let bytes = sealed.get(..sealed.len().checked_sub(DIGEST_BYTES)?)?;
        match Self::read(bytes)? {
            Self::Heartbeat(heartbeat) => Some(heartbeat),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::EntryKind;

    fn entry() -> SharedEntry {
        let named = |byte: u8| {
            let name = [&[b's'][..], &[byte; 16], &[byte + 1; 16]].concat();
            SharedEntry::read(&name, &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 7]).expect("an entry")
        };
        assert_eq!(named(1).kind, EntryKind::SignOut);
        named(1)
    }

    fn codes(secrets: &[&[u8]], name: &str) -> Codes {
        let secrets: Vec<_> = secrets.iter().map(|secret| Secret::for_tests(secret)).collect();
        Codes::new(&secrets, name).expect("keys")
    }

    #[test]
    fn a_secret_without_keys_is_an_error_that_says_what_to_do() {
        let error = Codes::new(&[], "one").err().expect("no secret").to_string();
        assert!(error.contains("shared.secret_file"), "{error}");
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        for message in [
            Message::Entry(entry(), None),
            Message::Entry(entry(), Some([7; 16])),
            Message::LoadAgain,
            Message::Position,
            Message::Open { instance: 7, at: 8, users: vec![(Digest([3; 16]), 5), (Digest([4; 16]), 6)] },
            Message::Taken { question: [1; 16], instance: [2; 16] },
        ] {
            assert_eq!(Message::read(&message.bytes()), Some(message));
        }
        for bytes in [&b""[..], b"e", b"o", &[b'o'; 30], b"l ", b"t1", b"b{}", b"x"] {
            assert_eq!(Message::read(bytes), None);
        }
    }

    #[test]
    fn only_the_secrets_of_this_deployment_make_a_code() {
        let (mine, former) = (codes(&[b"new", b"old"], "a"), codes(&[b"old"], "a"));
        let sealed = former.seal(Message::LoadAgain.bytes());
        assert_eq!(mine.open(&sealed), Some(&b"l"[..]), "one that is being replaced");
        assert_eq!(former.open(&mine.seal(b"l".to_vec())), None, "it does not know the new one");
        assert_eq!(codes(&[b"old"], "b").open(&sealed), None, "another deployment's");
        let mut forged = sealed.clone();
        forged[0] ^= 1;
        assert_eq!(former.open(&forged), None);
        assert_eq!(former.open(b"short"), None);
        assert_ne!(mine.fingerprint(), former.fingerprint());
    }

    #[test]
    fn an_entry_of_the_hash_is_bound_to_its_field() {
        let codes = codes(&[b"secret"], "a");
        let (field, value) = (entry().name(), codes.seal_entry(&entry()));
        assert_eq!(codes.open_entry(&field, &value), Some(entry()));
        let mut other = field;
        other[5] ^= 1;
        assert_eq!(codes.open_entry(&other, &value), None);
        assert_eq!(codes.open_entry(&field, &value[1..]), None);
    }
}
