//! From the version before to this one and back, on the way with an operator and agents of different versions: forwards are
//! followed at every step, and no connection notices.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, socket};
use sallyport_e2e::cluster::scene::{PORT, bare, forward};
use sallyport_e2e::cluster::{Cluster, Helm, NAMESPACE, PODS, SOON};
use sallyport_e2e::faults::figure;
use sallyport_e2e::program;
use sallyport_e2e::traffic::{Protocol, ask};
use sallyport_e2e::wait;

/// The longest that a step may take under load, in seconds.
const LOAD: u64 = 300;

const PREVIOUS: &str = "previous";
const THIS: &str = env!("CARGO_PKG_VERSION");

#[test]
fn no_connection_is_lost_from_the_version_before_to_this_one_and_back() -> Result<()> {
    bare(|cluster| {
        let before = cluster.load_previous_images()?;
        let same = Path::new(&before) == program::repository()?;
        let from = if same { " (of this version on both sides: the history here is too short)" } else { "" };
        install(cluster, &before, PREVIOUS, PREVIOUS)?;
        cluster.label_gateways()?;
        cluster.wait_until_gateways_are_ready()?;
        cluster.kubectl("apply --filename examples/namespace.yaml")?;
        let _server = cluster.serve(&[DB1])?;
        cluster.apply(&forward("db1", APP1, DB1))?;
        cluster.wait_until_ready("payments", "db1")?;
        cluster.expect_answers()?;
        for (what, chart, operator, agent) in [
            ("the agents are older", ".", THIS, PREVIOUS),
            ("all are upgraded", ".", THIS, THIS),
            ("the agents are newer", before.as_str(), PREVIOUS, THIS),
            ("all are rolled back", before.as_str(), PREVIOUS, PREVIOUS),
        ] {
            let mut load = cluster.load(LOAD)?;
            step(cluster, chart, operator, agent).context(what)?;
            ensure!(load.is_running()?, "{what}: the load ended before that was done");
            let report = load.end()?;
            report.expect_no_loss().context(what)?;
            figure(if operator == agent { 2 } else { 24 }, format_args!("kind, {what}{from}: {report}"));
        }
        Ok(())
    })
}

fn install(cluster: &Cluster, chart: &str, operator: &str, agent: &str) -> Result<()> {
    let settings = [format!("operator.image.tag={operator}"), format!("agent.image.tag={agent}")];
    cluster.admin.check(&Helm::v4()?.install_from(chart, &settings.each_ref().map(String::as_str))).map(drop)
}

/// Goes on to these versions; then the forward that was there is Ready, and a new one is carried and closed.
fn step(cluster: &Cluster, chart: &str, operator: &str, agent: &str) -> Result<()> {
    install(cluster, chart, operator, agent)?;
    let image = format!("sallyport/node-agent:{agent}");
    wait::until_true(&format!("every agent being {image}"), PODS, || {
        let pods = cluster
            .get(&format!("pods --namespace {NAMESPACE} --selector app.kubernetes.io/name=sallyport-node-agent"))?;
        let pods = pods.as_ref().and_then(|pods| pods["items"].as_array()).context("list the agents")?;
        let current = pods.iter().filter(|pod| pod["spec"]["containers"][0]["image"] == image);
        Ok(pods.len() == cluster.gateways.len() && current.count() == pods.len())
    })?;
    cluster.kubectl(&format!("rollout status --namespace {NAMESPACE} daemonset/sallyport-node-agent --timeout 60s"))?;
    cluster.wait_until_ready("payments", "db1")?;

    let mut another = forward("another", APP1, DB1);
    another["spec"]["ports"][0] = serde_json::json!({ "name": "p", "port": PORT + 1, "targetPort": PORT });
    cluster.apply(&another)?;
    cluster.wait_until_ready("payments", "another")?;
    let doors: Vec<_> = cluster.gateways.iter().map(|gateway| socket(&gateway.ip, PORT + 1)).collect();
    for door in &doors {
        let answer = ask(&cluster.app1, Protocol::Tcp, *door)?;
        ensure!(answer.is_from("db1"), "{answer:?} at {door}, not db1");
    }
    cluster.kubectl("delete portforward another --namespace payments --timeout 60s")?;
    wait::until_true("the other forward being closed", SOON, || {
        for door in &doors {
            if ask(&cluster.app1, Protocol::Tcp, *door)?.is_from("db1") {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .map(drop)
}
