//! The kernel's tracked connections: list ours, list UDP, delete exactly one.
//!
//! Which of them are no longer allowed is decided elsewhere, in `sallyport_ruleset::flow`.

use std::net::SocketAddr;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, Nla, parse_u16_be, parse_u32_be,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, ConntrackMessageType, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple,
    Protocol as ProtocolNumber, Status, Tuple as TupleAttribute,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use sallyport_ruleset::Protocol;
use sallyport_ruleset::flow::{Flow, Tuple};

use crate::netlink::{Error, Socket};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// "The protocol number of the tuple must be equal" (`net/netfilter/nf_internals.h`).
const FILTER_PROTOCOL: u32 = 1 << 3;

// include/uapi/linux/netfilter/nf_conntrack_tcp.h
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;

/// The connections tracked in one network namespace.
///
/// After an error other than [`Error::Refused`], open a new one.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the socket that all calls use, in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER)? })
    }

    /// Every TCP and UDP connection, IPv4 and IPv6, of any zone, whose mark has under `mask` the
    /// bits of `ours`.
    pub fn ours(&self, ours: u32, mask: u32) -> Result<Vec<Flow>, Error> {
        let filter = ConntrackMessage::Get(vec![
            ConntrackAttribute::CtaMark(ours),
            other(CTA_MARK_MASK, mask.to_be_bytes().to_vec()),
        ]);
        let mut flows = Vec::new();
        // Unspec is both families. A kernel without the filter sends everything: look again.
        self.list("list connections by mark", NetfilterProtoFamily::Unspec, filter, |flow| {
            if flow.mark & mask == ours & mask {
                flows.push(flow);
            }
        })?;
        Ok(flows)
    }

    /// Every UDP connection, IPv4 and IPv6, of any zone, whoever's it is.
    pub fn udp(&self) -> Result<Vec<Flow>, Error> {
        let mut flows = Vec::new();
        // The kernel takes a filter by protocol only together with one family.
        for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            // A kernel before 5.8 ignores CTA_FILTER and sends everything: look again.
            self.list("list UDP connections", family, get_udp(), |flow| {
                if flow.protocol == Protocol::Udp {
                    flows.push(flow);
                }
            })?;
        }
        Ok(flows)
    }

    /// Deletes this connection: the entry with this original tuple, zone and id. `false` when it
    /// no longer exists.
    ///
    /// An equal connection made since is spared, unless the kernel happened to put it into the
    /// very memory of this one: the id is a hash of that address (`nf_ct_get_id`).
    pub fn delete(&self, flow: &Flow) -> Result<bool, Error> {
        let attributes = vec![
            ConntrackAttribute::CtaTupleOrig(tuple_attributes(flow.protocol, &flow.original)),
            other(CTA_ZONE, flow.zone.to_be_bytes().to_vec()),
            other(CTA_ID, flow.id.to_be_bytes().to_vec()),
        ];
        let family = match flow.original.src {
            SocketAddr::V4(_) => NetfilterProtoFamily::IPv4,
            SocketAddr::V6(_) => NetfilterProtoFamily::IPv6,
        };
        let request = message(family, ConntrackMessage::Delete(attributes));
        match self.socket.ask("delete a connection", request, NLM_F_ACK, |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(Error::Refused { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(
        &self,
        question: &'static str,
        family: NetfilterProtoFamily,
        filter: ConntrackMessage,
        mut each: impl FnMut(Flow),
    ) -> Result<(), Error> {
        let request = message(family, filter);
        self.socket.ask(question, request, NLM_F_DUMP, |answer| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = answer.inner
                && let Some(flow) = decode(&attributes)?
            {
                each(flow);
            }
            Ok(())
        })
    }
}

fn message(family: NetfilterProtoFamily, inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

fn other(kind: u16, value: Vec<u8>) -> ConntrackAttribute {
    ConntrackAttribute::Other(DefaultNla::new(kind, value))
}

/// Asks for UDP only. Built from plain attributes, because [`ConntrackAttribute::Other`] loses the
/// flag `NLA_F_NESTED` that `CTA_FILTER` must have.
fn get_udp() -> ConntrackMessage {
    let protocol = TupleAttribute::Proto(vec![ProtoTuple::Protocol(ProtocolNumber::Udp)]);
    let flags = DefaultNla::new(CTA_FILTER_ORIG_FLAGS, FILTER_PROTOCOL.to_ne_bytes().to_vec());
    ConntrackMessage::Other {
        message_type: ConntrackMessageType::Get.into(),
        attributes: vec![nested(CTA_TUPLE_ORIG, &protocol), nested(CTA_FILTER, &flags)],
    }
}

fn nested(kind: u16, inner: &impl Nla) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn tuple_attributes(protocol: Protocol, tuple: &Tuple) -> Vec<TupleAttribute> {
    let number = match protocol {
        Protocol::Tcp => ProtocolNumber::Tcp,
        Protocol::Udp => ProtocolNumber::Udp,
    };
    vec![
        TupleAttribute::Ip(vec![IPTuple::SourceAddress(tuple.src.ip()), IPTuple::DestinationAddress(tuple.dst.ip())]),
        TupleAttribute::Proto(vec![
            ProtoTuple::Protocol(number),
            ProtoTuple::SourcePort(tuple.src.port()),
            ProtoTuple::DestinationPort(tuple.dst.port()),
        ]),
    ]
}

/// A TCP or UDP entry as a flow, `None` for every other protocol.
fn decode(attributes: &[ConntrackAttribute]) -> Result<Option<Flow>, DecodeError> {
    let (mut original, mut reply, mut id) = (None, None, None);
    let (mut mark, mut zone, mut dnat, mut is_over) = (0, 0, false, false);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => {
                let Some(endpoints) = decode_tuple(parts)? else {
                    return Ok(None);
                };
                original = Some(endpoints);
                // A zone of the original direction only is told here instead of in CTA_ZONE.
                zone = tuple_zone(parts)?.unwrap_or(zone);
            }
            ConntrackAttribute::CtaTupleReply(parts) => reply = decode_tuple(parts)?,
            ConntrackAttribute::CtaStatus(status) => dnat = status.contains(Status::DstNat),
            ConntrackAttribute::CtaMark(value) => mark = *value,
            ConntrackAttribute::CtaProtoInfo(infos) => is_over = infos.iter().any(is_closed),
            ConntrackAttribute::Other(nla) if nla.kind() == CTA_ID => {
                id = Some(parse_u32_be(&value(nla))?);
            }
            ConntrackAttribute::Other(nla) if nla.kind() == CTA_ZONE => {
                zone = parse_u16_be(&value(nla))?;
            }
            _ => {}
        }
    }
    match (original, reply, id) {
        (Some((protocol, original)), Some((_, reply)), Some(id)) => {
            Ok(Some(Flow { protocol, original, reply, mark, dnat, id, zone, is_over }))
        }
        _ => Err(DecodeError::from("entry without tuples or id")),
    }
}

fn is_closed(info: &ProtoInfo) -> bool {
    let ProtoInfo::TCP(parts) = info else { return false };
    parts.iter().any(|part| matches!(part, ProtoInfoTCP::State(TIME_WAIT | CLOSE)))
}

/// Protocol and endpoints of one direction, `None` when it is neither TCP nor UDP.
fn decode_tuple(parts: &[TupleAttribute]) -> Result<Option<(Protocol, Tuple)>, DecodeError> {
    let (mut src, mut dst, mut src_port, mut dst_port) = (None, None, None, None);
    let mut protocol = None;
    for part in parts {
        match part {
            TupleAttribute::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(ip) => src = Some(*ip),
                        IPTuple::DestinationAddress(ip) => dst = Some(*ip),
                        _ => {}
                    }
                }
            }
            TupleAttribute::Proto(fields) => {
                for field in fields {
                    match field {
                        ProtoTuple::Protocol(ProtocolNumber::Tcp) => protocol = Some(Protocol::Tcp),
                        ProtoTuple::Protocol(ProtocolNumber::Udp) => protocol = Some(Protocol::Udp),
                        ProtoTuple::Protocol(_) => protocol = None,
                        ProtoTuple::SourcePort(port) => src_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => dst_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let Some(protocol) = protocol else { return Ok(None) };
    let (Some(src), Some(dst), Some(src_port), Some(dst_port)) = (src, dst, src_port, dst_port) else {
        return Err(DecodeError::from("tuple without addresses or ports"));
    };
    let (src, dst) = (SocketAddr::new(src, src_port), SocketAddr::new(dst, dst_port));
    Ok(Some((protocol, Tuple { src, dst })))
}

fn tuple_zone(parts: &[TupleAttribute]) -> Result<Option<u16>, DecodeError> {
    let zone = parts.iter().find_map(|part| match part {
        TupleAttribute::Other(nla) if nla.kind() == CTA_TUPLE_ZONE => Some(value(nla)),
        _ => None,
    });
    zone.map(|bytes| parse_u16_be(&bytes)).transpose()
}

fn value(nla: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    bytes
}
