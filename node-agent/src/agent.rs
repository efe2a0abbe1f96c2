//! The loop that keeps a host as its intents say. It owns the host: its addresses, its clock, its state directory.
//!
//! One loop on one thread: a change of the source, the kernel's word that addresses or forwarding have changed, a tick ten
//! times a second that looks for drift, or the end. What the kernel holds stays however the agent stops. Where intents come
//! from is the source's, what a pass does is `converge`'s.

mod log;
mod noted;
mod retry;

use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sallyport_api::NodeState;
use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_api::id::Moment;
use sallyport_engine::Engine;
use sallyport_engine::iptables::{Iptables, Variant};
use sallyport_engine::route::events::RouteEvents;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_runtime::shutdown::Shutdown;
use tokio::time::MissedTickBehavior;

pub(crate) use self::log::PassLog;
use self::retry::Retry;
use crate::backend::Backend;
use crate::cleanup::remove_rules;
use crate::converge::preview::PlannedChange;
use crate::converge::{Converger, Error, Report};
use crate::drift_tracker::DriftTracker;
use crate::error_chain::chain_of;
use crate::host::ThisHost;
use crate::intents::{Carried, Intents};
use crate::metrics::Metrics;
use crate::pass_report::{PassReport, ReportSink as _};
use crate::source::{News, Source};

/// Time between two looks for drift, which cost microseconds while nothing moves.
const TICK: Duration = Duration::from_millis(100);
/// After a look that found movement and what was done about it, the next one waits so many times as long, but never longer
/// than [`LONGEST_COOLDOWN`]: others may change their own rules all the time.
const COOLDOWN: u32 = 5;
const LONGEST_COOLDOWN: Duration = Duration::from_millis(300);
/// The same after a pass that failed, before drift is a reason for another.
const FAILED_COOLDOWN: Duration = Duration::from_secs(1);
/// Time between two looks whether a port that somebody else listens on was freed, while a forward waits for it.
const SOCKETS: Duration = Duration::from_millis(500);
/// Drift that is put back within this time is reported when that is done; what takes longer is reported while it lasts.
const SLOW_REPAIR: Duration = Duration::from_secs(1);

/// What the loop is woken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A signal.
    Shutdown,
    /// The source may have something new.
    Source,
    /// Addresses or forwarding may have changed.
    Route,
    /// Nothing else, for a while.
    Tick,
}

/// Why the loop has ended.
pub(crate) enum Ended {
    /// The pool asks for another backend.
    BackendChanged,
    /// A signal.
    Stopped,
    /// With `--once`: whether everything was accepted and verified.
    Done(bool),
}

/// One backend's agent on this host.
pub(crate) struct Agent<'a, S, E> {
    converger: Converger<E>,
    pool_backend: FirewallBackend,
    backend: Option<FirewallBackend>,
    host: &'a mut ThisHost,
    source: &'a mut S,
    metrics: Metrics,
    log: &'a mut PassLog,
    /// The last pass.
    report: Option<PassReport>,
    /// The other variant of iptables, in which an earlier run may have left rules.
    abandoned: Option<Variant>,
    retry: Retry,
    /// Drift is not looked for before.
    cooldown_until: Instant,
    /// When it was last looked whether a port was freed.
    sockets_read: Instant,
    drift: DriftTracker,
    /// What somebody else kept doing after the last good pass, or since.
    persistent_drift: Option<String>,
    /// Whether the kernel or the intents have changed since planned changes were last worked out.
    unplanned: bool,
    /// What is on disk of what is carried apart from the intents.
    noted: Carried,
}

impl<'a, S: Source, E: Engine> Agent<'a, S, E> {
    pub(crate) fn new(
        converger: Converger<E>,
        pool_backend: FirewallBackend,
        host: &'a mut ThisHost,
        source: &'a mut S,
        metrics: Metrics,
        log: &'a mut PassLog,
    ) -> Self {
        log.restart();
        Self {
            converger,
            pool_backend,
            backend: None,
            host,
            source,
            metrics,
            log,
            report: None,
            abandoned: None,
            retry: Retry::default(),
            cooldown_until: Instant::now(),
            sockets_read: Instant::now(),
            drift: DriftTracker::default(),
            persistent_drift: None,
            unplanned: false,
            noted: Carried::default(),
        }
    }

