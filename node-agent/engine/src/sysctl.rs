//! Packet forwarding of each family: turn it on, remember what that changes, put it back.
//!
//! One write to the switch of a family changes other files too (observed on Linux 6.18; the code
//! is `inet_forward_change` in `net/ipv4/devinet.c` and `addrconf_fixup_forwarding` in
//! `net/ipv6/addrconf.c`):
//! - `conf/*/forwarding` of `all`, `default` and every interface becomes the new value, whatever
//!   it was; an interface made later begins with that of `default`;
//! - IPv4 only: `conf/all/accept_redirects` becomes the opposite of the new value;
//! - IPv6 only: routes learned from router advertisements go, and later advertisements are
//!   ignored, on every interface whose `accept_ra` is not 2.
//!
//! So `accept_ra` becomes 2 wherever it is 1, before the switch: a route that comes with the first advertisement after it is
//! as dear as one that is there already. `default` is among these, so that interfaces made later begin with it, and whoever
//! puts 1 back is followed.
//!
//! Writing the value that the switch already has changes nothing. `route_localnet` is never
//! written. When forwarding is needed, and where the record is kept, is the agent's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sallyport_ruleset::family::Family;
use serde::{Deserialize, Serialize};

const ON: &str = "1";
/// What turning IPv4 forwarding on makes of `conf/all/accept_redirects`.
const REDIRECTS_WHILE_ON: &str = "0";
/// `accept_ra`: take router advertisements while not forwarding.
const RA_UNLESS_FORWARDING: &str = "1";
/// `accept_ra`: take router advertisements even while forwarding.
const RA_ALWAYS: &str = "2";

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not readable; a family that the kernel does not have has no files.
    #[error("read {}", path.display())]
    Read {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not writable, for instance because `/proc/sys` is mounted read-only.
    #[error("write {value} to {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What should be in it.
        value: String,
        /// Why.
        source: io::Error,
    },
}

/// What turning on the forwarding of one family changes, with the values before. Persist it
/// before [`Sysctl::apply`], so that [`Sysctl::restore`] works after a crash too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(with = "FamilyName")]
    family: Family,
    /// `conf/*/forwarding` of `all` (which is the switch), `default` and every interface.
    forwarding: BTreeMap<String, String>,
    /// `conf/all/accept_redirects`, which follows the switch of IPv4 only.
    accept_redirects: Option<String>,
    /// Interfaces, and `default`, whose `accept_ra` goes from 1 to 2, IPv6 only.
    accept_ra: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Family")]
enum FamilyName {
    V4,
    V6,
}

impl Record {
    /// The family whose forwarding it is about.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Adds what a `later` record of the same family knows and this one does not: somebody
    /// turned forwarding off and it is turned on again, maybe with new interfaces. What this one
    /// knows is older, so it stays.
    pub fn merge(&mut self, later: Self) {
        for (interface, value) in later.forwarding {
            self.forwarding.entry(interface).or_insert(value);
        }
        self.accept_ra.extend(later.accept_ra);
    }
}

/// The network settings of one network namespace, as files.
#[derive(Clone, Debug)]
pub struct Sysctl {
    root: PathBuf,
}

impl Default for Sysctl {
    fn default() -> Self {
        Self::mounted_at(Path::new("/proc/sys"))
    }
}

impl Sysctl {
    /// `proc_sys` is `/proc/sys` or wherever it is mounted writable.
    #[must_use]
    pub fn mounted_at(proc_sys: &Path) -> Self {
        Self::new(proc_sys.join("net"))
    }

    /// `root` is `/proc/sys/net` or wherever it is mounted writable.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether packets of `family` are forwarded.
    pub fn forwarding(&self, family: Family) -> Result<bool, Error> {
        Ok(read(&self.switch(family))? != "0")
    }

    /// What turning the forwarding of `family` on would change; `None` when it is on.
    pub fn plan(&self, family: Family) -> Result<Option<Record>, Error> {
        if self.forwarding(family)? {
            return Ok(None);
        }
        let accept_redirects = match family {
            Family::V4 => Some(read(&self.conf(family, "all", "accept_redirects"))?),
            Family::V6 => None,
        };
        let accept_ra = match family {
            Family::V4 => BTreeSet::new(),
            Family::V6 => self.deaf_interfaces()?,
        };
        let forwarding = self.forwarding_of_each(family)?;
        Ok(Some(Record { family, forwarding, accept_redirects, accept_ra }))
    }

    /// Turns forwarding on as planned.
    pub fn apply(&self, record: &Record) -> Result<(), Error> {
        // First, because the switch drops the routes of interfaces which are not yet at 2.
        self.move_accept_ra(record, RA_UNLESS_FORWARDING, RA_ALWAYS)?;
        write(&self.switch(record.family), ON)
    }

    /// Whether somebody has made an interface ignore router advertisements since `record` was applied, by the value that
    /// only heeds them while nothing is forwarded: if so `record` with what [`Sysctl::apply_advertisements`] would change.
    pub fn plan_advertisements(&self, record: &Record) -> Result<Option<Record>, Error> {
        let deaf = self.deaf_interfaces()?;
        if record.family == Family::V4 || deaf.is_empty() {
            return Ok(None);
        }
        let mut record = record.clone();
        record.accept_ra.extend(deaf);
        Ok(Some(record))
    }

