//! `run`: apply what the source says and keep it applied.
//!
//! One loop on one thread: a change of the source, the kernel's word that addresses or forwarding have changed, a beat
//! ten times a second that looks for drift, or the end. What the kernel holds stays however the agent stops.

mod noted;
mod retry;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_api::{NodeState, Reason};
use sallyport_engine::Engine;
use sallyport_engine::dry_run::DryRun;
use sallyport_engine::iptables::{Iptables, Variant};
use sallyport_ruleset::compile::Failure;
use sallyport_ruleset::drift::told;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::firewall::Assessment;
use sallyport_runtime::shutdown::Shutdown;
use sallyport_runtime::tasks::Tasks;
use tokio::time::MissedTickBehavior;

use crate::args::{HostArgs, RunArgs};
use crate::backend::{self, Backend};
use crate::cleanup::remove_rules;
use crate::connections::Draining;
use crate::converge::{Converger, Error, Report};
use crate::error_chain::chain_of;
use crate::intents::{Carried, Intents};
use crate::metrics::Metrics;
use crate::run::retry::Retry;
use crate::source::cluster::Cluster;
use crate::source::manifests::Manifests;
use crate::source::{Pass, Source};
use crate::state::StateDir;
use crate::trouble::Trouble;
use sallyport_engine::route::events::RouteEvents;
use sallyport_engine::sysctl::Sysctl;

/// Time between two looks for drift, which cost microseconds while nothing moves.
const BEAT: Duration = Duration::from_millis(100);
/// After a look that found movement and what was done about it, so many times as long is rested, but never longer than
/// [`LONGEST_REST`]: others may change their own rules all the time.
const REST: u32 = 5;
const LONGEST_REST: Duration = Duration::from_millis(300);
/// Time between two looks whether a port that somebody else listens on was freed, while a forward waits for it.
const LISTENERS: Duration = Duration::from_millis(500);
/// Rest after a pass that failed, before drift is a reason for another.
const FAILED_REST: Duration = Duration::from_secs(1);
/// Drift that is put back within this time is told when that is done; what takes longer is told while it lasts.
const MOMENT: Duration = Duration::from_secs(1);

/// Runs until a signal, or with `once` until the manifests are applied.
pub async fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let state = Rc::new(StateDir::lock(&args.host.state_dir)?);
    let metrics = Metrics::default();
    let mut tasks = Tasks::default();
    tasks.watch();
    let admin = args.admin.map(|address| metrics.serve(&mut tasks, address));
    if let Some(manifests) = &args.manifests {
        let source = Manifests::new(manifests, &args.host.node_name, state);
        return Box::pin(tasks.beside(drive(source, &args.host, metrics, args.once))).await;
    }
    let namespace = args.namespace.as_deref().context("--namespace is needed without --manifests")?;
    let source = Cluster::connect(&mut tasks, &args.host.node_name, namespace, state, admin).await?;
    Box::pin(tasks.beside(drive(source, &args.host, metrics, false))).await
}

async fn drive<S: Source>(mut source: S, args: &HostArgs, metrics: Metrics, once: bool) -> anyhow::Result<ExitCode> {
    let mut shutdown = Shutdown::new().context("failed to listen for signals")?;
    let notices = RouteEvents::open().context("cannot listen to the kernel for changed addresses")?;
    // After a reboot the last good intents are enforced even before anybody else has spoken.
    let last_good = source.last_good();
    let mut intents = last_good.clone();
    loop {
        if let Some(decided) = source.look().await {
            intents = Some(decided);
        }
        let pool = intents.as_ref().map_or(FirewallBackend::Auto, |intents| intents.node.backend);
        let backend = backend::choose(args.backend, pool).await?;
        let outcome = match backend {
            Backend::DryRun => {
                let mut agent = Agent::new(Converger::new(DryRun::default(), None), pool, &mut source, &metrics);
                agent.follow(&mut intents, once, &notices, &mut shutdown).await
            }
            Backend::Iptables(variant) => {
                backend::close_lock();
                let sysctl = Sysctl::mounted_at(&args.proc_sys);
                let converger = Converger::new(Iptables::new(variant), Some(sysctl));
                let mut agent = Agent::new(converger, pool, &mut source, &metrics);
                agent.converger.carry(last_good.as_ref());
                agent.take_up_carried();
                agent.abandoned = Some(variant.other());
                agent.backend = backend.reported();
                agent.follow(&mut intents, once, &notices, &mut shutdown).await
            }
        };
        match outcome {
            Outcome::BackendChanged => {}
            Outcome::Stopped => return Ok(ExitCode::SUCCESS),
            Outcome::Done(good) => return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        }
    }
}

