//! What the node shall do after each thing that can be heard of the cluster.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use sallyport_api::forward_slice::ForwardRef;
use sallyport_policy::digest::{intent_hash, slice_hash};

use super::*;
use crate::converge::fake::{forward, intents};

fn one(name: &str, port: u16) -> Arc<SliceForward> {
    intents(&forward(name, port)).forwards().next().unwrap().clone()
}

fn slice(forwards: &[Arc<SliceForward>]) -> Decoded {
    let entries = forwards.iter().cloned().map(Entry::Understood).collect();
    Decoded {
        generation: 1,
        pool: "default".to_owned(),
        hash: slice_hash(forwards),
        forwards: entries,
        planned: Vec::new(),
    }
}

fn list(slices: &[(&str, &[Arc<SliceForward>])]) -> BTreeMap<String, Result<Decoded, NotUnderstood>> {
    slices.iter().map(|(name, forwards)| ((*name).to_owned(), Ok(slice(forwards)))).collect()
}

fn not_understood(why: &str) -> NotUnderstood {
    <serde_json::Error as serde::de::Error>::custom(why).into()
}

fn node() -> GatewayNodeSpec {
    intents("").node
}

/// Knows the node, and slice `s0` with forwards a and b.
fn informed() -> Knowledge {
    let mut knowledge = Knowledge::new("gw1");
    knowledge.node_is(Ok(node()));
    knowledge.node_is_listed();
    knowledge.slices_are("default", list(&[("s0", &[one("a", 8000), one("b", 8001)])]));
    knowledge
}

/// The names of the forwards of each slice.
fn shape(knowledge: &Knowledge) -> Vec<(String, Vec<String>)> {
    let slices = knowledge.intents().expect("known").slices;
    let names = |slice: &ForwardSliceSpec| slice.forwards.iter().map(|forward| forward.r#ref.name.clone()).collect();
    slices.iter().map(|(name, slice)| (name.clone(), names(slice))).collect()
}

fn shaped(expected: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    expected.iter().map(|(slice, names)| ((*slice).to_owned(), owned(names))).collect()
}

fn reasons(knowledge: &Knowledge) -> Vec<Reason> {
    knowledge.problems().into_iter().map(|(reason, _)| reason).collect()
}

#[test]
fn nothing_is_decided_before_both_lists_are_complete() {
    let mut knowledge = Knowledge::new("gw1");
    assert_eq!((knowledge.intents(), knowledge.pool()), (None, None));
    knowledge.node_is(Ok(node()));
    knowledge.node_is_listed();
    assert_eq!((knowledge.intents(), knowledge.pool()), (None, Some("default")));
    knowledge.slices_are("default", list(&[]));
    assert_eq!(shape(&knowledge), []);
}

#[test]
fn what_a_restart_knows_decides_nothing_until_it_is_confirmed() {
    let mut knowledge = Knowledge::new("gw1");
    knowledge.restore(&informed().intents().unwrap());
    assert_eq!((knowledge.intents(), knowledge.pool()), (None, Some("default")));
    knowledge.slices_are("default", list(&[("s0", &[one("a", 8000)])]));
    assert_eq!(knowledge.intents(), None, "the GatewayNode may say something else by now");
    knowledge.node_is_gone();
    knowledge.node_is_listed();
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["a"])]), "no GatewayNode: what it last said stays");
}

#[test]
fn a_forward_goes_when_its_slice_is_seen_without_it() {
    let mut knowledge = informed();
    knowledge.slice_is("s0", Ok(slice(&[one("b", 8001)])));
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["b"])]));
    knowledge.slice_is("s0", Ok(slice(&[])));
    assert_eq!(shape(&knowledge), shaped(&[("s0", &[])]));
    knowledge.slice_is_gone("s0");
    assert_eq!((shape(&knowledge), reasons(&knowledge)), (vec![], vec![]));
}

