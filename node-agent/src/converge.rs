//! One pass: table → rules → observe → plan → apply → verify → end what is no longer allowed.
//!
//! The only place where the kernel is changed. Nothing here knows where the intents came from or when to look again.

mod advertisements;
mod created;
pub mod order;
mod precedence;
pub mod preview;
mod routing;
mod tracking;
mod unreadable;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::gateway_pool::IpForward;
use sallyport_api::id::RulesDigest;
use sallyport_engine::network::Network;
use sallyport_engine::{Engine, netlink};
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Assessment, Paths};
use sallyport_ruleset::iptables::desired::Desired;
use sallyport_ruleset::iptables::drift::{Difference, differences, told};
use sallyport_ruleset::iptables::installed::InstalledRuleset;
use sallyport_ruleset::iptables::op::{Op, Step};
use sallyport_ruleset::iptables::plan::plan;
use sallyport_ruleset::iptables::rule::Ruleset;
use sallyport_ruleset::iptables::shadow::Packets;
use sallyport_ruleset::table::{Failure, ForwardingTable};

use self::order::Order;
use self::precedence::Precedences;
use self::routing::Routing;
use self::unreadable::Reach;
use crate::cleanup;
use crate::connections::{Connections, Draining};
use crate::error_chain::chain_of;
use crate::intents::Intents;
use crate::state::{Host, StateDir};
use crate::waiting::Waiting;
use sallyport_engine::sysctl::{self, Sysctl};

/// Tries to reach equality before giving up for now: somebody else may be changing rules at the same time.
const ATTEMPTS: usize = 3;

/// Why a pass did not reach its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend failed; what was in the kernel is still there.
    #[error("failed to program the kernel")]
    Engine(#[from] sallyport_engine::Error),
    /// What was applied does not read back.
    #[error("the kernel does not hold what was applied: still to do after {ATTEMPTS} tries: {difference}")]
    Different {
        /// The chains that differ.
        difference: String,
    },
    /// Forwarding between interfaces could not be read or turned on.
    #[error("failed to turn on forwarding of {family} packets")]
    Forwarding {
        /// Of which family.
        family: Family,
        /// Why.
        source: sysctl::Error,
    },
    /// Forwarding is off and the pool forbids to change it.
    #[error("forwarding of {family} packets is off and the pool says ipForward: Require; turn it on on this host")]
    ForwardingRequired {
        /// Of which family.
        family: Family,
    },
    /// Connections could not be listed or ended.
    #[error("failed to end connections that are no longer allowed")]
    Connections(#[from] netlink::Error),
    /// This host's addresses were never read, so nobody knows which of them to listen on.
    #[error("cannot read this host's addresses")]
    Addresses,
    /// Rules in the variant of iptables that is not used could not be taken away.
    #[error("failed to remove the rules that an earlier agent left in the other variant of iptables")]
    Abandoned(#[from] cleanup::Error),
}

/// What a pass found and did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Digest of our rules as the kernel returned them.
    pub digest: RulesDigest,
    /// The chains that were written; absent when the kernel was already right.
    pub changed: Option<String>,
    /// Forwards without rules here, and why.
    pub failures: Vec<Failure>,
    /// Connections that were ended.
    pub ended: usize,
    /// Families whose forwarding was turned on.
    pub forwarding: Vec<Family>,
    /// The listen addresses that are really on this host.
    pub listen: Vec<IpAddr>,
    /// Rules of somebody who keeps taking the first place, to whom it was left.
    pub shadowed_by: Option<String>,
    /// What the host's other firewalls do with forwarded packets.
    pub firewall: Box<Assessment>,
    /// Tables that iptables cannot read, and what helps: nothing in their families is verified, and nothing new was programmed
    /// there. What is no longer allowed is gone all the same.
    pub unreadable: Vec<String>,
}

/// What is known of the reading of the kernel that was last made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// We have changed something since.
    Outdated,
    /// We have not.
    Current,
    /// And it is what was desired, before that last changed.
    Compared,
}

