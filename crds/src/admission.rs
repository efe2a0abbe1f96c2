//! The CEL rules that the API server holds one object to, each with the message that its author reads.
//!
//! Bounds and patterns are not here: they stand beside their fields. Admission is advice in time, not the gate: the
//! operator and the agents check everything again. What admission can afford is limited by the API server's cost
//! budget, so every list and string that a rule walks has an upper bound, and only the ports are compared pairwise.
//!
//! A rule that is false of what was there before holds up no write, but one that cannot be evaluated, because a field is of
//! another type there, holds up every write, the removal of our finalizer included. No rule therefore reads the `port` of a
//! lone entry of `ports` without need: reserved ports are for the operator to refuse.

use kube::core::cel::{Message, Rule};

use crate::limits::{IPV4_MAPPED, REFUSED_TARGETS};
use crate::names::{MAX_LIFETIME_HOURS, MAX_RULES_PER_FORWARD, MAX_SHIFTED_RANGE};

/// On anything with `port` and `endPort`: the range does not run backwards.
pub(crate) fn end_port_not_below_port() -> Rule {
    Rule::new("!has(self.endPort) || self.endPort >= self.port").message(computed(
        "endPort %d must not be below port %d; swap them, or remove endPort to use one port",
        "self.endPort, self.port",
    ))
}

/// On a `ForwardPort`: the range at the targets ends within the port numbers.
pub(crate) fn target_range_within_ports() -> Rule {
    const END: &str = "self.targetPort + (has(self.endPort) ? self.endPort : self.port) - self.port";
    Rule::new(format!("!has(self.targetPort) || {END} <= 65535")).message(computed(
        "the range from targetPort %d must end at 65535 or below; it would end at %d, so lower targetPort or endPort",
        &format!("self.targetPort, {END}"),
    ))
}

/// On a `ForwardPort`: a range that changes port numbers is short, because it needs one rule a port.
pub(crate) fn shifted_range_is_short() -> Rule {
    Rule::new(format!(
        "!has(self.targetPort) || self.targetPort == self.port || !has(self.endPort) || \
         self.endPort - self.port < {MAX_SHIFTED_RANGE}"
    ))
    .message(computed(
        &format!(
            "a range with another targetPort must span at most {MAX_SHIFTED_RANGE} ports, not %d; \
             remove targetPort, or split the range"
        ),
        "self.endPort - self.port + 1",
    ))
}

/// On a moment: one that every program can read. Whether it has passed is not for a rule: rules have no clock.
pub(crate) fn is_moment() -> Rule {
    Rule::new("self >= timestamp('1970-01-01T00:00:00Z') && self < timestamp('9999-01-01T00:00:00Z')")
        .message("must be a moment from 1970 to 9998, such as 2026-01-31T18:00:00Z")
}

/// On the longest lifetime that a grant allows.
pub(crate) fn lifetime_is_bounded() -> Rule {
    Rule::new(format!("duration(self) >= duration('1s') && duration(self) <= duration('{MAX_LIFETIME_HOURS}h')"))
        .message(format!("must be a duration from 1s to {MAX_LIFETIME_HOURS}h, such as 24h or 1h30m").as_str())
}

/// A message with a value for each `%d` and `%s`.
///
/// `format` and not `+`: the API server takes the text of a number for unbounded when it estimates the cost of `+`, and
/// refuses the CRD.
fn computed(text: &str, values: &str) -> Message {
    Message::Expression(format!("'{text}'.format([{values}])"))
}

/// On the ports of a forward: no port is listened on twice.
pub(crate) fn ports_do_not_overlap() -> Rule {
    Rule::new(
        "self.all(a, self.all(b, a.name == b.name || a.protocol != b.protocol || \
         a.port > (has(b.endPort) ? b.endPort : b.port) || b.port > (has(a.endPort) ? a.endPort : a.port)))",
    )
    .message("ports of the same protocol must not overlap; list each port once")
}

/// On a forward: the rules that it makes on each node are bounded.
pub(crate) fn rules_are_bounded() -> Rule {
    const RULES: &str = "self.ports.map(p, has(p.targetPort) && p.targetPort != p.port && has(p.endPort) \
                         ? p.endPort - p.port + 1 : 1).sum() * size(self.targets)";
    Rule::new(format!("{RULES} <= {MAX_RULES_PER_FORWARD}")).message(computed(
        &format!(
            "ports times targets would make %d rules on each node, at most {MAX_RULES_PER_FORWARD} are allowed; \
             use fewer targets, or leave out targetPort on ranges, or split the forward"
        ),
        RULES,
    ))
}

