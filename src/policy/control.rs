//! The control listener, on which revocations and drains are requested: a Unix socket for its owner, or loopback with a
//! token.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::check::Check;
use super::{Audience, BrowserSpec, Policy, Secret};
use crate::config::{self, Time};

/// The settings of the control listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlSpec {
    /// The address to listen on.
    pub address: ControlAddress,
    /// The bearer token that callers over TCP need.
    pub token: Option<Secret>,
    /// The file in which revocations survive a restart.
    pub revocation_file: Option<PathBuf>,
    /// The time that a revocation is in force, which is at least that of the sessions in browsers.
    pub revocation_keep: Duration,
}

/// The address of the control listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// A Unix socket, mode 0600.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

impl std::fmt::Display for ControlSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.address {
            ControlAddress::Unix(path) => write!(f, "unix:{} (for its owner only)", path.display())?,
            ControlAddress::Tcp(address) => write!(f, "{address} (with its token)")?,
        }
        write!(f, "; a revocation holds for {}", Time(self.revocation_keep))?;
        match &self.revocation_file {
            Some(path) => write!(f, ", kept in {}", path.display()),
            None => f.write_str(", and is lost at the next start"),
        }
    }
}

const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The allowance for differences between the clocks of instances.
pub const CLOCK_ALLOWANCE: Duration = Duration::from_secs(60);

impl BrowserSpec {
    /// Returns the least time that a revocation is kept: until each session of a browser that it concerns has ended. Such a
    /// session may last longer than any token, and its cookie may not be presented before the revocation would be over.
    #[must_use]
    pub fn least_revocation_keep(&self) -> Duration {
        self.longest_session().map_or(Duration::ZERO, |age| age.saturating_add(CLOCK_ALLOWANCE))
    }
}

impl ControlSpec {
    /// Keeps revocations at least until the sessions of browsers have ended.
    pub(super) fn keeping_for(self, browser: &BrowserSpec) -> Self {
        Self { revocation_keep: self.revocation_keep.max(browser.least_revocation_keep()), ..self }
    }
}

impl Policy {
    /// Returns the time that a revocation is kept.
    #[must_use]
    pub fn revocation_keep(&self) -> Duration {
        self.control
            .as_ref()
            .map_or_else(|| KEEP.max(self.browser.least_revocation_keep()), |control| control.revocation_keep)
    }

    /// Returns the time that a logout reported by the provider is kept for this issuer's Bearer tokens, whose validity
    /// the proxy does not limit. It is that of other revocations, and zero where only sign-in uses the issuer.
    #[must_use]
    pub fn bearer_revocation_keep(&self, issuer: &str) -> Duration {
        let takes_bearer = self.providers.iter().any(|provider| {
            let for_sign_in_alone = matches!(&provider.audience, Audience::OneOf(names) if names.is_empty());
            provider.issuer.as_deref() == Some(issuer) && !for_sign_in_alone
        });
        if takes_bearer { self.revocation_keep() } else { Duration::ZERO }
    }
}

impl Check {
    pub(super) fn control(&mut self, control: &config::Control) -> Option<ControlSpec> {
        let keep = control.revocation_keep.map_or(KEEP, |time| time.0);
        if keep < Duration::from_secs(60) {
            self.error("control.revocation_keep", "must be longer than the longest life of a token, and at least 1m");
        }
        let (value, file) = (control.token.as_ref(), control.token_file.as_ref());
        let token = self.secret("control.token", value, "control.token_file", file);
        let Some(listen) = control.listen.as_deref() else {
            self.error("control", "has no listen; write listen: \"unix:/run/vestibule.sock\", or listen: \"127.0.0.1:9181\" with a token_file");
            return None;
        };
        let address = match (listen.strip_prefix("unix:"), listen.parse::<SocketAddr>()) {
            (Some(path), _) if path.starts_with('/') => ControlAddress::Unix(PathBuf::from(path)),
            (None, Ok(address)) if address.ip().is_loopback() => ControlAddress::Tcp(address),
            _ => {
                self.error("control.listen", format!("\"{listen}\" is neither unix:/path nor a loopback address with a port: anyone who reaches it\ncan end sessions. Write unix:/run/vestibule.sock or 127.0.0.1:9181"));
                return None;
            }
        };
        match (&address, &token) {
            (ControlAddress::Tcp(_), None) if value.is_none() && file.is_none() => {
                self.error("control", "listens on loopback, which every program on this machine reaches; write token_file beside it, or listen on a Unix socket");
            }
            // Any user of this machine can try tokens.
            (ControlAddress::Tcp(_), Some(token)) => {
                self.hard_to_guess(if value.is_some() { "control.token" } else { "control.token_file" }, token);
            }
            (ControlAddress::Unix(_), Some(_)) => {
                self.error("control", "has a token, and a Unix socket is guarded by its mode, 0600; leave one out");
            }
            _ => {}
        }
        Some(ControlSpec {
            address,
            token: token.map(Secret::new),
            revocation_file: control.revocation_file.as_ref().map(PathBuf::from),
            revocation_keep: keep,
        })
    }
}
