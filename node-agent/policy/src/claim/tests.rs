//! Which claims overlap, and what a forward claims.

use std::cmp::Reverse;

use proptest::collection::vec;
use proptest::prelude::*;
use sallyport_api::testing::Forward;

use super::*;

/// `tcp 80-90 10.0.0.1`: the address may be missing, `any4` and `any6` stand for all of a family.
fn claim(text: &str) -> Claim {
    let words: Vec<&str> = text.split(' ').collect();
    let (first, last) = words[1].split_once('-').unwrap_or((words[1], words[1]));
    let address = words[2].parse().ok();
    Claim {
        family: if words[2] == "any6" { Family::V6 } else { address.map_or(Family::V4, Family::of) },
        address,
        protocol: if words[0] == "tcp" { Protocol::Tcp } else { Protocol::Udp },
        first: first.parse().unwrap(),
        last: last.parse().unwrap(),
    }
}

const ROWS: [(&str, &str, bool); 14] = [
    ("tcp 80 any4", "tcp 80 any4", true),
    ("tcp 80 any4", "tcp 81 any4", false),
    ("tcp 80 any4", "udp 80 any4", false),
    ("tcp 80 any4", "tcp 80 any6", false),
    ("tcp 80 any4", "tcp 80 10.0.0.1", true),
    ("tcp 80 any6", "tcp 80 10.0.0.1", false),
    ("tcp 80 any6", "tcp 80 fd00::1", true),
    ("tcp 80 10.0.0.1", "tcp 80 10.0.0.2", false),
    ("tcp 80-90 any4", "tcp 90-95 any4", true),
    ("tcp 80-90 any4", "tcp 91-95 any4", false),
    ("tcp 80-90 any4", "tcp 70-80 any4", true),
    ("tcp 80-90 any4", "tcp 70-79 any4", false),
    ("tcp 80-90 any4", "tcp 85 10.0.0.1", true),
    ("tcp 1-65535 any4", "tcp 65535 10.0.0.1", true),
];

#[test]
fn claims_overlap_where_one_packet_could_be_of_both() {
    for (a, b, overlap) in ROWS {
        let (a, b) = (claim(a), claim(b));
        assert_eq!((a.overlaps(&b), b.overlaps(&a)), (overlap, overlap), "{a}, {b}");
    }
}

#[test]
fn the_table_finds_the_same_overlaps() {
    for (a, b, overlap) in ROWS {
        let mut table = ClaimTable::default();
        table.insert(&[claim(a)], 1);
        assert_eq!(table.conflict(&[claim(b)], 2), overlap.then(|| (claim(b).shared_with(&claim(a)), 1)), "{a}, {b}");
        assert_eq!(table.conflict(&[claim(b)], 1), None, "one's own claims are no conflict");
        table.remove(&[claim(a)], 2);
        assert_eq!(table.conflict(&[claim(b)], 2).is_some(), overlap, "somebody else's claim was removed");
        table.remove(&[claim(a)], 1);
        assert_eq!(table.conflict(&[claim(b)], 2), None);
    }
}

#[test]
fn a_conflict_behind_a_neighbour_is_found() {
    let mut table = ClaimTable::default();
    for (number, text) in
        ["tcp 10-20 any4", "tcp 30-40 10.0.0.1", "tcp 35 10.0.0.2", "tcp 50 any4"].into_iter().enumerate()
    {
        table.insert(&[claim(text)], number);
    }
    let by = |text| table.conflict(&[claim(text)], 9).map(|(_, by)| by);
    assert_eq!(by("tcp 20-29 any4"), Some(0));
    assert_eq!(by("tcp 21-29 any4"), None);
    assert_eq!(by("tcp 34-36 10.0.0.2"), Some(2));
    assert_eq!(by("tcp 38-60 10.0.0.2"), Some(3));
    assert_eq!(by("tcp 36-49 10.0.0.2"), None);
    assert!(by("tcp 36-49 any4").is_some());
}

#[test]
fn a_forward_claims_each_of_its_addresses_or_its_targets_families() {
    let intent = |addresses: &[&str], targets: &[&str]| Intent {
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Forward::tcp("one/http", 80).through(90).to(targets.iter().copied()).intent()
    };
    let texts = |intent| Claim::of(&intent).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(Claim::of(&intent(&[], &["10.0.0.9"])), [claim("tcp 80-90 any4")]);
    assert_eq!(Claim::of(&intent(&[], &["fd00::9", "10.0.0.9"])), [claim("tcp 80-90 any4"), claim("tcp 80-90 any6")]);
    assert_eq!(
        texts(intent(&["10.0.0.1", "fd00::1"], &["10.0.0.9"])),
        ["port 80-90/TCP on 10.0.0.1", "port 80-90/TCP on fd00::1"]
    );
}

