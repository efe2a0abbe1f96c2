//! The agents' `DaemonSet` is what the chart's values say, also after somebody has changed it, under whatever field manager;
//! one who does so again and again is left alone and told of.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::scene::{AGENT, SOON, SYSTEM, Scene, scene};
use sallyport_e2e::wait;
use serde_json::{Value, json};

/// How long what is left alone must stay as it is.
const LEFT_ALONE: Duration = Duration::from_secs(5);

fn path() -> String {
    format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/{AGENT}")
}

fn agents(scene: &Scene) -> Result<Value> {
    scene.api.get(&path())?.context("find the DaemonSet of the agents")
}

#[test]
fn whatever_is_changed_is_put_back_and_who_goes_on_is_left_alone() -> Result<()> {
    scene(|scene| {
        let wanted = agents(scene)?;
        let annotations =
            json!({ "spec": { "template": { "metadata": { "annotations": { "example.com/mine": "1" } } } } });
        // Another manager's own fields stay through every server-side apply of the operator.
        let extra = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "spec": { "template": { "spec": {
                "initContainers": [{ "name": "mine", "image": "example.com/mine:1" }],
                "hostAliases": [{ "ip": "10.0.0.1", "hostnames": ["mine"] }],
            } } },
        });
        scene.api.apply(&path(), &extra)?;
        is_put_back(scene, &wanted)?;
        let gone = json!({ "spec": { "template": { "spec": { "nodeSelector": null, "hostPID": true } } } });
        scene.api.merge(&path(), &gone)?;
        is_put_back(scene, &wanted)?;
        told(scene, "DaemonSetRestored", "spec.template.spec.hostPID")?;
        scene.api.merge(&path(), &annotations)?;
        is_put_back(scene, &wanted)?;

        scene.api.merge(&path(), &annotations)?;
        told(scene, "DaemonSetContested", "spec.template.metadata.annotations")?;
        wait::holds_for("what is left alone staying so", LEFT_ALONE, || {
            std::thread::sleep(Duration::from_millis(200));
            Ok(agents(scene)?["spec"]["template"]["metadata"]["annotations"]["example.com/mine"] == "1")
        })
    })
}

#[test]
fn agents_are_run_as_the_values_of_the_chart_say() -> Result<()> {
    scene(|scene| {
        let deployment = format!("/apis/apps/v1/namespaces/{SYSTEM}/deployments/sallyport-operator");
        let other: &[&str] = &["agent.privileged=true", "agent.image.pullPolicy=Never", "logFormat=json"];
        for (name, values, privileged) in [("operator-b", other, true), ("operator-c", &[], false)] {
            scene.terminal.apply(&scene.terminal.chart_with(SYSTEM, values)?)?;
            let deployment = scene.api.get(&deployment)?.context("find the operator's Deployment")?;
            let told = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().cloned();
            let told = told.unwrap_or_default().into_iter().filter_map(|one| one.as_str().map(str::to_owned));
            let told: Vec<String> =
                told.filter(|one| one.starts_with("--agent-") && !one.starts_with("--agent-image=")).collect();
            // Asked to end, it hands its Lease over.
            scene.operators[0].process().terminate(SOON)?;
            scene.operators.clear();
            scene.start_operator_with(name, &told)?;
            // The policy lets through nothing but what the chart makes of these values.
            wait::until_true("the agents being run as the chart says", 3 * SOON, || {
                let agent = &agents(scene)?["spec"]["template"]["spec"]["containers"][0];
                let pulled = if privileged { "Never" } else { "IfNotPresent" };
                let is_privileged = agent["securityContext"]["privileged"] == true;
                Ok(is_privileged == privileged && agent["imagePullPolicy"] == pulled)
            })?;
        }
        Ok(())
    })
}

fn is_put_back(scene: &Scene, wanted: &Value) -> Result<()> {
    let mut found = Value::Null;
    wait::until_true("the DaemonSet being as it was", SOON, || {
        found = agents(scene)?;
        Ok(found["spec"] == wanted["spec"])
    })
    .with_context(|| format!("it is {}", found["spec"]))?;
    ensure!(found["metadata"]["uid"] == wanted["metadata"]["uid"], "it was made anew");
    Ok(())
}

/// Waits for an event about the `DaemonSet` with a reason and words.
fn told(scene: &Scene, reason: &str, words: &str) -> Result<()> {
    let list = format!("/apis/events.k8s.io/v1/namespaces/{SYSTEM}/events");
    let fits = |event: &Value| {
        event["reason"] == reason
            && event["regarding"]["kind"] == "DaemonSet"
            && event["note"].as_str().is_some_and(|note| note.contains(words))
    };
    wait::until_true(&format!("{reason} with {words}"), SOON, || Ok(scene.api.list(&list)?.iter().any(fits))).map(drop)
}
