//! The status of a pool: its nodes, its forwards, and what to do next.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sallyport_api::condition::upsert;
use sallyport_api::gateway_node::ObservedNodeState;
use sallyport_api::gateway_pool::{ForwardCounts, GatewayPoolStatus, PoolNodeCounts};
use sallyport_api::{ConditionType, Reason};
use sallyport_policy::validate::Problem;

use crate::controller::status::{count, first};
use crate::controller::subject::Gateway;

/// The status of a pool at `generation`, made from its old one.
pub(crate) fn pool_status(
    generation: Option<i64>,
    problems: &[Problem],
    gateways: &[Gateway<'_>],
    forwards: ForwardCounts,
    old: &GatewayPoolStatus,
    now: &Time,
) -> GatewayPoolStatus {
    let is_ready = |gateway: &&Gateway<'_>| {
        let active = gateway.report().is_some_and(|report| report.state == Some(ObservedNodeState::Active));
        active && !gateway.silent && gateway.synced().is_some_and(|synced| synced.status == "True")
    };
    let ready = gateways.iter().filter(is_ready).count();
    let (reason, message) = match problems.first() {
        Some(first) => (first.reason, first.to_string()),
        None if gateways.is_empty() => {
            (Reason::NoGatewayNodes, "no node matches: label one so that nodeSelector matches it".to_owned())
        }
        None => match gateways.iter().find(|gateway| !is_ready(gateway)) {
            Some(gateway) if gateway.silent => {
                (Reason::AgentUnreachable, format!("the agent on {} is silent: look at its pod", gateway.name))
            }
            Some(gateway) => {
                let message = gateway
                    .synced()
                    .map_or("its agent has not reported yet; if that lasts, look at its pod", |synced| {
                        synced.message.as_str()
                    });
                (Reason::Pending, format!("{}: {message}", gateway.name))
            }
            None => (Reason::Ready, format!("{ready} of {} nodes carry all forwards", gateways.len())),
        },
    };
    let mut status = old.clone();
    upsert(&mut status.conditions, ConditionType::Ready, reason, message, generation, now.clone());
    status.observed_generation = generation;
    status.nodes = Some(PoolNodeCounts { matched: count(gateways.len()), ready: count(ready) });
    status.forwards = Some(forwards);
    let sources = gateways.iter().filter_map(Gateway::report).flat_map(|report| &report.source_addresses);
    status.source_addresses = first(sources.map(|address| address.value));
    status
}

#[cfg(test)]
mod tests;
