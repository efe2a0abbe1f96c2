//! `iptables-save` → tables.
//!
//! Written for rules of others: ours are compared as text and never go through here to be judged.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::chain::is_ours;
use crate::family::Family;
use crate::firewall::words::words;
use crate::firewall::{
    BaseChain, FirewallRule, FirewallTable, Holder, Hook, State, Test, Verdict, What, protocol_number, range_of,
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
        let drops_nothing = priority(&table.name).is_none();
        if let Some(declaration) = line.strip_prefix(':') {
            let mut words = declaration.split(' ');
            let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if drops_nothing {
                continue;
            }
            table.chains.entry(name.to_owned()).or_default();
            table.base.extend(base_chain(&table.name, name, policy));
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            table.used |= !is_ours(chain) && !rule.rsplit(' ').next().is_some_and(is_ours);
            // There may be very many of these, ours among them.
            if !drops_nothing {
                table.chains.entry(chain.to_owned()).or_default().push(self::rule(rule));
            }
        }
    }
    tables
}

/// When the chains of a table are called; `None` for `nat`, which drops nothing.
fn priority(table: &str) -> Option<i32> {
    Some(match table {
        "raw" => -300,
        "mangle" => -150,
        "filter" => 0,
        "security" => 50,
        _ => return None,
    })
}

/// A chain without a policy is called by nobody but rules.
fn base_chain(table: &str, name: &str, policy: &str) -> Option<BaseChain> {
    let hook = Hook::named(name).filter(|_| policy != "-")?;
    Some(BaseChain { name: name.to_owned(), hook, priority: priority(table)?, drops: policy == "DROP" })
}

/// One rule, without the `-A CHAIN` in front.
pub(crate) fn rule(rule: &str) -> FirewallRule {
    let words = words(rule);
    let mut words = words.iter().copied().peekable();
    let mut rule = FirewallRule { tests: Vec::new(), verdict: Verdict::Continue };
    let (mut negated, mut module) = (false, "");
    while let Some(word) = words.next() {
        // What follows the verdict are its own options.
        if let "-j" | "-g" = word {
            let target = words.next().unwrap_or_default();
            rule.verdict = verdict(target, word == "-g");
            break;
        }
        match word {
            "!" => {
                negated = true;
                continue;
            }
            "-m" => {
                module = words.next().unwrap_or_default();
                // A match without options asks something all the same.
                if words.peek().is_none_or(|next| matches!(*next, "-m" | "-j" | "-g")) && !PROTOCOLS.contains(&module) {
                    rule.tests.push(Test { what: What::Unknown, negated: false });
                }
            }
            "--comment" => drop(words.next()),
            option => {
                let mut value = || words.next_if(|next| !next.starts_with('-') && *next != "!");
                let first = value().unwrap_or_default();
                while value().is_some() {}
                let what = what(module, option, first).unwrap_or(What::Unknown);
                rule.tests.push(Test { what, negated });
            }
        }
        negated = false;
    }
    rule
}

/// `-m tcp` says no more than the `-p tcp` before it.
const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

fn verdict(target: &str, goes: bool) -> Verdict {
    match target {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" | "TARPIT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        "QUEUE" | "NFQUEUE" | "SYNPROXY" | "TPROXY" => Verdict::Elsewhere,
        chain if goes => Verdict::Goto(chain.to_owned()),
        // A target such as LOG or MARK is a chain that is not there, and so does nothing.
        chain => Verdict::Jump(chain.to_owned()),
    }
}

fn what(module: &str, option: &str, value: &str) -> Option<What> {
    Some(match option {
        "-s" => What::Sources(vec![network(value)?]),
        "-d" => What::Destinations(vec![network(value)?]),
        "--src-range" => What::Sources(vec![span(value, '-')?]),
        "--dst-range" => What::Destinations(vec![span(value, '-')?]),
        "-p" => What::Protocols(vec![protocol_number(value)?]),
        "-i" => What::In(vec![interface(value)]),
        "-o" => What::Out(vec![interface(value)]),
        "--sport" | "--sports" => What::SourcePorts(ports(value)?),
        "--dport" | "--dports" => What::DestinationPorts(ports(value)?),
        "--ctstate" | "--state" => What::States(value.split(',').map(state).collect()),
        "--ctdir" => What::Reply(value == "REPLY"),
        "--mark" if module == "connmark" => {
            let (value, mask) = value.split_once('/').unwrap_or((value, "0xffffffff"));
            What::ConnectionMark { mask: number(mask)?, value: number(value)? }
        }
        _ => return None,
    })
}

fn state(word: &str) -> State {
    match word {
        "NEW" => State::New,
        "ESTABLISHED" => State::Established,
        "RELATED" => State::Related,
        "DNAT" => State::Dnat,
        "SNAT" => State::Snat,
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
