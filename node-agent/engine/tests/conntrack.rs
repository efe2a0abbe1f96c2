//! Kernel tier: tracked connections and the nftables generation of a real kernel, each test in a
//! network namespace of its own. Needs root, conntrack, nftables and iptables.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

#[path = "support/namespace.rs"]
mod namespace;

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::time::Duration;

use namespace::{in_namespace, run};
use sallyport_engine::conntrack::Conntrack;
use sallyport_engine::generation::Generation;
use sallyport_ruleset::Protocol;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::flow::{Flow, Stage, Tuple};

/// Makes an entry: `conntrack -I` with the words of `entry`.
fn insert(entry: &str) {
    run(&format!("conntrack -I -t 600 {entry}"));
}

fn udp_entry(source_port: u16) -> String {
    format!(
        "-p udp -s 10.30.0.10 -d 10.30.1.78 --sport {source_port} --dport 53 \
         --dst-nat 10.30.2.20:5353"
    )
}

fn tuple(src: &str, dst: &str) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The mark of ours.
const OURS: u32 = 0x1000;

/// Those that have our mark or were sent to one of `addresses`, by source port.
fn translated_to(conntrack: &Conntrack, addresses: &[&str]) -> Vec<Flow> {
    let mut flows = Vec::new();
    let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    block_on(conntrack.flows(OURS, &addresses, &BTreeSet::new(), |flow| flows.push(*flow))).unwrap();
    flows.sort_unstable_by_key(|flow| flow.original.src.port());
    flows
}

/// The same of the addresses that the tests insert.
fn translated(conntrack: &Conntrack) -> Vec<Flow> {
    translated_to(conntrack, &["10.30.1.78", "2001:db8::78", "2001:db8:1::78"])
}

/// Source ports of those that were not translated, sorted; none that was translated is ours.
fn untranslated(conntrack: &Conntrack, family: Family, protocol: Protocol) -> Vec<u16> {
    let mut ports = Vec::new();
    let kinds = [(family, protocol)].into();
    block_on(conntrack.flows(OURS, &BTreeSet::new(), &kinds, |flow| ports.push(flow.original.src.port()))).unwrap();
    ports.sort_unstable();
    ports
}

#[test]
fn every_field_of_every_kind_of_flow_is_read() {
    in_namespace("every_field_of_every_kind_of_flow_is_read", || {
        insert(
            "-p tcp --state ESTABLISHED -u SEEN_REPLY -m 0x1005 \
             -s 10.30.0.10 -d 10.30.1.78 --sport 40000 --dport 3306 \
             --dst-nat 10.30.2.20:3307 --src-nat 10.30.1.78:41000",
        );
        insert(
            "-p tcp --state TIME_WAIT -u SEEN_REPLY -m 0x1000 -w 9 \
             -s 2001:db8::10 -d 2001:db8:1::78 --sport 40001 --dport 3306 \
             --dst-nat 2001:db8:2::20",
        );
        insert(&format!("{} -m 0x1000", udp_entry(40002)));
        insert(
            "-p udp -s 2001:db8::10 -d 2001:db8:1::78 --sport 40003 --dport 53 \
             --dst-nat 2001:db8:2::20",
        );
        insert("-p icmp -m 0x1000 -s 10.30.0.10 -d 10.30.1.78 --icmp-type 8 --icmp-code 0 --icmp-id 7");
        insert("-p udp -m 0x1000 -s 10.30.0.10 -d 10.30.1.78 --sport 40004 --dport 53");

        let ours = translated(&Conntrack::open().unwrap());
        let ids: BTreeSet<u32> = ours.iter().map(|flow| flow.id).collect();
        assert_eq!(ids.len(), 4, "an id for each of four");
        let expected = [
            Flow {
                protocol: Protocol::Tcp,
                original: tuple("10.30.0.10:40000", "10.30.1.78:3306"),
                reply: tuple("10.30.2.20:3307", "10.30.1.78:41000"),
                master: None,
                mark: 0x1005,
                dnat: true,
                id: ours[0].id,
                zone: 0,
                stage: Stage::Open,
            },
            Flow {
                protocol: Protocol::Tcp,
                original: tuple("[2001:db8::10]:40001", "[2001:db8:1::78]:3306"),
                reply: tuple("[2001:db8:2::20]:3306", "[2001:db8::10]:40001"),
                master: None,
                mark: 0x1000,
                dnat: true,
                id: ours[1].id,
                zone: 9,
                stage: Stage::Over,
            },
            Flow {
                protocol: Protocol::Udp,
                original: tuple("10.30.0.10:40002", "10.30.1.78:53"),
                reply: tuple("10.30.2.20:5353", "10.30.0.10:40002"),
                master: None,
                mark: 0x1000,
                dnat: true,
                id: ours[2].id,
                zone: 0,
                stage: Stage::Open,
            },
            Flow {
                protocol: Protocol::Udp,
                original: tuple("[2001:db8::10]:40003", "[2001:db8:1::78]:53"),
                reply: tuple("[2001:db8:2::20]:53", "[2001:db8::10]:40003"),
                master: None,
                mark: 0,
                dnat: true,
                id: ours[3].id,
                zone: 0,
                stage: Stage::Open,
            },
        ];
        assert_eq!(ours, expected);
    });
}