enum Outcome {
    /// The pool asks for another backend.
    BackendChanged,
    Stopped,
    /// With `--once`: whether everything was accepted and verified.
    Done(bool),
}

struct Agent<'a, S, E> {
    converger: Converger<E>,
    pool_backend: FirewallBackend,
    backend: Option<FirewallBackend>,
    source: &'a mut S,
    metrics: &'a Metrics,
    /// The other variant of iptables, in which an earlier run may have left rules.
    abandoned: Option<Variant>,
    failures: Vec<Failure>,
    draining: Draining,
    retry: Retry,
    /// Drift is not looked for before.
    rest: Instant,
    /// When it was last looked whether a port was freed.
    listened: Instant,
    trouble: Trouble,
    /// What was last told to last, although the passes are good.
    lasting: Option<String>,
    /// What the last pass could not do, told when it changes.
    error: Option<String>,
    /// Whether the kernel or the intents have changed since planned changes were last worked out.
    unplanned: bool,
    /// What was last told of the host's other firewalls.
    firewall: Assessment,
    /// What is on disk of what is carried apart from the intents.
    noted: Carried,
}

impl<'a, S: Source, E: Engine> Agent<'a, S, E> {
    fn new(converger: Converger<E>, pool_backend: FirewallBackend, source: &'a mut S, metrics: &'a Metrics) -> Self {
        Self {
            converger,
            pool_backend,
            backend: None,
            source,
            metrics,
            abandoned: None,
            failures: Vec::new(),
            draining: Draining::new(),
            retry: Retry::default(),
            rest: Instant::now(),
            listened: Instant::now(),
            trouble: Trouble::default(),
            lasting: None,
            error: None,
            unplanned: false,
            firewall: Assessment::default(),
            noted: Carried::default(),
        }
    }

