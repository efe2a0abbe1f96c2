//! The time by which forwards end. It never goes back: not when the host's clock is stepped back, and not over a restart.
//!
//! ```text
//! max(the host's clock, the highest time so far + what has passed since)
//! ```
//! The highest time is on disk before anything is closed by it, so what has ended once has ended for good.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sallyport_api::id::Moment;
use sallyport_runtime::once::Once;

use crate::error_chain::chain_of;
use crate::state::StateDir;

/// The highest time on disk is never more seconds old than this while any forward will end.
const KEEP: i64 = 60;
/// A host's clock that is further behind is worth a warning.
const BEHIND: Duration = Duration::from_secs(5);

/// A clock, and when the next forward ends by it.
pub(crate) struct Clock {
    /// Time since 1970 as the host has it.
    pub(crate) wall: Box<dyn Fn() -> Duration>,
    /// The highest time so far, and when it was.
    highest: (Duration, Instant),
    state: Rc<StateDir>,
    /// The highest time on disk.
    kept: Moment,
    /// When the next forward ends.
    next: Option<Moment>,
    /// Whether the host's clock is behind.
    behind: bool,
    /// Why the time could not be kept.
    unkept: Once,
}

impl Clock {
    /// Goes on from the highest time in the state directory.
    #[must_use]
    pub(crate) fn new(state: Rc<StateDir>) -> Self {
        let kept = state.highest_time().unwrap_or_else(|error| {
            let error = chain_of(&error);
            tracing::error!(
                error,
                "the highest time seen is lost: if this host's clock is wrong, what has ended opens again"
            );
            Moment::default()
        });
        let highest = Duration::from_secs(u64::try_from(kept.0).unwrap_or_default());
        let wall = Box::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        Self {
            wall,
            highest: (highest, Instant::now()),
            state,
            kept,
            next: None,
            behind: false,
            unkept: Once::default(),
        }
    }

    /// What time it is.
    pub(crate) fn now(&mut self) -> Moment {
        // The host's clock first: read after the other, a pause between the two would push the time ahead for good.
        let (wall, instant) = ((self.wall)(), Instant::now());
        let (highest, then) = self.highest;
        let counted = highest.saturating_add(instant.duration_since(then));
        let behind = counted.saturating_sub(wall);
        if behind > BEHIND && !self.behind {
            tracing::warn!(
                seconds = behind.as_secs(),
                "this host's clock is behind the highest time that was seen here; forwards end by the latter"
            );
        }
        self.behind = behind > BEHIND;
        self.highest = (wall.max(counted), instant);
        i64::try_from(self.highest.0.as_secs()).map_or(Moment::MAX, Moment)
    }

    /// Forwards end at these times, and those that ended until `now` are about to be closed.
    pub(crate) fn expect(&mut self, ends: impl Iterator<Item = Moment>, now: Moment) {
        let mut ended = None;
        self.next = None;
        for end in ends {
            if end <= now {
                ended = ended.max(Some(end));
            } else if self.next.is_none_or(|next| end < next) {
                self.next = Some(end);
            }
        }
        if ended.is_some_and(|end| end > self.kept) {
            self.keep(now);
        }
    }

    /// Whether a forward has ended since it was expected to. Called twice a second; at rest it costs nothing.
    pub(crate) fn is_due(&mut self) -> bool {
        let Some(next) = self.next else { return false };
        let now = self.now();
        if now >= self.kept.plus(KEEP) {
            self.keep(now);
        }
        next <= now
    }

    /// A state directory that cannot be written must not keep anything open that has to be closed.
    fn keep(&mut self, now: Moment) {
        match self.state.keep_highest_time(now) {
            Ok(()) => {
                self.kept = now;
                self.unkept.clear();
            }
            Err(error) => {
                let error = chain_of(&error);
                if self.unkept.is_news(&error) {
                    tracing::warn!(
                        error,
                        "cannot keep the time; after a reboot with a wrong clock, what has ended may open again"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
