//! The kernel's tracked connections: list those that matter, delete exactly one.
//!
//! A host may track hundreds of thousands that are nobody's business here: the kernel is asked for as few as it can tell apart,
//! what comes is read where it lies, and only what the caller picks is kept. Which of them are no longer allowed is decided
//! elsewhere, in `sallyport_ruleset::flow`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, Nla as _, NlaBuffer, NlasIterator, parse_ip, parse_u8,
    parse_u16_be, parse_u32_be,
};
use netlink_packet_netfilter::conntrack::{ConntrackMessage, ConntrackMessageType};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use sallyport_ruleset::Protocol;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::flow::{Flow, Stage, Start, Tuple};

use crate::netlink::{Error, Socket};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_TUPLE_MASTER: u16 = 14;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_FILTER: u16 = 25;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const IPCTNL_MSG_CT_GET_STATS: u8 = 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
/// "The protocol number of the tuple must be equal" (`net/netfilter/nf_internals.h`).
const FILTER_PROTOCOL: u32 = 1 << 3;
/// The same of its destination address.
const FILTER_DESTINATION: u32 = 1 << 1;

// include/uapi/linux/netfilter/nf_conntrack_common.h
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_DST_NAT: u32 = 1 << 5;

// include/uapi/linux/netfilter/nf_conntrack_tcp.h
const SYN_SENT: u8 = 1;
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;

