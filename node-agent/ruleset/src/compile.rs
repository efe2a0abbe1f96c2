//! Intents and a node's addresses → the rules that deliver them. Total and deterministic: input order changes nothing.
//!
//! ```text
//! nat PREROUTING, OUTPUT ─► SALLY-PRE ─► SALLY-M (masquerade) ─► SALLY-MT (TCP) ─► port buckets ─► DNAT
//!                                    │                       └─► SALLY-MU (UDP) ─► …
//!                                    └─► SALLY-P (preserve)  ─► SALLY-PT, SALLY-PU ─► …
//! nat POSTROUTING ─► SALLY-POST: masquerade what SALLY-M marked
//! filter FORWARD ─► SALLY-FWD: accept what either marked, both directions
//! ```
//! A new connection costs a few comparisons whatever the number of forwards; an established one costs one. The mark
//! says which connections are ours, so `filter` and `POSTROUTING` hold a constant number of rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::intent::{Intent, IntentPort, IntentTarget};
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};
use sallyport_api::{Protocol, SourceNatMode};
use sallyport_policy::claim::{Claim, ClaimTable};
use sallyport_policy::digest::short_id;
use sallyport_policy::intersection::smaller;
use sallyport_policy::pool::Reserved;
use sallyport_policy::recheck::recheck;

use crate::facts::LocalAddress;
use crate::family::Family;
use crate::rule::{Action, Chains, Rule, Ruleset, chain, protocol_name};

/// A chain that would hold more rules than this is split by port.
const SPLIT_ABOVE: usize = 32;
/// Ports in a chain below the protocol's root, below that, and so on. The kernel looks at one rule of a chain after the
/// other, so eight ways at each fork are few to look at; more forks would be more chains.
const BUCKETS: [u32; 4] = [8192, 1024, 128, 16];

/// Why a forward is not programmed on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which forward.
    pub forward: ForwardRef,
    /// The kind of failure.
    pub reason: Reason,
    /// What is wrong here and what would help.
    pub message: String,
}

/// The rules of a node, and what could not become rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// What the kernel shall hold.
    pub ruleset: Ruleset,
    /// The listen addresses that are really on the node.
    pub listen: Vec<IpAddr>,
    /// The forwards without rules here, in order of their references.
    pub failures: Vec<Failure>,
}

