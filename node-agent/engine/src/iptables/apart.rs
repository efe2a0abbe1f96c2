//! Reads what is ours in a table that its save program cannot show, and why it cannot.
//!
//! One native rule of nftables in a table of iptables, or one rule of an extension that is not installed, and
//! `iptables-save` prints nothing of that table, or only its beginning. Our own chains can still be read one at a time
//! by `-S CHAIN`, and who jumps to them is asked of the kernel (nftables), or of `-C` (legacy).

use std::collections::BTreeMap;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, NfTablesMessage, RuleAttribute,
    RuleMessage, SetAttribute, SetMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use netlink_sys::protocols::NETLINK_NETFILTER;
use sallyport_ruleset::chain::is_ours;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::drift::shortened;
use sallyport_ruleset::iptables::installed::{InstalledTable, UNREADABLE};
use sallyport_ruleset::iptables::rule::{Chain, Line, Table};

use super::{Variant, nft_objects};
use crate::command;
use crate::netlink::Socket;
use crate::nftables::{NftFamily, OF_IPTABLES, Reader};
use crate::{Error, netlink};

/// Chains of others that are read one at a time to find the one that cannot be.
const TRIED: usize = 64;
/// Messages of one transaction: so many answers fit into a socket's buffer.
const CHUNK: usize = 128;

/// What a save lacks, if it is not all of the tables that it began: the kernel may hold more than it says.
pub(super) fn missing(save: &str) -> Option<String> {
    let mut open = None;
    for line in save.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            if comment.contains(" is incompatible") {
                return Some(comment.trim().to_owned());
            }
        } else if let Some(table) = line.strip_prefix('*') {
            open = Some(table);
        } else if line == "COMMIT" {
            open = None;
        }
    }
    open.map(|table| format!("table {table} ends without COMMIT"))
}

/// What a save of `table` lacks.
pub(super) fn lacks(save: &str, table: Table) -> Option<String> {
    let is_printed = save.lines().any(|line| line.strip_prefix('*') == Some(table.name()));
    missing(save).or_else(|| (!is_printed).then(|| format!("table {} is not printed", table.name())))
}

/// What a save says of chains that it leaves out although the rest of their table is there: base chains under names that iptables
/// does not use.
pub(super) fn left_out(save: &str) -> Option<&str> {
    save.lines()
        .filter_map(|line| line.strip_prefix('#'))
        .find(|comment| comment.contains(" incompatible base-chains"))
        .map(str::trim)
}

/// What is ours in `table` of `family`, chain by chain; `why` is what its save program said.
pub(super) async fn read(variant: Variant, family: Family, table: Table, why: &str) -> Result<InstalledTable, Error> {
    let contents = Contents::of(variant, family, table).await?;
    let mut ours = BTreeMap::new();
    for chain in contents.chains.iter().filter(|chain| is_ours(chain)) {
        let rules = match show(variant, family, table, chain).await? {
            Ok(text) => rules(&text, chain).into(),
            // Somebody put a rule into it that iptables cannot read either.
            Err(_) => Chain::from(vec![Line::read(UNREADABLE)]),
        };
        ours.insert(chain.clone(), rules);
    }
    let unreadable = Some(contents.explain(why).await);
    Ok(InstalledTable { ours, foreign: contents.jumps, unreadable })
}

/// Whether the kernel calls none of the chains of `table`, whatever is in them.
pub(super) fn is_dormant(family: Family, table: Table) -> Result<bool, netlink::Error> {
    let tables = netlink::whole(|| Reader::open()?.tables(NftFamily::from(family)))?;
    Ok(tables.iter().any(|there| there.name == table.name() && there.is_dormant))
}

/// That it does not, and what helps.
pub(super) fn dormant(variant: Variant, family: Family, table: Table) -> String {
    let (program, table, nft) = (variant.program(family), table.name(), NftFamily::from(family).name());
    format!(
        "table {table} of {program} is dormant, so that the kernel asks none of its rules; run `nft add table {nft} {table}`, which          wakes it up, and all goes on by itself"
    )
}

/// Marks in what was read of a table that holds sets those rules of ours, and towards ours, that are not what iptables takes
/// them for: it leaves out that they ask a set.
pub(super) fn mark_native(read: &mut InstalledTable, family: Family, table: Table) -> Result<(), netlink::Error> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for rule in rules_of(family, table)? {
        let place = places.entry(rule.chain.clone()).or_default();
        let number = std::mem::replace(place, *place + 1);
        if rule.is_of_iptables() {
            continue;
        }
        if is_ours(&rule.chain) {
            read.ours.insert(rule.chain, Chain::from(vec![Line::read(UNREADABLE)]));
        } else if let Some(text) = read.foreign.get_mut(&rule.chain).and_then(|rules| rules.get_mut(number)) {
            text.insert_str(0, &format!("[{}] ", rule.handle));
        }
    }
    Ok(())
}

