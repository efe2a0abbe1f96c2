//! The passes that keep the gateways configured: observe, decide, apply, status.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::apps::v1::DaemonSet;
use tokio::time::Instant;

use crate::controller::Controller;
use crate::controller::agents::Agents;
use crate::controller::decide::decide;
use crate::controller::definitions::Definitions;
use crate::controller::guard::DeserializeGuard;

impl Controller {
    /// Keeps the gateways configured, and what runs their agents as `wanted`, for ever. `service_cidrs` are ranges of
    /// Services that the cluster itself may not tell.
    pub(crate) async fn serve(&mut self, wanted: &DaemonSet, service_cidrs: Vec<IpNet>) {
        self.store.service_cidrs = service_cidrs;
        let mut definitions = Definitions::new(self.client.clone());
        let mut agents = Agents::new(
            self.client.clone(),
            &self.namespace,
            self.events.clone(),
            Arc::clone(&self.leadership),
            Arc::clone(&self.metrics),
        );
        loop {
            self.due(|| agents.next_look()).await;
            let missing = self.store.missing();
            if missing.is_empty() {
                self.set_readiness(None);
                self.pass(&mut definitions).await;
                self.settle_agents(&mut agents, wanted).await;
            } else {
                self.set_readiness(Some(format!("waiting for {}", missing.join("; "))));
            }
        }
    }

    /// One pass over everything.
    async fn pass(&mut self, definitions: &mut Definitions) {
        let retention = definitions.retention(&self.store, &self.revisions).await;
        self.again |= definitions.ask_again();
        let begun = Instant::now();
        self.observe();
        let desired = decide(&self.store, &self.revisions, &self.liveness.gone, retention, self.now);
        self.apply_and_report(&desired);
        self.metrics.passed(begun.elapsed());
    }

    async fn settle_agents(&mut self, agents: &mut Agents, wanted: &DaemonSet) {
        if !self.leadership.is_valid() {
            return;
        }
        if let Some(written) = agents.settle(self.daemon_set(), wanted).await {
            self.store.daemon_sets.wrote(DeserializeGuard(Ok(written)));
        }
    }
}
