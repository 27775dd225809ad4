//! Metrics of token verification and remote checks.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::last_series::{LastSeries, Owner};
use super::{Attempt, hash_labels};
use crate::telemetry::Label;

#[derive(Clone, Debug, PartialEq, Eq, EncodeLabelSet)]
struct Verification {
    provider: Label,
    carrier: &'static str,
    outcome: &'static str,
}

impl Hash for Verification {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_labels(state, 0, &[&self.provider, self.carrier, self.outcome]);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lookup {
    result: &'static str,
}

thread_local! {
    static LAST_VERIFICATION: LastSeries<Verification, Counter> = const { LastSeries::new() };
}

/// The places where a verified token was found: on its connection, in the cache, or in neither.
const LOOKUPS: [&str; 3] = ["connection", "hit", "miss"];
const CHECKS: [&str; 3] = ["yes", "no", "unanswered"];
/// The buckets of remote checks, in seconds, up to the usual `remote.timeout`.
const CHECK_SECONDS: [f64; 8] = [0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];

/// The metrics of tokens and providers.
#[derive(Debug)]
pub struct Credentials {
    owner: Owner,
    verifications: Family<Verification, Counter>,
    /// The count of each of [`LOOKUPS`], found without a hash, because most requests need one.
    lookups: [Counter; LOOKUPS.len()],
    remote_checks: Family<Attempt, Counter>,
    remote_check_duration: Family<Attempt, Histogram>,
}

impl Credentials {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let lookups = Family::<Lookup, Counter>::default();
        let this = Self {
            owner: Owner::new(),
            verifications: Family::default(),
            lookups: LOOKUPS.map(|result| lookups.get_or_create_owned(&Lookup { result })),
            remote_checks: Family::default(),
            remote_check_duration: Family::new_with_constructor(|| Histogram::new(CHECK_SECONDS)),
        };
        registry.register("token_verifications", "Token verifications", this.verifications.clone());
        registry.register("token_cache_lookups", "Lookups of tokens in the cache of verified tokens", lookups);
        registry.register("remote_checks", "Remote checks at a provider", this.remote_checks.clone());
        let took = "Duration of remote checks";
        registry.register("remote_check_duration_seconds", took, this.remote_check_duration.clone());
        this
    }

    /// Creates the values of a provider, which start at zero; `outcomes` are those of a verification.
    pub fn create_series(
        &self,
        provider: &Label,
        carriers: &[&'static str],
        outcomes: &[&'static str],
        is_asked: bool,
    ) {
        for (carrier, outcome) in carriers.iter().flat_map(|carrier| outcomes.iter().map(move |o| (*carrier, *o))) {
            let labels = Verification { provider: Arc::clone(provider), carrier, outcome };
            self.verifications.get_or_create_owned(&labels);
        }
        for outcome in CHECKS.into_iter().filter(|_| is_asked) {
            self.remote_checks.get_or_create_owned(&Attempt { provider: Arc::clone(provider), outcome });
        }
    }

    /// Counts a token verification.
    pub fn verified(&self, provider: &Label, carrier: &'static str, outcome: &'static str) {
        let is_same =
            |last: &Verification| last.carrier == carrier && last.outcome == outcome && last.provider == *provider;
        let find = || {
            let labels = Verification { provider: Arc::clone(provider), carrier, outcome };
            let series = self.verifications.get_or_create_owned(&labels);
            (labels, series)
        };
        LastSeries::count(&LAST_VERIFICATION, self.owner, is_same, find, |count: &Counter| {
            count.inc();
        });
    }

    /// Counts a lookup in the cache; `result` is `connection`, `hit` or `miss`.
    pub fn looked_up(&self, result: &'static str) {
        if let Some(at) = LOOKUPS.iter().position(|known| *known == result) {
            self.lookups[at].inc();
        }
    }

    /// Counts a remote check; `outcome` is `yes`, `no` or `unanswered`.
    pub fn asked(&self, provider: &Label, outcome: &'static str, took: Duration) {
        let labels = Attempt { provider: Arc::clone(provider), outcome };
        self.remote_checks.get_or_create(&labels).inc();
        self.remote_check_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