/// Keeps one kernel equal to intents.
pub struct Converger<E> {
    /// What puts the rules into the kernel.
    pub engine: E,
    /// What there is beside them.
    pub network: Rc<dyn Network>,
    /// `None` where no kernel is involved.
    sysctl: Option<Sysctl>,
    /// What the kernel was last read with.
    installed: Option<InstalledRuleset>,
    /// What this node forwards, and what the kernel shall hold of it.
    table: ForwardingTable,
    desired: Desired,
    /// What is not carried and may come to be.
    expected: ForwardingTable,
    /// The packets of both, of which the engine is to see what others do with them.
    attended: Packets,
    /// The intents that the table and its rules follow.
    followed: Option<Rc<Intents>>,
    reading: Reading,
    connections: Connections,
    /// Who wins in `FORWARD`.
    pub order: Order,
    /// What the host's other firewalls were found to do, and what they would do once their denies win.
    paths: [Paths; 2],
    /// The intents that each family may hold rules of: those of the last pass, and before the first one those that an agent
    /// before this one kept.
    carried: BTreeMap<Family, Rc<Intents>>,
    /// Whether it was what it should be at the end of the last pass.
    held: bool,
    /// Whether each family that needed it was forwarded at the end of the last pass.
    forwarding: BTreeMap<Family, bool>,
    routing: Routing,
    /// The record of IPv6 forwarding, if it was turned on here and is needed.
    heeded: Option<sysctl::Record>,
    /// When it was last looked whether router advertisements are heeded.
    heard: Instant,
    /// Whether it has been noted what comes into being with our rules.
    remembered: bool,
    precedences: Precedences,
    told: tracking::Told,
    /// What the last pass left out.
    waiting: Waiting,
}

impl<E: Engine> Converger<E> {
    /// Knows nothing of the kernel yet.
    pub fn new(engine: E, network: Rc<dyn Network>, sysctl: Option<Sysctl>) -> Self {
        Self {
            engine,
            network,
            sysctl,
            installed: None,
            table: ForwardingTable::default(),
            desired: Desired::default(),
            expected: ForwardingTable::default(),
            attended: Packets::default(),
            followed: None,
            reading: Reading::Outdated,
            connections: Connections::default(),
            order: Order::default(),
            paths: <[Paths; 2]>::default(),
            carried: BTreeMap::new(),
            held: false,
            forwarding: BTreeMap::new(),
            routing: Routing::default(),
            heeded: None,
            heard: Instant::now(),
            remembered: false,
            precedences: Precedences::default(),
            told: tracking::Told::default(),
            waiting: Waiting::default(),
        }
    }

    /// Takes up the connections of what was carried before, once that is known.
    pub fn take_up_connections(&mut self, facts: &NodeFacts<'_>, state: &StateDir) {
        self.connections.take_up(self.carried.values(), facts, state);
    }

    /// Whether the last pass read our rules back as they should be, even if it failed afterwards.
    pub fn holds(&self) -> bool {
        self.held
    }

    /// Notes in `state` where rules lead to that [`Self::converge`] with the same arguments may take away: after a crash in
    /// between nobody else would know whose connections those are.
    pub fn prepare(&mut self, intents: &Rc<Intents>, waiting: Waiting, facts: &NodeFacts<'_>, state: &StateDir) {
        let facts = &self.with_tracking(facts);
        self.follow(intents, waiting, facts);
        self.connections.note(state);
    }

