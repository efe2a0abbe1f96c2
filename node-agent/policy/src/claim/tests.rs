//! Which claims overlap, and what a forward claims.

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