/// Takes every jump of a built-in chain to `ours` out of `table`, one that cannot be saved.
pub(super) async fn unhook(variant: Variant, family: Family, table: Table, ours: &str) -> Result<(), Error> {
    match variant {
        Variant::Nft => {
            // By their handles: `-D` gives up at the first rule before them that iptables cannot read.
            let rules = rules_of(family, table)?;
            let jumps: Vec<&NftRule> = rules.iter().filter(|rule| rule.is_plain_jump(table, ours)).collect();
            for some in jumps.chunks(CHUNK) {
                let messages = some.iter().map(|rule| (rule.deletion(family, table), 0)).collect();
                Socket::open(NETLINK_NETFILTER)?.transaction("remove the jumps to our chains", messages)?;
            }
        }
        Variant::Legacy => {
            let mut text = format!("*{}\n", table.name());
            for (builtin, _) in table.hooks().iter().filter(|(_, chain)| *chain == ours) {
                if has_jump(variant, family, table, builtin, ours).await? {
                    text.push_str(&format!("-D {builtin} -j {ours}\n"));
                }
            }
            text.push_str("COMMIT\n");
            command::run(variant.restore_program(family), &["--noflush", "-w", "10"], &text).await?;
        }
    }
    Ok(())
}

/// Tables of iptables in which somebody keeps sets of nftables. iptables leaves them out of what it prints, so a rule that
/// asks one looks as if it asked nothing.
pub(super) fn tables_with_sets(family: Family) -> Result<Vec<String>, netlink::Error> {
    let list = || {
        let message = NfTablesMessage::GetSet(SetMessage { attributes: Vec::new() });
        let request = NetfilterMessage::new(nft_objects::header(family == Family::V6), message);
        let mut tables = Vec::new();
        Socket::open(NETLINK_NETFILTER)?.ask("list nftables sets", request, NLM_F_DUMP, |answer| {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewSet(set)) = answer.inner {
                tables.extend(set.attributes.into_iter().find_map(|attribute| match attribute {
                    SetAttribute::Table(name) => Some(name),
                    _ => None,
                }));
            }
            Ok(())
        })?;
        Ok(tables)
    };
    let mut tables = netlink::whole(list)?;
    tables.sort_unstable();
    tables.dedup();
    Ok(tables)
}

/// What a table holds, as far as it can be told without reading it as a whole.
struct Contents {
    variant: Variant,
    family: Family,
    table: Table,
    chains: Vec<String>,
    /// By chain, the rules of others that lead to ours, and our own jumps.
    jumps: BTreeMap<String, Vec<String>>,
    /// A rule that was not made with iptables: chain and handle.
    native: Option<(String, u64)>,
}

impl Contents {
    async fn of(variant: Variant, family: Family, table: Table) -> Result<Self, Error> {
        let mut contents = Self { variant, family, table, chains: Vec::new(), jumps: BTreeMap::new(), native: None };
        match variant {
            Variant::Nft => {
                contents.chains = nft_objects::chains(family, table.name())?;
                for rule in rules_of(family, table)?.into_iter().filter(|rule| !is_ours(&rule.chain)) {
                    if let Some(text) = rule.jump() {
                        contents.jumps.entry(rule.chain.clone()).or_default().push(text);
                    }
                    if contents.native.is_none() && !rule.is_of_iptables() {
                        contents.native = Some((rule.chain, rule.handle));
                    }
                }
            }
            Variant::Legacy => {
                let listing = command::run(variant.program(family), &["-t", table.name(), "-n", "-L"], "").await?;
                let names = listing.lines().filter_map(|line| line.strip_prefix("Chain ")?.split(' ').next());
                contents.chains = names.map(str::to_owned).collect();
                for (builtin, ours) in table.hooks() {
                    if has_jump(variant, family, table, builtin, ours).await? {
                        contents.jumps.entry((*builtin).to_owned()).or_default().push(format!("-j {ours}"));
                    }
                }
            }
        }
        Ok(contents)
    }

