//! What a pass may do in tables that cannot be read as a whole: take away what is no longer allowed, and nothing else.
//!
//! What is carried there is read chain by chain. Of that, what is still wanted stays; a jump is never added and nothing
//! new is programmed until the table can be read again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::id::{IntentHash, Uid};
use sallyport_engine::Engine;
use sallyport_policy::digest::intent_hash;
use sallyport_policy::intersection::intersection;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::installed::InstalledRuleset;
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::rule::{Rules, Ruleset};
use sallyport_ruleset::table::{Failure, ForwardingTable};

use crate::converge::Converger;
use crate::intents::{Carried, Intents};

/// What may be in the kernel while some of its tables cannot be read.
#[derive(Debug)]
pub(super) struct Reach {
    /// In the families that can be read, what is wanted; in the others, what is carried and wanted.
    pub(super) ruleset: Ruleset,
    /// The families that cannot be read, and the forwards that have rules there, as they are carried.
    carried: BTreeMap<Family, Vec<Arc<SliceForward>>>,
    /// Whether the jumps to what is carried are there.
    hooked: bool,
    /// Why, a line a table.
    pub(super) why: Vec<String>,
}

impl Reach {
    /// What is carried from here on, for the next pass, in the families that cannot be read.
    pub(super) fn carried(&self, node: &GatewayNodeSpec) -> impl Iterator<Item = (Family, Rc<Intents>)> {
        self.carried.iter().map(|(family, forwards)| {
            let (hash, planned) = Default::default();
            let slice = ForwardSliceSpec { pool: node.pool.clone(), hash, forwards: forwards.clone(), planned };
            let slices = BTreeMap::from([(String::new(), Arc::new(slice))]);
            (*family, Rc::new(Intents { node: node.clone(), slices }))
        })
    }

    /// A failure for each of `forwards` that has rules, or would have, in what cannot be read. What is in the way there is
    /// somebody else's, so only whoever may look at the node is told.
    pub(super) fn failures(&self, table: &ForwardingTable, forwards: &[&Arc<SliceForward>]) -> Vec<Failure> {
        let failed: BTreeSet<&ForwardRef> = table.failures().map(|failure| &failure.forward).collect();
        let carried = self.carried.values().flatten().map(|forward| (&forward.uid, &forward.hash));
        let carried: BTreeMap<&Uid, &IntentHash> = carried.collect();
        let concerned = |forward: &&&Arc<SliceForward>| {
            !failed.contains(&forward.r#ref)
                && table.bindings_of(forward).iter().any(|binding| self.carried.contains_key(&binding.family()))
        };
        let failure = |forward: &&Arc<SliceForward>| {
            let state = match carried.get(&forward.uid) {
                Some(_) if !self.hooked => "its rules are there, but the jump to them is gone and waits as well",
                Some(hash) if **hash == forward.hash => "its rules are there as they were",
                Some(_) => "of its rules those are there that were before and are still allowed",
                None => "it has no rules there yet",
            };
            let message = format!(
                "iptables cannot read a table of this node, so nothing in it is verified and nothing new is programmed: \
                 {state}; the node's own status and log name the rule that is in the way"
            );
            Failure { forward: forward.r#ref.clone(), reason: Reason::TableUnreadable, message }
        };
        forwards.iter().filter(concerned).map(failure).collect()
    }
}

/// `node`, as if its pool listened on nothing but `addresses`.
fn listening_on(node: &GatewayNodeSpec, addresses: Vec<IpAddr>) -> GatewayNodeSpec {
    GatewayNodeSpec { addresses, listen_cidrs: Vec::new(), ..node.clone() }
}

/// What is carried of a forward and still wanted.
fn still_wanted(was: &SliceForward, is: &Arc<SliceForward>) -> Option<Arc<SliceForward>> {
    if was.hash == is.hash {
        return Some(Arc::clone(is));
    }
    let intent = intersection(&was.intent, &is.intent)?;
    Some(Arc::new(SliceForward { hash: intent_hash(&intent), intent, ..SliceForward::clone(is) }))
}

impl<E: Engine> Converger<E> {
    /// Takes up what an agent before this one kept: the kernel may hold rules of it.
    pub fn carry(&mut self, intents: Option<&Rc<Intents>>) {
        let carried = intents.into_iter().flat_map(|intents| Family::BOTH.map(|family| (family, Rc::clone(intents))));
        self.carried = carried.collect();
    }

    /// Takes up what an agent before this one noted of families that could not be read.
    pub fn carry_noted(&mut self, noted: Carried) {
        self.carried.extend(noted.into_families().map(|(family, intents)| (family, Rc::new(intents))));
    }

    /// What is carried where that is not what is wanted; to be noted, since a later agent cannot tell it from the intents.
    #[must_use]
    pub fn carried_apart(&self, intents: &Rc<Intents>) -> Carried {
        let apart = |family| {
            let unreadable = |installed: &&InstalledRuleset| installed.family(family).unreadable().next().is_some();
            self.installed.as_ref().filter(unreadable)?;
            let carried = self.carried.get(&family).filter(|carried| *carried != intents)?;
            Some(Intents::clone(carried))
        };
        Carried { v4: apart(Family::V4), v6: apart(Family::V6) }
    }

    /// What may be programmed of what is desired for `intents`, now that the kernel was read; `None` if all of it.
    pub(super) fn reach(&self, intents: &Intents, facts: &NodeFacts<'_>) -> Option<Reach> {
        let installed = self.installed.as_ref()?;
        let (node, listen) = (&intents.node, self.table.known_addresses());
        let unreadable = |family: &Family| installed.family(*family).unreadable().next().is_some();
        let families: Vec<Family> = Family::BOTH.into_iter().filter(unreadable).collect();
        if families.is_empty() {
            return None;
        }
        let forwards = self.waiting.carried(intents);
        let delivered = installed.delivered();
        let ruleset = self.desired.ruleset().clone();
        let mut reach = Reach { ruleset, carried: BTreeMap::new(), hooked: true, why: Vec::new() };
        for family in families {
            let why = installed.family(family).unreadable();
            reach.why.extend(why.map(|why| format!("{family}: {why}")));
            let (mut rules, mut still) = (Rules::default(), Vec::new());
            // An address on which nothing is carried is as new as a forward that is not.
            let mut addresses = BTreeSet::new();
            let carried = self.carried.get(&family);
            let carried = carried.iter().flat_map(|carried| carried.forwards());
            let carried: BTreeMap<&Uid, &Arc<SliceForward>> = carried.map(|was| (&was.uid, was)).collect();
            for is in &forwards {
                // What was noted may be lost, or older than what an agent before this one did.
                for was in carried.get(&is.uid).into_iter().chain([is]) {
                    let is_carried = |ip: &IpAddr| {
                        let node = listening_on(node, vec![*ip]);
                        delivered.holds(&lower(&ForwardingTable::new(&node, [*was], facts)), family)
                    };
                    let on: Vec<IpAddr> = listen.iter().copied().filter(is_carried).collect();
                    if !on.is_empty() {
                        addresses.extend(on);
                        still.extend(still_wanted(was, is));
                        break;
                    }
                }
            }
            if !still.is_empty() {
                let node = listening_on(node, addresses.into_iter().collect());
                let mut kept = lower(&ForwardingTable::new(&node, &still, facts));
                rules = std::mem::take(kept.family_mut(family));
            }
            reach.hooked &= still.is_empty() || installed.family(family).is_hooked();
            *reach.ruleset.family_mut(family) = rules;
            reach.carried.insert(family, still);
        }
        Some(reach)
    }
}

#[cfg(test)]
mod tests;
