//! Rules as values, written exactly as `iptables-save` prints them.
//!
//! Only typed values can get into a rule: addresses, ports, numbers and our own chain names. That the kernel gives the
//! same lines back is what lets one comparison of text prove what runs (see the engine's kernel tests).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use sallyport_api::Protocol;
use sallyport_api::id::{RulesDigest, Uid};
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};
use sallyport_policy::digest::hash_of_lines;

use crate::family::Family;
use crate::firewall::packet::protocol_name;

/// Version of the rules and of how they are digested; part of every digest.
const FORMAT: &str = "v3";

/// One rule, without the `-A CHAIN` in front.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub(crate) source: Option<IpNet>,
    pub(crate) destination: Option<IpAddr>,
    /// Match only while the destination is an address of this host.
    pub(crate) while_local: bool,
    pub(crate) protocol: Option<Protocol>,
    /// First and last destination port.
    pub(crate) ports: Option<(u16, u16)>,
    /// First and last source port.
    pub(crate) source_ports: Option<(u16, u16)>,
    /// Match only what connection tracking can place.
    pub(crate) placed: bool,
    /// Match only what resets a connection.
    pub(crate) reset: bool,
    /// Match new connections with this chance, in units of 2⁻³¹ as the kernel stores it.
    pub(crate) chance: Option<u32>,
    /// Match only connections of ours: translated, and with these mark bits.
    pub(crate) ours: Option<u32>,
    pub(crate) action: Action,
}

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Action {
    #[default]
    Return,
    Accept,
    Drop,
    Masquerade,
    /// Continue in another chain and come back.
    Jump(String),
    /// Continue in another chain and come back to whoever jumped here.
    Goto(String),
    /// Set our two mark bits to this value.
    Mark(u32),
    /// Deliver to this address; the port stays as it is if absent.
    Dnat(IpAddr, Option<u16>),
}

impl Rule {
    /// The rule as one that delivers for no forward by itself.
    pub(crate) fn line(&self) -> Line {
        Line { text: self.to_string().into(), owner: None }
    }

    /// The rule as one that delivers for the forward with this uid.
    pub(crate) fn of(&self, owner: &Uid) -> Line {
        Line { text: self.to_string().into(), owner: Some(owner.clone()) }
    }
}

/// A rule of ours as `iptables-save` prints it, without the `-A CHAIN` in front, and whose it is. What was read from a
/// kernel has no owner; equal are those that a kernel cannot tell apart.
#[derive(Clone, Debug)]
pub struct Line {
    text: Arc<str>,
    owner: Option<Uid>,
}

impl Line {
    /// A rule as it was read.
    #[must_use]
    pub fn read(text: impl Into<Arc<str>>) -> Self {
        Self { text: text.into(), owner: None }
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The same, to be kept.
    #[must_use]
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// The uid of the forward for which it delivers, or leads to what does; `None` for all others, and for what was read.
    #[must_use]
    pub fn owner(&self) -> Option<&Uid> {
        self.owner.as_ref()
    }
}

impl PartialEq for Line {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Line {}

impl Display for Line {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(net) = self.source.filter(|net| net.prefix_len() > 0) {
            write!(f, "-s {net} ")?;
        }
        if let Some(ip) = self.destination {
            write!(f, "-d {ip}/{} ", Family::of(ip).bits())?;
        }
        if self.while_local {
            write!(f, "-m addrtype --dst-type LOCAL ")?;
        }
        if let Some(protocol) = self.protocol {
            let name = protocol_name(protocol);
            write!(f, "-p {name} ")?;
            match self.ports {
                Some((first, last)) if first == last => write!(f, "-m {name} --dport {first} ")?,
                Some((first, last)) => write!(f, "-m {name} --dport {first}:{last} ")?,
                None => {}
            }
            match self.source_ports {
                Some((first, last)) if first == last => write!(f, "-m {name} --sport {first} ")?,
                Some((first, last)) => write!(f, "-m {name} --sport {first}:{last} ")?,
                None => {}
            }
            if self.reset {
                write!(f, "-m {name} --tcp-flags RST RST ")?;
            }
        }
        if let Some(chance) = self.chance {
            let probability = f64::from(chance) / f64::from(1_u32 << 31);
            write!(f, "-m statistic --mode random --probability {probability:.11} ")?;
        }
        if self.placed {
            write!(f, "-m conntrack ! --ctstate INVALID ")?;
        }
        if let Some(bits) = self.ours {
            write!(f, "-m conntrack --ctstate DNAT -m connmark --mark {bits:#x}/{bits:#x} ")?;
        }
        match &self.action {
            Action::Return => write!(f, "-j RETURN"),
            Action::Accept => write!(f, "-j ACCEPT"),
            Action::Drop => write!(f, "-j DROP"),
            Action::Masquerade => write!(f, "-j MASQUERADE"),
            Action::Jump(chain) => write!(f, "-j {chain}"),
            Action::Goto(chain) => write!(f, "-g {chain}"),
            Action::Mark(bits) => {
                write!(f, "-j CONNMARK --set-xmark {bits:#x}/{:#x}", MARK_OURS | MARK_MASQUERADE)
            }
            Action::Dnat(ip, None) => write!(f, "-j DNAT --to-destination {ip}"),
            Action::Dnat(ip, Some(port)) => write!(f, "-j DNAT --to-destination {}", SocketAddr::new(*ip, *port)),
        }
    }
}

/// The tables in which we have rules: nobody else names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Accepts our flows where others drop.
    Filter,
    /// Translates addresses.
    Nat,
    /// Keeps from the host what its targets sent to nobody.
    Mangle,
}

