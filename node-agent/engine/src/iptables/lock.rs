//! Has anybody run a program of iptables-legacy? Each of them opens the lock that they all share, and closes it when it
//! is done.
//!
//! `x_tables` has neither a change counter nor notifications, so this is the quickest sign there is. It is not a certain
//! one: a program in a container without the host's lock file, or one that takes no lock, goes unseen. Therefore the
//! tables are read now and then, too.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use inotify::{EventMask, Inotify, WatchMask};

/// Where the lock is (xtables-monitor(8) and iptables(8) call it so), unless [`LOCK_VARIABLE`] says otherwise.
const LOCK: &str = "/run/xtables.lock";
/// The programs take another lock if this is set, ours included, so we look at that one.
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";
/// Bytes for events that are read at once; an event of a single file takes 16.
const BUFFER_BYTES: usize = 1024;

/// Lets nobody but root open the lock, and so hold it: whoever does stops every program of iptables. They make it so
/// themselves; for a pod that mounts it the kubelet does instead, readable by all. Whether that had to be put right.
///
/// # Errors
/// When it could not be.
pub fn close_to_others() -> io::Result<bool> {
    close(Path::new(&std::env::var_os(LOCK_VARIABLE).unwrap_or_else(|| LOCK.into())))
}

/// Only if it is what the kubelet makes, an empty file of ours: everything else is somebody's choice.
fn close(path: &Path) -> io::Result<bool> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    let is_ours = found.is_file() && found.len() == 0 && found.uid() == fs::metadata("/proc/self")?.uid();
    let others = found.permissions().mode() & 0o077;
    if !is_ours || others == 0 {
        return Ok(false);
    }
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(true)
}

/// Sees when the lock was used.
#[derive(Debug)]
pub(super) struct Lock {
    path: OsString,
    inotify: Option<Inotify>,
    used: bool,
}

impl Lock {
    pub(super) fn new() -> Self {
        Self::at(std::env::var_os(LOCK_VARIABLE).unwrap_or_else(|| LOCK.into()))
    }

    fn at(path: OsString) -> Self {
        Self { path, inotify: None, used: true }
    }

    /// From here on: whatever was done before does not matter any more.
    pub(super) fn forget(&mut self) {
        self.listen();
        self.used = false;
    }

    /// Whether it was used since [`Self::forget`].
    pub(super) fn was_used(&mut self) -> bool {
        self.listen();
        self.used
    }

    fn listen(&mut self) {
        let Some(inotify) = &mut self.inotify else {
            // While there is no lock, nobody has used it; once there is one, somebody may have.
            self.inotify = watch(Path::new(&self.path)).ok();
            self.used |= self.inotify.is_some();
            return;
        };
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            match inotify.read_events(&mut buffer) {
                Ok(events) => {
                    self.used = true;
                    let closed = EventMask::CLOSE_WRITE | EventMask::CLOSE_NOWRITE;
                    let mut lost = false;
                    for event in events {
                        lost |= !closed.contains(event.mask);
                    }
                    if lost {
                        self.inotify = None;
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.used = true;
                    self.inotify = None;
                    return;
                }
            }
        }
    }
}

/// Not when it is opened: what a program does to the tables comes after that. A lock that is removed gets no more
/// events, and whoever comes next makes another one.
fn watch(path: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init()?;
    let gone = WatchMask::ATTRIB | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
    inotify.watches().add(path, WatchMask::CLOSE | gone)?;
    Ok(inotify)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs::File;

    use super::*;

    fn scene() -> (tempfile::TempDir, Lock) {
        let guard = tempfile::tempdir().unwrap();
        let lock = Lock::at(guard.path().join("lock").into());
        (guard, lock)
    }

    #[test]
    fn each_use_is_seen_until_it_is_forgotten() {
        let (_guard, mut lock) = scene();
        assert!(lock.was_used(), "what was before is not known");
        lock.forget();
        assert!(!lock.was_used(), "there is no lock");
        File::create(&lock.path).unwrap();
        assert!(lock.was_used(), "somebody made it");
        lock.forget();
        assert!(!lock.was_used());
        let held = File::open(&lock.path).unwrap();
        assert!(!lock.was_used(), "it is held: nothing is done yet");
        drop(held);
        assert!(lock.was_used() && lock.was_used());
        lock.forget();
        assert!(!lock.was_used());
    }

    #[test]
    fn a_lock_that_anybody_could_hold_is_closed_unless_somebody_meant_it() {
        let (guard, lock) = scene();
        let path = Path::new(&lock.path);
        let mode = || fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert!(!close(path).unwrap() && !path.exists(), "it is not made");
        // What is in it, as whom it was made, whether that is changed.
        for (content, before, after) in
            [("", 0o644, 0o600), ("", 0o660, 0o600), ("", 0o600, 0o600), ("x", 0o644, 0o644)]
        {
            fs::write(path, content).unwrap();
            fs::set_permissions(path, Permissions::from_mode(before)).unwrap();
            assert_eq!((close(path).unwrap(), mode()), (before != after, after), "{content:?} {before:o}");
        }
        let link = guard.path().join("link");
        std::os::unix::fs::symlink("lock", &link).unwrap();
        fs::write(path, "").unwrap();
        assert_eq!((close(&link).unwrap(), mode()), (false, 0o644));
    }

    #[test]
    fn a_lock_that_is_removed_and_made_anew_is_followed() {
        let (guard, mut lock) = scene();
        for make in [0, 1, 2] {
            let other = guard.path().join("other");
            match make {
                0 => drop(File::create(&lock.path).unwrap()),
                1 => {
                    fs::remove_file(&lock.path).unwrap();
                    File::create(&lock.path).unwrap();
                }
                _ => {
                    File::create(&other).unwrap();
                    fs::rename(&other, &lock.path).unwrap();
                }
            }
            assert!(lock.was_used(), "{make}");
            // Once for the one that is gone, once for the one that has come.
            lock.forget();
            lock.forget();
            assert!(!lock.was_used(), "{make}");
            drop(File::open(&lock.path).unwrap());
            assert!(lock.was_used(), "{make}");
            lock.forget();
        }
    }
}
