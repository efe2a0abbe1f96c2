//! `iptables-save` → tables.
//!
//! Written for rules of others: ours are compared as text and never go through here to be judged. There may be very many of
//! ours, so in tables of translations they are left out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::chain::is_ours;
use crate::family::Family;
use crate::firewall::known::{self, Does};
use crate::firewall::words::words;
use crate::firewall::{
    AddressType, BaseChain, Effect, FirewallRule, FirewallTable, Holder, Hook, MarkOf, State, Test, To, Verdict, What,
    protocol_number, range_of, tcp_flag,
};

/// Reads the tables of `family` that `holder` shows.
#[must_use]
pub fn parse(save: &str, family: Family, holder: Holder) -> Vec<FirewallTable> {
    let mut tables: Vec<FirewallTable> = Vec::new();
    for line in save.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(FirewallTable {
                holder,
                name: name.to_owned(),
                families: vec![family],
                base: Vec::new(),
                chains: BTreeMap::new(),
                used: false,
            });
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(declaration) = line.strip_prefix(':') {
            let mut words = declaration.split(' ');
            let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if !is_ours(name) {
                table.chains.entry(name.to_owned()).or_default();
                table.base.extend(base_chain(&table.name, name, policy));
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            if is_ours(chain) {
                continue;
            }
            table.used |= !rule.rsplit(' ').next().is_some_and(is_ours);
            table.chains.entry(chain.to_owned()).or_default().push(self::rule(rule));
        }
    }
    tables
}

/// When the chains of a table are called at `hook`.
fn priority(table: &str, hook: Hook) -> Option<i32> {
    Some(match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Postrouting) => 100,
        ("nat", _) => -100,
        ("filter", _) => 0,
        ("security", _) => 50,
        _ => return None,
    })
}

/// A chain without a policy is called by nobody but rules.
fn base_chain(table: &str, name: &str, policy: &str) -> Option<BaseChain> {
    let hook = Hook::named(name).filter(|hook| *hook != Hook::Ingress && policy != "-")?;
    let (priority, translates) = (priority(table, hook)?, table == "nat");
    Some(BaseChain { name: name.to_owned(), hook, priority, drops: policy == "DROP", translates })
}

/// One rule, without the `-A CHAIN` in front.
pub(crate) fn rule(text: &str) -> FirewallRule {
    let words = words(text);
    let mut words = words.iter().copied().peekable();
    let mut rule = FirewallRule { text: text.to_owned(), ..FirewallRule::default() };
    let (mut negated, mut module) = (false, "");
    while let Some(word) = words.next() {
        match word {
            // What follows the verdict are its own options.
            "-j" | "-g" => {
                let target = words.next().unwrap_or_default();
                let options: Vec<&str> = words.collect();
                (rule.effects, rule.verdict) = ends(target, word == "-g", &options);
                break;
            }
            "!" => {
                negated = true;
                continue;
            }
            "-m" => {
                module = words.next().unwrap_or_default();
                let known = known::is_match(module);
                // A match without options asks something all the same.
                let bare = words.peek().is_none_or(|next| matches!(*next, "-m" | "-j" | "-g"));
                if !known || (bare && !PROTOCOLS.contains(&module)) {
                    // Of what is not known here it cannot even be told that it is about those whom it names.
                    rule.tests.push(Test { what: What::Unknown, negated: !known });
                }
            }
            "--comment" => drop(words.next()),
            option => {
                let values: Vec<&str> =
                    std::iter::from_fn(|| words.next_if(|next| !next.starts_with('-') && *next != "!")).collect();
                match what(module, option, &values) {
                    Some(what) => rule.tests.push(Test { what, negated }),
                    None if PROTOCOLS.contains(&module) || module.is_empty() || known::is_match(module) => {
                        rule.tests.push(Test { what: What::Unknown, negated });
                    }
                    // That it asks something was said when it was named.
                    None => {}
                }
            }
        }
        negated = false;
    }
    rule
}

