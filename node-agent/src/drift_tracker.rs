//! What somebody else does to our rules: what is not put back yet, and whether they keep at it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sallyport_ruleset::iptables::drift::{Difference, Kind, told};

use crate::converge::Report;

/// So many repairs within [`WINDOW`] are a fight.
const MANY: usize = 5;
/// How long a repair counts.
const WINDOW: Duration = Duration::from_mins(1);

/// Differences that are not put back yet, and how often some were.
#[derive(Debug, Default)]
pub(crate) struct DriftTracker {
    pending: Vec<Difference>,
    /// When something was put back, the last times.
    repairs: VecDeque<Instant>,
    /// Who has been left the first place in a chain.
    shadowed_by: Option<String>,
}

impl DriftTracker {
    /// Somebody has made these differences.
    pub(crate) fn found(&mut self, found: Vec<Difference>) {
        self.pending.extend(found);
        self.pending.sort_by(|a, b| (a.kind, &a.text).cmp(&(b.kind, &b.text)));
        self.pending.dedup();
    }

    /// What is not put back yet.
    #[must_use]
    pub(crate) fn pending(&self) -> Option<String> {
        (!self.pending.is_empty()).then(|| told(&self.pending))
    }

    /// A pass was good at `now`: what it has put back.
    pub(crate) fn passed(&mut self, report: &Report, now: Instant) -> Vec<Difference> {
        self.shadowed_by.clone_from(&report.shadowed_by);
        let found = std::mem::take(&mut self.pending);
        // What went by itself before the pass began was nobody's repair.
        if found.is_empty() || (report.changed.is_none() && report.forwarding.is_empty()) {
            return Vec::new();
        }
        self.repaired(&found, now);
        found
    }

    /// A pass was not good at `now`, but our rules are as they should be: those that it has put back.
    pub(crate) fn rules_are_back(&mut self, now: Instant) -> Vec<Difference> {
        let pending = std::mem::take(&mut self.pending);
        let (forwarding, rules): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|difference| difference.kind == Kind::Forwarding);
        self.pending = forwarding;
        self.repaired(&rules, now);
        rules
    }

    fn repaired(&mut self, what: &[Difference], now: Instant) {
        // Moves to the first place are counted where they are made.
        if what.iter().any(|difference| difference.kind != Kind::Shadow) {
            self.repairs.push_back(now);
            if self.repairs.len() > MANY {
                self.repairs.pop_front();
            }
        }
    }

    /// Whether so much is put back that the single repair is no news.
    #[must_use]
    pub(crate) fn is_fight(&self, now: Instant) -> bool {
        self.repairs.len() >= MANY && self.repairs.front().is_some_and(|first| now.duration_since(*first) < WINDOW)
    }

    /// What lasts at `now`, although the passes are good.
    #[must_use]
    pub(crate) fn persistent(&self, now: Instant) -> Option<String> {
        if let Some(rule) = &self.shadowed_by {
            return Some(format!(
                "somebody keeps inserting rules before ours, so the first place is left to them for five minutes at a \
                 time; stop that program or narrow its rules: {rule}"
            ));
        }
        self.is_fight(now).then(|| {
            "somebody keeps changing our rules or settings, which are put back each time; lastDrift says which: stop that \
             program"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use sallyport_ruleset::family::Family;

    use super::*;

    fn changed() -> Report {
        Report { changed: Some("IPv4 SALLY-PRE".to_owned()), ..Report::default() }
    }

    #[test]
    fn what_is_seen_is_pending_until_a_pass_has_put_it_back() {
        let (mut tracker, now) = (DriftTracker::default(), Instant::now());
        assert_eq!((tracker.pending(), tracker.passed(&changed(), now)), (None, Vec::new()));
        tracker.found(vec![Difference::forwarding(Family::V4)]);
        tracker.found(Vec::new());
        assert_eq!(tracker.pending().unwrap(), "forwarding of IPv4 packets is off");
        let turned_on = Report { forwarding: vec![Family::V4], ..Report::default() };
        assert_eq!(tracker.passed(&turned_on, now), [Difference::forwarding(Family::V4)]);
        assert_eq!(tracker.pending(), None);

        tracker.found(vec![Difference::forwarding(Family::V4)]);
        assert_eq!(tracker.passed(&Report::default(), now), [], "went by itself");
    }

    #[test]
    fn rules_that_are_back_are_told_though_forwarding_is_not() {
        let mut tracker = DriftTracker::default();
        let rule = Difference { kind: Kind::Rules, text: "a rule".to_owned() };
        tracker.found(vec![rule.clone(), Difference::forwarding(Family::V4)]);
        assert_eq!(tracker.rules_are_back(Instant::now()), [rule]);
        assert_eq!(tracker.pending().unwrap(), "forwarding of IPv4 packets is off");
    }

    #[test]
    fn many_repairs_within_a_minute_are_a_fight_until_they_are_fewer() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut tracker = DriftTracker::default();
        let mut repair = |second| {
            tracker.found(vec![Difference::forwarding(Family::V4)]);
            tracker.passed(&changed(), at(second));
            tracker.is_fight(at(second))
        };
        assert_eq!([0, 10, 20, 30, 40].map(&mut repair), [false, false, false, false, true]);
        assert!(tracker.persistent(at(59)).unwrap().contains("keeps changing our rules"));
        assert!(!tracker.is_fight(at(60)) && tracker.persistent(at(60)).is_none());
    }

    #[test]
    fn a_rival_is_named_until_a_pass_finds_none() {
        let (mut tracker, now) = (DriftTracker::default(), Instant::now());
        let rival = "IPv4 nat PREROUTING: a rule before ours would take our packets: -j ACCEPT";
        tracker.passed(&Report { shadowed_by: Some(rival.to_owned()), ..Report::default() }, now);
        assert!(tracker.persistent(now).unwrap().ends_with(rival));
        tracker.passed(&Report::default(), now);
        assert_eq!(tracker.persistent(now), None);
    }
}
