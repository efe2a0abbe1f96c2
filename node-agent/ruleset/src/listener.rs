//! What already listens on a gateway where a forward would: it would lose its clients to the forward.

use std::net::IpAddr;

use sallyport_api::Protocol;

use crate::binding::Binding;
use crate::family::Family;

/// A socket of this host that takes connections or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// TCP if it takes connections, UDP if it takes datagrams.
    pub protocol: Protocol,
    /// Where it listens; unspecified for every address of its family.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
    /// The socket, as `/proc` names it.
    pub inode: u32,
}

/// Where a socket listens: protocol, address and port. Whoever starts anew listens at the same endpoint with another socket.
pub type Endpoint = (Protocol, IpAddr, u16);

impl Listener {
    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        (self.protocol, self.ip, self.port)
    }
}

/// Those of `listeners` that listen where one of `bindings` would take their clients.
#[must_use]
pub fn in_the_way<'a>(bindings: &[Binding<'_>], listeners: &'a [Listener]) -> Vec<&'a Listener> {
    let meets = |listener: &Listener, Binding { listen, port, .. }: &Binding<'_>| {
        let everywhere = listener.ip.is_unspecified() && Family::of(listener.ip) == Family::of(*listen);
        port.protocol == listener.protocol
            && (port.port..=port.end_port).contains(&listener.port)
            && (listener.ip == *listen || everywhere)
    };
    listeners.iter().filter(|listener| bindings.iter().any(|binding| meets(listener, binding))).collect()
}

#[cfg(test)]
mod tests {
    use sallyport_api::forward_slice::SliceForward;
    use sallyport_api::id::IntentHash;
    use sallyport_api::intent::Intent;
    use sallyport_api::testing::Forward;

    use super::*;
    use crate::binding::bindings;
    use crate::listen::Listen;

    fn listener(protocol: Protocol, ip: &str, port: u16) -> Listener {
        Listener { protocol, ip: ip.parse().unwrap(), port, inode: 7 }
    }

    /// TCP 3306 to 3310 on every listen address, for IPv4.
    fn forward() -> Forward {
        Forward::tcp("payments/mysql", 3306).through(3310)
    }

    /// Whether one of `listeners` is in the way of `intent` on a host that listens on `listen`.
    fn is_in_the_way(intent: Intent, listen: &[IpAddr], listeners: &[Listener]) -> bool {
        let forward = SliceForward { intent, ..forward().slice_forward(|_| IntentHash::default()) };
        !in_the_way(&bindings(&forward, &Listen::on(listen)).collect::<Vec<_>>(), listeners).is_empty()
    }

    #[test]
    fn whoever_would_lose_clients_is_in_the_way_and_nobody_else() {
        use Protocol::{Tcp, Udp};
        let listen: Vec<IpAddr> = ["10.30.1.77", "10.30.1.78", "fd00::78"].map(|ip| ip.parse().unwrap()).to_vec();
        let limited = Intent { addresses: vec![listen[1]], ..forward().intent() };
        for (protocol, ip, port, everywhere, on_one) in [
            (Tcp, "0.0.0.0", 3306, true, true),
            (Tcp, "0.0.0.0", 3310, true, true),
            (Tcp, "10.30.1.78", 3308, true, true),
            (Tcp, "10.30.1.77", 3308, true, false),
            (Tcp, "0.0.0.0", 3305, false, false),
            (Tcp, "0.0.0.0", 3311, false, false),
            (Udp, "0.0.0.0", 3306, false, false),
            (Tcp, "127.0.0.1", 3306, false, false),
            (Tcp, "10.30.1.99", 3306, false, false),
            (Tcp, "::", 3306, false, false),
            (Tcp, "fd00::78", 3306, false, false),
        ] {
            let there = [listener(protocol, ip, port)];
            let found = |intent| is_in_the_way(intent, &listen, &there);
            assert_eq!(
                (found(forward().intent()), found(limited.clone())),
                (everywhere, on_one),
                "{protocol} {ip} {port}"
            );
        }
        let mut six = forward().intent();
        six.targets[0].ip = "fd00::79".parse().unwrap();
        assert!(is_in_the_way(six, &listen, &[listener(Tcp, "::", 3306)]));
        assert!(!is_in_the_way(forward().intent(), &[], &[listener(Tcp, "0.0.0.0", 3306)]), "no address, no clients");
    }
}
