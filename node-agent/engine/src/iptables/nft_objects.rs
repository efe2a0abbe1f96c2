//! Tables and chains of nftables as objects of the kernel: which of them iptables-nft would make for our jumps, and taking
//! those away again that exist only because of that.
//!
//! Legacy tables cannot be taken away while their kernel module is loaded, and empty ones do nothing.

use std::collections::BTreeSet;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_netfilter::nftables::{ChainAttribute, ChainMessage, NfTablesMessage, TableAttribute, TableMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use sallyport_ruleset::chain::is_ours;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::rule::Table;
use serde::{Deserialize, Serialize};

use crate::netlink::{self, Error, Socket};

/// Delete only what is empty (`NLM_F_NONREC`, `include/uapi/linux/netlink.h`).
const NLM_F_NONREC: u16 = 0x100;
/// The policy of a base chain that lets packets pass (`NF_ACCEPT`, `include/uapi/linux/netfilter.h`).
const NF_ACCEPT: u32 = 1;

/// A table, or with `chain` a base chain of it, by the names that nftables uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NftObject {
    ipv6: bool,
    table: String,
    chain: Option<String>,
}

/// Those that our jumps need and that do not exist yet, chains before the tables that hold them.
pub fn missing() -> Result<Vec<NftObject>, Error> {
    let there: BTreeSet<NftObject> = netlink::whole(list)?.into_iter().map(|(object, _)| object).collect();
    let mut missing = Vec::new();
    for family in Family::BOTH {
        for table in Table::ALL {
            let object = |chain: Option<&str>| NftObject {
                ipv6: family == Family::V6,
                table: table.name().to_owned(),
                chain: chain.map(str::to_owned),
            };
            let chains = table.hooks().iter().map(|(builtin, _)| object(Some(builtin)));
            missing.extend(chains.chain([object(None)]).filter(|object| !there.contains(object)));
        }
    }
    Ok(missing)
}

/// Removes those of `objects` that nobody has put anything into. Whoever does so meanwhile wins: the kernel itself
/// refuses to remove what is not empty. Returns how many went.
pub fn remove_unused(objects: &[NftObject]) -> Result<usize, Error> {
    let mut removed = 0;
    for object in objects {
        // Listed again each time: a table is unused once its chains are gone.
        if netlink::whole(list)?.iter().any(|(there, unused)| there == object && *unused) {
            let socket = Socket::open(NETLINK_NETFILTER)?;
            match socket.transaction("remove an empty chain or table", vec![(delete(object), NLM_F_NONREC)]) {
                Ok(()) => removed += 1,
                Err(Error::Refused { .. }) => tracing::debug!(place = ?object, "is in use again"),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

/// The chains of a table, in the order of the kernel, without base chains under names like ours: those are somebody's.
pub(super) fn chains(family: Family, table: &str) -> Result<Vec<String>, Error> {
    netlink::whole(|| list_chains(family, table))
}

fn list_chains(family: Family, table: &str) -> Result<Vec<String>, Error> {
    let message = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let request = NetfilterMessage::new(header(family == Family::V6), message);
    let mut found = Vec::new();
    Socket::open(NETLINK_NETFILTER)?.ask("list nftables chains", request, NLM_F_DUMP, |answer| {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) = answer.inner else { return Ok(()) };
        let (mut here, mut name, mut base) = (false, None, false);
        for attribute in chain.attributes {
            match attribute {
                ChainAttribute::Table(of) => here = of == table,
                ChainAttribute::Name(own) => name = Some(own),
                ChainAttribute::Hook(_) => base = true,
                _ => {}
            }
        }
        found.extend(name.filter(|name| here && !(base && is_ours(name))));
        Ok(())
    })?;
    Ok(found)
}

/// Every table and chain of the families that iptables uses, each with whether it is unused.
fn list() -> Result<Vec<(NftObject, bool)>, Error> {
    let mut found = Vec::new();
    for ipv6 in [false, true] {
        for message in [
            NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() }),
            NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() }),
        ] {
            let request = NetfilterMessage::new(header(ipv6), message);
            let socket = Socket::open(NETLINK_NETFILTER)?;
            socket.ask("list nftables chains", request, NLM_F_DUMP, |answer| {
                if let NetfilterMessageInner::NfTables(answer) = answer.inner {
                    found.extend(read(ipv6, &answer));
                }
                Ok(())
            })?;
        }
    }
    Ok(found)
}

fn read(ipv6: bool, answer: &NfTablesMessage) -> Option<(NftObject, bool)> {
    match answer {
        NfTablesMessage::NewTable(message) => {
            let (mut table, mut uses) = (None, 0);
            for attribute in &message.attributes {
                match attribute {
                    TableAttribute::Name(name) => table = Some(name.clone()),
                    TableAttribute::Use(count) => uses = *count,
                    _ => {}
                }
            }
            Some((NftObject { ipv6, table: table?, chain: None }, uses == 0))
        }
        NfTablesMessage::NewChain(message) => {
            let (mut table, mut chain, mut policy, mut uses) = (None, None, None, 0);
            for attribute in &message.attributes {
                match attribute {
                    ChainAttribute::Table(name) => table = Some(name.clone()),
                    ChainAttribute::Name(name) => chain = Some(name.clone()),
                    ChainAttribute::Policy(own) => policy = Some(*own),
                    ChainAttribute::Use(count) => uses = *count,
                    _ => {}
                }
            }
            Some((NftObject { ipv6, table: table?, chain: Some(chain?) }, uses == 0 && policy == Some(NF_ACCEPT)))
        }
        _ => None,
    }
}

fn delete(object: &NftObject) -> NetfilterMessage {
    let table = object.table.clone();
    let message = match object.chain.clone() {
        None => NfTablesMessage::DeleteTable(TableMessage { attributes: vec![TableAttribute::Name(table)] }),
        Some(chain) => NfTablesMessage::DeleteChain(ChainMessage {
            attributes: vec![ChainAttribute::Table(table), ChainAttribute::Name(chain)],
        }),
    };
    NetfilterMessage::new(header(object.ipv6), message)
}

pub(super) fn header(ipv6: bool) -> NetfilterHeader {
    let family = if ipv6 { NetfilterProtoFamily::IPv6 } else { NetfilterProtoFamily::IPv4 };
    NetfilterHeader::new(family, 0, 0)
}
