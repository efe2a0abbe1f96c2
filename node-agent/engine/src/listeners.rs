//! Which sockets of this host take connections or datagrams, and whose they are.
//!
//! TCP sockets that listen and UDP sockets that are bound and not connected, as the kernel lists them by `sock_diag`.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use sallyport_ruleset::Protocol;
use sallyport_ruleset::listener::Listener;

use crate::netlink::{Error, Socket};

/// The loopback interface has this index in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
const LOOPBACK_INDEX: u32 = 1;

/// Every listener of the network namespace of the calling thread, sorted. Four dumps, some tens of microseconds each.
pub fn listeners() -> Result<Vec<Listener>, Error> {
    let socket = Socket::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for (protocol, number, states) in
        [(Protocol::Tcp, IPPROTO_TCP, StateFlags::LISTEN), (Protocol::Udp, IPPROTO_UDP, StateFlags::CLOSE)]
    {
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let (states, extensions) = (states.clone(), ExtensionFlags::empty());
            let request = InetRequest { family, protocol: number, extensions, states, socket_id };
            let question = SockDiagMessage::InetRequest(request);
            let listed = socket.ask("list the host's listeners", question, NLM_F_DUMP, |answer| {
                if let SockDiagMessage::InetResponse(response) = answer {
                    found.extend(decode(protocol, &response));
                }
                Ok(())
            });
            match listed {
                // This kernel cannot tell of this protocol (`CONFIG_INET_UDP_DIAG` is one to be chosen), but of the other.
                Err(Error::Refused { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                listed => listed?,
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The places where a socket listens: two if it takes both families. Nothing for one that is not bound, or only to the
/// loopback interface.
fn decode(protocol: Protocol, response: &InetResponse) -> Vec<Listener> {
    let id = &response.header.socket_id;
    if id.source_port == 0 || id.interface_id == LOOPBACK_INDEX {
        return Vec::new();
    }
    let ip = id.source_address.to_canonical();
    let both = ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !response.nlas.contains(&Nla::SkV6Only(true));
    let four = both.then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let listener = |ip| Listener { protocol, ip, port: id.source_port, inode: response.header.inode };
    four.into_iter().chain([ip]).map(listener).collect()
}

/// Name and number of the process that has a socket open, where it can be seen: not that of another PID namespace.
#[must_use]
pub fn process_of(inode: u32) -> Option<String> {
    let link = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = numbers.find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.as_os_str() == link.as_str())
    })?;
    // A process names itself, so nothing in the name may look like more than a name.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (process {pid})", name.trim_end().escape_debug()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn at(protocol: Protocol, port: u16) -> Vec<String> {
        let all = listeners().unwrap();
        all.iter().filter(|l| l.protocol == protocol && l.port == port).map(|l| l.ip.to_string()).collect()
    }

    #[test]
    fn listeners_are_seen_where_they_listen() {
        for (address, seen) in [
            ("0.0.0.0", &["0.0.0.0"][..]),
            ("127.0.0.1", &["127.0.0.1"]),
            ("[::]", &["0.0.0.0", "::"]),
            ("[::1]", &["::1"]),
        ] {
            let tcp = TcpListener::bind(format!("{address}:0")).unwrap();
            let udp = UdpSocket::bind(format!("{address}:0")).unwrap();
            assert_eq!(at(Protocol::Tcp, tcp.local_addr().unwrap().port()), seen, "{address}");
            assert_eq!(at(Protocol::Udp, udp.local_addr().unwrap().port()), seen, "{address}");
        }
    }

    #[test]
    fn connections_are_no_listeners() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        assert_eq!(at(Protocol::Tcp, client.local_addr().unwrap().port()), [""; 0]);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(server.local_addr().unwrap()).unwrap();
        assert_eq!(at(Protocol::Udp, udp.local_addr().unwrap().port()), [""; 0]);
    }

    #[test]
    fn a_listener_is_named_by_its_process() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let inode = listeners().unwrap().iter().find(|listener| listener.port == port).unwrap().inode;
        let named = process_of(inode).unwrap();
        assert!(named.ends_with(&format!("(process {})", std::process::id())), "{named}");
        assert_eq!(process_of(u32::MAX), None);
    }
}
