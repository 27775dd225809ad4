//! What is known about every request and socket, the times of faults, and the violations that were found.
//!
//! Clients enter a request before they send it, the upstream looks it up when it arrives. Nothing here is taken from the
//! proxy: the rules are those of its documentation.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::relay::Trace;
use crate::support::now;

/// The maximum number of violations that are kept as text.
const KEPT: usize = 100;

/// The times at which a credential is valid, in seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    Never,
    Between(u64, u64),
}

/// A credential as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Credential {
    /// The name of its kind, for the report.
    pub(crate) kind: &'static str,
    pub(crate) user: String,
    pub(crate) token: String,
    pub(crate) validity: Validity,
}

/// Whether a credential must be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Accepted,
    Refused,
    /// The clock or a revocation changed meanwhile.
    Either,
}

impl Expected {
    /// Returns the words for it in the counts.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Accepted => "that should be accepted",
            Self::Refused => "that should be refused",
            Self::Either => "that may be accepted or refused",
        }
    }
}

/// A request or a socket that was sent.
struct Entry {
    credential: Credential,
    sent: Instant,
    /// The client's connection.
    client: Arc<Trace>,
    /// Whether a repeated arrival is a duplicate: the proxy may repeat what is idempotent and has no body.
    is_unique: bool,
    /// The connections of the upstream on which it arrived.
    arrivals: Vec<Arc<Trace>>,
}

/// The kinds of traffic that a fault may disturb.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Disturbs {
    /// Requests and the opening of sockets.
    pub(crate) requests: bool,
    /// Sockets that are open and whose connections the relays did not damage.
    pub(crate) sockets: bool,
    /// The answers of `/.vestibule/healthz`.
    pub(crate) health: bool,
}

impl Disturbs {
    pub(crate) const NOTHING: Self = Self { requests: false, sockets: false, health: false };
    pub(crate) const REQUESTS: Self = Self { requests: true, sockets: false, health: false };
    pub(crate) const ALL: Self = Self { requests: true, sockets: true, health: true };

    pub(crate) const fn or(self, other: Self) -> Self {
        Self {
            requests: self.requests || other.requests,
            sockets: self.sockets || other.sockets,
            health: self.health || other.health,
        }
    }
}

struct Disturbance {
    what: Disturbs,
    from: Instant,
    to: Option<Instant>,
}

/// The counts and the violations of a run.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
    pub(crate) violation_count: u64,
}

pub(crate) struct Ledger {
    entries: Mutex<HashMap<u64, Entry>>,
    numbers: AtomicU64,
    disturbances: Mutex<Vec<Disturbance>>,
    /// The possible offsets of the proxy's clock in seconds, and since when.
    offsets: Mutex<Vec<(Instant, Vec<i64>)>>,
    revoked: Mutex<HashMap<String, Revocation>>,
    findings: Mutex<Findings>,
}

