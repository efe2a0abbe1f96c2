//! One object that no program of ours understands harms no other, and says itself what is wrong.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::scene::{PAYMENTS, SOON, Scene, forward_path, scene, spec};
use serde_json::{Value, json};

const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/portforwards.sallyport.dev";

#[test]
fn object_of_a_looser_schema_is_named_and_all_others_are_served() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307, 3308])?;
        scene.apply_ready(PAYMENTS, "before", &spec(3306))?;
        scene.apply_ready(PAYMENTS, "edited", &spec(3307))?;
        with_loose_schema(scene, || {
            let mut wrong_type = spec(3309);
            wrong_type["ports"][0]["port"] = "mysql".into();
            let mut out_of_range = spec(3309);
            out_of_range["ports"][0]["port"] = 70_000.into();
            let mut no_address = spec(3309);
            no_address["targets"][0]["ip"] = "db1; -j ACCEPT".into();
            for (name, spec) in [("type", wrong_type), ("range", out_of_range), ("address", no_address)] {
                scene.apply(PAYMENTS, name, &spec)?;
            }
            // What was in force stays when its object can no longer be understood.
            let mut edited = spec(3307);
            edited["ports"][0]["port"] = json!({ "number": 3307 });
            scene.apply(PAYMENTS, "edited", &edited)
        })?;

        scene.apply_ready(PAYMENTS, "after", &spec(3308))?;
        for port in [3306, 3307, 3308] {
            scene.expect_answers(port)?;
        }
        for (name, named) in [("type", "port"), ("range", "port"), ("address", "ip")] {
            let path = forward_path(PAYMENTS, name);
            scene.wait_for(&path, "Accepted", "UnsupportedValue", SOON)?;
            let accepted = scene.condition(&path, "Accepted")?.context("find the condition")?;
            ensure!(accepted.message.contains(named), "{name} does not name its field: {}", accepted.message);
        }
        ensure!(scene.rules()?.iter().all(|rules| !rules.contains("3309")), "a malformed object became a rule");

        // The bad ones can be taken away like any other.
        for name in ["type", "range", "address", "edited"] {
            scene.api.delete(&forward_path(PAYMENTS, name))?;
        }
        for name in ["type", "range", "address", "edited"] {
            scene.wait_until_gone(&forward_path(PAYMENTS, name), SOON)?;
        }
        scene.expect_answers(3306)?;
        scene.expect_refusals(3307)
    })
}

/// Runs `write` while the API server takes anything for a spec, as an older version of the definition may have.
fn with_loose_schema(scene: &Scene, write: impl FnOnce() -> Result<()>) -> Result<()> {
    let strict = scene.api.get(CRD)?.context("find the definition")?["spec"]["versions"].take();
    let mut loose = strict.clone();
    let schema = &mut loose[0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"] = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let replace = |versions: &Value| scene.api.merge(CRD, &json!({ "spec": { "versions": versions } }));
    replace(&loose)?;
    let mut anything = spec(3309);
    anything["ports"] = "anything".into();
    // The new schema is in force a moment after it was written.
    sallyport_e2e::wait::until_true("the loose schema", SOON, || Ok(scene.apply(PAYMENTS, "type", &anything).is_ok()))?;
    write()?;
    replace(&strict)?;
    sallyport_e2e::wait::until_true("the strict schema", SOON, || {
        Ok(scene.apply(PAYMENTS, "probe", &anything).is_err())
    })
    .map(drop)
}
