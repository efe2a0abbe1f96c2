//! What rules of nftables ask of packets, and the values that they write.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::Deserialize as _;
use serde_json::Value;

use super::unknown;
use crate::family::Family;
use crate::firewall::{AddressType, State, Test, To, What, protocol_number, range_of, tcp_flag};

/// The named sets and maps of a table that change only when somebody changes the table.
pub(super) struct Sets<'a> {
    elements: BTreeMap<&'a str, &'a [Value]>,
}

impl<'a> Sets<'a> {
    pub(super) fn new(sets: impl Iterator<Item = &'a Value>) -> Self {
        let read = |set: &'a Value| {
            let flags = set["flags"].as_array().map(Vec::as_slice).unwrap_or_default();
            let changes = flags.iter().any(|flag| flag == "dynamic" || flag == "timeout") || !set["timeout"].is_null();
            let name = set["name"].as_str().filter(|_| !changes)?;
            Some((name, set["elem"].as_array().map(Vec::as_slice).unwrap_or_default()))
        };
        Self { elements: sets.filter_map(read).collect() }
    }

    /// Those of an anonymous set or map, or of one that is named; `None` where nobody can tell which they are.
    pub(super) fn elements<'b>(&'b self, value: &'b Value) -> Option<&'b [Value]> {
        if let Some(name) = value.as_str() {
            return self.elements.get(name.strip_prefix('@')?).copied();
        }
        value.get("set").unwrap_or(value).as_array().map(Vec::as_slice)
    }

    /// The tests that `left right` stands for, one of which must hold as a whole; some ask for a protocol as well.
    pub(super) fn matching(&self, op: &str, left: &Value, right: &Value, negated: bool) -> Vec<Vec<Test>> {
        let Some(parts) = left["concat"].as_array() else { return vec![self.simple(op, left, right, negated)] };
        // One who has none of the combinations may have a part of each.
        let elements = match right["concat"].as_array() {
            Some(_) => Some(std::slice::from_ref(right)),
            None => self.elements(right),
        };
        let Some(elements) = elements.filter(|_| !negated) else { return vec![vec![unknown(negated)]] };
        let combined = |element: &Value| {
            let values = bare(element)["concat"].as_array().filter(|values| values.len() == parts.len());
            let Some(values) = values else { return vec![unknown(true)] };
            parts.iter().zip(values).flat_map(|(part, value)| self.simple("==", part, value, false)).collect()
        };
        elements.iter().map(combined).collect()
    }

    fn simple(&self, op: &str, left: &Value, right: &Value, negated: bool) -> Vec<Test> {
        if let Some((mask, value, flipped)) = tcp_flags(op, left, right) {
            let flags = Test { what: What::TcpFlags { mask, value }, negated: negated != flipped };
            return vec![plain(What::Protocols(vec![6])), flags];
        }
        // What is dealt out by chance may well be dealt to these.
        if ["numgen", "jhash", "symhash"].iter().any(|chance| left.get(chance).is_some()) {
            return vec![unknown(true)];
        }
        // Fragments, which are put together before connection tracking sees them.
        let field = &left["&"][0]["payload"]["field"];
        if negated && *field == "frag-off" && *right == 0 {
            return vec![plain(What::Family(Family::V4)), unknown(false)];
        }
        let understood = if let Some(payload) = left.get("payload") {
            self.of_payload(payload, right)
        } else if let Some(key) = left["meta"]["key"].as_str().filter(|key| *key != "mark") {
            self.of_meta(key, right).map(|what| (Vec::new(), what))
        } else if let Some(fib) = left.get("fib") {
            self.of_route(fib, right).map(|what| (Vec::new(), what))
        } else {
            self.of_connection(left, right).map(|what| (Vec::new(), what))
        };
        match understood {
            Some((mut tests, what)) => {
                tests.push(Test { what, negated });
                tests
            }
            None => vec![unknown(negated)],
        }
    }

    fn of_payload(&self, payload: &Value, right: &Value) -> Option<(Vec<Test>, What)> {
        let (protocol, field) = (payload["protocol"].as_str()?, payload["field"].as_str()?);
        let family = match protocol {
            "ip" => Some(Family::V4),
            "ip6" => Some(Family::V6),
            _ => None,
        };
        if let Some(family) = family {
            let what = match field {
                "saddr" => self.addresses(right).map(What::Sources),
                "daddr" => self.addresses(right).map(What::Destinations),
                "protocol" | "nexthdr" => self.protocols(right).map(What::Protocols),
                _ => None,
            };
            return Some((vec![plain(What::Family(family))], what.unwrap_or(What::Unknown)));
        }
        let what = match field {
            "sport" => self.ports(right).map(What::SourcePorts),
            "dport" => self.ports(right).map(What::DestinationPorts),
            _ => None,
        };
        let number = protocol_number(protocol);
        if number.is_none() && protocol != "th" {
            return None;
        }
        let tests = number.map(|number| plain(What::Protocols(vec![number])));
        Some((tests.into_iter().collect(), what.unwrap_or(What::Unknown)))
    }

    fn of_meta(&self, key: &str, right: &Value) -> Option<What> {
        match key {
            "iifname" | "iif" => self.names(right).map(What::In),
            "oifname" | "oif" => self.names(right).map(What::Out),
            "l4proto" => self.protocols(right).map(What::Protocols),
            "nfproto" => match right.as_str()? {
                "ipv4" => Some(What::Family(Family::V4)),
                "ipv6" => Some(What::Family(Family::V6)),
                _ => None,
            },
            "protocol" => match right.as_str()? {
                "ip" => Some(What::Family(Family::V4)),
                "ip6" => Some(What::Family(Family::V6)),
                _ => None,
            },
            _ => None,
        }
    }

    fn of_connection(&self, left: &Value, right: &Value) -> Option<What> {
        let masked = left["&"].as_array();
        let mask = masked.map_or(Some(u32::MAX), |masked| u32::deserialize(masked.get(1)?).ok())?;
        let of = masked.map_or(left, |masked| masked.first().unwrap_or(left));
        if of["meta"]["key"] == "mark" {
            return Some(What::PacketMark { mask, value: u32::deserialize(right).ok()? });
        }
        if of["ct"]["key"] == "mark" {
            return Some(What::ConnectionMark { mask, value: u32::deserialize(right).ok()? });
        }
        match left["ct"]["key"].as_str()? {
            "state" => Some(What::States(self.listed(right, |state| {
                Some(match state.as_str()? {
                    "new" => State::New,
                    "established" => State::Established,
                    "related" => State::Related,
                    "invalid" => State::Invalid,
                    _ => State::Other,
                })
            })?)),
            "status" if right == "dnat" => Some(What::States(vec![State::Dnat])),
            "status" if right == "snat" => Some(What::States(vec![State::Snat])),
            "direction" => Some(What::Reply(right == "reply")),
            _ => None,
        }
    }

    /// Every element of an anonymous set or a list, or the one value; `None` if any is not understood.
    fn listed<T>(&self, right: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        match self.elements(right) {
            Some(elements) => elements.iter().map(|element| read(bare(element))).collect(),
            None => read(right).map(|one| vec![one]),
        }
    }

    fn names(&self, right: &Value) -> Option<Vec<String>> {
        self.listed(right, |name| name.as_str().filter(|name| !name.starts_with('@')).map(str::to_owned))
    }

    fn protocols(&self, right: &Value) -> Option<Vec<u8>> {
        self.listed(right, |protocol| match protocol {
            Value::String(name) => protocol_number(name),
            number => u8::deserialize(number).ok(),
        })
    }

    fn ports(&self, right: &Value) -> Option<Vec<RangeInclusive<u16>>> {
        self.listed(right, port_range)
    }

    fn addresses(&self, right: &Value) -> Option<Vec<RangeInclusive<IpAddr>>> {
        self.listed(right, address_range)
    }

    /// Whether an address is one of this host.
    fn of_route(&self, fib: &Value, right: &Value) -> Option<What> {
        let flags = &fib["flags"];
        let is = |flag: &str| *flags == flag || *flags == Value::from(vec![flag]);
        let types = self.listed(right, |name| {
            Some(match name.as_str()? {
                "local" => AddressType::Local,
                "unicast" => AddressType::Unicast,
                _ => AddressType::Other,
            })
        });
        match fib["result"].as_str()? {
            "type" if is("daddr") => types.map(What::DestinationTypes),
            "type" if is("saddr") => types.map(What::SourceTypes),
            _ => None,
        }
    }
}

