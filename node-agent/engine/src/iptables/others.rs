//! Reads what else on this host may decide about packets of ours: tables of nftables that iptables knows nothing of,
//! the other variant of iptables, and the tables of our own variant in which we have no rules.
//!
//! Never an error: rules are programmed whatever others have. What cannot be read is told.

use std::collections::BTreeMap;

use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{FirewallTable, HostFirewall, nft, xtables};
use sallyport_ruleset::iptables::rule::Table;
use sha2::{Digest as _, Sha256};

use super::apart::{left_out, missing};
use super::shape::Shape;
use super::{Variant, has_family, legacy_tables};
use crate::command;
use crate::netlink::{self, Error};
use crate::nftables::{Chain, NftFamily, Print, Reader};

/// The tables of iptables, all of which may drop packets.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// Where forwarded packets pass (`NF_INET_PRE_ROUTING`, `_FORWARD`, `_POST_ROUTING`, `_INGRESS`,
/// `include/uapi/linux/netfilter.h`).
const HOOKS: [u32; 4] = [0, 2, 4, 5];

/// A table of nftables with a base chain that forwarded packets pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InTheWay {
    family: NftFamily,
    table: String,
    /// Whether iptables made it, so that iptables can read it.
    of_iptables: bool,
}

/// What was decoded before.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// Tables of nftables, by one of their names and how they are read.
    kept: BTreeMap<InTheWay, (Print, HostFirewall)>,
    /// How often a program was run.
    pub(super) programs: u64,
}

impl Others {
    /// Everything, with the tables `own` of `variant` among it. `shape` is what nftables holds, if that was read already.
    pub(super) async fn read(&mut self, variant: Variant, own: HostFirewall, shape: Option<Shape>) -> HostFirewall {
        let mut firewall = own;
        let shape = shape.map_or_else(list, Ok).unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot list the chains of nftables");
            firewall.unread.push("the chains and sets of nftables".to_owned());
            Shape::default()
        });
        let in_the_way = in_the_way(&shape);
        for table in in_the_way.iter().filter(|table| !table.of_iptables) {
            self.add(&mut firewall, &shape, std::slice::from_ref(table), native(table)).await;
        }
        for family in Family::BOTH.into_iter().filter(|family| has_family(*family)) {
            let legacy = legacy_tables(family).unwrap_or_else(|error| {
                firewall.unread.push(format!("which tables iptables-legacy has for {family}: {error}"));
                Vec::new()
            });
            let of_family: Vec<InTheWay> = in_the_way
                .iter()
                .filter(|table| table.of_iptables && table.family == NftFamily::from(family))
                .cloned()
                .collect();
            add_sets(&mut firewall, &shape, &of_family);
            let exists = |of: Variant, name: &str| match of {
                Variant::Legacy => legacy.iter().any(|table| table == name),
                Variant::Nft => of_family.iter().any(|table| table.table == name),
            };
            let is_own = |name: &&str| Table::ALL.iter().any(|table| table.name() == *name);
            for name in TABLES.into_iter().filter(|name| exists(variant, name) && !is_own(name)) {
                let of_nft = of_family.iter().position(|table| variant == Variant::Nft && table.table == name);
                let tables = of_nft.map(|at| &of_family[at..=at]).unwrap_or_default();
                self.add(&mut firewall, &shape, tables, saved(variant, family, true, &["-t", name])).await;
            }
            let other = variant.other();
            if TABLES.iter().any(|name| exists(other, name)) {
                let tables = if other == Variant::Nft { of_family.as_slice() } else { &[] };
                self.add(&mut firewall, &shape, tables, saved(other, family, false, &[])).await;
            }
        }
        // What is gone is not kept.
        self.kept.retain(|table, _| in_the_way.contains(table));
        firewall
    }

    /// Adds what `tables` of nftables hold: what was kept of them if they are as they were, else what `decode` finds.
    async fn add(
        &mut self,
        firewall: &mut HostFirewall,
        shape: &Shape,
        tables: &[InTheWay],
        decode: impl Future<Output = HostFirewall>,
    ) {
        let print = print(shape, tables);
        let kept = tables.first().and_then(|table| self.kept.get(table)).filter(|(of, _)| print == Some(*of));
        let found = if let Some((_, kept)) = kept {
            kept.clone()
        } else {
            self.programs += 1;
            let found = decode.await;
            // What is held against what was printed must be of the moment of that. What could not be read may be readable
            // without any change of rules, as when a program is installed.
            let is_current = found.unread.is_empty() && is_current(shape).unwrap_or(false);
            if let (Some(table), Some(print), true) = (tables.first(), print, is_current) {
                self.kept.insert(table.clone(), (print, found.clone()));
            }
            found
        };
        firewall.tables.extend(found.tables);
        firewall.unread.extend(found.unread);
    }
}

