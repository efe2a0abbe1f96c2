//! Whatever is removed first, rules stay until somebody takes them off, what waits says for what, and one documented
//! command releases it and leaves nothing on the nodes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::Stopped;
use sallyport_e2e::control_plane::scene::{KINDS, PAYMENTS, SOON, SYSTEM, Scene, both, forward_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::lab::Process;
use sallyport_e2e::wait;
use serde_json::{Value, json};

/// The longest that anything may take which waits for an agent's lease, or for the operator's, to run out.
const LEASES: Duration = Duration::from_mins(1);

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[test]
fn what_hangs_without_an_operator_is_released_by_one_command() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        let before = scene.rules()?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        // As long as there is an operator, a namespace goes with all that is in it.
        namespace_goes_with_its_forwards(scene)?;

        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        let rules = scene.rules()?;
        scene.operators.clear();
        let path = forward_path(PAYMENTS, "mysql");
        scene.api.delete(&path)?;
        wait::holds_for("the deletion hanging without an operator", Duration::from_secs(2), || {
            Ok(scene.api.get(&path)?.is_some() && scene.rules()? == rules)
        })?;

        // Nor can it be released before an agent that stands still has taken its rules off.
        let stopped = Stopped::stop(scene.kubelets.agent("gw2").context("find the agent on gw2")?)?;
        let mut uninstall = scene.uninstall(&[])?;
        uninstall.wait_for("gw2: its agent", LEASES)?;
        ensure!(scene.api.get(&path)?.is_some(), "the forward went before gw2 was clean");
        drop(stopped);
        finished(scene, &mut uninstall, &before)?;
        ensure!(scene.api.get(&path)?.is_none(), "the forward hangs still");
        figure(22, "`uninstall` names what it waits for and releases it; iptables-save as before");
        Ok(())
    })
}

#[test]
fn an_agent_that_never_answers_is_waited_for_until_it_is_given_up_and_its_node_named() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        let before = scene.rules()?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        let rules = scene.rules()?;
        let _stopped = Stopped::stop(scene.kubelets.agent("gw2").context("find the agent on gw2")?)?;
        scene.operators.clear();

        let mut uninstall = scene.uninstall(&[])?;
        uninstall.wait_for("gw2: its agent does not answer; look at its pod, or give up on it with --force", LEASES)?;
        ensure!(scene.rules()?[0] == before[0], "gw1 is not clean yet");
        ensure!(uninstall.ended()?.is_none(), "it did not wait");
        let status = uninstall.terminate(SOON)?;
        ensure!(!status.success(), "it ended as if it were done");

        let mut uninstall = scene.uninstall(&["--force"])?;
        let status = uninstall.wait(LEASES)?;
        ensure!(status.success(), "uninstall --force ended with {status}:\n{}", uninstall.output());
        let named = "gw2 keeps its rules: when it is back, run `sallyport-node-agent cleanup --state-dir";
        ensure!(uninstall.output().contains(named), "{}", uninstall.output());
        ensure!(scene.rules()? == [before[0].as_str(), rules[1].as_str()], "{:?}", scene.rules()?);
        nothing_is_left(scene)?;

        // When it is back.
        wait::until_true("the end of the agent on gw2", SOON, || Ok(scene.kubelets.agent("gw2").is_none()))?;
        let agent = sallyport_e2e::program::node_agent()?.display().to_string();
        let state = scene.kubelets.nodes()[1].disk().join("var/lib/sallyport").display().to_string();
        scene.gw2.check(&[&agent, "cleanup", "--state-dir", &state])?;
        ensure!(scene.rules()? == before, "rules are left: {:?}", scene.rules()?);
        figure(23, "`--force` gives a silent agent up and names its node; iptables-save as before after `cleanup`");
        Ok(())
    })
}

