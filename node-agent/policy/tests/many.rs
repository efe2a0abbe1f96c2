//! Deciding stays quick whatever thousands of users ask: a second or two, not minutes, where they do their worst.
//!
//! `cargo test -p sallyport-policy --test many -- --nocapture` prints how long each took.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test may panic, and says what it measured"
)]
#![allow(clippy::disallowed_types, reason = "how long it takes is what is tested")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::port_forward::{ForwardPort, Mode, PortForwardSpec};
use sallyport_policy::decide::{Decision, Verdict};
use sallyport_policy::observed::Outgoing;

#[path = "support/scene.rs"]
mod scene;
#[path = "support/specs.rs"]
mod specs;

use scene::Scene;
use specs::{LISTEN, minimal, scene};

/// How long one decision may take. With optimisation it is a twentieth of it; the rest is for machines that do more than this.
const LIMIT: Duration = Duration::from_secs(20);

/// A forward that listens on these ports, first and last, of `addresses`.
fn on(addresses: Vec<String>, ports: impl IntoIterator<Item = (usize, usize)>) -> PortForwardSpec {
    let mut spec = minimal();
    let port = |(number, (first, last)): (usize, (usize, usize))| ForwardPort {
        name: format!("p{number}"),
        port: first.try_into().unwrap(),
        end_port: (first != last).then_some(last.try_into().unwrap()),
        ..spec.ports[0].clone()
    };
    let ports = ports.into_iter().enumerate().map(port).collect();
    spec.ports = ports;
    spec.addresses = addresses;
    spec
}

/// As many addresses as a forward may name, which no gateway has: those of the forward with this number.
fn made_up(number: usize) -> Vec<String> {
    (0..16).map(|n| format!("10.{}.{}.{}", 64 + number / 4096, number / 16 % 256, number % 16 * 16 + n)).collect()
}

/// Decides upon `specs`, again with what was decided, and once more when all of it is gone and wanted by others.
fn decisions(name: &str, specs: &[PortForwardSpec]) -> [Decision; 3] {
    let mut scene = scene(specs, &LISTEN);
    let first = timed(name, "first", &scene);
    scene.slices.clone_from(&first.slices);
    let again = timed(name, "settled", &scene);
    let held = scene.slices.values().flat_map(|slice| &slice.forwards);
    let outgoing = |held: &Arc<SliceForward>| Outgoing {
        pool: "default".into(),
        uid: held.uid.clone(),
        intent: held.intent.clone().into(),
    };
    scene.outgoing = held.map(outgoing).collect();
    scene.slices.clear();
    for forward in &mut scene.forwards {
        forward.uid = format!("{}'", forward.uid).into();
    }
    let successors = timed(name, "outgoing", &scene);
    [first, again, successors]
}

fn timed(name: &str, step: &str, scene: &Scene) -> Decision {
    let begin = Instant::now();
    let decision = scene.decide();
    let took = begin.elapsed();
    eprintln!("{name:<44} {step:<8} {:>9.1} ms, {} accepted", took.as_secs_f64() * 1e3, accepted(&decision));
    assert!(took < LIMIT, "{name}, {step}: {took:?}");
    decision
}

fn accepted(decision: &Decision) -> usize {
    decision.forwards.values().filter(|verdict| matches!(verdict, Verdict::Accepted(_))).count()
}

/// Holds that so many of `specs` are accepted, keep what they have, and are waited for.
fn holds(name: &str, specs: &[PortForwardSpec], expected: usize) {
    let [first, again, successors] = decisions(name, specs);
    assert_eq!(accepted(&first), expected, "{name}");
    assert_eq!(again, first, "{name}");
    let waiting = accepted(&successors);
    assert_eq!(waiting, 0, "{name}: somebody got what is still carried for somebody else");
}

#[test]
fn ordinary_forwards() {
    let specs: Vec<_> = (0..10_000).map(|n| on(Vec::new(), [(20_000 + n, 20_000 + n)])).collect();
    holds("10,000 ports", &specs, 10_000);
    let specs: Vec<_> = (0..5_000).map(|n| on(Vec::new(), [(33_000 + n * 6, 33_004 + n * 6)])).collect();
    holds("5,000 ranges", &specs, 5_000);
}

#[test]
fn forwards_with_addresses_of_their_own() {
    let one = |n: usize| on(vec![format!("10.{}.{}.1", 64 + n / 250, n % 250)], [(8080, 8080)]);
    holds("10,000 addresses, one port", &(0..10_000).map(one).collect::<Vec<_>>(), 10_000);
    let ports = || (0..32).map(|n| (9000 + n, 9000 + n));
    let specs: Vec<_> = (0..200).map(|n| on(made_up(n), ports())).collect();
    holds("200 with 16 made-up addresses and 32 ports", &specs, 200);
    let ranges = || (0..32).map(|n| (33_001 + n * 1000, 33_999 + n * 1000));
    let specs: Vec<_> = (0..200).map(|n| on(made_up(n), ranges())).collect();
    holds("200 with 16 made-up addresses and 32 ranges", &specs, 200);
}

#[test]
fn thousands_who_want_the_same() {
    let same: Vec<_> = (0..5_000).map(|_| on(Vec::new(), [(8080, 8080)])).collect();
    holds("5,000 for one port", &same, 1);
    // Each crosses the others, whatever port of it is looked at.
    let crossing: Vec<_> = (0..5_000).map(|n| on(Vec::new(), [(33_001 + n, 40_000 + n)])).collect();
    holds("5,000 ranges that cross", &crossing, 1);
    let mut wide: Vec<_> =
        (0..1_000).map(|n| on(made_up(n), (0..8).map(|p| (33_000 + n * 16 + p, 33_000 + n * 16 + p)))).collect();
    wide.extend((0..2_000).map(|n| on(Vec::new(), [(32_900, 60_000 + n)])));
    holds("2,000 ranges over 128,000 claims", &wide, 1_000);
    let mut beside: Vec<_> = (0..1_000).map(|n| on(made_up(n), [(33_000, 33_100 + n)])).collect();
    beside.extend((0..2_000).map(|n| on(Vec::new(), [(34_200 + n, 34_200 + n)])));
    holds("2,000 ports beside 16,000 ranges", &beside, 3_000);
}

#[test]
fn plans_of_thousands() {
    let mut specs: Vec<_> = (0..4_000).map(|n| on(Vec::new(), [(20_000 + n, 20_000 + n)])).collect();
    for spec in &mut specs[2_000..] {
        spec.mode = Mode::Plan;
    }
    let mut scene = scene(&specs, &LISTEN);
    scene.pools[0].spec.grants[0].max_forwards = Some(3_000);
    let decision = timed("2,000 plans beside 2,000", "quota", &scene);
    assert_eq!(accepted(&decision), 4_000);
    for spec in &mut specs {
        spec.mode = Mode::Apply;
    }
    scene.forwards = specs::scene(&specs, &LISTEN).forwards;
    let decision = timed("4,000 for 3,000 places", "quota", &scene);
    assert_eq!(accepted(&decision), 3_000);
}
