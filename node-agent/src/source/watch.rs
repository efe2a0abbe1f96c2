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
pub enum Change {
    /// Look again; these files are complete.
    Files(BTreeSet<String>),
    /// The directory itself is gone, or events were lost: a new watch is needed.
    Lost,
}

/// A watch on one directory.
pub struct Watch {
    events: EventStream<[u8; BUFFER_BYTES]>,
}

impl Watch {
    /// Begins to watch `directory`.
    pub fn new(directory: &Path) -> io::Result<Self> {
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
    pub async fn next(&mut self) -> Change {
        let mut complete = BTreeSet::new();
        let mut event = self.events.next().await;
        loop {
            let Some(Ok(happened)) = event else { return Change::Lost };
            let lost = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::Q_OVERFLOW | EventMask::IGNORED | EventMask::UNMOUNT;
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
