//! The passes that take Sallyport off the cluster, gateways first: the same loop, with the aim that nothing is left.
//!
//! What users wrote stays: forwards, pools and their definitions.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{Api, DeleteParams};
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::ForwardRef;
use sallyport_api::id::NodeName;
use sallyport_api::names::AGENT_NAME;
use sallyport_policy::decide::Verdict;
use sallyport_policy::validate::Problem;
use sallyport_runtime::once::Once;
use tokio::time::{Instant, timeout};

use crate::controller::Controller;
use crate::controller::desired::Desired;
use crate::controller::finalizers::released;
use crate::controller::gateways::{Gateways, gateways, has_label, node_name};
use crate::controller::rollout::SliceRevisions;
use crate::controller::send::REQUEST_TIMEOUT;
use crate::controller::slices;
use crate::controller::store::Store;

/// What can be done without where somebody has deleted it already: all but that by which agents are told to clean up.
const DISPENSABLE: [&str; 8] =
    ["portforwards", "gatewaypools", "forwardslices", "nodes", "namespaces", "leases", "daemonsets", "endpointslices"];

/// What should be: no node carries anything, and nothing of ours is left but what users wrote. `gone` are the nodes that
/// nobody waits for.
pub(crate) fn desired(store: &Store, revisions: &SliceRevisions, gone: &BTreeSet<NodeName>) -> Desired {
    let (slices, done_slices) = slices::with_empty(BTreeMap::new(), &slices::held(revisions), store, revisions, gone);
    let Gateways { specs, mut done, mut labelled } = gateways(store, BTreeMap::new(), |_| false);
    // Their rules are out of reach; when they come back, `sallyport-node-agent cleanup` removes them.
    done.extend(specs.keys().filter(|name| gone.contains(*name)).cloned());
    labelled.retain(|name| !gone.contains(name));
    Desired {
        verdicts: verdicts(store),
        slices,
        done_slices,
        gateways: specs,
        done_gateways: done,
        labelled,
        to_release: released(store, revisions, |_| true),
        ..Desired::default()
    }
}

/// Every forward that is not on its way out is refused.
fn verdicts(store: &Store) -> BTreeMap<ForwardRef, Verdict> {
    let stays = store.forwards.entries().filter(|(_, entry)| entry.meta().deletion_timestamp.is_none());
    let key = |namespace: &String, name: &String| ForwardRef { namespace: namespace.clone(), name: name.clone() };
    stays.map(|((namespace, name), _)| (key(namespace, name), Verdict::Refused(vec![uninstalled()]))).collect()
}

fn uninstalled() -> Problem {
    Problem {
        field: "spec".into(),
        reason: Reason::Pending,
        message: "Sallyport is uninstalled: no gateway carries any forward until it is installed again".into(),
    }
}

impl Controller {
    /// Takes everything of ours off the cluster; returns when it is gone. With `force` it waits for no silent agent.
    pub(crate) async fn uninstall(&mut self, force: bool) {
        self.store.dispensable = &DISPENSABLE;
        self.tracker.gives_up = force;
        let mut left = Once::default();
        loop {
            self.due(|| None).await;
            let missing = self.store.missing();
            if missing.is_empty() {
                self.uninstall_pass().await;
                if self.is_uninstalled(&mut left) {
                    return;
                }
                continue;
            }
            if left.is_news(&missing) {
                tracing::info!(
                    "waiting for {}; if a definition is missing, `helm upgrade` restores it",
                    missing.join("; ")
                );
            }
            self.set_readiness(Some(missing.join("; ")));
        }
    }

    async fn uninstall_pass(&mut self) {
        let begun = Instant::now();
        self.observe();
        let desired = desired(&self.store, &self.revisions, &self.liveness.gone);
        self.apply_and_report(&desired);
        self.metrics.passed(begun.elapsed());
        // The agents stay until every node is clean.
        if desired.labelled.is_empty() && self.daemon_set().is_some() && self.leadership.is_valid() {
            let api = Api::<DaemonSet>::namespaced(self.client.clone(), &self.namespace);
            // Refused or unanswered, it is tried again.
            let _ = timeout(REQUEST_TIMEOUT, api.delete(AGENT_NAME, &DeleteParams::default())).await;
            self.again = true;
        }
    }

    /// Whether nothing is left; says what is waited for, and which rules have to be left behind.
    pub(super) fn is_uninstalled(&self, logged: &mut Once<Vec<String>>) -> bool {
        let left = self.left();
        for line in logged.news_of(&left) {
            tracing::info!("left: {line}");
        }
        self.set_readiness((!left.is_empty()).then(|| left.join("; ")));
        left.is_empty() && self.writer.is_idle()
    }

    /// What is still there of ours.
    fn left(&self) -> Vec<String> {
        let store = &self.store;
        let mut left = Vec::new();
        for gateway in store.gateways.objects() {
            let name = &node_name(&gateway.metadata);
            left.push(if self.liveness.gone.contains(name) {
                format!(
                    "{name} keeps its rules: when it is back, run `sallyport-node-agent cleanup --state-dir \
                     /var/lib/sallyport` of the agents' image on it, as docs/install.md says"
                )
            } else if self.liveness.is_silent(name) || self.liveness.never_started(name) {
                format!("{name}: its agent does not answer; look at its pod, or give up on it with --force")
            } else {
                format!("{name}: its agent is taking the rules off")
            });
        }
        let objects = [
            (
                "forwards with our finalizer",
                store.forwards.entries().filter(|(_, entry)| entry.has_our_finalizer()).count(),
            ),
            ("forwardslices", store.slices.objects().count()),
            ("daemonsets", store.daemon_sets.objects().count()),
            ("nodes with our label", store.nodes.objects().filter(|node| has_label(node)).count()),
        ];
        left.extend(objects.iter().filter(|(_, number)| *number > 0).map(|(what, number)| format!("{number} {what}")));
        left
    }
}
