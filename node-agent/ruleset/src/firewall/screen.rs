//! A host's firewalls as the packets of forwards meet them: base chains in the kernel's order, and of their rules those that
//! any forward could concern.
//!
//! Made once for all forwards. What names other addresses, ports or states than forwards have, and what decides nothing, is
//! gone here, so that of the thousands of rules of docker or kube-proxy a forward meets a handful.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;

use sallyport_api::SourceNatMode;
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};

use crate::binding::Binding;
use crate::chain::is_ours;
use crate::family::Family;
use crate::firewall::leg::{MASQUERADED, any_packet, is_post_snat, is_pre_dnat, reaches};
use crate::firewall::packet::{Fit, Packet};
use crate::firewall::place::Forward;
use crate::firewall::rules::{Act, Rule, Rules};
use crate::firewall::{
    BaseChain, Effect, FirewallRule, FirewallTable, Holder, Hook, HostFirewall, State, Test, To, Verdict, What,
    range_of,
};

/// Nested chains are read this far; the kernel allows no more than 16 in nftables.
const DEPTH: usize = 64;
/// Priority at which our rules translate destinations, and that at which they translate sources (`NF_IP_PRI_NAT_DST`,
/// `NF_IP_PRI_NAT_SRC`, `include/uapi/linux/netfilter_ipv4.h`). Every chain of translations is called at these, whatever its
/// own priority: that only orders them among each other (`net/netfilter/nf_nat_core.c`).
const TRANSLATION: [(Hook, i32); 2] = [(Hook::Prerouting, -100), (Hook::Postrouting, 100)];

/// From the first to the last address and port of all forwards of a family, on either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hull {
    pub(super) listen: RangeInclusive<IpAddr>,
    pub(super) listen_ports: RangeInclusive<u16>,
    pub(super) targets: RangeInclusive<IpAddr>,
    pub(super) target_ports: RangeInclusive<u16>,
    /// Whether any hides its clients.
    pub(super) masquerades: bool,
    /// The clients of those that hide none, if there are such.
    pub(super) seen: Option<RangeInclusive<IpAddr>>,
}

impl Hull {
    /// That of these forwards; `None` without any.
    pub(super) fn of<'a>(bindings: impl Iterator<Item = &'a Binding<'a>>) -> Option<Self> {
        let mut hull: Option<Self> = None;
        for binding in bindings {
            let port = binding.port;
            let masquerades = binding.source_nat() == SourceNatMode::Masquerade;
            let clients = binding.allowed().filter(|_| !masquerades).map(range_of);
            for target in binding.targets() {
                let one = Self {
                    listen: binding.listen..=binding.listen,
                    listen_ports: port.port..=port.end_port,
                    targets: target.ip..=target.ip,
                    target_ports: port.target_port..=port.target_port + (port.end_port - port.port),
                    masquerades,
                    seen: None,
                };
                hull = Some(match hull {
                    Some(hull) => hull.around(&one),
                    None => one,
                });
            }
            if let (Some(hull), Some(clients)) = (&mut hull, clients.reduce(|one, other| around(&one, &other))) {
                hull.seen = Some(hull.seen.as_ref().map_or_else(|| clients.clone(), |seen| around(seen, &clients)));
            }
        }
        hull
    }

    pub(super) fn around(&self, other: &Self) -> Self {
        Self {
            listen: around(&self.listen, &other.listen),
            listen_ports: around(&self.listen_ports, &other.listen_ports),
            targets: around(&self.targets, &other.targets),
            target_ports: around(&self.target_ports, &other.target_ports),
            masquerades: self.masquerades || other.masquerades,
            seen: match (&self.seen, &other.seen) {
                (Some(one), Some(other)) => Some(around(one, other)),
                (one, other) => one.as_ref().or(other.as_ref()).cloned(),
            },
        }
    }
}

impl To {
    /// Whether it may be one of these addresses.
    fn may_be_in(&self, ips: &RangeInclusive<IpAddr>) -> bool {
        match self {
            Self::Host => false,
            Self::Unknown => true,
            Self::Addresses { ips: to, .. } => {
                to.as_ref().is_some_and(|to| to.start() <= ips.end() && ips.start() <= to.end())
            }
        }
    }
}

/// From the first of both to the last.
fn around<T: Ord + Copy>(one: &RangeInclusive<T>, other: &RangeInclusive<T>) -> RangeInclusive<T> {
    *one.start().min(other.start())..=*one.end().max(other.end())
}

