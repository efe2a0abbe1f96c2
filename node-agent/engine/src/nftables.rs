//! Lists what nftables holds, and says of each rule by a hash whether it is one that was seen before.
//!
//! What a rule means is not decoded here but for where it leads. Attributes are walked as bytes: there may be very many rules,
//! and most are as they were. A list that changed while it was read is an error, never a part of a list.

use std::borrow::Cow;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use sallyport_ruleset::family::Family;
use sha2::{Digest as _, Sha256};

use crate::generation::Generation;
use crate::netlink::{Error, Socket};

/// The subsystem of nftables in the upper byte of a message's type (`include/uapi/linux/netfilter/nfnetlink.h`).
const SUBSYSTEM: u16 = 10 << 8;
/// Length of `struct nfgenmsg`, which precedes the attributes.
const HEADER: usize = 4;
/// Attributes and numbers of `include/uapi/linux/netfilter/nf_tables.h`, as it names them.
mod uapi {
    pub(super) const GETTABLE: u16 = 1;
    pub(super) const GETCHAIN: u16 = 4;
    pub(super) const GETRULE: u16 = 7;
    pub(super) const GETSET: u16 = 10;
    pub(super) const GETSETELEM: u16 = 13;

    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const TABLE_FLAGS: u16 = 2;
    pub(super) const TABLE_HANDLE: u16 = 4;
    pub(super) const TABLE_DORMANT: u32 = 0x1;

    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_POLICY: u16 = 5;
    pub(super) const CHAIN_USE: u16 = 6;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;

    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const RULE_COMPAT: u16 = 5;
    pub(super) const RULE_USERDATA: u16 = 7;
    pub(super) const EXPRESSION_NAME: u16 = 1;
    pub(super) const EXPRESSION_DATA: u16 = 2;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const META_IIF: u32 = 4;
    pub(super) const META_OIF: u32 = 5;
    pub(super) const CMP_DATA: u16 = 3;

    pub(super) const SET_TABLE: u16 = 1;
    pub(super) const SET_NAME: u16 = 2;
    pub(super) const SET_FLAGS: u16 = 3;
    pub(super) const SET_HANDLE: u16 = 16;
    /// How many elements it has.
    pub(super) const SET_COUNT: u16 = 20;
    /// One that no rule may change once it is made, one whose elements go by themselves, one to which packets add.
    pub(super) const SET_ANONYMOUS: u32 = 0x1;
    pub(super) const SET_TIMEOUT: u32 = 0x10;
    pub(super) const SET_EVAL: u32 = 0x20;
    pub(super) const ELEMENTS: u16 = 3;
    pub(super) const ELEMENT_EXPIRATION: u16 = 5;
    pub(super) const ELEMENT_EXPRESSION: u16 = 7;
    pub(super) const ELEMENT_EXPRESSIONS: u16 = 11;
}
/// The number of the interface `lo`, in every network namespace.
const LOOPBACK: [u8; 4] = 1_u32.to_ne_bytes();
/// The expressions of which iptables-nft makes its rules (`iptables/nft.c` of iptables). What uses another one was made with
/// nft, and so was a `lookup`: iptables uses sets for bridges only.
pub(crate) const OF_IPTABLES: [&str; 11] =
    ["match", "target", "payload", "meta", "cmp", "bitwise", "counter", "immediate", "range", "limit", "log"];

/// An address family of nftables whose packets may be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NftFamily {
    Inet,
    Ip,
    Ip6,
}

impl NftFamily {
    pub(crate) const ALL: [Self; 3] = [Self::Inet, Self::Ip, Self::Ip6];

    /// Its name in nft.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// Its number (`NFPROTO_…`, `include/uapi/linux/netfilter.h`).
    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }
}

impl From<Family> for NftFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ip,
            Family::V6 => Self::Ip6,
        }
    }
}

/// A hash of everything that a rule says. Not in it are its place, its handle, and what its counter has counted.
pub(crate) type Print = [u8; 32];

/// A table, without what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    /// No other table ever has it, while the handles of its chains, rules and sets are those of a table of that name that is gone.
    /// `None` on kernels that tell no handle.
    pub(crate) handle: Option<u64>,
    /// Whether its chains are there, but the kernel does not call them.
    pub(crate) is_dormant: bool,
}

