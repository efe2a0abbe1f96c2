//! A `PortForward` as its author wrote it → a typed [`Intent`], or every problem it has, all at once.
//!
//! Holds the rules that one object can break by itself; the CRD's schema refuses the same objects at the API server.
//! What is held already is typed anew by the same rules.
//! What depends on pools, grants or other forwards is decided in [`crate::decide`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::condition::Reason;
use sallyport_api::id::Moment;
use sallyport_api::intent::{Intent, IntentPort, IntentTarget};
use sallyport_api::names::{
    MAX_ADDRESSES, MAX_PORTS, MAX_RULES_PER_FORWARD, MAX_SHIFTED_RANGE, MAX_SOURCES, MAX_TARGETS, MAX_WEIGHT,
};
use sallyport_api::port_forward::{PortForwardSpec, Protocol, Source};

use crate::family::Family;
use crate::limits;

/// One thing that is wrong with an object, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where in the object, for example `spec.ports[0].port`.
    pub field: String,
    /// Which kind of refusal this is.
    pub reason: Reason,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Collects the problems of one object.
#[derive(Default)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, field: impl Into<String>, reason: Reason, message: impl Into<String>) {
        self.0.push(Problem { field: field.into(), reason, message: message.into() });
    }

    fn unsupported(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(field, Reason::UnsupportedValue, message);
    }

    /// Checks that a list has `min..=max` entries.
    fn count(&mut self, field: &str, len: usize, min: usize, max: usize) {
        if len < min {
            self.unsupported(field, format!("needs at least {min} entry"));
        } else if len > max {
            self.unsupported(
                field,
                format!("has {len} entries; at most {max} are allowed, remove some or split the forward"),
            );
        }
    }
}

/// Types `spec`, or returns every problem that it has.
///
/// # Errors
/// All problems of the object, in field order; never only the first.
pub fn validate(spec: &PortForwardSpec) -> Result<Intent, Vec<Problem>> {
    let mut problems = Problems::default();
    dns_label(&mut problems, "spec.pool", &spec.pool, 63);
    let addresses = addresses(&mut problems, &spec.addresses, |problems, at, text| ip(problems, at, text));
    let mut names = BTreeSet::new();
    let ports = ports(&mut problems, &spec.ports, |problems, at, port| {
        unique_name(problems, &mut names, at, &port.name);
        port_range(problems, at, port.protocol, port.port, port.end_port, port.target_port)
    });
    problems.count("spec.sources.allow", spec.sources.allow.len(), 1, MAX_SOURCES);
    problems.count("spec.sources.deny", spec.sources.deny.len(), 0, MAX_SOURCES);
    let block = |problems: &mut Problems, at: &str, source: &Source| cidr(problems, at, &source.cidr);
    let allow = sources(&mut problems, "spec.sources.allow", &spec.sources.allow, block);
    let deny = sources(&mut problems, "spec.sources.deny", &spec.sources.deny, block);
    let mut names = BTreeSet::new();
    let targets = targets(&mut problems, &spec.targets, |problems, at, target| {
        unique_name(problems, &mut names, at, &target.name);
        let weight = weight(problems, at, target.weight);
        Some((ip(problems, &format!("{at}.ip"), &target.ip)?, weight))
    });
    let intent = Intent {
        addresses,
        ports,
        allow,
        deny,
        targets,
        source_nat: spec.source_nat.mode,
        on_target_removed: spec.lifecycle.on_target_removed,
        expires_at: spec.expires_at.as_ref().map(Moment::from),
    };
    as_a_whole(problems, intent)
}