/// What packets of one family meet.
#[derive(Debug)]
pub(super) struct Screen {
    /// What was seen of forwards when it was made.
    pub(super) hull: Option<Hull>,
    /// Base chains, in the order in which packets pass them.
    pub(super) stages: Vec<Stage>,
    /// Where others send packets that come in.
    pub(super) doors: Vec<To>,
    /// The ports that any rule asks for, but for those that are all.
    pub(super) ports: Vec<RangeInclusive<u16>>,
}

/// A base chain, and the chains that it leads to.
#[derive(Debug)]
pub(super) struct Stage {
    /// The table of the host that it is in, and its place there; `None` for that of ours where nobody has any.
    pub(super) place: Option<(usize, usize)>,
    pub(super) base: BaseChain,
    /// Whether nobody can tell if it is called before ours or after.
    pub(super) tied: bool,
    /// Whether our jump is in it.
    pub(super) ours: bool,
    /// The first is the base chain.
    pub(super) chains: Vec<Rules>,
}

impl Screen {
    /// What those of the forwards within `hull` may meet; without any, those that there could be.
    pub(super) fn new(firewall: &HostFirewall, family: Family, hull: Option<Hull>) -> Self {
        let mut stages = Vec::new();
        for (at, table) in firewall.tables.iter().enumerate() {
            if !table.families.contains(&family) {
                continue;
            }
            for (number, base) in table.base.iter().enumerate() {
                let stage = Reader::new(table, base, family, hull.as_ref()).stage((at, number));
                if stage.ours || base.drops || !stage.chains[0].as_slice().is_empty() {
                    stages.push(stage);
                }
            }
        }
        for (hook, priority) in TRANSLATION {
            if !stages.iter().any(|stage| stage.ours && stage.base.translates && stage.base.hook == hook) {
                let base = BaseChain { name: String::new(), hook, priority, drops: false, translates: true };
                let chains = vec![Rules::new(vec![ours(&base, Vec::new())])];
                stages.push(Stage { place: None, base, tied: false, ours: true, chains });
            }
        }
        for stage in &mut stages {
            let own = TRANSLATION.iter().any(|(hook, at)| *hook == stage.base.hook && *at == stage.base.priority);
            stage.tied = stage.base.translates && !stage.ours && own;
        }
        stages.sort_by_key(|stage| {
            let base = &stage.base;
            let called = if base.translates {
                TRANSLATION.iter().find(|(hook, _)| *hook == base.hook).map_or(base.priority, |(_, at)| *at)
            } else {
                base.priority
            };
            (base.hook, called, base.priority, stage.ours)
        });
        let incoming = |stage: &&Stage| stage.base.hook == Hook::Prerouting && stage.base.translates;
        let doors = stages.iter().filter(incoming).flat_map(|stage| stage.chains.iter().flat_map(Rules::as_slice));
        let doors = doors.filter_map(|rule| match &rule.act {
            Act::Destination(to) if hull.as_ref().is_none_or(|hull| to.may_be_in(&hull.targets)) => Some(to.clone()),
            _ => None,
        });
        let doors = doors.collect();
        let mut screen = Self { hull, stages, doors, ports: Vec::new() };
        let ports = screen.tests().filter_map(|what| match what {
            What::SourcePorts(listed)
            | What::DestinationPorts(listed)
            | What::Ports(listed)
            | What::OriginalDestinationPorts(listed) => Some(listed),
            _ => None,
        });
        let ports: BTreeSet<(u16, u16)> = ports.flatten().map(|ports| (*ports.start(), *ports.end())).collect();
        screen.ports = ports.into_iter().map(|(first, last)| first..=last).collect();
        screen
    }

    /// Whether it holds all that forwards within `hull` may meet.
    pub(super) fn is_for(&self, hull: &Hull) -> bool {
        self.hull.as_ref().is_some_and(|wide| wide.around(hull) == *wide)
    }

    /// The tests of all rules that packets meet as they come in and go on.
    pub(super) fn tests(&self) -> impl Iterator<Item = &What> {
        let rules = self.stages.iter().flat_map(|stage| stage.chains.iter().flat_map(Rules::as_slice));
        rules.flat_map(|rule| rule.tests.iter().map(|test| &test.what))
    }
}

