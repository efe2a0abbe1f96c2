//! Whatever a user writes wrongly is refused in words that say what to do, at once where one object shows it, else on
//! the object; and it never becomes a rule.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{DB1, GW1};
use sallyport_e2e::control_plane::scene::{KINDS, ORDERS, PAYMENTS, SOON, STRANGERS, Scene, forward_path, scene, spec};
use sallyport_e2e::faults::figure;
use serde_json::{Value, json};

#[test]
fn every_refusal_says_what_to_do_and_makes_no_rule() -> Result<()> {
    scene(|scene| {
        let rules = scene.rules()?;
        refused_when_applied(scene)?;
        refused_on_the_object(scene)?;
        quota(scene)?;
        largest(scene)?;
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
        ("/targets/0/ip", json!("127.0.0.1"), "127.0.0.1 is a loopback address; a target must be another host's own"),
        ("/targets/0/ip", json!("169.254.169.254"), "is a link-local address (cloud metadata lives there)"),
        ("/targets/0/ip", json!("100.100.100.200"), "100.100.100.200 is a cloud metadata service"),
        ("/targets/0/ip", json!("168.63.129.16"), "168.63.129.16 is a cloud metadata service"),
        ("/targets/0/ip", json!("192.0.0.192"), "192.0.0.192 is a cloud metadata service"),
        ("/targets/0/ip", json!("fd00:ec2::254"), "fd00:ec2::254 is a cloud metadata service"),
        ("/targets/0/ip", json!("fd20:ce::254"), "fd20:ce::254 is a cloud metadata service"),
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

/// As much of everything as the schema takes is carried like any other forward; more is refused.
fn largest(scene: &Scene) -> Result<()> {
    let _db1 = scene.serve(&[8000, 8031])?;
    let names = |count: usize| (0..count).map(|number| format!("n{number}"));
    let blocks = |count: usize, first: u8| -> Vec<Value> {
        (0..count).map(|number| json!({ "cidr": format!("10.{first}.{number}.0/24") })).collect()
    };
    let of_size = |ports: usize, targets: usize, allow: usize, deny: usize| {
        let mut spec = spec(8000);
        spec["ports"] = names(ports).zip(8000..).map(|(name, port)| json!({ "name": name, "port": port })).collect();
        // Only db1 gets connections.
        let others = names(targets - 1).enumerate();
        let others =
            others.map(|(number, name)| json!({ "name": name, "ip": format!("10.97.0.{number}"), "weight": 0 }));
        spec["targets"] = others.chain([json!({ "name": "db1", "ip": DB1 })]).collect();
        spec["sources"]["allow"] =
            blocks(allow - 1, 98).into_iter().chain([json!({ "cidr": "10.30.1.0/24" })]).collect();
        spec["sources"]["deny"] = blocks(deny, 99).into();
        spec
    };
    let name = "long".repeat(63);
    let took = scene.apply_ready(PAYMENTS, &name, &of_size(32, 32, 64, 64))?;
    scene.expect_answers(8000)?;
    scene.expect_answers(8031)?;
    let slices = scene.api.list(&format!("{KINDS}/forwardslices"))?;
    let bytes = slices.iter().map(|slice| slice.to_string().len()).max().unwrap_or_default();
    ensure!(bytes < 256 * 1024, "a slice has {bytes} bytes");
    for (spec, field) in [
        (of_size(32, 33, 1, 0), "ports times targets would make 1056 rules"),
        (of_size(33, 1, 1, 0), "spec.ports"),
        (of_size(1, 65, 1, 0), "spec.targets"),
        (of_size(1, 1, 65, 0), "spec.sources.allow"),
        (of_size(1, 1, 1, 65), "spec.sources.deny"),
    ] {
        let outcome = scene.terminal.try_apply(&manifest(&spec).to_string())?;
        ensure!(!outcome.success() && outcome.stderr.contains(field), "{field}: {}", outcome.stderr);
        ensure!(
            outcome.stderr.contains("at most") || outcome.stderr.contains("Too many"),
            "{field}: {}",
            outcome.stderr
        );
    }
    let took = took.as_millis();
    figure(
        17,
        format_args!("32 ports × 32 targets × 128 sources: Ready in {took} ms, a slice of {} KiB", bytes / 1024),
    );
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