/// A chain, without its rules.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) name: String,
    /// How many rules it has, and rules and elements of maps that lead to it.
    pub(crate) uses: u32,
    /// Set if the kernel calls it by itself.
    pub(crate) base: Option<Base>,
}

/// Where the kernel calls a chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Base {
    pub(crate) kind: String,
    /// `NF_INET_PRE_ROUTING` and so on (`include/uapi/linux/netfilter.h`).
    pub(crate) hook: u32,
    pub(crate) priority: u32,
    pub(crate) drops: bool,
}

/// A set or map, without its elements.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) name: String,
    /// Whether its elements change only when somebody changes them, so that they are [read](Reader::elements).
    pub(crate) is_static: bool,
    /// A hash of its definition, with the handle that no other set of its table ever has: a set without a name of its own gets
    /// that of one that is gone, and rules that ask the two look alike. `None` on kernels that tell no handle.
    pub(crate) print: Option<Print>,
}

/// A rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) chain: String,
    pub(crate) handle: u64,
    pub(crate) print: Print,
    /// The chain that it jumps or goes to.
    pub(crate) leads_to: Option<String>,
    /// Whether iptables may have made it.
    pub(crate) is_of_iptables: bool,
    /// Whether it names an interface by its number, whose name may change without any change of rules.
    pub(crate) has_interface: bool,
}

/// Asks the kernel. After an error another one is needed.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: Socket,
    generation: Generation,
}

impl Reader {
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER)?, generation: Generation::open()? })
    }

    /// The generation now.
    pub(crate) fn generation(&self) -> Result<u32, Error> {
        self.generation.current()
    }

    /// All tables.
    pub(crate) fn tables(&self, family: NftFamily) -> Result<Vec<Table>, Error> {
        let mut tables = Vec::new();
        self.list("list nftables tables", Message::new(uapi::GETTABLE, family), |bytes| {
            let name = find(bytes, uapi::TABLE_NAME)?.map(text).unwrap_or_default().into_owned();
            let handle = find(bytes, uapi::TABLE_HANDLE)?.map(exactly).transpose()?.map(u64::from_be_bytes);
            let flags = find(bytes, uapi::TABLE_FLAGS)?.map(number).transpose()?.unwrap_or_default();
            tables.push(Table { name, handle, is_dormant: flags & uapi::TABLE_DORMANT != 0 });
            Ok(())
        })?;
        Ok(tables)
    }

    /// Gives `each` chain, with the name of its table.
    pub(crate) fn chains(&self, family: NftFamily, mut each: impl FnMut(&str, Chain)) -> Result<(), Error> {
        self.list("list nftables chains", Message::new(uapi::GETCHAIN, family), |bytes| {
            let (table, chain) = chain(bytes)?;
            each(&table, chain);
            Ok(())
        })
    }

    /// Gives `each` set, with the name of its table.
    pub(crate) fn sets(&self, family: NftFamily, mut each: impl FnMut(&str, Set)) -> Result<(), Error> {
        self.list("list nftables sets", Message::new(uapi::GETSET, family), |bytes| {
            let (table, set) = set(bytes)?;
            each(&table, set);
            Ok(())
        })
    }

    /// A hash of the elements of a set or map, whatever their order.
    pub(crate) fn elements(&self, family: NftFamily, table: &str, set: &str) -> Result<Print, Error> {
        let message = Message::new(uapi::GETSETELEM, family);
        let message = message.with(uapi::SET_TABLE, table).with(uapi::SET_NAME, set);
        let mut prints: Vec<Print> = Vec::new();
        self.list("list the elements of an nftables set", message, |bytes| {
            for element in attributes(find(bytes, uapi::ELEMENTS)?.unwrap_or_default()) {
                prints.push(element_print(element?.1)?);
            }
            Ok(())
        })?;
        prints.sort_unstable();
        let mut hash = Sha256::new();
        for print in prints {
            hash.update(print);
        }
        Ok(hash.finalize().into())
    }

    /// The rules of one chain, or of all chains of a table.
    pub(crate) fn rules(&self, family: NftFamily, table: &str, chain: Option<&str>) -> Result<Vec<Rule>, Error> {
        let mut message = Message::new(uapi::GETRULE, family).with(uapi::RULE_TABLE, table);
        if let Some(chain) = chain {
            message = message.with(uapi::RULE_CHAIN, chain);
        }
        let mut rules = Vec::new();
        self.list("list nftables rules", message, |bytes| {
            // Kernels before 4.3 list all rules, whatever was asked.
            let found = rule(bytes)?.filter(|(of, rule)| of == table && chain.is_none_or(|name| name == rule.chain));
            rules.extend(found.map(|(_, rule)| rule));
            Ok(())
        })?;
        Ok(rules)
    }

    fn list(
        &self,
        question: &'static str,
        message: Message,
        mut each: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<(), Error> {
        self.socket.ask(question, message, NLM_F_DUMP, |answer: Message| each(answer.attributes()))
    }
}

