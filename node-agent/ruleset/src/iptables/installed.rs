//! `iptables-save` text → what of ours is in the kernel, and the foreign rules around it.
//!
//! Splits lines by chain and no more: our rules are compared as text, so nothing is parsed that could be misread.

use std::collections::{BTreeMap, BTreeSet};

use sallyport_api::id::RulesDigest;

use crate::chain::is_ours;
use crate::family::Family;
use crate::firewall::HostFirewall;
use crate::iptables::op::{Op, Step};
use crate::iptables::rule::{Chain, Chains, Line, Ruleset, Table, digest_of};

/// What stands for the rules of a chain of ours that cannot be read: equal to no rule.
pub const UNREADABLE: &str = "(cannot be read)";

/// What stands for the rules of a chain of others that were not read since no packet of ours gets there: for whoever comes there
/// all the same, a rule that asks nobody knows what, and leaves the verdict to somebody else.
pub const UNREAD: &str = "-m unread -j QUEUE";

/// One table as the kernel holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledTable {
    /// Our chains.
    pub ours: Chains,
    /// Rules of the chains that are not ours, our jumps in them included: of the built-in chains, and of those to which they lead.
    /// Where none of the packets that [matter](crate::iptables::shadow::Packets::met_in_nat) may get, it is [`UNREAD`].
    pub foreign: BTreeMap<String, Vec<String>>,
    /// Why the table cannot be read as a whole, and what helps. Our chains in it were read one at a time then, and of
    /// `foreign` only what leads to them is known.
    pub unreadable: Option<String>,
}

/// The tables of one family as the kernel holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The `filter` table.
    pub filter: InstalledTable,
    /// The `nat` table.
    pub nat: InstalledTable,
    /// The `mangle` table.
    pub mangle: InstalledTable,
}

/// Both families as the kernel holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledRuleset {
    /// IPv4.
    pub v4: Installed,
    /// IPv6.
    pub v6: Installed,
    /// Everything else on the host that may decide about our packets.
    pub firewall: HostFirewall,
}

impl InstalledRuleset {
    /// Keeps the chains that are equal to those of `desired` where these are.
    pub(crate) fn share(&mut self, desired: &Ruleset) {
        for family in Family::BOTH {
            for table in Table::ALL {
                let wanted = desired.family(family).table(table);
                for (name, chain) in &mut self.family_mut(family).table_mut(table).ours {
                    if let Some(same) = wanted.get(name).filter(|wanted| *wanted == chain) {
                        chain.clone_from(same);
                    }
                }
            }
        }
    }

    /// The tables of `family`.
    #[must_use]
    pub fn family(&self, family: Family) -> &Installed {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The tables of `family`, to change them.
    pub fn family_mut(&mut self, family: Family) -> &mut Installed {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Does what a kernel does with a step of a change.
    pub fn apply(&mut self, op: &Op) {
        self.family_mut(op.family).table_mut(op.table).apply(op.table, &op.step);
    }

    /// The digest of our rules as they are in the kernel, equal to [`Ruleset::digest`] of the same rules.
    #[must_use]
    pub fn digest(&self) -> RulesDigest {
        digest_of(|family, table| &self.family(family).table(table).ours)
    }

    /// The rules by which forwards are delivered, in whatever chain.
    #[must_use]
    pub fn delivered(&self) -> Delivered<'_> {
        let rules = |family| self.family(family).nat.ours.values().flatten().map(Line::as_str).collect();
        Delivered { v4: rules(Family::V4), v6: rules(Family::V6) }
    }

    /// Whether every rule of `alone`, a rule set of one forward, that is this forward's own is there, in whatever chain.
    #[must_use]
    pub fn delivers(&self, alone: &Ruleset) -> bool {
        let delivered = self.delivered();
        let mut families = Family::BOTH.into_iter().filter(|family| owned(alone, *family).next().is_some()).peekable();
        families.peek().is_some() && families.all(|family| delivered.holds(alone, family))
    }

    /// Why tables cannot be read, of those that cannot.
    pub fn unreadable(&self) -> impl Iterator<Item = &str> {
        self.v4.unreadable().chain(self.v6.unreadable())
    }

    /// Our rules, as they are in the kernel.
    #[must_use]
    pub fn ours(&self) -> Ruleset {
        let mut ours = Ruleset::default();
        for (family, table) in Family::BOTH.into_iter().flat_map(|family| Table::ALL.map(|table| (family, table))) {
            ours.family_mut(family).table_mut(table).clone_from(&self.family(family).table(table).ours);
        }
        ours
    }
}

/// The rules of the `nat` tables that are ours, to look forwards up in.
#[derive(Debug)]
pub struct Delivered<'a> {
    v4: BTreeSet<&'a str>,
    v6: BTreeSet<&'a str>,
}

impl Delivered<'_> {
    /// Whether `alone`, a rule set of one forward, has rules of its own in `family`, and all of them are there.
    #[must_use]
    pub fn holds(&self, alone: &Ruleset, family: Family) -> bool {
        let there = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let mut own = owned(alone, family).peekable();
        own.peek().is_some() && own.all(|rule| there.contains(rule.as_str()))
    }
}

/// The rules of one family that belong to a forward.
fn owned(ruleset: &Ruleset, family: Family) -> impl Iterator<Item = &Line> {
    ruleset.family(family).nat.values().flatten().filter(|rule| rule.owner().is_some())
}

