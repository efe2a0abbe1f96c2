//! Tells when files of a directory have been written, moved or removed, through inotify(7).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventStream, Inotify, WatchMask};

/// Bytes for events that are read at once; an event takes 16 and the name.
const BUFFER_BYTES: usize = 4096;

/// What happened in the directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Look again; these files are complete.
    Files(BTreeSet<String>),
    /// The directory itself is gone, or events were lost: a new watch is needed.
    Lost,
}

/// A watch on one directory.
pub(crate) struct Watch {
    events: EventStream<[u8; BUFFER_BYTES]>,
}

impl Watch {
    /// Begins to watch `directory`.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // No MODIFY: a writer that has not closed its file is not done with it.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(directory, mask)?;
        Ok(Self { events: inotify.into_event_stream([0; BUFFER_BYTES])? })
    }

    /// Waits for the next change, and takes in all that has already happened.
    pub(crate) async fn next(&mut self) -> Change {
        let mut complete = BTreeSet::new();
        let mut event = self.events.next().await;
        loop {
            let Some(Ok(happened)) = event else { return Change::Lost };
            let lost = EventMask::DELETE_SELF
                | EventMask::MOVE_SELF
                | EventMask::Q_OVERFLOW
                | EventMask::IGNORED
                | EventMask::UNMOUNT;
            if happened.mask.intersects(lost) {
                return Change::Lost;
            }
            if happened.mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO)
                && let Some(name) = happened.name.as_ref().and_then(|name| name.to_str())
            {
                complete.insert(name.to_owned());
            }
            match self.events.next().now_or_never() {
                Some(next) => event = next,
                None => return Change::Files(complete),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    fn watched() -> (tempfile::TempDir, Watch) {
        let guard = tempfile::tempdir().unwrap();
        let directory = guard.path().join("manifests");
        fs::create_dir(&directory).unwrap();
        let watch = Watch::new(&directory).unwrap();
        (guard, watch)
    }

    /// The next change, which must have been reported already or be so soon.
    async fn next(watch: &mut Watch) -> Change {
        tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("nothing was reported")
    }

    fn complete(names: &[&str]) -> Change {
        Change::Files(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[tokio::test]
    async fn a_file_is_complete_once_its_writer_closed_it() {
        let (guard, mut watch) = watched();
        let mut file = fs::File::create(guard.path().join("manifests/a.yaml")).unwrap();
        assert_eq!(next(&mut watch).await, complete(&[]), "made, but not complete");
        file.write_all(b"half").unwrap();
        file.sync_all().unwrap();
        assert_eq!(watch.next().now_or_never(), None, "a write alone is nothing to look at");
        drop(file);
        assert_eq!(next(&mut watch).await, complete(&["a.yaml"]));
    }

    #[tokio::test]
    async fn a_file_renamed_into_place_is_complete() {
        let (guard, mut watch) = watched();
        fs::write(guard.path().join("new"), "whole").unwrap();
        fs::rename(guard.path().join("new"), guard.path().join("manifests/a.yaml")).unwrap();
        assert_eq!(next(&mut watch).await, complete(&["a.yaml"]));
    }

    #[tokio::test]
    async fn what_is_removed_or_moved_away_is_reported() {
        let (guard, mut watch) = watched();
        let path = guard.path().join("manifests/a.yaml");
        for away in [false, true] {
            fs::write(&path, "whole").unwrap();
            next(&mut watch).await;
            if away {
                fs::rename(&path, guard.path().join("away")).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            assert_eq!(next(&mut watch).await, complete(&[]));
        }
    }

    #[tokio::test]
    async fn many_changes_are_one_report() {
        let (guard, mut watch) = watched();
        let names: Vec<String> = (0..500).map(|n| format!("{n}.yaml")).collect();
        for name in &names {
            fs::write(guard.path().join("manifests").join(name), "whole").unwrap();
        }
        assert_eq!(next(&mut watch).await, complete(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(watch.next().now_or_never(), None);
    }

    #[tokio::test]
    async fn a_directory_that_goes_away_is_lost() {
        for moved in [false, true] {
            let (guard, mut watch) = watched();
            let directory = guard.path().join("manifests");
            if moved {
                fs::rename(&directory, guard.path().join("away")).unwrap();
            } else {
                fs::remove_dir(&directory).unwrap();
            }
            assert_eq!(next(&mut watch).await, Change::Lost);
        }
    }

    #[tokio::test]
    async fn only_a_directory_that_is_there_can_be_watched() {
        let guard = tempfile::tempdir().unwrap();
        assert!(Watch::new(&guard.path().join("none")).is_err());
        fs::write(guard.path().join("file"), "").unwrap();
        assert!(Watch::new(&guard.path().join("file")).is_err());
    }
}
