//! What is known of objects after any order of news, lists, answers to writes, and forms that do not decode.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::*;
use crate::fixture::guard;

fn map(revision: u64, text: &str) -> Value {
    json!({ "metadata": { "namespace": "n", "name": "a", "uid": "u", "resourceVersion": revision.to_string() },
        "data": { "text": text } })
}

fn broken(revision: u64, uid: &str) -> Value {
    json!({ "metadata": { "namespace": "n", "name": "a", "uid": uid, "resourceVersion": revision.to_string() }, "data": 1 })
}

fn apply(object: Value) -> Event<DeserializeGuard<ConfigMap>> {
    Event::Apply(guard(object))
}

fn text(cache: &Cache<ConfigMap>) -> Option<String> {
    cache.entry("n", "a")?.object()?.data.as_ref()?.get("text").cloned()
}

fn relist(cache: &mut Cache<ConfigMap>, objects: Vec<Value>) -> bool {
    cache.feed(Event::Init);
    for object in objects {
        cache.feed(Event::InitApply(guard(object)));
    }
    cache.feed(Event::InitDone)
}

#[test]
fn the_echo_of_a_write_and_older_news_change_nothing() {
    let mut cache = Cache::default();
    cache.wrote(guard(map(100, "ours")));
    for (revision, changes, then) in [(99, false, "ours"), (100, false, "ours"), (101, true, "new")] {
        assert_eq!(cache.feed(apply(map(revision, "new"))), changes, "{revision}");
        assert_eq!(text(&cache).unwrap(), then, "{revision}");
    }
    // Numbers, not text: 99 is older than 101.
    cache.wrote(guard(map(99, "an answer that came late")));
    assert_eq!(text(&cache).unwrap(), "new");
}

#[test]
fn a_deletion_older_than_the_object_is_ignored() {
    let mut cache = Cache::default();
    cache.feed(apply(map(10, "second of its name")));
    assert!(!cache.feed(Event::Delete(guard(map(9, "first")))));
    assert!(text(&cache).is_some());
    assert!(cache.feed(Event::Delete(guard(map(11, "second of its name")))));
    assert!(text(&cache).is_none());
    assert!(!cache.feed(Event::Delete(guard(map(11, "twice")))), "nothing is there to delete");
}

#[test]
fn the_end_of_an_object_is_not_that_of_its_successor() {
    let ended = |uid: &str| {
        let mut object = map(11, "going");
        object["metadata"]["uid"] = json!(uid);
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        guard(object)
    };
    let mut cache = Cache::default();
    cache.feed(apply(map(12, "second of its name")));
    cache.wrote(ended("first"));
    assert_eq!(text(&cache).unwrap(), "second of its name", "the answer came after the news of the second");
    cache.wrote(ended("u"));
    assert!(text(&cache).is_none());
}

#[test]
fn only_a_whole_list_makes_it_complete() {
    let mut cache = Cache::<ConfigMap>::default();
    cache.feed(Event::Init);
    cache.feed(Event::InitApply(guard(map(1, "a"))));
    assert!(!cache.is_complete());
    assert!(text(&cache).is_none(), "half a list is not shown");
    assert!(cache.feed(Event::InitDone));
    assert!(cache.is_complete());
    assert!(relist(&mut Cache::<ConfigMap>::default(), vec![]), "that there is nothing is news the first time");
}

#[test]
fn a_new_list_drops_what_vanished_and_says_nothing_new_when_it_is_the_same() {
    let mut cache = Cache::default();
    assert!(relist(&mut cache, vec![map(1, "a")]));
    assert!(!relist(&mut cache, vec![map(1, "a")]));
    assert!(relist(&mut cache, vec![map(2, "b")]));
    assert_eq!(text(&cache).unwrap(), "b");
    assert!(relist(&mut cache, vec![]));
    assert!(text(&cache).is_none());
}

#[test]
fn what_was_written_while_a_list_ran_survives_it() {
    for (listed, then) in [(vec![], "ours"), (vec![map(4, "before")], "ours"), (vec![map(6, "after")], "after")] {
        let mut cache = Cache::default();
        relist(&mut cache, vec![map(3, "old")]);
        cache.feed(Event::Init);
        cache.wrote(guard(map(5, "ours")));
        for object in listed {
            cache.feed(Event::InitApply(guard(object)));
        }
        cache.feed(Event::InitDone);
        assert_eq!(text(&cache).unwrap(), then);
    }
    // What was written before the list began is in the list, or gone.
    let mut cache = Cache::default();
    cache.wrote(guard(map(5, "ours")));
    relist(&mut cache, vec![]);
    assert!(text(&cache).is_none());
}

#[test]
fn what_does_not_decode_keeps_its_last_good_form() {
    let mut cache = Cache::default();
    cache.feed(apply(map(1, "good")));
    assert!(cache.feed(apply(broken(2, "u"))));
    let entry = cache.entry("n", "a").unwrap();
    assert!(matches!(entry, Entry::Stale(..)));
    assert_eq!(entry.meta().resource_version.as_deref(), Some("2"), "the metadata are new");
    assert!(entry.problem().unwrap().contains("invalid type"), "{:?}", entry.problem());
    assert_eq!(text(&cache).unwrap(), "good");
    cache.feed(apply(broken(3, "u")));
    assert_eq!(text(&cache).unwrap(), "good", "also the second time");
    cache.feed(apply(map(4, "mended")));
    assert_eq!(cache.entry("n", "a").unwrap().problem(), None);
}

#[test]
fn the_good_form_of_another_object_of_that_name_is_not_its_own() {
    let mut cache = Cache::<ConfigMap>::default();
    cache.feed(apply(broken(1, "u")));
    assert!(matches!(cache.entry("n", "a"), Some(Entry::Unreadable(..))), "it never was good");
    cache.feed(apply(map(2, "good")));
    cache.feed(apply(broken(3, "another")));
    let entry = cache.entry("n", "a").unwrap();
    assert!(matches!(entry, Entry::Unreadable(..)));
    assert_eq!(entry.meta().uid.as_deref(), Some("another"));
    assert_eq!(cache.objects().count(), 0);
    assert_eq!(cache.entries().count(), 1);
}

#[test]
fn the_answer_to_the_last_finalizer_is_the_end_of_the_object() {
    for (finalizers, stays) in [(json!([]), false), (json!(null), false), (json!(["other"]), true)] {
        let mut cache = Cache::default();
        cache.feed(apply(map(1, "a")));
        let mut answer = map(2, "a");
        answer["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        answer["metadata"]["finalizers"] = finalizers.clone();
        cache.wrote(guard(answer));
        assert_eq!(text(&cache).is_some(), stays, "{finalizers}");
    }
}

#[test]
fn trouble_lasts_until_the_watch_works_again_and_forgets_nothing() {
    let mut cache = Cache::default();
    relist(&mut cache, vec![map(1, "a")]);
    cache.failed("forbidden");
    assert_eq!(cache.trouble(), Some("forbidden"));
    assert!(cache.is_complete() && text(&cache).is_some());
    cache.feed(Event::Init);
    assert_eq!(cache.trouble(), Some("forbidden"), "a list begins before anything is heard");
    cache.feed(Event::InitDone);
    assert_eq!(cache.trouble(), None);
}