#[test]
fn of_what_others_translate_only_what_was_sent_to_an_address_of_ours_is_listed() {
    in_namespace("of_what_others_translate_only_what_was_sent_to_an_address_of_ours_is_listed", || {
        let entry = |to: &str, port: u16, mark: u32| {
            insert(&format!("-p udp -m {mark} -s 10.30.0.10 -d {to} --sport {port} --dport 53 --dst-nat 10.30.2.20"));
        };
        for (to, port, mark) in
            [("10.30.1.78", 1, 0), ("10.30.1.78", 2, OURS), ("10.30.1.77", 3, 0), ("10.30.1.77", 4, OURS)]
        {
            entry(to, port, mark);
        }
        let conntrack = Conntrack::open().unwrap();
        let ports = |addresses: &[&str]| -> Vec<u16> {
            translated_to(&conntrack, addresses).iter().map(|flow| flow.original.src.port()).collect()
        };
        insert("-p udp -w 3 -s 10.30.0.10 -d 10.30.1.78 --sport 5 --dport 53 --dst-nat 10.30.2.20");
        let many: Vec<String> =
            (70..90).map(|last| format!("10.30.1.{last}")).filter(|ip| ip != "10.30.1.77").collect();
        for is_crowded in [false, true] {
            if is_crowded {
                crowd();
            }
            assert_eq!(ports(&[]), [2, 4]);
            assert_eq!(ports(&["10.30.1.78", "fd00::78"]), [1, 2, 4]);
            assert_eq!(ports(&many.iter().map(String::as_str).collect::<Vec<_>>()), [1, 2, 4]);
        }
    });
}

#[test]
fn what_is_stuck_is_found_among_what_was_not_translated() {
    in_namespace("what_is_stuck_is_found_among_what_was_not_translated", || {
        let tcp = |port: u16, state: &str| {
            insert(&format!("-p tcp --state {state} -s 10.30.0.10 -d 10.30.1.78 --sport {port} --dport 3306"));
        };
        tcp(1, "SYN_SENT");
        tcp(2, "ESTABLISHED -u SEEN_REPLY");
        tcp(3, "CLOSE");
        tcp(4, "SYN_SENT --dst-nat 10.30.2.20");
        insert("-p tcp --state SYN_SENT -s 2001:db8::10 -d 2001:db8::78 --sport 5 --dport 3306");
        insert("-p udp -s 10.30.0.10 -d 10.30.1.78 --sport 6 --dport 53");
        insert("-p udp -u SEEN_REPLY -s 10.30.0.10 -d 10.30.1.78 --sport 7 --dport 53");
        insert(&udp_entry(8));
        insert("-p udp -s 2001:db8::10 -d 2001:db8::78 --sport 9 --dport 53");
        let conntrack = Conntrack::open().unwrap();
        for is_crowded in [false, true] {
            if is_crowded {
                crowd();
            }
            for (family, protocol, ports) in [
                (Family::V4, Protocol::Tcp, &[1][..]),
                (Family::V6, Protocol::Tcp, &[5]),
                (Family::V4, Protocol::Udp, &[6, 7]),
                (Family::V6, Protocol::Udp, &[9]),
            ] {
                assert_eq!(untranslated(&conntrack, family, protocol), ports, "{family} {protocol}");
            }
        }
    });
}

