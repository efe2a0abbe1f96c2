//! How long the pure part of an agent's pass takes with thousands of forwards, of which one has changed.
//!
//! `cargo test --release -p sallyport-ruleset --test many -- --nocapture` prints where the time goes.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says what it measured")]
#![allow(clippy::disallowed_types, reason = "how long it takes is what is tested")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::id::Moment;
use sallyport_api::testing::Forward;
use sallyport_policy::digest::intent_hash;
use sallyport_policy::recheck::recheck;
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::iptables::installed::InstalledRuleset;
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::op::Step;
use sallyport_ruleset::iptables::plan::{plan, render};
use sallyport_ruleset::iptables::shadow::Packets;
use sallyport_ruleset::table::ForwardingTable;
use serde_json::json;

/// How long all of it may take, without optimisation and on a machine that does more than this.
const LIMIT: Duration = Duration::from_secs(20);
/// Of how many runs the middle one is told. Without optimisation times tell nothing, so one is enough there.
const RUNS: usize = if cfg!(debug_assertions) { 1 } else { 11 };

fn forwards(number: usize) -> Vec<SliceForward> {
    let forward = |n: usize| {
        let target = format!("10.31.{}.{}", n / 250 % 250, n % 250 + 1);
        let forward =
            Forward::tcp(&format!("payments/f{n:05}"), u16::try_from(33_000 + n).unwrap()).to([target.as_str()]);
        // Every fourth has chains of its own.
        let forward = if n.is_multiple_of(4) { forward.from(["10.30.1.80/32", "10.32.0.0/16"]) } else { forward };
        forward.slice_forward(intent_hash)
    };
    (0..number).map(forward).collect()
}

/// The middle time of some runs of `work`, and what it made.
fn timed<T>(what: &str, work: impl Fn() -> T) -> (Duration, T) {
    let run = || {
        let begin = Instant::now();
        let made = black_box(work());
        (begin.elapsed(), made)
    };
    let mut runs: Vec<(Duration, T)> = (0..RUNS).map(|_| run()).collect();
    runs.sort_by_key(|(took, _)| *took);
    let (took, made) = runs.swap_remove(RUNS / 2);
    eprintln!("{what:<44} {:>9.3} ms", took.as_secs_f64() * 1e3);
    (took, made)
}

#[test]
fn one_change_among_thousands() {
    let local = ["10.30.1.78".parse().unwrap()].map(|ip| LocalAddress { ip, prefix_len: 23, global: true });
    let node: GatewayNodeSpec =
        serde_json::from_value(json!({ "pool": "default", "state": "Active", "addresses": ["10.30.1.78"] })).unwrap();
    let facts = NodeFacts::of(&local, Moment::default());
    for number in [10_000, 30_000] {
        let before = forwards(number);
        let all: Vec<&SliceForward> = before.iter().collect();
        let mut installed = InstalledRuleset::default();
        for op in render(&lower(&ForwardingTable::new(&node, &all, &facts))) {
            installed.apply(&op);
        }
        let mut after = before.clone();
        after[number / 2].intent.targets[0].ip = "10.31.255.1".parse().unwrap();
        after[number / 2].hash = intent_hash(&after[number / 2].intent);
        let all: Vec<&SliceForward> = after.iter().collect();

        eprintln!("{number} forwards");
        timed("  hashes of the intents", || after.iter().filter(|f| intent_hash(&f.intent) == f.hash).count());
        timed("  recheck, hashes too", || {
            after.iter().filter(|f| recheck(f, &[], Moment::default()).is_none()).count()
        });
        let (table_took, table) = timed("  table", || ForwardingTable::new(&node, &all, &facts));
        let (lower_took, wanted) = timed("  lower", || lower(&table));
        let (packets_took, packets) = timed("  packets", || Packets::of(&table));
        let (plan_took, ops) = timed("  plan", || plan(&wanted, &packets, &installed));
        timed("  digest", || wanted.digest());
        let all = table_took + lower_took + packets_took + plan_took;
        eprintln!("  decoded slices to operations {:>23.3} ms", all.as_secs_f64() * 1e3);

        assert_eq!((table.failures.len(), table.bindings.len()), (0, number));
        assert!(matches!(&ops[..], [op] if matches!(op.step, Step::Replace { .. })), "{ops:?}");
        assert!(all < LIMIT, "{all:?}");
    }
}
