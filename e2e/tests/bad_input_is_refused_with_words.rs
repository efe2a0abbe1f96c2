//! Whatever a user writes wrongly is refused in words that say what to do, at once where one object shows it, else on
//! the object; and it never becomes a rule.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::GW1;
use sallyport_e2e::control_plane::scene::{ORDERS, PAYMENTS, SOON, STRANGERS, Scene, forward_path, scene, spec};
use serde_json::{Value, json};

#[test]
fn every_refusal_says_what_to_do_and_makes_no_rule() -> Result<()> {
    scene(|scene| {
        let rules = scene.rules()?;
        refused_when_applied(scene)?;
        refused_on_the_object(scene)?;
        quota(scene)?;
        ensure!(
            scene.rules()?.iter().all(|rules| !rules.contains("--dport 33")),
            "{:?} after {rules:?}",
            scene.rules()?
        );
        Ok(())
    })
}

/// What the schema and its rules refuse, and words of the answer.
fn refused_when_applied(scene: &Scene) -> Result<()> {
    let table = [
        ("/ports/0/port", json!(0), "spec.ports[0].port"),
        ("/ports/0/port", json!(65_536), "65535"),
        ("/ports/0/port", json!("mysql"), "integer"),
        ("/ports/0/protocol", json!("SCTP"), "supported values"),
        ("/ports/0/endPort", json!(3000), "endPort 3000 must not be below port 3306"),
        ("/ports", json!([]), "spec.ports"),
        ("/sources/allow", json!([]), "spec.sources.allow"),
        ("/sources/allow/0/cidr", json!("10.30.1.80"), "a single host is written 10.30.1.80/32"),
        ("/targets/0/ip", json!("db1.example.com"), "must be one IP address such as"),
        ("/targets/0/ip", json!("127.0.0.1"), "must be another host's own address"),
        ("/targets/0/ip", json!("169.254.169.254"), "must be another host's own address"),
        ("/targets/0/ip", json!("10.30.1.79; reboot"), "must be one IP address such as"),
        ("/targets/0/ip", json!("fd00::79"), "no IPv6 block"),
        ("/targets/0/weight", json!(1001), "1000"),
        ("/pool", json!("No Pool!"), "spec.pool"),
    ];
    for (pointer, value, words) in table {
        let manifest = edited(pointer, &value)?;
        let outcome = scene.terminal.try_apply(&manifest.to_string())?;
        ensure!(!outcome.success(), "{pointer} = {value} was accepted");
        ensure!(outcome.stderr.contains(words), "{pointer} = {value}: no {words:?} in {}", outcome.stderr);
    }
    let mut unknown = manifest(&spec(3306));
    unknown["spec"]["port"] = 3306.into();
    let outcome = scene.terminal.try_apply(&unknown.to_string())?;
    ensure!(!outcome.success() && outcome.stderr.contains(r#"unknown field "spec.port""#), "{}", outcome.stderr);
    Ok(())
}

/// What takes another object to refuse: the reason on the forward, and words of the message.
fn refused_on_the_object(scene: &Scene) -> Result<()> {
    let with = |pointer: &str, value: Value| {
        let mut spec = spec(3306);
        *spec.pointer_mut(pointer).context("find a field")? = value;
        anyhow::Ok(spec)
    };
    let api_server = scene.server.address().to_string();
    let table = [
        ("no-grant", STRANGERS, spec(3306), "NotGranted", STRANGERS),
        ("port", ORDERS, spec(3311), "NotGranted", "3311"),
        ("target", ORDERS, with("/targets/0/ip", json!("10.99.0.1"))?, "NotGranted", "10.99.0.1"),
        ("source", ORDERS, with("/sources/allow/0/cidr", json!("0.0.0.0/0"))?, "NotGranted", "0.0.0.0/0"),
        ("no-pool", PAYMENTS, with("/pool", json!("absent"))?, "PoolNotFound", "absent"),
        ("ssh", PAYMENTS, spec(22), "ReservedPort", "22"),
        ("kubelet", PAYMENTS, spec(10_250), "ReservedPort", "10248-10260/TCP is kept"),
        ("gateway", PAYMENTS, with("/targets/0/ip", json!(GW1))?, "InvalidTarget", GW1),
        ("api-server", PAYMENTS, with("/targets/0/ip", json!(api_server))?, "InvalidTarget", &api_server),
        ("service", PAYMENTS, with("/targets/0/ip", json!("10.96.0.10"))?, "InvalidTarget", "10.96.0.10"),
    ];
    for (name, namespace, spec, ..) in &table {
        scene.apply(namespace, name, spec)?;
    }
    for (name, namespace, _, reason, words) in table {
        let path = forward_path(namespace, name);
        scene.wait_for(&path, "Accepted", reason, SOON)?;
        let [accepted, ready] = ["Accepted", "Ready"].map(|kind| scene.condition(&path, kind));
        let (accepted, ready) = (accepted?.context("find Accepted")?, ready?.context("find Ready")?);
        ensure!(accepted.message.contains(words), "{name}: no {words:?} in {}", accepted.message);
        ensure!(ready.status != "True" && ready.reason == reason, "{name}: Ready is {ready:?}");
        scene.api.delete(&path)?;
        scene.wait_until_gone(&path, SOON)?;
    }
    Ok(())
}

/// The third forward of a namespace that may have two.
fn quota(scene: &Scene) -> Result<()> {
    for (name, port) in [("one", 3306), ("two", 3307)] {
        scene.apply_ready(ORDERS, name, &spec(port))?;
    }
    scene.apply(ORDERS, "three", &spec(3308))?;
    let path = forward_path(ORDERS, "three");
    scene.wait_for(&path, "Accepted", "QuotaExceeded", SOON)?;
    ensure!(scene.rules()?.iter().all(|rules| !rules.contains("--dport 3308")), "over the quota and a rule");
    // Room for it is made by deleting another.
    scene.api.delete(&forward_path(ORDERS, "one"))?;
    scene.wait_for(&path, "Ready", "Ready", SOON)?;
    for name in ["two", "three"] {
        scene.api.delete(&forward_path(ORDERS, name))?;
        scene.wait_until_gone(&forward_path(ORDERS, name), SOON)?;
    }
    Ok(())
}

fn manifest(spec: &Value) -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": "PortForward",
        "metadata": { "name": "wrong", "namespace": PAYMENTS },
        "spec": spec,
    })
}

/// A good manifest with one field of its spec changed.
fn edited(pointer: &str, value: &Value) -> Result<Value> {
    let mut spec = spec(3306);
    let (above, field) = pointer.rsplit_once('/').context("split a pointer")?;
    spec.pointer_mut(above).context("find a field")?[field] = value.clone();
    Ok(manifest(&spec))
}