/// A hash of what tables hold; `None` if what was decoded from equal ones may be wrong, or if they are none of nftables.
fn print(shape: &Shape, tables: &[InTheWay]) -> Option<Print> {
    let of_all = || {
        let reader = Reader::open()?;
        let mut hash = Sha256::new();
        for table in tables {
            match shape.print(&reader, table.family, &table.table)? {
                Some(print) => hash.update(print),
                None => return Ok(None),
            }
        }
        Ok::<_, Error>(is_current(shape)?.then(|| hash.finalize().into()))
    };
    if tables.is_empty() { None } else { of_all().ok().flatten() }
}

fn is_current(shape: &Shape) -> Result<bool, Error> {
    Ok(Reader::open()?.generation()? == shape.generation)
}

async fn saved(variant: Variant, family: Family, own: bool, arguments: &[&str]) -> HostFirewall {
    let mut found = HostFirewall::default();
    match command::run(variant.save_program(family), arguments, "").await {
        Ok(save) => {
            if let Some(lacks) = missing(&save).or_else(|| left_out(&save).map(str::to_owned)) {
                found.unread.push(format!("all rules of {}: {lacks}", variant.program(family)));
            }
            found.tables = xtables::parse(&save, family, variant.holder(family, own));
        }
        Err(error) => found.unread.push(format!("the rules of {}: {error}", variant.program(family))),
    }
    found
}

/// Names tables of iptables with rules that iptables shows without the sets that they ask.
fn add_sets(firewall: &mut HostFirewall, shape: &Shape, of_iptables: &[InTheWay]) {
    for table in of_iptables.iter().filter(|table| shape.has_sets(table.family, &table.table)) {
        let (nft, name) = (table.family.name(), &table.table);
        firewall.unread.push(format!(
            "what the sets in table {nft} {name} do there, which iptables leaves out (`nft list table {nft} {name}` shows it)"
        ));
    }
}

async fn native(table: &InTheWay) -> HostFirewall {
    let mut found = HostFirewall::default();
    match show(table).await {
        Ok(there) => found.tables.extend(there.map(|there| but_for_those_of_iptables(there, table.family))),
        Err(why) => {
            found.unread.push(format!("table {} {} of nftables: {why}", table.family.name(), table.table));
        }
    }
    found
}

/// Of a table that iptables shows as well, only the chains that it does not: rules of iptables are no more than names to nft.
fn but_for_those_of_iptables(mut found: FirewallTable, family: NftFamily) -> FirewallTable {
    let usual = match found.name.as_str() {
        "raw" => [-300; 2],
        "mangle" => [-150; 2],
        "nat" => [-100, 100],
        "filter" => [0; 2],
        _ => [50; 2],
    };
    found.base.retain(|base| !is_of_iptables(family, &found.name, &base.name) || !usual.contains(&base.priority));
    found
}

fn is_of_iptables(family: NftFamily, table: &str, chain: &str) -> bool {
    let builtin = matches!(chain, "PREROUTING" | "FORWARD" | "POSTROUTING");
    family != NftFamily::Inet && builtin && TABLES.contains(&table)
}

/// `None` if it is gone meanwhile.
async fn show(table: &InTheWay) -> Result<Option<FirewallTable>, String> {
    let (family, name) = (table.family.name(), &table.table);
    // The kernel takes any name, nft only such.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || !name.chars().all(plain) {
        return Err("nft cannot be asked for a table of that name".to_owned());
    }
    match command::run("nft", &["--json", "list", "table", family, name], "").await {
        Ok(json) => nft::parse(&json, family, name).map(Some).map_err(|error| error.to_string()),
        Err(command::Error::Failed { stderr, .. }) if stderr.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// What nftables holds but for rules, which costs next to nothing, so that no rule is read where nobody has any.
fn list() -> Result<Shape, Error> {
    netlink::whole(|| Shape::read(&Reader::open()?))
}

fn in_the_way(shape: &Shape) -> Vec<InTheWay> {
    let mut found: Vec<InTheWay> = Vec::new();
    for (family, table, chains) in shape.tables() {
        found.extend(chains.iter().filter_map(|chain| of_chain(family, table, chain)));
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn of_chain(family: NftFamily, table: &str, chain: &Chain) -> Option<InTheWay> {
    chain.base.as_ref().filter(|base| HOOKS.contains(&base.hook))?;
    let of_iptables = is_of_iptables(family, table, &chain.name);
    Some(InTheWay { family, table: table.to_owned(), of_iptables })
}
