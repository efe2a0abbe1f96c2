//! What a pass would do, without doing it.

use std::rc::Rc;
use std::sync::Arc;

use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::id::IntentHash;
use sallyport_engine::Engine;
use sallyport_policy::places::Places;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::desired::Desired;
use sallyport_ruleset::iptables::diff::diff;
use sallyport_ruleset::iptables::op::Op;
use sallyport_ruleset::iptables::plan::plan;
use sallyport_ruleset::table::{Failure, ForwardingTable};

use crate::converge::{Converger, Error, Reading, families_of, not_forwarded};
use crate::error_chain::chain_of;
use crate::holders::{Holders, cut, in_use};
use crate::intents::Intents;
use crate::waiting::Waiting;

/// What a pass would do.
#[derive(Clone, Debug)]
pub struct Preview {
    /// What it would do to the rules.
    pub ops: Vec<Op>,
    /// Families whose forwarding it would turn on.
    pub families: Vec<Family>,
    /// Connections that it would end.
    pub ended: usize,
    /// Forwards that would have no rules, and why.
    pub failures: Vec<Failure>,
    /// Tables that iptables cannot read, and what helps.
    pub unreadable: Vec<String>,
}

/// What would change for a forward that is only planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedChange {
    /// Which forward.
    pub forward: ForwardRef,
    /// Hash of its intent.
    pub hash: IntentHash,
    /// The rules that would go and come, a line each, for people.
    pub change: String,
}

impl<E: Engine> Converger<E> {
    /// What a pass would do.
    pub async fn preview(
        &mut self,
        intents: &Rc<Intents>,
        waiting: Waiting,
        facts: &NodeFacts<'_>,
    ) -> Result<Preview, Error> {
        let facts = &self.with_tracking(facts);
        self.follow(intents, waiting, facts);
        self.observe().await?;
        let reach = self.reach(intents, facts);
        let ruleset = reach.as_ref().map_or_else(|| self.desired.ruleset(), |reach| &reach.ruleset);
        let ops = self.installed.as_ref().map(|installed| plan(ruleset, self.desired.packets(), installed));
        let families = not_forwarded(&self.forwarded(&families_of(ruleset))?, intents.node.ip_forward)?;
        let ended = match self.network.conntrack()? {
            Some(conntrack) => self.connections.count_forbidden(&conntrack, &self.table).await?,
            None => 0,
        };
        let mut failures: Vec<Failure> = self.waiting.failures.iter().chain(self.table.failures()).cloned().collect();
        let mut unreadable = Vec::new();
        if let Some(reach) = reach {
            failures.extend(reach.failures(&self.table, &self.waiting.carried(intents)));
            unreadable = reach.why;
        }
        Ok(Preview { ops: ops.unwrap_or_default(), families, ended, failures, unreadable })
    }

    /// What would change if each forward that is only planned were applied, it alone, to what the last pass or preview
    /// found. `None` if somebody has changed something since: that is for a pass to see first.
    pub fn plans(&mut self, intents: &Intents, facts: &NodeFacts<'_>) -> Result<Option<Vec<PlannedChange>>, Error> {
        if intents.planned().next().is_none() {
            return Ok(Some(Vec::new()));
        }
        let is_current = self.reading != Reading::Outdated && !self.engine.changed()?;
        let Some(installed) = self.installed.as_ref().filter(|_| is_current) else { return Ok(None) };
        let facts = &NodeFacts { tracking: self.table.tracking(), ..*facts };
        let forwards = self.waiting.carried(intents);
        let listeners = self.network.listeners().ok().flatten();
        let seen = listeners.as_ref().map(|listeners| NodeFacts { listeners, ..*facts });
        let holders = seen.map(|facts| Holders::of(intents, &facts, &installed.firewall, intents.planned()));
        let mut plans = Vec::new();
        for planned in intents.planned() {
            let others = forwards.iter().copied().filter(|forward| forward.uid != planned.uid);
            let mut with_it: Vec<&Arc<SliceForward>> = others.chain([planned]).collect();
            let mut table = ForwardingTable::new(&intents.node, with_it.iter().copied(), facts);
            let mut failure = table.failures().find(|failure| failure.forward == planned.r#ref).cloned();
            let carried = forwards.iter().find(|forward| forward.uid == planned.uid);
            let had = carried.map(|carried| Places::of(&carried.intent)).unwrap_or_default();
            let there = holders.as_ref().map(|holders| holders.in_the_way(planned, &had)).unwrap_or_default();
            if failure.is_none()
                && let Some(first) = there.first()
            {
                let kept = cut(planned, &had);
                with_it.pop();
                with_it.extend(&kept);
                table = ForwardingTable::new(&intents.node, with_it, facts);
                failure = Some(in_use(planned, &had, first));
            }
            let mut desired = Desired::of(&table);
            desired.set_order(self.desired.packets().order);
            let mut ops = desired.plan(installed);
            ops.retain(|op| !self.precedences.is_left(op));
            let mut change = diff(&ops, installed);
            let forwarding = self.forwarded(&families_of(desired.ruleset()))?;
            match not_forwarded(&forwarding, intents.node.ip_forward) {
                Ok(families) => change.extend(families.into_iter().map(would_turn_on)),
                Err(error) => change.push_str(&format!("# {}\n", chain_of(&error))),
            }
            if installed.unreadable().next().is_some() {
                change.push_str("# a table of this node cannot be read, and it would wait until it can\n");
            }
            if let Some(failure) = failure {
                change.push_str(&format!("# it would fail here: {} ({:?})\n", failure.message, failure.reason));
            } else if change.is_empty() {
                change.push_str("# no rule comes or goes here\n");
            }
            plans.push(PlannedChange { forward: planned.r#ref.clone(), hash: planned.hash.clone(), change });
        }
        Ok(Some(plans))
    }
}

/// A line that says so.
#[must_use]
pub fn would_turn_on(family: Family) -> String {
    format!("# would turn on forwarding of {family} packets\n")
}
