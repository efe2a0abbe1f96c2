//! Which changes of a status are told as events, and which are no news.

use std::slice;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sallyport_api::Reason;
use sallyport_api::condition::upsert;

use super::*;

fn conditions(accepted: Reason, programmed: Reason, message: &str) -> Vec<Condition> {
    let (mut list, now) = (Vec::new(), Time(jiff::Timestamp::UNIX_EPOCH));
    upsert(&mut list, ConditionType::Accepted, accepted, message, None, now.clone());
    upsert(&mut list, ConditionType::Programmed, programmed, message, None, now.clone());
    upsert(&mut list, ConditionType::Ready, programmed, message, None, now);
    list
}

#[test]
fn what_is_new_is_told_once_and_waiting_is_no_news() {
    use Reason::{Accepted, AgentUnreachable, Drifted, NodeFailed, Pending, PortConflict, Verified};
    let nothing: [&str; 0] = [];
    for (before, after, told) in [
        (None, (Accepted, Pending), &["Normal Accepted"][..]),
        (None, (Accepted, Verified), &["Normal Accepted", "Normal Verified"]),
        (None, (PortConflict, PortConflict), &["Warning PortConflict"]),
        (Some((Accepted, Pending)), (Accepted, Verified), &["Normal Verified"]),
        (Some((Accepted, Verified)), (Accepted, Verified), &nothing),
        (Some((Accepted, Verified)), (Accepted, Pending), &nothing),
        (Some((Accepted, Verified)), (Accepted, AgentUnreachable), &["Warning AgentUnreachable"]),
        (Some((Accepted, NodeFailed)), (Accepted, Drifted), &["Warning Drifted"]),
        (Some((PortConflict, PortConflict)), (Accepted, Verified), &["Normal Accepted", "Normal Verified"]),
    ] {
        let old = before.map_or_else(Vec::new, |(accepted, programmed)| conditions(accepted, programmed, "old words"));
        let events = transitions(&old, &conditions(after.0, after.1, "new words"));
        let said: Vec<String> = events.iter().map(|event| format!("{:?} {}", event.type_, event.reason)).collect();
        assert_eq!(said, told, "{before:?} -> {after:?}");
        assert!(events.iter().all(|event| event.note.as_deref() == Some("new words")));
    }
}

#[test]
fn each_planned_change_is_told_once_under_an_action_of_its_own() {
    let planned = |change: &str| PlannedChange { nodes: vec!["gw1".into()], nodes_total: 1, change: change.into() };
    let told = |old: &[PlannedChange], new: &[PlannedChange]| plans(old, new);
    let (one, two) = (planned("+ one\n"), planned(&"+ two\n".repeat(1000)));
    assert!(told(slice::from_ref(&one), slice::from_ref(&one)).is_empty());
    let events = told(&[], &[one.clone(), two.clone()]);
    assert_eq!(events.len(), 2);
    assert_ne!(events[0].action, events[1].action);
    assert_eq!(events[0].note.as_deref(), Some("Apply would change gw1:\n+ one\n"));
    assert!(events[1].note.as_ref().is_some_and(|note| note.len() <= 1024));
    assert!(events.iter().all(|event| event.reason == "Planned" && event.action.len() <= 128));
    assert_eq!(told(&[one], &[two]).len(), 1);
}

#[test]
fn what_was_asked_for_is_no_warning() {
    for reason in [Reason::Paused, Reason::Planned] {
        let events = transitions(&[], &conditions(Reason::Accepted, reason, "as asked"));
        assert!(events.iter().all(|event| matches!(event.type_, EventType::Normal)), "{reason}");
        assert_eq!(events.len(), 2);
    }
}