/// `-m tcp` says no more than the `-p tcp` before it.
const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// What a target does on the way, and how a rule with it ends.
fn ends(target: &str, goes: bool, options: &[&str]) -> (Vec<Effect>, Verdict) {
    let Some(does) = known::target(target) else {
        let chain = target.to_owned();
        // What leads to a chain that is not there is a target that is not known here.
        return (Vec::new(), if goes { Verdict::Goto(chain) } else { Verdict::Jump(chain) });
    };
    let value = |option: &str| Some(*options.get(options.iter().position(|word| *word == option)? + 1)?);
    let effect = match does {
        Does::Accepts => return (Vec::new(), Verdict::Accept),
        Does::Drops => return (Vec::new(), Verdict::Drop),
        Does::Leads => return (Vec::new(), Verdict::Return),
        Does::HandsOver => return (Vec::new(), Verdict::Elsewhere),
        Does::Host => return (Vec::new(), Verdict::Destination(To::Host)),
        Does::Source => return (Vec::new(), Verdict::Source),
        Does::Destination => {
            let net = || Some(To::Addresses { ips: Some(network(value("--to")?)?), ports: None });
            let to = value("--to-destination").and_then(destination).or_else(net);
            return (Vec::new(), Verdict::Destination(to.unwrap_or(To::Unknown)));
        }
        Does::PacketMark => Some(marks(MarkOf::Packet, &value).unwrap_or(Effect::AnyMark(MarkOf::Packet))),
        Does::ConnectionMark if options.first() == Some(&"--restore-mark") => {
            Some(marks(MarkOf::Packet, &value).unwrap_or(Effect::AnyMark(MarkOf::Packet)))
        }
        Does::ConnectionMark => Some(marks(MarkOf::Connection, &value).unwrap_or(Effect::AnyMark(MarkOf::Connection))),
        Does::HashedMark => Some(Effect::AnyMark(MarkOf::Packet)),
        Does::Set => options.contains(&"--map-mark").then_some(Effect::AnyMark(MarkOf::Packet)),
        Does::Tracking if target == "NOTRACK" || options.contains(&"--notrack") => Some(Effect::Untrack),
        Does::Tracking => options.iter().any(|word| word.starts_with("--zone")).then_some(Effect::Untold),
        Does::HopLimit => {
            let few = |hops: &str| hops.parse().is_ok_and(|hops: u8| hops > 1);
            let set = value("--ttl-set").or_else(|| value("--hl-set"));
            let more = options.first().is_some_and(|word| word.ends_with("-inc"));
            (!more && !set.is_some_and(few)).then_some(Effect::Untold)
        }
        Does::Nothing => None,
        Does::Narrows | Does::Field | Does::Untold => Some(Effect::Untold),
    };
    (effect.into_iter().collect(), Verdict::Continue)
}

/// What MARK and CONNMARK do to the mark `of`, in the form in which they are saved.
fn marks<'a>(of: MarkOf, value: &dyn Fn(&str) -> Option<&'a str>) -> Option<Effect> {
    let mask = |option: &str| value(option).map_or(Some(u32::MAX), number);
    if let Some(set) = value("--set-xmark") {
        let (bits, mask) = set.split_once('/').unwrap_or((set, "0xffffffff"));
        let (flip, kept) = (number(bits)?, !number(mask)?);
        let (of_connection, of_packet) = if of == MarkOf::Connection { (kept, 0) } else { (0, kept) };
        return Some(Effect::Mark { of, of_connection, of_packet, flip });
    }
    let (of_packet, of_connection) = (mask("--nfmask")?, mask("--ctmask")?);
    // From here on it is about copies: the mark keeps what the mask of its own does not name.
    Some(match of {
        MarkOf::Connection => Effect::Mark { of, of_connection: !of_connection, of_packet, flip: 0 },
        MarkOf::Packet => Effect::Mark { of, of_connection, of_packet: !of_packet, flip: 0 },
    })
}

