//! Somebody who keeps taking the first place in a chain: when it is left to them, and when it is tried again.

use std::time::{Duration, Instant};

/// Moves of our jumps back to the top within [`WINDOW`] before the place is left to the other one.
pub(crate) const MOVES: usize = 5;
/// How long moves are counted, and how long the place is then left.
pub(crate) const WINDOW: Duration = Duration::from_mins(5);

/// Counts moves.
#[derive(Debug, Default)]
pub(crate) struct Precedence {
    moves: Vec<Instant>,
    /// The place is left to the other one until then.
    until: Option<Instant>,
}

impl Precedence {
    /// Whether the place may be taken back at `now`, which then counts as done.
    pub(crate) fn may_move(&mut self, now: Instant) -> bool {
        if self.until.is_some() {
            if !self.is_over(now) {
                return false;
            }
            // Once more: whoever takes the place again gets it at once.
            self.until = None;
            self.moves = vec![now; MOVES - 1];
        }
        self.moves.retain(|then| now.duration_since(*then) < WINDOW);
        if self.moves.len() >= MOVES {
            self.until = Some(now + WINDOW);
            return false;
        }
        self.moves.push(now);
        true
    }

    /// Nobody is before us any more.
    pub(crate) fn is_settled(&mut self) {
        self.until = None;
    }

    /// Whether the place is left to somebody.
    pub(crate) fn is_yielded(&self) -> bool {
        self.until.is_some()
    }

    /// Whether the time for which it was left to them has passed.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_moves_then_a_truce_then_one_move_a_truce() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut precedence = Precedence::default();
        for second in 0..5 {
            assert!(precedence.may_move(at(second)) && !precedence.is_yielded());
        }
        assert!(!precedence.may_move(at(5)) && precedence.is_yielded());
        assert!(!precedence.is_over(at(304)) && !precedence.may_move(at(304)));
        assert!(precedence.is_over(at(305)) && precedence.may_move(at(305)) && !precedence.is_yielded());
        assert!(!precedence.may_move(at(306)) && precedence.is_yielded(), "a fight of five again");
    }

    #[test]
    fn moves_that_are_long_ago_do_not_count() {
        let start = Instant::now();
        let mut precedence = Precedence::default();
        for minute in 0..20 {
            assert!(precedence.may_move(start + Duration::from_mins(2) * minute), "{minute}");
        }
    }

    #[test]
    fn a_rival_that_leaves_ends_the_truce() {
        let now = Instant::now();
        let mut precedence = Precedence::default();
        while precedence.may_move(now) {}
        precedence.is_settled();
        assert!(!precedence.is_yielded());
    }
}
