//! Permissions that vanish take no rule and no connection along; operator and agents say which they miss, and go on when
//! they are back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::scene::{
    AGENT, KINDS, OPERATOR, PAYMENTS, SOON, SYSTEM, Scene, both, forward_path, scene, spec,
};
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;

/// Watches last a minute, and are refused when they are made anew.
const WATCHES: Duration = Duration::from_secs(75);

/// A write that was refused again and again is tried every 30 s.
const LONGEST_WAIT: Duration = Duration::from_secs(45);

#[test]
fn rules_stay_without_permissions_and_what_is_missing_is_named() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307, 3308])?;
        scene.apply_ready(PAYMENTS, "mysql", &both(3306))?;
        let rules = scene.rules()?;
        let load = scene.load(3306)?;

        for account in [OPERATOR, AGENT] {
            scene.api.delete(&format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{account}"))?;
        }
        scene.apply(PAYMENTS, "meanwhile", &spec(3307))?;
        scene.kubelets.kill("gw1")?;
        wait::until_true("operator and agents naming what they miss", WATCHES, || {
            ensure!(scene.rules()? == rules, "rules changed without permissions");
            Ok(unnamed(scene)?.is_empty())
        })
        .with_context(|| format!("unnamed: {:?}", unnamed(scene)))?;
        ensure!(scene.api.list(&format!("{KINDS}/forwardslices"))?.len() == 1, "the slices went");

        scene.terminal.apply(&scene.terminal.chart(SYSTEM)?)?;
        scene.apply(PAYMENTS, "second", &spec(3308))?;
        let took = scene.wait_for(&forward_path(PAYMENTS, "second"), "Ready", "Ready", Duration::from_secs(30))?;
        scene.expect_answers(3308)?;
        let report = load.end()?;
        report.expect_no_loss().context("while permissions were gone")?;
        scene.wait_for(&forward_path(PAYMENTS, "meanwhile"), "Ready", "Ready", LONGEST_WAIT)?;
        scene.wait_for(&forward_path(PAYMENTS, "mysql"), "Ready", "Ready", SOON)?;
        scene.expect_answers(3307)?;
        figure(25, format_args!("permissions gone: {report}; followed {} ms after they were back", took.as_millis()));
        Ok(())
    })
}

/// What nobody has named yet: to the operator a write and a watch, to an agent that starts a list, to one that runs a watch.
fn unnamed(scene: &Scene) -> Result<Vec<String>> {
    let operator = std::fs::read_to_string(scene.operators[0].log()).context("read the operator's log")?;
    let [gw1, gw2] = [0, 1].map(|node| scene.kubelets.nodes()[node].log());
    let (follow, resource) = ("cannot follow the cluster; what was last known holds", "in API group \"sallyport.dev\"");
    let expected = [
        (&operator, "write failed; trying again", format!("cannot patch resource \"portforwards\" {resource}")),
        (&operator, "cannot watch; what is known", format!("cannot watch resource \"portforwards\" {resource}")),
        (&gw1, follow, format!("cannot list resource \"gatewaynodes\" {resource}")),
        (&gw2, follow, format!("cannot watch resource \"forwardslices\" {resource}")),
    ];
    let missing = expected.into_iter().filter(|(log, what, words)| {
        !log.lines().any(|line| line.contains(what) && line.replace('\\', "").contains(words))
    });
    Ok(missing.map(|(_, what, words)| format!("{what}: {words}")).collect())
}
