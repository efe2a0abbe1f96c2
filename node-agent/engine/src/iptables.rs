//! The iptables backend: `iptables-{nft,legacy}-restore --noflush` in, `iptables-{nft,legacy}-save` out.
//!
//! One restore call a family; never a single `-A` or `-D`, which would lose connections between two calls.

mod apart;
mod detect;
mod known;
pub mod lock;
mod nft_objects;
mod others;
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Holder, HostFirewall, xtables};
use sallyport_ruleset::iptables::installed::{Installed, InstalledRuleset, InstalledTable};
use sallyport_ruleset::iptables::op::{Op, Step};
use sallyport_ruleset::iptables::restore::restore;
use sallyport_ruleset::iptables::rule::Table;
use sallyport_ruleset::iptables::shadow::{Met, Packets};

pub use self::detect::{Detected, detect};
use self::known::{Known, Look};
use self::lock::Lock;
pub use self::nft_objects::{NftObject, remove_unused};
use self::others::Others;
use self::shape::Shape;
use crate::command;
use crate::generation::Generation;
use crate::nftables::Reader;
use crate::{Engine, Error, netlink};

/// "Protocol not supported" and "invalid argument" (`include/uapi/asm-generic/errno{,-base}.h`).
const EPROTONOSUPPORT: i32 = 93;
const EINVAL: i32 = 22;
/// Shortest and longest time between two looks at legacy tables that nobody seems to have changed.
const LEGACY_LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Times that a table with sets of nftables is saved that changes while it is read.
const SAVES: usize = 8;
/// Times that tables of nftables are read chain by chain that change while they are read.
const LOOKS: usize = 8;
/// A look at legacy tables may cost this fraction of the time.
const LEGACY_SHARE: u32 = 200;

/// Which of the two kernel interfaces of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// iptables over `nf_tables`.
    Nft,
    /// The original `x_tables` interface.
    Legacy,
}

impl Variant {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }

    /// Its name, for people and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }

    /// The program with which people look at its tables and change them.
    fn holder(self, family: Family, own: bool) -> Holder {
        Holder::Iptables { program: self.program(family), own }
    }

    fn program(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft",
            (Self::Nft, Family::V6) => "ip6tables-nft",
            (Self::Legacy, Family::V4) => "iptables-legacy",
            (Self::Legacy, Family::V6) => "ip6tables-legacy",
        }
    }

    fn save_program(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft-save",
            (Self::Nft, Family::V6) => "ip6tables-nft-save",
            (Self::Legacy, Family::V4) => "iptables-legacy-save",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-save",
        }
    }

    fn restore_program(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft-restore",
            (Self::Nft, Family::V6) => "ip6tables-nft-restore",
            (Self::Legacy, Family::V4) => "iptables-legacy-restore",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-restore",
        }
    }
}

/// Whether the kernel has `family` at all; with `ipv6.disable=1` it has no IPv6 tables either.
#[must_use]
pub fn has_family(family: Family) -> bool {
    // Where that cannot be told, the family's programs will.
    family == Family::V4 || Path::new("/proc/net/if_inet6").try_exists().unwrap_or(true)
}