fn chain(bytes: &[u8]) -> Result<(Cow<'_, str>, Chain), DecodeError> {
    let (mut table, mut chain) = (Cow::default(), Chain { name: String::new(), uses: 0, base: None });
    let (mut kind, mut drops, mut hook) = (String::new(), false, None);
    for attribute in attributes(bytes) {
        match attribute? {
            (uapi::CHAIN_TABLE, value) => table = text(value),
            (uapi::CHAIN_NAME, value) => chain.name = text(value).into_owned(),
            (uapi::CHAIN_USE, value) => chain.uses = number(value)?,
            (uapi::CHAIN_TYPE, value) => kind = text(value).into_owned(),
            (uapi::CHAIN_POLICY, value) => drops = number(value)? == 0,
            (uapi::CHAIN_HOOK, value) => hook = Some(value),
            _ => {}
        }
    }
    if let Some(hook) = hook {
        let part = |kind| find(hook, kind)?.map_or_else(|| Err(DecodeError::from("half a hook")), number);
        let (hook, priority) = (part(uapi::HOOK_NUMBER)?, part(uapi::HOOK_PRIORITY)?);
        chain.base = Some(Base { kind, hook, priority, drops });
    }
    Ok((table, chain))
}

fn set(bytes: &[u8]) -> Result<(Cow<'_, str>, Set), DecodeError> {
    let (mut table, mut name, mut flags) = (Cow::default(), String::new(), 0);
    let (mut handle, mut hash) = (false, Sha256::new());
    for attribute in attributes(bytes) {
        let (kind, value) = attribute?;
        match kind {
            uapi::SET_COUNT => continue,
            uapi::SET_TABLE => table = text(value),
            uapi::SET_NAME => name = text(value).into_owned(),
            uapi::SET_FLAGS => flags = number(value)?,
            uapi::SET_HANDLE => handle = true,
            _ => {}
        }
        add(&mut hash, kind, value);
    }
    let is_static = flags & (uapi::SET_ANONYMOUS | uapi::SET_TIMEOUT | uapi::SET_EVAL) == 0;
    Ok((table, Set { name, is_static, print: handle.then(|| hash.finalize().into()) }))
}

/// A hash of what an element says, without what it has counted and when it goes.
fn element_print(bytes: &[u8]) -> Result<Print, DecodeError> {
    let mut hash = Sha256::new();
    for attribute in attributes(bytes) {
        let (kind, value) = attribute?;
        if !matches!(kind, uapi::ELEMENT_EXPIRATION | uapi::ELEMENT_EXPRESSION | uapi::ELEMENT_EXPRESSIONS) {
            add(&mut hash, kind, value);
        }
    }
    Ok(hash.finalize().into())
}

/// A rule and the name of its table; `None` if the kernel does not say.
fn rule(bytes: &[u8]) -> Result<Option<(Cow<'_, str>, Rule)>, DecodeError> {
    let (mut table, mut chain, mut handle, mut hash) = (None, None, None, Sha256::new());
    let mut found = Expressions { leads_to: None, is_of_iptables: true, has_interface: false };
    for attribute in attributes(bytes) {
        match attribute? {
            (uapi::RULE_TABLE, value) => table = Some(text(value)),
            (uapi::RULE_CHAIN, value) => chain = Some(text(value).into_owned()),
            (uapi::RULE_HANDLE, value) => handle = Some(u64::from_be_bytes(exactly(value)?)),
            (uapi::RULE_EXPRESSIONS, value) => found.read(value, &mut hash)?,
            (kind @ (uapi::RULE_COMPAT | uapi::RULE_USERDATA), value) => add(&mut hash, kind, value),
            _ => {}
        }
    }
    let (Some(table), Some(chain), Some(handle)) = (table, chain, handle) else { return Ok(None) };
    let Expressions { leads_to, is_of_iptables, has_interface } = found;
    let print = hash.finalize().into();
    Ok(Some((table, Rule { chain, handle, print, leads_to, is_of_iptables, has_interface })))
}

