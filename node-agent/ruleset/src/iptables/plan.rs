//! The smallest change from what is installed to what shall be, as values.
//!
//! Only chains that differ are written, each flushed and filled within the transaction of its table; jumps are added
//! and removed in the same transaction. Foreign rules are never named, so they cannot be changed or reordered.

use std::collections::BTreeSet;

use sallyport_api::gateway_pool::FirewallOrder;

use crate::family::Family;
use crate::iptables::installed::{Installed, InstalledRuleset, InstalledTable};
use crate::iptables::jump::{Correction, Places};
use crate::iptables::layout::ChainId;
use crate::iptables::op::{Op, Step};
use crate::iptables::rule::{Chain, Chains, Rules, Ruleset, Table};
use crate::iptables::shadow::Packets;

/// Plans the change from `installed` to `desired`, which is for `packets`.
///
/// *Guarantees*: empty exactly when our chains are equal, every jump stands once, and where it belongs. In a table that is
/// [unreadable](InstalledTable::unreadable) no jump is added, and those that have to go are [unhooked](Step::Unhook); one
/// that is not needed is left as it is while anything is forwarded.
#[must_use]
pub fn plan(desired: &Ruleset, packets: &Packets, installed: &InstalledRuleset) -> Vec<Op> {
    plan_within(Within::All, desired, packets, installed)
}

/// The same where no chain differs but, maybe, those in `changed`: the others are not looked at.
#[must_use]
pub fn plan_changed(
    changed: &BTreeSet<ChainId>,
    desired: &Ruleset,
    packets: &Packets,
    installed: &InstalledRuleset,
) -> Vec<Op> {
    plan_within(Within::Chains(changed), desired, packets, installed)
}

fn plan_within(within: Within<'_>, desired: &Ruleset, packets: &Packets, installed: &InstalledRuleset) -> Vec<Op> {
    let of = |family| {
        let (desired, installed) = (desired.family(family), installed.family(family));
        plan_family(within, desired, installed, &|table| Places {
            packets,
            family,
            table,
            there: installed.table(table),
        })
    };
    Family::BOTH.into_iter().flat_map(of).collect()
}

/// The chains in which something may differ.
#[derive(Clone, Copy)]
enum Within<'a> {
    All,
    Chains(&'a BTreeSet<ChainId>),
}

impl<'a> Within<'a> {
    /// Those that are in `chains`, the chains of one table.
    fn of(
        self,
        family: Family,
        table: Table,
        chains: &'a Chains,
    ) -> Box<dyn Iterator<Item = (&'a String, &'a Chain)> + 'a> {
        match self {
            Self::All => Box::new(chains.iter()),
            Self::Chains(changed) => {
                let here = changed
                    .range((family, table, String::new())..)
                    .take_while(move |(f, t, _)| (*f, *t) == (family, table));
                Box::new(here.filter_map(|(_, _, name)| chains.get_key_value(name)))
            }
        }
    }
}

/// What brings `desired` to a host that has nothing of ours yet, and of whose own rules nothing is known: only the very first
/// place in `FORWARD` is before whatever it drops.
#[must_use]
pub fn render(desired: &Ruleset) -> Vec<Op> {
    let mut packets = Packets::default();
    packets.order = FirewallOrder::First;
    plan(desired, &packets, &InstalledRuleset::default())
}

fn plan_family<'a>(
    within: Within<'a>,
    desired: &'a Rules,
    installed: &'a Installed,
    places: &dyn Fn(Table) -> Places<'a>,
) -> Vec<Op> {
    let mut tables = Table::ALL;
    if desired.is_empty() {
        // Going away, translation stops before acceptance does: a flow is refused rather than dropped half-way.
        tables.reverse();
    }
    let left =
        |table: &Table| !table.is_needed() && installed.table(*table).unreadable.is_some() && !desired.is_empty();
    let steps = |table| {
        let places = places(table);
        let (family, there, chains) = (places.family, places.there, desired.table(table));
        let changed = within.of(family, table, chains).filter(|(chain, rules)| there.ours.get(*chain) != Some(*rules));
        let gone = within.of(family, table, &there.ours).filter(|(chain, _)| !chains.contains_key(*chain));
        let steps = plan_table(chains, changed, gone, places);
        steps.into_iter().map(move |step| Op { family, table, step })
    };
    // Before the chains that they lead to, and as above.
    let unhooked = Table::ALL.into_iter().rev().filter(|table| !left(table)).flat_map(|table| {
        let (family, there) = (places(table).family, installed.table(table));
        let chains = unhooked(table, desired.table(table), there);
        chains.into_iter().map(move |chain| Op { family, table, step: Step::Unhook { chain } })
    });
    unhooked.chain(tables.into_iter().filter(|table| !left(table)).flat_map(steps)).collect()
}

/// The chains of an unreadable table to which jumps lead that have to go.
fn unhooked(table: Table, desired: &Chains, there: &InstalledTable) -> Vec<&'static str> {
    let mut hooked = if there.unreadable.is_some() { there.hooked(table) } else { Vec::new() };
    hooked.retain(|chain| !desired.contains_key(*chain));
    hooked
}

fn plan_table<'a>(
    desired: &Chains,
    changed: impl Iterator<Item = (&'a String, &'a Chain)>,
    gone: impl Iterator<Item = (&'a String, &'a Chain)>,
    places: Places<'_>,
) -> Vec<Step> {
    let there = places.there;
    let mut steps: Vec<Step> =
        changed.map(|(chain, rules)| Step::Replace { chain: chain.clone(), rules: rules.clone() }).collect();
    for (chain, rules) in gone {
        let chain = chain.clone();
        // A chain to which somebody else's rule leads cannot be deleted; emptied, it does nothing.
        match there.is_used_by_others(&chain) {
            true if rules.is_empty() => {}
            true => steps.push(Step::Flush { chain }),
            false => steps.push(Step::Delete { chain }),
        }
    }
    // Where a table cannot be read nobody knows who stands before us: a jump that is there stays, and none is added.
    let hooks = if there.unreadable.is_none() { places.table.hooks() } else { &[] };
    for &(builtin, chain) in hooks {
        let present = there.jumps(builtin, chain).len();
        if desired.contains_key(chain) {
            // Of two equal rules `-D` takes the first, so with two jumps none can be kept where it stands.
            if let Some(Correction { before, misplaced }) = places.correction(builtin, chain) {
                steps.push(Step::Jump { builtin, chain, present, before, misplaced });
            }
        } else if present > 0 {
            steps.push(Step::Unjump { builtin, chain, present });
        }
    }
    steps
}

#[cfg(test)]
mod tests;