/// An element of a set without its comment, its counter and the like.
pub(super) fn bare(element: &Value) -> &Value {
    element.get("elem").and_then(|element| element.get("val")).unwrap_or(element)
}

fn plain(what: What) -> Test {
    Test { what, negated: false }
}

/// The bits of the TCP flags that are asked for, what they must be, and whether it is about all that have them otherwise.
fn tcp_flags(op: &str, left: &Value, right: &Value) -> Option<(u8, u8, bool)> {
    let bits = |names: &Value| match names.as_array() {
        Some(names) => names.iter().try_fold(0, |bits, name| Some(bits | tcp_flag(name.as_str()?)?)),
        None => {
            if *names == 0 {
                Some(0)
            } else {
                tcp_flag(names.as_str()?)
            }
        }
    };
    let is_flags = |left: &Value| left["payload"]["protocol"] == "tcp" && left["payload"]["field"] == "flags";
    if let Some([field, mask]) = left["&"].as_array().map(Vec::as_slice) {
        return Some((bits(mask)?, bits(right)?, false)).filter(|_| is_flags(field));
    }
    let all = bits(right).filter(|_| is_flags(left))?;
    // Without a mask one of the flags is enough.
    Some(if op == "in" { (all, 0, true) } else { (u8::MAX, all, false) })
}

