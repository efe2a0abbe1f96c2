//! Whatever an object holds, it harms no other and never becomes a rule: the schema refuses it, and what was written
//! before the schema knew better is refused by the operator, in words, and can be mended or taken away.

mod corpus;

use anyhow::{Context, Result, ensure};
use http::Method;
use sallyport_e2e::control_plane::scene::{AGENT, KINDS, PAYMENTS, SOON, SYSTEM, Scene, forward_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;
use serde_json::{Value, json};

const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/portforwards.sallyport.dev";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/sallyport-system/leases/sallyport-operator";
/// The port that every bad object asks for, where it asks for one.
const BAD_PORT: u16 = 3309;

#[test]
fn hostile_objects_are_refused_by_schema_and_operator_and_all_others_are_served() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307, 3308, BAD_PORT])?;
        scene.apply_ready(PAYMENTS, "before", &spec(3306))?;
        scene.apply_ready(PAYMENTS, "edited", &spec(3307))?;
        let (rules, agents) = (rules(scene)?, daemon_set(scene)?);

        let mut objects = objects(corpus::hostile())?;
        refused_by_the_schema(scene, &objects)?;
        let by_schema = objects.len();
        objects.extend(self::objects(corpus::for_the_operator_alone())?);
        with_loose_schema(scene, || {
            for (name, _, spec) in &objects {
                let code = create(scene, name, spec)?.0;
                ensure!(code == 201, "{name} gave {code} with a schema that takes anything: {spec}");
            }
            // What was in force stays when its object can no longer be understood.
            let mut edited = spec(3307);
            edited["ports"][0]["port"] = json!({ "number": 3307 });
            scene.apply(PAYMENTS, "edited", &edited)
        })?;
        refused_by_the_operator(scene, &objects)?;

        // The next operator never saw their good forms, or a looser schema.
        scene.operators[0].process().kill()?;
        scene.api.delete(LEASE)?;
        scene.start_operator("operator-b")?;
        scene.apply_ready(PAYMENTS, "after", &spec(3308))?;
        scene.apply_ready(PAYMENTS, &"a".repeat(253), &spec(3310))?;
        refused_by_the_operator(scene, &objects)?;
        for port in [3306, 3307, 3308] {
            scene.expect_answers(port)?;
        }
        let new: Vec<_> = self::rules(scene)?.into_iter().filter(|rule| !rules.contains(rule)).collect();
        ensure!(
            new.iter().all(|rule| rule.contains("port 3308 ") || rule.contains("port 3310 ")),
            "more rules than asked: {new:?}"
        );
        ensure!(daemon_set(scene)? == agents, "a PortForward reached the pods of the agents");

        let all = objects.len();
        figure(18, format_args!("{by_schema} refused by the schema, {all} that got past it by the operator; no rule"));
        they_can_be_mended_and_taken_away(scene, &objects)?;
        scene.expect_answers(3306)?;
        scene.expect_refusals(3307)
    })
}

/// Name, word of the refusal, and spec of every bad object.
fn objects(corpus: Vec<corpus::Hostile>) -> Result<Vec<(String, &'static str, Value)>> {
    let object = |(number, bad): (usize, corpus::Hostile)| {
        let mut spec = spec(BAD_PORT);
        let (above, field) = bad.pointer.rsplit_once('/').context("split a pointer")?;
        spec.pointer_mut(above).with_context(|| format!("find {above}"))?[field] = bad.value;
        let name = bad.pointer.trim_start_matches('/').replace('/', "-").to_lowercase();
        Ok((format!("{name}-{number}"), bad.word, spec))
    };
    corpus.into_iter().enumerate().map(object).collect()
}

/// Creates a forward; the code and the message of the answer.
fn create(scene: &Scene, name: &str, spec: &Value) -> Result<(u16, String)> {
    let object = json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "PortForward", "metadata": { "name": name }, "spec": spec,
    });
    let path = format!("{KINDS}/namespaces/{PAYMENTS}/portforwards");
    let answer = scene.api.send(&Method::POST, &path, "application/json", Some(&object))?;
    Ok((answer.code, answer.message().to_owned()))
}

fn refused_by_the_schema(scene: &Scene, objects: &[(String, &str, Value)]) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, word, spec) in objects {
        let (code, message) = create(scene, name, spec)?;
        // The API server names the field in its own way.
        let field = word.rsplit(['.', '[']).find(|part| part.starts_with(char::is_alphabetic)).unwrap_or(word);
        if !(matches!(code, 400 | 422) && message.contains("spec") && message.contains(field)) {
            wrong.push(format!("{code}, no {field:?} in {}: {}", beginning(&message), beginning(&spec.to_string())));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), objects.len(), wrong.join("\n"));
    for name in [&"a".repeat(254), "x\n-j", "x y", "-x", "$(x)", "ü"] {
        let (code, message) = create(scene, name, &spec(BAD_PORT))?;
        ensure!(code == 422 && message.contains("metadata.name"), "the name {name:?} gave {code}: {message}");
    }
    Ok(())
}