/// The legacy tables of `family` that exist. The kernel has the file once it has any.
fn legacy_tables(family: Family) -> Result<Vec<String>, Error> {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    match std::fs::read_to_string(path) {
        Ok(names) => Ok(names.split_whitespace().map(str::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Whether legacy tables of `family` exist.
fn has_legacy_tables(family: Family) -> Result<bool, Error> {
    Ok(!legacy_tables(family)?.is_empty())
}

/// Whether anything was ever put into nftables: a network namespace starts at generation 1 and every transaction moves it.
fn nftables_was_used() -> Result<bool, Error> {
    match Generation::open().and_then(|generation| generation.current()) {
        Ok(generation) => Ok(generation > 1),
        // A kernel without nftables has no such protocol, or nobody there who answers.
        Err(netlink::Error::Open(source) | netlink::Error::Refused { source, .. })
            if matches!(source.raw_os_error(), Some(EPROTONOSUPPORT | EINVAL)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Rules through one variant of iptables.
#[derive(Debug)]
pub struct Iptables {
    variant: Variant,
    generation: Option<Generation>,
    lock: Lock,
    seen: Option<Seen>,
    /// What was decoded of the tables in which we have rules.
    known: BTreeMap<(Family, Table), Known>,
    others: Others,
    /// How far the packets have [grown](Packets::grown) that matter, and which of them each family's rules may meet; if unknown, any.
    packets: Option<(u64, [Met; 2])>,
    /// Chains of ours, by family and table, that could be emptied but not deleted: something of nftables that iptables does
    /// not show, as a map of verdicts, leads there.
    stuck: BTreeSet<(Family, Table, String)>,
}

/// A table in which we have rules, and it as a part of the host's firewall.
type Part = (InstalledTable, HostFirewall);

#[derive(Debug)]
enum Seen {
    Generation(u32),
    /// When the next look is due, whether the lock is used or not.
    Until(Instant),
}

impl Iptables {
    /// Uses `variant`.
    #[must_use]
    pub fn new(variant: Variant) -> Self {
        Self {
            variant,
            generation: None,
            lock: Lock::new(),
            seen: None,
            known: BTreeMap::new(),
            others: Others::default(),
            packets: None,
            stuck: BTreeSet::new(),
        }
    }

    /// Whether the kernel may hold rules through this variant; `false` means that it surely has none.
    pub fn is_in_use(&self) -> Result<bool, Error> {
        match self.variant {
            Variant::Nft => nftables_was_used(),
            Variant::Legacy => Ok(has_legacy_tables(Family::V4)? || has_legacy_tables(Family::V6)?),
        }
    }

    /// How often a program was run to decode rules that had not been seen before.
    #[must_use]
    pub fn decodings(&self) -> u64 {
        self.known.values().map(|known| known.programs).sum::<u64>() + self.others.programs
    }

    /// The tables of nftables in which we have rules, those of them that can be read chain by chain; nothing where somebody changes
    /// something whenever they are read.
    async fn look(&mut self) -> Result<Option<(Shape, BTreeMap<(Family, Table), Part>)>, Error> {
        for _ in 0..LOOKS {
            let reader = Reader::open()?;
            let shape = match Shape::read(&reader) {
                Err(netlink::Error::Interrupted { .. }) => continue,
                shape => shape?,
            };
            let (mut parts, mut moved) = (BTreeMap::new(), false);
            for (index, family) in Family::BOTH.into_iter().enumerate().filter(|(_, family)| has_family(*family)) {
                let met = self.packets.as_ref().map(|(_, met)| &met[index]);
                for table in Table::ALL {
                    let known = self.known.entry((family, table)).or_default();
                    match known.look((family, table), &shape, &reader, met).await? {
                        Look::Seen(found, firewall) => drop(parts.insert((family, table), (found, firewall))),
                        Look::Moved => {
                            moved = true;
                            break;
                        }
                        Look::Apart => {}
                    }
                }
            }
            if !moved && self.current_generation()? == shape.generation {
                return Ok(Some((shape, parts)));
            }
        }
        Ok(None)
    }

    /// What of ours is in `family`, and the tables that it is in as a part of the host's firewall. `parts` have been read before.
    async fn save(&self, family: Family, parts: [Option<Part>; 3]) -> Result<(Installed, HostFirewall), Error> {
        // Asking a legacy program about tables that are not there would make them.
        let there = if self.variant == Variant::Legacy { legacy_tables(family)? } else { Vec::new() };
        if !has_family(family) || (self.variant == Variant::Legacy && there.is_empty()) {
            return Ok(Default::default());
        }
        let part = async |(table, part): (Table, Option<Part>)| match part {
            Some(part) => Ok(part),
            None if self.variant == Variant::Legacy
                && !table.is_needed()
                && !there.iter().any(|name| name == table.name()) =>
            {
                Ok(Default::default())
            }
            None => self.save_table(family, table).await,
        };
        let mut parts = Table::ALL.into_iter().zip(parts);
        let mut next = || parts.next().expect("a part for each table");
        let parts: [Part; 3] = tokio::try_join!(part(next()), part(next()), part(next()))?.into();
        let (mut installed, mut firewall) = (Installed::default(), HostFirewall::default());
        for (table, (there, of_others)) in Table::ALL.into_iter().zip(parts) {
            *installed.table_mut(table) = there;
            firewall.tables.extend(of_others.tables);
            firewall.unread.extend(of_others.unread);
        }
        Ok((installed, firewall))
    }

    async fn save_table(&self, family: Family, table: Table) -> Result<Part, Error> {
        let named = format!("the {} table of {}", table.name(), self.variant.program(family));
        let mut why = "it has sets of nftables, and somebody changes rules whenever it is read".to_owned();
        for _ in 0..SAVES {
            // Two readings that are held against each other must be of one moment.
            let generation = || Generation::open()?.current();
            let before = if self.variant == Variant::Nft { Some(generation()?) } else { None };
            let save = match command::run(self.variant.save_program(family), &["-t", table.name()], "").await {
                Ok(save) => save,
                Err(command::Error::Failed { stderr, .. }) => {
                    why = stderr;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(lacks) = apart::lacks(&save, table) {
                why = lacks;
                break;
            }
            let mut read = Installed::parse(&save).take(table);
            if before.is_some() && apart::is_dormant(family, table)? {
                let mut found = apart::read(self.variant, family, table, &why).await?;
                found.unreadable = Some(apart::dormant(self.variant, family, table));
                return Ok((found, HostFirewall { tables: Vec::new(), unread: vec![named] }));
            }
            if before.is_some() && apart::tables_with_sets(family)?.iter().any(|name| name == table.name()) {
                apart::mark_native(&mut read, family, table)?;
                if before != Some(generation()?) {
                    continue;
                }
            }
            let tables = xtables::parse(&save, family, self.variant.holder(family, true));
            let unread = apart::left_out(&save).map(|what| format!("all of {named}: {what}")).into_iter().collect();
            return Ok((read, HostFirewall { tables, unread }));
        }
        let found = apart::read(self.variant, family, table, &why).await?;
        Ok((found, HostFirewall { tables: Vec::new(), unread: vec![named] }))
    }

    fn current_generation(&mut self) -> Result<u32, Error> {
        if self.generation.is_none() {
            self.generation = Some(Generation::open()?);
        }
        let current = self.generation.as_ref().map_or(Ok(0), Generation::current);
        if current.is_err() {
            self.generation = None;
        }
        Ok(current?)
    }
}

/// Flushes nothing of others, waits up to 10 s for the lock.
const RESTORE: &[&str] = &["--noflush", "-w", "10"];

impl Engine for Iptables {
    fn name(&self) -> &'static str {
        self.variant.name()
    }

    async fn observe(&mut self) -> Result<InstalledRuleset, Error> {
        let began = Instant::now();
        let (mut before, mut shape, mut parts) = (None, None, BTreeMap::new());
        match self.variant {
            Variant::Nft => {
                // Read before the rules, so that a change while they are read is noticed afterwards.
                before = Some(self.current_generation()?);
                if let Some(seen) = Box::pin(self.look()).await? {
                    before = Some(seen.0.generation);
                    (shape, parts) = (Some(seen.0), seen.1);
                }
            }
            Variant::Legacy => self.lock.forget(),
        }
        let [of_v4, of_v6] = Family::BOTH.map(|family| Table::ALL.map(|table| parts.remove(&(family, table))));
        let ((mut v4, mut own), (mut v6, of_v6)) =
            tokio::try_join!(Box::pin(self.save(Family::V4, of_v4)), Box::pin(self.save(Family::V6, of_v6)))?;
        own.tables.extend(of_v6.tables);
        own.unread.extend(of_v6.unread);
        let firewall = Box::pin(self.others.read(self.variant, own, shape)).await;
        for (family, table, chain) in &self.stuck {
            let there = if *family == Family::V4 { &mut v4 } else { &mut v6 }.table_mut(*table);
            if there.ours.contains_key(chain) {
                there.foreign.entry("something of nftables".to_owned()).or_default().push(format!("-j {chain}"));
            }
        }
        self.seen = Some(before.map_or_else(
            || {
                let (least, most) = LEGACY_LOOKS;
                Seen::Until(Instant::now() + (began.elapsed() * LEGACY_SHARE).clamp(least, most))
            },
            Seen::Generation,
        ));
        Ok(InstalledRuleset { v4, v6, firewall })
    }

    async fn apply(&mut self, ops: &[Op]) -> Result<(), Error> {
        for op in ops {
            if let Step::Unhook { chain } = op.step {
                apart::unhook(self.variant, op.family, op.table, chain).await?;
            }
        }
        for family in Family::BOTH {
            let Some(text) = restore(ops, family) else { continue };
            let program = self.variant.restore_program(family);
            match command::run(program, RESTORE, &text).await {
                // A chain that cannot be deleted must keep no rule alive: from the next reading on it is only to be emptied.
                // Tables that were written before its own are as they shall be, so what is left is not what it was.
                Err(command::Error::Failed { stderr, .. }) if stderr.contains("CHAIN_DEL") => {
                    self.stuck.extend(ops.iter().filter(|op| op.family == family).filter_map(|op| match &op.step {
                        Step::Delete { chain } => Some((family, op.table, chain.clone())),
                        _ => None,
                    }));
                }
                outcome => drop(outcome?),
            }
        }
        Ok(())
    }

    fn attend_to(&mut self, packets: &Packets) {
        if self.variant == Variant::Legacy || self.packets.as_ref().is_some_and(|(known, _)| *known == packets.grown())
        {
            return;
        }
        let met = Family::BOTH.map(|family| packets.met_in_nat(family));
        let mut is_unread = self.packets.is_none();
        for ((family, _), known) in &mut self.known {
            is_unread |= known.attend_to(&met[usize::from(*family == Family::V6)]);
        }
        self.packets = Some((packets.grown(), met));
        if is_unread {
            self.seen = None;
        }
    }

    fn changed(&mut self) -> Result<bool, Error> {
        Ok(match self.seen {
            None => true,
            Some(Seen::Generation(seen)) => self.current_generation()? != seen,
            Some(Seen::Until(next)) => self.lock.was_used() || Instant::now() >= next,
        })
    }

    fn would_create(&self) -> Result<Vec<NftObject>, Error> {
        Ok(match self.variant {
            Variant::Nft => nft_objects::missing()?,
            Variant::Legacy => Vec::new(),
        })
    }
}