/// Types anew an intent that is held in `pool`. A forward whose own spec is not to be followed, because it is paused,
/// planned or cannot be read, asks for what it has, and what it has is held to all that a spec is held to: it is never more
/// than what could be asked for today.
///
/// # Errors
/// The problems that a spec would have which asks for exactly this.
pub fn revalidate(pool: &str, held: &Intent) -> Result<Intent, Vec<Problem>> {
    let mut problems = Problems::default();
    dns_label(&mut problems, "spec.pool", pool, 63);
    let addresses = addresses(&mut problems, &held.addresses, |_, _, ip| Some(*ip));
    let ports = ports(&mut problems, &held.ports, |problems, at, port| {
        let end = (port.end_port != port.port).then_some(port.end_port.into());
        port_range(problems, at, port.protocol, port.port.into(), end, Some(port.target_port.into()))
    });
    problems.count("spec.sources.allow", held.allow.len(), 1, MAX_SOURCES);
    problems.count("spec.sources.deny", held.deny.len(), 0, MAX_SOURCES);
    let block = |problems: &mut Problems, at: &str, net: &IpNet| network(problems, at, *net);
    let allow = sources(&mut problems, "spec.sources.allow", &held.allow, block);
    let deny = sources(&mut problems, "spec.sources.deny", &held.deny, block);
    let targets = targets(&mut problems, &held.targets, |problems, at, target| {
        Some((target.ip, weight(problems, at, target.weight.into())))
    });
    // Each field by its name: what comes to an intent has to be held to something here.
    let Intent { source_nat, on_target_removed, expires_at, .. } = *held;
    as_a_whole(problems, Intent { addresses, ports, allow, deny, targets, source_nat, on_target_removed, expires_at })
}

/// The intent, unless something is wrong with a part of it, or with how its parts go together.
fn as_a_whole(mut problems: Problems, intent: Intent) -> Result<Intent, Vec<Problem>> {
    if problems.0.is_empty() {
        families(&mut problems, &intent);
        denied_altogether(&mut problems, &intent);
        rule_count(&mut problems, &intent);
    }
    if problems.0.is_empty() { Ok(intent) } else { Err(problems.0) }
}

/// Checks the metadata that the API server would check: name, namespace.
#[must_use]
pub fn validate_metadata(name: &str, namespace: Option<&str>) -> Vec<Problem> {
    let mut problems = Problems::default();
    dns_subdomain(&mut problems, "metadata.name", name);
    if let Some(namespace) = namespace {
        dns_label(&mut problems, "metadata.namespace", namespace, 63);
    }
    problems.0
}

// The lists of a forward, as its author wrote them or as they are held: `read` types one entry.

fn addresses<T>(
    problems: &mut Problems,
    written: &[T],
    read: impl Fn(&mut Problems, &str, &T) -> Option<IpAddr>,
) -> Vec<IpAddr> {
    problems.count("spec.addresses", written.len(), 0, MAX_ADDRESSES);
    let mut addresses = BTreeSet::new();
    for (index, address) in written.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        let Some(ip) = read(problems, &field, address) else { continue };
        if let Some(what) = limits::refused_target(ip) {
            problems.unsupported(field, format!("{ip} is {what}; name a listen address of the pool"));
        } else if !addresses.insert(ip) {
            problems.unsupported(field, format!("{ip} is listed twice; list it once"));
        }
    }
    addresses.into_iter().collect()
}

fn ports<T>(
    problems: &mut Problems,
    written: &[T],
    mut read: impl FnMut(&mut Problems, &str, &T) -> Option<IntentPort>,
) -> Vec<IntentPort> {
    problems.count("spec.ports", written.len(), 1, MAX_PORTS);
    let mut ports: Vec<IntentPort> = Vec::new();
    for (index, port) in written.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        let Some(typed) = read(problems, &at, port) else { continue };
        if let Some(other) =
            ports.iter().find(|p| p.protocol == typed.protocol && p.port <= typed.end_port && typed.port <= p.end_port)
        {
            problems.unsupported(
                &at,
                format!(
                    "overlaps {}/{} of the same forward; list each port once",
                    range(other.port, other.end_port),
                    typed.protocol
                ),
            );
        }
        if let Some((from, to)) = limits::reserved_range(typed.protocol, typed.port, typed.end_port) {
            problems.add(
                format!("{at}.port"),
                Reason::ReservedPort,
                format!("{}/{} is kept for the gateway itself; choose another port", range(from, to), typed.protocol),
            );
        }
        ports.push(typed);
    }
    ports.sort_unstable();
    ports
}