#[test]
fn a_slice_that_vanishes_with_forwards_in_it_keeps_them_however_it_vanishes() {
    type Loss = fn(&mut Knowledge);
    let losses: [Loss; 3] = [
        |knowledge| knowledge.slice_is_gone("s0"),
        |knowledge| knowledge.slices_are("default", list(&[])),
        |knowledge| {
            let before = knowledge.intents().unwrap();
            *knowledge = Knowledge::new("gw1");
            knowledge.restore(&before);
            knowledge.node_is(Ok(node()));
            knowledge.node_is_listed();
            knowledge.slices_are("default", list(&[]));
        },
    ];
    for (number, lose) in losses.into_iter().enumerate() {
        let mut knowledge = informed();
        let hash = knowledge.intents().unwrap().slices["s0"].hash.clone();
        lose(&mut knowledge);
        assert_eq!(shape(&knowledge), shaped(&[("s0", &["a", "b"])]), "{number}");
        assert_eq!(reasons(&knowledge), [Reason::SliceMissing], "{number}");
        assert_eq!(knowledge.intents().unwrap().slices["s0"].hash, hash, "{number}");
        // Another relist changes nothing; its return with other content is the end of the matter.
        knowledge.slices_are("default", list(&[]));
        assert_eq!(reasons(&knowledge), [Reason::SliceMissing], "{number}");
        knowledge.slice_is("s0", Ok(slice(&[one("c", 8002)])));
        assert_eq!((shape(&knowledge), reasons(&knowledge)), (shaped(&[("s0", &["c"])]), vec![]), "{number}");
    }
}

#[test]
fn a_missing_slice_gives_up_what_lives_elsewhere_and_goes_with_the_last_of_it() {
    let mut knowledge = informed();
    knowledge.slice_is_gone("s0");
    knowledge.slice_is("s1", Ok(slice(&[one("a", 9000)])));
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["b"]), ("s1", &["a"])]));
    knowledge.slice_is("s1", Ok(slice(&[one("a", 9000), one("b", 8001)])));
    assert_eq!((shape(&knowledge), reasons(&knowledge)), (shaped(&[("s1", &["a", "b"])]), vec![]));
}

#[test]
fn a_forward_that_is_copied_before_it_moves_is_there_once() {
    let mut knowledge = informed();
    knowledge.slice_is("s1", Ok(slice(&[one("b", 8001)])));
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["a", "b"]), ("s1", &[])]));
    let newer = Arc::new(SliceForward { generation: 2, ..SliceForward::clone(&one("b", 8002)) });
    knowledge.slice_is("s1", Ok(slice(&[newer])));
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["a"]), ("s1", &["b"])]), "the newer one counts");
    knowledge.slice_is("s0", Ok(slice(&[one("a", 8000)])));
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["a"]), ("s1", &["b"])]));
}

#[test]
fn a_gateway_node_that_vanishes_or_is_not_understood_changes_nothing() {
    let mut knowledge = informed();
    let before = knowledge.intents();
    knowledge.node_is_gone();
    assert_eq!((knowledge.intents(), knowledge.problems().len()), (before.clone(), 1));
    knowledge.node_is(Err(not_understood("unknown variant")));
    assert_eq!((knowledge.intents(), reasons(&knowledge)), (before.clone(), vec![Reason::UnsupportedIntent]));
    knowledge.node_is(Ok(node()));
    assert_eq!((knowledge.intents(), reasons(&knowledge)), (before, vec![]));
}

#[test]
fn a_retired_node_carries_nothing_and_can_be_called_back() {
    let mut knowledge = informed();
    let retired = GatewayNodeSpec { state: NodeState::Retired, ..node() };
    knowledge.node_is(Ok(retired.clone()));
    assert_eq!(knowledge.intents(), Some(Intents { node: retired.clone(), slices: BTreeMap::new() }));
    knowledge.node_is(Ok(node()));
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["a", "b"])]));

    // It needs no slice to obey.
    let mut knowledge = Knowledge::new("gw1");
    knowledge.node_is(Ok(retired));
    knowledge.node_is_listed();
    assert!(knowledge.intents().is_some());
}

