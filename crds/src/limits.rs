//! What no forward may ever ask for: targets that are always refused, and ports that stay the gateway's own.
//!
//! The one list of each. The schema's rule about targets is generated from it, and `sallyport-policy` holds to both what
//! the operator decides and the agents carry, so neither a permissive pool nor an object that slipped past admission
//! can lift them. `docs/security.md` shows them, and a test holds it to that.

use crate::Protocol;

/// Blocks of addresses that no target may be in, each with what an address in it is; the first that fits counts.
///
/// "This network" and unspecified (RFC 1122), loopback, link-local, multicast, reserved with broadcast (RFC 1112): from
/// the IANA special-purpose registries (RFC 6890). The IPv6 forms that embed an IPv4 address (RFC 4291, 6052, 8215,
/// 4380, 3056) would reach any of these in disguise. The metadata services of cloud providers hand credentials to whoever
/// can reach them from the node's address: most are link-local, those that are not stand by themselves.
pub const REFUSED_TARGETS: &[(&str, &str)] = &[
    ("0.0.0.0/8", "an unspecified address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address (cloud metadata lives there)"),
    ("224.0.0.0/4", "a multicast address"),
    ("240.0.0.0/4", "a reserved or broadcast address"),
    ("100.100.100.200/32", "a cloud metadata service"),
    ("168.63.129.16/32", "a cloud metadata service"),
    ("192.0.0.192/32", "a cloud metadata service"),
    ("::1/128", "a loopback address"),
    (IPV4_MAPPED, "an IPv4-mapped address: write the IPv4 address itself"),
    ("::/96", "an unspecified or IPv4-compatible address"),
    ("64:ff9b::/96", "an address that embeds an IPv4 address (NAT64)"),
    ("64:ff9b:1::/48", "an address that embeds an IPv4 address (NAT64)"),
    ("2001::/32", "an address that embeds an IPv4 address (Teredo)"),
    ("2002::/16", "an address that embeds an IPv4 address (6to4)"),
    ("fe80::/10", "a link-local address"),
    ("ff00::/8", "a multicast address"),
    ("fd00:ec2::254/128", "a cloud metadata service"),
    ("fd20:ce::254/128", "a cloud metadata service"),
];

/// The one block that CEL cannot name: to `isIP`, `ip` and `cidr` of Kubernetes its addresses are none, so the schema
/// refuses them for that.
pub(crate) const IPV4_MAPPED: &str = "::ffff:0:0/96";

/// Ports that the gateway needs for itself, from the first to the last, each with what for: a forward on one of them
/// could lock everybody out of the node.
pub const RESERVED_PORTS: &[(Protocol, u16, u16, &str)] = &[
    (Protocol::Tcp, 22, 22, "ssh"),
    (Protocol::Udp, 67, 68, "DHCP"),
    (Protocol::Tcp, 179, 179, "BGP"),
    (Protocol::Udp, 546, 547, "DHCPv6"),
    (Protocol::Tcp, 2379, 2381, "etcd"),
    (Protocol::Tcp, 4240, 4240, "Cilium's health checks"),
    (Protocol::Udp, 4789, 4789, "VXLAN"),
    (Protocol::Tcp, 5473, 5473, "Calico's Typha"),
    (Protocol::Udp, 6081, 6081, "Geneve"),
    (Protocol::Tcp, 6443, 6443, "the Kubernetes API server"),
    (Protocol::Udp, 8472, 8472, "VXLAN, as Flannel and Cilium use it"),
    (Protocol::Tcp, 10248, 10260, "the kubelet, kube-proxy and the control plane's programs"),
    (Protocol::Tcp, 30000, 32767, "NodePorts"),
    (Protocol::Udp, 30000, 32767, "NodePorts"),
    (Protocol::Udp, 51820, 51821, "WireGuard"),
];
