//! kube-proxy writes all of its rules anew when it starts. Ours go on meanwhile, and its own are as it made them.

use anyhow::{Result, ensure};
use sallyport_e2e::cluster::scene::scene;
use sallyport_e2e::cluster::{Cluster, SOON};
use sallyport_e2e::faults::figure;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::snapshot::rules;
use sallyport_e2e::wait;

#[test]
fn kube_proxy_restarts_and_nothing_is_lost() -> Result<()> {
    scene(|cluster| {
        let (ours, theirs) = (cluster.our_rules()?, of_kube_proxy(cluster)?);
        ensure!(theirs.iter().all(|rules| rules.len() > 10), "kube-proxy has hardly any rules: {theirs:?}");
        let mut load = cluster.load(180)?;
        cluster.kubectl("rollout restart --namespace kube-system daemonset/kube-proxy")?;
        cluster.kubectl("rollout status --namespace kube-system daemonset/kube-proxy --timeout 120s")?;
        wait::until_true("kube-proxy's rules being as before", SOON, || Ok(of_kube_proxy(cluster)? == theirs))?;
        ensure!(load.is_running()?, "the load ended before kube-proxy had started");
        let report = load.end()?;
        report.expect_no_loss()?;
        ensure!(cluster.our_rules()? == ours, "our rules changed");
        figure(9, format_args!("kind, kube-proxy restarted: {report}"));
        Ok(())
    })
}

/// The rules of kube-proxy on each gateway.
fn of_kube_proxy(cluster: &Cluster) -> Result<Vec<Vec<String>>> {
    let of = |gateway: &sallyport_e2e::cluster::Gateway| {
        let saved = gateway.host.iptables_save(Variant::Nft, Family::V4)?;
        Ok(rules(&saved).into_iter().filter(|rule| rule.contains("KUBE-")).collect())
    };
    cluster.gateways.iter().map(of).collect()
}
