//! What to tell people of a chain that stands in the way: where it is, and what helps.

use std::fmt;

use crate::family::Family;
use crate::firewall::path::{ClientPath, PreDnat, is_pre_dnat};
use crate::firewall::walk::fate;
use crate::firewall::{BaseChain, FirewallTable, Holder};

/// A chain that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Table and chain.
    pub place: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.place, self.remedy)
    }
}

/// firewalld has this table for the moment of a reload, and drops everything new meanwhile.
pub(super) fn passes_soon(table: &FirewallTable) -> bool {
    table.holder == Holder::Nftables && table.name == "firewalld_policy_drop"
}

/// Matches our packets in nftables, once they are translated.
const OURS_IN_NFT: &str = "ct status dnat ct mark and 0x10000000 == 0x10000000";
/// The same in iptables.
const OURS_IN_IPTABLES: &str = "-m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000";

/// How `base` is called for people, and what would make it let these packets pass.
pub(super) fn conflict(
    table: &FirewallTable,
    base: &BaseChain,
    family: Family,
    path: Option<&ClientPath<'_>>,
) -> Conflict {
    let (name, chain) = (&table.name, &base.name);
    let held = match table.holder {
        Holder::Nftables => format!("table {} {name}", nft_family(table)),
        Holder::Iptables { program, .. } => format!("table {name} of {program}"),
    };
    let policy = if base.drops { ", policy drop" } else { "" };
    let place = format!("{held}, chain {chain} (hook {}, priority {}{policy})", base.hook.name(), base.priority);
    // There our mark cannot be seen yet, and the destination is still the gateway.
    let pre_dnat = is_pre_dnat(base);
    let path =
        path.map(|path| path.pre_dnat(fate(table, base, &path.request(base)) >= fate(table, base, &path.answer(base))));
    let remedy = match table.holder {
        Holder::Nftables if passes_soon(table) => {
            "firewalld makes it while it reloads; if it stays, run `systemctl restart firewalld`".to_owned()
        }
        Holder::Nftables if name == "firewalld" => {
            "set StrictForwardPorts=no in /etc/firewalld/firewalld.conf and run `firewall-cmd --reload`, or allow these \
             packets in a policy of firewalld"
                .to_owned()
        }
        Holder::Nftables => {
            let what = if pre_dnat { pre_dnat_in_nft(family, path.as_ref()) } else { OURS_IN_NFT.to_owned() };
            let insert = format!("nft insert rule {} {name} {chain} {what} accept", nft_family(table));
            format!("run `{insert}` and put the same rule into the file that the table is loaded from")
        }
        Holder::Iptables { own: true, .. } if table.holds_our_accept() => {
            "move the rule that stands before the jump to SALLY-FWD behind it, or make it let these packets pass".to_owned()
        }
        Holder::Iptables { program, .. } => {
            let what = if pre_dnat { pre_dnat_in_iptables(path.as_ref()) } else { OURS_IN_IPTABLES.to_owned() };
            let insert = format!("{program} -t {name} -I {chain} {what} -j ACCEPT");
            format!("run `{insert}` and make whoever writes that table keep it")
        }
    };
    Conflict { place, remedy }
}

fn nft_family(table: &FirewallTable) -> &'static str {
    match table.families.as_slice() {
        [Family::V4] => "ip",
        [Family::V6] => "ip6",
        _ => "inet",
    }
}

fn pre_dnat_in_nft(family: Family, path: Option<&PreDnat>) -> String {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    match path {
        Some(PreDnat { request: true, protocol, ip: own, port }) => format!("{ip} daddr {own} {protocol} dport {port}"),
        Some(PreDnat { request: false, protocol, ip: own, port }) => {
            format!("{ip} saddr {own} {protocol} sport {port}")
        }
        None => format!("{ip} daddr ADDRESS tcp dport PORT"),
    }
}

fn pre_dnat_in_iptables(path: Option<&PreDnat>) -> String {
    match path {
        Some(PreDnat { request: true, protocol, ip, port }) => format!("-d {ip} -p {protocol} --dport {port}"),
        Some(PreDnat { request: false, protocol, ip, port }) => format!("-s {ip} -p {protocol} --sport {port}"),
        None => "-d ADDRESS -p tcp --dport PORT".to_owned(),
    }
}
