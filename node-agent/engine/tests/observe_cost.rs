//! Kernel tier: what a look costs beside kube-proxy, which rewrites its rules all the time. Prints shares of one core.
//!
//! `SERVICES=5000 cargo test --release -p sallyport-engine --all-features --test observe_cost -- --nocapture` measures a large
//! cluster.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may panic, and says what it measured"
)]

#[path = "support/forwards.rs"]
mod forwards;
#[path = "support/kube.rs"]
mod kube;
#[path = "support/namespace.rs"]
mod namespace;

use std::env;
use std::fs;
use std::time::Instant;

use forwards::{converge, forwards};
use namespace::{in_namespace, run};
use sallyport_engine::Engine as _;
use sallyport_engine::iptables::{Iptables, Variant};

/// That of the agent, which keeps what it will need again.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Services of a small cluster.
const SERVICES: usize = 200;
/// Forwards of ours beside them.
const FORWARDS: usize = 1000;
/// Times that kube-proxy writes its rules again, which it does at most once a second.
const SYNCS: usize = 5;
/// Looks that are timed, in ticks of 10 ms.
const LOOKS: u32 = 20;

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// Seconds of a core that this process has used, and the programs that it has run and awaited (`proc_pid_stat(5)`).
fn used() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u32 = fields[11..15].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / 100.0
}

/// What one look costs, seconds of a core, as the mean of `looks`: one that finds nothing to be done costs as much as another.
async fn cost_of_a_look(engine: &mut Iptables, looks: u32) -> f64 {
    let before = used();
    for _ in 0..looks {
        engine.observe().await.unwrap();
    }
    (used() - before) / f64::from(looks)
}

#[test]
fn who_rewrites_his_rules_once_a_second_costs_us_next_to_nothing() {
    in_namespace("who_rewrites_his_rules_once_a_second_costs_us_next_to_nothing", || {
        block_on(async {
            let services = env::var("SERVICES").map_or(SERVICES, |number| number.parse().unwrap());
            kube::restore(&kube::services(services));
            kube::restore(&kube::sync(services, 0));
            for builtin in ["PREROUTING", "OUTPUT"] {
                run(&format!("iptables-nft -t nat -A {builtin} -j KUBE-SERVICES"));
            }
            let (before, after) = (forwards(FORWARDS, "10.31.200.1"), forwards(FORWARDS, "10.31.200.2"));
            let mut engine = Iptables::new(Variant::Nft);
            let began = Instant::now();
            engine.attend_to(&before.1);
            engine.observe().await.unwrap();
            eprintln!("{services} services: the first look {:?}", began.elapsed());
            converge(&mut engine, &before).await;
            engine.observe().await.unwrap();

            let decodings = engine.decodings();
            for sync in 1..=SYNCS {
                kube::restore(&kube::sync(services, sync));
                engine.observe().await.unwrap();
            }
            assert_eq!(engine.decodings(), decodings, "a rule that was written again was decoded again");
            let share = 100.0 * cost_of_a_look(&mut engine, LOOKS).await;
            let anew = 100.0 * cost_of_a_look(&mut Iptables::new(Variant::Nft), 1).await;
            eprintln!("a sync a second costs {share:.1} % of a core; decoding everything each time {anew:.1} %");

            converge(&mut engine, &after).await;
            let (began, decodings) = (Instant::now(), engine.decodings());
            engine.observe().await.unwrap();
            eprintln!("one changed forward read back: {:?}", began.elapsed());
            assert_eq!(engine.decodings() - decodings, 2, "one chain of nat has changed, and one of mangle");
        });
    });
}
