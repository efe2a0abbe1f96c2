//! Somebody who keeps taking our place in a chain: when it is left to them, and when it is tried again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::op::Op;

/// Moves of our jumps back to the top within [`WINDOW`] before the place is left to the other one.
pub(crate) const MOVES: usize = 5;
/// How long moves are counted, and how long the place is then left.
pub(crate) const WINDOW: Duration = Duration::from_mins(5);

/// The built-in chains of each family: what somebody does in one is no reason to give way in another.
#[derive(Debug, Default)]
pub(crate) struct Precedences(BTreeMap<(Family, &'static str), Precedence>);

impl Precedences {
    /// Takes those moves out of `ops`, all that is to do, that are left undone at `now`; the others count as done.
    pub(crate) fn limit(&mut self, ops: &mut Vec<Op>, now: Instant) {
        let moves: Vec<_> = ops.iter().filter_map(hook_of_move).collect();
        for (_, precedence) in self.0.iter_mut().filter(|(hook, _)| !moves.contains(hook)) {
            precedence.is_settled();
        }
        ops.retain(|op| hook_of_move(op).is_none_or(|hook| self.0.entry(hook).or_default().may_move(now)));
    }

    /// Whether `op` is left undone.
    pub(crate) fn is_left(&self, op: &Op) -> bool {
        hook_of_move(op).and_then(|hook| self.0.get(&hook)).is_some_and(Precedence::is_yielded)
    }

    /// Whether something is left undone.
    pub(crate) fn is_any_left(&self) -> bool {
        self.0.values().any(Precedence::is_yielded)
    }

    /// Whether the time for which some place was left has passed.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.0.values().any(|precedence| precedence.is_over(now))
    }
}

fn hook_of_move(op: &Op) -> Option<(Family, &'static str)> {
    op.jump_in().filter(|_| op.is_move()).map(|builtin| (op.family, builtin))
}

/// Counts moves in one of them.
#[derive(Debug, Default)]
struct Precedence {
    moves: Vec<Instant>,
    /// The place is left to the other one until then.
    until: Option<Instant>,
}

impl Precedence {
    /// Whether the place may be taken back at `now`, which then counts as done.
    fn may_move(&mut self, now: Instant) -> bool {
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

    /// Nobody is in the way any more.
    fn is_settled(&mut self) {
        self.until = None;
    }

    /// Whether the place is left to somebody.
    fn is_yielded(&self) -> bool {
        self.until.is_some()
    }

    /// Whether the time for which it was left to them has passed.
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use sallyport_ruleset::iptables::op::Step;
    use sallyport_ruleset::iptables::rule::Table;

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

    fn moves(builtins: &[&'static str]) -> Vec<Op> {
        let jump = |builtin: &&'static str| Op {
            family: Family::V4,
            table: Table::Nat,
            step: Step::Jump {
                builtin,
                chain: "SALLY-PRE",
                present: 1,
                before: Some(0),
                misplaced: Some(String::new()),
            },
        };
        builtins.iter().map(jump).collect()
    }

    #[test]
    fn a_rival_that_leaves_ends_the_truce_and_one_in_another_chain_is_another() {
        let (now, mut precedences) = (Instant::now(), Precedences::default());
        let done = |precedences: &mut Precedences, builtins| {
            let mut ops = moves(builtins);
            precedences.limit(&mut ops, now);
            ops.len()
        };
        for _ in 0..MOVES {
            assert_eq!(done(&mut precedences, &["PREROUTING"]), 1);
        }
        assert_eq!(done(&mut precedences, &["PREROUTING", "OUTPUT"]), 1, "OUTPUT is nobody's yet");
        assert_eq!(
            moves(&["PREROUTING", "OUTPUT"]).iter().map(|op| precedences.is_left(op)).collect::<Vec<_>>(),
            [true, false]
        );
        assert_eq!((done(&mut precedences, &[]), precedences.is_any_left()), (0, false), "they have left");
    }
}
