//! What nodes may still carry, from the slices that were written and the reports that came.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use sallyport_api::testing::Forward;

use super::*;

/// A slice of the pool `p` with these forwards, each a uid and a hash; its hash is the list itself.
fn slice(name: &str, forwards: &[(&str, &str)]) -> Arc<ForwardSlice> {
    let of = |(uid, hash): &(&str, &str)| Forward::tcp(&format!("n/{uid}"), 80).slice_forward(|_| (*hash).to_owned());
    let list = forwards.iter().map(of).collect();
    let spec = ForwardSliceSpec { pool: "p".into(), hash: hash(forwards), forwards: list, planned: Vec::new() };
    Arc::new(ForwardSlice::new(name, spec))
}

fn hash(forwards: &[(&str, &str)]) -> String {
    format!("{forwards:?}")
}

/// A report on slices: name, hash, whether read back.
fn report(slices: &[(&str, &str, bool)]) -> GatewayNodeStatus {
    let observed_slices = slices
        .iter()
        .map(|(name, hash, done)| ObservedSlice {
            name: (*name).to_owned(),
            generation: 0,
            hash: (*hash).to_owned(),
            state: if *done { SliceState::Programmed } else { SliceState::Pending },
            failed: Vec::new(),
        })
        .collect();
    GatewayNodeStatus { observed_slices, ..GatewayNodeStatus::default() }
}

fn carrier(status: &GatewayNodeStatus) -> Carrier<'_> {
    Carrier { pool: "p", status, dead: false }
}

fn update(history: &mut History, slices: &[&Arc<ForwardSlice>], reports: &[&GatewayNodeStatus]) {
    let carriers: Vec<Carrier<'_>> = reports.iter().map(|status| carrier(status)).collect();
    history.update(slices.iter().copied(), &carriers);
}

fn leaving(history: &History) -> Vec<String> {
    history.leaving().into_iter().map(|leaving| leaving.uid).collect()
}

const WITH: &[(&str, &str)] = &[("a", "1"), ("b", "1")];
const WITHOUT: &[(&str, &str)] = &[("b", "1")];

#[test]
fn a_forward_is_gone_only_when_every_live_node_reported_a_form_without_it() {
    let (old, new) = (hash(WITH), hash(WITHOUT));
    let (at_old, at_new) = (report(&[("s", &old, true)]), report(&[("s", &new, true)]));
    let (coming, nothing) = (report(&[("s", &new, false)]), GatewayNodeStatus::default());
    let cases: [(&str, &[&GatewayNodeStatus], bool); 7] = [
        ("both have read the new form back", &[&at_new, &at_new], false),
        ("one is at the old form", &[&at_old, &at_new], true),
        ("the other is", &[&at_new, &at_old], true),
        ("one has seen the new form, and not read it back", &[&at_new, &coming], true),
        ("one has reported nothing", &[&nothing, &at_new], true),
        ("none reported anything", &[&nothing, &nothing], true),
        ("no node at all", &[], false),
    ];
    for (case, reports, carried) in cases {
        let mut history = History::default();
        update(&mut history, &[&slice("s", WITH)], &[&at_old]);
        update(&mut history, &[&slice("s", WITHOUT)], reports);
        assert_eq!(history.may_be_carried("a"), carried, "{case}");
        assert_eq!(leaving(&history), if carried { vec!["a"] } else { vec![] }, "{case}");
        assert_eq!(history.is_on_every_node("s"), !carried, "{case}");
        assert!(history.may_be_carried("b"), "{case}: the one that stays");
        assert!(history.unknown().is_empty(), "{case}");
    }
}

#[test]
fn dead_nodes_and_nodes_of_other_pools_are_not_waited_for() {
    let old = report(&[("s", &hash(WITH), true)]);
    for (pool, dead, waits) in [("p", false, true), ("p", true, false), ("q", false, false)] {
        let mut history = History::default();
        history.update([&slice("s", WITH)].into_iter(), &[carrier(&old)]);
        history.update([&slice("s", WITHOUT)].into_iter(), &[Carrier { pool, status: &old, dead }]);
        assert_eq!(history.may_be_carried("a"), waits, "{pool} {dead}");
    }
}

#[test]
fn a_hash_that_nobody_remembers_makes_the_pool_unknown() {
    let mut history = History::default();
    let strange = report(&[("s", "never written by this leader", true)]);
    update(&mut history, &[&slice("s", WITHOUT)], &[&strange]);
    assert_eq!(history.unknown().iter().collect::<Vec<_>>(), ["p"]);
    assert!(history.may_be_carried("anything"));
    update(&mut history, &[&slice("s", WITHOUT)], &[&report(&[("s", &hash(WITHOUT), true)])]);
    assert!(history.unknown().is_empty(), "it caught up");
}

