//! The forwarding table → chains of iptables.
//!
//! ```text
//! nat PREROUTING, OUTPUT ─► SALLY-PRE ─► SALLY-M (masquerade) ─► SALLY-MT (TCP) ─► port buckets ─► DNAT
//!                                    │                       └─► SALLY-MU (UDP) ─► …
//!                                    └─► SALLY-P (preserve)  ─► SALLY-PT, SALLY-PU ─► …
//! nat POSTROUTING ─► SALLY-POST: masquerade what SALLY-M marked
//! filter FORWARD ─► SALLY-FWD: accept what either marked, both directions
//! mangle INPUT ─► SALLY-IN: drop what targets of masqueraded forwards sent and connection tracking cannot place
//! ```
//! A new connection costs a few comparisons whatever the number of forwards; an established one costs one. The mark
//! says which connections are ours, so `filter` and `POSTROUTING` hold a constant number of rules.
//!
//! A segment out of its connection's window, as one that was sent again and comes late, is `INVALID`, so its address is not put
//! back: it comes to the gateway itself, whose TCP knows no such connection and would reset it. The host's other packets meet one
//! rule of `SALLY-IN`.

mod forward;
mod port_rules;
mod unplaced;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sallyport_api::Protocol;
use sallyport_api::names::MARK_OURS;

use self::forward::{ForwardRules, Nat};
use self::port_rules::PortRules;
use self::unplaced::Unplaced;
use crate::family::Family;
use crate::firewall::packet::protocol_name;
use crate::iptables::rule::{Action, Chain, Line, Rule, Rules, Ruleset, Table, chain};
use crate::table::{Entry, ForwardingTable, TableChange};

/// The rules by which a kernel does what `table` says.
#[must_use]
pub fn lower(table: &ForwardingTable) -> Ruleset {
    let mut layout = Layout::default();
    layout.follow(table, &TableChange::all_of(table));
    layout.ruleset
}

/// A chain of ours: its family, table and name.
pub type ChainId = (Family, Table, String);

/// The chains of a forwarding table, kept from one change of it to the next.
#[derive(Debug, Default)]
pub struct Layout {
    v4: FamilyLayout,
    v6: FamilyLayout,
    ruleset: Ruleset,
    changed: BTreeSet<ChainId>,
}

impl Layout {
    /// Follows what `change` has done to `table`: only chains in which something has changed are made again.
    pub fn follow(&mut self, table: &ForwardingTable, change: &TableChange) {
        let before = if change.is_new { std::mem::take(self) } else { Self::default() };
        for entry in &change.gone {
            self.each_family(table, entry, FamilyLayout::remove);
        }
        for entry in &change.come {
            self.each_family(table, entry, FamilyLayout::place);
        }
        for family in Family::BOTH {
            let (layout, mut written) = self.family(family);
            layout.write(&mut written, &|listen| table.is_here(listen), table.tracking().hides_answers());
        }
        if change.is_new {
            self.changed.extend(before.changed);
            self.changed.extend(before.ruleset.chains().map(|(family, table, name)| (family, table, name.to_owned())));
        }
    }

    /// The rules.
    #[must_use]
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// The chains that may not be what they were when this was last [forgotten](Self::forget_changes).
    #[must_use]
    pub fn changed(&self) -> &BTreeSet<ChainId> {
        &self.changed
    }

    /// What has changed until now is known.
    pub fn forget_changes(&mut self) {
        self.changed.clear();
    }

    fn family(&mut self, family: Family) -> (&mut FamilyLayout, Written<'_>) {
        let (layout, rules) = match family {
            Family::V4 => (&mut self.v4, &mut self.ruleset.v4),
            Family::V6 => (&mut self.v6, &mut self.ruleset.v6),
        };
        (layout, Written { family, rules, changed: &mut self.changed })
    }

    /// Does `what` with the rules of a forward, one family after the other.
    fn each_family(
        &mut self,
        table: &ForwardingTable,
        entry: &Entry,
        what: fn(&mut FamilyLayout, &mut Written<'_>, &Entry, ForwardRules),
    ) {
        let bindings = table.bindings_of(entry);
        for bindings in bindings.chunk_by(|a, b| a.family() == b.family()) {
            let (layout, mut written) = self.family(bindings[0].family());
            what(layout, &mut written, entry, ForwardRules::of(bindings));
        }
    }
}

/// The chains of one family, and note of those that change.
struct Written<'a> {
    family: Family,
    rules: &'a mut Rules,
    changed: &'a mut BTreeSet<ChainId>,
}

impl Written<'_> {
    fn put(&mut self, table: Table, name: &str, rules: Vec<Line>) {
        let chains = self.rules.table_mut(table);
        if chains.get(name).is_some_and(|there| **there == *rules) {
            return;
        }
        chains.insert(name.to_owned(), Chain::from(rules));
        self.changed.insert((self.family, table, name.to_owned()));
    }

    fn has(&self, table: Table, name: &str) -> bool {
        self.rules.table(table).contains_key(name)
    }

    fn remove(&mut self, table: Table, name: &str) {
        if self.rules.table_mut(table).remove(name).is_some() {
            self.changed.insert((self.family, table, name.to_owned()));
        }
    }
}

