//! What may never reach a kernel, whoever says so: each agent holds what it is given to this once more.
//!
//! A slice may be older than the limits are, written by another version, or forged. Nothing here depends on the host but
//! the ports that its configuration keeps: that a target is not the gateway itself is for the agent to see.

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::Moment;
use sallyport_api::intent::{Intent, IntentPort};

use crate::digest::intent_hash;
use crate::expiry::has_expired;
use crate::limits;
use crate::pool::Reserved;
use crate::validate::{Problem, Problems, range, rule_count};

/// Why no agent may program `forward` at `now`, if its node keeps the ports `reserved`; `None`
/// where only the host itself can be in its way.
#[must_use]
pub fn recheck(forward: &SliceForward, reserved: &[Reserved], now: Moment) -> Option<Problem> {
    let intent = &forward.intent;
    if intent_hash(intent) != forward.hash {
        let message =
            "the intent does not match its hash: it has a field that this agent does not know; upgrade the agent";
        return Some(problem("spec", Reason::UnsupportedIntent, message));
    }
    if has_expired(intent, now) {
        let at = intent.expires_at.unwrap_or_default();
        let message = format!("expired at {at}; set a later moment, or create the forward anew");
        return Some(problem("spec.expiresAt", Reason::Expired, message));
    }
    intent
        .ports
        .iter()
        .copied()
        .find_map(port)
        .or_else(|| too_many_rules(intent))
        .or_else(|| Reserved::check(reserved, intent).into_iter().next())
        .or_else(|| target(intent))
}

fn port(port: IntentPort) -> Option<Problem> {
    let width = u32::from(port.end_port.saturating_sub(port.port)) + 1;
    let backwards = port.end_port < port.port;
    if port.port == 0 || port.target_port == 0 || backwards || u32::from(port.target_port) + width > 65536 {
        return Some(problem("spec.ports", Reason::UnsupportedIntent, "the intent has an impossible port range"));
    }
    let (first, last) = limits::reserved_range(port.protocol, port.port, port.end_port)?;
    let (ports, protocol) = (range(first, last), port.protocol);
    let message = format!("port {ports}/{protocol} is kept for the gateway itself; choose another port");
    Some(problem("spec.ports", Reason::ReservedPort, message))
}

fn too_many_rules(intent: &Intent) -> Option<Problem> {
    let mut problems = Problems::default();
    rule_count(&mut problems, intent);
    let Problem { field, message, .. } = problems.0.pop()?;
    Some(Problem { field, reason: Reason::UnsupportedIntent, message })
}

fn target(intent: &Intent) -> Option<Problem> {
    let (ip, what) = intent.targets.iter().find_map(|target| Some((target.ip, limits::refused_target(target.ip)?)))?;
    let message = format!("{ip} is {what}; a target must be another host's own address");
    Some(problem("spec.targets", Reason::InvalidTarget, message))
}

fn problem(field: &str, reason: Reason, message: impl Into<String>) -> Problem {
    Problem { field: field.to_owned(), reason, message: message.into() }
}