/// `10.30.1.79:3306`, `10.30.1.79-10.30.1.81`, `[fd00::1]:3306-3310`, `:3306`.
fn destination(text: &str) -> Option<To> {
    let (ips, ports) = match text.strip_prefix('[').and_then(|rest| rest.rsplit_once(']')) {
        Some((ips, ports)) => (ips, ports.strip_prefix(':')),
        None if text.matches(':').count() > 1 => (text, None),
        None => text.split_once(':').map_or((text, None), |(ips, ports)| (ips, Some(ports))),
    };
    let ips = if ips.is_empty() { None } else { Some(span(ips, '-')?) };
    // Behind a slash is where a shifted range begins.
    let ports = match ports {
        Some(ports) => Some(span(ports.split_once('/').map_or(ports, |(ports, _)| ports), '-')?),
        None => None,
    };
    Some(To::Addresses { ips, ports })
}

fn what(module: &str, option: &str, values: &[&str]) -> Option<What> {
    let value = values.first().copied().unwrap_or_default();
    Some(match option {
        "-s" => What::Sources(vec![network(value)?]),
        "-d" => What::Destinations(vec![network(value)?]),
        "--src-range" => What::Sources(vec![span(value, '-')?]),
        "--dst-range" => What::Destinations(vec![span(value, '-')?]),
        "-p" | "--ctproto" => What::Protocols(vec![protocol_number(value)?]),
        "-i" => What::In(vec![interface(value)]),
        "-o" => What::Out(vec![interface(value)]),
        "--sport" | "--sports" => What::SourcePorts(ports(value)?),
        "--dport" | "--dports" => What::DestinationPorts(ports(value)?),
        "--ports" => What::Ports(ports(value)?),
        "--ctorigsrc" => What::OriginalSources(vec![network(value)?]),
        "--ctorigdst" => What::OriginalDestinations(vec![network(value)?]),
        "--ctorigdstport" => What::OriginalDestinationPorts(ports(value)?),
        "--ctstate" | "--state" => What::States(value.split(',').map(state).collect()),
        "--ctdir" => What::Reply(value == "REPLY"),
        "--mark" if module == "connmark" => {
            let (value, mask) = value.split_once('/').unwrap_or((value, "0xffffffff"));
            What::ConnectionMark { mask: number(mask)?, value: number(value)? }
        }
        "--mark" if module == "mark" => {
            let (value, mask) = value.split_once('/').unwrap_or((value, "0xffffffff"));
            What::PacketMark { mask: number(mask)?, value: number(value)? }
        }
        "--ctstatus" if value.split(',').all(|word| matches!(word, "DNAT" | "SNAT")) => {
            What::States(value.split(',').map(state).collect())
        }
        "--src-type" => What::SourceTypes(value.split(',').map(address_type).collect()),
        "--dst-type" => What::DestinationTypes(value.split(',').map(address_type).collect()),
        "--tcp-flags" => What::TcpFlags { mask: flags(value)?, value: flags(values.get(1)?)? },
        _ => return None,
    })
}

fn address_type(word: &str) -> AddressType {
    match word {
        "LOCAL" => AddressType::Local,
        "UNICAST" => AddressType::Unicast,
        _ => AddressType::Other,
    }
}

/// `FIN,SYN,RST,ACK` (`include/net/tcp.h`).
fn flags(names: &str) -> Option<u8> {
    names.split(',').try_fold(0, |flags, name| Some(flags | tcp_flag(name)?))
}

fn state(word: &str) -> State {
    match word {
        "NEW" => State::New,
        "ESTABLISHED" => State::Established,
        "RELATED" => State::Related,
        "DNAT" => State::Dnat,
        "SNAT" => State::Snat,
        "INVALID" => State::Invalid,
        _ => State::Other,
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn network(text: &str) -> Option<RangeInclusive<IpAddr>> {
    text.parse::<IpNet>().ok().map(range_of).or_else(|| text.parse().ok().map(|ip: IpAddr| ip..=ip))
}

fn span<T: std::str::FromStr + Copy>(text: &str, between: char) -> Option<RangeInclusive<T>> {
    let (first, last) = text.split_once(between).unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

fn ports(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    text.split(',').map(|ports| span(ports, ':')).collect()
}

/// The names of iptables end with `+` where those of nftables end with `*`.
fn interface(name: &str) -> String {
    match name.strip_suffix('+') {
        Some(beginning) => format!("{beginning}*"),
        None => name.to_owned(),
    }
}
