//! The iptables backend: `iptables-{nft,legacy}-restore --noflush` in, `iptables-{nft,legacy}-save` out.
//!
//! One restore call a family; never a single `-A` or `-D`, which would lose connections between two calls.

mod detect;
pub mod lock;
mod others;
mod vacant;

use std::path::Path;
use std::time::{Duration, Instant};

use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{FirewallTable, Holder, xtables};
use sallyport_ruleset::installed::{Installed, InstalledRuleset};
use sallyport_ruleset::listener::Listener;
use sallyport_ruleset::plan::Batch;

pub use self::detect::{Detected, detect};
use self::lock::Lock;
pub use self::vacant::{Place, remove_vacant};
use crate::command;
use crate::conntrack::Conntrack;
use crate::generation::Generation;
use crate::listeners::listeners;
use crate::{Engine, Error};

/// Shortest and longest time between two looks at legacy tables that nobody seems to have changed.
const LEGACY_LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
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
        let program = match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft",
            (Self::Nft, Family::V6) => "ip6tables-nft",
            (Self::Legacy, Family::V4) => "iptables-legacy",
            (Self::Legacy, Family::V6) => "ip6tables-legacy",
        };
        Holder::Iptables { program, own }
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
    family == Family::V4 || Path::new("/proc/net/if_inet6").exists()
}

/// The legacy tables of `family` that exist.
fn legacy_tables(family: Family) -> Vec<String> {
    let names = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    let names = std::fs::read_to_string(names).unwrap_or_default();
    names.split_whitespace().map(str::to_owned).collect()
}

/// Whether legacy tables of `family` exist.
fn has_legacy_tables(family: Family) -> bool {
    !legacy_tables(family).is_empty()
}

/// Whether anything was ever put into nftables: a network namespace starts at generation 1 and every transaction moves it.
fn nftables_was_used() -> bool {
    Generation::open().and_then(|generation| generation.current()).is_ok_and(|generation| generation > 1)
}

/// Rules through one variant of iptables.
#[derive(Debug)]
pub struct Iptables {
    variant: Variant,
    generation: Option<Generation>,
    lock: Lock,
    seen: Option<Seen>,
}

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
        Self { variant, generation: None, lock: Lock::new(), seen: None }
    }

    /// Whether the kernel may hold rules through this variant; `false` means that it surely has none.
    pub fn is_in_use(&self) -> bool {
        match self.variant {
            Variant::Nft => nftables_was_used(),
            Variant::Legacy => Family::BOTH.into_iter().any(has_legacy_tables),
        }
    }

    /// What of ours is in `family`, and the tables that it is in as a part of the host's firewall.
    async fn save(&self, family: Family) -> Result<(Installed, Vec<FirewallTable>), Error> {
        // Asking a legacy program about tables that are not there would make them.
        if !has_family(family) || (self.variant == Variant::Legacy && !has_legacy_tables(family)) {
            return Ok(Default::default());
        }
        let program = self.variant.save_program(family);
        let (filter, nat) =
            tokio::try_join!(command::run(program, &["-t", "filter"], ""), command::run(program, &["-t", "nat"], ""))?;
        let holder = self.variant.holder(family, true);
        let tables = [&filter, &nat].into_iter().flat_map(|save| xtables::parse(save, family, holder)).collect();
        let (filter, nat) = (Installed::parse(&filter).filter, Installed::parse(&nat).nat);
        Ok((Installed { filter, nat }, tables))
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

impl Engine for Iptables {
    fn name(&self) -> &'static str {
        self.variant.name()
    }

    async fn observe(&mut self) -> Result<InstalledRuleset, Error> {
        let began = Instant::now();
        // Read before the rules, so that a change while they are read is noticed afterwards.
        let before = match self.variant {
            Variant::Nft => Some(self.current_generation()?),
            Variant::Legacy => {
                self.lock.forget();
                None
            }
        };
        let ((v4, mut tables), (v6, of_v6)) = tokio::try_join!(self.save(Family::V4), self.save(Family::V6))?;
        tables.extend(of_v6);
        let firewall = others::read(self.variant, tables).await;
        self.seen = Some(before.map_or_else(
            || {
                let (least, most) = LEGACY_LOOKS;
                Seen::Until(Instant::now() + (began.elapsed() * LEGACY_SHARE).clamp(least, most))
            },
            Seen::Generation,
        ));
        Ok(InstalledRuleset { v4, v6, firewall })
    }

    async fn apply(&mut self, batch: &Batch) -> Result<(), Error> {
        for family in Family::BOTH {
            if let Some(text) = batch.family(family) {
                command::run(self.variant.restore_program(family), &["--noflush", "-w", "10"], text).await?;
            }
        }
        Ok(())
    }

    fn moved(&mut self) -> Result<bool, Error> {
        Ok(match self.seen {
            None => true,
            Some(Seen::Generation(seen)) => self.current_generation()? != seen,
            Some(Seen::Until(next)) => self.lock.was_used() || Instant::now() >= next,
        })
    }

    fn absent(&self) -> Result<Vec<Place>, Error> {
        Ok(match self.variant {
            Variant::Nft => vacant::absent()?,
            Variant::Legacy => Vec::new(),
        })
    }

    fn conntrack(&self) -> Result<Option<Conntrack>, Error> {
        Ok(Some(Conntrack::open()?))
    }

    fn listeners(&self) -> Result<Option<Vec<Listener>>, Error> {
        Ok(Some(listeners()?))
    }
}
