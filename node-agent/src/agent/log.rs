//! The log of passes: each transition once.

use std::collections::{BTreeMap, BTreeSet};

use sallyport_api::Reason;
use sallyport_ruleset::firewall::Assessment;
use sallyport_ruleset::table::Failure;
use sallyport_runtime::once::Once;

use crate::converge::Report;
use crate::pass_report::PassReport;

/// What was last logged.
#[derive(Debug, Default)]
pub(crate) struct PassLog {
    /// What is wrong with what the source was given.
    problems: BTreeSet<String>,
    failures: Vec<Failure>,
    firewall: Assessment,
    /// What the last pass could not do.
    failure: Once,
    /// What somebody else keeps doing.
    persistent_drift: Once,
    draining: usize,
}

impl PassLog {
    /// Another backend takes over: everything about passes is news.
    pub(crate) fn restart(&mut self) {
        *self = Self { problems: std::mem::take(&mut self.problems), ..Self::default() };
    }

    /// Logs each problem of the source when it appears.
    pub(crate) fn problems(&mut self, problems: Vec<String>) {
        for problem in problems.iter().filter(|problem| !self.problems.contains(*problem)) {
            tracing::warn!("{problem}");
        }
        self.problems = problems.into_iter().collect();
    }

    /// Logs a pass that has ended; `locate` says where to look for the trouble of a forward.
    pub(crate) fn passed(&mut self, report: &PassReport, locate: impl Fn(&Failure) -> String) {
        self.updated(report);
        if let Some(what) = report.repair() {
            tracing::warn!(what, "drift repaired and verified");
        }
        let failure = report.failure();
        let is_news = failure.as_ref().is_some_and(|why| self.failure.is_news(why));
        if failure.is_none() {
            self.failure.clear();
        }
        match &report.outcome {
            Ok(found) => {
                self.good(report, found, is_news, locate);
                self.firewall(&found.firewall);
                self.failures.clone_from(&found.failures);
            }
            Err(_) if is_news => tracing::error!(error = failure, "pass failed; the kernel keeps what it had"),
            Err(_) => {}
        }
    }

    /// Logs what has changed apart from passes.
    pub(crate) fn updated(&mut self, report: &PassReport) {
        let connections = report.draining.values().sum();
        match (self.draining, connections) {
            (0, 0) => {}
            (0, _) => tracing::info!(connections, "open connections go on to targets that take no new ones"),
            (_, 0) => tracing::info!("the last connection to a target that takes no new ones has ended"),
            _ => {}
        }
        self.draining = connections;
        match &report.persistent_drift {
            Some(what) if self.persistent_drift.is_news(what) => tracing::warn!("{what}"),
            None if self.persistent_drift.clear() => {
                tracing::info!("nobody keeps changing or outranking our rules any more");
            }
            _ => {}
        }
    }

    /// Logs, when that changes, what the host's other firewalls do with forwarded packets.
    pub(crate) fn firewall(&mut self, found: &Assessment) {
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

    /// A pass that was good, as far as the tables can be read; `is_news` says whether they could be before.
    fn good(&self, pass: &PassReport, report: &Report, is_news: bool, locate: impl Fn(&Failure) -> String) {
        let (cause, backend) = (pass.cause, pass.engine);
        for family in &report.forwarding {
            tracing::info!(%family, "forwarding turned on");
        }
        let known: BTreeMap<_, _> = self.failures.iter().map(|failure| (&failure.forward, failure)).collect();
        for failure in report.failures.iter().filter(|failure| known.get(&failure.forward) != Some(failure)) {
            tracing::warn!("{}", locate(failure));
        }
        let forwards = pass.intents.forwards().count() - report.failures.len();
        if !report.unreadable.is_empty() {
            if is_news {
                let error = report.unreadable.join("; ");
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
                    rules = report.digest.as_str(),
                    ended = report.ended,
                    "programmed and verified"
                );
            }
            None if cause == "drift" => {}
            None => {
                tracing::info!(cause, backend, forwards, rules = report.digest.as_str(), "verified, nothing to change");
            }
        }
    }
}