/// Address family; NAT does not cross from one to the other.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// CEL that says whether `text`, an address or block, is of this family; a colon is in every IPv6 one only.
    fn is(self, text: &str) -> String {
        match self {
            Self::V4 => format!("!{text}.contains(':')"),
            Self::V6 => format!("{text}.contains(':')"),
        }
    }
}

/// On a forward: who may connect to the targets of a family is said.
pub(crate) fn targets_have_sources(family: Family) -> Rule {
    let (target, source, name) = (family.is("t.ip"), family.is("s.cidr"), family.name());
    Rule::new(format!("!self.targets.exists(t, {target}) || self.sources.allow.exists(s, {source})")).message(
        format!("a target is {name} but sources.allow has no {name} block; add one, or remove the target").as_str(),
    )
}

/// On a forward: clients of a family have somewhere to go.
pub(crate) fn sources_have_targets(family: Family) -> Rule {
    let (target, source, name) = (family.is("t.ip"), family.is("s.cidr"), family.name());
    Rule::new(format!("!self.sources.allow.exists(s, {source}) || self.targets.exists(t, {target})")).message(
        format!("sources.allow has an {name} block but no target is {name}; add a target, or remove the block")
            .as_str(),
    )
}

/// On a forward: each address listened on has targets of its family.
pub(crate) fn addresses_have_targets() -> Rule {
    Rule::new(
        "!has(self.addresses) || \
         self.addresses.all(a, self.targets.exists(t, a.contains(':') == t.ip.contains(':')))",
    )
    .message("an entry of addresses has no target of its address family; add a target, or remove the address")
}

/// On a string: one IP address.
pub(crate) fn is_ip() -> Rule {
    Rule::new("isIP(self)")
        .message("must be one IP address such as 10.30.1.79 or fd00::79, without port, prefix length or zone")
}

/// On a list of strings: IP addresses.
pub(crate) fn all_are_ips() -> Rule {
    Rule::new("self.all(a, isIP(a))").message(
        "every entry must be one IP address such as 10.30.1.78 or fd00::78, without port, prefix length or zone",
    )
}

/// On a string: a block of addresses.
pub(crate) fn is_cidr() -> Rule {
    Rule::new("isCIDR(self)").message(IS_CIDR)
}

/// On a list of strings: blocks of addresses.
pub(crate) fn all_are_cidrs() -> Rule {
    Rule::new("self.all(c, isCIDR(c))").message(IS_CIDR)
}

const IS_CIDR: &str = "must be an address block such as 10.30.0.0/23 or fd00::/64; a single host is written 10.30.1.80/32 or fd00::80/128";

/// On the address of a target: it is in none of the blocks that are always refused.
///
/// The blocks are written out one by one: the API server knows how long a literal is when it estimates the cost of a rule,
/// but not of an element of a list.
pub(crate) fn target_is_allowed() -> Rule {
    let refused: Vec<(String, &str)> = REFUSED_TARGETS
        .iter()
        .filter(|(block, _)| *block != IPV4_MAPPED)
        .map(|(block, what)| (format!("cidr('{block}').containsIP(ip(self))"), *what))
        .collect();
    let any: Vec<&str> = refused.iter().map(|(is_in, _)| is_in.as_str()).collect();
    let what = refused.iter().rev().fold("''".to_owned(), |rest, (is_in, what)| format!("{is_in} ? '{what}' : {rest}"));
    Rule::new(format!("!isIP(self) || !({})", any.join(" || ")))
        .message(computed(r"%s is %s; a target must be another host\'s own address", &format!("self, {what}")))
}

/// On a `ListenAddress`: `value` goes with the type that needs one.
pub(crate) fn value_goes_with_cidr() -> Rule {
    Rule::new("(self.type == 'CIDR') == has(self.value)")
        .message("value is required with type CIDR and must be left out with any other type")
}

/// On a `GatewayPool`: its name fits `spec.pool` of a forward.
pub(crate) fn pool_name_is_a_label() -> Rule {
    Rule::new("size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')")
        .message("the name of a pool must have at most 63 characters and no dot, because forwards refer to it by name")
}
