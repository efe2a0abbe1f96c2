//! What counts as carried, whatever nodes report.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use sallyport_api::testing::Forward;

use super::*;

/// A slice of the pool `p` with these forwards, each a uid and a hash; its hash is the list itself.
fn slice(name: &str, forwards: &[(&str, &str)]) -> Arc<ForwardSlice> {
    let of = |(uid, hash): &(&str, &str)| Forward::tcp(&format!("n/{uid}"), 80).slice_forward(|_| (*hash).into());
    let list = forwards.iter().map(of).map(Arc::new).collect();
    let spec = ForwardSliceSpec { pool: "p".into(), hash: hash(forwards), forwards: list, planned: Vec::new() };
    Arc::new(ForwardSlice::new(name, spec))
}

fn hash(forwards: &[(&str, &str)]) -> SliceHash {
    format!("{forwards:?}").into()
}

/// A report on slices: name, hash, whether read back.
fn report(slices: &[(&str, &SliceHash, bool)]) -> GatewayNodeStatus {
    let observed_slices = slices
        .iter()
        .map(|(name, hash, done)| ObservedSlice {
            name: (*name).to_owned(),
            generation: 0,
            hash: (*hash).clone(),
            state: if *done { SliceState::Programmed } else { SliceState::Pending },
            failed: Vec::new(),
        })
        .collect();
    GatewayNodeStatus { observed_slices, ..GatewayNodeStatus::default() }
}

fn node_report(status: &GatewayNodeStatus) -> NodeReport<'_> {
    NodeReport { pool: "p", status, gone: false }
}

fn update(revisions: &mut SliceRevisions, slices: &[&Arc<ForwardSlice>], reports: &[&GatewayNodeStatus]) {
    let reports: Vec<NodeReport<'_>> = reports.iter().map(|status| node_report(status)).collect();
    revisions.update(slices.iter().copied(), &reports);
}

fn outgoing(revisions: &SliceRevisions) -> Vec<String> {
    revisions.outgoing().into_iter().map(|outgoing| outgoing.uid.to_string()).collect()
}

const WITH: &[(&str, &str)] = &[("a", "1"), ("b", "1")];
const WITHOUT: &[(&str, &str)] = &[("b", "1")];

#[test]
fn a_forward_is_gone_only_when_every_live_node_reported_a_form_without_it() {
    let (old, new) = (hash(WITH), hash(WITHOUT));
    let (at_old, at_new) = (report(&[("s", &old, true)]), report(&[("s", &new, true)]));
    let (coming, nothing) = (report(&[("s", &new, false)]), GatewayNodeStatus::default());
    let cases: [(&str, &[&GatewayNodeStatus], bool); 7] = [
        ("both have read the new revision back", &[&at_new, &at_new], false),
        ("one is at the old revision", &[&at_old, &at_new], true),
        ("the other is", &[&at_new, &at_old], true),
        ("one has seen the new revision, and not read it back", &[&at_new, &coming], true),
        ("one has reported nothing", &[&nothing, &at_new], true),
        ("none reported anything", &[&nothing, &nothing], true),
        ("no node at all", &[], false),
    ];
    for (case, reports, carried) in cases {
        let mut revisions = SliceRevisions::default();
        update(&mut revisions, &[&slice("s", WITH)], &[&at_old]);
        update(&mut revisions, &[&slice("s", WITHOUT)], reports);
        assert_eq!(revisions.may_be_carried(&"a".into()), carried, "{case}");
        assert_eq!(outgoing(&revisions), if carried { vec!["a"] } else { vec![] }, "{case}");
        assert_eq!(revisions.is_on_every_node("s"), !carried, "{case}");
        assert!(revisions.may_be_carried(&"b".into()), "{case}: the one that stays");
        assert!(revisions.unknown().is_empty(), "{case}");
    }
}

#[test]
fn dead_nodes_and_nodes_of_other_pools_are_not_waited_for() {
    let old = report(&[("s", &hash(WITH), true)]);
    for (pool, gone, waits) in [("p", false, true), ("p", true, false), ("q", false, false)] {
        let mut revisions = SliceRevisions::default();
        revisions.update([&slice("s", WITH)].into_iter(), &[node_report(&old)]);
        revisions.update([&slice("s", WITHOUT)].into_iter(), &[NodeReport { pool, status: &old, gone }]);
        assert_eq!(revisions.may_be_carried(&"a".into()), waits, "{pool} {gone}");
    }
}

#[test]
fn a_hash_that_nobody_remembers_makes_the_pool_unknown() {
    let mut revisions = SliceRevisions::default();
    let strange = report(&[("s", &"never written by this leader".into(), true)]);
    update(&mut revisions, &[&slice("s", WITHOUT)], &[&strange]);
    assert_eq!(revisions.unknown().iter().collect::<Vec<_>>(), ["p"]);
    assert!(revisions.may_be_carried(&"anything".into()));
    update(&mut revisions, &[&slice("s", WITHOUT)], &[&report(&[("s", &hash(WITHOUT), true)])]);
    assert!(revisions.unknown().is_empty(), "it caught up");
}

#[test]
fn what_moved_to_another_slice_is_not_leaving() {
    let old = report(&[("s", &hash(WITH), true), ("t", &hash(&[]), true)]);
    let mut revisions = SliceRevisions::default();
    update(&mut revisions, &[&slice("s", WITH), &slice("t", &[])], &[&old]);
    update(&mut revisions, &[&slice("s", WITHOUT), &slice("t", &[("a", "1")])], &[&old]);
    assert!(outgoing(&revisions).is_empty());
    assert!(revisions.may_be_carried(&"a".into()));
    // With another intent, its former one is.
    let mut revisions = SliceRevisions::default();
    update(&mut revisions, &[&slice("s", WITH), &slice("t", &[])], &[&old]);
    update(&mut revisions, &[&slice("s", WITHOUT), &slice("t", &[("a", "2")])], &[&old]);
    assert_eq!(outgoing(&revisions), ["a"]);
}