struct Revocation {
    asked: Instant,
    /// The time from which it is in force for certain.
    confirmed: Option<Instant>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            entries: Mutex::default(),
            numbers: AtomicU64::new(1),
            disturbances: Mutex::default(),
            offsets: Mutex::new(vec![(Instant::now(), vec![0])]),
            revoked: Mutex::default(),
            findings: Mutex::default(),
        }
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn count(&self, what: &str) {
        self.count_by(what, 1);
    }

    pub(crate) fn count_by(&self, what: &str, by: u64) {
        *self.findings.lock().expect("lock").counts.entry(what.to_owned()).or_default() += by;
    }

    pub(crate) fn violation(&self, what: String) {
        let mut findings = self.findings.lock().expect("lock");
        findings.violation_count += 1;
        if findings.violations.len() < KEPT {
            findings.violations.push(what);
        }
    }

    pub(crate) fn take_findings(&self) -> Findings {
        std::mem::take(&mut *self.findings.lock().expect("lock"))
    }

    pub(crate) fn enter(&self, number: u64, credential: &Credential, client: &Arc<Trace>, is_unique: bool) {
        let entry = Entry {
            credential: credential.clone(),
            sent: Instant::now(),
            client: Arc::clone(client),
            is_unique,
            arrivals: Vec::new(),
        };
        self.entries.lock().expect("lock").insert(number, entry);
    }

    /// Records that a request arrived at the upstream as this user's. Returns whether the number is known.
    pub(crate) fn arrived(&self, number: u64, users: &[String], trace: &Arc<Trace>) -> bool {
        let mut entries = self.entries.lock().expect("lock");
        let Some(entry) = entries.get_mut(&number) else { return false };
        let credential = &entry.credential;
        let about = format!("request {number} with a token of {} ({})", credential.user, credential.kind);
        if users != [credential.user.clone()] {
            self.violation(format!("{about} reached the upstream as {users:?}"));
        }
        if self.expected(credential, entry.sent, Instant::now()) == Expected::Refused {
            self.violation(format!("{about} reached the upstream, although its token was not valid"));
        }
        if entry.is_unique && !entry.arrivals.is_empty() {
            self.violation(format!("{about} reached the upstream twice"));
        }
        entry.arrivals.push(Arc::clone(trace));
        true
    }

    /// Returns the connections on which a request arrived.
    pub(crate) fn arrivals(&self, number: u64) -> Vec<Arc<Trace>> {
        self.entries.lock().expect("lock").get(&number).map_or_else(Vec::new, |entry| entry.arrivals.clone())
    }

    /// Records a complete request body at the upstream that is not the one that was sent.
    pub(crate) fn body_differs(&self, number: u64, what: &str) {
        let entries = self.entries.lock().expect("lock");
        if entries.get(&number).is_some_and(|entry| !entry.client.is_corrupted()) {
            self.violation(format!("the body of request {number}: {what}"));
        }
    }

    /// Returns whether a credential must be accepted by a check that is made between these two times.
    pub(crate) fn expected(&self, credential: &Credential, from: Instant, to: Instant) -> Expected {
        let Validity::Between(begin, end) = credential.validity else { return Expected::Refused };
        if let Some(revocation) = self.revoked.lock().expect("lock").get(&credential.user) {
            if revocation.confirmed.is_some_and(|at| at < from) {
                return Expected::Refused;
            }
            if revocation.asked < to {
                return Expected::Either;
            }
        }
        let clock = i64::try_from(now()).unwrap_or(i64::MAX);
        let is_valid = |offset: i64| (begin..end).contains(&u64::try_from(clock + offset).unwrap_or(0));
        let offsets = self.offsets.lock().expect("lock");
        // The offset at `from` is the last that began before it.
        let first = offsets.iter().rposition(|(since, _)| *since <= from).unwrap_or(0);
        let in_force = offsets[first..].iter().enumerate().filter(|(at, (since, _))| *at == 0 || *since <= to);
        let outcomes: HashSet<bool> =
            in_force.flat_map(|(_, (_, offsets))| offsets.iter().map(|offset| is_valid(*offset))).collect();
        match (outcomes.contains(&true), outcomes.contains(&false)) {
            (true, true) => Expected::Either,
            (true, false) => Expected::Accepted,
            _ => Expected::Refused,
        }
    }

    /// Records the possible offsets of the proxy's clock from now on: two while it is being changed.
    pub(crate) fn clock_is(&self, offsets: &[i64]) {
        self.offsets.lock().expect("lock").push((Instant::now(), offsets.to_vec()));
    }

    pub(crate) fn revocation_asked(&self, user: &str) {
        let revocation = Revocation { asked: Instant::now(), confirmed: None };
        self.revoked.lock().expect("lock").entry(user.to_owned()).or_insert(revocation);
    }

    pub(crate) fn revocation_confirmed(&self, user: &str) {
        if let Some(revocation) = self.revoked.lock().expect("lock").get_mut(user) {
            revocation.confirmed.get_or_insert_with(Instant::now);
        }
    }

    /// Begins a disturbance and returns its index.
    pub(crate) fn disturb(&self, what: Disturbs) -> usize {
        let mut disturbances = self.disturbances.lock().expect("lock");
        disturbances.push(Disturbance { what, from: Instant::now(), to: None });
        disturbances.len() - 1
    }

    pub(crate) fn end_disturbance(&self, index: usize) {
        self.disturbances.lock().expect("lock")[index].to = Some(Instant::now());
    }

    /// Returns whether a disturbance of this kind was in force between these two times.
    pub(crate) fn is_disturbed(&self, of: impl Fn(Disturbs) -> bool, from: Instant, to: Instant) -> bool {
        let disturbances = self.disturbances.lock().expect("lock");
        disturbances.iter().any(|one| of(one.what) && one.from <= to && one.to.is_none_or(|end| end >= from))
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the command is built without a test harness")]
mod tests {
    //! The judgement itself: each kind of wrong arrival is a violation.

    use super::*;

    fn credential(from: i64, to: i64) -> Credential {
        let at = |offset| now().saturating_add_signed(offset);
        Credential {
            kind: "valid",
            user: "alice".to_owned(),
            token: String::new(),
            validity: Validity::Between(at(from), at(to)),
        }
    }

    /// Returns the violations of one arrival of this credential's request as these users'.
    fn arrival(ledger: &Ledger, credential: &Credential, users: &[&str]) -> Vec<String> {
        let (number, client) = (ledger.next_number(), Arc::default());
        ledger.enter(number, credential, &client, true);
        let users: Vec<String> = users.iter().map(|user| (*user).to_owned()).collect();
        assert!(ledger.arrived(number, &users, &Arc::default()));
        ledger.take_findings().violations
    }

    #[test]
    fn a_request_of_its_user_is_no_violation_and_any_other_is() {
        let (ledger, valid) = (Ledger::new(), credential(-60, 600));
        assert!(arrival(&ledger, &valid, &["alice"]).is_empty());
        for users in [&["bob"][..], &[], &["alice", "bob"]] {
            assert_eq!(arrival(&ledger, &valid, users).len(), 1, "{users:?}");
        }
    }

    #[test]
    fn an_invalid_token_at_the_upstream_is_a_violation() {
        let ledger = Ledger::new();
        let never = Credential { validity: Validity::Never, ..credential(-60, 600) };
        for credential in [never, credential(-600, -60), credential(60, 600)] {
            assert_eq!(arrival(&ledger, &credential, &["alice"]).len(), 1, "{credential:?}");
        }
    }

    #[test]
    fn a_revoked_user_at_the_upstream_is_a_violation_once_it_is_confirmed() {
        let (ledger, valid) = (Ledger::new(), credential(-60, 600));
        ledger.revocation_asked("alice");
        assert!(arrival(&ledger, &valid, &["alice"]).is_empty());
        ledger.revocation_confirmed("alice");
        assert_eq!(arrival(&ledger, &valid, &["alice"]).len(), 1);
    }

    #[test]
    fn a_second_arrival_is_a_violation() {
        let (ledger, valid) = (Ledger::new(), credential(-60, 600));
        ledger.enter(1, &valid, &Arc::default(), true);
        let users = ["alice".to_owned()];
        assert!(ledger.arrived(1, &users, &Arc::default()) && ledger.arrived(1, &users, &Arc::default()));
        assert_eq!(ledger.take_findings().violations.len(), 1);
    }

    #[test]
    fn validity_follows_the_clock_of_the_proxy() {
        let (ledger, begun) = (Ledger::new(), Instant::now());
        let short = credential(-60, 600);
        assert_eq!(ledger.expected(&short, begun, Instant::now()), Expected::Accepted);
        let hour = 3_600;
        ledger.clock_is(&[0, hour]);
        assert_eq!(ledger.expected(&short, Instant::now(), Instant::now()), Expected::Either);
        ledger.clock_is(&[hour]);
        assert_eq!(ledger.expected(&short, Instant::now(), Instant::now()), Expected::Refused);
        assert_eq!(ledger.expected(&short, begun, Instant::now()), Expected::Either);
    }
}
