//! Events: what changed for a forward or the agents, told once, beside the object that it happened to.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use sallyport_api::condition::{self, Status};
use sallyport_api::port_forward::{PlannedChange, PortForward};
use sallyport_api::{ConditionType, Reason};
use sallyport_policy::digest::short_id;
use sallyport_runtime::tasks::Tasks;
use sallyport_runtime::text::cut;
use tokio::sync::mpsc;

use crate::controller::subject::names;
use crate::controller::write::ForwardReport;

/// Events that wait to be sent; more are dropped, since conditions hold the same.
const WAITING: usize = 1024;

/// Characters of a note; the API server takes 1,024 bytes.
const MAX_NOTE: usize = 1000;

/// Sends events, one after the other, beside everything else.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    queue: mpsc::Sender<(Event, ObjectReference)>,
}

impl Events {
    /// Starts sending for the replica called `identity`.
    pub(crate) fn start(tasks: &mut Tasks, client: Client, identity: &str) -> Self {
        let (queue, mut waiting) = mpsc::channel::<(Event, _)>(WAITING);
        let reporter = Reporter { controller: "sallyport-operator".into(), instance: Some(identity.into()) };
        tasks.spawn("events", async move {
            let recorder = Recorder::new(client, reporter);
            while let Some((event, about)) = waiting.recv().await {
                if let Err(error) = recorder.publish(&event, &about).await {
                    tracing::debug!(%error, "an event was not recorded");
                }
            }
        });
        Self { queue }
    }

    /// Tells what is different from before, now that it is written.
    pub(crate) fn record(&self, report: &ForwardReport) {
        let transitions = transitions(&report.before.conditions, &report.status.conditions);
        for event in transitions.into_iter().chain(plans(&report.before.plan, &report.status.plan)) {
            let about = ObjectReference {
                api_version: Some(PortForward::api_version(&()).into_owned()),
                kind: Some(PortForward::kind(&()).into_owned()),
                namespace: Some(report.key.namespace.clone()),
                name: Some(report.key.name.clone()),
                uid: Some(report.uid.to_string()),
                ..ObjectReference::default()
            };
            self.queue(event, about);
        }
    }

    /// Tells that something about an object needs somebody's attention.
    pub(crate) fn warn(&self, about: ObjectReference, reason: &str, note: String) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            // The recorder counts events of one action instead of recording them anew.
            action: format!("{reason}-{}", short_id(&note)),
            note: Some(cut(note, MAX_NOTE)),
            secondary: None,
        };
        self.queue(event, about);
    }

    fn queue(&self, event: Event, about: ObjectReference) {
        if self.queue.try_send((event, about)).is_err() {
            tracing::debug!("too many events at once; one is dropped");
        }
    }
}

/// An event for `Accepted` and `Programmed` whenever the reason changes; waiting is no news.
fn transitions(old: &[Condition], new: &[Condition]) -> Vec<Event> {
    let recorded = [ConditionType::Accepted, ConditionType::Programmed];
    let accepted = condition::of(new, ConditionType::Accepted).is_none_or(|accepted| accepted.status == Status::True);
    recorded
        .into_iter()
        .filter_map(|about| {
            let (now, before) = (condition::of(new, about)?, condition::of(old, about));
            let (reason, good) = (now.reason?, now.status == Status::True);
            let same = before.is_some_and(|before| before.reason == now.reason && before.status == now.status);
            // That a refused forward is not programmed follows from the refusal.
            let follows = about == ConditionType::Programmed && !accepted;
            let asked_for = matches!(reason, Reason::Planned | Reason::Paused);
            (!same && !follows && reason != Reason::Pending).then(|| Event {
                type_: if good || asked_for { EventType::Normal } else { EventType::Warning },
                reason: reason.to_string(),
                note: Some(now.message.to_owned()),
                action: about.as_str().to_owned(),
                secondary: None,
            })
        })
        .collect()
}

/// An event for each change that `Apply` would make and that was not shown before.
fn plans(old: &[PlannedChange], new: &[PlannedChange]) -> Vec<Event> {
    let known = |change: &str| old.iter().any(|old| old.change == change);
    new.iter()
        .filter(|planned| !known(&planned.change))
        .map(|planned| {
            let on = names(&planned.nodes.iter().map(String::as_str).collect::<Vec<_>>());
            Event {
                type_: EventType::Normal,
                reason: Reason::Planned.as_str().to_owned(),
                note: Some(cut(format!("Apply would change {on}:\n{}", planned.change), MAX_NOTE)),
                // The recorder counts events of one action instead of recording them anew: each change is one by itself.
                action: format!("Plan-{}", short_id(&planned.change)),
                secondary: None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
