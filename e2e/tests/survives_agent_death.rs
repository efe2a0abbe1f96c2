//! Rules outlive the agent: it may stop, be killed and come back under load, and no connection is lost.
#![expect(clippy::print_stdout, reason = "prints what it measured")]

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, RunningLoad, serve};
use sallyport_e2e::wait;
use sallyport_e2e::watch::Watch;

/// How long a restarted agent is watched for changes that it should not make.
const WATCHED: Duration = Duration::from_millis(1500);

#[test]
fn nothing_is_lost_and_no_rule_changes_while_the_agent_dies_and_returns() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| dies_and_returns(scene, variant))?;
    }
    Ok(())
}

fn dies_and_returns(scene: &mut Scene, variant: Variant) -> Result<()> {
    let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
    scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
    scene.start_agent()?;
    scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
    let gw1 = scene.article.gw1.clone();
    let rules = gw1.iptables_save(variant, Family::V4)?;
    let load = RunningLoad::start(&scene.article.app1, &[socket(GW1, 3306)], 50, 100, 9)?;

    // Every transaction of nf_tables shows here, also one that puts back what was there.
    let watch = Watch::begin(&gw1)?;
    for death in ["SIGTERM", "SIGKILL", "SIGKILL", "SIGKILL"] {
        if death == "SIGTERM" {
            let status = scene.agent()?.terminate(SOON)?;
            ensure!(status.success(), "the agent ended with {status} on SIGTERM");
        } else {
            scene.agent()?.kill()?;
        }
        ensure!(gw1.iptables_save(variant, Family::V4)? == rules, "{death} changed the rules");
        scene.start_agent()?;
        let agent = scene.agent()?;
        wait::holds_for("the restarted agent runs and changes nothing", WATCHED, || {
            Ok(watch.changes().is_empty() && agent.ended()?.is_none())
        })?;
        ensure!(gw1.iptables_save(variant, Family::V4)? == rules, "restart changed the rules");
    }
    let report = load.report()?;
    println!("{variant}: {report:?}");
    ensure!(report.lost() == 0, "connections were lost: {report:?}");
    ensure!(report.new > 500, "the load was too small to show anything: {report:?}");
    Ok(())
}