impl Installed {
    /// Reads the output of `iptables-save`; tables other than ours are passed over.
    #[must_use]
    pub fn parse(save: &str) -> Self {
        let mut installed = Self::default();
        let mut table = None;
        for line in save.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.name() == name);
            } else if let Some(table) = table {
                installed.table_mut(table).read(line);
            }
        }
        installed
    }

    /// One of the tables.
    #[must_use]
    pub fn table(&self, table: Table) -> &InstalledTable {
        match table {
            Table::Filter => &self.filter,
            Table::Nat => &self.nat,
            Table::Mangle => &self.mangle,
        }
    }

    /// One of the tables, to change it.
    pub fn table_mut(&mut self, table: Table) -> &mut InstalledTable {
        match table {
            Table::Filter => &mut self.filter,
            Table::Nat => &mut self.nat,
            Table::Mangle => &mut self.mangle,
        }
    }

    /// One of the tables, without the others.
    #[must_use]
    pub fn take(self, table: Table) -> InstalledTable {
        match table {
            Table::Filter => self.filter,
            Table::Nat => self.nat,
            Table::Mangle => self.mangle,
        }
    }

    /// Whether every built-in chain that leads to us does, in the tables without which nothing is forwarded.
    #[must_use]
    pub fn is_hooked(&self) -> bool {
        Table::ALL.into_iter().filter(|table| table.is_needed()).all(|table| {
            table.hooks().iter().all(|(builtin, ours)| {
                let there = self.table(table);
                !there.ours.contains_key(*ours) || !there.jumps(builtin, ours).is_empty()
            })
        })
    }

    /// Why tables cannot be read, of those that cannot, and without which nothing is forwarded.
    pub fn unreadable(&self) -> impl Iterator<Item = &str> {
        let needed = Table::ALL.into_iter().filter(|table| table.is_needed());
        needed.filter_map(|table| self.table(table).unreadable.as_deref())
    }
}

impl InstalledTable {
    /// Reads `:CHAIN POLICY [0:0]` or `-A CHAIN …`; anything else (comments, COMMIT) is no rule.
    fn read(&mut self, line: &str) {
        if let Some(declaration) = line.strip_prefix(':') {
            self.declare(declaration.split(' ').next().unwrap_or_default());
        } else if let Some(rule) = line.strip_prefix("-A ")
            && let Some((name, rule)) = rule.split_once(' ')
        {
            self.push(name, rule);
        }
    }

    /// Makes the chain `name`, if it is not there.
    fn declare(&mut self, name: &str) {
        if is_ours(name) {
            self.ours.entry(name.to_owned()).or_default();
        } else {
            self.foreign.entry(name.to_owned()).or_default();
        }
    }

    /// Adds a rule at the end of the chain `name`.
    fn push(&mut self, name: &str, rule: &str) {
        self.declare(name);
        if let Some(rules) = self.ours.get_mut(name) {
            rules.push(Line::read(rule));
        } else if let Some(rules) = self.foreign.get_mut(name) {
            rules.push(rule.to_owned());
        }
    }

    /// Does to this table what a kernel does with `step`.
    fn apply(&mut self, table: Table, step: &Step) {
        let foreign = &mut self.foreign;
        let mut remove = |builtin: &str, chain: &str| {
            if let Some(rules) = foreign.get_mut(builtin) {
                rules.retain(|rule| *rule != format!("-j {chain}"));
            }
        };
        match step {
            Step::Replace { chain, rules } => drop(self.ours.insert(chain.clone(), rules.clone())),
            Step::Flush { chain } => drop(self.ours.insert(chain.clone(), Chain::default())),
            Step::Delete { chain } => drop(self.ours.remove(chain)),
            Step::Jump { builtin, chain, before, .. } => {
                remove(builtin, chain);
                let rules = self.foreign.entry((*builtin).to_owned()).or_default();
                rules.insert(before.unwrap_or(rules.len()), format!("-j {chain}"));
            }
            Step::Unjump { builtin, chain, .. } => remove(builtin, chain),
            Step::Unhook { chain } => {
                for (builtin, _) in table.hooks().iter().filter(|(_, ours)| ours == chain) {
                    remove(builtin, chain);
                }
            }
        }
    }

    /// Whether a rule that is not our own plain jump leads to `chain`, which is ours.
    #[must_use]
    pub fn is_used_by_others(&self, chain: &str) -> bool {
        let plain = |name: &str| Table::ALL.into_iter().flat_map(Table::hooks).any(|hook| *hook == (name, chain));
        self.foreign.iter().any(|(name, rules)| {
            rules.iter().any(|rule| match rule.rsplit_once(' ') {
                Some(("-j", target)) => target == chain && !plain(name),
                Some((_, target)) => target == chain,
                None => false,
            })
        })
    }

    /// Those of our chains that a built-in chain of `table` jumps to.
    #[must_use]
    pub fn hooked(&self, table: Table) -> Vec<&'static str> {
        let mut hooked: Vec<&'static str> = table
            .hooks()
            .iter()
            .filter(|(builtin, ours)| !self.jumps(builtin, ours).is_empty())
            .map(|(_, ours)| *ours)
            .collect();
        hooked.dedup();
        hooked
    }

    /// Positions, from 0, of the jumps to `ours` in the chain `builtin`.
    pub(crate) fn jumps(&self, builtin: &str, ours: &str) -> Vec<usize> {
        let jump = format!("-j {ours}");
        self.foreign
            .get(builtin)
            .map(|rules| rules.iter().enumerate().filter(|(_, rule)| **rule == jump).map(|(at, _)| at).collect())
            .unwrap_or_default()
    }
}
