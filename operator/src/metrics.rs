//! What the operator counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Numbers for `/metrics`.
#[derive(Debug)]
pub(crate) struct Metrics {
    writes: Family<Resource, Counter>,
    forwards: Family<State, Gauge>,
    leader: Gauge,
    pass: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Resource {
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    ready: String,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            writes: Family::default(),
            forwards: Family::default(),
            leader: Gauge::default(),
            pass: Histogram::new(exponential_buckets(0.000_5, 2.0, 14)),
        };
        let registry = registry.sub_registry_with_prefix("sallyport_operator");
        registry.register("writes", "Requests that change an object, by resource", metrics.writes.clone());
        registry.register("forwards", "PortForwards by the status of their condition Ready", metrics.forwards.clone());
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        registry.register("pass_seconds", "Time that one decision over everything takes", metrics.pass.clone());
        metrics
    }

    /// Counts a write.
    pub(crate) fn wrote(&self, resource: &'static str) {
        self.writes.get_or_create(&Resource { resource }).inc();
    }

    /// Notes how long a pass took.
    pub(crate) fn passed(&self, took: std::time::Duration) {
        self.pass.observe(took.as_secs_f64());
    }

    /// Notes whether this replica leads.
    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// Notes how many forwards have each status of `Ready`.
    pub(crate) fn forwards(&self, ready: &str, number: i64) {
        self.forwards.get_or_create(&State { ready: ready.to_owned() }).set(number);
    }
}
