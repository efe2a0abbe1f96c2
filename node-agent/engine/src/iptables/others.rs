//! Reads what else on this host may decide about packets of ours: tables of nftables that iptables knows nothing of,
//! the other variant of iptables, and the tables of our own variant in which we have no rules.
//!
//! Never an error: rules are programmed whatever others have. What cannot be read is told.

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, InetHookNumber, NfTablesMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{FirewallTable, HostFirewall, nft, xtables};

use super::apart::{left_out, missing, tables_with_sets};
use super::{Variant, has_family, legacy_tables};
use crate::command;
use crate::netlink::{Error, Socket};

/// The tables of iptables that we have no rules in and that may drop packets.
const OTHER_TABLES: [&str; 3] = ["raw", "mangle", "security"];

/// A table of nftables with a base chain that forwarded packets pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InTheWay {
    family: &'static str,
    table: String,
    /// Whether iptables made it, so that iptables can read it.
    of_iptables: bool,
}

/// Everything, with the tables `own` of `variant` among it.
pub(super) async fn read(variant: Variant, own: HostFirewall) -> HostFirewall {
    let mut firewall = own;
    let in_the_way = in_the_way().unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot list the chains of nftables");
        firewall.unread.push("the chains of nftables".to_owned());
        Vec::new()
    });
    for table in in_the_way.iter().filter(|table| !table.of_iptables) {
        match native(table).await {
            Ok(found) => firewall.tables.extend(found),
            Err(why) => firewall.unread.push(format!("table {} {} of nftables: {why}", table.family, table.table)),
        }
    }
    for family in Family::BOTH.into_iter().filter(|family| has_family(*family)) {
        let legacy = legacy_tables(family).unwrap_or_else(|error| {
            firewall.unread.push(format!("which tables iptables-legacy has for {family}: {error}"));
            Vec::new()
        });
        add_sets(&mut firewall, family, &in_the_way);
        let exists = |of: Variant, name: &str| match of {
            Variant::Legacy => legacy.iter().any(|table| table == name),
            Variant::Nft => in_the_way.iter().any(|table| {
                table.of_iptables && table.table == name && (table.family == "ip") == (family == Family::V4)
            }),
        };
        for name in OTHER_TABLES.into_iter().filter(|name| exists(variant, name)) {
            add(&mut firewall, variant, family, true, &["-t", name]).await;
        }
        let other = variant.other();
        if ["filter", "nat"].iter().chain(&OTHER_TABLES).any(|name| exists(other, name)) {
            add(&mut firewall, other, family, false, &[]).await;
        }
    }
    firewall
}

async fn add(firewall: &mut HostFirewall, variant: Variant, family: Family, own: bool, arguments: &[&str]) {
    match command::run(variant.save_program(family), arguments, "").await {
        Ok(save) => {
            if let Some(lacks) = missing(&save).or_else(|| left_out(&save).map(str::to_owned)) {
                firewall.unread.push(format!("all rules of {}: {lacks}", variant.program(family)));
            }
            firewall.tables.extend(xtables::parse(&save, family, variant.holder(family, own)));
        }
        Err(error) => firewall.unread.push(format!("the rules of {}: {error}", variant.program(family))),
    }
}

/// Names tables of iptables with rules that iptables shows without the sets that they ask.
fn add_sets(firewall: &mut HostFirewall, family: Family, in_the_way: &[InTheWay]) {
    let nft = if family == Family::V4 { "ip" } else { "ip6" };
    match tables_with_sets(family) {
        Ok(tables) => {
            let of_iptables = |name: &String| {
                in_the_way.iter().any(|table| table.of_iptables && table.family == nft && table.table == *name)
            };
            let unseen = tables.into_iter().filter(of_iptables).map(|name| {
                format!("what the sets in table {nft} {name} do there, which iptables leaves out (`nft list table {nft} {name}` shows it)")
            });
            firewall.unread.extend(unseen);
        }
        Err(error) => firewall.unread.push(format!("the sets of {nft}: {error}")),
    }
}

/// `None` if it is gone meanwhile.
async fn native(table: &InTheWay) -> Result<Option<FirewallTable>, String> {
    let InTheWay { family, table: name, .. } = table;
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

/// Lists the chains, which costs next to nothing, so that no rule is read where nobody has any.
fn in_the_way() -> Result<Vec<InTheWay>, Error> {
    let mut found = Vec::new();
    for (family, name) in
        [(NetfilterProtoFamily::Inet, "inet"), (NetfilterProtoFamily::IPv4, "ip"), (NetfilterProtoFamily::IPv6, "ip6")]
    {
        let message = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let request = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
        Socket::open(NETLINK_NETFILTER)?.ask("list nftables chains", request, NLM_F_DUMP, |answer| {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) = answer.inner {
                found.extend(read_chain(name, &chain.attributes));
            }
            Ok(())
        })?;
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn read_chain(family: &'static str, attributes: &[ChainAttribute]) -> Option<InTheWay> {
    let (mut table, mut chain, mut hooked) = (None, "", false);
    for attribute in attributes {
        match attribute {
            ChainAttribute::Table(name) => table = Some(name.clone()),
            ChainAttribute::Name(name) => chain = name,
            ChainAttribute::Hook(hook) => {
                hooked = hook.iter().any(|part| {
                    matches!(
                        part,
                        HookAttribute::Number(HookNumber::Inet(
                            InetHookNumber::PreRouting | InetHookNumber::Forward | InetHookNumber::PostRouting
                        ))
                    )
                });
            }
            _ => {}
        }
    }
    let table = table.filter(|_| hooked)?;
    let builtin = matches!(chain, "PREROUTING" | "FORWARD" | "POSTROUTING");
    let known = matches!(table.as_str(), "filter" | "nat") || OTHER_TABLES.contains(&table.as_str());
    let of_iptables = family != "inet" && builtin && known;
    Some(InTheWay { family, table, of_iptables })
}