// include/uapi/linux/in.h
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// The kernel walks all entries for each list that it is asked for: for more addresses than these, one list of all is quicker.
const ONE_BY_ONE: usize = 8;
/// So few entries are sent sooner than the kernel walks its table again, whose size is that of the host's memory and not theirs.
const FEW: u32 = 2_000;
/// Bytes before the attributes of a message (`struct nfgenmsg`).
const HEADER_BYTES: usize = 4;

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

    /// Gives `each` every TCP and UDP connection, of both families, that is among these:
    /// - its destination was translated, and it has a bit of `mark` or was sent to one of `addresses` in no zone that somebody made;
    /// - it is of one of the families and protocols of `untranslated`, of any zone, and its destination was not translated; of TCP
    ///   only if it was not answered.
    pub async fn flows(
        &self,
        mark: u32,
        addresses: &BTreeSet<IpAddr>,
        untranslated: &BTreeSet<(Family, Protocol)>,
        mut each: impl FnMut(&Flow),
    ) -> Result<(), Error> {
        if self.count()? <= FEW {
            let filter = if untranslated.is_empty() { status(IPS_DST_NAT, IPS_DST_NAT) } else { Vec::new() };
            let look = |flow: &Flow| {
                let translated = flow.dnat && is_meant(flow, mark, addresses);
                if translated || !flow.dnat && untranslated.iter().any(|kind| is_of(flow, *kind)) {
                    each(flow);
                }
            };
            return self.list("list connections", NetfilterProtoFamily::Unspec, filter, look).await;
        }
        self.translated(mark, addresses, &mut each).await?;
        for kind in untranslated {
            self.untranslated(*kind, &mut each).await?;
        }
        Ok(())
    }

    async fn translated(
        &self,
        mark: u32,
        addresses: &BTreeSet<IpAddr>,
        mut each: impl FnMut(&Flow),
    ) -> Result<(), Error> {
        let question = "list translated connections";
        if addresses.len() > ONE_BY_ONE {
            let filter = status(IPS_DST_NAT, IPS_DST_NAT);
            let look = |flow: &Flow| {
                if flow.dnat && is_meant(flow, mark, addresses) {
                    each(flow);
                }
            };
            return self.list(question, NetfilterProtoFamily::Unspec, filter, look).await;
        }
        let mut filter = status(IPS_DST_NAT, IPS_DST_NAT);
        filter.extend([number(CTA_MARK, mark), number(CTA_MARK_MASK, mark)]);
        // A kernel ignores the filters that it does not know, and sends everything: look again.
        let by_mark = |flow: &Flow| {
            if flow.dnat && flow.mark & mark != 0 {
                each(flow);
            }
        };
        self.list(question, NetfilterProtoFamily::Unspec, filter, by_mark).await?;
        let mut unmarked = |flow: &Flow| {
            if flow.dnat && flow.mark & mark == 0 && is_meant(flow, mark, addresses) {
                each(flow);
            }
        };
        for address in addresses.iter().filter(|address| address.is_ipv4()) {
            let mut filter = status(IPS_DST_NAT, IPS_DST_NAT);
            filter.push(nested(CTA_TUPLE_ORIG, &[nested(CTA_TUPLE_IP, &[destination(*address)])]));
            filter.push(only(FILTER_DESTINATION));
            self.list(question, NetfilterProtoFamily::IPv4, filter, &mut unmarked).await?;
        }
        // Of IPv6 kernels send what has another destination than is asked for (`ctnetlink_filter_match_tuple`, seen with 6.18).
        if addresses.iter().any(IpAddr::is_ipv6) {
            let filter = status(IPS_DST_NAT, IPS_DST_NAT);
            let six = |flow: &Flow| {
                if flow.original.dst.is_ipv6() {
                    unmarked(flow);
                }
            };
            self.list(question, NetfilterProtoFamily::IPv6, filter, six).await?;
        }
        Ok(())
    }

    async fn untranslated(
        &self,
        (family, protocol): (Family, Protocol),
        mut each: impl FnMut(&Flow),
    ) -> Result<(), Error> {
        let unanswered = match protocol {
            Protocol::Tcp => IPS_SEEN_REPLY,
            Protocol::Udp => 0,
        };
        let mut filter = status(0, IPS_DST_NAT | unanswered);
        // The kernel takes a filter by protocol only together with one family.
        filter.push(nested(CTA_TUPLE_ORIG, &[nested(CTA_TUPLE_PROTO, &[protocol_number(protocol)])]));
        filter.push(only(FILTER_PROTOCOL));
        // A kernel before 5.8 ignores that one.
        self.list("list connections that were not translated", family_of(family), filter, |flow| {
            if !flow.dnat && is_of(flow, (family, protocol)) {
                each(flow);
            }
        })
        .await
    }

    /// How many connections are tracked, of any protocol (`IPCTNL_MSG_CT_GET_STATS`).
    fn count(&self) -> Result<u32, Error> {
        let mut count = None;
        let kind = ConntrackMessageType::Other(IPCTNL_MSG_CT_GET_STATS);
        let question = request(NetfilterProtoFamily::Unspec, kind, Vec::new());
        self.socket.ask("count connections", question, 0, |answer| {
            let NetfilterMessageInner::Conntrack(ConntrackMessage::Other { attributes, .. }) = answer.inner else {
                return Ok(());
            };
            if let Some(entries) = attributes.iter().find(|attribute| attribute.kind() == CTA_STATS_GLOBAL_ENTRIES) {
                let mut value = vec![0; entries.value_len()];
                entries.emit_value(&mut value);
                count = Some(parse_u32_be(&value)?);
            }
            Ok(())
        })?;
        // A kernel that does not say may have very many.
        Ok(count.unwrap_or(u32::MAX))
    }

    /// Deletes this connection: the entry with this original tuple, zone and id. `false` when it
    /// no longer exists.
    ///
    /// An equal connection made since is spared, unless the kernel happened to put it into the
    /// very memory of this one: the id is a hash of that address (`nf_ct_get_id`).
    pub fn delete(&self, flow: &Flow) -> Result<bool, Error> {
        let attributes = vec![
            tuple_attribute(flow.start()),
            DefaultNla::new(CTA_ZONE, flow.zone.to_be_bytes().to_vec()),
            DefaultNla::new(CTA_ID, flow.id.to_be_bytes().to_vec()),
        ];
        let family = family_of(Family::of(flow.original.src.ip()));
        let request = request(family, ConntrackMessageType::Delete, attributes);
        match self.socket.ask("delete a connection", request, NLM_F_ACK, |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(Error::Refused { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn list(
        &self,
        question: &'static str,
        family: NetfilterProtoFamily,
        filter: Vec<DefaultNla>,
        mut each: impl FnMut(&Flow),
    ) -> Result<(), Error> {
        let request = request(family, ConntrackMessageType::Get, filter);
        let read = |entry: &[u8]| {
            if let Some(flow) = decode(entry)? {
                each(&flow);
            }
            Ok(())
        };
        self.socket.list(question, request, read).await
    }
}

/// Whether a connection that was translated has a bit of `mark`, or was sent to one of `addresses` in no zone.
fn is_meant(flow: &Flow, mark: u32, addresses: &BTreeSet<IpAddr>) -> bool {
    flow.mark & mark != 0 || flow.zone == 0 && addresses.contains(&flow.original.dst.ip())
}

/// Whether one that was not translated is of this kind, and of TCP not answered.
fn is_of(flow: &Flow, (family, protocol): (Family, Protocol)) -> bool {
    let is_unanswered = protocol == Protocol::Udp || flow.stage == Stage::Opening;
    is_unanswered && flow.protocol == protocol && Family::of(flow.original.dst.ip()) == family
}

/// Built from plain attributes, since the typed ones of the library lose the flag `NLA_F_NESTED` that `CTA_FILTER` must have.
fn request(
    family: NetfilterProtoFamily,
    message_type: ConntrackMessageType,
    attributes: Vec<DefaultNla>,
) -> NetfilterMessage {
    let message = ConntrackMessage::Other { message_type: message_type.into(), attributes };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn family_of(family: Family) -> NetfilterProtoFamily {
    match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    }
}

/// Asks for those entries whose status has under `mask` the bits of `bits`.
fn status(bits: u32, mask: u32) -> Vec<DefaultNla> {
    vec![number(CTA_STATUS, bits), number(CTA_STATUS_MASK, mask)]
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// Says which parts of the original direction an entry must have as asked.
fn only(parts: u32) -> DefaultNla {
    nested(CTA_FILTER, &[DefaultNla::new(CTA_FILTER_ORIG_FLAGS, parts.to_ne_bytes().to_vec())])
}

fn destination(ip: IpAddr) -> DefaultNla {
    match ip {
        IpAddr::V4(ip) => DefaultNla::new(CTA_IP_V4_DST, ip.octets().to_vec()),
        IpAddr::V6(ip) => DefaultNla::new(CTA_IP_V6_DST, ip.octets().to_vec()),
    }
}

fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn protocol_number(protocol: Protocol) -> DefaultNla {
    let number = match protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
    };
    DefaultNla::new(CTA_PROTO_NUM, vec![number])
}

fn tuple_attribute((protocol, tuple): Start) -> DefaultNla {
    let source = match tuple.src.ip() {
        IpAddr::V4(ip) => DefaultNla::new(CTA_IP_V4_SRC, ip.octets().to_vec()),
        IpAddr::V6(ip) => DefaultNla::new(CTA_IP_V6_SRC, ip.octets().to_vec()),
    };
    let port = |kind, port: u16| DefaultNla::new(kind, port.to_be_bytes().to_vec());
    let addresses = nested(CTA_TUPLE_IP, &[source, destination(tuple.dst.ip())]);
    let (from, to) = (port(CTA_PROTO_SRC_PORT, tuple.src.port()), port(CTA_PROTO_DST_PORT, tuple.dst.port()));
    nested(CTA_TUPLE_ORIG, &[addresses, nested(CTA_TUPLE_PROTO, &[protocol_number(protocol), from, to])])
}

fn attributes(bytes: &[u8]) -> NlasIterator<&[u8]> {
    NlasIterator::new(bytes)
}

/// An entry as a flow, `None` if it is neither TCP nor UDP.
fn decode(entry: &[u8]) -> Result<Option<Flow>, DecodeError> {
    let (mut original, mut reply, mut master, mut id) = (None, None, None, None);
    let (mut status, mut mark, mut zone, mut stage) = (0, 0, 0, Stage::Open);
    for attribute in attributes(entry.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            CTA_TUPLE_ORIG => {
                let Some(start) = decode_tuple(value)? else { return Ok(None) };
                original = Some(start);
                // A zone of the original direction only is told here instead of in CTA_ZONE.
                zone = find(value, CTA_TUPLE_ZONE)?.map_or(Ok(zone), |nla| parse_u16_be(nla.value()))?;
            }
            CTA_TUPLE_REPLY => reply = decode_tuple(value)?,
            CTA_TUPLE_MASTER => master = decode_tuple(value)?,
            CTA_STATUS => status = parse_u32_be(value)?,
            CTA_PROTOINFO => stage = decode_stage(value)?,
            CTA_MARK => mark = parse_u32_be(value)?,
            CTA_ID => id = Some(parse_u32_be(value)?),
            CTA_ZONE => zone = parse_u16_be(value)?,
            _ => {}
        }
    }
    let dnat = status & IPS_DST_NAT != 0;
    match (original, reply, id) {
        (Some((protocol, original)), Some((_, reply)), Some(id)) => {
            Ok(Some(Flow { protocol, original, reply, master, mark, dnat, id, zone, stage }))
        }
        _ => Err(DecodeError::from("entry without tuples or id")),
    }
}

fn decode_stage(protoinfo: &[u8]) -> Result<Stage, DecodeError> {
    let Some(tcp) = find(protoinfo, CTA_PROTOINFO_TCP)? else { return Ok(Stage::Open) };
    let Some(state) = find(tcp.value(), CTA_PROTOINFO_TCP_STATE)? else { return Ok(Stage::Open) };
    Ok(match parse_u8(state.value())? {
        SYN_SENT => Stage::Opening,
        TIME_WAIT | CLOSE => Stage::Over,
        _ => Stage::Open,
    })
}

/// Protocol and endpoints of one direction, `None` when it is neither TCP nor UDP.
fn decode_tuple(parts: &[u8]) -> Result<Option<Start>, DecodeError> {
    let (mut src, mut dst, mut src_port, mut dst_port) = (None, None, None, None);
    let mut protocol = None;
    for part in attributes(parts) {
        let part = part?;
        let is_ip = part.kind() == CTA_TUPLE_IP;
        if !is_ip && part.kind() != CTA_TUPLE_PROTO {
            continue;
        }
        for field in attributes(part.value()) {
            let field = field?;
            match (is_ip, field.kind()) {
                (true, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => src = Some(parse_ip(field.value())?),
                (true, CTA_IP_V4_DST | CTA_IP_V6_DST) => dst = Some(parse_ip(field.value())?),
                (false, CTA_PROTO_NUM) => {
                    protocol = match parse_u8(field.value())? {
                        IPPROTO_TCP => Some(Protocol::Tcp),
                        IPPROTO_UDP => Some(Protocol::Udp),
                        _ => return Ok(None),
                    };
                }
                (false, CTA_PROTO_SRC_PORT) => src_port = Some(parse_u16_be(field.value())?),
                (false, CTA_PROTO_DST_PORT) => dst_port = Some(parse_u16_be(field.value())?),
                _ => {}
            }
        }
    }
    let (Some(protocol), Some(src), Some(dst), Some(src_port), Some(dst_port)) =
        (protocol, src, dst, src_port, dst_port)
    else {
        return Err(DecodeError::from("tuple without addresses or ports"));
    };
    let (src, dst) = (SocketAddr::new(src, src_port), SocketAddr::new(dst, dst_port));
    Ok(Some((protocol, Tuple { src, dst })))
}

/// The first attribute of this kind in `bytes`.
fn find(bytes: &[u8], kind: u16) -> Result<Option<NlaBuffer<&[u8]>>, DecodeError> {
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            return Ok(Some(attribute));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(protocol: Protocol, src: &str, dst: &str) -> Start {
        (protocol, Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() })
    }

    /// A tuple as an attribute of another kind than the original direction.
    fn tuple_of(kind: u16, start: Start) -> DefaultNla {
        let original = tuple_attribute(start);
        let mut bytes = vec![0; original.value_len()];
        original.emit_value(&mut bytes);
        DefaultNla::new(kind | NLA_F_NESTED, bytes)
    }

    fn entry(attributes: &[DefaultNla]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + attributes.buffer_len()];
        attributes.emit(&mut bytes[HEADER_BYTES..]);
        bytes
    }

    #[test]
    fn a_connection_that_a_helper_expected_names_its_master() {
        let file = start(Protocol::Tcp, "10.30.1.80:40001", "10.30.1.78:50001");
        let control = start(Protocol::Tcp, "10.30.1.80:40000", "10.30.1.78:21");
        let answers = start(Protocol::Tcp, "10.30.1.79:50001", "10.30.1.78:40001");
        let attributes = [
            tuple_attribute(file),
            tuple_of(CTA_TUPLE_REPLY, answers),
            number(CTA_STATUS, IPS_DST_NAT),
            tuple_of(CTA_TUPLE_MASTER, control),
            number(CTA_ID, 7),
        ];
        let flow = decode(&entry(&attributes)).unwrap().unwrap();
        assert_eq!((flow.start(), flow.master, flow.dnat), (file, Some(control), true));
        let alone = decode(&entry(&attributes[..3].iter().cloned().chain([number(CTA_ID, 7)]).collect::<Vec<_>>()));
        assert_eq!(alone.unwrap().unwrap().master, None);
    }

    #[test]
    fn an_entry_that_is_cut_off_is_an_error_and_no_panic() {
        let tuple = start(Protocol::Udp, "[fd00::80]:1", "[fd00::78]:53");
        let attributes = [tuple_attribute(tuple), tuple_of(CTA_TUPLE_REPLY, tuple), number(CTA_ID, 7)];
        let whole = entry(&attributes);
        assert!(decode(&whole).unwrap().is_some());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "{length} bytes");
        }
    }
}