#[test]
fn a_change_of_pool_waits_for_the_slices_of_the_new_one() {
    let mut knowledge = informed();
    knowledge.node_is(Ok(GatewayNodeSpec { pool: "other".to_owned(), ..node() }));
    assert_eq!((knowledge.intents(), knowledge.pool()), (None, Some("other")));
    let other = Decoded { pool: "other".to_owned(), ..slice(&[one("o", 8000)]) };
    knowledge.slices_are("other", [("o0".to_owned(), Ok(other))].into());
    assert_eq!((shape(&knowledge), reasons(&knowledge)), (shaped(&[("o0", &["o"])]), vec![]));
}

#[test]
fn a_slice_that_is_not_understood_keeps_its_last_good_form_and_harms_no_other() {
    let mut knowledge = informed();
    knowledge.slice_is("s0", Err(not_understood("missing field `pool`")));
    knowledge.slice_is("s1", Ok(slice(&[one("c", 8002)])));
    knowledge.slice_is("s2", Ok(Decoded { pool: "other".to_owned(), ..slice(&[one("d", 8003)]) }));
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["a", "b"]), ("s1", &["c"]), ("s2", &[])]));
    assert_eq!(reasons(&knowledge), [Reason::UnsupportedIntent; 2]);
    knowledge.slice_is_gone("s0");
    knowledge.slice_is_gone("s2");
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["a", "b"]), ("s1", &["c"])]));
    assert_eq!(reasons(&knowledge), [Reason::SliceMissing]);
}

#[test]
fn a_forward_that_is_not_understood_keeps_its_previous_version_if_it_had_one() {
    let mut knowledge = informed();
    let unsupported = |name: &str, uid: &str| {
        let forward = ForwardRef { namespace: "default".to_owned(), name: name.to_owned() };
        Entry::Unsupported(Unsupported { uid: uid.into(), forward, message: "newer".to_owned() })
    };
    let content = Decoded {
        generation: 2,
        pool: "default".to_owned(),
        hash: "v1:new".into(),
        forwards: vec![
            unsupported("a", one("a", 1).uid.as_str()),
            Entry::Understood(one("b", 9001)),
            unsupported("never-seen", "uid"),
        ],
        planned: Vec::new(),
    };
    knowledge.slice_is("s0", Ok(content.clone()));
    let slice = knowledge.intents().unwrap().slices.remove("s0").unwrap();
    assert_eq!((slice.hash.as_str(), slice.forwards.clone()), ("v1:new", vec![one("a", 8000), one("b", 9001)]));
    let found: Vec<_> = knowledge.unsupported().map(|(slice, found)| (slice, found.forward.name.as_str())).collect();
    assert_eq!(found, [("s0", "a"), ("s0", "never-seen")]);

    // Once more, and after a restart, and in another slice: the previous version is not forgotten.
    knowledge.slice_is("s0", Ok(content.clone()));
    let mut next = Knowledge::new("gw1");
    next.restore(&knowledge.intents().unwrap());
    next.node_is(Ok(node()));
    next.node_is_listed();
    next.slices_are("default", [("s0".to_owned(), Ok(content.clone()))].into());
    next.slice_is("s1", Ok(content));
    let kept = &next.intents().unwrap().slices["s0"].forwards[0];
    assert_eq!((kept.intent.ports[0].port, &kept.hash), (8000, &intent_hash(&kept.intent)));
}

#[test]
fn a_plan_is_known_with_its_slice_and_goes_with_it() {
    let mut knowledge = informed();
    let planned =
        |knowledge: &Knowledge| -> Vec<Arc<SliceForward>> { knowledge.intents().unwrap().planned().cloned().collect() };
    knowledge.slice_is("s1", Ok(Decoded { planned: vec![one("c", 8002)], ..slice(&[]) }));
    assert_eq!(planned(&knowledge), [one("c", 8002)]);
    assert_eq!(shape(&knowledge), shaped(&[("s0", &["a", "b"]), ("s1", &[])]));
    knowledge.slice_is_gone("s1");
    assert_eq!(planned(&knowledge), []);
    // One that vanishes with forwards in it keeps those, but nobody asks any more.
    knowledge.slice_is("s0", Ok(Decoded { planned: vec![one("c", 8002)], ..slice(&[one("a", 8000)]) }));
    knowledge.slice_is_gone("s0");
    assert_eq!((planned(&knowledge), shape(&knowledge)), (vec![], shaped(&[("s0", &["a"])])));
}
