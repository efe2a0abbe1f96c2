//! When to try again after a pass that failed.

use std::time::{Duration, Instant};

use sallyport_runtime::backoff::Backoff;

/// Wait before the first try after a failed pass; it doubles with each.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest wait after a failed pass before the next try.
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The next try, if one is due.
pub(super) struct Retry {
    pub(super) backoff: Backoff,
    pub(super) at: Option<Instant>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY), at: None }
    }
}

impl Retry {
    /// A pass was good.
    pub(super) fn over(&mut self) {
        if self.at.take().is_some() {
            self.backoff.reset();
        }
    }

    /// Where nothing is broken, and so nothing to wait long for.
    pub(super) fn soon(&mut self) {
        self.at = Some(Instant::now() + FIRST_RETRY);
    }

    /// Later each time.
    pub(super) fn later(&mut self) {
        self.at = Some(Instant::now() + self.backoff.failed());
    }
}