fn port_range(
    problems: &mut Problems,
    at: &str,
    protocol: Protocol,
    first: i32,
    end: Option<i32>,
    target: Option<i32>,
) -> Option<IntentPort> {
    let first = port_number(problems, &format!("{at}.port"), first);
    let last = match end {
        Some(end) => port_number(problems, &format!("{at}.endPort"), end),
        None => first,
    };
    let target = match target {
        Some(target) => port_number(problems, &format!("{at}.targetPort"), target),
        None => first,
    };
    let (port, end_port, target_port) = (first?, last?, target?);
    if end_port < port {
        problems.unsupported(format!("{at}.endPort"), format!("{end_port} is below port {port}; swap them"));
        return None;
    }
    let width = usize::from(end_port - port) + 1;
    if usize::from(target_port) + width - 1 > usize::from(u16::MAX) {
        problems.unsupported(
            format!("{at}.targetPort"),
            format!("the {width} target ports from {target_port} on would pass 65535; lower targetPort or endPort"),
        );
        return None;
    }
    if target_port != port && width > MAX_SHIFTED_RANGE {
        problems.unsupported(
            format!("{at}.endPort"),
            format!("a range that changes its port numbers spans at most {MAX_SHIFTED_RANGE} ports, this one {width}; split it or leave targetPort out"),
        );
        return None;
    }
    Some(IntentPort { protocol, port, end_port, target_port })
}

/// Parses `written` as a port number 1..=65535.
pub(crate) fn port_number(problems: &mut Problems, field: &str, written: i32) -> Option<u16> {
    match u16::try_from(written) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            problems.unsupported(field, format!("{written} is not a port; use 1 to 65535"));
            None
        }
    }
}

fn sources<T>(
    problems: &mut Problems,
    list: &str,
    written: &[T],
    read: impl Fn(&mut Problems, &str, &T) -> Option<IpNet>,
) -> Vec<IpNet> {
    let nets: BTreeSet<IpNet> = written
        .iter()
        .enumerate()
        .filter_map(|(index, source)| read(problems, &format!("{list}[{index}].cidr"), source))
        .collect();
    nets.into_iter().collect()
}

/// Parses `text` as a CIDR; host bits are masked.
pub(crate) fn cidr(problems: &mut Problems, field: &str, text: &str) -> Option<IpNet> {
    let Ok(net) = text.parse::<IpNet>() else {
        let hint = match text.parse::<IpAddr>() {
            Ok(ip) => format!("{ip} has no prefix length; write {ip}/{}", Family::of(ip).bits()),
            Err(_) => format!("{} is not a CIDR such as 10.30.1.80/32 or fd00::/64", quoted(text)),
        };
        problems.unsupported(field, hint);
        return None;
    };
    network(problems, field, net)
}

/// `net` as it may stand in an intent: host bits are masked.
fn network(problems: &mut Problems, field: &str, net: IpNet) -> Option<IpNet> {
    if let IpNet::V6(net) = net
        && net.prefix_len() >= 96
        && net.addr().segments()[..5] == [0; 5]
        && matches!(net.addr().segments()[5], 0 | 0xffff)
    {
        problems.unsupported(field, format!("{net} only embeds IPv4 addresses; write the IPv4 CIDR itself"));
        return None;
    }
    Some(net.trunc())
}

/// A target whose weight is none is read all the same, for what else is wrong with it.
fn targets<T>(
    problems: &mut Problems,
    written: &[T],
    mut read: impl FnMut(&mut Problems, &str, &T) -> Option<(IpAddr, Option<u16>)>,
) -> Vec<IntentTarget> {
    problems.count("spec.targets", written.len(), 1, MAX_TARGETS);
    let mut ips = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for (index, target) in written.iter().enumerate() {
        let at = format!("spec.targets[{index}]");
        let Some((ip, weight)) = read(problems, &at, target) else { continue };
        if let Some(what) = limits::refused_target(ip) {
            problems.add(
                format!("{at}.ip"),
                Reason::InvalidTarget,
                format!("{ip} is {what}; a target must be another host's own address"),
            );
        } else if !ips.insert(ip) {
            problems.unsupported(format!("{at}.ip"), format!("{ip} is listed twice; raise its weight instead"));
        } else if let Some(weight) = weight {
            targets.insert(IntentTarget { ip, weight });
        }
    }
    targets.into_iter().collect()
}

