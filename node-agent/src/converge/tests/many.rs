//! How long it takes from a decoded slice, in which one of thousands of forwards has changed, until the operations that
//! follow it are known.
//!
//! `cargo test --release -p sallyport-node-agent --lib one_change -- --nocapture` prints it.
#![allow(clippy::print_stderr, reason = "says what it measured")]
#![allow(clippy::disallowed_types, reason = "how long it takes is what is tested")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::names::MAX_SLICE_FORWARDS;
use sallyport_api::testing::Forward;
use sallyport_policy::digest::{intent_hash, slice_hash};

use super::*;
use crate::port_gate::PortGate;
use crate::source::cluster::knowledge::Knowledge;
use crate::source::cluster::slice::{Decoded, Entry};

/// Changes of single forwards, one after the other.
const CHANGES: usize = if cfg!(debug_assertions) { 10 } else { 200 };
/// So many times longer the first pass takes, which works out all of them. Both are slow on a machine that does more than
/// this.
const RATIO: u32 = 20;

fn forward_number(n: usize) -> Arc<SliceForward> {
    let target = format!("10.31.{}.{}", n / 250 % 250, n % 250 + 1);
    let forward = Forward::tcp(&format!("payments/f{n:05}"), u16::try_from(33_000 + n).unwrap()).to([target.as_str()]);
    // Every fourth has chains of its own.
    let forward = if n.is_multiple_of(4) { forward.from(["10.30.1.80/32", "10.32.0.0/16"]) } else { forward };
    Arc::new(forward.slice_forward(intent_hash))
}

fn decoded(forwards: &[Arc<SliceForward>]) -> Decoded {
    // As from the wire: nothing is shared with what was known before.
    let anew = |forward: &Arc<SliceForward>| Entry::Understood(Arc::new(SliceForward::clone(forward)));
    let (pool, hash) = ("default".to_owned(), slice_hash(forwards));
    Decoded { generation: 1, pool, hash, forwards: forwards.iter().map(anew).collect(), planned: Vec::new() }
}

#[tokio::test]
async fn one_change_among_thousands_costs_what_one_forward_costs() {
    for number in [10_000, 30_000] {
        let mut scene = Scene::new();
        let mut forwards: Vec<_> = (0..number).map(forward_number).collect();
        let slice = |of: usize| format!("default-{of:04}");
        let mut knowledge = Knowledge::new("gw1");
        knowledge.node_is(Ok(intents("").node));
        knowledge.node_is_listed();
        let list = forwards.chunks(MAX_SLICE_FORWARDS).enumerate();
        knowledge.slices_are("default", list.map(|(of, forwards)| (slice(of), Ok(decoded(forwards)))).collect());
        let mut gate = PortGate::default();
        let (addresses, now) = (local(), Moment::default());
        let facts = NodeFacts::of(&addresses, now);
        let wanted = Rc::new(knowledge.intents().unwrap());
        let waiting = gate.admit(&mut scene.converger, &wanted, &facts, Instant::now()).await.unwrap();
        let begun = Instant::now();
        scene.converger.converge(&wanted, waiting, &facts, &scene.state).await.unwrap();
        let all = begun.elapsed();
        let mut times = Vec::new();
        for change in 0..CHANGES {
            let n = change * 4_999 % number;
            let mut other = SliceForward::clone(&forwards[n]);
            other.intent.targets[0].ip = "10.31.255.1".parse().unwrap();
            other.hash = intent_hash(&other.intent);
            forwards[n] = Arc::new(other);
            let of = n / MAX_SLICE_FORWARDS;
            let new = decoded(&forwards[of * MAX_SLICE_FORWARDS..(of + 1) * MAX_SLICE_FORWARDS]);

            let begun = Instant::now();
            knowledge.slice_is(&slice(of), Ok(new));
            let wanted = Rc::new(knowledge.intents().unwrap());
            let waiting = gate.admit(&mut scene.converger, &wanted, &facts, Instant::now()).await.unwrap();
            scene.converger.follow(&wanted, waiting, &facts);
            scene.converger.observe().await.unwrap();
            let ops = scene.converger.without_fighting(None);
            times.push(begun.elapsed());

            // One chain with its port, the blocks of its former and its present target, and what leads to a new block.
            let replaces = |op: &Op| matches!(op.step, Step::Replace { .. });
            assert!((2..=4).contains(&ops.len()) && ops.iter().all(replaces), "{ops:?}");
            let report = scene.converger.converge(&wanted, Waiting::default(), &facts, &scene.state).await.unwrap();
            assert_eq!((report.failures, report.changed), (Vec::new(), Some(summary(&ops))));
        }
        times.sort();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let (median, p99) = (times[CHANGES / 2], times[CHANGES * 99 / 100]);
        let [all_took, median_took, p99_took] = [all, median, p99].map(milliseconds);
        eprintln!(
            "{number} forwards: all {all_took:.1} ms, then one of them p50 {median_took:.3}, p99 {p99_took:.3} ms"
        );
        assert!(median * RATIO < all, "{median:?} of {all:?}");
    }
}