/// The rules of one family before they are cut into chains.
#[derive(Debug, Default)]
struct FamilyLayout {
    /// Rules by port, for each way of treating the source address and each protocol.
    by_port: BTreeMap<(Nat, Protocol), PortRules>,
    /// Listen addresses in use, and by how many bindings.
    addresses: BTreeMap<Nat, BTreeMap<IpAddr, usize>>,
    unplaced: Unplaced,
}

impl FamilyLayout {
    /// Adds the rules of one forward.
    fn place(&mut self, written: &mut Written<'_>, entry: &Entry, rules: ForwardRules) {
        for (address, protocol) in rules.bound {
            *self.addresses.entry(rules.nat).or_default().entry(address).or_default() += 1;
            self.by_port.entry((rules.nat, protocol)).or_default().bind();
        }
        for (order, (protocol, rule)) in rules.by_port.into_iter().enumerate() {
            self.by_port.entry((rules.nat, protocol)).or_default().insert(entry, order, rule);
        }
        for (name, chain) in rules.own {
            written.put(Table::Nat, &name, chain);
        }
        rules.answers.into_iter().for_each(|answers| self.unplaced.add(answers));
    }

    /// Takes back what [`Self::place`] added.
    fn remove(&mut self, written: &mut Written<'_>, entry: &Entry, rules: ForwardRules) {
        for (address, protocol) in rules.bound {
            if let Some(addresses) = self.addresses.get_mut(&rules.nat)
                && let Some(bindings) = addresses.get_mut(&address)
            {
                *bindings -= 1;
                addresses.retain(|_, bindings| *bindings > 0);
            }
            if let Some(there) = self.by_port.get_mut(&(rules.nat, protocol)) {
                there.unbind();
            }
        }
        for (order, (protocol, rule)) in rules.by_port.into_iter().enumerate() {
            if let Some(there) = self.by_port.get_mut(&(rules.nat, protocol)) {
                there.remove(entry, order, &rule);
            }
        }
        for (name, _) in rules.own {
            written.remove(Table::Nat, &name);
        }
        rules.answers.into_iter().for_each(|answers| self.unplaced.remove(answers));
    }

    /// Cuts the rules into chains; those about answers only if the host `hides` some.
    fn write(&mut self, written: &mut Written<'_>, is_here: &dyn Fn(IpAddr) -> bool, hides: bool) {
        if hides {
            self.unplaced.write(written);
        }
        let (mut pre, mut post, mut forward) = (None, None, None);
        for nat in Nat::BOTH {
            let mut body = Vec::new();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let root = root_chain(nat, protocol);
                if let Some(rules) = self.by_port.get_mut(&(nat, protocol)) {
                    rules.write(written, &root, protocol);
                }
                if self.by_port.get(&(nat, protocol)).is_some_and(PortRules::is_empty) {
                    self.by_port.remove(&(nat, protocol));
                } else if self.by_port.contains_key(&(nat, protocol)) {
                    // -A SALLY-M -p tcp -j SALLY-MT
                    body.push(Rule { protocol: Some(protocol), action: Action::Jump(root), ..Rule::default() }.line());
                }
            }
            let group = format!("SALLY-{}", nat.letter());
            if body.is_empty() {
                written.remove(Table::Nat, &group);
                continue;
            }
            for address in self.addresses.get(&nat).into_iter().flatten().map(|(address, _)| *address) {
                // -A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M; what is merely routed, to one that is not here, is not captured:
                // -A SALLY-PRE -d 10.30.1.100/32 -m addrtype --dst-type LOCAL -j SALLY-M
                let (destination, while_local) = (Some(address), !is_here(address));
                let rule = Rule { destination, while_local, action: Action::Jump(group.clone()), ..Rule::default() };
                pre.get_or_insert_with(Vec::new).push(rule.line());
            }
            // -A SALLY-M -j CONNMARK --set-xmark 0x30000000/0x30000000
            body.insert(0, mark(nat.mark()));
            // No DNAT rule took the connection, so it is not ours: -A SALLY-M -j CONNMARK --set-xmark 0x0/0x30000000
            body.push(mark(0));
            written.put(Table::Nat, &group, body);
            let post = post.get_or_insert_with(Vec::new);
            if nat == Nat::Masquerade {
                // -A SALLY-POST -m conntrack --ctstate DNAT -m connmark --mark 0x30000000/0x30000000 -j MASQUERADE
                post.push(Rule { ours: Some(nat.mark()), action: Action::Masquerade, ..Rule::default() }.line());
            }
            // -A SALLY-FWD -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
            forward = Some(vec![Rule { ours: Some(MARK_OURS), action: Action::Accept, ..Rule::default() }.line()]);
        }
        for (table, name, rules) in
            [(Table::Nat, chain::PRE, pre), (Table::Nat, chain::POST, post), (Table::Filter, chain::FORWARD, forward)]
        {
            match rules {
                Some(rules) => written.put(table, name, rules),
                None => written.remove(table, name),
            }
        }
    }
}

fn mark(bits: u32) -> Line {
    Rule { action: Action::Mark(bits), ..Rule::default() }.line()
}

/// `SALLY-MT`: the root chain of a protocol.
fn root_chain(nat: Nat, protocol: Protocol) -> String {
    let letter = protocol_name(protocol).to_ascii_uppercase();
    format!("SALLY-{}{}", nat.letter(), &letter[..1])
}