impl Table {
    /// All of them; `filter` first, so that a kernel that stops between two never has translated packets dropped.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Nat, Self::Mangle];

    /// Whether nothing is forwarded as declared without what is in it.
    #[must_use]
    pub fn is_needed(self) -> bool {
        self != Self::Mangle
    }

    /// Its name for iptables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
        }
    }

    /// Where packets enter our chains: built-in chain, and the chain of ours that its first rule jumps to.
    #[must_use]
    pub fn hooks(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Filter => &[("FORWARD", chain::FORWARD)],
            Self::Nat => &[("PREROUTING", chain::PRE), ("OUTPUT", chain::PRE), ("POSTROUTING", chain::POST)],
            Self::Mangle => &[("INPUT", chain::INPUT)],
        }
    }
}

/// Names of our chains.
pub(crate) mod chain {
    pub(crate) const PRE: &str = "SALLY-PRE";
    pub(crate) const POST: &str = "SALLY-POST";
    pub(crate) const FORWARD: &str = "SALLY-FWD";
    pub(crate) const INPUT: &str = "SALLY-IN";
}

/// The rules of one chain, in order. Cheap to clone; chains that share their rules are equal at a glance.
#[derive(Clone, Debug, Default)]
pub struct Chain(Arc<Shared>);

#[derive(Clone, Debug, Default)]
struct Shared {
    lines: Vec<Line>,
    /// Made when it is first asked for.
    digest: OnceLock<String>,
}

impl Chain {
    /// Adds a rule at its end.
    pub fn push(&mut self, line: Line) {
        let shared = Arc::make_mut(&mut self.0);
        shared.lines.push(line);
        shared.digest.take();
    }

    /// The digest of its rules.
    fn digest(&self) -> &str {
        self.0.digest.get_or_init(|| hash_of_lines(FORMAT, self.iter().map(Line::as_str)))
    }
}

impl Deref for Chain {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        &self.0.lines
    }
}

impl<'a> IntoIterator for &'a Chain {
    type Item = &'a Line;
    type IntoIter = std::slice::Iter<'a, Line>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<Vec<Line>> for Chain {
    fn from(lines: Vec<Line>) -> Self {
        Self(Arc::new(Shared { lines, digest: OnceLock::new() }))
    }
}

impl FromIterator<Line> for Chain {
    fn from_iter<T: IntoIterator<Item = Line>>(lines: T) -> Self {
        Self::from(lines.into_iter().collect::<Vec<_>>())
    }
}

impl PartialEq for Chain {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

impl Eq for Chain {}

/// Our chains of one table, by name.
pub type Chains = BTreeMap<String, Chain>;

/// Our rules of one family. With no chain in a table there is no jump to it either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Chains of the `filter` table.
    pub filter: Chains,
    /// Chains of the `nat` table.
    pub nat: Chains,
    /// Chains of the `mangle` table.
    pub mangle: Chains,
}

impl Rules {
    /// The chains of `table`.
    #[must_use]
    pub fn table(&self, table: Table) -> &Chains {
        match table {
            Table::Filter => &self.filter,
            Table::Nat => &self.nat,
            Table::Mangle => &self.mangle,
        }
    }

    /// The chains of `table`, to change them.
    pub fn table_mut(&mut self, table: Table) -> &mut Chains {
        match table {
            Table::Filter => &mut self.filter,
            Table::Nat => &mut self.nat,
            Table::Mangle => &mut self.mangle,
        }
    }

    /// Whether there is nothing of ours.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Table::ALL.into_iter().all(|table| self.table(table).is_empty())
    }
}

/// All our rules on a node, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// IPv4.
    pub v4: Rules,
    /// IPv6.
    pub v6: Rules,
}

impl Ruleset {
    /// The rules of `family`.
    #[must_use]
    pub fn family(&self, family: Family) -> &Rules {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The rules of `family`, to change them.
    pub fn family_mut(&mut self, family: Family) -> &mut Rules {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Every chain: its family, table and name.
    pub(crate) fn chains(&self) -> impl Iterator<Item = (Family, Table, &str)> {
        let of = move |family: Family, table: Table| {
            self.family(family).table(table).keys().map(move |name| (family, table, name.as_str()))
        };
        Family::BOTH.into_iter().flat_map(move |family| Table::ALL.into_iter().flat_map(move |table| of(family, table)))
    }

    /// The digest of every rule: equal digests, equal rules.
    #[must_use]
    pub fn digest(&self) -> RulesDigest {
        digest_of(|family, table| self.family(family).table(table))
    }
}

/// The digest of the chains of ours that `chains` gives for each family and table.
pub(crate) fn digest_of<'a>(chains: impl Fn(Family, Table) -> &'a Chains) -> RulesDigest {
    let chains = &chains;
    let lines = Family::BOTH.into_iter().flat_map(|family| {
        Table::ALL.into_iter().flat_map(move |table| {
            let table_line = std::iter::once(Cow::Owned(format!("{family} {}", table.name())));
            table_line.chain(
                chains(family, table)
                    .iter()
                    .flat_map(|(chain, rules)| [Cow::Owned(format!(":{chain}")), Cow::Borrowed(rules.digest())]),
            )
        })
    });
    hash_of_lines(FORMAT, lines).into()
}