/// Compiles the forwards of a node's pool for that node, whose interfaces carry `local`, at `now` in seconds since 1970.
#[must_use]
pub fn compile(node: &GatewayNodeSpec, forwards: &[&SliceForward], local: &[LocalAddress], now: i64) -> Compiled {
    let mut compiled = Compiled::default();
    if node.state == NodeState::Retired {
        return compiled;
    }
    let mut local = local.to_vec();
    local.sort_unstable();
    let local = local.as_slice();
    let wanted = |ip: &IpAddr| node.addresses.contains(ip) || node.listen_cidrs.iter().any(|net| net.contains(ip));
    compiled.listen = local.iter().filter(|own| own.global).map(|own| own.ip).filter(wanted).collect();
    compiled.listen.sort_unstable();
    compiled.listen.dedup();

    let mut sorted = forwards.to_vec();
    sorted.sort_by(|a, b| (&a.r#ref, &a.uid).cmp(&(&b.r#ref, &b.uid)));
    let reserved = Reserved::of(&node.reserved_ports);
    let mut claims = ClaimTable::default();
    let mut plan: BTreeMap<Family, Layout> = BTreeMap::new();
    for (index, forward) in sorted.into_iter().enumerate() {
        let own = Claim::of(&forward.intent);
        let refusal = refuse(forward, &reserved, &compiled.listen, local, now).or_else(|| {
            let (claim, _) = claims.conflict(&own, index)?;
            let message = format!(
                "{claim} is already programmed for another forward; wait until that one is gone, or choose another port"
            );
            Some((Reason::PortConflict, message))
        });
        if let Some((reason, message)) = refusal {
            compiled.failures.push(Failure { forward: forward.r#ref.clone(), reason, message });
            continue;
        }
        claims.insert(&own, index);
        for family in Family::BOTH {
            plan.entry(family).or_default().place(family, forward, &compiled.listen);
        }
    }
    for (family, layout) in plan {
        layout.write(compiled.ruleset.family_mut(family));
    }
    compiled
}

/// Checks again, here, what must never reach a kernel, whatever the operator said, and what only this host can see.
fn refuse(
    forward: &SliceForward,
    reserved: &[Reserved],
    listen: &[IpAddr],
    local: &[LocalAddress],
    now: i64,
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
    let reachable = intent.targets.iter().any(|target| {
        let family = Family::of(target.ip);
        listen
            .iter()
            .any(|ip| Family::of(*ip) == family && (intent.addresses.is_empty() || intent.addresses.contains(ip)))
    });
    if !reachable {
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

/// The rules of one family before they are cut into chains.
#[derive(Default)]
struct Layout {
    /// Rules by first and last port, for each way of treating the source address and each protocol.
    by_port: BTreeMap<(Nat, Protocol), Vec<PortRule>>,
    /// Listen addresses in use.
    addresses: BTreeMap<Nat, Vec<IpAddr>>,
    /// Chains of single forwards: their sources, and their targets.
    own: Chains,
}

/// What happens to the client's address. Ordered as the chains are visited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Nat {
    Masquerade,
    Preserve,
}

impl Nat {
    fn letter(self) -> char {
        match self {
            Self::Masquerade => 'M',
            Self::Preserve => 'P',
        }
    }

    fn mark(self) -> u32 {
        match self {
            Self::Masquerade => MARK_OURS | MARK_MASQUERADE,
            Self::Preserve => MARK_OURS,
        }
    }
}

struct PortRule {
    first: u16,
    last: u16,
    text: String,
}

impl Layout {
    /// Adds the rules of `forward` for the listen addresses of `family`.
    fn place(&mut self, family: Family, forward: &SliceForward, listen: &[IpAddr]) {
        let intent = &forward.intent;
        let addresses: Vec<IpAddr> = listen
            .iter()
            .copied()
            .filter(|ip| Family::of(*ip) == family && (intent.addresses.is_empty() || intent.addresses.contains(ip)))
            .collect();
        let targets: Vec<IntentTarget> =
            intent.targets.iter().copied().filter(|target| Family::of(target.ip) == family).collect();
        if addresses.is_empty() || targets.is_empty() {
            return;
        }
        let nat = match intent.source_nat {
            SourceNatMode::Masquerade => Nat::Masquerade,
            SourceNatMode::Preserve => Nat::Preserve,
        };
        let used = self.addresses.entry(nat).or_default();
        used.extend(&addresses);
        let of_family = |nets: &[IpNet]| -> Vec<IpNet> {
            nets.iter().copied().filter(|net| Family::of(net.addr()) == family).collect()
        };
        let (allow, deny) = (of_family(&intent.allow), of_family(&intent.deny));
        let id = short_id(&forward.uid);
        // One source needs no chain of its own: the DNAT rule names it.
        let single = if deny.is_empty() && allow.len() == 1 { allow.first().copied() } else { None };
        if single.is_none() {
            self.write_own_chains(&id, &allow, &deny, &intent.ports, &targets);
        }
        for port in &intent.ports {
            let rules = self.by_port.entry((nat, port.protocol)).or_default();
            for address in &addresses {
                let to_address = Rule { destination: Some(*address), ..Rule::default() };
                if let Some(source) = single {
                    let guard = Rule { source: Some(source), ..to_address };
                    rules.extend(deliver(&guard, *port, &targets));
                } else {
                    // -A SALLY-MT -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j SALLY-S-0123456789abcdef
                    let rule = on_ports(
                        &to_address,
                        port.protocol,
                        port.port,
                        port.end_port,
                        Action::Jump(format!("SALLY-S-{id}")),
                    );
                    rules.push(rule);
                }
            }
        }
    }

    /// `SALLY-S-…` lets the allowed sources through to `SALLY-D-…`, which delivers.
    fn write_own_chains(
        &mut self,
        id: &str,
        allow: &[IpNet],
        deny: &[IpNet],
        ports: &[IntentPort],
        targets: &[IntentTarget],
    ) {
        let from = |net: &IpNet, action: Action| Rule { source: Some(*net), action, ..Rule::default() }.to_string();
        // -A SALLY-S-0123456789abcdef -s 10.30.1.66/32 -j RETURN
        let denied = deny.iter().map(|net| from(net, Action::Return));
        // -A SALLY-S-0123456789abcdef -s 10.30.1.0/24 -j SALLY-D-0123456789abcdef
        let allowed = allow.iter().map(|net| from(net, Action::Jump(format!("SALLY-D-{id}"))));
        self.own.insert(format!("SALLY-S-{id}"), denied.chain(allowed).collect());
        let rules = ports.iter().flat_map(|port| deliver(&Rule::default(), *port, targets)).map(|rule| rule.text);
        self.own.insert(format!("SALLY-D-{id}"), rules.collect());
    }

    /// Cuts the rules into chains.
    fn write(self, rules: &mut crate::rule::Rules) {
        if self.by_port.is_empty() {
            return;
        }
        let Self { by_port, addresses, own } = self;
        let mut pre = Vec::new();
        let masquerades = addresses.contains_key(&Nat::Masquerade);
        for (nat, mut addresses) in addresses {
            addresses.sort_unstable();
            addresses.dedup();
            let group = format!("SALLY-{}", nat.letter());
            for address in addresses {
                // -A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M
                let rule = Rule { destination: Some(address), action: Action::Jump(group.clone()), ..Rule::default() };
                pre.push(rule.to_string());
            }
            // -A SALLY-M -j CONNMARK --set-xmark 0x30000000/0x30000000
            let mut body = vec![mark(nat.mark())];
            for protocol in by_port.keys().filter(|(of, _)| *of == nat).map(|(_, protocol)| *protocol) {
                // -A SALLY-M -p tcp -j SALLY-MT
                let root = root_chain(nat, protocol);
                body.push(Rule { protocol: Some(protocol), action: Action::Jump(root), ..Rule::default() }.to_string());
            }
            // No DNAT rule took the connection, so it is not ours: -A SALLY-M -j CONNMARK --set-xmark 0x0/0x30000000
            body.push(mark(0));
            rules.nat.insert(group, body);
        }
        rules.nat.insert(chain::PRE.to_owned(), pre);
        for ((nat, protocol), port_rules) in by_port {
            split(&mut rules.nat, root_chain(nat, protocol), protocol, port_rules, &BUCKETS);
        }
        rules.nat.extend(own);
        // -A SALLY-POST -m conntrack --ctstate DNAT -m connmark --mark 0x30000000/0x30000000 -j MASQUERADE
        let masquerade =
            Rule { ours: Some(Nat::Masquerade.mark()), action: Action::Masquerade, ..Rule::default() }.to_string();
        rules.nat.insert(chain::POST.to_owned(), if masquerades { vec![masquerade] } else { Vec::new() });
        // -A SALLY-FWD -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
        let accept = Rule { ours: Some(MARK_OURS), action: Action::Accept, ..Rule::default() }.to_string();
        rules.filter.insert(chain::FORWARD.to_owned(), vec![accept]);
    }
}

fn mark(bits: u32) -> String {
    Rule { action: Action::Mark(bits), ..Rule::default() }.to_string()
}

/// `SALLY-MT`: the root chain of a protocol.
fn root_chain(nat: Nat, protocol: Protocol) -> String {
    let letter = protocol_name(protocol).to_ascii_uppercase();
    format!("SALLY-{}{}", nat.letter(), &letter[..1])
}

/// The DNAT rules of one port or range behind `guard`: one a target, or one a target and port for a shifted range.
fn deliver(guard: &Rule, port: IntentPort, targets: &[IntentTarget]) -> Vec<PortRule> {
    // -s 10.30.1.80/32 -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79
    if port.target_port == port.port {
        return weighted(targets)
            .map(|(ip, chance)| {
                let guard = Rule { chance, ..guard.clone() };
                on_ports(&guard, port.protocol, port.port, port.end_port, Action::Dnat(ip, None))
            })
            .collect();
    }
    // A shifted range as one rule was seen to reach a wrong port when tuples collide: one rule a port instead.
    // -s 10.30.1.80/32 -d 10.30.1.78/32 -p tcp -m tcp --dport 13306 -j DNAT --to-destination 10.30.1.79:3306
    (port.port..=port.end_port)
        .zip(port.target_port..)
        .flat_map(|(listen, target)| {
            weighted(targets).map(move |(ip, chance)| {
                let guard = Rule { chance, ..guard.clone() };
                on_ports(&guard, port.protocol, listen, listen, Action::Dnat(ip, Some(target)))
            })
        })
        .collect()
}

fn on_ports(guard: &Rule, protocol: Protocol, first: u16, last: u16, action: Action) -> PortRule {
    let rule = Rule { protocol: Some(protocol), ports: Some((first, last)), action, ..guard.clone() };
    PortRule { first, last, text: rule.to_string() }
}

/// Targets that take new connections, each with its chance among those that the targets before it left; the last has
/// none and takes the rest.
fn weighted(targets: &[IntentTarget]) -> impl Iterator<Item = (IpAddr, Option<u32>)> + '_ {
    let mut rest: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    targets.iter().filter(|target| target.weight > 0).map(move |target| {
        let weight = u64::from(target.weight);
        // Rounded to the units in which the kernel keeps a chance, so that it reads back as written.
        let chance =
            (weight < rest).then(|| u32::try_from(((weight << 31) + rest / 2) / rest).unwrap_or(u32::MAX >> 1));
        rest -= weight;
        (target.ip, chance)
    })
}

/// Puts `rules` into `chain`, or, where they are many, into a chain for each bucket of ports below it.
fn split(chains: &mut Chains, chain: String, protocol: Protocol, mut rules: Vec<PortRule>, buckets: &[u32]) {
    let Some((size, finer)) = buckets.split_first().filter(|_| rules.len() > SPLIT_ABOVE) else {
        // Stable: the order of a forward's own rules is part of their meaning.
        rules.sort_by_key(|rule| rule.first);
        chains.insert(chain, rules.into_iter().map(|rule| rule.text).collect());
        return;
    };
    let bucket = |port: u16| u32::from(port) / size;
    // A range that crosses a border stays here, before the buckets; claims never overlap, so there are few such.
    let (mut here, below): (Vec<_>, Vec<_>) =
        rules.into_iter().partition(|rule| bucket(rule.first) != bucket(rule.last));
    here.sort_by_key(|rule| rule.first);
    let mut body: Vec<String> = here.into_iter().map(|rule| rule.text).collect();
    let mut parts: BTreeMap<u32, Vec<PortRule>> = BTreeMap::new();
    for rule in below {
        parts.entry(bucket(rule.first)).or_default().push(rule);
    }
    let root = chain.split('-').take(2).collect::<Vec<_>>().join("-");
    for (number, part) in parts {
        let first = u16::try_from(number * size).unwrap_or(u16::MAX);
        let last = u16::try_from(number * size + size - 1).unwrap_or(u16::MAX);
        let name = format!("{root}-{first}-{last}");
        // -A SALLY-MT -p tcp -m tcp --dport 0:8191 -g SALLY-MT-0-8191
        let rule = Rule {
            protocol: Some(protocol),
            ports: Some((first, last)),
            action: Action::Goto(name.clone()),
            ..Rule::default()
        };
        body.push(rule.to_string());
        split(chains, name, protocol, part, finer);
    }
    chains.insert(chain, body);
}
