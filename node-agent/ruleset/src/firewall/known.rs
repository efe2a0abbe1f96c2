//! What each target and match of iptables and each statement of nftables does to a packet of a forward.
//!
//! The list is the kernel's own: `net/netfilter/xt_*.c`, `net/ipv4/netfilter/ipt_*.c` and `net/ipv6/netfilter/ip6t_*.c` for
//! iptables; for nftables the expressions of `include/uapi/linux/netfilter/nf_tables.h` under the names that `nft --json`
//! gives to the statements they make. What is not in here may do anything.

/// What a target or a statement does to a packet that gets to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// Nothing by which a forward would work or not: it counts, logs, copies, labels, sets a field that decides nothing.
    Nothing,
    /// Lets it pass this base chain.
    Accepts,
    /// Drops or rejects it.
    Drops,
    /// Leads to another chain, or back from it.
    Leads,
    /// Leaves it to somebody else, such as a program in user space.
    HandsOver,
    /// Gives it another destination.
    Destination,
    /// Gives it to a program of this host.
    Host,
    /// Gives it another source.
    Source,
    /// Sets its mark by rules of its own options.
    PacketMark,
    /// Sets the mark of its connection.
    ConnectionMark,
    /// Sets its mark to something that cannot be foreseen.
    HashedMark,
    /// Decides how it is tracked.
    Tracking,
    /// May set marks from a set.
    Set,
    /// Sets how many more routers it may pass.
    HopLimit,
    /// Goes on with those alone that it asks for: a rate, a volume, a number.
    Narrows,
    /// Writes one of its fields.
    Field,
    /// Anything.
    Untold,
}

/// Targets of iptables, in order.
const TARGETS: &[(&str, Does)] = &[
    ("ACCEPT", Does::Accepts),
    ("AUDIT", Does::Nothing),
    ("CHECKSUM", Does::Nothing),
    ("CLASSIFY", Does::Nothing),
    ("CONNMARK", Does::ConnectionMark),
    ("CONNSECMARK", Does::Nothing),
    ("CT", Does::Tracking),
    ("DNAT", Does::Destination),
    // Rewrites addresses without connection tracking, so that nothing is put back.
    ("DNPT", Does::Untold),
    ("DROP", Does::Drops),
    ("DSCP", Does::Nothing),
    ("ECN", Does::Nothing),
    ("HL", Does::HopLimit),
    ("HMARK", Does::HashedMark),
    ("IDLETIMER", Does::Nothing),
    ("LED", Does::Nothing),
    ("LOG", Does::Nothing),
    ("MARK", Does::PacketMark),
    ("MASQUERADE", Does::Source),
    ("NETMAP", Does::Destination),
    ("NFLOG", Does::Nothing),
    ("NFQUEUE", Does::HandsOver),
    ("NOTRACK", Does::Tracking),
    ("QUEUE", Does::HandsOver),
    ("RATEEST", Does::Nothing),
    ("REDIRECT", Does::Host),
    ("REJECT", Does::Drops),
    ("RETURN", Does::Leads),
    ("SECMARK", Does::Nothing),
    ("SET", Does::Set),
    ("SNAT", Does::Source),
    ("SNPT", Does::Untold),
    ("SYNPROXY", Does::HandsOver),
    // Of xtables-addons.
    ("TARPIT", Does::Drops),
    ("TCPMSS", Does::Nothing),
    ("TCPOPTSTRIP", Does::Nothing),
    ("TEE", Does::Nothing),
    ("TOS", Does::Nothing),
    ("TPROXY", Does::Host),
    ("TRACE", Does::Nothing),
    ("TTL", Does::HopLimit),
    ("ULOG", Does::Nothing),
];