#[test]
fn of_two_flows_that_differ_in_source_port_one_is_deleted() {
    in_namespace("of_two_flows_that_differ_in_source_port_one_is_deleted", || {
        for port in [40000, 40001] {
            insert(&udp_entry(port));
        }
        let conntrack = Conntrack::open().unwrap();
        let [gone, stays] = translated(&conntrack)[..] else { panic!("two were inserted") };
        assert!(conntrack.delete(&gone).unwrap());
        assert_eq!(translated(&conntrack), [stays]);
        assert!(!conntrack.delete(&gone).unwrap(), "a second time there is nothing to delete");
        assert_eq!(translated(&conntrack), [stays]);
    });
}

#[test]
fn each_family_protocol_and_zone_can_be_deleted() {
    in_namespace("each_family_protocol_and_zone_can_be_deleted", || {
        let tcp = "-p tcp --state ESTABLISHED -u SEEN_REPLY --dport 443";
        let v6 = "-s 2001:db8::10 -d 2001:db8::78 --dst-nat 2001:db8::79";
        let v4 = "-s 10.30.0.10 -d 10.30.1.78 --dst-nat 10.30.1.79";
        insert(&format!("{tcp} {v4} --sport 1"));
        insert(&format!("{tcp} {v6} --sport 2"));
        insert(&format!("-p udp --dport 53 {v4} --sport 3"));
        insert(&format!("-p udp --dport 53 {v6} --sport 4"));
        insert(&format!("-p udp --dport 53 {v4} --sport 5 -w 7 -m 0x1000"));
        insert(&format!("-p udp --dport 53 {v4} --sport 6 --orig-zone 8 -m 0x1000"));
        let conntrack = Conntrack::open().unwrap();
        let mut left = translated(&conntrack);
        assert_eq!(left.len(), 6);
        while let Some(flow) = left.pop() {
            assert!(conntrack.delete(&flow).unwrap(), "{flow:?}");
            assert_eq!(translated(&conntrack).len(), left.len(), "{flow:?}");
        }
    });
}

#[test]
fn a_successor_with_the_same_tuple_is_not_deleted() {
    in_namespace("a_successor_with_the_same_tuple_is_not_deleted", || {
        let entry = udp_entry(40000);
        insert(&entry);
        let conntrack = Conntrack::open().unwrap();
        let old = translated(&conntrack)[0];
        assert!(conntrack.delete(&old).unwrap());
        // The id comes from the entry's memory, which the kernel may use again at once; then the
        // successor has the same id and nobody can tell them apart.
        let mut attempts = 0..50;
        let successor = loop {
            insert(&entry);
            let successor = translated(&conntrack)[0];
            if successor.id != old.id {
                break successor;
            }
            assert!(conntrack.delete(&successor).unwrap());
            attempts.next().expect("an entry in other memory");
        };
        assert_eq!(Flow { id: old.id, ..successor }, old, "equal but for the id");
        assert!(!conntrack.delete(&old).unwrap());
        assert_eq!(translated(&conntrack), [successor]);
    });
}

