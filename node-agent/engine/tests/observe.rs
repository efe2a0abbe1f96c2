//! Kernel tier: what is read rule by rule, and decoded only where it is new, is what a program of iptables prints of all of it.
//! Each test in a network namespace of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

#[path = "support/forwards.rs"]
mod forwards;
#[path = "support/kube.rs"]
mod kube;
#[path = "support/namespace.rs"]
mod namespace;

use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use forwards::{converge, forwards};
use namespace::{in_namespace, run};
use sallyport_engine::Engine as _;
use sallyport_engine::iptables::{Iptables, Variant};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::FirewallTable;
use sallyport_ruleset::iptables::installed::{Installed, InstalledRuleset, UNREAD};
use sallyport_ruleset::iptables::plan::plan;
use sallyport_ruleset::iptables::rule::{Line, Ruleset, Table};
use sallyport_ruleset::iptables::shadow::Packets;

/// Random changes of one run.
const CHANGES: usize = 250;
/// Readings beside somebody who changes his rules all the time.
const READINGS: usize = 150;

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// What a program of iptables prints of the whole table.
fn printed(family: Family, table: Table) -> String {
    let program = if family == Family::V4 { "iptables-nft-save" } else { "ip6tables-nft-save" };
    let output = Command::new(program).args(["-t", table.name()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Holds `seen` against what programs print of everything.
fn assert_true(seen: &InstalledRuleset, (wanted, packets): &(Ruleset, Packets), after: &str) {
    let mut whole = InstalledRuleset { firewall: seen.firewall.clone(), ..InstalledRuleset::default() };
    for family in Family::BOTH {
        for table in Table::ALL {
            let (seen, text) = (seen.family(family).table(table), printed(family, table));
            let asks_sets = seen.foreign.values().flatten().any(|rule| rule.starts_with('['));
            if seen.unreadable.is_some() || asks_sets {
                return;
            }
            assert!(!text.contains("incompatible"), "after {after}: {text}");
            let all = Installed::parse(&text).take(table);
            assert_eq!(seen.ours, all.ours, "after {after}");
            for (chain, rules) in &seen.foreign {
                if *rules != [UNREAD] {
                    assert_eq!(Some(rules), all.foreign.get(chain), "chain {chain} after {after}");
                }
            }
            for ours in all.ours.keys() {
                assert_eq!(seen.is_used_by_others(ours), all.is_used_by_others(ours), "{ours} after {after}");
            }
            *whole.family_mut(family).table_mut(table) = all;
        }
    }
    assert_eq!(plan(wanted, packets, seen), plan(wanted, packets, &whole), "after {after}");
}

/// Numbers that look random and are the same in each run (`splitmix64`).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % end
    }
}

/// A change that somebody makes, as a line of a shell. It may fail, as when what it names is not there.
fn change(numbers: &mut Numbers) -> String {
    let (low, high, port) = (numbers.below(3), numbers.below(3) + 3, 3000 + numbers.below(8));
    let builtin = ["PREROUTING", "OUTPUT", "POSTROUTING"][usize::try_from(low).unwrap()];
    let sport = numbers.below(3);
    match numbers.below(33) {
        0 => format!("iptables-nft -t nat -N FOO-{low}; iptables-nft -t nat -N FOO-{high}"),
        1 => format!("iptables-nft -t nat -A FOO-{low} -p tcp --dport {port} -j FOO-{high}"),
        2 => {
            format!("iptables-nft -t nat -A FOO-{high} -p tcp --dport {port} -j DNAT --to-destination 10.1.1.{port:.1}")
        }
        3 => format!("iptables-nft -t nat -I PREROUTING -d 10.96.0.{low}/32 -j FOO-{low}"),
        4 => format!("iptables-nft -t nat -I PREROUTING -d 10.30.1.78/32 -j FOO-{low}"),
        5 => format!("iptables-nft -t nat -A {builtin} -p tcp -m tcp --dport {port} -g FOO-{high}"),
        6 => format!("iptables-nft -t nat -D {builtin} 1"),
        7 => format!("iptables-nft -t nat -F FOO-{high}"),
        8 => format!("iptables-nft -t nat -F FOO-{low}; iptables-nft -t nat -X FOO-{low}"),
        9 => format!("iptables-nft -t nat -A FOO-{low} -j SALLY-PRE"),
        10 => format!("iptables-nft -t nat -I SALLY-PRE -s 10.9.9.{low}/32 -j RETURN"),
        11 => "iptables-nft -t nat -D SALLY-PRE 1".to_owned(),
        12 => "iptables-nft -t nat -F SALLY-MT".to_owned(),
        13 => format!("iptables-nft -t nat -N SALLY-X{low}; iptables-nft -t nat -A SALLY-X{low} -p udp -j ACCEPT"),
        14 => format!("iptables-nft -t nat -F SALLY-X{low}; iptables-nft -t nat -X SALLY-X{low}"),
        15 => format!("iptables-nft -I FORWARD -p tcp --sport {sport} -j DROP"),
        16 => "iptables-nft -D FORWARD 1".to_owned(),
        17 => "iptables-nft -P FORWARD DROP".to_owned(),
        18 => "iptables-nft -P FORWARD ACCEPT".to_owned(),
        19 => format!(
            "iptables-nft -N BAR-{low}; iptables-nft -A FORWARD -j BAR-{low}; iptables-nft -A BAR-{low} -j DROP"
        ),
        20 => format!("ip6tables-nft -t nat -A PREROUTING -p tcp --dport {port} -j REDIRECT"),
        21 => format!("iptables-nft -t mangle -A FORWARD -p tcp --sport {sport} -j MARK --set-mark {port}"),
        22 => "iptables-nft -t mangle -F; iptables-nft -t raw -A PREROUTING -p udp -j NOTRACK".to_owned(),
        23 => format!(
            "nft add table inet guard; nft 'add chain inet guard forward {{ type filter hook forward priority 0; }}'; \
             nft add rule inet guard forward tcp sport {sport} counter drop"
        ),
        24 => format!(
            "nft flush chain inet guard forward; nft add rule inet guard forward tcp sport {{ {sport}, 99 }} drop"
        ),
        25 => "nft delete table inet guard".to_owned(),
        26 => "iptables-nft -Z; iptables-nft -t nat -Z; iptables-nft -t mangle -Z".to_owned(),
        27 => "iptables-nft-save | iptables-nft-restore; ip6tables-nft-save | ip6tables-nft-restore".to_owned(),
        28 => format!("nft add rule ip filter FORWARD tcp dport {{ {port}, 99 }} counter accept"),
        29 => "nft flush chain ip filter FORWARD".to_owned(),
        30 => "nft add chain ip filter extra; nft add rule ip filter extra limit rate over 5/second drop".to_owned(),
        31 => "nft flush chain ip filter extra; nft delete chain ip filter extra".to_owned(),
        _ => "iptables-nft -t nat -F; iptables-nft -t nat -X".to_owned(),
    }
}

#[test]
fn what_is_read_in_part_is_what_there_is_whatever_others_change() {
    in_namespace("what_is_read_in_part_is_what_there_is_whatever_others_change", || {
        block_on(async {
            let held = forwards(8, "10.31.200.1");
            let mut engine = Iptables::new(Variant::Nft);
            let mut numbers = Numbers(7);
            let mut readable = 0;
            for round in 0..CHANGES {
                if round % 10 == 0 {
                    converge(&mut engine, &held).await;
                }
                let change = change(&mut numbers);
                Command::new("sh").args(["-c", &change]).output().unwrap();

                let seen = engine.observe().await.unwrap();

                let after = format!("change {round}, `{change}`");
                let mut fresh = Iptables::new(Variant::Nft);
                fresh.attend_to(&held.1);
                assert_eq!(seen, fresh.observe().await.unwrap(), "after {after}");
                assert_true(&seen, &held, &after);
                readable += usize::from(seen.unreadable().next().is_none());
            }
            assert!(readable > CHANGES / 3, "what could not be read hid most of it: {readable}");
        });
    });
}

#[test]
fn what_counts_or_is_written_again_as_it_was_is_not_decoded_again() {
    in_namespace("what_counts_or_is_written_again_as_it_was_is_not_decoded_again", || {
        block_on(async {
            run("ip link set lo up");
            run("ip address add 10.30.1.78/32 dev lo");
            kube::restore(&kube::services(20));
            kube::restore(&kube::sync(20, 0));
            for builtin in ["PREROUTING", "OUTPUT"] {
                run(&format!("iptables-nft -t nat -A {builtin} -j KUBE-SERVICES"));
            }
            run("iptables-nft -t mangle -A FORWARD -p tcp --sport 1 -j MARK --set-mark 1");
            run("nft add table inet guard");
            run("nft add chain inet guard forward { type filter hook forward priority 0 ; }");
            run("nft add rule inet guard forward iif lo counter accept");
            let mut engine = Iptables::new(Variant::Nft);
            let held = forwards(8, "10.31.200.1");
            converge(&mut engine, &held).await;
            let before = engine.observe().await.unwrap();
            let decodings = engine.decodings();

            // A connection, which is counted by every rule that it meets.
            let refused = std::net::TcpStream::connect("10.30.1.78:9").map(drop);
            assert!(refused.is_err());
            run("iptables-nft -t nat -Z");
            kube::restore(&kube::services(20));
            kube::restore(&kube::sync(20, 0));
            assert!(engine.changed().unwrap());
            assert_eq!(engine.observe().await.unwrap(), before);

            kube::restore(&kube::sync(20, 7));
            let turned = engine.observe().await.unwrap();
            assert_ne!(turned, before);
            assert_true(&turned, &held, "KUBE-SERVICES in another order");
            assert_eq!(engine.decodings(), decodings);
        });
    });
}

#[test]
fn a_chain_that_no_packet_of_ours_gets_to_is_not_read_until_one_may() {
    in_namespace("a_chain_that_no_packet_of_ours_gets_to_is_not_read_until_one_may", || {
        block_on(async {
            run("iptables-nft -t nat -N FAR");
            run("iptables-nft -t nat -A FAR -p tcp -j REDIRECT");
            run("iptables-nft -t nat -A PREROUTING -d 10.30.1.99/32 -j FAR");
            let mut engine = Iptables::new(Variant::Nft);
            let foreign = |seen: &InstalledRuleset| seen.v4.nat.foreign["FAR"].clone();
            assert_eq!(foreign(&engine.observe().await.unwrap()), ["-p tcp -j REDIRECT"], "any packet may matter");
            let (_, packets) = forwards(8, "10.31.200.1");

            engine.attend_to(&packets);

            assert!(engine.changed().unwrap(), "other packets matter now");
            assert_eq!(foreign(&engine.observe().await.unwrap()), [UNREAD]);
            engine.attend_to(&packets);
            assert!(!engine.changed().unwrap());

            engine.attend_to(&forwards(9, "10.31.200.1").1);
            assert!(!engine.changed().unwrap(), "no other packet gets there either");
            engine.attend_to(&forwards(10, "10.30.1.99").1);
            assert!(engine.changed().unwrap(), "one may get there");
            assert_eq!(foreign(&engine.observe().await.unwrap()), ["-p tcp -j REDIRECT"]);

            engine.attend_to(&packets);
            run("iptables-nft -t nat -I PREROUTING -d 10.30.1.78/32 -j FAR");
            assert_eq!(foreign(&engine.observe().await.unwrap()), ["-p tcp -j REDIRECT"]);
        });
    });
}

#[test]
fn who_leads_to_a_chain_of_ours_is_seen_wherever_it_is() {
    in_namespace("who_leads_to_a_chain_of_ours_is_seen_wherever_it_is", || {
        block_on(async {
            let mut engine = Iptables::new(Variant::Nft);
            converge(&mut engine, &forwards(8, "10.31.200.1")).await;
            assert!(!engine.observe().await.unwrap().v4.nat.is_used_by_others("SALLY-MT"));
            run("iptables-nft -t nat -N FAR");
            run("iptables-nft -t nat -A FAR -j SALLY-MT");
            assert!(engine.observe().await.unwrap().v4.nat.is_used_by_others("SALLY-MT"));
        });
    });
}

#[test]
fn a_table_that_sleeps_asks_nobody_and_is_seen_to_sleep_and_wake() {
    in_namespace("a_table_that_sleeps_asks_nobody_and_is_seen_to_sleep_and_wake", || {
        block_on(async {
            let mut engine = Iptables::new(Variant::Nft);
            let wanted = forwards(8, "10.31.200.1");
            converge(&mut engine, &wanted).await;
            run("nft add table ip site { flags dormant ; }");
            run("nft add chain ip site forward { type filter hook forward priority 0 ; policy drop ; }");
            let named = |seen: &InstalledRuleset| seen.firewall.tables.iter().any(|table| table.name == "site");
            assert!(!named(&engine.observe().await.unwrap()));
            run("nft add table ip site");
            assert!(engine.changed().unwrap() && named(&engine.observe().await.unwrap()));
            run("nft delete table ip site");
            for table in Table::ALL {
                run(&format!("nft add table ip {} {{ flags dormant ; }}", table.name()));
                assert!(engine.changed().unwrap());
                let seen = engine.observe().await.unwrap();
                let why = seen.v4.table(table).unreadable.clone().unwrap();
                assert!(why.contains("is dormant"), "{why}");
                assert_eq!(seen.v4.table(table).ours, *wanted.0.v4.table(table), "what is there is read all the same");
                // The message says what helps.
                let (_, command) = why.split_once("run `").unwrap();
                run(command.split_once('`').unwrap().0);
                let seen = engine.observe().await.unwrap();
                assert_eq!(seen.v4.table(table).unreadable, None);
                assert_true(&seen, &wanted, "it woke up");
            }
        });
    });
}

#[test]
fn a_table_of_iptables_with_a_chain_of_somebody_else_is_not_read_twice() {
    in_namespace("a_table_of_iptables_with_a_chain_of_somebody_else_is_not_read_twice", || {
        block_on(async {
            run("iptables-nft -P FORWARD DROP");
            run("nft add chain ip filter forward { type filter hook forward priority 5 ; policy accept ; }");
            let seen = Iptables::new(Variant::Nft).observe().await.unwrap();
            let is_filter = |table: &&FirewallTable| table.name == "filter" && table.families == [Family::V4];
            let filter = seen.firewall.tables.iter().filter(is_filter);
            let mut bases: Vec<&str> = filter.flat_map(|table| &table.base).map(|base| base.name.as_str()).collect();
            bases.sort_unstable();
            assert_eq!(bases, ["FORWARD", "forward"], "{:?}", seen.firewall);
        });
    });
}

#[test]
fn a_chain_of_a_usual_name_that_is_called_elsewhere_is_no_usual_one() {
    in_namespace("a_chain_of_a_usual_name_that_is_called_elsewhere_is_no_usual_one", || {
        block_on(async {
            run("nft add table ip filter");
            run("nft add chain ip filter FORWARD { type filter hook input priority 0 ; policy accept ; }");
            let seen = Iptables::new(Variant::Nft).observe().await.unwrap();
            assert!(seen.firewall.unread.iter().any(|what| what.contains("incompatible base-chains")), "{seen:?}");
        });
    });
}

#[test]
fn a_table_that_was_made_again_with_other_elements_is_decoded_again() {
    in_namespace("a_table_that_was_made_again_with_other_elements_is_decoded_again", || {
        block_on(async {
            let mut engine = Iptables::new(Variant::Nft);
            let mut seen = Vec::new();
            for port in [22, 80] {
                // Its rule and its set have the same names and handles both times.
                run("nft add table inet guard");
                run("nft delete table inet guard");
                run("nft add table inet guard");
                run("nft add chain inet guard forward { type filter hook forward priority 0 ; }");
                run(&format!("nft add rule inet guard forward tcp sport {{ {port} , 99 }} drop"));
                seen.push(engine.observe().await.unwrap().firewall);
                let fresh = Iptables::new(Variant::Nft).observe().await.unwrap().firewall;
                assert_eq!(seen.last(), Some(&fresh), "with port {port}");
            }
            assert_ne!(seen[0], seen[1]);
        });
    });
}

#[test]
fn elements_that_come_and_go_are_seen_and_their_order_is_nothing() {
    in_namespace("elements_that_come_and_go_are_seen_and_their_order_is_nothing", || {
        block_on(async {
            run("nft add table inet guard");
            run("nft add set inet guard bad { type ipv4_addr ; }");
            run("nft add map inet guard fate { type ipv4_addr : verdict ; }");
            run("nft add chain inet guard forward { type filter hook forward priority 0 ; }");
            run("nft add rule inet guard forward ip saddr @bad drop");
            run("nft add rule inet guard forward ip saddr vmap @fate");
            let mut engine = Iptables::new(Variant::Nft);
            let mut before = engine.observe().await.unwrap().firewall;
            for change in [
                "add element inet guard bad { 10.30.1.80 }",
                "add element inet guard bad { 10.30.1.81, 10.30.1.82 }",
                "delete element inet guard bad { 10.30.1.80 }",
                "add element inet guard fate { 10.30.1.80 : drop }",
                "delete element inet guard fate { 10.30.1.80 }",
            ] {
                run(&format!("nft {change}"));
                let seen = engine.observe().await.unwrap().firewall;
                let fresh = Iptables::new(Variant::Nft).observe().await.unwrap().firewall;
                assert_eq!(seen, fresh, "{change}");
                assert_ne!(seen, before, "{change}");
                before = seen;
            }
            let programs = engine.decodings();
            run("nft add table ip unrelated");
            engine.observe().await.unwrap();
            assert_eq!(engine.decodings(), programs, "nothing of it has changed");
        });
    });
}

/// Writes, each time that it is told to, another number into two chains at once, one of them ours, and then the first again.
fn count(told: &Receiver<()>, done: &Sender<()>) {
    for () in told {
        for number in [2, 1] {
            kube::restore(&format!(
                "*nat\n:FOO - [0:0]\n:SALLY-X - [0:0]\n-A FOO -p tcp -m tcp --dport {number} -j RETURN\n\
                 -A SALLY-X -p udp -m udp --dport {number} -j RETURN\nCOMMIT\n"
            ));
        }
        done.send(()).unwrap();
    }
}

#[test]
fn what_was_decoded_is_of_the_moment_of_its_print() {
    in_namespace("what_was_decoded_is_of_the_moment_of_its_print", || {
        block_on(async {
            // So many rules that few chains are decoded one at a time.
            kube::restore(&kube::services(200));
            run("iptables-nft -t nat -N FOO");
            run("iptables-nft -t nat -A PREROUTING -j FOO");
            let ((tell, told), (done, is_done)) = (mpsc::channel(), mpsc::channel());
            let others = thread::spawn(move || count(&told, &done));
            let packets = forwards(8, "10.31.200.1").1;
            for round in 0..READINGS {
                let mut engine = Iptables::new(Variant::Nft);
                engine.attend_to(&packets);
                // It is not waited for, so that it happens at any step of the reading.
                tell.send(()).unwrap();
                let seen = engine.observe().await.unwrap().v4.nat;
                let ours: Vec<&str> = seen.ours.values().flatten().map(Line::as_str).collect();
                let foreign: Vec<String> = seen.foreign["FOO"].iter().map(|rule| rule.replace("tcp", "udp")).collect();
                assert_eq!(foreign, ours, "in reading {round}");
                is_done.recv().unwrap();
                let seen = engine.observe().await.unwrap().v4.nat;
                assert_eq!(seen.foreign["FOO"], ["-p tcp -m tcp --dport 1 -j RETURN"], "after reading {round}");
                assert_eq!(
                    seen.ours["SALLY-X"][..],
                    [Line::read("-p udp -m udp --dport 1 -j RETURN")],
                    "after {round}"
                );
            }
            drop(tell);
            others.join().unwrap();
        });
    });
}
