//! The state directory: what must survive a restart or a reboot of the host.
//!
//! ```text
//! lock            held while an agent runs: two never run on one directory
//! intents.json    the last good intents, enforced at start before anybody else has spoken; they record the claims
//! carried.json    what the kernel holds rules of, where a table that cannot be read keeps it from following the intents
//! newcomers.json  those of them that were not admitted, or not everywhere, if any: somebody else holds their ports
//! past.json       where rules that have gone led to, until the last connection by them has ended
//! manifests/      the last good objects of each manifest file, for when the file cannot be read
//! found.json      the listen addresses that the pool has found on this host: what is away for a moment stays wanted
//! clock.json      the highest time seen: what has expired stays closed whatever the host's clock says
//! first-seen.json since when each forward is there, for grants that limit lifetimes
//! order.json      who wins in `FORWARD` where the pool does not say, since this host was first served
//! host.json       settings of the host as they were before us, for `cleanup`
//! ```
//! Files are written whole and renamed into place, readable by root only. What else may be in their place (a FIFO, a
//! directory, something huge) is an error that names it: nothing is waited for, and nothing huge taken into memory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sallyport_api::gateway_pool::FirewallOrder;
use sallyport_api::id::{Moment, Uid};
use sallyport_engine::iptables::NftObject;
use sallyport_policy::places::Places;
use sallyport_ruleset::flow::Translations;
use sallyport_runtime::file;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error_chain::chain_of;
use crate::intents::{Carried, Intents};
use crate::manifest::Object;
use sallyport_engine::sysctl;

/// The host as it was before the agent changed it, since it was booted: a boot undoes what is not on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// `/proc/sys/kernel/random/boot_id` of the boot that it speaks of.
    pub boot: String,
    /// Forwarding settings, a record a family.
    pub sysctls: Vec<sysctl::Record>,
    /// Chains and tables that did not exist before us; `None` until the agent first looked.
    #[serde(rename = "absent")]
    pub created_by_us: Option<Vec<NftObject>>,
}

/// A forward that was not admitted, or not everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Noted", into = "Noted")]
pub struct NotAdmitted {
    /// Where it was admitted.
    pub had: Places,
    /// Whether it waits for somebody to give up a port.
    pub waits: bool,
}

/// It on disk: one that was admitted nowhere as older agents wrote it, and read it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Noted {
    Nowhere(bool),
    Somewhere { had: Places, waits: bool },
}

impl From<Noted> for NotAdmitted {
    fn from(noted: Noted) -> Self {
        match noted {
            Noted::Nowhere(waits) => Self { had: Places::default(), waits },
            Noted::Somewhere { had, waits } => Self { had, waits },
        }
    }
}

impl From<NotAdmitted> for Noted {
    fn from(NotAdmitted { had, waits }: NotAdmitted) -> Self {
        if had.is_empty() { Self::Nowhere(waits) } else { Self::Somewhere { had, waits } }
    }
}

