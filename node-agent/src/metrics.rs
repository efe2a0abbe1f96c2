//! What can be measured of the agent from outside, and whether it is ready.
//!
//! Ready means that the kernel is known to hold what it should; whether the cluster answers plays no part in it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sallyport_ruleset::iptables::drift::Kind;
use sallyport_runtime::admin::{self, Serving};
use sallyport_runtime::tasks::Tasks;
use tokio::sync::watch;

use crate::pass_report::{PassReport, ReportSink};

/// The agent's counters, and why it is not ready.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    passes: Family<Passes, Counter>,
    drift_repaired: Family<Repaired, Counter>,
    forwards: Gauge,
    failures: Gauge,
    draining: Gauge,
    verified: Gauge<i64, AtomicI64>,
    not_ready: Arc<Mutex<Option<String>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Passes {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Repaired {
    kind: &'static str,
}

impl Metrics {
    /// Answers on `address` beside everything else, and says how that stands.
    pub(crate) fn serve(&self, tasks: &mut Tasks, address: SocketAddr) -> watch::Receiver<Serving> {
        let metrics = self.clone();
        admin::start(tasks, address, self.registry(), move || metrics.ready())
    }

    fn ready(&self) -> Result<(), String> {
        self.not_ready.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("sallyport_agent");

        // There from the start, so that a first repair is an increase.
        for kind in Kind::ALL {
            drop(self.drift_repaired.get_or_create(&Repaired { kind: kind.name() }));
        }
        registry.register(
            "drift_repaired",
            "Passes that put back what somebody else had changed, by what that was",
            self.drift_repaired.clone(),
        );
        registry.register("passes", "Passes over the kernel, by result", self.passes.clone());
        registry.register("forwards_programmed", "Forwards that the kernel was read back with", self.forwards.clone());
        registry.register("forwards_failed", "Forwards that this node cannot carry", self.failures.clone());
        registry.register(
            "connections_draining",
            "Open connections to targets that take no new ones: removed, or of weight 0",
            self.draining.clone(),
        );
        registry.register(
            "last_verified_timestamp_seconds",
            "When the kernel was last read back equal after a pass",
            self.verified.clone(),
        );
        registry
    }
}

impl ReportSink for Metrics {
    fn passed(&mut self, report: &PassReport) {
        self.updated(report);
        let result = match &report.outcome {
            Ok(found) => {
                self.forwards.set(count(report.intents.forwards().count().saturating_sub(found.failures.len())));
                self.failures.set(count(found.failures.len()));
                if found.unreadable.is_empty() { "verified" } else { "unreadable" }
            }
            Err(_) => "failed",
        };
        if result == "verified" {
            self.verified.set(jiff::Timestamp::now().as_second());
        }
        let kinds: BTreeSet<Kind> = report.repaired.iter().map(|difference| difference.kind).collect();
        for kind in kinds {
            self.drift_repaired.get_or_create(&Repaired { kind: kind.name() }).inc();
        }
        self.passes.get_or_create(&Passes { result }).inc();
        *self.not_ready.lock().unwrap_or_else(PoisonError::into_inner) = report.failure();
    }

    fn updated(&mut self, report: &PassReport) {
        self.draining.set(count(report.draining.values().sum()));
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use sallyport_engine::command;
    use sallyport_ruleset::family::Family::V4;
    use sallyport_ruleset::iptables::drift::Difference;

    use super::*;
    use crate::converge::fake::{forward, intents};
    use crate::converge::{Error, Report};

    #[test]
    fn a_pass_is_counted_by_its_result_and_decides_whether_the_agent_is_ready() {
        let mut metrics = Metrics::default();
        assert_eq!(metrics.ready(), Ok(()), "nothing to do yet");
        let wanted = Rc::new(intents(&forward("a", 8000)));
        let missing = command::Error::NotInstalled { program: "iptables" };
        metrics.passed(&PassReport::of(&wanted, Err(Error::Engine(missing.into()))));
        assert!(metrics.ready().unwrap_err().contains("iptables is not installed"));
        let repaired = vec![Difference::forwarding(V4), Difference::forwarding(V4)];
        metrics.passed(&PassReport { repaired, ..PassReport::of(&wanted, Ok(Report::default())) });
        assert_eq!(metrics.ready(), Ok(()));

        let draining = [("a".into(), 3), ("b".into(), 4)].into();
        metrics.updated(&PassReport { draining, ..PassReport::of(&wanted, Ok(Report::default())) });

        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
        for line in [
            "sallyport_agent_passes_total{result=\"verified\"} 1",
            "sallyport_agent_passes_total{result=\"failed\"} 1",
            "sallyport_agent_drift_repaired_total{kind=\"forwarding\"} 1",
            "sallyport_agent_drift_repaired_total{kind=\"rival\"} 0",
            "sallyport_agent_forwards_programmed 1",
            "sallyport_agent_forwards_failed 0",
            "sallyport_agent_connections_draining 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