fn weight(problems: &mut Problems, at: &str, written: i32) -> Option<u16> {
    let typed = u16::try_from(written).ok().filter(|weight| *weight <= MAX_WEIGHT);
    if typed.is_none() {
        problems.unsupported(format!("{at}.weight"), format!("{written} is out of range; use 0 to {MAX_WEIGHT}"));
    }
    typed
}

fn ip(problems: &mut Problems, field: &str, text: &str) -> Option<IpAddr> {
    let parsed = text.parse::<IpAddr>().ok();
    if parsed.is_none() {
        problems.unsupported(field, format!("{} is not an IP address such as 10.30.1.79 or fd00::79", quoted(text)));
    }
    parsed
}

/// Each family that the targets use needs an allowed source of that family, and the reverse: NAT does not cross families.
fn families(problems: &mut Problems, intent: &Intent) {
    for family in Family::BOTH {
        let sources = intent.allow.iter().any(|net| Family::of(net.addr()) == family);
        let targets = intent.targets.iter().any(|target| Family::of(target.ip) == family);
        if sources && !targets {
            problems.unsupported(
                "spec.sources.allow",
                format!("has {family} sources but no target is {family}; add an {family} target or remove them"),
            );
        }
        if targets && !sources {
            problems.unsupported(
                "spec.targets",
                format!("has {family} targets but sources.allow has no {family} CIDR; add one or remove them"),
            );
        }
        if !targets && intent.addresses.iter().any(|ip| Family::of(*ip) == family) {
            problems.unsupported(
                "spec.addresses",
                format!("has {family} addresses but no target is {family}; add an {family} target or remove them"),
            );
        }
    }
}

fn denied_altogether(problems: &mut Problems, intent: &Intent) {
    if intent.allow.iter().all(|allow| intent.deny.iter().any(|deny| deny.contains(allow))) {
        problems.unsupported(
            "spec.sources.deny",
            "covers everything that sources.allow lists, so nobody could connect; narrow it or widen sources.allow",
        );
    }
}

/// Checks that the ports and targets of `intent` make a bounded number of rules.
pub(crate) fn rule_count(problems: &mut Problems, intent: &Intent) {
    let per_target: usize = intent
        .ports
        .iter()
        .map(|port| if port.target_port == port.port { 1 } else { usize::from(port.end_port - port.port) + 1 })
        .sum();
    let rules = per_target * intent.targets.len();
    if rules > MAX_RULES_PER_FORWARD {
        problems.unsupported(
            "spec.ports",
            format!(
                "ports times targets make {rules} rules; at most {MAX_RULES_PER_FORWARD} are allowed, split the forward"
            ),
        );
    }
}

fn unique_name(problems: &mut Problems, seen: &mut BTreeSet<String>, at: &str, name: &str) {
    let field = format!("{at}.name");
    if dns_label(problems, &field, name, 63) && !seen.insert(name.to_owned()) {
        problems.unsupported(field, format!("{name} is used twice; names must be unique"));
    }
}

/// RFC 1123 label, as Kubernetes uses it for names.
pub(crate) fn dns_label(problems: &mut Problems, field: &str, text: &str, max: usize) -> bool {
    let ok = !text.is_empty()
        && text.len() <= max
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if !ok {
        problems.unsupported(
            field,
            format!("{} is not a name: use at most {max} lower case letters, digits and '-', with a letter or digit at both ends", quoted(text)),
        );
    }
    ok
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 characters.
fn dns_subdomain(problems: &mut Problems, field: &str, text: &str) {
    let mut labels = Problems::default();
    let ok = text.len() <= 253 && text.split('.').all(|label| dns_label(&mut labels, field, label, 253));
    if !ok {
        problems.unsupported(
            field,
            format!("{} is not a name: use at most 253 lower case letters, digits, '-' and '.', with a letter or digit at both ends", quoted(text)),
        );
    }
}

/// `text` as it may stand in a message: escaped, so that it cannot forge log lines, and shortened.
pub(crate) fn quoted(text: &str) -> String {
    if text.chars().count() > 64 {
        format!("{:?}…", text.chars().take(64).collect::<String>())
    } else {
        format!("{text:?}")
    }
}

/// `3306` or `3306-3310`.
pub(crate) fn range(first: u16, last: u16) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

#[cfg(test)]
mod tests;
