//! Kernel tier: forwarding switched on and back in a real kernel, each test in a network
//! namespace of its own. Needs root and iproute2.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

#[path = "support/namespace.rs"]
mod namespace;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use namespace::{in_namespace, run};
use sallyport_engine::sysctl::{Record, Sysctl};
use sallyport_ruleset::family::Family;
use socket2::{Domain, Protocol, Socket, Type};

/// What `look` finds, as soon as it finds something.
fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let found = look();
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        std::thread::yield_now();
    }
}

/// Brings up `lo` and the pair `v0`-`v1` with their link-local addresses.
fn interfaces() {
    // A new namespace copies the settings of the machine's own, and that one may well forward.
    put("ipv4/ip_forward", "0");
    put("ipv6/conf/all/forwarding", "0");
    // Without duplicate address detection the addresses work at once.
    put("ipv6/conf/default/accept_dad", "0");
    put("ipv6/conf/default/dad_transmits", "0");
    run("ip link add v0 type veth peer name v1");
    for interface in ["lo", "v0", "v1"] {
        run(&format!("ip link set {interface} up"));
    }
    for interface in ["lo", "v0", "v1"] {
        eventually(|| index_with_address(interface)).expect("an IPv6 address");
    }
}

/// The index of an interface that has an IPv6 address.
fn index_with_address(interface: &str) -> Option<u32> {
    let addresses = fs::read_to_string("/proc/net/if_inet6").unwrap();
    let line = addresses.lines().find(|line| line.split_whitespace().last() == Some(interface))?;
    u32::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()
}

fn put(setting: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net").join(setting), value).unwrap();
}

fn get(setting: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys/net").join(setting)).unwrap().trim().to_owned()
}

/// Every file below ipv4 and ipv6, byte by byte; what cannot be read is there without content.
fn everything() -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut directories = vec!["/proc/sys/net/ipv4".into(), PathBuf::from("/proc/sys/net/ipv6")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.clone(), fs::read(&path).ok());
            }
        }
    }
    files
}

fn switch_on(sysctl: &Sysctl, family: Family) -> Record {
    let record = sysctl.plan(family).unwrap().expect("forwarding is off");
    sysctl.apply(&record).unwrap();
    assert!(sysctl.forwarding(family).unwrap());
    record
}

/// Everything is as before when forwarding went on and back again, from this state on.
fn assert_restored() {
    let sysctl = Sysctl::default();
    let before = everything();
    assert!(before.len() > 300, "only {} settings", before.len());
    let records = Family::BOTH.map(|family| switch_on(&sysctl, family));
    assert_ne!(everything(), before);
    for record in records.iter().rev() {
        let kept = serde_json::to_string(record).unwrap();
        sysctl.restore(&serde_json::from_str(&kept).unwrap()).unwrap();
    }
    for (path, value) in everything() {
        assert_eq!(value, before[&path], "{}", path.display());
    }
}

#[test]
fn every_setting_is_as_before_after_restore() {
    in_namespace("every_setting_is_as_before_after_restore", || {
        interfaces();
        assert_restored();
        // Now from a state that no switch alone can produce.
        for family in ["ipv4", "ipv6"] {
            put(&format!("{family}/conf/v0/forwarding"), "1");
            put(&format!("{family}/conf/default/forwarding"), "1");
            put(&format!("{family}/conf/all/accept_redirects"), "0");
            put(&format!("{family}/conf/v1/accept_redirects"), "0");
        }
        assert_restored();
    });
}

#[test]
fn what_changed_meanwhile_stays_and_new_interfaces_follow_the_default() {
    in_namespace("what_changed_meanwhile_stays_and_new_interfaces_follow_the_default", || {
        interfaces();
        let sysctl = Sysctl::default();
        let records = Family::BOTH.map(|family| switch_on(&sysctl, family));
        run("ip link add v2 type bridge");
        run("ip link delete v0");
        for family in ["ipv4", "ipv6"] {
            assert_eq!(get(&format!("{family}/conf/v2/forwarding")), "1");
            put(&format!("{family}/conf/lo/forwarding"), "0");
        }
        put("ipv4/conf/all/accept_redirects", "1");
        for record in &records {
            sysctl.restore(record).unwrap();
        }
        for family in ["ipv4", "ipv6"] {
            for interface in ["all", "default", "lo", "v2"] {
                assert_eq!(get(&format!("{family}/conf/{interface}/forwarding")), "0");
            }
        }
        assert_eq!(get("ipv4/conf/all/accept_redirects"), "1");
    });
}

