//! What never reaches a kernel, whoever said that it may: the agent's own check of each intent.

use std::net::IpAddr;

use sallyport_api::SourceNatMode;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::intent::{Intent, IntentPort};

use crate::digest::intent_hash;
use crate::expiry::{has_expired, moment};
use crate::facts::LocalAddress;
use crate::intersection::smaller;
use crate::limits;
use crate::pool::Reserved;
use crate::table::bindings;
use crate::validate::{self, Problems, range};

/// Checks again, here, what must never reach a kernel, whatever the operator said.
pub(crate) fn refuse(
    forward: &SliceForward,
    reserved: &[Reserved],
    listen: &[IpAddr],
    local: &[LocalAddress],
    now: i64,
) -> Option<(Reason, String)> {
    let intent = &forward.intent;
    if intent_hash(intent) != forward.hash {
        let message =
            "the intent does not match its hash: it has a field that this agent does not know; upgrade the agent";
        return Some((Reason::UnsupportedIntent, message.to_owned()));
    }
    if has_expired(intent, now) {
        let at = intent.expires_at.map(moment).unwrap_or_default();
        return Some((Reason::Expired, format!("expired at {at}; set a later moment, or create the forward anew")));
    }
    for port in &intent.ports {
        let backwards = port.end_port < port.port;
        if port.port == 0 || port.target_port == 0 || backwards || u32::from(port.target_port) + width(*port) > 65536 {
            return Some((Reason::UnsupportedIntent, "the intent has an impossible port range".to_owned()));
        }
        if let Some((first, last)) = limits::reserved_range(port.protocol, port.port, port.end_port) {
            let (ports, protocol) = (range(first, last), port.protocol);
            let message = format!("port {ports}/{protocol} is kept for the gateway itself; choose another port");
            return Some((Reason::ReservedPort, message));
        }
    }
    let mut problems = Problems::default();
    validate::rule_count(&mut problems, intent);
    if let Some(problem) = problems.0.pop() {
        return Some((Reason::UnsupportedIntent, problem.message));
    }
    if let Some(problem) = Reserved::check(reserved, intent).into_iter().next() {
        return Some((problem.reason, problem.message));
    }
    for target in &intent.targets {
        if let Some(what) = limits::refused_target(target.ip) {
            let message = format!("{} is {what}; a target must be another host's own address", target.ip);
            return Some((Reason::InvalidTarget, message));
        }
        if local.iter().any(|own| own.ip == target.ip) {
            let message = format!("{} is an address of this gateway; a target must be another host", target.ip);
            return Some((Reason::InvalidTarget, message));
        }
        if local.iter().any(|own| own.broadcast() == Some(target.ip)) {
            return Some((
                Reason::InvalidTarget,
                format!(
                    "{} is a broadcast address of this gateway's network; a target must be another host's own address",
                    target.ip
                ),
            ));
        }
    }
    if bindings(forward, listen).next().is_none() {
        let message = if intent.addresses.is_empty() {
            "no listen address of the pool on this node has the family of the targets; give the node one or widen spec.listen of the pool".to_owned()
        } else {
            "none of spec.addresses is a listen address of the pool on this node; add one of this node's, for every node of the pool needs one, or leave spec.addresses out".to_owned()
        };
        return Some((Reason::NoListenAddress, message));
    }
    if intent.source_nat == SourceNatMode::Preserve { asymmetric(intent, local) } else { None }
}

/// With `Preserve`, a target on a link of ours answers a client on the same link directly, past the gateway.
fn asymmetric(intent: &Intent, local: &[LocalAddress]) -> Option<(Reason, String)> {
    for own in local {
        let link = own.network();
        let Some(target) = intent.targets.iter().find(|target| link.contains(&target.ip)) else { continue };
        let open = intent.allow.iter().any(|allow| {
            smaller(*allow, link).is_some_and(|both| !intent.deny.iter().any(|deny| deny.contains(&both)))
        });
        if open {
            let message = format!(
                "with sourceNAT Preserve, target {} would answer clients in {link} directly, past the gateway; use Masquerade or list {link} in sources.deny",
                target.ip
            );
            return Some((Reason::AsymmetricReturnPath, message));
        }
    }
    None
}

fn width(port: IntentPort) -> u32 {
    u32::from(port.end_port) - u32::from(port.port) + 1
}
