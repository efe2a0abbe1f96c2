//! Reads a table of nftables chain by chain, and decodes only rules that were not seen before.
//!
//! ```text
//! chains, rules (bytes of the kernel) ─ print ─► known? ─► text ─ may one of our packets meet it? ─► next chains
//!                                                  └ no ─► iptables-nft -S CHAIN, or iptables-nft-save
//! ```
//! Equal bytes mean equal rules, so what was decoded once stays true. Chains of `nat` that no packet of ours can get to are not
//! read. Whatever is not plainly of iptables is left to [`apart`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sallyport_ruleset::chain::is_ours;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{HostFirewall, xtables};
use sallyport_ruleset::iptables::installed::{Installed, InstalledTable, UNREAD};
use sallyport_ruleset::iptables::rule::{Line, Table};
use sallyport_ruleset::iptables::shadow::Met;

use super::shape::Shape;
use super::{Variant, apart};
use crate::command;
use crate::netlink::Error as NetlinkError;
use crate::nftables::{Base, Chain, NftFamily, Print, Reader, Rule};
use crate::{Error, netlink};

/// To start a program costs as much as to decode so many rules.
const START: u32 = 256;
/// Rules that are no longer there are kept until they are as many as those that are, and so many.
const SPARE: usize = 256;

/// The rules of one table that were decoded.
#[derive(Debug, Default)]
pub(super) struct Known {
    rules: HashMap<Print, Decoded>,
    /// Those that lead to chains which were not read when the table last was.
    left_out: Vec<Print>,
    /// How often a program was run to decode some.
    pub(super) programs: u64,
}

#[derive(Debug)]
struct Decoded {
    text: Arc<str>,
    /// Whether a packet of ours may meet it, once that was asked.
    met: Option<bool>,
}

/// What comes of a look.
pub(super) enum Look {
    Seen(InstalledTable, HostFirewall),
    /// Somebody changed something meanwhile.
    Moved,
    /// It has what iptables did not make, or cannot show.
    Apart,
}

/// Why there is nothing to see.
enum Stop {
    Moved,
    Apart,
    Failed(Error),
}

impl From<netlink::Error> for Stop {
    fn from(error: netlink::Error) -> Self {
        match error {
            NetlinkError::Interrupted { .. } => Self::Moved,
            error => Self::Failed(error.into()),
        }
    }
}

impl Known {
    /// Other packets matter from now on. Whether one of them may get to a chain that was not read.
    pub(super) fn attend_to(&mut self, met: &Met) -> bool {
        for rule in self.rules.values_mut() {
            rule.met = None;
        }
        let Self { rules, left_out, .. } = self;
        left_out.iter().filter_map(|print| rules.get(print)).any(|rule| met.may_meet(&rule.text))
    }

    /// Reads `table` of `family`, whose chains are in `shape`. What was seen is true only if the generation is still that of
    /// `shape` afterwards. Without `met`, and everywhere but in `nat`, every chain is read.
    pub(super) async fn look(
        &mut self,
        (family, table): (Family, Table),
        shape: &Shape,
        reader: &Reader,
        met: Option<&Met>,
    ) -> Result<Look, Error> {
        let chains = shape.chains(NftFamily::from(family), table.name());
        self.left_out.clear();
        // Where nothing is forwarded yet, what might come is followed everywhere.
        let met = met.filter(|met| table == Table::Nat && !met.is_empty());
        let mut walk = Walk { known: self, family, table, shape, reader, met, chains, read: BTreeMap::new() };
        match walk.whole().await {
            Ok(()) => {
                let (found, firewall) = walk.found();
                let (left_out, read) = (walk.left_out(), walk.read);
                self.left_out = left_out;
                if self.rules.len() > 2 * read.values().map(Vec::len).sum::<usize>() + SPARE {
                    let seen: HashSet<Print> = read.values().flatten().map(|rule| rule.print).collect();
                    self.rules.retain(|print, _| seen.contains(print));
                }
                Ok(Look::Seen(found, firewall))
            }
            Err(Stop::Moved) => Ok(Look::Moved),
            Err(Stop::Apart) => Ok(Look::Apart),
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

/// The built-in chains of `table`, in the order in which `iptables-save` prints them.
fn builtin(table: Table) -> &'static [&'static str] {
    match table {
        Table::Filter => &["INPUT", "FORWARD", "OUTPUT"],
        Table::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        Table::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    }
}

/// Whether iptables would take `base` for its own chain `name`.
fn is_builtin(table: Table, name: &str, base: &Base) -> bool {
    let (kind, priority) = match (table, name) {
        (Table::Filter, _) => ("filter", 0),
        (Table::Nat, "PREROUTING" | "OUTPUT") => ("nat", -100),
        (Table::Nat, _) => ("nat", 100),
        (Table::Mangle, "OUTPUT") => ("route", -150),
        (Table::Mangle, _) => ("filter", -150),
    };
    let hook = match name {
        "PREROUTING" => 0,
        "INPUT" => 1,
        "FORWARD" => 2,
        "OUTPUT" => 3,
        _ => 4,
    };
    let is_named = builtin(table).contains(&name);
    is_named && base.kind == kind && base.hook == hook && base.priority.cast_signed() == priority
}

/// The way through a table.
struct Walk<'a> {
    known: &'a mut Known,
    family: Family,
    table: Table,
    shape: &'a Shape,
    reader: &'a Reader,
    met: Option<&'a Met>,
    chains: &'a [Chain],
    read: BTreeMap<String, Vec<Rule>>,
}

impl Walk<'_> {
    /// Reads all that matters.
    async fn whole(&mut self) -> Result<(), Stop> {
        let odd = |chain: &Chain| chain.base.as_ref().is_some_and(|base| !is_builtin(self.table, &chain.name, base));
        let (family, table) = (NftFamily::from(self.family), self.table.name());
        let is_usual = !self.shape.has_sets(family, table) && !self.shape.is_dormant(family, table);
        if !is_usual || self.chains.iter().any(odd) {
            return Err(Stop::Apart);
        }
        // Where all may matter it may also be what cannot be read, even if nothing leads there.
        let is_first = |chain: &&Chain| self.met.is_none() || chain.base.is_some() || is_ours(&chain.name);
        let first = self.chains.iter().filter(is_first);
        self.follow(first.map(|chain| chain.name.clone()).collect()).await?;
        if self.is_led_to_from_elsewhere() {
            // By a rule of a chain that no packet of ours gets to, which keeps a chain of ours all the same.
            let all = self.chains.iter().filter(|chain| !self.read.contains_key(&chain.name));
            self.follow(all.map(|chain| chain.name.clone()).collect()).await?;
        }
        Ok(())
    }

