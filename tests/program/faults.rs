//! A short form of the fault run: the code of `cargo bench --bench faults` with few clients and a fixed list of faults.

#[allow(dead_code, reason = "the command draws from all variants and prints a report")]
#[path = "../../benches/faults/mod.rs"]
mod run;

use std::time::Duration;

use run::{Damage, Fault, Place, Provider, Round, Variant};

/// The faults, each once. Those of the provider and the log disturb nothing.
const FAULTS: [Fault; 9] = [
    Fault::Damage(Place::Clients, Damage::Corrupt),
    Fault::Provider(Provider::Garbage),
    Fault::Damage(Place::Upstream, Damage::Reset),
    Fault::LogUnread,
    Fault::LogClosed,
    Fault::UpstreamGarbage,
    Fault::Damage(Place::Upstream, Damage::Corrupt),
    Fault::InvalidReload,
    Fault::Restart,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_faults_each_request_is_its_users_and_what_they_do_not_touch_is_served() {
    let round = Round {
        variant: Variant::Plain,
        length: Duration::ZERO,
        faults: Some(FAULTS.to_vec()),
        clients: 6,
        sockets: 6,
        // A safety net: no fault of the list makes the upstream slow.
        response_timeout: Duration::from_secs(30),
        seed: 1,
    };
    let summary = round.run().await;
    assert!(summary.violations.is_empty(), "{:#?}\n{:#?}", summary.violations, summary.counts);
    for fault in FAULTS {
        assert_eq!(summary.counts.get(&format!("fault: {fault:?}")), Some(&1), "{fault:?}");
    }
    for what in [
        "requests that should be accepted: 200",
        "requests that should be refused: 401",
        "messages up",
        "users revoked",
    ] {
        assert!(summary.counts.get(what).is_some_and(|count| *count > 0), "{what}: {:#?}", summary.counts);
    }
}