/// The jump to our rules, as a rule that does what they do.
fn ours(base: &BaseChain, mut tests: Vec<Test>) -> Rule {
    let marked = |bits: u32| [What::States(vec![State::Dnat]), What::ConnectionMark { mask: bits, value: bits }];
    let (asks, act) = match base.hook {
        Hook::Ingress | Hook::Prerouting => (None, Act::Ours),
        Hook::Forward => (Some(marked(MARK_OURS)), Act::Accept),
        Hook::Postrouting => (Some(marked(MARK_OURS | MARK_MASQUERADE)), Act::Ours),
    };
    tests.extend(asks.into_iter().flatten().map(|what| Test { what, negated: false }));
    Rule { tests, effects: Vec::new(), act, chain: "".into(), text: String::new() }
}

/// Reads one base chain and what it leads to.
struct Reader<'a> {
    table: &'a FirewallTable,
    base: &'a BaseChain,
    /// What may come here.
    coming: Vec<Coming>,
    /// Chains that were read, or are being read,
    read: BTreeMap<&'a str, usize>,
    /// and which of them were.
    done: BTreeSet<usize>,
    chains: Vec<Vec<Rule>>,
    /// Whether it leads to our rules.
    ours: bool,
    /// Before which rule of the base chain our jump will stand, where it is not there yet.
    coming_ours: Option<usize>,
}

impl<'a> Reader<'a> {
    fn new(table: &'a FirewallTable, base: &'a BaseChain, family: Family, hull: Option<&Hull>) -> Self {
        let rules = table.chains.get(&base.name).map(Vec::as_slice).unwrap_or_default();
        let to_ours =
            |rule: &FirewallRule| matches!(&rule.verdict, Verdict::Jump(to) | Verdict::Goto(to) if is_ours(to));
        let coming_ours = match base.hook {
            _ if !table.holds_ours() || rules.iter().any(to_ours) => None,
            Hook::Forward => (table.name == "filter")
                .then(|| Forward::new(family, &table.chains).place(rules).unwrap_or(rules.len())),
            Hook::Ingress | Hook::Prerouting | Hook::Postrouting => base.translates.then_some(0),
        };
        let (coming, ours) = (coming(base, family, hull), coming_ours.is_some());
        let (read, done, chains) = Default::default();
        Self { table, base, coming, read, done, chains, ours, coming_ours }
    }

    fn stage(mut self, place: (usize, usize)) -> Stage {
        self.chain(&self.base.name, DEPTH);
        let chains = self.chains.into_iter().map(Rules::new).collect();
        Stage { place: Some(place), base: self.base.clone(), tied: false, ours: self.ours, chains }
    }

    fn chain(&mut self, name: &'a str, depth: usize) -> usize {
        if let Some(known) = self.read.get(name) {
            return *known;
        }
        let number = self.chains.len();
        self.chains.push(Vec::new());
        self.read.insert(name, number);
        let label: Rc<str> = name.into();
        let mut rules = Vec::new();
        let there = self.table.chains.get(name).map(Vec::as_slice).unwrap_or_default();
        // Ours come into being with the first forward.
        let coming_ours = self.coming_ours.filter(|_| number == 0);
        for (place, rule) in there.iter().enumerate() {
            if coming_ours == Some(place) {
                rules.push(ours(self.base, Vec::new()));
            }
            if self.coming.iter().any(|coming| coming.is_concerned(rule)) {
                rules.extend(self.rule(rule, &label, depth));
            }
        }
        if coming_ours == Some(there.len()) {
            rules.push(ours(self.base, Vec::new()));
        }
        self.chains[number] = rules;
        self.done.insert(number);
        number
    }

