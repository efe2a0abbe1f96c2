//! One line of the [forwarding table](crate::table): a port of a forward on an address of the node.
//!
//! The only place that expands a forward into the addresses and families of a node.

use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::intent::{IntentPort, IntentTarget};
use sallyport_api::{Protocol, SourceNatMode};

use crate::family::Family;
use crate::listen::Listen;

/// One port or range of ports of one forward, on one address of the node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Binding<'a> {
    /// Whose it is.
    pub forward: &'a SliceForward,
    /// The address of the node that clients connect to.
    pub listen: IpAddr,
    /// The ports there, and the first port of the targets.
    pub port: IntentPort,
}

impl<'a> Binding<'a> {
    /// The family of its packets.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.listen)
    }

    /// The protocol of its packets.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.port.protocol
    }

    /// What becomes of the client's address.
    #[must_use]
    pub fn source_nat(&self) -> SourceNatMode {
        self.forward.intent.source_nat
    }

    /// The clients that may connect, unless they are [denied](Self::denied).
    pub fn allowed(&self) -> impl Iterator<Item = IpNet> + use<'a> {
        of_family(&self.forward.intent.allow, self.family())
    }

    /// The clients that may not, whatever else allows them.
    pub fn denied(&self) -> impl Iterator<Item = IpNet> + use<'a> {
        of_family(&self.forward.intent.deny, self.family())
    }

    /// Where connections are delivered; a target of weight 0 takes no new ones.
    pub fn targets(&self) -> impl Iterator<Item = IntentTarget> + use<'a> {
        let family = self.family();
        self.forward.intent.targets.iter().copied().filter(move |target| Family::of(target.ip) == family)
    }
}

fn of_family(nets: &[IpNet], family: Family) -> impl Iterator<Item = IpNet> {
    nets.iter().copied().filter(move |net| Family::of(net.addr()) == family)
}

/// What `forward` asks of a node that listens on `listen`: by family, port and address. Empty where no listen address that
/// it names has the family of one of its targets.
pub fn bindings<'a>(forward: &'a SliceForward, listen: &Listen) -> impl Iterator<Item = Binding<'a>> {
    let intent = &forward.intent;
    let listen = listen.of_forward(intent);
    Family::BOTH.into_iter().flat_map(move |family| {
        let served = intent.targets.iter().any(|target| Family::of(target.ip) == family);
        let addresses: Vec<IpAddr> = listen.iter().copied().filter(|ip| served && Family::of(*ip) == family).collect();
        intent.ports.iter().flat_map(move |port| {
            let bind = |listen: &IpAddr| Binding { forward, listen: *listen, port: *port };
            addresses.iter().map(bind).collect::<Vec<_>>()
        })
    })
}
