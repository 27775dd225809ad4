//! The protections of an upstream from direct access, so that only this proxy can name its users (docs/contract.md section
//! 6).

use std::path::PathBuf;
use std::sync::Arc;

use hyper::header::HeaderName;

use super::{Policy, ProviderSpec, UpstreamAddress, UpstreamSpec};

/// A protection of an upstream from direct access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamIsolation {
    /// Only one user is allowed.
    OneUser,
    /// The backend listens on this Unix socket.
    UnixSocket(PathBuf),
    /// The backend demands a secret in this header.
    Credential(HeaderName),
    /// The backend verifies the assertion in this header.
    Assertion(HeaderName),
}

impl UpstreamIsolation {
    /// Returns the name in the output of `doctor`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::OneUser => "one user",
            Self::UnixSocket(_) => "unix socket",
            Self::Credential(_) => "credential",
            Self::Assertion(_) => "assertion",
        }
    }
}

impl std::fmt::Display for UpstreamIsolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OneUser => f.write_str("only one user may enter"),
            Self::UnixSocket(_) => {
                f.write_str("the backend listens on a Unix socket, which its users' code must not be able to open")
            }
            Self::Credential(header) => {
                write!(
                    f,
                    "a secret in {header}: the backend must demand it, and its users' code must not be able to read it"
                )
            }
            Self::Assertion(header) => write!(f, "the signed {header}: the backend must verify it"),
        }
    }
}

/// Returns the protections of an upstream from direct access under the policy; empty if there is none.
#[must_use]
pub fn isolation_of(policy: &Policy, upstream: &UpstreamSpec) -> Vec<UpstreamIsolation> {
    let mut found = Vec::new();
    let one_user = |provider: &Arc<ProviderSpec>| {
        let allow = &provider.allow;
        allow.users.len() == 1 && allow.emails.is_empty() && allow.email_domains.is_empty()
    };
    if policy.providers.len() == 1 && policy.providers.iter().all(one_user) {
        found.push(UpstreamIsolation::OneUser);
    }
    if let UpstreamAddress::Unix(path) = &upstream.address {
        found.push(UpstreamIsolation::UnixSocket(path.clone()));
    }
    if let Some(credential) = &upstream.credential {
        found.push(UpstreamIsolation::Credential(credential.header.clone()));
    }
    if let Some(assertion) = &policy.assertion {
        found.push(UpstreamIsolation::Assertion(assertion.header.clone()));
    }
    found
}