    fn rule(&mut self, rule: &'a FirewallRule, chain: &Rc<str>, depth: usize) -> Option<Rule> {
        let mut tests = rule.tests.clone();
        tests.sort_by_key(|test| matches!(test.what, What::In(_) | What::Out(_)));
        let mut effects = rule.effects.clone();
        let act = match &rule.verdict {
            Verdict::Accept => Act::Accept,
            Verdict::Drop => Act::Drop,
            Verdict::Return => Act::Return,
            Verdict::Destination(_) if self.base.hook == Hook::Postrouting => Act::Source,
            Verdict::Destination(to) => Act::Destination(to.clone()),
            Verdict::Source => Act::Source,
            Verdict::Elsewhere => Act::Elsewhere,
            Verdict::Continue => Act::Continue,
            Verdict::Jump(name) | Verdict::Goto(name) if is_ours(name) && self.table.holder != Holder::Nftables => {
                // What is left of an older agent in the other variant is the agent's to take away.
                if !matches!(self.table.holder, Holder::Iptables { own: true, .. }) {
                    return None;
                }
                self.ours = true;
                return Some(ours(self.base, tests));
            }
            Verdict::Jump(name) | Verdict::Goto(name) if depth == 0 || !self.table.chains.contains_key(name) => {
                effects.push(Effect::Untold);
                Act::Continue
            }
            Verdict::Jump(name) | Verdict::Goto(name) => {
                let back = matches!(rule.verdict, Verdict::Jump(_));
                let called = self.chain(name, depth - 1);
                let is_empty = self.done.contains(&called) && self.chains[called].is_empty();
                if back && is_empty { Act::Continue } else { Act::Call { chain: called, back } }
            }
        };
        let nothing = matches!(act, Act::Continue) && effects.is_empty();
        (!nothing).then(|| Rule { tests, effects, act, chain: Rc::clone(chain), text: rule.text.clone() })
    }
}

/// Packets that may come to a base chain, and what no forward can know of its own.
struct Coming {
    packet: Packet<'static>,
    /// Whether clients are hidden there behind an address of the gateway, whichever.
    hides: bool,
}

impl Coming {
    /// Whether a rule with these tests may do something to some of these packets that is to be told.
    fn is_concerned(&self, rule: &FirewallRule) -> bool {
        // A rule that names whom it drops is about those, and nobody can tell that it is about ours.
        let drops = rule.verdict == Verdict::Drop && rule.effects.is_empty();
        self.packet.fits(&rule.tests) != Fit::None && !(drops && rule.tests.iter().any(|test| self.is_dark(test)))
    }

    /// Whether a rule names those who have a property that no forward can know of its packets.
    fn is_dark(&self, test: &Test) -> bool {
        let reply = self.packet.reply;
        !test.negated
            && match test.what {
                What::Unknown => true,
                What::Destinations(_) => self.hides && reply && self.packet.fits_one(test) == Fit::Some,
                What::Sources(_) => self.hides && !reply && self.packet.fits_one(test) == Fit::Some,
                What::DestinationPorts(_) => reply,
                What::SourcePorts(_) => !reply,
                _ => false,
            }
    }
}

/// What may come to `base`: requests, answers, and requests of those who are not listed.
fn coming(base: &BaseChain, family: Family, hull: Option<&Hull>) -> Vec<Coming> {
    let mut coming = Vec::new();
    let (before, after) = (is_pre_dnat(base), is_post_snat(base));
    for leg in reaches(base) {
        let mut packet = any_packet(family, base, leg);
        let hides = if packet.reply { before } else { after && !base.translates };
        let Some(hull) = hull else {
            coming.push(Coming { packet, hides });
            continue;
        };
        packet.original.destinations = Some([hull.listen.clone()].into());
        packet.original.port = Some(hull.listen_ports.clone());
        if packet.reply {
            // At the very end the source is the gateway.
            packet.sources = Some([if after { hull.listen.clone() } else { hull.targets.clone() }].into());
            packet.source_port = Some(if after { hull.listen_ports.clone() } else { hull.target_ports.clone() });
        } else {
            let (to, ports) =
                if before { (&hull.listen, &hull.listen_ports) } else { (&hull.targets, &hull.target_ports) };
            packet.destinations = Some([to.clone()].into());
            packet.destination_port = Some(ports.clone());
        }
        // Sources may be translated, or not.
        if hull.masquerades {
            let own = Some([hull.listen.clone()].into()).filter(|_| hides);
            let states = match packet.states {
                Some(states) if states.contains(&State::Established) => Some(MASQUERADED),
                states => states,
            };
            coming.push(Coming { packet: Packet { own, states, ..packet.clone() }, hides });
        }
        if let Some(clients) = &hull.seen {
            if packet.reply {
                packet.destinations = Some([clients.clone()].into());
            }
            coming.push(Coming { packet, hides: false });
        } else if !packet.reply {
            // Those who are not listed are hidden by nobody.
            coming.push(Coming { packet, hides: false });
        }
    }
    coming
}
