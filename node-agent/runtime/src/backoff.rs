//! How long to wait before the next try: twice as long after each failure, up to a limit.
//!
//! When that is, and what is tried, is for whoever waits.

use std::time::Duration;

use tokio::time::Instant;

/// The waits between the tries of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    /// After so long without a failure the next one is the first again.
    calm: Option<Duration>,
    last: Option<Instant>,
}

impl Backoff {
    /// Waits for `first`, twice that, and so on up to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first, calm: None, last: None }
    }

    /// Begins anew when nothing has failed for `calm`, for those whom nobody tells that something has worked.
    #[must_use]
    pub const fn calm_after(self, calm: Duration) -> Self {
        Self { calm: Some(calm), ..self }
    }

    /// How long to wait after one more failure.
    pub fn failed(&mut self) -> Duration {
        if self.calm.is_some_and(|calm| self.last.is_some_and(|last| last.elapsed() > calm)) {
            self.reset();
        }
        self.last = Some(Instant::now());
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait
    }

    /// Something has worked: the next failure is the first again.
    pub fn reset(&mut self) {
        (self.next, self.last) = (self.first, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(backoff: &mut Backoff, times: usize) -> Vec<u64> {
        (0..times).map(|_| backoff.failed().as_secs()).collect()
    }

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_when_something_has_worked() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
        assert_eq!(seconds(&mut backoff, 6), [2, 4, 8, 16, 30, 30]);
        backoff.reset();
        assert_eq!(seconds(&mut backoff, 2), [2, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_tells_what_has_worked_a_time_without_failures_does() {
        let calm = Duration::from_mins(1);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8)).calm_after(calm);
        assert_eq!(seconds(&mut backoff, 3), [1, 2, 4]);
        tokio::time::advance(calm).await;
        assert_eq!(seconds(&mut backoff, 2), [8, 8]);
        tokio::time::advance(calm + Duration::from_millis(1)).await;
        assert_eq!(seconds(&mut backoff, 2), [1, 2]);
    }
}