/// Matches of iptables, in order: what they ask is a property of packets, which narrows a rule to those that have it. Of
/// the options of others it cannot be told whether they narrow anything.
const MATCHES: &[&str] = &[
    "addrtype",
    "ah",
    "bpf",
    "cgroup",
    "cluster",
    "comment",
    "connbytes",
    "connlabel",
    "connlimit",
    "connmark",
    "conntrack",
    "cpu",
    "dccp",
    "devgroup",
    "dscp",
    "dst",
    "ecn",
    "esp",
    "eui64",
    "frag",
    "hashlimit",
    "hbh",
    "helper",
    "hl",
    "icmp",
    "icmp6",
    "ipcomp",
    "iprange",
    "ipv6header",
    "ipvs",
    "l2tp",
    "length",
    "limit",
    "mac",
    "mark",
    "mh",
    "multiport",
    "nfacct",
    "osf",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "quota",
    "rateest",
    "realm",
    "recent",
    "rpfilter",
    "rt",
    "sctp",
    "set",
    "socket",
    "srh",
    "state",
    "statistic",
    "string",
    "tcp",
    "tcpmss",
    "time",
    "tos",
    "ttl",
    "u32",
    "udp",
];

/// Statements of nftables, in order.
const STATEMENTS: &[(&str, Does)] = &[
    ("accept", Does::Accepts),
    ("comment", Does::Nothing),
    ("continue", Does::Nothing),
    ("counter", Does::Nothing),
    ("ct count", Does::Narrows),
    ("ct expectation", Does::Nothing),
    ("ct helper", Does::Nothing),
    ("ct timeout", Does::Nothing),
    ("dnat", Does::Destination),
    ("drop", Does::Drops),
    ("dup", Does::Nothing),
    // Offloaded packets go on as the connection's first ones did.
    ("flow", Does::Nothing),
    ("fwd", Does::HandsOver),
    ("goto", Does::Leads),
    ("jump", Does::Leads),
    ("last", Does::Nothing),
    ("limit", Does::Narrows),
    ("log", Does::Nothing),
    ("mangle", Does::Field),
    ("map", Does::Set),
    ("masquerade", Does::Source),
    ("meter", Does::Set),
    ("notrack", Does::Tracking),
    ("queue", Does::HandsOver),
    ("quota", Does::Narrows),
    ("redirect", Does::Host),
    ("reject", Does::Drops),
    ("return", Does::Leads),
    ("secmark", Does::Nothing),
    ("set", Does::Set),
    ("snat", Does::Source),
    ("synproxy", Does::HandsOver),
    // Where no socket waits it goes on, unlike TPROXY of iptables.
    ("tproxy", Does::HandsOver),
];

/// What `mangle` of nftables may write without harm, in order: a field of a header, or a key of `meta` or `ct`.
const HARMLESS_FIELDS: &[&str] = &[
    "dscp",
    "ecn",
    "event",
    "flowlabel",
    "label",
    "maxseg",
    "nftrace",
    "priority",
    "secmark",
    "sack-perm",
    "size",
    "timestamp",
    "window",
];

/// What a target of iptables does, if it is one that is known.
pub(super) fn target(name: &str) -> Option<Does> {
    find(TARGETS, name)
}

/// What a statement of nftables does, if it is one that is known.
pub(super) fn statement(name: &str) -> Option<Does> {
    find(STATEMENTS, name)
}

/// Whether it is known that a match of iptables asks for a property of packets.
pub(super) fn is_match(name: &str) -> bool {
    MATCHES.binary_search(&name).is_ok()
}

/// Whether a packet may have any value in this field.
pub(super) fn is_harmless_field(name: &str) -> bool {
    HARMLESS_FIELDS.contains(&name)
}

fn find(table: &[(&str, Does)], name: &str) -> Option<Does> {
    table.binary_search_by_key(&name, |(known, _)| known).ok().map(|found| table[found].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_in_order_so_that_all_of_them_is_found() {
        assert!(TARGETS.is_sorted_by_key(|(name, _)| name));
        assert!(STATEMENTS.is_sorted_by_key(|(name, _)| name));
        assert!(MATCHES.is_sorted());
        assert!(TARGETS.iter().all(|(name, does)| target(name) == Some(*does)));
        assert_eq!((target("DNAT2"), statement("xt"), is_match("tcp"), is_match("geoip")), (None, None, true, false));
    }
}