#[test]
fn a_claim_lies_within_one_that_holds_all_of_it() {
    let rows = [
        ("tcp 80 any4", "tcp 80 any4", true),
        ("tcp 80 10.0.0.1", "tcp 80 any4", true),
        ("tcp 80 any4", "tcp 80 10.0.0.1", false),
        ("tcp 81-82 any4", "tcp 80-90 any4", true),
        ("tcp 80-91 any4", "tcp 80-90 any4", false),
        ("udp 80 any4", "tcp 80-90 any4", false),
    ];
    for (inner, outer, within) in rows {
        assert_eq!(claim(inner).is_within(&claim(outer)), within, "{inner} in {outer}");
    }
}

#[test]
fn a_holder_of_overlapping_ports_hides_nobody_elses() {
    for held in [["tcp 80-90 10.0.0.1", "tcp 80 10.0.0.1"], ["tcp 80-90 10.0.0.1", "tcp 85 10.0.0.1"]] {
        let mut table = ClaimTable::default();
        let held = held.map(claim);
        table.insert(&held, 1);
        assert_eq!(table.conflict(&[claim("tcp 88 any4")], 2).map(|(_, by)| by), Some(1), "{held:?}");
        table.remove(&held, 1);
        table.insert(&[claim("tcp 80 10.0.0.1")], 1);
        table.insert(&[claim("tcp 85 10.0.0.2")], 2);
        assert_eq!(table.conflict(&[claim("tcp 85 any4")], 3).map(|(_, by)| by), Some(2), "{held:?}");
    }
}

fn any_claim() -> impl Strategy<Value = Claim> {
    let addresses = ["any4", "any4", "any6", "10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"];
    let ports = prop_oneof![3 => (60..70_u16, 0..3_u16), 2 => (1..100_u16, 0..40_u16), 1 => (1..9_u16, 0..65_000_u16)];
    (any::<bool>(), prop::sample::select(addresses.to_vec()), ports).prop_map(|(tcp, address, (first, width))| {
        claim(&format!("{} {first}-{} {address}", if tcp { "tcp" } else { "udp" }, first + width))
    })
}

/// The same question, answered by looking at every claim in the order in which they are told.
fn walk(held: &[Held<usize>], wanted: &[Claim], owner: usize) -> Option<(Claim, usize)> {
    wanted.iter().find_map(|claim| {
        let others = held.iter().filter(|held| held.owner != owner && held.claim.overlaps(claim));
        let told = others.min_by_key(|held| (held.claim.address, Reverse(held.claim.first)))?;
        Some((claim.shared_with(&told.claim), told.owner))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_answers_as_looking_at_every_claim_does(
        steps in vec((vec(any_claim(), 1..4), 0..6_usize, prop::bool::weighted(0.8)), 1..60),
    ) {
        let (mut table, mut given) = (ClaimTable::default(), Vec::<(Vec<Claim>, usize)>::new());
        for (claims, owner, takes) in steps {
            let each = given.iter().flat_map(|(claims, owner)| disjoint(claims).into_iter().map(|claim| (claim, *owner)));
            let held: Vec<Held<usize>> = each.map(|(claim, owner)| Held { claim, owner }).collect();
            let conflict = table.conflict(&claims, owner);
            prop_assert_eq!(conflict, walk(&held, &claims, owner));
            if takes && conflict.is_none() {
                // What is given together may overlap, what was given before and still is may not.
                let is_new = |claim: &&Claim| held.iter().all(|held| !held.claim.overlaps(claim));
                let free: Vec<Claim> = claims.iter().filter(is_new).copied().collect();
                table.insert(&free, owner);
                given.push((free, owner));
            } else if let Some(at) = given.iter().position(|(_, of)| *of == owner) {
                let (claims, owner) = given.remove(at);
                table.remove(&claims, owner);
            }
        }
    }

    #[test]
    fn what_is_disjoint_covers_what_was_there(claims in vec(any_claim(), 0..8), other in any_claim()) {
        let apart = disjoint(&claims);
        for (n, claim) in apart.iter().enumerate() {
            let same = apart[..n].iter().filter(|before| before.address == claim.address);
            prop_assert!({ same }.all(|before| !before.overlaps(claim)), "{:?}", apart);
        }
        prop_assert_eq!(apart.iter().any(|claim| claim.overlaps(&other)), claims.iter().any(|claim| claim.overlaps(&other)));
    }

    #[test]
    fn those_of_the_same_place_are_those_that_may_overlap(
        claims in vec(any_claim(), 0..12),
        others in vec(any_claim(), 1..12),
    ) {
        let by_place = ByPlace::of(&claims);
        for other in others {
            prop_assert_eq!(by_place.any(&other, |claim| claim.overlaps(&other)), claims.iter().any(|claim| claim.overlaps(&other)));
            prop_assert_eq!(by_place.any(&other, |claim| other.is_within(claim)), claims.iter().any(|claim| other.is_within(claim)));
        }
    }
}
