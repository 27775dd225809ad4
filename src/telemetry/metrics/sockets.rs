//! Metrics of `WebSockets`.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::OfRoute;
use crate::telemetry::Label;
use crate::telemetry::outcome;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Opened {
    route: Label,
    carrier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Closed {
    code: u16,
    closed_by: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refreshed {
    route: Label,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Expired {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Passed {
    route: Label,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InQuery {
    route: Label,
    mode: &'static str,
}

/// The carrier of a socket without a token.
const NO_CARRIER: &str = "none";
/// The outcomes that are not refusals.
const NOT_REFUSED: [&str; 4] = ["accepted", "public", "preflight", "own"];
const REFRESHES: [&str; 5] = ["accepted", "refused", "denied", "another_user", "identity_changed"];
const EXPIRIES: [&str; 2] = ["closed", "kept"];
const MODES: [&str; 2] = ["move", "deny"];
/// The buckets of socket durations, in seconds: from a page that is closed at once to a whole day.
const SECONDS: [f64; 9] = [1.0, 10.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0];

/// The metrics of `WebSockets`.
#[derive(Debug)]
pub struct Sockets {
    open: Family<OfRoute, Gauge>,
    pub(super) waiting: Gauge,
    /// The open sockets of all routes.
    all_open: Gauge,
    opened: Family<Opened, Counter>,
    refused: Family<Refused, Counter>,
    closed: Family<Closed, Counter>,
    duration: Family<OfRoute, Histogram>,
    refreshes: Family<Refreshed, Counter>,
    expiries: Family<Expired, Counter>,
    bytes: Family<Passed, Counter>,
    /// The counters in `bytes` of each route, which its sockets share.
    passed: RwLock<HashMap<Label, Arc<PassedBytes>>>,
    query_tokens: Family<InQuery, Counter>,
}

/// The byte counters of one route. A socket looks them up once instead of at each message.
#[derive(Debug)]
pub struct PassedBytes {
    /// Bytes from clients.
    pub from_client: Counter,
    /// Bytes to clients.
    pub to_client: Counter,
}

impl Sockets {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let this = Self {
            open: Family::default(),
            waiting: Gauge::default(),
            all_open: Gauge::default(),
            opened: Family::default(),
            refused: Family::default(),
            closed: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            refreshes: Family::default(),
            expiries: Family::default(),
            bytes: Family::default(),
            passed: RwLock::default(),
            query_tokens: Family::default(),
        };
        for reason in outcome::all().filter(|outcome| !NOT_REFUSED.contains(outcome)) {
            this.refused.get_or_create_owned(&Refused { reason });
        }
        for action in EXPIRIES {
            this.expiries.get_or_create_owned(&Expired { action });
        }
        registry.register("websockets_open", "Open sockets, authenticated or public", this.open.clone());
        registry.register("websockets_waiting", "Sockets that wait for their first message", this.waiting.clone());
        registry.register("websockets_opened", "Sockets that reached the upstream", this.opened.clone());
        registry.register(
            "websockets_refused",
            "Sockets that were refused before they reached the upstream",
            this.refused.clone(),
        );
        registry.register("websockets_closed", "Sockets that ended; code 0: without a Close", this.closed.clone());
        registry.register("websocket_duration_seconds", "Duration of sockets", this.duration.clone());
        registry.register("websocket_refreshes", "Tokens presented on open sockets", this.refreshes.clone());
        let expiries = "Sockets whose token expired: closed, or kept while their user is active";
        registry.register("websocket_expiries", expiries, this.expiries.clone());
        registry.register("websocket_bytes", "Bytes of sockets, including frame headers", this.bytes.clone());
        registry.register("query_tokens", "Tokens in URLs, deprecated", this.query_tokens.clone());
        this
    }

    /// Creates the values of a route, which start at zero.
    pub(super) fn create_series(&self, route: &Label, carriers: &[&'static str]) {
        let route = || Arc::clone(route);
        self.open.get_or_create_owned(&OfRoute { route: route() });
        for carrier in carriers.iter().chain(&[NO_CARRIER]) {
            self.opened.get_or_create_owned(&Opened { route: route(), carrier });
        }
        for outcome in REFRESHES {
            self.refreshes.get_or_create_owned(&Refreshed { route: route(), outcome });
        }
        self.passed(&route());
        for mode in MODES {
            self.query_tokens.get_or_create_owned(&InQuery { route: route(), mode });
        }
    }

    /// Counts a socket that reached the upstream. Returns the counters of its bytes.
    #[must_use]
    pub fn opened(&self, route: &Label, carrier: Option<&'static str>) -> Arc<PassedBytes> {
        let labels = Opened { route: Arc::clone(route), carrier: carrier.unwrap_or(NO_CARRIER) };
        self.opened.get_or_create(&labels).inc();
        self.open.get_or_create(&OfRoute { route: Arc::clone(route) }).inc();
        self.all_open.inc();
        self.passed(route)
    }

    fn passed(&self, route: &Label) -> Arc<PassedBytes> {
        if let Some(passed) = self.passed.read().unwrap_or_else(PoisonError::into_inner).get(route) {
            return Arc::clone(passed);
        }
        let bytes = |direction| self.bytes.get_or_create_owned(&Passed { route: Arc::clone(route), direction });
        let passed = || Arc::new(PassedBytes { from_client: bytes("in"), to_client: bytes("out") });
        let mut all = self.passed.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(Arc::clone(route)).or_insert_with(passed))
    }

    /// Returns the number of open sockets.
    #[must_use]
    pub fn open(&self) -> i64 {
        self.all_open.get()
    }

    /// Counts the end of an open socket.
    pub fn closed(&self, route: &Label, code: Option<u16>, closed_by: &'static str, lived: Duration) {
        let of = OfRoute { route: Arc::clone(route) };
        self.open.get_or_create(&of).dec();
        self.all_open.dec();
        self.duration.get_or_create(&of).observe(lived.as_secs_f64());
        self.closed.get_or_create(&Closed { code: known(code), closed_by }).inc();
    }

    /// Counts a socket that did not open; `reason` is the `outcome` of its access line.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    /// Counts a token that was presented on an open socket: `accepted`, `refused`, `denied`, `another_user`,
    /// `identity_changed`.
    pub fn refreshed(&self, route: &Label, outcome: &'static str) {
        self.refreshes.get_or_create(&Refreshed { route: Arc::clone(route), outcome }).inc();
    }

    /// Counts a token that expired on an open socket, which was `closed` or `kept`.
    pub fn expired(&self, action: &'static str) {
        self.expiries.get_or_create(&Expired { action }).inc();
    }

    /// Counts a token in a URL.
    pub fn in_query(&self, route: &Label, mode: &'static str) {
        self.query_tokens.get_or_create(&InQuery { route: Arc::clone(route), mode }).inc();
    }
}

/// Returns the close code as a label. A peer may send any code from 3000 to 4999; unknown ones share a label.
fn known(code: Option<u16>) -> u16 {
    match code.unwrap_or(0) {
        code @ (0 | 1000..=1015 | 4001 | 4400..=4429 | 3000) => code,
        3001..=3999 => 3999,
        _ => 4999,
    }
}
