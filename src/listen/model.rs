//! A model of one connection, from the 101 of an in-band handshake to the end of both of its sides: every order of events
//! up to a depth runs through the product between a client and an upstream in memory, on a paused clock.
//!
//! `connection` runs the product, and `contract` foretells from the documentation alone what each peer receives, with
//! what waits for a peer that takes nothing in `window`; `step` has the events. After every event the two must agree, and
//! from every state the connection must end by itself, within its time limits, and leave nothing behind. Orders that lead
//! to the same state of the contract (all that both peers sent and received, the time, and all that is awaited) are
//! explored once.

mod connection;
mod contract;
mod peer;
mod step;
mod window;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use connection::{Configurations, Connection};
use contract::Contract;
use peer::FakePeer;
use step::Step;

/// The events that happen at one moment, in the order in which they are made.
type Moment = Vec<Step>;

/// How orders are explored.
#[derive(Clone, Copy)]
struct Exploration {
    /// The number of moments after the beginning.
    depth: usize,
    /// Whether two events may happen at one moment, so that the proxy sees both at once.
    has_pairs: bool,
    /// Whether orders that lead to the same state are explored once.
    merges: bool,
    /// The time after which no further order is begun.
    limit: Duration,
}

/// The result of an exploration.
#[derive(Debug, Default)]
struct Explored {
    /// The number of orders that were run, each to its end.
    orders: usize,
    /// The number of orders that led to a known state.
    merged: usize,
    /// The length up to which all orders were run, in moments.
    depth: usize,
    /// What went wrong, in the shortest orders.
    failures: Vec<String>,
}

/// The number of failures after which an exploration ends.
const MAX_FAILURES: usize = 5;

/// Runs an order, and then lets the time pass until the connection ends. Returns the possible states of the contract
/// before that; `None` if `is_known` finds them known.
///
/// # Errors
/// Returns what differs from the contract.
fn run(
    configurations: &Configurations,
    order: &[Moment],
    is_known: impl FnOnce(&[Contract]) -> bool,
) -> Result<Option<Vec<Contract>>, String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let mut connection = Connection::open(configurations).await;
        let mut states = vec![Contract::begin(connection.now())];
        for moment in order {
            happen(&mut connection, &mut states, moment).await?;
        }
        if is_known(&states) {
            return Ok(None);
        }
        let mut ending = states.clone();
        let gone_by = ending.iter_mut().map(Contract::advance_to_end).max().unwrap_or_default();
        connection.wait_until(gone_by + 2).await;
        check(&connection, &mut ending)?;
        let leftovers = connection.leftovers();
        if !leftovers.is_empty() {
            return Err(format!("{leftovers:?} are left {gone_by} ms after the beginning"));
        }
        Ok(Some(states))
    })
}

/// Makes the events of one moment happen, and keeps the states of the contract that agree with what the peers received.
async fn happen(connection: &mut Connection<'_>, states: &mut Vec<Contract>, moment: &[Step]) -> Result<(), String> {
    let mut sent = states[0].clone();
    for step in moment {
        connection.inject(*step, &sent);
        sent.take(*step);
    }
    let mut after: Vec<Contract> = Vec::new();
    for state in &*states {
        for state in outcomes(state, moment) {
            if !after.contains(&state) {
                after.push(state);
            }
        }
    }
    let until = after.iter().map(|state| state.now).max().unwrap_or_default() + 1;
    connection.wait_until(until).await;
    for state in &mut after {
        state.advance(until);
    }
    check(connection, &mut after)?;
    *states = after;
    Ok(())
}

/// Returns the states that may follow, one for each order in which the proxy may see the events of one moment.
fn outcomes(state: &Contract, moment: &[Step]) -> Vec<Contract> {
    let after = |change: &dyn Fn(&mut Contract)| {
        let mut state = state.clone();
        change(&mut state);
        state
    };
    let mut outcomes = vec![after(&|state| moment.iter().for_each(|step| state.take(*step)))];
    if let [first, second] = *moment
        && first.has_no_order(second)
    {
        outcomes.push(after(&|state| [second, first].into_iter().for_each(|step| state.take(step))));
        for (change, step) in [(first, second), (second, first)] {
            if change.changes_rights() {
                outcomes.push(after(&|state| state.take_amid(change, step)));
            }
            if change.reads_again() {
                outcomes.push(after(&|state| state.take_before_end(change, step)));
            }
        }
    }
    outcomes
}

