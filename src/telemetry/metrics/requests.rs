//! Metrics of requests and upstream responses.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::last_series::{LastSeries, Owner};
use super::{OfRoute, hash_labels};
use crate::telemetry::Label;
use crate::telemetry::{AccessLine, Rule};

#[derive(Clone, Debug, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    route: Label,
    method: &'static str,
    code: u16,
    answered_by: &'static str,
}

impl Hash for Request {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_labels(state, self.code, &[&self.route, self.method, self.answered_by]);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    route: Label,
    answered_by: &'static str,
}

impl Hash for Answered {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_labels(state, 0, &[&self.route, self.answered_by]);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    route: Label,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Denial {
    route: Label,
    rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stripped {
    header: Label,
}

thread_local! {
    static LAST_REQUEST: LastSeries<Request, Counter> = const { LastSeries::new() };
    static LAST_DURATION: LastSeries<Answered, Histogram> = const { LastSeries::new() };
    static LAST_UPSTREAM_HEAD: LastSeries<Label, Histogram> = const { LastSeries::new() };
}

/// The reasons why there is no usable response of an upstream.
const FAILURES: [&str; 4] = ["connect", "connect_timeout", "response_timeout", "broken"];
/// The buckets of response times, in seconds: from a cached response to that of a slow model.
const SECONDS: [f64; 11] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The metrics of requests.
#[derive(Debug)]
pub struct Requests {
    owner: Owner,
    answered: Family<Request, Counter>,
    duration: Family<Answered, Histogram>,
    upstream_head: Family<OfRoute, Histogram>,
    upstream_errors: Family<Failure, Counter>,
    denied: Family<Denial, Counter>,
    stripped: Family<Stripped, Counter>,
}

impl Requests {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let this = Self {
            owner: Owner::new(),
            answered: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            upstream_head: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            upstream_errors: Family::default(),
            denied: Family::default(),
            stripped: Family::default(),
        };
        registry.register("http_requests", "Requests, including upgrades", this.answered.clone());
        let took = "Time from a request's head to the end of its response, without sockets";
        registry.register("http_request_duration_seconds", took, this.duration.clone());
        let head = "Time from sending a request to the head of the upstream's response";
        registry.register("upstream_response_head_seconds", head, this.upstream_head.clone());
        registry.register(
            "upstream_errors",
            "Requests without a usable response of the upstream",
            this.upstream_errors.clone(),
        );
        registry.register("access_denied", "Requests that a rule denied", this.denied.clone());
        let stripped = "Identity headers that clients sent and that were removed";
        registry.register("identity_headers_stripped", stripped, this.stripped.clone());
        this
    }

    /// Creates the values of a route, which start at zero.
    pub(super) fn create_series(&self, route: &Label) {
        for reason in FAILURES {
            self.upstream_errors.get_or_create_owned(&Failure { route: Arc::clone(route), reason });
        }
        for rule in Rule::ALL {
            self.denied.get_or_create_owned(&Denial { route: Arc::clone(route), rule: rule.name() });
        }
    }

    /// Creates the values of these header names and of `other`, which start at zero.
    pub(super) fn introduce_headers<'a>(&self, names: impl Iterator<Item = &'a str>) {
        for header in names.chain(["other"]) {
            self.stripped.get_or_create_owned(&Stripped { header: header.into() });
        }
    }

    /// Counts a request whose response has ended.
    pub fn finished(&self, line: &AccessLine) {
        self.counted(line);
        let answered_by = line.answered_by.name();
        let is_same = |last: &Answered| last.answered_by == answered_by && last.route == line.route;
        let find = || {
            let labels = Answered { route: Arc::clone(&line.route), answered_by };
            let duration = self.duration.get_or_create_owned(&labels);
            (labels, duration)
        };
        let observe = |duration: &Histogram| duration.observe(line.duration.as_secs_f64());
        LastSeries::count(&LAST_DURATION, self.owner, is_same, find, observe);
    }

    /// Counts a request, without its duration: its socket is still open.
    pub fn counted(&self, line: &AccessLine) {
        let (method, code, answered_by) = (known(&line.method), line.status, line.answered_by.name());
        let is_same = |last: &Request| {
            last.code == code && last.method == method && last.answered_by == answered_by && last.route == line.route
        };
        let find = || {
            let labels = Request { route: Arc::clone(&line.route), method, code, answered_by };
            let answered = self.answered.get_or_create_owned(&labels);
            (labels, answered)
        };
        LastSeries::count(&LAST_REQUEST, self.owner, is_same, find, |answered: &Counter| {
            answered.inc();
        });
    }

    /// Observes the time until the head of an upstream's response.
    pub fn answered(&self, route: &Label, took: Duration) {
        let find = || {
            let labels = OfRoute { route: Arc::clone(route) };
            (Arc::clone(route), self.upstream_head.get_or_create_owned(&labels))
        };
        let observe = |head: &Histogram| head.observe(took.as_secs_f64());
        LastSeries::count(&LAST_UPSTREAM_HEAD, self.owner, |last| last == route, find, observe);
    }

    /// Counts a request without a usable response of the upstream: `connect`, `connect_timeout`, `response_timeout` or `broken`.
    pub fn upstream_failed(&self, route: &Label, reason: &'static str) {
        self.upstream_errors.get_or_create(&Failure { route: Arc::clone(route), reason }).inc();
    }

    /// Counts a request that a rule denied.
    pub fn denied(&self, route: &Label, rule: Rule) {
        self.denied.get_or_create(&Denial { route: Arc::clone(route), rule: rule.name() }).inc();
    }

    /// Counts an identity header that a client sent.
    pub fn stripped(&self, header: &str) {
        let known = Stripped { header: header.into() };
        match self.stripped.get(&known) {
            Some(count) => count.inc(),
            None => self.stripped.get_or_create(&Stripped { header: "other".into() }).inc(),
        };
    }
}

/// Returns the method as a label; unknown methods share one, because clients can invent them.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
