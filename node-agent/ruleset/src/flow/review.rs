//! Which of many connections have to end, looked at one at a time: a node may track far more than it keeps in mind.

use std::collections::{BTreeMap, BTreeSet};

use crate::flow::translations::Translations;
use crate::flow::{Allowed, Flow, Start};

/// No helper of the kernel nests deeper than this: H.323 has a call in a registration, and media in the call.
const DEEPEST: usize = 4;

/// What is kept of those that were looked at.
#[derive(Debug)]
pub struct Review<'a> {
    allowed: &'a Allowed<'a>,
    doomed: Vec<Flow>,
    followers: Vec<Flow>,
    still_led: Translations,
}

/// What the connections of a node were found to be.
#[derive(Debug, Default)]
pub struct Reviewed {
    /// Those that have to end.
    pub doomed: Vec<Flow>,
    /// Of the translations that have gone, those by which connections go on.
    pub still_led: Translations,
}

impl<'a> Review<'a> {
    /// By what is `allowed`.
    #[must_use]
    pub fn new(allowed: &'a Allowed<'a>) -> Self {
        Self { allowed, doomed: Vec::new(), followers: Vec::new(), still_led: Translations::default() }
    }

    /// Looks at one; whether it is ours, follows no other, and may go on.
    pub fn see(&mut self, flow: &Flow) -> bool {
        if flow.master.is_some() {
            if flow.dnat && (flow.has_our_mark() || flow.zone == 0) {
                self.followers.push(*flow);
            }
            return false;
        }
        let is_ours = self.allowed.is_ours(flow);
        if is_ours && self.allowed.forbids(flow) {
            self.doomed.push(*flow);
            return false;
        }
        if is_ours && self.allowed.past().lead(flow) {
            self.still_led.add_way_of(flow);
        }
        is_ours
    }

    /// What they were, now that all of them were seen: one that follows another ends with it, and with nothing else.
    #[must_use]
    pub fn finish(self) -> Reviewed {
        let Self { allowed, mut doomed, followers, still_led } = self;
        let masters: BTreeMap<Start, Start> =
            followers.iter().filter_map(|flow| Some((flow.start(), flow.master?))).collect();
        let ended: BTreeSet<Start> = doomed.iter().map(Flow::start).collect();
        let follows_one_that_ends = |flow: &Flow| {
            let mut above = flow.start();
            for _ in 0..DEEPEST {
                let Some(master) = masters.get(&above) else { break };
                above = *master;
            }
            // Of one whose master is not tracked any more the mark alone says that it is ours.
            ended.contains(&above) || flow.has_our_mark() && !allowed.admits(&above)
        };
        doomed.extend(followers.iter().copied().filter(follows_one_that_ends));
        Reviewed { doomed, still_led }
    }
}