#[test]
fn forms_that_no_node_can_have_are_forgotten() {
    let mut revisions = SliceRevisions::default();
    let all: Vec<Vec<(&str, &str)>> = vec![vec![("a", "1")], vec![("a", "2")], vec![("a", "3")]];
    let behind = report(&[("s", &hash(&all[0]), true)]);
    for revision in &all {
        update(&mut revisions, &[&slice("s", revision)], &[&behind]);
    }
    assert_eq!(revisions.slices["s"].revisions.len(), 3);
    assert_eq!(outgoing(&revisions), ["a", "a"], "both former intents");
    update(&mut revisions, &[&slice("s", &all[2])], &[&report(&[("s", &hash(&all[1]), true)])]);
    assert_eq!(revisions.slices["s"].revisions.len(), 2);
    update(&mut revisions, &[&slice("s", &all[2])], &[&report(&[("s", &hash(&all[2]), true)])]);
    assert_eq!(revisions.slices["s"].revisions.len(), 1);
}

#[test]
fn a_node_that_is_too_far_behind_is_unknown_rather_than_remembered_for_ever() {
    let mut revisions = SliceRevisions::default();
    let hashes: Vec<String> = (0..=MAX_REVISIONS).map(|number| number.to_string()).collect();
    let behind = report(&[("s", &hash(&[("a", "0")]), true)]);
    for number in &hashes {
        assert!(revisions.unknown().is_empty());
        update(&mut revisions, &[&slice("s", &[("a", number.as_str())])], &[&behind]);
    }
    assert_eq!(revisions.slices["s"].revisions.len(), MAX_REVISIONS);
    assert!(revisions.unknown().contains("p"));
}

#[test]
fn a_slice_that_vanished_keeps_its_holders_until_it_was_empty() {
    let mut revisions = SliceRevisions::default();
    update(&mut revisions, &[&slice("s", WITH)], &[&report(&[("s", &hash(WITH), true)])]);
    update(&mut revisions, &[], &[&GatewayNodeStatus::default()]);
    let (name, spec) = revisions.slices().next().unwrap();
    assert_eq!((name, spec.forwards.len()), ("s", 2));
    update(&mut revisions, &[&slice("s", &[])], &[&report(&[("s", &hash(&[]), true)])]);
    update(&mut revisions, &[], &[]);
    assert_eq!(revisions.slices().count(), 0);
}

#[test]
fn what_a_node_does_for_a_forward_is_what_it_reported_and_nothing_else() {
    let long = "0123456789abcdefgh";
    let (old, new) = ([(long, "1"), ("c", "1")], [(long, "2"), ("b", "1")]);
    let failed = |mut report: GatewayNodeStatus, prefix: &str| {
        report.observed_slices[0].failed = vec![prefix.into()];
        report
    };
    let (at_old, at_new) = (report(&[("s", &hash(&old), true)]), report(&[("s", &hash(&new), true)]));
    let mut revisions = SliceRevisions::default();
    update(&mut revisions, &[&slice("s", &old)], &[&at_old]);
    update(&mut revisions, &[&slice("s", &new)], &[&at_old]);
    let hash_is = |hash: &str| Readback::Hash(hash.into());
    for (case, status, uid, carries) in [
        ("newest", at_new.clone(), long, hash_is("2")),
        ("an older revision", at_old.clone(), long, hash_is("1")),
        ("not in that revision yet", at_old.clone(), "b", Readback::Nothing),
        ("not any more", at_new.clone(), "c", Readback::Nothing),
        ("of no slice", at_new.clone(), "d", Readback::Nothing),
        ("failed", failed(at_new.clone(), "0123456789abc"), long, Readback::Failed),
        ("another failed", failed(at_new.clone(), "0123456789abX"), long, hash_is("2")),
        ("on its way", report(&[("s", &hash(&new), false)]), long, Readback::Unknown),
        ("a hash that nobody knows", report(&[("s", &"?".into(), true)]), long, Readback::Unknown),
        ("no report on the slice", report(&[]), long, Readback::Nothing),
    ] {
        assert_eq!(
            revisions.find(&uid.into()).map_or(Readback::Nothing, |forward| forward.on(&status)),
            carries,
            "{case}"
        );
    }
}

#[test]
fn a_slice_that_returns_to_what_it_was_has_to_be_read_back_again() {
    let at = |generation: i64, forwards| {
        let mut slice = ForwardSlice::clone(&slice("s", forwards));
        slice.metadata.generation = Some(generation);
        Arc::new(slice)
    };
    let read_back = |generation: i64| {
        let mut report = report(&[("s", &hash(WITHOUT), true)]);
        report.observed_slices[0].generation = generation;
        report
    };
    let mut revisions = SliceRevisions::default();
    for (generation, forwards) in [(1, WITHOUT), (2, WITH), (3, WITHOUT)] {
        update(&mut revisions, &[&at(generation, forwards)], &[&read_back(1)]);
    }
    assert!(revisions.may_be_carried(&"a".into()), "the report speaks of the time before");
    update(&mut revisions, &[&at(3, WITHOUT)], &[&read_back(3)]);
    assert!(!revisions.may_be_carried(&"a".into()));
}