    /// Has them heed advertisements again, as planned.
    pub fn apply_advertisements(&self, record: &Record) -> Result<(), Error> {
        self.move_accept_ra(record, RA_UNLESS_FORWARDING, RA_ALWAYS)
    }

    /// The interfaces that have come since `record` was made, those of containers or tunnels among them, which know no host
    /// that does not forward.
    pub fn come_since(&self, record: &Record) -> Result<Vec<String>, Error> {
        let mut names = self.interfaces(record.family)?;
        names.retain(|name| !record.forwarding.contains_key(name));
        names.sort_unstable();
        Ok(names)
    }

    /// Puts back every value of `record` that is still as [`Sysctl::apply`] left it. What
    /// somebody else changed since, and interfaces which are gone, are left alone; an interface
    /// made since gets what `default` had before.
    pub fn restore(&self, record: &Record) -> Result<(), Error> {
        let family = record.family;
        let mut wanted = self.forwarding_of_each(family)?;
        for (interface, value) in &mut wanted {
            let before = record.forwarding.get(interface);
            let before = before.or_else(|| record.forwarding.get("default"));
            if let Some(before) = before.filter(|_| value == ON) {
                value.clone_from(before);
            }
        }
        let redirects = self.conf(family, "all", "accept_redirects");
        let wanted_redirects = match &record.accept_redirects {
            Some(before) => Some((read(&redirects)?, before)),
            None => None,
        };

        // The switch overwrites all the others, so it comes first.
        if let Some(value) = wanted.remove("all") {
            write_if_differs(&self.switch(family), &value)?;
        }
        for (interface, value) in wanted {
            write_if_differs(&self.conf(family, &interface, "forwarding"), &value)?;
        }
        if let Some((now, before)) = wanted_redirects {
            let value = if now == REDIRECTS_WHILE_ON { before } else { &now };
            write_if_differs(&redirects, value)?;
        }
        // Last, because each write to a `forwarding` above may drop routes of what is not at 2.
        let mut record = record.clone();
        if record.accept_ra.contains("default") {
            let made_since = |name: &String| !record.forwarding.contains_key(name);
            record.accept_ra.extend(self.interfaces(family)?.into_iter().filter(made_since));
        }
        self.move_accept_ra(&record, RA_ALWAYS, RA_UNLESS_FORWARDING)
    }

    /// Writes `to` to the recorded interfaces which are at `from`.
    fn move_accept_ra(&self, record: &Record, from: &str, to: &str) -> Result<(), Error> {
        if record.accept_ra.is_empty() {
            return Ok(());
        }
        // Only names that the kernel lists become paths, whatever a record on disk says.
        for interface in self.interfaces(record.family)? {
            let path = self.conf(record.family, &interface, "accept_ra");
            if record.accept_ra.contains(&interface) && read_if_there(&path)?.as_deref() == Some(from) {
                write(&path, to)?;
            }
        }
        Ok(())
    }

    /// Interfaces, and `default`, that heed router advertisements only while nothing is forwarded.
    fn deaf_interfaces(&self) -> Result<BTreeSet<String>, Error> {
        let mut deaf = BTreeSet::new();
        // The value of `all` is nobody's.
        for interface in self.interfaces(Family::V6)?.into_iter().filter(|name| name != "all") {
            if read_if_there(&self.conf(Family::V6, &interface, "accept_ra"))?.as_deref() == Some(RA_UNLESS_FORWARDING)
            {
                deaf.insert(interface);
            }
        }
        Ok(deaf)
    }

    fn forwarding_of_each(&self, family: Family) -> Result<BTreeMap<String, String>, Error> {
        let mut values = BTreeMap::new();
        for interface in self.interfaces(family)? {
            // An interface may go between the listing and the reading.
            if let Some(value) = read_if_there(&self.conf(family, &interface, "forwarding"))? {
                values.insert(interface, value);
            }
        }
        Ok(values)
    }

    /// `all`, `default` and every interface.
    fn interfaces(&self, family: Family) -> Result<Vec<String>, Error> {
        let path = self.family_root(family).join("conf");
        let list = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&path)? {
                // The kernel takes any bytes for a name, the record only text.
                names.extend(entry?.file_name().into_string());
            }
            Ok(names)
        };
        list().map_err(|source| Error::Read { path: path.clone(), source })
    }

    fn switch(&self, family: Family) -> PathBuf {
        match family {
            Family::V4 => self.family_root(family).join("ip_forward"),
            Family::V6 => self.conf(family, "all", "forwarding"),
        }
    }

    fn conf(&self, family: Family, interface: &str, setting: &str) -> PathBuf {
        self.family_root(family).join("conf").join(interface).join(setting)
    }

    fn family_root(&self, family: Family) -> PathBuf {
        self.root.join(match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        })
    }
}

fn read(path: &Path) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(value) => Ok(value.trim_ascii().to_owned()),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match read(path) {
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Never creates the file: what the kernel does not have is not a setting.
fn write(path: &Path, value: &str) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error::Write { path: path.to_owned(), value: value.to_owned(), source })
}

fn write_if_differs(path: &Path, value: &str) -> Result<(), Error> {
    match read_if_there(path)? {
        Some(now) if now != value => write(path, value),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