/// What is known of a rule's expressions so far.
struct Expressions {
    leads_to: Option<String>,
    is_of_iptables: bool,
    has_interface: bool,
}

impl Expressions {
    fn read(&mut self, list: &[u8], hash: &mut Sha256) -> Result<(), DecodeError> {
        // Set while the expression before has loaded the number of an interface.
        let mut interface = false;
        for expression in attributes(list) {
            let (_, expression) = expression?;
            let (mut name, mut data): (&[u8], &[u8]) = (b"", b"");
            for part in attributes(expression) {
                match part? {
                    (uapi::EXPRESSION_NAME, value) => name = value.strip_suffix(b"\0").unwrap_or(value),
                    (uapi::EXPRESSION_DATA, value) => data = value,
                    _ => {}
                }
            }
            self.is_of_iptables &= OF_IPTABLES.iter().any(|known| known.as_bytes() == name);
            add(hash, uapi::EXPRESSION_NAME, name);
            if name != b"counter" {
                add(hash, uapi::EXPRESSION_DATA, data);
            }
            if std::mem::take(&mut interface) {
                let compared = if name == b"cmp" { find(data, uapi::CMP_DATA)? } else { None };
                let value = compared.map(|data| find(data, uapi::DATA_VALUE)).transpose()?.flatten();
                self.has_interface |= value != Some(LOOPBACK.as_slice());
            }
            match name {
                b"meta" => {
                    let key = find(data, uapi::META_KEY)?.map(number).transpose()?;
                    interface = matches!(key, Some(uapi::META_IIF | uapi::META_OIF));
                }
                b"immediate" => {
                    let data = find(data, uapi::IMMEDIATE_DATA)?.unwrap_or_default();
                    let verdict = find(data, uapi::DATA_VERDICT)?.unwrap_or_default();
                    if let Some(name) = find(verdict, uapi::VERDICT_CHAIN)? {
                        self.leads_to = Some(text(name).into_owned());
                    }
                }
                _ => {}
            }
        }
        self.has_interface |= interface;
        Ok(())
    }
}

/// Adds an attribute to a hash so that no two lists of attributes look alike.
fn add(hash: &mut Sha256, kind: u16, value: &[u8]) {
    hash.update(kind.to_ne_bytes());
    hash.update(value.len().to_ne_bytes());
    hash.update(value);
}

/// Kind and value of each attribute.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), DecodeError>> {
    NlasIterator::new(bytes).map(|attribute| {
        let attribute = attribute?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        Ok((kind, attribute.into_inner().get(HEADER_OF_ATTRIBUTE..end).unwrap_or_default()))
    })
}

const HEADER_OF_ATTRIBUTE: usize = 4;

fn find(bytes: &[u8], wanted: u16) -> Result<Option<&[u8]>, DecodeError> {
    let found = attributes(bytes).find(|attribute| !matches!(attribute, Ok((kind, _)) if *kind != wanted));
    Ok(found.transpose()?.map(|(_, value)| value))
}

/// A name. The kernel takes any bytes for one; those that are no text are nobody's whom we know.
fn text(value: &[u8]) -> Cow<'_, str> {
    let name = value.strip_suffix(b"\0").unwrap_or(value);
    std::str::from_utf8(name).map_or_else(|_| String::from_utf8_lossy(name), Cow::Borrowed)
}

fn number(value: &[u8]) -> Result<u32, DecodeError> {
    Ok(u32::from_be_bytes(exactly(value)?))
}

fn exactly<const N: usize>(value: &[u8]) -> Result<[u8; N], DecodeError> {
    value.try_into().map_err(|_| DecodeError::from(format!("a number of {} bytes instead of {N}", value.len())))
}

/// A message of nftables as bytes.
#[derive(Debug)]
struct Message {
    kind: u16,
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, family: NftFamily) -> Self {
        Self { kind: SUBSYSTEM | kind, bytes: vec![family.number(), 0, 0, 0] }
    }

    /// Adds a name.
    fn with(mut self, kind: u16, name: &str) -> Self {
        let length = HEADER_OF_ATTRIBUTE + name.len() + 1;
        // The kernel knows no name that is longer, and refuses this one.
        self.bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn attributes(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self { kind: header.message_type, bytes: payload.to_owned() })
    }
}

#[cfg(test)]
mod tests;
