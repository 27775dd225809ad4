//! The headers that carry a verified user to the upstream.

use hyper::header::HeaderName;

use super::check::Check;
use super::names::{PROTECTED, Reserved};
use super::{Claim, ReservedNames, fold};
use crate::config::{Config, Encode};

/// A trusted header with the claim that it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedHeader {
    /// The header's name as it is in the configuration, for messages.
    pub written: String,
    /// The header's name.
    pub name: HeaderName,
    /// The claim it carries.
    pub claim: Claim,
    /// The encoding of its value; `None` if it is sent as it is.
    pub encode: Option<Encode>,
}

impl Check {
    pub(super) fn trusted_headers(&mut self, config: &Config) -> Vec<TrustedHeader> {
        let mut out: Vec<TrustedHeader> = Vec::new();
        let known = ReservedNames::default();
        for (name, claim) in &config.identity.headers {
            let path = format!("identity.headers.{name}");
            let Some(header) = self.header_name(&path, name) else { continue };
            let folded = fold(name);
            let letters = folded.as_bytes();
            let protected = PROTECTED.iter().any(|protected| fold(protected) == folded)
                || matches!(
                    letters,
                    b"connection" | b"upgrade" | b"te" | b"trailer" | b"keepalive" | b"expect" | b"via"
                )
                || letters.starts_with(b"secwebsocket")
                || known.classify(name).is_some_and(|kind| kind != Reserved::Identity);
            if protected {
                self.error(&path, format!("{name} has a meaning of its own; use another name, such as X-User-Id"));
            }
            if letters.is_empty() {
                self.error(&path, "has no letter or digit");
            }
            if let Some(twin) = out.iter().find(|other| fold(other.name.as_str()) == folded) {
                let twin = twin.written.clone();
                self.error(&path, format!("is the same name as {twin} to many backends; keep one"));
            }
            if let Some(parsed) = self.ok_or_report(&path, Claim::parse(&claim.claim)) {
                if parsed.is_written_by_users() {
                    self.warn_at(
                        format!("identity.headers.{name}"),
                        format!("users can write the claim {parsed} themselves"),
                    );
                }
                out.push(TrustedHeader { written: name.clone(), name: header, claim: parsed, encode: claim.encode });
            }
        }
        out
    }
}