/// Keeps the states that agree with what the peers received.
///
/// # Errors
/// Returns the difference if there is none.
fn check(connection: &Connection<'_>, states: &mut Vec<Contract>) -> Result<(), String> {
    let none = Vec::new();
    let upstream = connection.upstream.as_ref();
    let (client, to_upstream) = (&connection.client.items, upstream.map_or(&none, |upstream| &upstream.items));
    let is_received = |peer: &FakePeer, foretold: &Vec<_>| {
        // A peer that is gone may have missed the last of it.
        if peer.is_connected() { *foretold == peer.items } else { foretold.starts_with(&peer.items) }
    };
    let foretold: Vec<_> = states.iter().map(|state| (state.to_client.clone(), state.to_upstream.clone())).collect();
    let mut violation = None;
    states.retain_mut(|state| {
        violation = connection.violation(state.user);
        is_received(&connection.client, &state.to_client)
            && upstream.map_or(state.to_upstream.is_empty(), |upstream| is_received(upstream, &state.to_upstream))
            && upstream.is_some() == state.has_dialed()
            && state.agrees_on_question(connection.is_asked())
            && violation.is_none()
    });
    if states.is_empty() {
        return Err(format!(
            "received {client:?} and {to_upstream:?}, connected to the upstream: {}, {violation:?}; foretold {foretold:?}",
            upstream.is_some()
        ));
    }
    Ok(())
}

/// Returns the moments that may come after these states.
fn next_moments(states: &[Contract], has_pairs: bool) -> Vec<Moment> {
    let since = states[0].now;
    let can = |states: &[Contract], step| states.iter().all(|state| state.can(step, since));
    let mut moments = Vec::new();
    for first in Step::ALL.into_iter().filter(|step| can(states, *step)) {
        moments.push(vec![first]);
        if !has_pairs {
            continue;
        }
        let mut after = states.to_vec();
        for state in &mut after {
            state.take(first);
        }
        for second in Step::ALL.into_iter().filter(|second| first.may_coincide(*second) && can(&after, *second)) {
            moments.push(vec![first, second]);
        }
    }
    moments
}

/// Explores the orders that begin with these events, shorter ones first.
fn explore(beginning: &[Step], exploration: Exploration) -> Explored {
    let began = Instant::now();
    let configurations = Configurations::read();
    let mut known: HashSet<Vec<Contract>> = HashSet::new();
    let mut explored = Explored::default();
    let beginning: Vec<Moment> = beginning.iter().map(|step| vec![*step]).collect();
    let states = run(&configurations, &beginning, |_| false).expect("the contract is kept").expect("states");
    let mut orders = vec![(beginning, states)];
    for depth in 1..=exploration.depth {
        let mut longer = Vec::new();
        for (order, states) in &orders {
            for moment in next_moments(states, exploration.has_pairs) {
                if began.elapsed() >= exploration.limit || explored.failures.len() >= MAX_FAILURES {
                    return explored;
                }
                let mut order = order.clone();
                order.push(moment);
                let is_known = |states: &[Contract]| exploration.merges && !known.insert(states.to_vec());
                match run(&configurations, &order, is_known) {
                    Ok(Some(states)) => {
                        explored.orders += 1;
                        // Orders of the greatest length are not continued.
                        if depth < exploration.depth {
                            longer.push((order, states));
                        }
                    }
                    Ok(None) => explored.merged += 1,
                    Err(failure) => explored.failures.push(format!("{order:?}: {failure}")),
                }
            }
        }
        explored.depth = depth;
        orders = longer;
    }
    explored
}

/// Explores orders from a beginning, one event after the other and with pairs, and fails if one breaks the contract. A
/// long run explores as deep as its time allows; see CONTRIBUTING.md.
fn hold_contract(name: &str, beginning: &[Step], depth: usize) {
    let variable = |name: &str| std::env::var(name).ok();
    let seconds = variable("CONNECTION_MODEL_SECONDS").map(|seconds| seconds.parse().expect("a number of seconds"));
    let merges = variable("CONNECTION_MODEL_MERGES").is_none_or(|merges| merges != "no");
    for has_pairs in [false, true] {
        // A long run has half of its time for each.
        let limit = seconds.map_or(Duration::MAX, |seconds| Duration::from_secs(seconds) / 2);
        let depth = if seconds.is_some() {
            usize::MAX
        } else if has_pairs {
            1
        } else {
            depth
        };
        let exploration = Exploration { depth, has_pairs, merges, limit };
        let began = Instant::now();
        let explored = explore(beginning, exploration);
        println!(
            "{name}, {}: {} orders, {} merged, complete to {} moments, in {:?}",
            if has_pairs { "with pairs" } else { "one by one" },
            explored.orders,
            explored.merged,
            explored.depth,
            began.elapsed()
        );
        assert!(explored.failures.is_empty(), "{:#?}", explored.failures);
        assert!(explored.orders > 20, "{explored:?}");
    }
}

