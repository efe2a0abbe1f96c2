//! Rules outlive the agent: it may stop, be killed and come back under load, and no connection is lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{SOON, Scene, scene};
use sallyport_e2e::faults::{figure, repetitions};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::wait;
use sallyport_e2e::watch::Watch;

/// How long a restarted agent is watched for changes that it should not make.
const WATCHED: Duration = Duration::from_millis(1500);

/// The longest that all deaths may take.
const LOAD: Duration = Duration::from_mins(3);

#[test]
fn nothing_is_lost_and_no_rule_changes_while_the_agent_dies_and_returns() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| dies_and_returns(scene, variant))?;
    }
    Ok(())
}

fn dies_and_returns(scene: &mut Scene, variant: Variant) -> Result<()> {
    let _db1 = scene.forward_to_db1()?;
    let gw1 = scene.article.gw1.clone();
    let rules = gw1.iptables_save(variant, Family::V4)?;
    let load = scene.load(LOAD)?;

    // Every transaction of nf_tables shows here, also one that puts back what was there.
    let watch = Watch::begin(&gw1)?;
    let kills = repetitions();
    for death in 0..=kills {
        if death == 0 {
            let status = scene.agent()?.terminate(SOON)?;
            ensure!(status.success(), "the agent ended with {status} on SIGTERM");
        } else {
            scene.agent()?.kill()?;
        }
        ensure!(gw1.iptables_save(variant, Family::V4)? == rules, "death {death} changed the rules");
        scene.start_agent()?;
        let agent = scene.agent()?;
        wait::holds_for("the restarted agent runs and changes nothing", WATCHED, || {
            Ok(watch.changes().is_empty() && agent.ended()?.is_none())
        })?;
        ensure!(gw1.iptables_save(variant, Family::V4)? == rules, "restart changed the rules");
    }
    let report = load.end()?;
    report.expect_no_loss().context("while the agent died and returned")?;
    figure(1, format_args!("{variant}: ended once and killed {kills} times: no write, {report}"));
    Ok(())
}

/// What an older version might have written for the same forwards: each chain of DNAT rules leads to one of its own.
fn older_format(rules: &str) -> (String, usize) {
    let nat = rules.split("*nat\n").nth(1).and_then(|rest| rest.split("COMMIT\n").next()).unwrap_or_default();
    let chain_of = |rule: &str| rule.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut chains: Vec<String> = nat.lines().filter(|rule| rule.contains("-j DNAT")).map(chain_of).collect();
    chains.dedup();
    let mut text = "*nat\n".to_owned();
    for (number, chain) in chains.iter().enumerate() {
        text += &format!(":SALLY-OLD-{number} - [0:0]\n:{chain} - [0:0]\n-A {chain} -j SALLY-OLD-{number}\n");
        let moved = nat.lines().filter(|rule| rule.starts_with(&format!("-A {chain} ")));
        text.extend(moved.map(|rule| rule.replacen(chain, &format!("SALLY-OLD-{number}"), 1) + "\n"));
    }
    (text + "COMMIT\n", chains.len())
}

#[test]
fn rules_in_the_format_of_another_version_are_swapped_and_nothing_is_lost() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let _db1 = scene.forward_to_db1()?;
            let gw1 = scene.article.gw1.clone();
            let rules = gw1.iptables_save(variant, Family::V4)?;
            let (older, chains) = older_format(&rules);
            ensure!(chains > 0, "there is no DNAT rule in:\n{rules}");
            let load = scene.load(LOAD)?;
            let upgrades = repetitions();
            for _ in 0..upgrades {
                scene.agent()?.kill()?;
                gw1.iptables_restore(variant, Family::V4, &older)?;
                ensure!(gw1.iptables_save(variant, Family::V4)? != rules, "the older format is the new one");
                scene.start_agent()?;
                wait::until_true("the rules being written anew", SOON, || {
                    Ok(gw1.iptables_save(variant, Family::V4)? == rules)
                })?;
            }
            let report = load.end()?;
            report.expect_no_loss().context("while formats changed")?;
            figure(2, format_args!("{variant}: {upgrades} times to the older format and back: {report}"));
            Ok(())
        })?;
    }
    Ok(())
}
