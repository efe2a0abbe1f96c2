//! Without an API server every forward works on, and agents still repair what somebody breaks.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::article::SOON;
use sallyport_e2e::cluster::scene::scene;
use sallyport_e2e::cluster::{Cluster, PODS};
use sallyport_e2e::faults::figure;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::traffic::RunningLoad;
use sallyport_e2e::wait;

/// How long the API server stays away: longer than leases, watches and silent connections last.
const AWAY: Duration = Duration::from_secs(75);

#[test]
fn forwards_work_on_and_drift_is_repaired_without_an_api_server() -> Result<()> {
    scene(|cluster| {
        let rules = cluster.our_rules()?;
        let load = cluster.load(3 * AWAY.as_secs())?;
        move_manifest(cluster, "/etc/kubernetes/manifests", "/etc/kubernetes")?;
        let outcome = while_it_is_away(cluster, &rules, load);
        move_manifest(cluster, "/etc/kubernetes", "/etc/kubernetes/manifests")?;
        wait::until_true("the API server answering", PODS, || answers(cluster))?;
        outcome?;
        cluster.wait_until_ready("payments", "db1")?;
        ensure!(cluster.our_rules()? == rules, "the return of the API server changed rules");
        Ok(())
    })
}

fn while_it_is_away(cluster: &Cluster, rules: &[String], mut load: RunningLoad) -> Result<()> {
    wait::until_true("the API server being away", PODS, || Ok(!answers(cluster)?))?;
    wait::holds_for("rules without an API server", AWAY, || Ok(cluster.our_rules()? == rules))?;
    ensure!(load.is_running()?, "the load ended while the API server was away");
    let report = load.end()?;
    report.expect_no_loss()?;
    figure(4, format_args!("kind: {report}"));
    for gateway in &cluster.gateways {
        gateway.host.iptables(Variant::Nft, Family::V4, "-t nat -D PREROUTING -j SALLY-PRE")?;
    }
    wait::until_true("the rules being repaired", SOON, || Ok(cluster.our_rules()? == rules))?;
    cluster.expect_answers()
}

/// The kubelet ends the API server when its manifest goes, and starts it when it comes back.
fn move_manifest(cluster: &Cluster, from: &str, to: &str) -> Result<()> {
    let (from, to) = (format!("{from}/kube-apiserver.yaml"), format!("{to}/kube-apiserver.yaml"));
    cluster.admin.check(&["docker", "exec", "sallyport-control-plane", "mv", &from, &to]).map(drop)
}

fn answers(cluster: &Cluster) -> Result<bool> {
    Ok(cluster.try_kubectl("get --raw /readyz --request-timeout=2s")?.success())
}
