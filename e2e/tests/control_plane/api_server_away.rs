//! Without an API server, dead or silent, the gateways go on: nothing is lost under load, drift is repaired, agents that
//! die or reboot meanwhile go on from their disks, and afterwards the status is right.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{GW1, socket};
use sallyport_e2e::control_plane::scene::{PAYMENTS, Scene, both, forward_path, node_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::lab::{Family, Host, Variant};
use sallyport_e2e::traffic::{Protocol, hold};
use sallyport_e2e::wait;

/// The longest that a repair, or an agent's start, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// How long the API server is away at least.
const AWAY: Duration = Duration::from_secs(10);

/// What of a processor an agent may need while it cannot reach anybody.
const IDLE_PERCENT: f64 = 5.0;

#[test]
fn gateways_go_on_without_the_api_server() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        let before = scene.rules()?;
        scene.apply_ready(PAYMENTS, "mysql", &both(3306))?;
        let rules = scene.rules()?;
        let mut held = hold(&scene.app1, Protocol::Tcp, socket(GW1, 3306), None)?;

        let silenced = scene.server.silence_api()?;
        away(scene, &rules, "silent")?;
        drop(silenced);
        scene.server.kill_api()?;
        away(scene, &rules, "killed")?;
        reboot(scene, &rules)?;
        without_a_disk(scene, &rules)?;
        flushed_and_repaired(&scene.gw2, &scene.rules()?[1])?;
        ensure!(held.is_alive()?, "the connection did not last");

        scene.server.start_api()?;
        // Its leader stepped down when it could not renew its lease.
        scene.start_operator("operator-b")?;
        scene.apply(PAYMENTS, "second", &spec(3307))?;
        let path = forward_path(PAYMENTS, "second");
        let took = scene.wait_for(&path, "Ready", "Ready", Duration::from_secs(40))?;
        figure(4, format_args!("the next forward was ready {} ms after the API server", took.as_millis()));
        scene.expect_answers(3307)?;
        scene.wait_for(&forward_path(PAYMENTS, "mysql"), "Ready", "Ready", Duration::from_secs(10))?;
        let drift = scene.api.get(&node_path("gw2"))?.unwrap_or_default()["status"]["lastDrift"].take();
        ensure!(drift["message"].is_string(), "the drift of meanwhile is not told: {drift}");
        cleaned_up(scene, &before)
    })
}

/// Under load an agent dies and goes on from its disk, another costs next to nothing, and afterwards drift is repaired.
fn away(scene: &Scene, rules: &[String], how: &str) -> Result<()> {
    let load = scene.load(3306)?;
    let gw2 = scene.kubelets.agent("gw2").context("find the agent on gw2")?;
    let (begun, used) = (Instant::now(), processor_time(gw2)?);
    let restarted = restarted(scene, "gw1", || scene.kubelets.kill("gw1"))?;
    wait::holds_for("the agent of gw2 going on", AWAY.saturating_sub(begun.elapsed()), || {
        Ok(scene.kubelets.agent("gw2") == Some(gw2))
    })?;
    let percent = (processor_time(gw2)? - used) / begun.elapsed().as_secs_f64() * 100.0;
    ensure!(percent < IDLE_PERCENT, "an agent without API server used {percent:.1} % of a processor");
    let report = load.end()?;
    report.expect_no_loss().with_context(|| format!("while the API server was {how}"))?;
    ensure!(scene.rules()? == rules, "rules changed without an API server");
    // By an agent that knows nothing but what was on its disk. A flush itself loses what arrives until the repair.
    let repaired = flushed_and_repaired(&scene.gw1, &rules[0])?;
    let repaired = repaired.as_millis();
    figure(4, format_args!("{how}: {report}, drift repaired in {repaired} ms, an agent at {percent:.1} % of a core"));
    figure(5, format_args!("{how}: in force {} ms after the restart", restarted.as_millis()));
    Ok(())
}