    /// Makes the kernel of the host of `facts` equal to `intents` but for those that wait, and reads it back.
    pub async fn converge(
        &mut self,
        intents: &Rc<Intents>,
        waiting: Waiting,
        facts: &NodeFacts<'_>,
        state: &StateDir,
    ) -> Result<Report, Error> {
        self.prepare(intents, waiting, facts, state);
        let failures = self.waiting.failures.iter().chain(self.table.failures()).cloned().collect();
        let mut report = Report { failures, listen: self.table.listen().to_vec(), ..Report::default() };

        self.held = false;
        // What makes a table unreadable may go without a change of rules, as when a program is installed.
        if self.installed.as_ref().is_none_or(|installed| installed.unreadable().next().is_some()) {
            self.reading = Reading::Outdated;
        }
        let mut reach = None;
        for attempt in 0.. {
            self.observe().await?;
            reach = self.reach(intents, facts);
            let ops = self.without_fighting(reach.as_ref());
            if ops.is_empty() {
                break;
            }
            let change = summary(&ops);
            if attempt == ATTEMPTS {
                return Err(Error::Different { difference: change });
            }
            report.changed.get_or_insert(change);
            // What only goes waits for nothing.
            if ops.iter().any(|op| matches!(op.step, Step::Replace { .. } | Step::Jump { .. })) {
                self.note_what_we_create(state)?;
            }
            // Whatever comes of it, what was observed is no longer known to be true.
            self.reading = Reading::Outdated;
            self.connections.unsettle();
            self.engine.apply(&ops).await?;
            self.carried.extend(reach.iter().flat_map(|reach| reach.carried(&intents.node)));
        }
        self.held = reach.is_none();
        if self.held {
            self.reading = Reading::Compared;
            self.desired.installed(self.installed.as_mut());
        }
        self.carry(Some(intents));
        self.carried.extend(reach.iter().flat_map(|reach| reach.carried(&intents.node)));
        report.digest = self.installed.as_ref().map(InstalledRuleset::digest).unwrap_or_default();
        report.shadowed_by = self.shadowed_by();

        // An intent may say something else about connections while its rules stay as they are.
        if !self.connections.is_settled(intents, &report.failures) {
            let conntrack = self.network.conntrack()?;
            let settled = self.connections.settle(conntrack.as_ref(), &self.table, intents, &report.failures);
            report.ended = settled.await?;
            self.connections.note(state);
        }
        if let Some(reach) = &reach {
            report.failures.extend(reach.failures(&self.table, &self.waiting.carried(intents)));
            report.unreadable.clone_from(&reach.why);
        }
        // Of those that cannot be seen whole it cannot be told either what others do to their packets.
        let failed: BTreeSet<&ForwardRef> = report.failures.iter().map(|failure| &failure.forward).collect();
        let seen = |forward: &SliceForward| !failed.contains(&forward.r#ref);
        report.firewall = Box::new(if reach.is_some() && !self.table.bindings().any(|binding| seen(binding.forward)) {
            let unread = self.installed.as_ref().map(|installed| installed.firewall.unread.clone());
            Assessment { unread: unread.unwrap_or_default(), ..Assessment::default() }
        } else {
            self.assess(&seen, facts.addresses)
        });
        // They keep their rules, so that they work as soon as the other firewall lets them.
        report.failures.extend(report.firewall.blocked.iter().cloned());
        // Last, so that trouble with it keeps no rule and no connection alive that has to go.
        let families = families_of(reach.as_ref().map_or_else(|| self.desired.ruleset(), |reach| &reach.ruleset));
        report.forwarding = self.turn_on_forwarding(intents.node.ip_forward, &families, state)?;
        self.routing.failures = self.judge_routing(facts.addresses);
        report.failures.extend(self.routing.failures.iter().cloned());
        Ok(report)
    }

    /// Has the table and its rules follow `intents` on a host with these `facts`, but for those that wait.
    fn follow(&mut self, intents: &Rc<Intents>, waiting: Waiting, facts: &NodeFacts<'_>) {
        let changes = intents.changes_since(self.followed.as_deref(), &self.waiting.instead, &waiting.instead);
        let change = self.table.update(&intents.node, &changes.gone, &changes.come, facts);
        self.desired.follow(&self.table, &change);
        self.attended.follow(&self.table, &change);
        if change.is_new {
            self.attended.add(&self.expected);
        }
        self.desired.set_order(self.order.on(&intents.node));
        self.engine.attend_to(&self.attended);
        self.connections.follow(&self.table, &change);
        self.followed = Some(Rc::clone(intents));
        self.waiting = waiting;
    }

    /// From now on, what others do with packets of these forwards is read as well: they may come to be carried.
    pub fn expect(&mut self, expected: ForwardingTable) {
        // What is among both is known already.
        self.attended.add(&expected);
        self.attended.remove(&self.expected);
        self.expected = expected;
        self.engine.attend_to(&self.attended);
    }

    /// What the kernel was last read with.
    pub fn installed(&self) -> Option<&InstalledRuleset> {
        self.installed.as_ref()
    }

    /// Whether a host with these addresses would be forwarded for in another way.
    pub fn depends_on(&self, addresses: &[LocalAddress]) -> bool {
        self.table.depends_on(addresses)
    }

    /// Looks whether somebody else has changed something since the last pass, and if so says what is not as it shall be
    /// now, which may be nothing. `None` when a pass would have nothing to do and nothing new to tell.
    pub async fn drift(&mut self, addresses: &[LocalAddress]) -> Result<Option<Vec<Difference>>, Error> {
        let mut due = self.precedences.is_over(Instant::now());
        if self.engine.changed()? {
            let before = self.installed.take();
            let now = self.engine.observe().await?;
            // Somebody's change may be in another table, or be none.
            let is_other = before.as_ref() != Some(&now);
            due |= is_other;
            if is_other || self.reading == Reading::Outdated {
                self.reading = Reading::Current;
            }
            self.installed = Some(now);
        }
        let mut found = match &self.installed {
            Some(installed) if due && self.held => {
                let mut ops = self.plan(installed);
                ops.retain(|op| !self.precedences.is_left(op));
                differences(&ops, installed)
            }
            _ => Vec::new(),
        };
        due |= self.is_deaf() | self.is_routed_otherwise(addresses) | self.is_tracked_otherwise();
        for (family, before) in &self.forwarding {
            let on = self.is_forwarded(*family)?;
            due |= on != *before;
            if *before && !on {
                found.push(Difference::forwarding(*family));
            }
        }
        Ok(due.then_some(found))
    }

    /// The connections that are left to end by themselves.
    pub fn draining(&self) -> &Draining {
        self.connections.draining()
    }

    /// Counts them again when it is time to; whether it did.
    pub async fn recount(&mut self) -> Result<bool, Error> {
        let due = self.connections.is_recount_due();
        if due && let Some(conntrack) = self.network.conntrack()? {
            self.connections.recount(&conntrack).await?;
        }
        Ok(due)
    }

    /// What the kernel holds: known from the last look if nothing moved since.
    pub(crate) async fn observe(&mut self) -> Result<&InstalledRuleset, Error> {
        let is_current = self.reading != Reading::Outdated && !self.engine.changed()?;
        let found = match self.installed.take() {
            Some(installed) if is_current => installed,
            _ => {
                // What cannot be seen is not known to be right.
                let found = self.engine.observe().await.inspect_err(|_| self.held = false)?;
                self.reading = Reading::Current;
                found
            }
        };
        Ok(self.installed.insert(found))
    }

    /// The change from what is installed to what is desired.
    fn plan(&self, installed: &InstalledRuleset) -> Vec<Op> {
        if self.reading == Reading::Compared {
            self.desired.plan_changed(installed)
        } else {
            self.desired.plan(installed)
        }
    }

    /// The change to what is desired, as far as it is in `reach`; the first place in a chain is left to somebody who keeps
    /// taking it back.
    fn without_fighting(&mut self, reach: Option<&Reach>) -> Vec<Op> {
        let Some(installed) = &self.installed else { return Vec::new() };
        let mut ops = match reach {
            Some(reach) => plan(&reach.ruleset, self.desired.packets(), installed),
            None => self.plan(installed),
        };
        self.precedences.limit(&mut ops, Instant::now());
        ops
    }

    /// What stands before us where we have left it at that.
    fn shadowed_by(&self) -> Option<String> {
        let installed = self.installed.as_ref().filter(|_| self.precedences.is_any_left())?;
        let mut ops = self.desired.plan(installed);
        ops.retain(|op| self.precedences.is_left(op));
        (!ops.is_empty()).then(|| told(&differences(&ops, installed)))
    }

    fn is_forwarded(&self, family: Family) -> Result<bool, Error> {
        let Some(sysctl) = &self.sysctl else { return Ok(true) };
        sysctl.forwarding(family).map_err(|source| Error::Forwarding { family, source })
    }

    /// The families that need forwarding and do not have it.
    fn families_to_turn_on(&mut self, mode: IpForward, families: &[Family]) -> Result<Vec<Family>, Error> {
        self.forwarding.clear();
        self.forwarding = self.forwarded(families)?;
        not_forwarded(&self.forwarding, mode)
    }

    /// Whether those that need forwarding have it.
    fn forwarded(&self, needed: &[Family]) -> Result<BTreeMap<Family, bool>, Error> {
        needed.iter().map(|family| Ok((*family, self.is_forwarded(*family)?))).collect()
    }

    fn turn_on_forwarding(
        &mut self,
        mode: IpForward,
        needed: &[Family],
        state: &StateDir,
    ) -> Result<Vec<Family>, Error> {
        let families = self.families_to_turn_on(mode, needed)?;
        for family in &families {
            let Some(sysctl) = &self.sysctl else { continue };
            let failed = |source| Error::Forwarding { family: *family, source };
            if let Some(record) = sysctl.plan(*family).map_err(failed)? {
                let mut host = state.host_or_nothing();
                match host.sysctls.iter_mut().find(|known| known.family() == *family) {
                    Some(known) => known.merge(record.clone()),
                    None => host.sysctls.push(record.clone()),
                }
                // On disk before the write, so that cleanup can undo it even after a crash right here.
                keep(state, &host);
                sysctl.apply(&record).map_err(failed)?;
            }
            self.forwarding.insert(*family, true);
        }
        self.heed_advertisements(state)?;
        Ok(families)
    }
}

/// The families in which there are rules, so that packets have to be forwarded.
fn families_of(ruleset: &Ruleset) -> Vec<Family> {
    Family::BOTH.into_iter().filter(|family| !ruleset.family(*family).is_empty()).collect()
}

/// Those that do not have it; an error if it is not ours to turn it on.
fn not_forwarded(forwarding: &BTreeMap<Family, bool>, mode: IpForward) -> Result<Vec<Family>, Error> {
    let families: Vec<Family> = forwarding.iter().filter(|(_, on)| !**on).map(|(family, _)| *family).collect();
    match families.first() {
        Some(family) if mode == IpForward::Require => Err(Error::ForwardingRequired { family: *family }),
        _ => Ok(families),
    }
}

/// A state directory that cannot be written must not keep a rule in the kernel that has to go.
fn keep(state: &StateDir, host: &Host) {
    if let Err(error) = state.keep_host(host) {
        tracing::warn!(error = chain_of(&error), "cannot note how this host was before; cleanup will not put it back");
    }
}

/// What a change writes, for people.
fn summary(ops: &[Op]) -> String {
    let more = ops.len().saturating_sub(8);
    let first: Vec<String> = ops.iter().take(8).map(ToString::to_string).collect();
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
