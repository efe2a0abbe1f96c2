//! `nft --json list table` → a table.
//!
//! What is not understood becomes something that nobody can tell, never something that is left out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::Deserialize as _;
use serde_json::Value;

use crate::family::Family;
use crate::firewall::{
    BaseChain, FirewallRule, FirewallTable, Holder, Hook, State, Test, Verdict, What, protocol_number, range_of,
};

/// Why the output of `nft` is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON.
    #[error("nft printed no JSON")]
    Json(#[from] serde_json::Error),
    /// It has no table of that name.
    #[error("nft printed no table {family} {name}")]
    NoTable {
        /// Its family.
        family: String,
        /// Its name.
        name: String,
    },
}

/// Reads the table `name` of `family` (`inet`, `ip` or `ip6`).
pub fn parse(json: &str, family: &str, name: &str) -> Result<FirewallTable, Error> {
    let all: Value = serde_json::from_str(json)?;
    let objects = all["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let here = |object: &Value, table: &str| object["family"] == family && object[table] == name;
    if !objects.iter().any(|object| here(&object["table"], "name")) {
        return Err(Error::NoTable { family: family.to_owned(), name: name.to_owned() });
    }
    let families = match family {
        "ip" => vec![Family::V4],
        "ip6" => vec![Family::V6],
        _ => Family::BOTH.to_vec(),
    };
    let mut table = FirewallTable {
        holder: Holder::Nftables,
        name: name.to_owned(),
        families,
        base: Vec::new(),
        chains: BTreeMap::new(),
        used: objects.iter().any(|object| here(&object["rule"], "table")),
    };
    for object in objects {
        let (chain, rule) = (&object["chain"], &object["rule"]);
        if here(chain, "table") {
            table.base.extend(base_chain(chain));
            table.chains.entry(text(&chain["name"])).or_default();
        }
        if here(rule, "table") {
            let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            table.chains.entry(text(&rule["chain"])).or_default().extend(rules(expressions));
        }
    }
    Ok(table)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Chains that translate addresses drop nothing, and other hooks see no forwarded packet.
fn base_chain(chain: &Value) -> Option<BaseChain> {
    let hook = Hook::named(chain["hook"].as_str()?).filter(|_| chain["type"] != "nat")?;
    let priority = chain["prio"].as_i64().and_then(|priority| i32::try_from(priority).ok()).unwrap_or_default();
    Some(BaseChain { name: text(&chain["name"]), hook, priority, drops: chain["policy"] == "drop" })
}

/// One rule of nftables: mostly one, with a verdict map one for each of its elements.
fn rules(expressions: &[Value]) -> Vec<FirewallRule> {
    let mut tests = Vec::new();
    for expression in expressions {
        let Some((name, body)) = expression.as_object().and_then(|object| object.iter().next()) else {
            tests.push(unknown(false));
            continue;
        };
        let verdict = match name.as_str() {
            "match" => {
                tests.extend(match body["op"].as_str() {
                    Some("==" | "in") => matching(&body["left"], &body["right"], false),
                    Some("!=") => matching(&body["left"], &body["right"], true),
                    _ => vec![unknown(true)],
                });
                continue;
            }
            "vmap" => return verdict_map(&tests, &body["key"], &body["data"]),
            "counter" | "log" | "comment" | "mangle" | "notrack" | "set" | "map" | "flow" | "meter" | "ct helper"
            | "ct timeout" | "ct expectation" | "secmark" | "dup" | "last" => continue,
            // A rate or a number of connections: a part of the packets, which one nobody can tell.
            "limit" | "quota" | "ct count" => {
                tests.push(unknown(false));
                continue;
            }
            _ => {
                let Some(verdict) = verdict(name, body) else {
                    // Among them what iptables made: a match or a verdict that only it can read.
                    tests.push(unknown(true));
                    continue;
                };
                verdict
            }
        };
        return vec![FirewallRule { tests, verdict }];
    }
    vec![FirewallRule { tests, verdict: Verdict::Continue }]
}

fn verdict(name: &str, body: &Value) -> Option<Verdict> {
    Some(match name {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "jump" => Verdict::Jump(text(&body["target"])),
        "goto" => Verdict::Goto(text(&body["target"])),
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        "queue" | "tproxy" | "synproxy" | "fwd" => Verdict::Elsewhere,
        _ => return None,
    })
}

fn verdict_map(tests: &[Test], key: &Value, data: &Value) -> Vec<FirewallRule> {
    let Some(elements) = data["set"].as_array() else {
        // A named map may send these packets anywhere.
        let tests = [tests, &[unknown(false)]].concat();
        return vec![FirewallRule { tests, verdict: Verdict::Elsewhere }];
    };
    let rule = |element: &Value| {
        let (name, body) = element[1].as_object()?.iter().next()?;
        let of_key = if element[0] == "*" { Vec::new() } else { matching(key, &element[0], false) };
        Some(FirewallRule { tests: [tests, &of_key].concat(), verdict: verdict(name, body)? })
    };
    // What stands for everything else comes last.
    let (rest, named): (Vec<_>, Vec<_>) = elements.iter().partition(|element| element[0] == "*");
    named.into_iter().chain(rest).filter_map(rule).collect()
}

fn unknown(negated: bool) -> Test {
    Test { what: What::Unknown, negated }
}

fn plain(what: What) -> Test {
    Test { what, negated: false }
}

/// The tests that `left right` stands for; some ask for a protocol as well.
fn matching(left: &Value, right: &Value, negated: bool) -> Vec<Test> {
    let understood = if let Some(payload) = left.get("payload") {
        of_payload(payload, right)
    } else if let Some(key) = left["meta"]["key"].as_str() {
        of_meta(key, right).map(|what| (Vec::new(), what))
    } else {
        of_connection(left, right).map(|what| (Vec::new(), what))
    };
    match understood {
        Some((mut tests, what)) => {
            tests.push(Test { what, negated });
            tests
        }
        None => vec![unknown(negated)],
    }
}

fn of_payload(payload: &Value, right: &Value) -> Option<(Vec<Test>, What)> {
    let (protocol, field) = (payload["protocol"].as_str()?, payload["field"].as_str()?);
    let family = match protocol {
        "ip" => Some(Family::V4),
        "ip6" => Some(Family::V6),
        _ => None,
    };
    if let Some(family) = family {
        let what = match field {
            "saddr" => addresses(right).map(What::Sources),
            "daddr" => addresses(right).map(What::Destinations),
            "protocol" | "nexthdr" => protocols(right).map(What::Protocols),
            _ => None,
        };
        return Some((vec![plain(What::Family(family))], what.unwrap_or(What::Unknown)));
    }
    let what = match field {
        "sport" => ports(right).map(What::SourcePorts),
        "dport" => ports(right).map(What::DestinationPorts),
        _ => None,
    };
    let number = protocol_number(protocol);
    if number.is_none() && protocol != "th" {
        return None;
    }
    let tests = number.map(|number| plain(What::Protocols(vec![number])));
    Some((tests.into_iter().collect(), what.unwrap_or(What::Unknown)))
}

fn of_meta(key: &str, right: &Value) -> Option<What> {
    match key {
        "iifname" | "iif" => names(right).map(What::In),
        "oifname" | "oif" => names(right).map(What::Out),
        "l4proto" => protocols(right).map(What::Protocols),
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

fn of_connection(left: &Value, right: &Value) -> Option<What> {
    if let Some(masked) = left["&"].as_array() {
        let mask = u32::deserialize(masked.get(1)?).ok()?;
        let is_mark = masked.first()?["ct"]["key"] == "mark";
        return is_mark.then_some(What::ConnectionMark { mask, value: u32::deserialize(right).ok()? });
    }
    match left["ct"]["key"].as_str()? {
        "state" => Some(What::States(listed(right, |state| {
            Some(match state.as_str()? {
                "new" => State::New,
                "established" => State::Established,
                "related" => State::Related,
                _ => State::Other,
            })
        })?)),
        "status" if right == "dnat" => Some(What::States(vec![State::Dnat])),
        "mark" => Some(What::ConnectionMark { mask: u32::MAX, value: u32::deserialize(right).ok()? }),
        "direction" => Some(What::Reply(right == "reply")),
        _ => None,
    }
}

/// Every element of an anonymous set or a list, or the one value; `None` if any is not understood.
fn listed<T>(right: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    match right.get("set").unwrap_or(right).as_array() {
        Some(elements) => elements.iter().map(read).collect(),
        None => read(right).map(|one| vec![one]),
    }
}

fn names(right: &Value) -> Option<Vec<String>> {
    listed(right, |name| name.as_str().filter(|name| !name.starts_with('@')).map(str::to_owned))
}

fn protocols(right: &Value) -> Option<Vec<u8>> {
    listed(right, |protocol| match protocol {
        Value::String(name) => protocol_number(name),
        number => u8::deserialize(number).ok(),
    })
}

fn ports(right: &Value) -> Option<Vec<RangeInclusive<u16>>> {
    let port = |port: &Value| u16::deserialize(port).ok();
    listed(right, |ports| match ports.get("range") {
        Some(range) => Some(port(&range[0])?..=port(&range[1])?),
        None => port(ports).map(|port| port..=port),
    })
}

fn addresses(right: &Value) -> Option<Vec<RangeInclusive<IpAddr>>> {
    let address = |address: &Value| address.as_str()?.parse::<IpAddr>().ok();
    listed(right, |addresses| {
        if let Some(range) = addresses.get("range") {
            return Some(address(&range[0])?..=address(&range[1])?);
        }
        if let Some(prefix) = addresses.get("prefix") {
            let length = u8::deserialize(&prefix["len"]).ok()?;
            return IpNet::new(address(&prefix["addr"])?, length).ok().map(range_of);
        }
        address(addresses).map(|one| one..=one)
    })
}