#[test]
fn definitions_or_the_namespace_deleted_first_take_no_rule_along() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        let before = scene.rules()?;
        scene.apply_ready(PAYMENTS, "mysql", &both(3306))?;
        let rules = scene.rules()?;

        let load = scene.load(3306)?;
        scene.operators.clear();
        scene.api.delete(&format!("/api/v1/namespaces/{SYSTEM}"))?;
        scene.wait_until_gone(&format!("/api/v1/namespaces/{SYSTEM}"), LEASES)?;
        ensure!(scene.rules()? == rules, "rules went with the namespace");
        let report = load.end()?;
        report.expect_no_loss().context("while the namespace went")?;
        figure(23, format_args!("namespace deleted first: {report}"));
        // An installation takes up what is there.
        scene.api.create("/api/v1/namespaces", &json!({ "metadata": { "name": SYSTEM } }))?;
        scene.terminal.apply(&scene.terminal.chart(SYSTEM)?)?;
        scene.start_operator("operator-b")?;
        wait::until_true("both agents being back", LEASES, || {
            Ok(scene.kubelets.agent("gw1").is_some() && scene.kubelets.agent("gw2").is_some())
        })?;
        scene.wait_for(&forward_path(PAYMENTS, "mysql"), "Ready", "Ready", LEASES)?;
        ensure!(scene.rules()? == rules, "the new installation changed rules");

        let load = scene.load(3306)?;
        let kinds = ["portforwards", "gatewaypools", "forwardslices", "gatewaynodes"];
        for kind in kinds {
            scene.api.delete(&format!("{DEFINITIONS}/{kind}.sallyport.dev"))?;
        }
        for kind in ["forwardslices", "gatewaynodes", "gatewaypools"] {
            scene.wait_until_gone(&format!("{DEFINITIONS}/{kind}.sallyport.dev"), SOON)?;
        }
        let mut told = false;
        wait::holds_for("the rules staying without definitions", Duration::from_secs(3), || {
            told |=
                std::fs::read_to_string(scene.operators[0].log()).is_ok_and(|log| log.contains("uninstall the chart"));
            Ok(scene.rules()? == rules)
        })?;
        ensure!(told, "the operator does not say what the deleted forwards wait for");
        let report = load.end()?;
        report.expect_no_loss().context("while the definitions were deleted")?;
        figure(25, format_args!("all definitions deleted: {report}"));

        // Agents are told by a GatewayNode to take the rules off: its definition has to be there for that.
        scene.terminal.apply(&scene.terminal.chart(SYSTEM)?)?;
        scene.operators.clear();
        let mut uninstall = scene.uninstall(&[])?;
        finished(scene, &mut uninstall, &before)?;
        scene.wait_until_gone(&format!("{DEFINITIONS}/portforwards.sallyport.dev"), SOON)?;
        figure(23, "definitions deleted first: released by `uninstall`; iptables-save as before");
        Ok(())
    })
}

fn namespace_goes_with_its_forwards(scene: &Scene) -> Result<()> {
    let path = format!("/api/v1/namespaces/{PAYMENTS}");
    scene.api.delete(&path)?;
    let took = scene.wait_until_gone(&path, LEASES)?;
    ensure!(scene.rules()?.iter().all(|rules| !rules.contains("--dport 3306")), "rules are left of a namespace");
    figure(23, format_args!("a user's namespace deleted: gone in {} ms with its rules", took.as_millis()));
    let namespace = json!({ "metadata": { "name": PAYMENTS, "labels": { "team": "payments" } } });
    scene.api.create("/api/v1/namespaces", &namespace).map(drop)
}

/// Waits until an uninstallation has ended well, and nothing of ours is anywhere.
fn finished(scene: &Scene, uninstall: &mut Process, before: &[String]) -> Result<()> {
    let status = uninstall.wait(LEASES)?;
    ensure!(status.success(), "uninstall ended with {status}:\n{}", uninstall.output());
    ensure!(scene.rules()? == before, "rules are left: {:?}", scene.rules()?);
    nothing_is_left(scene)
}

fn nothing_is_left(scene: &Scene) -> Result<()> {
    for path in ["forwardslices", "gatewaynodes"] {
        let left = scene.api.list(&format!("{KINDS}/{path}"))?;
        ensure!(left.is_empty(), "{path} are left: {left:?}");
    }
    let nodes = scene.api.list("/api/v1/nodes")?;
    let labelled = |node: &Value| node["metadata"]["labels"].get("sallyport.dev/agent").is_some();
    ensure!(!nodes.iter().any(labelled), "a node has our label still");
    let daemon_sets = scene.api.list(&format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets"))?;
    ensure!(daemon_sets.is_empty(), "the DaemonSet is left");
    Ok(())
}