    async fn follow(
        &mut self,
        intents: &mut Option<Rc<Intents>>,
        once: bool,
        notices: &RouteEvents,
        shutdown: &mut Shutdown,
    ) -> Outcome {
        if once {
            return Outcome::Done(self.once(intents.as_ref()).await);
        }
        self.tell_problems();
        if let Some(intents) = intents.as_ref() {
            self.pass(intents, "start").await;
        }
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.requested() => {
                    tracing::info!("stopping; the rules stay");
                    return Outcome::Stopped;
                }
                () = self.source.changed() => {}
                () = notices.changed() => self.source.host().heard(),
                _ = beat.tick() => self.source.beat(),
            }
            if let Some(decided) = self.source.look().await {
                self.tell_problems();
                let backend = decided.node.backend;
                *intents = Some(decided);
                if backend != self.pool_backend {
                    return Outcome::BackendChanged;
                }
                if let Some(intents) = intents.as_ref() {
                    self.pass(intents, S::CAUSE).await;
                }
            } else if let Some(intents) = intents.as_ref() {
                self.repair(intents).await;
                self.plan(intents);
            }
            if self.error.is_none() && self.lasting_changed() {
                self.source.amiss(self.lasting.as_deref());
            }
        }
    }

    /// Works out what planned forwards would change, once there is nothing else to do: no pass waits for it.
    fn plan(&mut self, intents: &Rc<Intents>) {
        if !self.unplanned || self.retry.at.is_some() {
            return;
        }
        match self.converger.plans(intents, &self.source.host().local) {
            Ok(None) => {}
            Ok(Some(plans)) => {
                self.unplanned = false;
                self.source.planned(plans);
            }
            Err(error) => {
                tracing::warn!(error = chain_of(&error), "cannot tell what planned forwards would change");
                self.unplanned = false;
            }
        }
    }

    fn tell_problems(&mut self) {
        let problems = self.source.problems();
        self.source.host().tell(problems);
    }

    /// Looks for what has expired, for ports that were freed and for drift, and tries again what failed when its time
    /// has come.
    async fn repair(&mut self, intents: &Rc<Intents>) {
        if self.source.host().clock.is_due() {
            return self.pass(intents, "expiry").await;
        }
        let begun = Instant::now();
        if self.retry.at.is_some_and(|at| begun >= at) {
            return self.pass(intents, "retry").await;
        }
        if self.retry.at.is_none() && begun >= self.listened + LISTENERS {
            self.listened = begun;
            let host = self.source.host();
            // Who may be let in depends on no time.
            let facts = NodeFacts::of(&host.local, 0);
            if host.port_gate.is_freed(&self.converger.engine, intents, &facts, begun) {
                return self.pass(intents, "port freed").await;
            }
        }
        if begun < self.rest {
            return;
        }
        let host = self.source.host();
        match self.converger.drift(intents, &host.local).await {
            Ok(None) => return self.recount(),
            Ok(Some(found)) => {
                self.trouble.saw(found);
                self.pass(intents, "drift").await;
            }
            Err(error) => {
                tracing::warn!(error = chain_of(&error), "cannot look for drift");
                if self.retry.at.is_none() {
                    self.retry.later();
                }
            }
        }
        let rest = if self.retry.at.is_some() { FAILED_REST } else { (begun.elapsed() * REST).min(LONGEST_REST) };
        self.rest = Instant::now() + rest;
    }

    /// Whether something else lasts than what was last told; tells it.
    fn lasting_changed(&mut self) -> bool {
        let lasting = self.trouble.lasting(Instant::now());
        if lasting == self.lasting {
            return false;
        }
        if let Some(what) = &lasting {
            tracing::warn!("{what}");
        } else {
            tracing::info!("nobody keeps changing or outranking our rules any more");
        }
        self.lasting = lasting;
        true
    }

    fn recount(&mut self) {
        // After a pass that failed there is nothing new to count by.
        if self.retry.at.is_some() {
            return;
        }
        match self.converger.recount() {
            Ok(false) => {}
            Ok(true) => self.tell_draining(),
            Err(error) => tracing::debug!(error = chain_of(&error), "cannot count connections"),
        }
    }

    /// Hands on how many connections are left to end by themselves, and logs when the first is and the last was.
    fn tell_draining(&mut self) {
        let draining = self.converger.draining();
        let (before, connections): (usize, usize) = (self.draining.values().sum(), draining.values().sum());
        match (before, connections) {
            (0, 0) => {}
            (0, _) => tracing::info!(connections, "open connections go on to targets that take no new ones"),
            (_, 0) => tracing::info!("the last connection to a target that takes no new ones has ended"),
            _ => {}
        }
        self.metrics.draining(connections);
        self.source.draining(draining);
        self.draining.clone_from(draining);
    }

    async fn once(&mut self, intents: Option<&Rc<Intents>>) -> bool {
        let mut lines = self.source.problems();
        lines.extend(self.source.unreadable().map(str::to_owned));
        if let Some(intents) = intents {
            match self.try_pass(intents).await {
                Ok(report) => {
                    self.plan(intents);
                    lines.extend(report.unreadable.iter().cloned());
                    lines.extend(report.failures.iter().map(|failure| self.source.locate(failure)));
                    self.tell_firewall(&report.firewall);
                    if report.unreadable.is_empty() {
                        let accepted = intents.forwards().len() - report.failures.len();
                        // Lost output must not look like a lost rule.
                        let _ = writeln!(std::io::stdout(), "verified: forwards {accepted}, rules {}", report.digest);
                    }
                }
                Err(error) => lines.push(chain_of(&error)),
            }
        }
        for line in &lines {
            let _ = writeln!(std::io::stderr(), "error: {line}");
        }
        lines.is_empty()
    }

    /// One pass, with its result in the log: each transition once.
    async fn pass(&mut self, intents: &Rc<Intents>, cause: &'static str) {
        let outcome = self.try_pass(intents).await;
        self.tell_draining();
        let now = Instant::now();
        let fought = self.trouble.is_fight(now);
        let repaired = match &outcome {
            Ok(report) => self.trouble.over(report, now),
            Err(_) if self.converger.holds() => self.trouble.rules_are_back(now),
            Err(_) => Vec::new(),
        };
        self.metrics.passed(intents, &repaired, &outcome);
        // In a fight the single repair is no news.
        let repaired = Some(told(&repaired)).filter(|what| !what.is_empty() && !fought);
        let pending = self.trouble.pending();
        if outcome.is_ok() {
            self.lasting_changed();
        }
        self.source.passed(&Pass {
            intents,
            repaired: repaired.as_deref(),
            pending: pending.as_deref(),
            amiss: self.lasting.as_deref(),
            outcome: outcome.as_ref(),
            backend: self.backend,
        });
        if let Some(what) = repaired {
            tracing::warn!(what, "drift repaired and verified");
        }
        match outcome {
            Ok(report) => {
                self.tell(intents, &report, cause);
                if report.unreadable.is_empty() {
                    self.retry.over();
                    self.error = None;
                } else {
                    // What made it unreadable may go without moving anything, as when a program is installed.
                    self.retry.later();
                    self.error = Some(report.unreadable.join("; "));
                }
                self.tell_firewall(&report.firewall);
                self.failures = report.failures;
            }
            Err(error) => {
                // Nothing is broken where somebody is as quick as we are, so there is nothing to wait long for.
                if matches!(error, Error::Different { .. }) {
                    self.retry.soon();
                } else {
                    self.retry.later();
                }
                let error = chain_of(&error);
                if self.error.as_ref() != Some(&error) {
                    tracing::error!(error, "pass failed; the kernel keeps what it had");
                    self.error = Some(error);
                }
            }
        }
    }

    async fn try_pass(&mut self, intents: &Rc<Intents>) -> Result<Report, Error> {
        let host = self.source.host();
        let now = host.clock.now();
        let local = host.local.clone();
        let facts = NodeFacts::of(&local, now);
        let waiting = host.port_gate.admit(&mut self.converger, intents, &facts, Instant::now()).await;
        host.port_gate.keep(intents, &host.state);
        // Before the kernel changes, so that who holds a claim is known whatever happens next.
        host.keep(intents);
        host.clock.expect(intents.forwards().iter().filter_map(|forward| forward.intent.expires_at), now);
        let state = Rc::clone(&host.state);
        // Every host has at least its loopback addresses.
        if local.is_empty() {
            return Err(Error::Addresses);
        }
        let report = {
            let mut pass = Box::pin(self.converger.converge(intents, waiting, &facts, &state));
            if let Ok(outcome) = tokio::time::timeout(MOMENT, &mut pass).await {
                outcome
            } else {
                if let Some(what) = self.trouble.pending() {
                    let what = format!("somebody has changed this and it is not put back yet: {what}");
                    self.source.amiss(Some(&what));
                }
                pass.await
            }
        };
        self.note_carried(intents);
        let report = report?;
        self.source.host().port_gate.passed(intents);
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

    fn tell(&self, intents: &Intents, report: &Report, cause: &'static str) {
        for family in &report.forwarding {
            tracing::info!(%family, "forwarding turned on");
        }
        let known: BTreeMap<_, _> = self.failures.iter().map(|failure| (&failure.forward, failure)).collect();
        for failure in report.failures.iter().filter(|failure| known.get(&failure.forward) != Some(failure)) {
            tracing::warn!("{}", self.source.locate(failure));
        }
        let forwards = intents.forwards().len() - report.failures.len();
        let backend = self.converger.engine.name();
        if !report.unreadable.is_empty() {
            let error = report.unreadable.join("; ");
            if self.error.as_ref() != Some(&error) {
                tracing::error!(backend, "not verified, and nothing new is programmed: {error}");
            }
            if let Some(chains) = &report.changed {
                let ended = report.ended;
                tracing::info!(
                    cause,
                    backend,
                    chains,
                    ended,
                    "what is no longer allowed is taken away, and was read to be gone"
                );
            }
            return;
        }
        match &report.changed {
            Some(_) => {
                tracing::info!(
                    cause,
                    backend,
                    forwards,
                    rules = report.digest,
                    ended = report.ended,
                    "programmed and verified"
                );
            }
            None if cause == "drift" => {}
            None => tracing::info!(cause, backend, forwards, rules = report.digest, "verified, nothing to change"),
        }
    }
}

impl<S: Source, E: Engine> Agent<'_, S, E> {
    /// Tells, when that changes, what the host's other firewalls do with forwarded packets.
    fn tell_firewall(&mut self, found: &Assessment) {
        if *found == self.firewall {
            return;
        }
        if found.reason() == Reason::HostFirewallCompatible && !found.mixed {
            tracing::info!("{found}");
        } else {
            tracing::warn!("{found}");
        }
        self.firewall = found.clone();
    }
}

#[cfg(test)]
mod tests;