/// What a mark becomes: the bits from the connection mark, those from the packet mark, and those that are turned over then.
pub(super) fn mark_value(value: &Value) -> Option<(u32, u32, u32)> {
    if let Some(number) = value.as_u64() {
        return Some((0, 0, u32::try_from(number).ok()?));
    }
    if value["ct"]["key"] == "mark" {
        return Some((u32::MAX, 0, 0));
    }
    if value["meta"]["key"] == "mark" {
        return Some((0, u32::MAX, 0));
    }
    let (op, values) = value.as_object()?.iter().next()?;
    let (first, others) = values.as_array()?.split_first()?;
    others.iter().try_fold(mark_value(first)?, |(connection, packet, flip), other| {
        let bits = u32::deserialize(other).ok()?;
        Some(match op.as_str() {
            "&" => (connection & bits, packet & bits, flip & bits),
            "|" => (connection & !bits, packet & !bits, flip | bits),
            "^" => (connection, packet, flip ^ bits),
            _ => return None,
        })
    })
}

/// Where `dnat` sends packets.
pub(super) fn destination(body: &Value) -> To {
    let read = || {
        let ips = body.get("addr").map(|address| address_range(address).ok_or(())).transpose().ok()?;
        let ports = body.get("port").map(|port| port_range(port).ok_or(())).transpose().ok()?;
        Some(To::Addresses { ips, ports })
    };
    read().unwrap_or(To::Unknown)
}

fn port_range(ports: &Value) -> Option<RangeInclusive<u16>> {
    let port = |port: &Value| u16::deserialize(port).ok();
    match ports.get("range") {
        Some(range) => Some(port(&range[0])?..=port(&range[1])?),
        None => port(ports).map(|port| port..=port),
    }
}

fn address_range(addresses: &Value) -> Option<RangeInclusive<IpAddr>> {
    let address = |address: &Value| address.as_str()?.parse::<IpAddr>().ok();
    if let Some(range) = addresses.get("range") {
        return Some(address(&range[0])?..=address(&range[1])?);
    }
    if let Some(prefix) = addresses.get("prefix") {
        let length = u8::deserialize(&prefix["len"]).ok()?;
        return IpNet::new(address(&prefix["addr"])?, length).ok().map(range_of);
    }
    address(addresses).map(|one| one..=one)
}
