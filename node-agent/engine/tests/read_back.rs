//! Kernel tier: what is rendered is what a real kernel gives back, line for line, in both variants of iptables; drift
//! is noticed; and what iptables-nft made for us goes again. Each test in a network namespace of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

#[path = "support/namespace.rs"]
mod namespace;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use namespace::{in_namespace, run};
use sallyport_engine::Engine;
use sallyport_engine::iptables::{Iptables, Variant, remove_unused};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::installed::Installed;
use sallyport_ruleset::iptables::plan::plan;
use sallyport_ruleset::iptables::rule::{Rules, Ruleset, Table};
use sallyport_ruleset::iptables::shadow::Packets;

/// Times that rules are read beside somebody who changes his: enough to meet a change between any two of its steps.
const READINGS: usize = 200;

/// The cases of the rule set's own tests: folders with the text that each renders to.
fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ruleset/testdata");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let with_rules = cases.iter().filter(|case| expected(case) != Ruleset::default()).count();
    assert!(with_rules > 10, "where have the cases gone?");
    cases
}

fn expected(case: &Path) -> Ruleset {
    let rules = |file: &str| {
        // A case without rules of a family has no file for it.
        let installed = Installed::parse(&fs::read_to_string(case.join(file)).unwrap_or_default());
        Rules { filter: installed.filter.ours, nat: installed.nat.ours, mangle: installed.mangle.ours }
    };
    Ruleset { v4: rules("v4.rules"), v6: rules("v6.rules") }
}

async fn converge(engine: &mut Iptables, desired: &Ruleset) {
    let ops = plan(desired, &Packets::default(), &engine.observe().await.unwrap());
    engine.apply(&ops).await.unwrap();
}

async fn applies_and_reads_back(variant: Variant) {
    let mut engine = Iptables::new(variant);
    for case in cases() {
        let desired = expected(&case);
        converge(&mut engine, &desired).await;
        let installed = engine.observe().await.unwrap();
        assert_eq!(installed.ours(), desired, "{}", case.display());
        assert_eq!(installed.digest(), desired.digest());
        assert_eq!(plan(&desired, &Packets::default(), &installed), [], "{}", case.display());
    }
    converge(&mut engine, &Ruleset::default()).await;
    let installed = engine.observe().await.unwrap();
    for family in Family::BOTH {
        let tables = Table::ALL.map(|table| installed.family(family).table(table));
        assert!(tables.iter().all(|table| table.ours.is_empty() && table.foreign.values().all(Vec::is_empty)));
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

#[test]
fn every_case_reads_back_line_for_line() {
    in_namespace("every_case_reads_back_line_for_line", || {
        for variant in Variant::BOTH {
            block_on(applies_and_reads_back(variant));
        }
    });
}

#[test]
fn a_foreign_change_is_noticed_and_a_quiet_kernel_is_not_looked_at_again() {
    in_namespace("a_foreign_change_is_noticed_and_a_quiet_kernel_is_not_looked_at_again", || {
        block_on(async {
            let mut engine = Iptables::new(Variant::Nft);
            assert!(engine.changed().unwrap(), "what was never seen may be anything");
            engine.observe().await.unwrap();
            assert!(!engine.changed().unwrap());
            run("iptables-nft -t nat -N FOREIGN");
            assert!(engine.changed().unwrap());
            engine.observe().await.unwrap();
            assert!(!engine.changed().unwrap());
        });
    });
}

/// Takes a native rule that asks a set into the chain of the first jump and out again, until `done`.
fn meddle(done: &AtomicBool) {
    let nft = |text: &str| {
        let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
    };
    while !done.load(Ordering::Relaxed) {
        nft("insert rule ip filter FORWARD tcp dport { 9998, 9999 } ct state new counter accept");
        let list = Command::new("nft").args(["-a", "list", "chain", "ip", "filter", "FORWARD"]).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        let handle = list.lines().find(|line| line.contains("9998")).and_then(|line| line.rsplit(' ').next()).unwrap();
        nft(&format!("delete rule ip filter FORWARD handle {handle}"));
    }
}

#[test]
fn no_jump_is_overlooked_while_others_change_their_rules() {
    in_namespace("no_jump_is_overlooked_while_others_change_their_rules", || {
        block_on(async {
            let mut engine = Iptables::new(Variant::Nft);
            let desired = expected(&cases().into_iter().find(|case| case.ends_with("dual-stack")).unwrap());
            converge(&mut engine, &desired).await;
            let done = Arc::new(AtomicBool::new(false));
            let others = thread::spawn({
                let done = Arc::clone(&done);
                move || meddle(&done)
            });
            for round in 0..READINGS {
                let installed = engine.observe().await.unwrap();
                let ops = plan(&desired, &Packets::default(), &installed);
                assert_eq!(ops, [], "in reading {round} of {:?}", installed.v4.filter);
            }
            done.store(true, Ordering::Relaxed);
            others.join().unwrap();
        });
    });
}

#[test]
fn what_iptables_made_for_us_goes_and_what_somebody_uses_stays() {
    in_namespace("what_iptables_made_for_us_goes_and_what_somebody_uses_stays", || {
        block_on(async {
            run("iptables-nft -P INPUT DROP");
            let mut engine = Iptables::new(Variant::Nft);
            let created = engine.would_create().unwrap();
            let desired = expected(&cases().into_iter().find(|case| case.ends_with("dual-stack")).unwrap());
            converge(&mut engine, &desired).await;
            converge(&mut engine, &Ruleset::default()).await;
            run("iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT");

            remove_unused(&created).unwrap();

            let list = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
            let list = String::from_utf8(list.stdout).unwrap();
            assert!(list.contains("chain INPUT") && list.contains("policy drop"), "{list}");
            assert!(list.contains("chain PREROUTING") && list.contains("redirect"), "{list}");
            for gone in ["chain FORWARD", "chain OUTPUT", "chain POSTROUTING", "table ip6"] {
                assert!(!list.contains(gone), "{gone} is still there:\n{list}");
            }
        });
    });
}