/// What can go wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent, or a cleanup, has it.
    #[error("state directory {} is in use by another agent on this host; stop that one first", path.display())]
    InUse {
        /// Which directory.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("cannot access {}{}", path.display(), advice(source))]
    Access {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else than this version writes.
    #[error("cannot understand {}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The files in a state directory, but for the lock and the manifests.
const FILES: [&str; 9] = [
    "intents.json",
    "carried.json",
    "newcomers.json",
    "past.json",
    "found.json",
    "clock.json",
    "first-seen.json",
    "order.json",
    "host.json",
];
/// A file larger than this is not read: the last good intents of 10,000 forwards have some 6 MB.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// A program that an agent was just about to start when it was killed keeps the agent's lock until the kernel has loaded
/// it: that is waited for, at most so long.
const LOCK_INHERIT_GRACE: Duration = Duration::from_secs(1);

/// A state directory; exclusive while it lives if it was opened by [`StateDir::lock`].
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: Option<File>,
}

impl StateDir {
    /// Makes the directory if it is missing and takes it for this process alone.
    pub fn lock(path: &Path) -> Result<Self, Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| access(path, source))?;
        let lock_path = path.join("lock");
        let mut reading = OpenOptions::new();
        reading.read(true);
        let file = file::open(&lock_path, reading.clone().write(true).create(true).mode(0o600))
            // A disk that went read-only under an earlier agent can still be locked.
            .or_else(|error| match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => file::open(&lock_path, &reading),
                _ => Err(error),
            })
            .map_err(|source| access(&lock_path, source))?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), lock: Some(file) }),
                Err(fs::TryLockError::WouldBlock) if begun.elapsed() < LOCK_INHERIT_GRACE => {
                    thread::sleep(LOCK_INHERIT_GRACE / 100);
                }
                Err(fs::TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
                Err(fs::TryLockError::Error(source)) => return Err(access(&lock_path, source)),
            }
        }
    }

    /// Reads it beside whoever has it; writes are refused. A directory that does not exist is empty.
    #[must_use]
    pub fn read_only(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: None }
    }

    /// The last good intents, if there are any.
    pub fn intents(&self) -> Result<Option<Intents>, Error> {
        self.load("intents.json")
    }

    /// Keeps `intents` as the last good ones; on disk when this returns.
    pub fn keep_intents(&self, intents: &Intents) -> Result<(), Error> {
        self.store("intents.json", intents, true)
    }

    /// Forwards among the intents that were not admitted, or not everywhere, by uid.
    pub fn not_admitted(&self) -> Result<BTreeMap<Uid, NotAdmitted>, Error> {
        Ok(self.load("newcomers.json")?.unwrap_or_default())
    }

    /// Keeps them, or forgets all: forwards that count as admitted by mistake take nothing from anybody.
    pub fn keep_not_admitted(&self, forwards: &BTreeMap<Uid, NotAdmitted>) -> Result<(), Error> {
        let path = self.path.join("newcomers.json");
        if forwards.is_empty() {
            return remove(&path);
        }
        self.store("newcomers.json", forwards, true).inspect_err(|_| drop(remove(&path)))
    }

    /// What is carried apart from the intents.
    pub fn carried(&self) -> Result<Carried, Error> {
        Ok(self.load("carried.json")?.unwrap_or_default())
    }

    /// Keeps it; on disk when this returns. That nothing is needs no file.
    pub fn keep_carried(&self, carried: &Carried) -> Result<(), Error> {
        if *carried == Carried::default() {
            return remove(&self.path.join("carried.json"));
        }
        self.store("carried.json", carried, true)
    }

    /// Where rules led to that have gone.
    pub fn past(&self) -> Result<Translations, Error> {
        Ok(self.load("past.json")?.unwrap_or_default())
    }

    /// Keeps it; on disk when this returns. That nothing is needs no file.
    pub fn keep_past(&self, past: &Translations) -> Result<(), Error> {
        if past.is_empty() {
            return remove(&self.path.join("past.json"));
        }
        self.store("past.json", past, true)
    }

    /// The listen addresses that the pool has found on this host, those that are away first.
    pub fn found(&self) -> Result<Vec<IpAddr>, Error> {
        Ok(self.load("found.json")?.unwrap_or_default())
    }

    /// Keeps them; on disk when this returns.
    pub fn keep_found(&self, found: &[IpAddr]) -> Result<(), Error> {
        self.store("found.json", &found, true)
    }

    /// The highest time that was seen; 1970 if none was kept.
    pub fn highest_time(&self) -> Result<Moment, Error> {
        Ok(self.load("clock.json")?.unwrap_or_default())
    }

    /// Keeps the highest time that was seen; on disk when this returns.
    pub fn keep_highest_time(&self, time: Moment) -> Result<(), Error> {
        if self.lock.is_none() {
            return Ok(());
        }
        self.store("clock.json", &time, true)
    }

    /// Since when each forward is there, by uid.
    pub fn first_seen(&self) -> Result<BTreeMap<Uid, Moment>, Error> {
        Ok(self.load("first-seen.json")?.unwrap_or_default())
    }

    /// Keeps since when each forward is there; on disk when this returns.
    pub fn keep_first_seen(&self, first_seen: &BTreeMap<Uid, Moment>) -> Result<(), Error> {
        if self.lock.is_none() {
            return Ok(());
        }
        self.store("first-seen.json", first_seen, true)
    }

    /// Who wins in `FORWARD` where the pool does not say, and whether that was decided just now: the forwards where intents were
    /// kept by a version that knew nothing else, and on a new host what others deny. On disk when this returns.
    pub fn order(&self) -> Result<(FirewallOrder, bool), Error> {
        if let Some(kept) = self.load("order.json")? {
            return Ok((kept, false));
        }
        let path = self.path.join("intents.json");
        let served = path.try_exists().map_err(|source| access(&path, source))?;
        let order = if served { FirewallOrder::First } else { FirewallOrder::AfterDenies };
        if self.lock.is_some() {
            self.store("order.json", &order, true)?;
        }
        Ok((order, true))
    }

    /// How the host was before us, in this boot.
    pub fn host(&self) -> Result<Host, Error> {
        let boot = boot()?;
        let known: Option<Host> = self.load("host.json")?;
        Ok(known.filter(|host| host.boot == boot).unwrap_or_else(|| Host { boot, ..Host::default() }))
    }

    /// Like [`Self::host`], but what cannot be read counts as nothing to put back.
    #[must_use]
    pub fn host_or_nothing(&self) -> Host {
        self.host().unwrap_or_else(|error| {
            tracing::warn!(error = chain_of(&error), "how this host was before is lost; cleanup will not put it back");
            Host { boot: boot().unwrap_or_default(), sysctls: Vec::new(), created_by_us: Some(Vec::new()) }
        })
    }

    /// Keeps how the host was; on disk when this returns.
    pub fn keep_host(&self, host: &Host) -> Result<(), Error> {
        self.store("host.json", host, true)
    }

    /// The last good objects of the manifest file `name`.
    pub fn good_objects(&self, name: &str) -> Result<Vec<Object>, Error> {
        Ok(self.load(&format!("manifests/{name}.json"))?.unwrap_or_default())
    }

    /// Keeps the good objects of the manifest file `name`.
    pub fn keep_good_objects(&self, name: &str, objects: &[Object]) -> Result<(), Error> {
        if self.lock.is_none() {
            return Ok(());
        }
        let directory = self.path.join("manifests");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| access(&directory, source))?;
        self.store(&format!("manifests/{name}.json"), &objects, false)
    }

    /// Names of the manifest files of which good objects are kept.
    #[must_use]
    pub fn good_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path.join("manifests")).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned())).collect()
    }

    /// Forgets the manifest file `name`, which is gone.
    pub fn forget_objects(&self, name: &str) -> Result<(), Error> {
        if self.lock.is_none() {
            return Ok(());
        }
        remove(&self.path.join(format!("manifests/{name}.json")))
    }

    /// Forgets everything, after a cleanup.
    pub fn clear(&self) -> Result<(), Error> {
        // The `.new` are what a crash left.
        for name in FILES {
            remove(&self.path.join(name))?;
            remove(&self.path.join(format!("{name}.new")))?;
        }
        let manifests = self.path.join("manifests");
        match fs::remove_dir_all(&manifests) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(access(&manifests, source)),
            _ => Ok(()),
        }
    }

    fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.path.join(name);
        match file::read(&path, MAX_BYTES) {
            Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|source| Error::Content { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(access(&path, source)),
        }
    }

    fn store<T: Serialize>(&self, name: &str, value: &T, durable: bool) -> Result<(), Error> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let write = || {
            // What a crash left, or somebody put there: to open a FIFO would be to wait for its reader.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
            let mut buffered = BufWriter::new(&file);
            serde_json::to_writer(&mut buffered, value)?;
            buffered.flush()?;
            if durable {
                file.sync_all()?;
            }
            fs::rename(&new, &path)?;
            if durable {
                File::open(&self.path)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|source| access(&path, source))
    }
}

fn boot() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(|source| access(path, source))?.trim().to_owned())
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(access(path, source)),
        _ => Ok(()),
    }
}

/// What to do about something that no agent puts there.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge => "; move it away",
        _ => "",
    }
}

fn access(path: &Path, source: io::Error) -> Error {
    Error::Access { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