    /// Reads these chains, and those to which they lead.
    async fn follow(&mut self, mut next: BTreeSet<String>) -> Result<(), Stop> {
        while !next.is_empty() {
            for chain in &next {
                let rules = self.rules(chain)?;
                if !rules.iter().all(|rule| rule.is_of_iptables) {
                    return Err(Stop::Apart);
                }
                self.read.insert(chain.clone(), rules);
            }
            self.decode(&next).await?;
            let mut found = BTreeSet::new();
            for rule in next.iter().filter(|chain| !is_ours(chain)).filter_map(|chain| self.read.get(chain)).flatten() {
                let Some(chain) = &rule.leads_to else { continue };
                if !is_ours(chain) && !self.read.contains_key(chain) && self.known.may_be_met(rule, self.met) {
                    found.insert(chain.clone());
                }
            }
            next = found;
        }
        Ok(())
    }

    fn rules(&self, chain: &str) -> Result<Vec<Rule>, netlink::Error> {
        self.reader.rules(NftFamily::from(self.family), self.table.name(), Some(chain))
    }

    /// Whether more lead to a chain of ours than the rules that were read.
    fn is_led_to_from_elsewhere(&self) -> bool {
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for (chain, rules) in &self.read {
            if is_ours(chain) {
                *uses.entry(chain).or_default() += rules.len();
            }
            for target in rules.iter().filter_map(|rule| rule.leads_to.as_deref()).filter(|chain| is_ours(chain)) {
                *uses.entry(target).or_default() += 1;
            }
        }
        let seen = |name: &str| u32::try_from(uses.get(name).copied().unwrap_or_default()).unwrap_or(u32::MAX);
        self.chains.iter().any(|chain| is_ours(&chain.name) && chain.uses != seen(&chain.name))
    }

    /// Makes the rules of `chains` known.
    async fn decode(&mut self, chains: &BTreeSet<String>) -> Result<(), Stop> {
        let is_new = |chain: &&String| self.read[*chain].iter().any(|rule| !self.known.rules.contains_key(&rule.print));
        let new: Vec<&String> = chains.iter().filter(is_new).collect();
        let all: u32 = self.chains.iter().map(|chain| chain.uses).sum();
        let few = u32::try_from(new.len()).is_ok_and(|new| new.saturating_mul(START) < all);
        let mut moved = false;
        if few {
            for chain in new {
                let rules = self.run(Variant::Nft.program(self.family), &["-S", chain]).await?;
                moved |= self.learn(&format!("*{}\n{rules}", self.table.name()), &[chain])?;
            }
        } else if !new.is_empty() {
            let save = self.run(Variant::Nft.save_program(self.family), &[]).await?;
            if apart::lacks(&save, self.table).is_some() || apart::left_out(&save).is_some() {
                return Err(Stop::Apart);
            }
            moved |= self.learn(&save, &new)?;
        }
        if moved { Err(Stop::Moved) } else { Ok(()) }
    }

    async fn run(&mut self, program: &'static str, arguments: &[&str]) -> Result<String, Stop> {
        self.known.programs += 1;
        let arguments: Vec<&str> = ["-t", self.table.name()].iter().chain(arguments).copied().collect();
        match command::run(program, &arguments, "").await {
            Ok(text) => Ok(text),
            // The chain may be gone, or have what this program cannot show.
            Err(command::Error::Failed { .. }) if self.has_moved()? => Err(Stop::Moved),
            Err(command::Error::Failed { .. }) => Err(Stop::Apart),
            Err(error) => Err(Stop::Failed(error.into())),
        }
    }

