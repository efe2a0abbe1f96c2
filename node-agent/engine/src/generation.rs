//! Has anybody changed nftables? The kernel's own counter says so.
//!
//! Rules made with iptables-legacy do not move it.

use netlink_packet_core::DecodeError;
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage, NfTablesMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink::{Error, Socket};

/// Reads the number that every nftables transaction in this network namespace moves
/// (`NFT_MSG_GETGEN`, `include/uapi/linux/netfilter/nf_tables.h`); iptables-nft is nftables too.
#[derive(Debug)]
pub struct Generation {
    socket: Socket,
}

impl Generation {
    /// Opens the socket that all readings use.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER)? })
    }

    /// The generation now: a few microseconds. Equal readings mean that nothing changed between
    /// them; the number wraps around, so it has no order.
    ///
    /// Refused where the kernel has no nftables.
    pub fn current(&self) -> Result<u32, Error> {
        let request = NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
            NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() }),
        );
        let mut generation = 0;
        self.socket.ask("read the nftables generation", request, 0, |answer| {
            generation = id(answer).ok_or_else(|| DecodeError::from("no NFTA_GEN_ID"))?;
            Ok(())
        })?;
        Ok(generation)
    }
}

fn id(answer: NetfilterMessage) -> Option<u32> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(message)) = answer.inner else {
        return None;
    };
    message.attributes.iter().find_map(|attribute| match attribute {
        GenAttribute::Id(id) => Some(*id),
        _ => None,
    })
}