    /// Says what is in the way and what helps.
    async fn explain(&self, why: &str) -> String {
        let program = self.variant.program(self.family);
        let (table, nft) = (self.table.name(), if self.family == Family::V4 { "ip" } else { "ip6" });
        let cannot = format!("{program} cannot read table {table}");
        if let Some((chain, handle)) = &self.native {
            let rule = self.text(nft, chain, *handle).await;
            let rule = rule.map_or_else(|| format!("the rule with handle {handle}"), |text| format!("`{text}`"));
            return format!(
                "{cannot}: {rule} in chain {chain} was made with nft; move such rules to a table of another name \
                 (`nft delete rule {nft} {table} {chain} handle {handle}` removes this one), and all goes on by itself"
            );
        }
        let place = self.culprit().await.map(|(chain, said)| format!("chain {chain}: {said}"));
        let why = if why.is_empty() { "its save program says nothing of it" } else { why };
        let said = shortened(&place.unwrap_or_else(|| why.to_owned()));
        let look = match self.variant {
            Variant::Nft => format!("nft -a list table {nft} {table}"),
            Variant::Legacy => format!("{program} -t {table} -nL"),
        };
        format!(
            "{cannot}: {said}; `{look}` shows its rules: move what iptables cannot read to a table of another name, or install \
             the iptables that made it, and all goes on by itself"
        )
    }

    /// The first chain of others that cannot be read by itself, and what the program says of it.
    async fn culprit(&self) -> Option<(&String, String)> {
        for chain in self.chains.iter().filter(|chain| !is_ours(chain)).take(TRIED) {
            if let Ok(Err(said)) = show(self.variant, self.family, self.table, chain).await {
                return Some((chain, said));
            }
        }
        None
    }

    /// The text of a rule, as far as nft is there and shows it.
    async fn text(&self, nft: &str, chain: &str, handle: u64) -> Option<String> {
        let listing =
            command::run("nft", &["-s", "-a", "list", "chain", nft, self.table.name(), chain], "").await.ok()?;
        let end = format!(" # handle {handle}");
        let line = listing.lines().find_map(|line| line.strip_suffix(&end))?;
        Some(shortened(line.trim()))
    }
}

/// What `-S CHAIN` prints, or what the program says instead.
async fn show(
    variant: Variant,
    family: Family,
    table: Table,
    chain: &str,
) -> Result<Result<String, String>, command::Error> {
    match command::run(variant.program(family), &["-t", table.name(), "-S", chain], "").await {
        Ok(text) => Ok(Ok(text)),
        Err(command::Error::Failed { stderr, .. }) => Ok(Err(stderr)),
        Err(error) => Err(error),
    }
}