    fn has_moved(&self) -> Result<bool, netlink::Error> {
        Ok(self.reader.generation()? != self.shape.generation)
    }

    /// Whether the table is still the one of the shape, and not another of its name.
    fn is_same_table(&self) -> Result<bool, netlink::Error> {
        let (family, name) = (NftFamily::from(self.family), self.table.name());
        let now = self.reader.tables(family)?.into_iter().find(|table| table.name == name);
        let handle = now.filter(|table| !table.is_dormant).and_then(|table| table.handle);
        Ok(handle.is_some() && handle == self.shape.handle(family, name))
    }

    /// Takes over the rules of `chains` from a save, of those that nobody changed since they were read. Whether
    /// somebody did change one.
    fn learn(&mut self, text: &str, chains: &[&String]) -> Result<bool, Stop> {
        let read = Installed::parse(text).take(self.table);
        let (moved, mut any) = (self.has_moved()?, false);
        let is_other = moved && !self.is_same_table()?;
        for chain in chains {
            let rules = &self.read[*chain];
            // No rule of a table gets the handle of another, and none is changed in its place.
            let now = if moved { Some(self.rules(chain)?) } else { None };
            let handles = |rules: &[Rule]| rules.iter().map(|rule| rule.handle).collect::<Vec<_>>();
            if is_other || now.is_some_and(|now| handles(&now) != handles(rules)) {
                any = true;
                continue;
            }
            let ours = read.ours.get(*chain).into_iter().flatten().map(Line::text);
            let others = read.foreign.get(*chain).into_iter().flatten().map(|rule| Arc::from(rule.as_str()));
            let texts: Vec<Arc<str>> = ours.chain(others).collect();
            if texts.len() != rules.len() {
                return Err(Stop::Apart);
            }
            for (rule, text) in rules.iter().zip(texts) {
                self.known.rules.insert(rule.print, Decoded { text, met: None });
            }
        }
        Ok(any)
    }

    /// The rules that lead to chains which were not read.
    fn left_out(&self) -> Vec<Print> {
        let others = self.read.iter().filter(|(chain, _)| !is_ours(chain)).flat_map(|(_, rules)| rules);
        let unread = |chain: &String| !is_ours(chain) && !self.read.contains_key(chain);
        others.filter(|rule| rule.leads_to.as_ref().is_some_and(unread)).map(|rule| rule.print).collect()
    }

    fn found(&self) -> (InstalledTable, HostFirewall) {
        let (mut found, mut save) = (InstalledTable::default(), format!("*{}\n", self.table.name()));
        for name in builtin(self.table) {
            let base = self.chains.iter().find(|chain| chain.name == *name).and_then(|chain| chain.base.as_ref());
            let policy = if base.is_some_and(|base| base.drops) { "DROP" } else { "ACCEPT" };
            save.push_str(&format!(":{name} {policy}\n"));
            found.foreign.insert((*name).to_owned(), Vec::new());
        }
        for (chain, rules) in &self.read {
            let texts = rules.iter().map(|rule| &self.known.rules[&rule.print].text);
            if is_ours(chain) {
                found.ours.insert(chain.clone(), texts.map(|text| Line::read(Arc::clone(text))).collect());
            } else {
                if !builtin(self.table).contains(&chain.as_str()) {
                    save.push_str(&format!(":{chain} -\n"));
                }
                for text in texts.clone() {
                    save.extend(["-A ", chain, " ", text, "\n"]);
                }
                found.foreign.insert(chain.clone(), texts.map(|text| text.as_ref().to_owned()).collect());
                let unread = rules.iter().filter_map(|rule| rule.leads_to.as_ref());
                for chain in unread.filter(|chain| !is_ours(chain) && !self.read.contains_key(*chain)) {
                    found.foreign.entry(chain.clone()).or_insert_with(|| {
                        save.extend(["-A ", chain, " ", UNREAD, "\n"]);
                        vec![UNREAD.to_owned()]
                    });
                }
            }
        }
        let mut tables = xtables::parse(&save, self.family, Variant::Nft.holder(self.family, true));
        let others = |chain: &&Chain| !self.read.contains_key(&chain.name);
        for table in &mut tables {
            table.used |= self.chains.iter().filter(others).any(|chain| chain.uses > 0);
        }
        (found, HostFirewall { tables, unread: Vec::new() })
    }
}

impl Known {
    /// Whether a packet of ours may meet `rule`, which is known.
    fn may_be_met(&mut self, rule: &Rule, met: Option<&Met>) -> bool {
        let Some(met) = met else { return true };
        let Some(rule) = self.rules.get_mut(&rule.print) else { return true };
        *rule.met.get_or_insert_with(|| met.may_meet(&rule.text))
    }
}