/// Processor time that this thread has used: what others on the machine do does not count.
fn used() -> Duration {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// An established connection of somebody else's, as `conntrack -R` takes it.
fn foreign_entry(n: u32, translation: &str) -> String {
    let (client, port) = (format!("10.{}.{}.{}", 40 + n / 60_000, n / 250 % 240, n % 250 + 1), 1024 + n % 60_000);
    format!(
        "-A -t 600 -u SEEN_REPLY,ASSURED -s {client} -d 192.0.2.1 -p tcp --sport {port} --dport 443 --state ESTABLISHED \
         {translation}\n"
    )
}

/// Makes so many connections of others that not all are listed.
fn crowd() {
    let entries = tempfile::NamedTempFile::new().unwrap();
    fs::write(entries.path(), (0..2_500).map(|n| foreign_entry(n, "")).collect::<String>()).unwrap();
    run(&format!("conntrack -R {}", entries.path().display()));
}

/// Longer than this nobody who has something to do may be kept waiting.
const HOLD_UP: Duration = Duration::from_millis(100);
const MEMORY_KIB: u64 = 16 * 1024;

/// Lists what matters; how long the longest step of that took, during which nobody else could run.
fn longest_hold_up(what: &str, ours: &str, all: usize) -> Duration {
    let conntrack = Conntrack::open().unwrap();
    let (addresses, before) = ([ours.parse().unwrap()].into(), peak());
    let kinds = [(Family::V4, Protocol::Udp)].into();
    let (mut kept, mut seen, mut longest, begun) = (Vec::new(), 0, Duration::ZERO, used());
    block_on(async {
        let mut last = used();
        let others = async {
            loop {
                let now = used();
                longest = longest.max(now.saturating_sub(last));
                last = now;
                tokio::task::yield_now().await;
            }
        };
        let look = |flow: &Flow| {
            seen += 1;
            kept.extend((flow.original.src.port() == 40000).then_some(*flow));
        };
        tokio::select! {
            biased;
            outcome = conntrack.flows(OURS, &addresses, &kinds, look) => outcome.unwrap(),
            () = others => {}
        }
    });
    let (took, grown) = (used().saturating_sub(begun), peak() - before);
    println!("{what}: {seen} seen, {took:?} in all, {longest:?} at a time, {grown} KiB");
    assert_eq!(seen, all, "{what}");
    assert!(kept.len() < 5, "{what}: {kept:?}");
    assert!(grown <= MEMORY_KIB, "{what}: {grown} KiB");
    longest
}

#[test]
fn two_hundred_thousand_flows_of_others_hold_nobody_up_and_take_no_memory() {
    in_namespace("two_hundred_thousand_flows_of_others_hold_nobody_up_and_take_no_memory", || {
        let directory = tempfile::tempdir().unwrap();
        let translated = "--dst-nat 172.17.0.2";
        for (what, translation, ours, all) in [
            ("routed", "", "10.30.1.78", 1),
            ("translated by others", translated, "10.30.1.78", 1),
            ("translated by others at an address of ours", translated, "192.0.2.1", 200_000),
        ] {
            let path = directory.path().join("entries");
            fs::write(&path, (0..200_000).map(|n| foreign_entry(n, translation)).collect::<String>()).unwrap();
            run("conntrack -F");
            run(&format!("conntrack -R {}", path.display()));
            insert(&udp_entry(40000));

            // What else runs on the machine only makes it longer.
            let longest = (0..3).map(|_| longest_hold_up(what, ours, all)).find(|longest| *longest <= HOLD_UP);
            assert!(longest.is_some(), "{what}: more than {HOLD_UP:?} at a time, three times");
        }
    });
}

#[test]
fn the_generation_moves_with_nftables_and_only_then() {
    in_namespace("the_generation_moves_with_nftables_and_only_then", || {
        let generation = Generation::open().unwrap();
        let start = generation.current().unwrap();
        for _ in 0..1000 {
            assert_eq!(generation.current().unwrap(), start);
        }
        run("nft list ruleset");
        insert(&udp_entry(40000));
        assert_eq!(generation.current().unwrap(), start, "reading and conntrack are no change");

        run("nft add table inet other");
        let after_nft = generation.current().unwrap();
        assert_ne!(after_nft, start);
        run("iptables-nft -A FORWARD -j ACCEPT");
        let after_iptables = generation.current().unwrap();
        assert_ne!(after_iptables, after_nft);
        assert_eq!(generation.current().unwrap(), after_iptables);
    });
}
