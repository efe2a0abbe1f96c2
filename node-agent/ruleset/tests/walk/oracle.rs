//! What should become of a new connection, read straight off the manifests' fields.
//!
//! Does its own parsing and arithmetic, so that a misunderstanding in the code under test is not repeated here.

use std::net::{IpAddr, SocketAddr};

use sallyport_api::port_forward::{PortForwardSpec, Protocol, SourceNatMode};

/// Where some of the connections go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub to: SocketAddr,
    /// Of all connections like this one, between 0 and 1.
    pub part: f64,
    pub masqueraded: bool,
}

/// A forward that has to work on the node, and the addresses that it is reached by there.
pub struct Declared<'a> {
    pub spec: &'a PortForwardSpec,
    pub listen: &'a [IpAddr],
}

impl Declared<'_> {
    /// Whether a connection from `src` to `dst` is one that this forward lets in, and the place of its port.
    fn port(&self, protocol: &str, src: IpAddr, dst: SocketAddr) -> Option<u16> {
        let spec = self.spec;
        let address = self.listen.contains(&dst.ip())
            && (spec.addresses.is_empty() || spec.addresses.iter().any(|text| text.parse::<IpAddr>() == Ok(dst.ip())));
        let family = spec.targets.iter().any(|target| target.ip.contains(':') == dst.is_ipv6());
        if !address || !family || !self.admits(src) {
            return None;
        }
        let wanted = i32::from(dst.port());
        spec.ports.iter().find_map(|port| {
            let name = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            let inside = name == protocol && port.port <= wanted && wanted <= port.end_port.unwrap_or(port.port);
            let to = port.target_port.unwrap_or(port.port) + (wanted - port.port);
            inside.then(|| u16::try_from(to).unwrap())
        })
    }

    fn admits(&self, src: IpAddr) -> bool {
        let listed = |list: &[sallyport_api::port_forward::Source]| list.iter().any(|source| covers(&source.cidr, src));
        listed(&self.spec.sources.allow) && !listed(&self.spec.sources.deny)
    }
}

/// Whether one of `forwards` lets the connection in, be there a target that takes it or not.
pub fn admitted(forwards: &[Declared<'_>], protocol: &str, src: IpAddr, dst: SocketAddr) -> bool {
    forwards.iter().any(|forward| forward.port(protocol, src, dst).is_some())
}

/// Where connections like this one go; empty if nobody forwards it.
pub fn shares(forwards: &[Declared<'_>], protocol: &str, src: IpAddr, dst: SocketAddr) -> Vec<Share> {
    let mut taking = forwards.iter().filter_map(|forward| Some((forward.spec, forward.port(protocol, src, dst)?)));
    let Some((spec, port)) = taking.next() else {
        return Vec::new();
    };
    assert!(taking.next().is_none(), "two forwards were accepted for {dst}/{protocol}");
    let targets: Vec<(IpAddr, f64)> = spec
        .targets
        .iter()
        .filter(|target| target.weight > 0 && target.ip.contains(':') == dst.is_ipv6())
        .map(|target| (target.ip.parse().unwrap(), f64::from(target.weight)))
        .collect();
    let total: f64 = targets.iter().map(|(_, weight)| weight).sum();
    targets
        .into_iter()
        .map(|(ip, weight)| Share {
            to: SocketAddr::new(ip, port),
            part: weight / total,
            masqueraded: spec.source_nat.mode == SourceNatMode::Masquerade,
        })
        .collect()
}

/// Whether the block `cidr` holds `ip`.
pub fn covers(cidr: &str, ip: IpAddr) -> bool {
    let (first, last) = borders(cidr);
    cidr.contains(':') == ip.is_ipv6() && (first..=last).contains(&number(ip))
}

/// The first and last address of a block, as numbers.
pub fn borders(cidr: &str) -> (u128, u128) {
    let (ip, length) = cidr.split_once('/').unwrap();
    let (ip, length): (IpAddr, u32) = (ip.parse().unwrap(), length.parse().unwrap());
    let free = if ip.is_ipv6() { 128 - length } else { 32 - length };
    let hosts = 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
    let first = number(ip) & !hosts;
    (first, first | hosts)
}

pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The address with this number, in the family of `like`; wraps at the end of the family.
pub fn address(like: &str, number: u128) -> IpAddr {
    if like.contains(':') {
        IpAddr::V6(number.into())
    } else {
        IpAddr::V4(u32::try_from(number & u128::from(u32::MAX)).unwrap().into())
    }
}