/// Somebody flushes our chains; they come back.
fn flushed_and_repaired(gateway: &Host, rules: &str) -> Result<Duration> {
    gateway.iptables(Variant::Nft, Family::V4, "-t nat -F SALLY-PRE")?;
    wait::until_true("the flushed chain being repaired", LIMIT, || {
        Ok(gateway.iptables_save(Variant::Nft, Family::V4)? == rules)
    })
}

/// Ends the agent of a node by `how`, and waits until the next one has looked at its kernel.
fn restarted(scene: &Scene, node: &str, how: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let index = usize::from(node == "gw2");
    let (before, started) = (scene.kubelets.agent(node), starts(scene, index));
    how()?;
    // A container that ended is started again after a second.
    wait::until_true("the next agent", LIMIT, || {
        Ok(scene.kubelets.agent(node).is_some_and(|pid| Some(pid) != before))
    })?;
    wait::until_true("the next agent having looked", LIMIT, || Ok(starts(scene, index) > started))
}

fn starts(scene: &Scene, index: usize) -> usize {
    scene.kubelets.nodes()[index].log().matches("cause=\"start\"").count()
}

/// A boot leaves no rule, no connection and no forwarding; there is only what is on the disk.
fn reboot(scene: &Scene, rules: &[String]) -> Result<()> {
    let gw2 = &scene.gw2;
    let took = restarted(scene, "gw2", || {
        scene.kubelets.kill("gw2")?;
        gw2.check(&["nft", "flush", "ruleset"])?;
        gw2.check(&["conntrack", "-F"])?;
        gw2.write_sysctl("net/ipv4/ip_forward", "0")
    })?;
    // Chains of others, though empty, do not come back by us.
    let ours =
        |saved: &str| saved.lines().filter(|line| line.contains("SALLY-")).map(str::to_owned).collect::<Vec<_>>();
    ensure!(ours(&scene.rules()?[1]) == ours(&rules[1]), "not all rules are back: {:?}", scene.rules()?[1]);
    scene.expect_answers(3306)?;
    figure(6, format_args!("without API server: {} ms after the agent's start", took.as_millis()));
    Ok(())
}

/// An agent that knows nothing and hears nothing touches nothing.
fn without_a_disk(scene: &Scene, rules: &[String]) -> Result<()> {
    let before = scene.kubelets.agent("gw1");
    scene.kubelets.kill("gw1")?;
    let lost = state_dir(scene, 0).join("intents.json");
    std::fs::remove_file(&lost).with_context(|| format!("lose {}", lost.display()))?;
    wait::until_true("the next agent", LIMIT, || {
        Ok(scene.kubelets.agent("gw1").is_some_and(|pid| Some(pid) != before))
    })?;
    wait::holds_for("an agent without a disk touching nothing", Duration::from_secs(2), || {
        Ok(scene.rules()?[0] == rules[0])
    })?;
    figure(5, "without its disk: no rule changed");
    Ok(())
}

/// `cleanup` needs no API server.
fn cleaned_up(scene: &mut Scene, before: &[String]) -> Result<()> {
    scene.server.kill_api()?;
    let agent = sallyport_e2e::program::node_agent()?.display().to_string();
    let state = state_dir(scene, 0).display().to_string();
    // The next agent comes after a second, and finds neither intents nor anybody to ask.
    scene.kubelets.kill("gw1")?;
    scene.gw1.check(&[&agent, "cleanup", "--state-dir", &state])?;
    ensure!(scene.rules()?[0] == before[0], "cleanup left something: {}", scene.rules()?[0]);
    wait::holds_for("nothing coming back", Duration::from_secs(2), || Ok(scene.rules()?[0] == before[0]))?;
    figure(23, "`cleanup` without API server: iptables-save as before");
    Ok(())
}

fn state_dir(scene: &Scene, node: usize) -> PathBuf {
    scene.kubelets.nodes()[node].disk().join("var/lib/sallyport")
}

/// Seconds of processor time that a process and the programs that it ran have used.
fn processor_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read a process's times")?;
    let fields = stat.rsplit_once(") ").context("find a process's times")?.1.split_whitespace();
    let ticks: f64 = fields.skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}
