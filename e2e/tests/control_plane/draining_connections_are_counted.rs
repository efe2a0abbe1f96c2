//! How many connections are left to a target on its way out is in the forward's status, until the last has ended.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{GW1, socket};
use sallyport_e2e::control_plane::scene::{GW2, PAYMENTS, SOON, Scene, forward_path, node_path, scene, spec};
use sallyport_e2e::traffic::{Protocol, hold};
use sallyport_e2e::wait;
use serde_json::{Value, json};

/// They are counted every five seconds.
const COUNTED: Duration = Duration::from_secs(20);

fn wait_for_count(scene: &Scene, count: &Value, limit: Duration) -> Result<()> {
    let path = forward_path(PAYMENTS, "mysql");
    let what = format!("{count} connections left in the status");
    wait::until_true(&what, limit, || {
        let object = scene.api.get(&path)?.context("find the forward")?;
        Ok(object["status"]["targets"]["draining"] == *count)
    })
    .map(drop)
}

#[test]
fn connections_to_a_target_on_its_way_out_are_counted_over_all_gateways() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        let through = |gateway| hold(&scene.app1, Protocol::Tcp, socket(gateway, 3306), None);
        let (mut first, second, third) = (through(GW1)?, through(GW1)?, through(GW2)?);
        wait_for_count(scene, &Value::Null, SOON)?;

        let mut leaving = spec(3306);
        leaving["targets"][0]["weight"] = 0.into();
        scene.apply_ready(PAYMENTS, "mysql", &leaving)?;
        wait_for_count(scene, &json!(3), SOON)?;
        drop((second, third));
        wait_for_count(scene, &json!(1), COUNTED)?;
        let node = scene.api.get(&node_path("gw1"))?.context("find gw1")?;
        ensure!(node["status"]["draining"][0]["connections"] == 1, "{}", node["status"]);
        ensure!(first.is_alive()?, "a connection to a target of weight 0 was cut");
        drop(first);
        wait_for_count(scene, &Value::Null, COUNTED)
    })
}
