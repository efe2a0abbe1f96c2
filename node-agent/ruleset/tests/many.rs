//! How long the pure part of an agent's pass takes with thousands of forwards, of which one has changed.
//!
//! `cargo test --release -p sallyport-ruleset --test many -- --nocapture` prints where the time goes.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says what it measured")]
#![allow(clippy::disallowed_types, reason = "how long it takes is what is tested")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::id::Moment;
use sallyport_api::testing::Forward;
use sallyport_policy::digest::intent_hash;
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::iptables::desired::Desired;
use sallyport_ruleset::iptables::installed::InstalledRuleset;
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::op::{Op, Step};
use sallyport_ruleset::iptables::plan::render;
use sallyport_ruleset::iptables::shadow::Packets;
use sallyport_ruleset::table::ForwardingTable;
use serde_json::json;

/// Changes of single forwards, one after the other.
const CHANGES: usize = if cfg!(debug_assertions) { 10 } else { 200 };
/// How long all of it may take, without optimisation and on a machine that does more than this.
const LIMIT: Duration = Duration::from_secs(20);
/// Of how many runs the middle one is told. Without optimisation times tell nothing, so one is enough there.
const RUNS: usize = if cfg!(debug_assertions) { 1 } else { 11 };

fn forwards(number: usize) -> Vec<Arc<SliceForward>> {
    let forward = |n: usize| {
        let target = format!("10.31.{}.{}", n / 250 % 250, n % 250 + 1);
        let forward =
            Forward::tcp(&format!("payments/f{n:05}"), u16::try_from(33_000 + n).unwrap()).to([target.as_str()]);
        // Every fourth has chains of its own.
        let forward = if n.is_multiple_of(4) { forward.from(["10.30.1.80/32", "10.32.0.0/16"]) } else { forward };
        Arc::new(forward.slice_forward(intent_hash))
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

/// A kernel that holds what it was given, and what an agent knows of it.
struct Host {
    table: ForwardingTable,
    desired: Desired,
    installed: InstalledRuleset,
}

impl Host {
    fn new(node: &GatewayNodeSpec, forwards: &[Arc<SliceForward>], facts: &NodeFacts<'_>) -> Self {
        let table = ForwardingTable::new(node, forwards, facts);
        let mut desired = Desired::of(&table);
        let mut installed = InstalledRuleset::default();
        for op in render(desired.ruleset()) {
            installed.apply(&op);
        }
        desired.installed(None);
        Self { table, desired, installed }
    }

    /// From a forward that is another one now to the operations that follow it.
    fn follow(
        &mut self,
        node: &GatewayNodeSpec,
        facts: &NodeFacts<'_>,
        gone: &Arc<SliceForward>,
        come: &Arc<SliceForward>,
    ) -> Vec<Op> {
        let change = self.table.update(node, std::slice::from_ref(gone), std::slice::from_ref(come), facts);
        assert!(!change.is_new);
        self.desired.follow(&self.table, &change);
        self.desired.plan_changed(&self.installed)
    }
}

#[test]
fn one_change_among_thousands() {
    let local = ["10.30.1.78".parse().unwrap()].map(|ip| LocalAddress { ip, prefix_len: 23, global: true });
    let node: GatewayNodeSpec =
        serde_json::from_value(json!({ "pool": "default", "state": "Active", "addresses": ["10.30.1.78"] })).unwrap();
    let facts = NodeFacts::of(&local, Moment::default());
    for number in [10_000, 30_000] {
        let forwards = forwards(number);
        eprintln!("{number} forwards");
        let (all, table) = timed("  all of them: table", || ForwardingTable::new(&node, &forwards, &facts));
        timed("  rules", || lower(&table));
        timed("  what their packets look like", || Packets::of(&table));
        assert_eq!((table.failures().count(), table.bindings().count()), (0, number));
        assert!(all < LIMIT, "{all:?}");

        let mut host = Host::new(&node, &forwards, &facts);
        timed("  comparing every chain", || host.desired.plan(&host.installed));
        timed("  digest", || host.desired.ruleset().digest());
        let another = |n: usize| {
            let mut forward = SliceForward::clone(&forwards[n]);
            forward.intent.targets[0].ip = "10.31.255.1".parse().unwrap();
            forward.hash = intent_hash(&forward.intent);
            Arc::new(forward)
        };
        let changes: Vec<_> = (0..CHANGES).map(|n| n * 7 % number).map(|n| (&forwards[n], another(n))).collect();
        let mut times = Vec::new();
        for (before, after) in &changes {
            let begin = Instant::now();
            let ops = black_box(host.follow(&node, &facts, before, after));
            times.push(begin.elapsed());
            // One chain with its port, the blocks of its former and its present target, and what leads to a new block.
            let replaces = |op: &Op| matches!(op.step, Step::Replace { .. });
            assert!((2..=4).contains(&ops.len()) && ops.iter().all(replaces), "{ops:?}");
            assert_eq!(ops, host.desired.plan(&host.installed));
            for op in &ops {
                host.installed.apply(op);
            }
            host.desired.installed(None);
        }
        times.sort();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let (middle, last) = (milliseconds(times[CHANGES / 2]), milliseconds(times[CHANGES * 99 / 100]));
        eprintln!("  one of them: operations {middle:>28.3} ms, p99 {last:.3}");
        let after = forwards.iter().map(|forward| changes.iter().find(|(before, _)| Arc::ptr_eq(before, forward)));
        let after: Vec<_> =
            after.zip(&forwards).map(|(found, forward)| found.map_or(forward, |(_, after)| after)).collect();
        assert_eq!(host.desired.ruleset(), &lower(&ForwardingTable::new(&node, after, &facts)));
    }
}
