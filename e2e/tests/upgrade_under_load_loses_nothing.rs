//! `helm upgrade` replaces the operator and every agent, and no connection notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::cluster::scene::scene;
use sallyport_e2e::cluster::{Cluster, Helm, NAMESPACE, PODS};
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;

/// How long the load goes on.
const LOAD: Duration = Duration::from_mins(1);

#[test]
fn no_connection_is_lost_while_operator_and_agents_are_replaced() -> Result<()> {
    scene(|cluster| {
        let (rules, pods) = (cluster.our_rules()?, agents(cluster)?);
        let mut load = cluster.load(LOAD.as_secs())?;
        cluster.admin.check(&Helm::v4()?.install(&["logFormat=json"]))?;
        wait::until_true("every agent's pod being replaced", PODS, || {
            Ok(agents(cluster)?.iter().all(|pod| !pods.contains(pod)))
        })?;
        let status = format!("rollout status --namespace {NAMESPACE} daemonset/sallyport-node-agent --timeout 60s");
        cluster.kubectl(&status)?;
        ensure!(load.is_running()?, "the load ended before the upgrade did");
        let report = load.report()?;
        report.expect_no_loss()?;
        figure(2, format_args!("kind: {report}"));
        ensure!(cluster.our_rules()? == rules, "the upgrade changed rules");
        cluster.wait_until_ready("payments", "db1").map(drop)
    })
}

/// The agents' pods.
fn agents(cluster: &Cluster) -> Result<Vec<String>> {
    cluster.gateways.iter().map(|gateway| cluster.agent_pod(gateway).context("list the agents")).collect()
}
