//! What follows a cluster follows it too when its history is not what it was: restored to an older snapshot, forgotten
//! while nobody listened, or told to a connection that is dead.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::Stopped;
use sallyport_e2e::control_plane::scene::{PAYMENTS, SOON, Scene, both, forward_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::lab::Host;
use sallyport_e2e::wait;

/// An agent renews its lease every 10 s, and so learns that the cluster went back.
const NOTICED: Duration = Duration::from_secs(30);

/// The longest that a new leader may take.
const TAKE_OVER: Duration = Duration::from_mins(1);

/// A watch lasts for 60 s, and 10 s more are waited for its end; then it is made anew.
const DEAD_WATCH: Duration = Duration::from_secs(90);

/// Changes that the cluster forgets, or that an agent does not see.
const CHANGES: u16 = 40;

#[test]
fn rules_follow_a_cluster_that_was_restored_to_an_older_state() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307, 3308])?;
        scene.apply_ready(PAYMENTS, "kept", &both(3306))?;
        scene.server.take_snapshot()?;
        scene.apply_ready(PAYMENTS, "forgotten", &spec(3307))?;
        for change in 0..CHANGES {
            let mut spec = spec(3307);
            spec["sources"]["deny"] = serde_json::json!([{ "cidr": format!("10.99.{change}.0/24") }]);
            scene.apply(PAYMENTS, "forgotten", &spec)?;
        }
        scene.wait_for(&forward_path(PAYMENTS, "forgotten"), "Ready", "Ready", SOON)?;
        let agents = ["gw1", "gw2"].map(|node| scene.kubelets.agent(node));
        let load = scene.load(3306)?;

        scene.server.restore_snapshot()?;
        let back = Instant::now();
        wait::until_true("the leader of the former history stepping down", NOTICED, || {
            Ok(scene.operators[0].process().ended()?.is_some())
        })?;
        scene.start_operator("operator-b")?;
        wait::until_true("the rules of what was never asked for going", NOTICED * 2, || {
            Ok(scene.rules()?.iter().all(|rules| !rules.contains("3307")))
        })?;
        let followed = back.elapsed().as_millis();
        scene.wait_for(&forward_path(PAYMENTS, "kept"), "Ready", "Ready", SOON)?;
        scene.expect_answers(3306)?;
        scene.expect_refusals(3307)?;
        scene.apply(PAYMENTS, "new", &spec(3308))?;
        scene.wait_for(&forward_path(PAYMENTS, "new"), "Ready", "Ready", TAKE_OVER)?;
        scene.expect_answers(3308)?;
        ensure!(agents == ["gw1", "gw2"].map(|node| scene.kubelets.agent(node)), "an agent was restarted");
        let report = load.end()?;
        report.expect_no_loss().context("through what the snapshot holds too")?;
        figure(13, format_args!("followed {followed} ms after the API server was back, {report}"));
        Ok(())
    })
}

#[test]
fn agent_that_stood_still_while_history_was_forgotten_lists_anew() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307, 3308])?;
        scene.apply_ready(PAYMENTS, "goes", &spec(3306))?;
        scene.apply_ready(PAYMENTS, "stays", &spec(3307))?;
        let agent = scene.kubelets.agent("gw2").context("find the agent on gw2")?;
        let stopped = Stopped::stop(agent)?;
        let asked = Instant::now();
        for change in 0..CHANGES {
            let mut spec = spec(3307);
            spec["sources"]["deny"] = serde_json::json!([{ "cidr": format!("10.99.{change}.0/24") }]);
            scene.apply(PAYMENTS, "stays", &spec)?;
        }
        scene.api.delete(&forward_path(PAYMENTS, "goes"))?;
        // A new API server knows nothing of what was before it: a watch from before is too old.
        scene.server.kill_api()?;
        scene.server.start_api()?;
        scene.apply(PAYMENTS, "comes", &spec(3308))?;
        // The leader may have lost its lease meanwhile.
        scene.start_operator("operator-b")?;
        // What gw2 carries is not known to a new leader, so whoever is new waits for it too.
        wait::until_true("gw1 following", TAKE_OVER, || Ok(!scene.rules()?[0].contains("--dport 3306")))?;
        let (path, before) = (forward_path(PAYMENTS, "goes"), scene.rules()?);
        ensure!(scene.api.get(&path)?.is_some(), "the forward went before gw2 was rid of it");
        ensure!(before[1].contains("--dport 3306"), "gw2 changed rules while it stood still");

        drop(stopped);
        let went_on = Instant::now();
        scene.wait_until_gone(&path, NOTICED)?;
        scene.wait_for(&forward_path(PAYMENTS, "comes"), "Ready", "Ready", NOTICED)?;
        let took = went_on.elapsed();
        ensure!(scene.kubelets.agent("gw2") == Some(agent), "the agent was restarted");
        scene.expect_answers(3307)?;
        scene.expect_answers(3308)?;
        scene.expect_refusals(3306)?;
        let still = went_on.duration_since(asked).as_secs();
        for (row, what) in [(14, "its watch too old"), (30, "nothing old written")] {
            figure(row, format_args!("still for {still} s: in step {} ms after going on, {what}", took.as_millis()));
        }
        Ok(())
    })
}

#[test]
fn dead_connection_is_noticed_by_agent_and_operator() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        scene.apply_ready(PAYMENTS, "before", &spec(3306))?;
        let agent = scene.kubelets.agent("gw1").context("find the agent on gw1")?;
        for host in [&scene.gw1, scene.server.host()] {
            bury_connections(scene, host)?;
        }
        let buried = Instant::now();
        scene.apply(PAYMENTS, "after", &spec(3307))?;
        // A leader that cannot renew its lease ends, and is started again.
        let mut stepped_down = None;
        wait::until_true("gw1 carrying what was asked for after that", DEAD_WATCH, || {
            if stepped_down.is_none() && scene.operators[0].process().ended()?.is_some() {
                stepped_down = Some(buried.elapsed().as_secs());
                scene.start_operator("operator-b")?;
            }
            Ok(scene.rules()?[0].contains("3307"))
        })?;
        let took = buried.elapsed();
        scene.wait_for(&forward_path(PAYMENTS, "after"), "Ready", "Ready", SOON)?;
        scene.expect_answers(3306)?;
        scene.expect_answers(3307)?;
        ensure!(scene.kubelets.agent("gw1") == Some(agent), "the agent was restarted");
        let leader = stepped_down
            .map_or_else(|| "the leader went on".to_owned(), |after| format!("a new leader after {after} s"));
        figure(14, format_args!("all connections dead: {leader}, the agent followed after {} s", took.as_secs()));
        Ok(())
    })
}

/// From now on nothing passes on the connections that `host` has to the API server, and nobody is told; new ones work.
fn bury_connections(scene: &Scene, host: &Host) -> Result<()> {
    let server = scene.server.address();
    let listed = host.check(&["ss", "-Htn", "state", "established", "dst", &format!("{server}:6443")])?;
    let ports: Vec<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().nth(2)?.rsplit(':').next()).collect();
    ensure!(!ports.is_empty(), "{} has no connection to the API server:\n{listed}", host.name());
    let mut text = "*raw\n".to_owned();
    for port in ports {
        text += &format!("-A PREROUTING -d {server}/32 -p tcp -m tcp --sport {port} --dport 6443 -j DROP\n");
        text += &format!("-A OUTPUT -s {server}/32 -p tcp -m tcp --sport 6443 --dport {port} -j DROP\n");
    }
    scene
        .server
        .host()
        .check_with_input(&["iptables-nft-restore", "--noflush"], (text + "COMMIT\n").as_bytes())
        .map(drop)
}
