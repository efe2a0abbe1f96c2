//! The agents of both gateways are killed, one of them twice, and no connection notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::cluster::scene::scene;
use sallyport_e2e::cluster::{Cluster, Gateway, NAMESPACE, PODS};
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;

/// How long the load goes on.
const LOAD: Duration = Duration::from_mins(1);

#[test]
fn no_connection_is_lost_and_no_rule_changes() -> Result<()> {
    scene(|cluster| {
        let rules = cluster.our_rules()?;
        let mut load = cluster.load(LOAD.as_secs())?;
        for gateway in cluster.gateways.iter().chain(cluster.gateways.first()) {
            let deaths = restarts(cluster, gateway)?;
            kill_agent(cluster, gateway)?;
            ensure!(cluster.our_rules()? == rules, "the death of {}'s agent changed rules", gateway.name);
            wait::until_true("the agent running again", PODS, || Ok(restarts(cluster, gateway)? > deaths))?;
        }
        ensure!(load.is_running()?, "the load ended before the last agent was back");
        let report = load.report()?;
        report.expect_no_loss()?;
        figure(1, format_args!("kind: {report}"));
        ensure!(cluster.our_rules()? == rules, "the agents that came back changed rules");
        cluster.wait_until_gateways_are_ready()
    })
}

/// Kills the agent's process, which is a process of this machine too.
fn kill_agent(cluster: &Cluster, gateway: &Gateway) -> Result<()> {
    let processes = cluster.admin.check(&["docker", "top", &gateway.name, "-eo", "pid,args"])?;
    let agent = processes.lines().find(|line| line.contains("sallyport-node-agent run"));
    let pid = agent.and_then(|line| line.split_whitespace().next()).context("find the agent's process")?;
    cluster.admin.check(&["kill", "-KILL", pid]).map(drop)
}

/// How often the agent's container was restarted, once it runs.
fn restarts(cluster: &Cluster, gateway: &Gateway) -> Result<u64> {
    let pod =
        cluster.get(&format!("{} --namespace {NAMESPACE}", cluster.agent_pod(gateway)?))?.context("find the pod")?;
    let container = &pod["status"]["containerStatuses"][0];
    let count = container["restartCount"].as_u64().unwrap_or_default();
    Ok(if container["state"]["running"].is_object() { count } else { 0 })
}