/// Each in the condition `Accepted`; of some objects the API server takes no write at all, and an Event has to do.
fn refused_by_the_operator(scene: &Scene, objects: &[(String, &str, Value)]) -> Result<()> {
    let mut waiting = Vec::new();
    wait::until_true("a refusal of every bad object", 4 * SOON, || {
        let all = scene.api.list(&format!("{KINDS}/namespaces/{PAYMENTS}/portforwards"))?;
        let events = scene.api.list(&format!("/apis/events.k8s.io/v1/namespaces/{PAYMENTS}/events"))?;
        waiting.clear();
        for (name, word, spec) in objects {
            let found = all.iter().find(|object| object["metadata"]["name"] == **name);
            let conditions = found.and_then(|object| object["status"]["conditions"].as_array()).into_iter().flatten();
            let conditions = conditions.filter(|one| one["type"] == "Accepted" && one["status"] == "False");
            let events =
                events.iter().filter(|event| event["regarding"]["name"] == **name && event["type"] == "Warning");
            let told: Vec<&str> = conditions
                .map(|condition| &condition["message"])
                .chain(events.map(|event| &event["note"]))
                .filter_map(Value::as_str)
                .collect();
            if !told.iter().any(|message| message.contains(word)) {
                waiting.push(format!("{name}: no {word:?} in {told:?}: {}", beginning(&spec.to_string())));
            }
            ensure!(!told.iter().any(|text| text.contains(['\n', '\r', '\0'])), "{name}: more than a line: {told:?}");
        }
        Ok(waiting.is_empty())
    })
    .with_context(|| waiting.join("\n"))
    .map(drop)
}

/// The beginning of what may be very long.
fn beginning(text: &str) -> String {
    text.chars().take(300).collect()
}

/// Under the real schema what is bad already may stay so, be mended, and go.
fn they_can_be_mended_and_taken_away(scene: &Scene, objects: &[(String, &str, Value)]) -> Result<()> {
    let (mended, ..) = &objects[0];
    let path = forward_path(PAYMENTS, mended);
    scene.api.merge(&path, &json!({ "metadata": { "labels": { "owner": "somebody" } } }))?;
    scene.apply_ready(PAYMENTS, mended, &spec(BAD_PORT))?;
    scene.expect_answers(BAD_PORT)?;
    let names = || objects.iter().map(|(name, ..)| name.as_str()).chain(["edited"]);
    for name in names() {
        scene.api.delete(&forward_path(PAYMENTS, name))?;
    }
    for name in names() {
        scene.wait_until_gone(&forward_path(PAYMENTS, name), SOON)?;
    }
    Ok(())
}

/// The rules of both gateways, without the counters of chains.
fn rules(scene: &Scene) -> Result<Vec<String>> {
    let all = scene.rules()?;
    Ok(all.iter().flat_map(|rules| rules.lines()).filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

/// What the agents' pods are made from.
fn daemon_set(scene: &Scene) -> Result<Value> {
    let path = format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/{AGENT}");
    let found = scene.api.get(&path)?.context("find the DaemonSet of the agents")?;
    Ok(json!([found["metadata"]["generation"], found["spec"]]))
}

/// Runs `write` while the API server takes anything for a spec, as an older version of the definition may have.
fn with_loose_schema(scene: &Scene, write: impl FnOnce() -> Result<()>) -> Result<()> {
    let strict = scene.api.get(CRD)?.context("find the definition")?["spec"]["versions"].take();
    let mut loose = strict.clone();
    let schema = &mut loose[0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"] = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let replace = |versions: &Value| scene.api.merge(CRD, &json!({ "spec": { "versions": versions } }));
    replace(&loose)?;
    let mut anything = spec(BAD_PORT);
    anything["ports"] = "anything".into();
    let taken = |name: &str| scene.apply(PAYMENTS, name, &anything).is_ok();
    // The new schema is in force a moment after it was written.
    wait::until_true("the loose schema", SOON, || Ok(taken("loose")))?;
    write()?;
    replace(&strict)?;
    wait::until_true("the strict schema", SOON, || Ok(!taken("strict")))?;
    scene.api.delete(&forward_path(PAYMENTS, "loose"))
}
