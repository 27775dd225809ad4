//! Metrics of sign-ins by OpenID Connect, renewals of their sessions, and sign-outs.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::telemetry::Label;

/// The result of a sign-in whose browser returned from the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignInOutcome {
    /// A session began.
    Accepted,
    /// The user is not allowed here, or cancelled at the provider.
    Denied,
    /// The provider refused the sign-in or the proxy as its client, or gave no refresh token where one is required.
    Refused,
    /// The state or the provider's answer could not be accepted.
    Invalid,
    /// The provider could not be reached.
    Unavailable,
    /// The sign-in was started again.
    Restarted,
}

impl SignInOutcome {
    const ALL: [Self; 6] =
        [Self::Accepted, Self::Denied, Self::Refused, Self::Invalid, Self::Unavailable, Self::Restarted];

    /// Returns the value of the label `outcome`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Denied => "denied",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
            Self::Restarted => "restarted",
        }
    }
}

/// The result of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalOutcome {
    /// The provider gave new tokens.
    Renewed,
    /// The provider refused to renew the session, which has ended.
    Ended,
    /// The provider could not be reached, or its answer could not be accepted; the renewal is tried again.
    Unavailable,
}

impl RenewalOutcome {
    const ALL: [Self; 3] = [Self::Renewed, Self::Ended, Self::Unavailable];

    /// Returns the value of the label `outcome`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Ended => "ended",
            Self::Unavailable => "unavailable",
        }
    }
}

/// The place where a sign-out took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutOutcome {
    /// At this proxy only.
    Local,
    /// At this proxy, and the browser was sent to the provider's sign-out page.
    Provider,
    /// At this proxy, after a report of the provider.
    Backchannel,
    /// Nowhere: the provider's report was refused.
    Refused,
}

impl LogoutOutcome {
    const ALL: [Self; 4] = [Self::Local, Self::Provider, Self::Backchannel, Self::Refused];

    /// Returns the value of the label `outcome`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Provider => "provider",
            Self::Backchannel => "backchannel",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    provider: Label,
    outcome: &'static str,
}

/// Counters by provider and outcome.
#[derive(Debug)]
pub struct LoginMetrics {
    sign_ins: Family<Outcome, Counter>,
    renewals: Family<Outcome, Counter>,
    logouts: Family<Outcome, Counter>,
}

impl LoginMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let this = Self { sign_ins: Family::default(), renewals: Family::default(), logouts: Family::default() };
        registry.register("sign_ins", "Sign-ins that returned from a provider, by outcome", this.sign_ins.clone());
        registry.register("session_renewals", "Renewals of login sessions", this.renewals.clone());
        registry.register("logouts", "Sign-outs of login sessions, by what ended them", this.logouts.clone());
        this
    }

    /// Creates every counter of a provider, at zero.
    pub fn create_series(&self, provider: &str) {
        let make = |family: &Family<Outcome, Counter>, outcome| {
            family.get_or_create_owned(&Outcome { provider: provider.into(), outcome });
        };
        for outcome in SignInOutcome::ALL {
            make(&self.sign_ins, outcome.name());
        }
        for outcome in RenewalOutcome::ALL {
            make(&self.renewals, outcome.name());
        }
        for outcome in LogoutOutcome::ALL {
            make(&self.logouts, outcome.name());
        }
    }

    /// Counts a sign-in.
    pub fn signed_in(&self, provider: &str, outcome: SignInOutcome) {
        self.sign_ins.get_or_create(&Outcome { provider: provider.into(), outcome: outcome.name() }).inc();
    }

    /// Counts a renewal.
    pub fn renewed(&self, provider: &str, outcome: RenewalOutcome) {
        self.renewals.get_or_create(&Outcome { provider: provider.into(), outcome: outcome.name() }).inc();
    }

    /// Counts a sign-out.
    pub fn signed_out(&self, provider: &str, outcome: LogoutOutcome) {
        self.logouts.get_or_create(&Outcome { provider: provider.into(), outcome: outcome.name() }).inc();
    }
}
