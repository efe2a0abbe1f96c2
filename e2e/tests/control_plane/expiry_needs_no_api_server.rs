//! A forward that expires is closed on every gateway on time, also while the API server is away; the object says so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use sallyport_e2e::article::{GW1, socket};
use sallyport_e2e::control_plane::scene::{PAYMENTS, SOON, Scene, forward_path, scene, spec};
use sallyport_e2e::traffic::{Protocol, hold};
use sallyport_e2e::wait;
use serde_json::{Value, json};

/// What the agents promise is about a second; the machine may be busy.
const ON_TIME: Duration = Duration::from_secs(3);

/// A whole second, so far from now.
fn moment(seconds: i64) -> Result<Timestamp> {
    Timestamp::from_second(Timestamp::now().as_second() + seconds).context("add seconds to now")
}

fn expiring(port: u16, end: Timestamp) -> Value {
    let mut spec = spec(port);
    spec["expiresAt"] = json!(end.to_string());
    spec
}

fn status(scene: &Scene, name: &str) -> Result<Value> {
    Ok(scene.api.get(&forward_path(PAYMENTS, name))?.context("find the forward")?["status"].take())
}

#[test]
fn expired_forward_is_closed_without_the_api_server_and_says_so_afterwards() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        scene.apply_ready(PAYMENTS, "lasting", &spec(3307))?;
        let lasting_hash = status(scene, "lasting")?["hash"].take();
        let end = moment(15)?;
        scene.apply_ready(PAYMENTS, "short", &expiring(3306, end))?;
        ensure!(status(scene, "short")?["expiresAt"] == json!(end.to_string()), "{}", status(scene, "short")?);
        let mut held = hold(&scene.app1, Protocol::Tcp, socket(GW1, 3306), None)?;
        let mut lasting = hold(&scene.app1, Protocol::Tcp, socket(GW1, 3307), None)?;
        scene.expect_answers(3306)?;

        scene.server.kill_api()?;
        wait::until_true("both gateways being closed", Duration::from_secs(40), || {
            Ok(scene.rules()?.iter().all(|rules| !rules.contains("--dport 3306")))
        })?;
        let late = Timestamp::now().duration_since(end);
        println!("closed {late:?} after it expired");
        ensure!(late >= SignedDuration::ZERO && late.unsigned_abs() < ON_TIME, "closed {late:?} after it expired");
        held.wait_until_cut(SOON)?;
        scene.expect_refusals(3306)?;
        scene.expect_answers(3307)?;

        scene.server.start_api()?;
        // The former leader has lost its lease by now, and nothing here restarts it as a kubelet would.
        scene.start_operator("operator-b")?;
        let path = forward_path(PAYMENTS, "short");
        scene.wait_for(&path, "Accepted", "Expired", Duration::from_secs(30))?;
        let accepted = scene.condition(&path, "Accepted")?.context("find Accepted")?;
        ensure!(accepted.message.contains(&format!("expired at {end}; set a later moment")), "{accepted:?}");
        // A later moment opens it again, by a new hash; the neighbour never noticed.
        scene.apply_ready(PAYMENTS, "short", &expiring(3306, moment(3600)?))?;
        scene.expect_answers(3306)?;
        ensure!(status(scene, "lasting")?["hash"] == lasting_hash, "the neighbour's hash changed");
        ensure!(lasting.is_alive()?, "the neighbour's connection was cut");

        // One that has passed is refused in words, not by the schema.
        let past = moment(-60)?;
        scene.apply(PAYMENTS, "past", &expiring(3308, past))?;
        let path = forward_path(PAYMENTS, "past");
        scene.wait_for(&path, "Ready", "Expired", SOON)?;
        ensure!(status(scene, "past")?["expiresAt"] == json!(past.to_string()), "{}", status(scene, "past")?);
        ensure!(scene.rules()?.iter().all(|rules| !rules.contains("--dport 3308")), "expired, and a rule");
        Ok(())
    })
}
