//! Which repairs of somebody's changes are still to be told: each is told once, whoever leads.

use std::collections::BTreeMap;

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Resource as _;
use sallyport_api::gateway_node::{Drift, GatewayNode};
use sallyport_api::id::Moment;
use sallyport_api::names::OPERATOR_NAME;
use sallyport_policy::digest::short_id;
use sallyport_runtime::text::cut;

use crate::controller::cache::Cache;
use crate::controller::write::Write;

/// Where events about objects without a namespace are.
const NAMESPACE: &str = "default";

/// Characters of a note.
const MAX_NOTE: usize = 1000;
/// Bytes of a note that the API server takes.
const MAX_NOTE_BYTES: usize = 1024;

/// What is older when a node is first seen was told by whoever led then. The API server keeps events for an hour.
const OLD_SECONDS: i64 = 3600;

/// For each node, the name of the event that told its last drift.
#[derive(Debug, Default)]
pub(crate) struct Drifts {
    reported: BTreeMap<String, Option<String>>,
}

impl Drifts {
    /// The events that are still to be written at this time. A leader before may have written one: its name is the same.
    pub(crate) fn writes(&mut self, gateways: &Cache<GatewayNode>, now: Moment) -> Vec<Write> {
        let mut writes = Vec::new();
        for gateway in gateways.objects() {
            let node = gateway.metadata.name.clone().unwrap_or_default();
            let drift = gateway.status.as_ref().and_then(|status| status.last_drift.as_ref());
            let name = drift.map(|drift| name(&node, drift));
            let is_old = drift.is_some_and(|drift| Moment::from(&drift.time).plus(OLD_SECONDS) < now);
            let reported = self.reported.entry(node).or_insert_with(|| name.clone().filter(|_| is_old));
            if let (Some(drift), Some(name)) = (drift, name)
                && reported.as_ref() != Some(&name)
            {
                writes.push(Write::Drift(Box::new(event(gateway, drift, name))));
            }
        }
        writes
    }

    /// Takes in that an event is there.
    pub(crate) fn reported(&mut self, event: Event) {
        let node = event.regarding.and_then(|about| about.name).unwrap_or_default();
        self.reported.insert(node, event.metadata.name);
    }
}

fn name(node: &str, drift: &Drift) -> String {
    format!("{node}.{}", short_id(&format!("{node} {} {}", drift.time.0, drift.message)))
}

/// Somebody had changed our rules on a gateway, and they are as they should be again.
fn event(gateway: &GatewayNode, drift: &Drift, name: String) -> Event {
    let mut note = cut(drift.message.as_str(), MAX_NOTE);
    note.truncate(note.floor_char_boundary(MAX_NOTE_BYTES));
    Event {
        metadata: ObjectMeta { namespace: Some(NAMESPACE.into()), name: Some(name), ..ObjectMeta::default() },
        action: Some("Repair".into()),
        event_time: Some(MicroTime(drift.time.0)),
        note: Some(note),
        reason: Some("DriftRepaired".into()),
        regarding: Some(gateway.object_ref(&())),
        reporting_controller: Some(OPERATOR_NAME.into()),
        reporting_instance: Some(OPERATOR_NAME.into()),
        type_: Some("Warning".into()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use kube::runtime::watcher;
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::guard;

    fn nodes(drifts: &[(&str, Value)]) -> Cache<GatewayNode> {
        let mut cache = Cache::default();
        for (name, drift) in drifts {
            let object = json!({
                "apiVersion": "sallyport.dev/v1alpha1", "kind": "GatewayNode",
                "metadata": { "name": name, "resourceVersion": "1" },
                "spec": { "pool": "default", "state": "Active" },
                "status": { "lastDrift": drift },
            });
            cache.feed(watcher::Event::Apply(guard(object)));
        }
        cache
    }

    fn drift(minute: u8, what: &str) -> Value {
        json!({ "time": format!("2026-01-01T00:{minute:02}:00Z"), "message": what })
    }

    fn events(drifts: &mut Drifts, nodes: &Cache<GatewayNode>, clock: &str) -> Vec<Event> {
        let now = Moment(format!("2026-01-01T{clock}:00Z").parse::<jiff::Timestamp>().unwrap().as_second());
        let event = |write| if let Write::Drift(event) = write { *event } else { panic!("{write:?}") };
        drifts.writes(nodes, now).into_iter().map(event).collect()
    }

    #[test]
    fn each_repair_is_told_until_it_has_been() {
        let mut drifts = Drifts::default();
        assert_eq!(events(&mut drifts, &nodes(&[("gw1", Value::Null)]), "00:01"), []);
        // However wrong the clock of the node is.
        let jump = nodes(&[("gw1", drift(1, "jump")), ("gw2", Value::Null)]);
        let found = events(&mut drifts, &jump, "23:00");
        assert_eq!(found.len(), 1);
        assert_eq!(events(&mut drifts, &jump, "23:01"), found, "that it was written is not known");
        drifts.reported(found[0].clone());
        assert_eq!(events(&mut drifts, &jump, "23:02"), []);
        // The same again later is another repair, and so is it on another node.
        let again = nodes(&[("gw1", drift(2, "jump")), ("gw2", drift(1, "jump"))]);
        let again = events(&mut drifts, &again, "23:03");
        let mut names: Vec<_> = found.iter().chain(&again).map(|event| event.metadata.name.clone().unwrap()).collect();
        names.dedup();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn the_next_leader_tells_by_the_same_name_what_may_not_have_been_told() {
        let nodes = nodes(&[("gw1", drift(1, "jump"))]);
        let before = events(&mut Drifts::default(), &nodes, "00:02");
        assert_eq!(events(&mut Drifts::default(), &nodes, "01:00"), before);
        assert_eq!(before.len(), 1);
        assert_eq!(events(&mut Drifts::default(), &nodes, "01:02"), [], "told by whoever led then");
    }

    #[test]
    fn a_note_fits_whatever_it_is_written_in() {
        let found = events(&mut Drifts::default(), &nodes(&[("gw1", drift(1, &"ü".repeat(1000)))]), "00:02");
        assert!(found[0].note.as_ref().is_some_and(|note| (1000..=1024).contains(&note.len())));
    }
}
