//! Kernel tier: what a look costs beside kube-proxy, which rewrites its rules all the time. Prints shares of one core.
//!
//! `SERVICES=5000 cargo test --release -p sallyport-engine --all-features --test observe_cost -- --nocapture` measures a large
//! cluster.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says what it measured")]

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

/// Services of a small cluster.
const SERVICES: usize = 200;
/// Forwards of ours beside them.
const FORWARDS: usize = 1000;
/// Times that kube-proxy writes its rules again, which it does at most once a second.
const SYNCS: usize = 5;

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// Seconds of a core that this process has used, and the programs that it has run and awaited (proc_pid_stat(5)).
fn used() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u32 = fields[11..15].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / 100.0
}

/// What `syncs` of kube-proxy cost an engine that looks after each: seconds of a core, and how often it decoded something.
async fn after_syncs(engine: &mut Iptables, services: usize, looks: usize) -> (f64, u64) {
    let (mut cost, decodings) = (0.0, engine.decodings());
    for sync in 1..=looks {
        kube::restore(&kube::sync(services, sync));
        let before = used();
        let began = Instant::now();
        engine.observe().await.unwrap();
        cost += used() - before;
        eprintln!("    a look after a sync: {:?}", began.elapsed());
    }
    (cost, engine.decodings() - decodings)
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

            let (cost, decodings) = after_syncs(&mut engine, services, SYNCS).await;
            let mut anew = 0.0;
            for _ in 0..2 {
                anew += after_syncs(&mut Iptables::new(Variant::Nft), services, 1).await.0 / 2.0;
            }
            let share = |cost: f64| cost * 100.0;
            #[expect(clippy::cast_precision_loss, reason = "there are few")]
            let each = cost / SYNCS as f64;
            eprintln!("a sync a second costs {:.1} % of a core; decoding all of it {:.1} %", share(each), share(anew));
            assert_eq!(decodings, 0, "a rule that was written again was decoded again");

            converge(&mut engine, &after).await;
            let (began, decodings) = (Instant::now(), engine.decodings());
            engine.observe().await.unwrap();
            eprintln!("one changed forward read back: {:?}", began.elapsed());
            assert_eq!(engine.decodings() - decodings, 1, "one chain has changed");
        });
    });
}
