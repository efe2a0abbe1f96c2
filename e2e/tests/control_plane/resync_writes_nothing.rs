//! An operator that starts in a settled cluster finds nothing to write, and neither it nor the agents write while
//! nothing happens.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::control_plane::scene::{ORDERS, PAYMENTS, SOON, Scene, forward_path, scene, spec};
use sallyport_e2e::wait;
use serde_json::Value;

/// How long nothing may be written.
const QUIET: Duration = Duration::from_secs(8);

#[test]
fn settled_cluster_is_left_alone() -> Result<()> {
    scene(|scene| {
        for (name, port) in [("one", 3306), ("two", 3307), ("three", 3308)] {
            scene.apply_ready(PAYMENTS, name, &spec(port))?;
        }
        // Refused ones are settled too.
        scene.apply(ORDERS, "taken", &spec(3306))?;
        scene.wait_for(&forward_path(ORDERS, "taken"), "Accepted", "PortConflict", SOON)?;
        let mut settled = 0;
        wait::until_true("the last writes being over", SOON, || {
            let before = std::mem::replace(&mut settled, ours(scene)?.len());
            std::thread::sleep(Duration::from_secs(1));
            Ok(before == settled)
        })?;
        let rules = scene.rules()?;

        // Asked to end, it hands its Lease over.
        scene.operators[0].process().terminate(SOON)?;
        scene.operators.clear();
        scene.start_operator("operator-b")?;
        wait::until_true("the new operator leading", Duration::from_secs(40), || {
            let path = "/apis/coordination.k8s.io/v1/namespaces/sallyport-system/leases/sallyport-operator";
            Ok(scene.api.get(path)?.unwrap_or_default()["spec"]["holderIdentity"] == "operator-b")
        })?;
        wait::holds_for("nothing being written", QUIET, || {
            let (dry, new): (Vec<_>, Vec<_>) =
                ours(scene)?.split_off(settled).into_iter().partition(|line| line.contains("dryRun=All"));
            ensure!(new.is_empty(), "written in a settled cluster: {new:#?}");
            // The new leader has the DaemonSet compared.
            ensure!(dry.len() <= 1, "asked in a settled cluster: {dry:#?}");
            std::thread::sleep(Duration::from_millis(200));
            Ok(true)
        })?;
        ensure!(scene.rules()? == rules, "rules changed in a settled cluster");
        // It did look: the next change is made by it.
        scene.apply_ready(PAYMENTS, "four", &spec(3309)).map(drop)
    })
}

/// What our programs wrote, Leases aside, in short lines.
fn ours(scene: &Scene) -> Result<Vec<String>> {
    let ours = |write: &Value| {
        let user = write["user"]["username"].as_str().unwrap_or_default();
        user.starts_with("system:serviceaccount:sallyport-system:") && write["objectRef"]["resource"] != "leases"
    };
    let line = |write: &Value| format!("{} {} {}", write["user"]["username"], write["verb"], write["requestURI"]);
    Ok(scene.server.writes()?.iter().filter(|write| ours(write)).map(line).collect())
}