async fn has_jump(
    variant: Variant,
    family: Family,
    table: Table,
    builtin: &str,
    ours: &str,
) -> Result<bool, command::Error> {
    match command::run(variant.program(family), &["-t", table.name(), "-C", builtin, "-j", ours], "").await {
        Ok(_) => Ok(true),
        // 1: no such rule. 2: no such chain of ours, so nothing leads there.
        Err(command::Error::Failed { status, .. }) if matches!(status.code(), Some(1 | 2)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The rules of `chain` in what `-S` prints.
fn rules(text: &str, chain: &str) -> Vec<Line> {
    let rule = |line: &str| line.strip_prefix("-A ")?.strip_prefix(chain)?.strip_prefix(' ').map(Line::read);
    text.lines().filter_map(rule).collect()
}

/// A rule of nftables, as far as it is looked at.
struct NftRule {
    chain: String,
    handle: u64,
    /// Names of its expressions.
    expressions: Vec<String>,
    /// Where it jumps or goes to, and whether it comes back.
    target: Option<(String, bool)>,
}

impl NftRule {
    fn is_of_iptables(&self) -> bool {
        self.expressions.iter().all(|name| OF_IPTABLES.contains(&name.as_str()))
    }

    /// How it leads to a chain of ours, as iptables would write it; what it asks before is not told.
    fn jump(&self) -> Option<String> {
        let (target, returns) = self.target.as_ref().filter(|(target, _)| is_ours(target))?;
        let flag = if *returns { "-j" } else { "-g" };
        Some(if self.asks_nothing() {
            format!("{flag} {target}")
        } else {
            format!("[{}] {flag} {target}", self.handle)
        })
    }

    fn asks_nothing(&self) -> bool {
        self.expressions.iter().all(|name| matches!(name.as_str(), "counter" | "immediate"))
    }

    /// Whether it is the jump that we make ourselves.
    fn is_plain_jump(&self, table: Table, ours: &str) -> bool {
        let here = |(builtin, chain): &(&str, &str)| self.chain == *builtin && *chain == ours;
        let jumps = self.target.as_ref().is_some_and(|(target, returns)| target == ours && *returns);
        jumps && self.asks_nothing() && table.hooks().iter().any(here)
    }

    fn deletion(&self, family: Family, table: Table) -> NetfilterMessage {
        let attributes = vec![
            RuleAttribute::Table(table.name().to_owned()),
            RuleAttribute::Chain(self.chain.clone()),
            RuleAttribute::Handle(self.handle),
        ];
        let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
        NetfilterMessage::new(nft_objects::header(family == Family::V6), message)
    }
}

/// The rules of a table as the kernel lists them, in their order.
fn rules_of(family: Family, table: Table) -> Result<Vec<NftRule>, netlink::Error> {
    netlink::whole(|| list_rules(family, table))
}

fn list_rules(family: Family, table: Table) -> Result<Vec<NftRule>, netlink::Error> {
    let attributes = vec![RuleAttribute::Table(table.name().to_owned())];
    let message = NfTablesMessage::GetRule(RuleMessage { attributes });
    let request = NetfilterMessage::new(nft_objects::header(family == Family::V6), message);
    let mut answers = Vec::new();
    // Kept first and looked at later: the sooner the list is read, the likelier it is whole.
    Socket::open(NETLINK_NETFILTER)?.ask("list nftables rules", request, NLM_F_DUMP, |answer| {
        if let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = answer.inner {
            answers.push(rule.attributes);
        }
        Ok(())
    })?;
    // Kernels before 4.3 list all tables, whatever was asked.
    Ok(answers.into_iter().filter_map(|attributes| decode(attributes, table.name())).collect())
}

fn decode(attributes: Vec<RuleAttribute>, table: &str) -> Option<NftRule> {
    let mut rule = NftRule { chain: String::new(), handle: 0, expressions: Vec::new(), target: None };
    for attribute in attributes {
        match attribute {
            RuleAttribute::Table(name) if name != table => return None,
            RuleAttribute::Chain(name) => rule.chain = name,
            RuleAttribute::Handle(handle) => rule.handle = handle,
            RuleAttribute::Expressions(list) => {
                for expression in list {
                    let ListAttribute::Element(parts) = expression else { continue };
                    for part in parts {
                        match part {
                            ExpressionAttribute::Name(name) => rule.expressions.push(name),
                            ExpressionAttribute::Data(Expressions::Immediate(data)) => {
                                rule.target = target(&data).or(rule.target);
                            }
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Some(rule)
}

fn target(immediate: &[Immediate]) -> Option<(String, bool)> {
    let verdict = immediate.iter().find_map(|part| match part {
        Immediate::Data(DataAttribute::Verdict(verdict)) => Some(verdict),
        _ => None,
    })?;
    let code = verdict.iter().find_map(|part| match part {
        VerdictAttribute::Code(code @ (Verdict::Jump | Verdict::Goto)) => Some(*code),
        _ => None,
    })?;
    let chain = verdict.iter().find_map(|part| match part {
        VerdictAttribute::Chain(chain) => Some(chain.clone()),
        _ => None,
    })?;
    Some((chain, code == Verdict::Jump))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_is_whole_or_says_what_it_lacks() {
        let whole = "# Generated by iptables-nft-save\n*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n# Completed\n";
        assert_eq!(missing(whole), None);
        assert_eq!(missing(""), None, "no table was begun");
        let comment = "*nat\n-A PREROUTING -m comment --comment \"# it is incompatible\" -j ACCEPT\nCOMMIT\n";
        assert_eq!(missing(comment), None, "what a rule says about itself is no word of the program");
        for (save, lacks) in [
            ("# Table `nat' is incompatible, use 'nft' tool.\n", "Table `nat' is incompatible, use 'nft' tool."),
            (
                "*filter\nCOMMIT\n# Table `nat' is incompatible, use 'nft' tool.\n*raw\nCOMMIT\n",
                "Table `nat' is incompatible, use 'nft' tool.",
            ),
            ("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING", "table nat ends without COMMIT"),
            ("*nat\nCOMMIT\n*filter\n", "table filter ends without COMMIT"),
        ] {
            assert_eq!(missing(save).as_deref(), Some(lacks), "{save}");
        }
    }

    #[test]
    fn base_chains_that_are_left_out_are_told_though_the_rest_is_whole() {
        let save = "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n# Table `nat' contains incompatible base-chains, use 'nft' tool to list them.\n";
        assert_eq!(missing(save), None);
        assert!(left_out(save).unwrap().starts_with("Table `nat' contains incompatible base-chains"));
        assert_eq!(left_out("*nat\nCOMMIT\n"), None);
    }

    #[test]
    fn the_rules_of_one_chain_are_those_behind_its_own_name() {
        let text = "-N SALLY-M\n-A SALLY-M -j RETURN\n-A SALLY-MT -j ACCEPT\n";
        assert_eq!(rules(text, "SALLY-M"), [Line::read("-j RETURN")]);
    }
}
