//! `run`: apply the manifests and keep them applied.
//!
//! One loop on one thread: a change in the directory, a beat twice a second that looks for drift, or the end. What the
//! kernel holds stays when the agent stops, however it stops.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_engine::Engine;
use sallyport_engine::dry_run::DryRun;
use sallyport_engine::iptables::{Iptables, Variant};
use sallyport_ruleset::compile::Failure;
use sallyport_ruleset::plan::plan;
use sallyport_ruleset::rule::Ruleset;
use sallyport_runtime::shutdown::Shutdown;
use tokio::time::MissedTickBehavior;

use crate::args::HostArgs;
use crate::backend::{self, Backend};
use crate::converge::{Converger, Error, Report, chain_of};
use crate::source::Source;
use crate::source::watch::{Change, Watch};
use crate::state::{Intents, StateDir};
use crate::sysctl::Sysctl;

/// Time between two looks for drift.
const BEAT: Duration = Duration::from_millis(500);
/// Longest wait after a failed pass before the next try.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Runs until a signal, or with `once` until the manifests are applied.
pub async fn run(args: &HostArgs, once: bool) -> anyhow::Result<ExitCode> {
    let state = StateDir::lock(&args.state_dir)?;
    let mut shutdown = Shutdown::new().context("failed to listen for signals")?;
    let mut source = Source::new(args, &state);
    // After a reboot the last good intents are enforced even before the manifests can be read.
    let mut intents = source.last_good();
    loop {
        if let Some(decided) = source.look(None).await {
            intents = Some(decided);
        }
        let pool = intents.as_ref().map_or(FirewallBackend::Auto, |intents| intents.node.backend);
        let backend = backend::choose(args.backend, pool).await?;
        let outcome = match backend {
            Backend::DryRun => {
                let converger = Converger::new(DryRun::default(), None);
                Agent::new(converger, pool, &mut source).follow(&mut intents, once, &mut shutdown).await
            }
            Backend::Iptables(variant) => {
                let converger = Converger::new(Iptables::new(variant), Some(Sysctl::default()));
                let mut agent = Agent::new(converger, pool, &mut source);
                agent.abandoned = Some(variant.other());
                agent.follow(&mut intents, once, &mut shutdown).await
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

struct Agent<'a, 'b, E> {
    converger: Converger<E>,
    pool_backend: FirewallBackend,
    source: &'a mut Source<'b>,
    /// The other variant of iptables, in which an earlier run may have left rules.
    abandoned: Option<Variant>,
    failures: Vec<Failure>,
    retry: Retry,
    /// What the last pass could not do, and what could not be kept; each is told when it changes.
    error: Option<String>,
    unkept: Option<String>,
}

/// When to try again after a failure.
struct Retry {
    wait: Duration,
    at: Option<Instant>,
}

impl<'a, 'b, E: Engine> Agent<'a, 'b, E> {
    fn new(converger: Converger<E>, pool_backend: FirewallBackend, source: &'a mut Source<'b>) -> Self {
        let retry = Retry { wait: BEAT, at: None };
        Self {
            converger,
            pool_backend,
            source,
            abandoned: None,
            failures: Vec::new(),
            retry,
            error: None,
            unkept: None,
        }
    }

    async fn follow(&mut self, intents: &mut Option<Rc<Intents>>, once: bool, shutdown: &mut Shutdown) -> Outcome {
        if once {
            return Outcome::Done(self.once(intents.as_ref()).await);
        }
        self.source.tell_problems();
        if let Some(intents) = intents.as_ref() {
            self.pass(intents, "start").await;
        }
        let mut watch = None;
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut reported = None;
            tokio::select! {
                () = shutdown.requested() => {
                    tracing::info!("stopping; the rules stay");
                    return Outcome::Stopped;
                }
                change = next(&mut watch) => match change {
                    Change::Files(files) => reported = Some(files),
                    Change::Lost => watch = None,
                },
                _ = beat.tick() => {
                    if watch.is_none() {
                        reported = Some(BTreeSet::new());
                        watch = Watch::new(&self.source.args.manifests).ok();
                    }
                }
            }
            if let Some(decided) = self.source.look(reported.as_ref()).await {
                self.source.tell_problems();
                let backend = decided.node.backend;
                *intents = Some(decided);
                if backend != self.pool_backend {
                    return Outcome::BackendChanged;
                }
                if let Some(intents) = intents.as_ref() {
                    self.pass(intents, "manifests").await;
                }
            } else if let Some(intents) = intents.as_ref() {
                self.repair(intents).await;
            }
        }
    }

    /// Looks for drift, and tries again what failed when its time has come.
    async fn repair(&mut self, intents: &Rc<Intents>) {
        if let Some(at) = self.retry.at {
            if Instant::now() >= at {
                self.pass(intents, "retry").await;
            }
            return;
        }
        match self.converger.moved().await {
            Ok(false) => {}
            Ok(true) => self.pass(intents, "drift").await,
            Err(error) => {
                tracing::warn!(error = chain_of(&error), "cannot look for drift");
                self.retry.later();
            }
        }
    }

    async fn once(&mut self, intents: Option<&Rc<Intents>>) -> bool {
        let mut lines: Vec<String> = self.source.problems.iter().map(ToString::to_string).collect();
        lines.extend(self.source.unreadable().map(str::to_owned));
        if let Some(intents) = intents {
            match self.try_pass(intents).await {
                Ok(report) => {
                    lines.extend(report.failures.iter().map(|failure| self.source.locate(failure)));
                    let accepted = intents.forwards().len() - report.failures.len();
                    // Lost output must not look like a lost rule.
                    let _ = writeln!(std::io::stdout(), "verified: forwards {accepted}, rules {}", report.digest);
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
        match self.try_pass(intents).await {
            Ok(report) => {
                if self.retry.at.take().is_some() {
                    self.retry.wait = BEAT;
                }
                self.error = None;
                self.tell(intents, &report, cause);
                self.failures = report.failures;
            }
            Err(error) => {
                let error = chain_of(&error);
                if self.error.as_ref() != Some(&error) {
                    tracing::error!(error, "pass failed; the kernel keeps what it had");
                    self.error = Some(error);
                }
                self.retry.later();
            }
        }
    }

    async fn try_pass(&mut self, intents: &Rc<Intents>) -> Result<Report, Error> {
        // Before the kernel changes, so that who holds a claim is known whatever happens next.
        self.keep(intents);
        let report = self.converger.converge(intents, self.source.local(), self.source.state).await?;
        if let Some(variant) = self.abandoned {
            remove_rules(&mut Iptables::new(variant)).await?;
            self.abandoned = None;
        }
        Ok(report)
    }

    /// A state directory that cannot be written must not keep a rule in the kernel that has to go.
    fn keep(&mut self, intents: &Rc<Intents>) {
        if self.source.kept.as_ref() == Some(intents) {
            return;
        }
        match self.source.state.keep_intents(intents) {
            Ok(()) => {
                self.source.kept = Some(Rc::clone(intents));
                self.unkept = None;
            }
            Err(error) => {
                let error = chain_of(&error);
                if self.unkept.as_ref() != Some(&error) {
                    tracing::warn!(error, "cannot keep the intents; after a reboot the host starts with older ones");
                    self.unkept = Some(error);
                }
            }
        }
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
        match &report.changed {
            Some(what) if cause == "drift" => {
                tracing::warn!(
                    what,
                    forwards,
                    rules = report.digest,
                    ended = report.ended,
                    "drift repaired and verified"
                );
            }
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

impl Retry {
    fn later(&mut self) {
        self.at = Some(Instant::now() + self.wait);
        self.wait = (self.wait * 2).min(LONGEST_RETRY);
    }
}

async fn next(watch: &mut Option<Watch>) -> Change {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Takes our rules out of the kernel, if there are any.
pub async fn remove_rules(iptables: &mut Iptables) -> Result<bool, sallyport_engine::Error> {
    if !iptables.is_in_use() {
        return Ok(false);
    }
    let installed = iptables.observe().await?;
    let batch = plan(&Ruleset::default(), &installed, false);
    if batch.is_empty() {
        return Ok(false);
    }
    iptables.apply(&batch).await?;
    let left = iptables.observe().await?.ours();
    if left == Ruleset::default() {
        tracing::info!(backend = iptables.name(), "removed our rules");
    } else {
        tracing::warn!(
            backend = iptables.name(),
            "somebody's rules lead to our chains, which were emptied but cannot be deleted; delete those rules"
        );
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