#[test]
fn what_moved_to_another_slice_is_not_leaving() {
    let old = report(&[("s", &hash(WITH), true), ("t", &hash(&[]), true)]);
    let mut history = History::default();
    update(&mut history, &[&slice("s", WITH), &slice("t", &[])], &[&old]);
    update(&mut history, &[&slice("s", WITHOUT), &slice("t", &[("a", "1")])], &[&old]);
    assert!(leaving(&history).is_empty());
    assert!(history.may_be_carried("a"));
    // With another intent, its former one is.
    let mut history = History::default();
    update(&mut history, &[&slice("s", WITH), &slice("t", &[])], &[&old]);
    update(&mut history, &[&slice("s", WITHOUT), &slice("t", &[("a", "2")])], &[&old]);
    assert_eq!(leaving(&history), ["a"]);
}

#[test]
fn forms_that_no_node_can_have_are_forgotten() {
    let mut history = History::default();
    let forms: Vec<Vec<(&str, &str)>> = vec![vec![("a", "1")], vec![("a", "2")], vec![("a", "3")]];
    let behind = report(&[("s", &hash(&forms[0]), true)]);
    for form in &forms {
        update(&mut history, &[&slice("s", form)], &[&behind]);
    }
    assert_eq!(history.slices["s"].forms.len(), 3);
    assert_eq!(leaving(&history), ["a", "a"], "both former intents");
    update(&mut history, &[&slice("s", &forms[2])], &[&report(&[("s", &hash(&forms[1]), true)])]);
    assert_eq!(history.slices["s"].forms.len(), 2);
    update(&mut history, &[&slice("s", &forms[2])], &[&report(&[("s", &hash(&forms[2]), true)])]);
    assert_eq!(history.slices["s"].forms.len(), 1);
}

#[test]
fn a_node_that_is_too_far_behind_is_unknown_rather_than_remembered_for_ever() {
    let mut history = History::default();
    let hashes: Vec<String> = (0..=MAX_FORMS).map(|number| number.to_string()).collect();
    let behind = report(&[("s", &hash(&[("a", "0")]), true)]);
    for number in &hashes {
        assert!(history.unknown().is_empty());
        update(&mut history, &[&slice("s", &[("a", number.as_str())])], &[&behind]);
    }
    assert_eq!(history.slices["s"].forms.len(), MAX_FORMS);
    assert!(history.unknown().contains("p"));
}

#[test]
fn a_slice_that_vanished_keeps_its_holders_until_it_was_empty() {
    let mut history = History::default();
    update(&mut history, &[&slice("s", WITH)], &[&report(&[("s", &hash(WITH), true)])]);
    update(&mut history, &[], &[&GatewayNodeStatus::default()]);
    let (name, spec) = history.slices().next().unwrap();
    assert_eq!((name, spec.forwards.len()), ("s", 2));
    update(&mut history, &[&slice("s", &[])], &[&report(&[("s", &hash(&[]), true)])]);
    update(&mut history, &[], &[]);
    assert_eq!(history.slices().count(), 0);
}

#[test]
fn what_a_node_does_for_a_forward_is_what_it_reported_and_nothing_else() {
    let long = "0123456789abcdefgh";
    let (old, new) = ([(long, "1"), ("c", "1")], [(long, "2"), ("b", "1")]);
    let failed = |mut report: GatewayNodeStatus, prefix: &str| {
        report.observed_slices[0].failed = vec![prefix.to_owned()];
        report
    };
    let (at_old, at_new) = (report(&[("s", &hash(&old), true)]), report(&[("s", &hash(&new), true)]));
    let mut history = History::default();
    update(&mut history, &[&slice("s", &old)], &[&at_old]);
    update(&mut history, &[&slice("s", &new)], &[&at_old]);
    let hash_is = |hash: &str| Carries::Hash(hash.into());
    for (case, status, uid, carries) in [
        ("newest", at_new.clone(), long, hash_is("2")),
        ("an older form", at_old.clone(), long, hash_is("1")),
        ("not in that form yet", at_old.clone(), "b", Carries::Nothing),
        ("not any more", at_new.clone(), "c", Carries::Nothing),
        ("of no slice", at_new.clone(), "d", Carries::Nothing),
        ("failed", failed(at_new.clone(), "0123456789abc"), long, Carries::Failed),
        ("another failed", failed(at_new.clone(), "0123456789abX"), long, hash_is("2")),
        ("on its way", report(&[("s", &hash(&new), false)]), long, Carries::Unknown),
        ("a hash that nobody knows", report(&[("s", "?", true)]), long, Carries::Unknown),
        ("no report on the slice", report(&[]), long, Carries::Nothing),
    ] {
        assert_eq!(history.find(uid).map_or(Carries::Nothing, |forward| forward.on(&status)), carries, "{case}");
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
    let mut history = History::default();
    for (generation, forwards) in [(1, WITHOUT), (2, WITH), (3, WITHOUT)] {
        update(&mut history, &[&at(generation, forwards)], &[&read_back(1)]);
    }
    assert!(history.may_be_carried("a"), "the report speaks of the time before");
    update(&mut history, &[&at(3, WITHOUT)], &[&read_back(3)]);
    assert!(!history.may_be_carried("a"));
}