    /// Takes up what an agent before this one may have left in the kernel, by this variant of iptables or the other.
    pub(crate) fn take_over(&mut self, last_good: Option<&Rc<Intents>>, backend: Backend, variant: Variant) {
        self.converger.carry(last_good);
        self.take_up_carried();
        self.converger.take_up_connections(&self.host.facts(Moment::default()), &self.host.state);
        self.abandoned = Some(variant.other());
        self.backend = backend.reported();
    }

    /// Follows the source from `intents` on, or with `once` makes one pass.
    pub(crate) async fn run(
        &mut self,
        intents: &mut Option<Rc<Intents>>,
        once: bool,
        routes: &RouteEvents,
        shutdown: &mut Shutdown,
    ) -> Ended {
        if once {
            return Ended::Done(self.once(intents.as_ref()).await);
        }
        self.log.problems(self.source.problems());
        if let Some(intents) = intents.as_ref() {
            self.pass(intents, "start").await;
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                () = shutdown.requested() => Event::Shutdown,
                () = self.source.changed() => Event::Source,
                () = routes.changed() => Event::Route,
                _ = tick.tick() => Event::Tick,
            };
            match event {
                Event::Shutdown => {
                    tracing::info!("stopping; the rules stay");
                    return Ended::Stopped;
                }
                Event::Source => {}
                Event::Route => {
                    self.host.invalidate_addresses();
                    self.converger.network_changed();
                }
                Event::Tick => self.source.tick(),
            }
            if self.follow(intents).await {
                return Ended::BackendChanged;
            }
        }
    }

    /// Does what is to do now; whether the pool asks for another backend instead.
    async fn follow(&mut self, intents: &mut Option<Rc<Intents>>) -> bool {
        let moved = self.host.refresh_addresses();
        let news = self.source.decide(self.host, moved).await;
        let moved = moved && self.converger.depends_on(&self.host.addresses);
        match news {
            News::Intents(decided) => {
                self.log.problems(self.source.problems());
                let intents = intents.insert(decided);
                if intents.node.backend != self.pool_backend {
                    return true;
                }
                self.pass(intents, S::CAUSE).await;
            }
            News::Objects => {
                self.updated();
                self.log.problems(self.source.problems());
                self.keep(intents.as_ref(), moved).await;
            }
            News::None => self.keep(intents.as_ref(), moved).await,
        }
        self.track_persistent_drift();
        false
    }

    /// Keeps the kernel as it is, on a host of which an address that matters has `moved` or not.
    async fn keep(&mut self, intents: Option<&Rc<Intents>>, moved: bool) {
        if let Some(intents) = intents {
            if moved {
                self.pass(intents, "addresses").await;
            } else {
                self.repair(intents).await;
            }
            self.plan(intents);
        }
    }

    /// Works out what planned forwards would change, once there is nothing else to do: no pass waits for it.
    fn plan(&mut self, intents: &Rc<Intents>) {
        if !self.unplanned || self.retry.at.is_some() {
            return;
        }
        let plans = self.plans(intents);
        if let Some(report) = self.report.as_mut().filter(|report| plans.is_some() && report.plans != plans) {
            report.plans = plans;
            self.updated();
        }
    }

    /// What planned forwards would change; `None` if that cannot be said now.
    fn plans(&mut self, intents: &Rc<Intents>) -> Option<Vec<PlannedChange>> {
        let now = self.host.clock.now();
        let facts = self.host.facts(now);
        match self.converger.plans(intents, &facts) {
            Ok(plans) => {
                self.unplanned = plans.is_none();
                plans
            }
            Err(error) => {
                tracing::warn!(error = chain_of(&error), "cannot tell what planned forwards would change");
                self.unplanned = false;
                None
            }
        }
    }

    /// Looks for what has expired, for ports that were freed and for drift, and tries again what failed when its time
    /// has come.
    async fn repair(&mut self, intents: &Rc<Intents>) {
        if self.host.clock.is_due() {
            return self.pass(intents, "expiry").await;
        }
        let begun = Instant::now();
        if self.retry.at.is_some_and(|at| begun >= at) {
            return self.pass(intents, "retry").await;
        }
        if self.retry.at.is_none() && begun >= self.sockets_read + SOCKETS {
            self.sockets_read = begun;
            // Who may be admitted depends on no time.
            let (addresses, found) = (self.host.addresses.clone(), self.host.found().to_vec());
            let facts = NodeFacts { found: &found, ..NodeFacts::of(&addresses, Moment::default()) };
            if self.host.port_gate.is_freed(&self.converger, intents, &facts, begun) {
                return self.pass(intents, "port freed").await;
            }
        }
        if begun < self.cooldown_until {
            return;
        }
        match self.converger.drift(&self.host.addresses).await {
            Ok(None) => return self.recount().await,
            Ok(Some(found)) => {
                self.drift.found(found);
                self.pass(intents, "drift").await;
            }
            Err(error) => {
                tracing::warn!(error = chain_of(&error), "cannot look for drift");
                if self.retry.at.is_none() {
                    self.retry.later();
                }
            }
        }
        let cooldown =
            if self.retry.at.is_some() { FAILED_COOLDOWN } else { (begun.elapsed() * COOLDOWN).min(LONGEST_COOLDOWN) };
        self.cooldown_until = Instant::now() + cooldown;
    }

    /// Reports, when that changes after a good pass, what somebody else keeps doing.
    fn track_persistent_drift(&mut self) {
        if self.report.as_ref().is_some_and(|report| report.failure().is_some()) {
            return;
        }
        let persistent = self.drift.persistent(Instant::now());
        if persistent == self.persistent_drift {
            return;
        }
        self.persistent_drift = persistent;
        if let Some(report) = &mut self.report {
            report.persistent_drift.clone_from(&self.persistent_drift);
            self.updated();
        }
    }

    /// Counts anew how many connections are left to end by themselves.
    async fn recount(&mut self) {
        // After a pass that failed there is nothing new to count by.
        if self.retry.at.is_some() {
            return;
        }
        match self.converger.recount().await {
            Ok(false) => {}
            Ok(true) => {
                let draining = self.converger.draining();
                if let Some(report) = self.report.as_mut().filter(|report| report.draining != *draining) {
                    report.draining.clone_from(draining);
                    self.updated();
                }
            }
            Err(error) => tracing::debug!(error = chain_of(&error), "cannot count connections"),
        }
    }

    async fn once(&mut self, intents: Option<&Rc<Intents>>) -> bool {
        let mut lines = self.source.problems();
        lines.extend(self.source.unreadable().map(str::to_owned));
        if let Some(intents) = intents {
            let outcome = self.try_pass(intents).await;
            let mut pass = self.report_of(intents, "once", outcome);
            if pass.outcome.is_ok() {
                pass.plans = self.plans(intents);
                self.source.updated(&pass);
            }
            match &pass.outcome {
                Ok(report) => {
                    lines.extend(report.unreadable.iter().cloned());
                    lines.extend(report.failures.iter().map(|failure| self.source.locate(failure)));
                    self.log.firewall(&report.firewall);
                    if report.unreadable.is_empty() {
                        let accepted = intents.forwards().count() - report.failures.len();
                        // Lost output must not look like a lost rule.
                        let _ = writeln!(std::io::stdout(), "verified: forwards {accepted}, rules {}", report.digest);
                    }
                }
                Err(error) => lines.push(chain_of(error)),
            }
        }
        for line in &lines {
            let _ = writeln!(std::io::stderr(), "error: {line}");
        }
        lines.is_empty()
    }

    /// One pass, reported to everybody.
    async fn pass(&mut self, intents: &Rc<Intents>, cause: &'static str) {
        let outcome = self.try_pass(intents).await;
        let report = self.report_of(intents, cause, outcome);
        match &report.outcome {
            Ok(found) if found.unreadable.is_empty() => self.retry.over(),
            // Nothing is broken where somebody is as quick as we are, so there is nothing to wait long for.
            Err(Error::Different { .. }) => self.retry.soon(),
            // What made a table unreadable may go without moving anything, as when a program is installed.
            Ok(_) | Err(_) => self.retry.later(),
        }
        self.metrics.passed(&report);
        self.source.passed(&report);
        let source = &*self.source;
        self.log.passed(&report, |failure| source.locate(failure));
        self.report = Some(report);
    }

    /// What became of a pass, with what is known besides.
    fn report_of(&mut self, intents: &Rc<Intents>, cause: &'static str, outcome: Result<Report, Error>) -> PassReport {
        let now = Instant::now();
        let fought = self.drift.is_fight(now);
        let repaired = match &outcome {
            Ok(report) => self.drift.passed(report, now),
            Err(_) if self.converger.holds() => self.drift.rules_are_back(now),
            Err(_) => Vec::new(),
        };
        if outcome.is_ok() {
            self.persistent_drift = self.drift.persistent(now);
        }
        PassReport {
            cause,
            intents: Rc::clone(intents),
            outcome,
            engine: self.converger.engine.name(),
            backend: self.backend,
            repaired,
            fought,
            pending: self.drift.pending(),
            persistent_drift: self.persistent_drift.clone(),
            draining: self.converger.draining().clone(),
            plans: self.report.take().and_then(|last| last.plans),
        }
    }

    /// Something has changed since the last pass.
    fn updated(&mut self) {
        if let Some(report) = &self.report {
            self.metrics.updated(report);
            self.source.updated(report);
            self.log.updated(report);
        }
    }

    async fn try_pass(&mut self, intents: &Rc<Intents>) -> Result<Report, Error> {
        let now = self.host.clock.now();
        let (addresses, state) = (self.host.addresses.clone(), Rc::clone(&self.host.state));
        self.host.find(intents);
        let found = self.host.found().to_vec();
        let facts = NodeFacts { found: &found, ..NodeFacts::of(&addresses, now) };
        let waiting = self.host.port_gate.admit(&mut self.converger, intents, &facts, Instant::now()).await;
        self.host.port_gate.keep(intents, &state);
        if let Ok(waiting) = &waiting {
            // Before what they were is forgotten.
            self.converger.prepare(intents, waiting.clone(), &facts, &state);
        }
        // Before the kernel changes, so that who holds a claim is known whatever happens next.
        self.host.keep(intents);
        self.host.clock.expect(intents.forwards().filter_map(|forward| forward.intent.expires_at), now);
        // Every host has at least its loopback addresses.
        if addresses.is_empty() {
            return Err(Error::Addresses);
        }
        let waiting = waiting?;
        let report = {
            let mut pass = Box::pin(self.converger.converge(intents, waiting, &facts, &state));
            if let Ok(outcome) = tokio::time::timeout(SLOW_REPAIR, &mut pass).await {
                outcome
            } else {
                let pending = self.drift.pending();
                let good = self.report.as_mut().filter(|last| last.outcome.is_ok() && pending.is_some());
                if let Some(last) = good {
                    last.pending = pending;
                    self.source.updated(last);
                }
                pass.await
            }
        };
        self.note_carried(intents);
        let report = report?;
        self.host.port_gate.passed(intents);
        if let Some(variant) = self.abandoned {
            remove_rules(&mut Iptables::new(variant)).await?;
            self.abandoned = None;
        }
        self.unplanned = true;
        if intents.node.state == NodeState::Retired {
            self.converger.leave_nothing(&state)?;
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests;