/// The events until messages are relayed.
const RELAYING: [Step; 3] = [Step::Authenticate, Step::VerdictGood, Step::UpstreamOpen];

/// Runs a single order of events, one at a time, once messages are relayed.
fn hold_contract_in(events: &[Step]) {
    let order: Vec<Moment> = RELAYING.iter().chain(events).map(|step| vec![*step]).collect();
    let states = run(&Configurations::read(), &order, |_| false);
    assert!(matches!(states, Ok(Some(_))), "{states:?}");
}

/// The session ends while the upstream's Close is the last frame to the client, so that the client gets no other.
#[test]
fn a_session_that_is_revoked_after_its_upstream_has_closed_verifies_no_waiting_refresh() {
    hold_contract_in(&[Step::Refresh, Step::Refresh, Step::UpstreamClose, Step::Revocation]);
}

#[test]
fn a_client_that_has_closed_and_takes_nothing_for_a_time_still_receives_all_messages() {
    let waiting = [Step::ClientStopsReading, Step::UpstreamMessage, Step::UpstreamMessage, Step::UpstreamClose];
    let events = [&[Step::ClientClose], &waiting[..], &[Step::Stall, Step::Stall, Step::ClientReadsAgain]];
    hold_contract_in(&events.concat());
}

#[test]
fn an_upstream_that_has_closed_and_takes_nothing_for_a_time_still_receives_all_messages() {
    let waiting = [Step::UpstreamStopsReading, Step::ClientMessage, Step::ClientMessage, Step::ClientClose];
    let events = [&[Step::UpstreamClose], &waiting[..], &[Step::Stall, Step::Stall, Step::UpstreamReadsAgain]];
    hold_contract_in(&events.concat());
}

#[test]
fn every_order_from_a_pending_connection_keeps_the_contract_and_ends() {
    hold_contract("pending", &[], 3);
}

#[test]
fn every_order_during_the_first_verification_keeps_the_contract_and_ends() {
    hold_contract("verifying", &[Step::Authenticate], 3);
}

#[test]
fn every_order_while_the_upstream_is_dialed_keeps_the_contract_and_ends() {
    hold_contract("dialing", &[Step::Authenticate, Step::VerdictGood], 3);
}

#[test]
fn every_order_of_a_relayed_connection_keeps_the_contract_and_ends() {
    hold_contract("relaying", &RELAYING, 3);
}

#[test]
fn every_order_while_the_client_takes_nothing_keeps_the_contract_and_ends() {
    let waiting = [Step::ClientStopsReading, Step::UpstreamMessage];
    hold_contract("client takes nothing", &[&RELAYING[..], &waiting].concat(), 2);
}

#[test]
fn every_order_while_the_upstream_takes_nothing_keeps_the_contract_and_ends() {
    let waiting = [Step::UpstreamStopsReading, Step::ClientMessage];
    hold_contract("upstream takes nothing", &[&RELAYING[..], &waiting].concat(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_frame_of_which_a_pending_client_has_taken_a_part_only() {
    const PIPE_BYTES: usize = 512;
    let configurations = Configurations::read();
    let mut connection = Connection::open_through(&configurations, crate::simulation::connection_of(PIPE_BYTES)).await;
    // Answers of 102 bytes each: the sixth does not fit.
    for _ in 0..2 {
        for _ in 0..3 {
            connection.client.send_frame(9, &[b'p'; 100]);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..3 {
        connection.client.receive_bytes();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(connection.client.has_ended, "the socket is dropped");
    assert_eq!(connection.client.bytes.len(), PIPE_BYTES);
    assert_eq!(connection.refused_sockets(), Vec::<String>::new(), "the client is not blamed");
    connection.client.disconnect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(connection.leftovers(), Vec::<String>::new());
}
