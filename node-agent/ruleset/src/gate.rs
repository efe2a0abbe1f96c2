//! What never reaches a kernel, whoever said that it may: the agent's own check of each intent, and what only its host can
//! see.

use sallyport_api::SourceNatMode;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::Moment;
use sallyport_api::intent::Intent;
use sallyport_policy::intersection::smaller;
use sallyport_policy::pool::Reserved;
use sallyport_policy::recheck::recheck;

use crate::binding::bindings;
use crate::facts::LocalAddress;
use crate::listen::Listen;

/// Checks again, here, what must never reach a kernel, whatever the operator said, and what only this host can see.
pub(crate) fn refuse(
    forward: &SliceForward,
    reserved: &[Reserved],
    listen: &Listen,
    local: &[LocalAddress],
    now: Moment,
) -> Option<(Reason, String)> {
    if let Some(problem) = recheck(forward, reserved, now) {
        return Some((problem.reason, problem.message));
    }
    let intent = &forward.intent;
    for target in &intent.targets {
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
