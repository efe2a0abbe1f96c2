//! A set of translations holds what was put into it, whatever the order and however it was written down.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::flow::{Stage, Tuple};

/// First and last port, target, and first port there.
type Range = (u16, u16, u8, u16);

/// Few ports, so that ranges meet.
fn ranges() -> impl Strategy<Value = Vec<Range>> {
    vec((0_u16..40, 0_u16..6, 0_u8..2, -1_i32..2), 0..12).prop_map(|ranges| {
        let of = |(port, more, target, shift): (u16, u16, u8, i32)| {
            let port = port + 1;
            (port, port + more, target, u16::try_from(i32::from(port) + shift).unwrap())
        };
        ranges.into_iter().map(of).collect()
    })
}

fn ip(last: u8) -> IpAddr {
    [10, 30, 1, last].into()
}

fn set(ranges: &[Range]) -> Translations {
    let mut all = Translations::default();
    for (port, end_port, target, target_port) in ranges {
        let shift = i32::from(*target_port) - i32::from(*port);
        all.insert((Protocol::Tcp, ip(78), ip(*target), shift), *port, *end_port);
    }
    all
}

/// Port, target, and port there, of each connection that can go such a way.
fn connections(ranges: &[Range]) -> BTreeSet<(u16, u8, u16)> {
    let of = |(port, end_port, target, target_port): &Range| {
        let (target, shift) = (*target, i32::from(*target_port) - i32::from(*port));
        (*port..=*end_port).map(move |at| (at, target, u16::try_from(i32::from(at) + shift).unwrap()))
    };
    ranges.iter().flat_map(of).collect()
}

fn led(all: &Translations) -> BTreeSet<(u16, u8, u16)> {
    let mut found = BTreeSet::new();
    for port in 0..50 {
        for target in 0..3 {
            for target_port in 0..52 {
                let client = SocketAddr::new(ip(80), 40000);
                let flow = Flow {
                    protocol: Protocol::Tcp,
                    original: Tuple { src: client, dst: SocketAddr::new(ip(78), port) },
                    reply: Tuple { src: SocketAddr::new(ip(target), target_port), dst: client },
                    master: None,
                    mark: 0,
                    dnat: true,
                    id: 0,
                    zone: 0,
                    stage: Stage::Open,
                };
                found.extend(all.lead(&flow).then_some((port, target, target_port)));
            }
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn they_lead_whoever_one_of_them_leads(some in ranges(), others in ranges()) {
        let (one, other) = (set(&some), set(&others));
        prop_assert_eq!(led(&one), connections(&some));
        let mut both = one.clone();
        both.append(other.clone());
        let all: Vec<Range> = some.iter().chain(&others).copied().rev().collect();
        prop_assert_eq!(&both, &set(&all));

        let left = led(&one.without(&other));
        let only_here: BTreeSet<_> = connections(&some).difference(&connections(&others)).copied().collect();
        prop_assert_eq!(left, only_here);
        prop_assert!(one.without(&both).is_empty());

        let written = serde_json::to_string(&both).unwrap();
        prop_assert_eq!(serde_json::from_str::<Translations>(&written).unwrap(), both);
    }
}

#[test]
fn ranges_at_the_ends_of_all_ports_are_joined_like_others() {
    let ends = [(65_534, 65_535, 1, 65_534), (0, 0, 1, 0), (1, 65_533, 1, 1)];
    assert_eq!(set(&ends), set(&[(0, 65_535, 1, 0)]));
    assert!(set(&[]).is_empty());
}