#[test]
fn forwarding_that_somebody_else_turned_off_stays_off() {
    in_namespace("forwarding_that_somebody_else_turned_off_stays_off", || {
        interfaces();
        let sysctl = Sysctl::default();
        for (family, switch) in [(Family::V4, "ipv4/ip_forward"), (Family::V6, "ipv6/conf/all/forwarding")] {
            let record = switch_on(&sysctl, family);
            put(switch, "0");
            let others = || {
                let mut all = everything();
                all.retain(|path, _| !path.ends_with("accept_ra"));
                all
            };
            let before = others();
            sysctl.restore(&record).unwrap();
            assert!(others() == before, "{family}");
            assert_eq!(get("ipv6/conf/v0/accept_ra"), "1");
        }
    });
}

/// Sends a router advertisement for `2001:db8:5::/64` out of `v1`, which arrives at `v0`.
fn advertise() {
    let mut packet = vec![134, 0, 0, 0, 64, 0];
    packet.extend(1800_u16.to_be_bytes()); // router lifetime
    packet.extend([0; 8]);
    packet.extend([3, 4, 64, 0xc0]); // prefix information, on-link and autonomous
    packet.extend(86400_u32.to_be_bytes());
    packet.extend(14400_u32.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend("2001:db8:5::".parse::<Ipv6Addr>().unwrap().octets());
    let index = index_with_address("v1").unwrap();
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    socket.set_multicast_hops_v6(255).unwrap();
    // Or v1 would take it too.
    socket.set_multicast_loop_v6(false).unwrap();
    let everybody = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
    socket.send_to(&packet, &everybody.into()).unwrap();
}

/// Waits until `v0` has a default route, or has none.
fn default_route_becomes(expected: bool) -> bool {
    let reached = eventually(|| {
        let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap();
        let there =
            routes.lines().any(|line| line.starts_with("00000000000000000000000000000000 00") && line.ends_with(" v0"));
        (there == expected).then_some(())
    });
    reached.is_some()
}

#[test]
fn a_route_from_a_router_advertisement_survives_forwarding() {
    in_namespace("a_route_from_a_router_advertisement_survives_forwarding", || {
        interfaces();
        put("ipv6/conf/v0/accept_ra_from_local", "1");
        advertise();
        assert!(default_route_becomes(true), "no route from the advertisement");
        put("ipv6/conf/all/forwarding", "1");
        assert!(default_route_becomes(false), "the kernel keeps the route by itself");
        put("ipv6/conf/all/forwarding", "0");
        advertise();
        assert!(default_route_becomes(true), "no route from the second advertisement");

        let before = everything();
        let sysctl = Sysctl::default();
        let record = switch_on(&sysctl, Family::V6);
        assert_eq!(get("ipv6/conf/v0/accept_ra"), "2");
        assert_eq!(get("ipv6/conf/v1/accept_ra"), "2", "nothing was advertised there yet");
        assert!(default_route_becomes(true), "the route went when forwarding was turned on");
        sysctl.restore(&record).unwrap();
        assert!(default_route_becomes(true), "the route went when forwarding was turned off");
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_route_comes_with_the_first_advertisement_after_forwarding_was_turned_on() {
    in_namespace("a_route_comes_with_the_first_advertisement_after_forwarding_was_turned_on", || {
        interfaces();
        let before = everything();
        let sysctl = Sysctl::default();
        let record = switch_on(&sysctl, Family::V6);
        put("ipv6/conf/v0/accept_ra_from_local", "1");
        advertise();
        assert!(default_route_becomes(true), "no route from the first advertisement");
        run("ip link add v2 type bridge");
        assert_eq!(get("ipv6/conf/v2/accept_ra"), "2");
        sysctl.restore(&record).unwrap();
        assert_eq!(get("ipv6/conf/v2/accept_ra"), "1");
        run("ip link delete v2");
        put("ipv6/conf/v0/accept_ra_from_local", "0");
        assert_eq!(everything(), before);
    });
}
