//! The status of forwards whose spec is not to be applied: what is held for them, and what `Apply` would change.
//!
//! Pure. What keeps a forward from being acceptable is not here: its verdict says that, as for all others.

use sallyport_api::gateway_node::NodePlan;
use sallyport_api::id::IntentHash;
use sallyport_api::names::{MAX_PLAN_ENTRIES, MAX_PLANS};
use sallyport_api::port_forward::PlannedChange;
use sallyport_api::{Mode, Reason};

use crate::controller::subject::{Gateway, Subject, names};

/// A forward that is not to be applied, and is carried or could be.
#[derive(Clone, Debug)]
pub(crate) struct Paused<'a> {
    /// `Plan` or `Paused`.
    pub(crate) mode: Mode,
    /// Hash of what its spec asks, if that is acceptable.
    pub(crate) want: Option<&'a IntentHash>,
    /// Hash of what is held for it.
    pub(crate) held: Option<&'a IntentHash>,
    /// Whether some kernel was read back with anything of it.
    pub(crate) carried: bool,
    /// How far the gateways are with what is held for it.
    pub(crate) progress: (Reason, String),
}

impl Paused<'_> {
    /// Its condition `Programmed`.
    pub(crate) fn programmed(self, subject: &Subject<'_>, plan: &[PlannedChange]) -> (Reason, String) {
        let (reason, message) = self.progress;
        let word = if self.mode == Mode::Plan { "planned" } else { "paused" };
        if self.held.is_some() && self.held == self.want {
            let rest = match self.mode {
                Mode::Plan => "mode Plan: Apply would change nothing, and edits are only shown",
                _ => "paused, so edits wait until spec.mode is Apply",
            };
            return (reason, format!("{message}; {rest}"));
        }
        let now = match self.held {
            Some(_) => format!("{word}: the gateways keep what they carry ({message})"),
            None if self.carried => format!("{word}, and not allowed as it was: it is being taken off the gateways"),
            None => format!("{word}: no gateway carries it and it holds no port"),
        };
        let apply = match self.want {
            None => "undo the edit: with mode Apply it would be refused, and taken off the gateways".to_owned(),
            Some(want) if self.mode == Mode::Plan => {
                format!("{}; set spec.mode to Apply to program this spec", shown(subject, want, plan))
            }
            Some(_) => "set spec.mode to Apply to program this spec".to_owned(),
        };
        let reason = if self.mode == Mode::Plan { Reason::Planned } else { Reason::Paused };
        (reason, format!("{now}; {apply}"))
    }
}

/// How much of the plan is there to see.
fn shown(subject: &Subject<'_>, want: &IntentHash, plan: &[PlannedChange]) -> String {
    if !subject.held.planned {
        return format!(
            "the agents look at {MAX_PLANS} plans of a pool at a time, and this one is not among them, so only the verdict is known"
        );
    }
    let waiting = subject.asked.iter().filter(|gateway| of_node(gateway, subject, want).is_none());
    let waiting: Vec<&str> = waiting.map(|gateway| gateway.name).collect();
    if waiting.is_empty() && plan.is_empty() {
        return "the pool has no gateway".to_owned();
    }
    if waiting.is_empty() {
        return "status.plan shows what Apply would change".to_owned();
    }
    format!(
        "waiting for {} to say what Apply would change there; an agent older than the operator cannot say it",
        names(&waiting)
    )
}

/// What `Apply` would change, equal changes once.
pub(crate) fn plan(subject: &Subject<'_>, want: Option<&IntentHash>) -> Vec<PlannedChange> {
    let Some(want) = want.filter(|_| subject.held.planned) else { return Vec::new() };
    let mut plan: Vec<PlannedChange> = Vec::new();
    for gateway in subject.asked {
        let Some(planned) = of_node(gateway, subject, want) else { continue };
        match plan.iter_mut().find(|change| change.change == planned.change) {
            Some(same) => {
                if same.nodes.len() < MAX_PLAN_ENTRIES {
                    same.nodes.push(gateway.name.to_owned());
                }
                same.nodes_total += 1;
            }
            None => plan.push(PlannedChange {
                nodes: vec![gateway.name.to_owned()],
                nodes_total: 1,
                change: planned.change.clone(),
            }),
        }
    }
    plan.truncate(MAX_PLAN_ENTRIES);
    plan
}

/// What a node says about the plan of this hash; what a silent one said may not be so any more.
fn of_node<'a>(gateway: &Gateway<'a>, subject: &Subject<'_>, hash: &IntentHash) -> Option<&'a NodePlan> {
    let report = gateway.report().filter(|_| !gateway.silent)?;
    report.plans.iter().find(|plan| plan.r#ref == *subject.key && plan.hash == *hash)
}
