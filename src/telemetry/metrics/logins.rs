//! Metrics of sign-ins by OpenID Connect, of session renewals, and of sign-outs.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::telemetry::Label;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    provider: Label,
    outcome: &'static str,
}

const SIGN_INS: [&str; 6] = ["accepted", "denied", "refused", "invalid", "unavailable", "restarted"];
const RENEWALS: [&str; 3] = ["renewed", "ended", "unavailable"];
const LOGOUTS: [&str; 4] = ["local", "provider", "backchannel", "refused"];

/// The metrics of sign-ins.
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

    /// Creates the values of a provider, which start at zero.
    pub fn introduce(&self, provider: &str) {
        let families = [(&self.sign_ins, &SIGN_INS[..]), (&self.renewals, &RENEWALS), (&self.logouts, &LOGOUTS)];
        for (family, outcomes) in families {
            for outcome in outcomes {
                family.get_or_create_owned(&Outcome { provider: provider.into(), outcome });
            }
        }
    }

    /// Counts a sign-in with this outcome.
    pub fn signed_in(&self, provider: &str, outcome: &'static str) {
        self.sign_ins.get_or_create(&Outcome { provider: provider.into(), outcome }).inc();
    }

    /// Counts a renewal with this outcome.
    pub fn renewed(&self, provider: &str, outcome: &'static str) {
        self.renewals.get_or_create(&Outcome { provider: provider.into(), outcome }).inc();
    }

    /// Counts a sign-out.
    pub fn signed_out(&self, provider: &str, outcome: &'static str) {
        self.logouts.get_or_create(&Outcome { provider: provider.into(), outcome }).inc();
    }
}
