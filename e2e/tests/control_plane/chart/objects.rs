//! The objects that the chart makes: how they run, what the pool is, what is told to whoever installs it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::program;
use serde_json::{Value, json};

use super::helm::{self, NAMESPACE, object};
use super::values::full_pool;

/// Arguments of the first container of an object's pods.
fn arguments(workload: &Value) -> Vec<&str> {
    let args = workload["spec"]["template"]["spec"]["containers"][0]["args"].as_array();
    args.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The file with the default pool, as the operator reads it.
fn pool(values: &Value) -> Result<String> {
    let objects = helm::objects(&helm::render(values)?)?;
    let map = object(&objects, "ConfigMap", "sallyport-default-pool")?;
    Ok(map["data"]["default-pool.yaml"].as_str().context("the ConfigMap has no pool")?.to_owned())
}

#[test]
fn lint_finds_nothing() -> Result<()> {
    let printed = helm::run(&["lint", "--strict", &helm::chart()?.to_string_lossy()])?;
    ensure!(printed.as_ref().is_ok_and(|text| !text.contains("[WARNING]")), "{printed:?}");
    Ok(())
}

#[test]
fn pods_of_the_operator_are_restricted() -> Result<()> {
    let objects = helm::objects(&helm::render(&json!({}))?)?;
    for (kind, name) in [("Deployment", "sallyport-operator"), ("Job", "sallyport-uninstall")] {
        let pod = &object(&objects, kind, name)?["spec"]["template"]["spec"];
        ensure!(
            pod["securityContext"]
                == json!({
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "seccompProfile": { "type": "RuntimeDefault" },
                }),
            "{name}: {}",
            pod["securityContext"]
        );
        for container in pod["containers"].as_array().context("a pod has containers")? {
            let context = &container["securityContext"];
            ensure!(
                *context
                    == json!({
                        "allowPrivilegeEscalation": false,
                        "capabilities": { "drop": ["ALL"] },
                        "readOnlyRootFilesystem": true,
                    }),
                "{name}: {context}"
            );
        }
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            ensure!(pod[field].is_null(), "{name} has {field}");
        }
        ensure!(pod["serviceAccountName"] == "sallyport-operator" && !pod.to_string().contains("hostPath"), "{name}");
    }
    Ok(())
}

#[test]
fn images_have_the_version_of_the_application_unless_a_tag_or_a_digest_is_given() -> Result<()> {
    let image = |tag: &str, digest: &str| json!({ "image": { "tag": tag, "digest": digest } });
    let [one, other] = ["1a", "2b"].map(|byte| format!("sha256:{}", byte.repeat(32)));
    let version = env!("CARGO_PKG_VERSION");
    for (values, operator, agent) in [
        (json!({}), format!(":{version}"), format!(":{version}")),
        (json!({ "operator": image("o", ""), "agent": image("a", "") }), ":o".to_owned(), ":a".to_owned()),
        (json!({ "operator": image("o", &one), "agent": image("", &other) }), format!("@{one}"), format!("@{other}")),
    ] {
        let objects = helm::objects(&helm::render(&values)?)?;
        let deployment = object(&objects, "Deployment", "sallyport-operator")?;
        for workload in [deployment, object(&objects, "Job", "sallyport-uninstall")?] {
            let image = &workload["spec"]["template"]["spec"]["containers"][0]["image"];
            ensure!(*image == format!("sallyport/operator{operator}"), "{image}");
        }
        let agent = format!("sallyport/node-agent{agent}");
        let told = format!("--agent-image={agent}");
        ensure!(arguments(deployment).contains(&told.as_str()), "no {told} in {:?}", arguments(deployment));
        // The image that the operator is told is the only one that it may run.
        let allowed = &pods_of_agents(&objects)?["containers"][0]["image"];
        ensure!(*allowed == agent, "{allowed}");
    }
    Ok(())
}

/// The pods that the policy allows the operator to run.
fn pods_of_agents(objects: &[Value]) -> Result<Value> {
    let policy = object(objects, "ValidatingAdmissionPolicy", "sallyport-operator-daemonsets")?;
    let variables = policy["spec"]["variables"].as_array().context("find the policy's variables")?;
    let wanted = variables.iter().find(|one| one["name"] == "wanted").context("find the wanted pods")?;
    let literal = wanted["expression"].as_str().context("read the wanted pods")?;
    // A CEL literal is JSON but for the types that it hides.
    let (mut json, mut quoted) = (String::new(), false);
    for c in literal.replace("dyn(", "").chars() {
        quoted ^= c == '"';
        if quoted || c != ')' {
            json.push(c);
        }
    }
    serde_json::from_str(&json).with_context(|| json)
}

#[test]
fn a_privileged_agent_is_asked_of_the_operator_and_let_through_by_its_policy() -> Result<()> {
    for privileged in [false, true] {
        let objects = helm::objects(&helm::render(&json!({ "agent": { "privileged": privileged } }))?)?;
        let asked = arguments(object(&objects, "Deployment", "sallyport-operator")?).contains(&"--agent-privileged");
        ensure!(asked == privileged, "agent.privileged={privileged}, and the operator is told {asked}");
        let context = &pods_of_agents(&objects)?["containers"][0]["securityContext"];
        ensure!((context["privileged"] == true) == privileged, "agent.privileged={privileged}: {context}");
    }
    Ok(())
}

#[test]
fn secrets_that_images_are_pulled_with_are_those_of_the_accounts() -> Result<()> {
    for secrets in [json!([]), json!([{ "name": "my-registry" }])] {
        let objects = helm::objects(&helm::render(&json!({ "imagePullSecrets": secrets }))?)?;
        for account in ["sallyport-operator", "sallyport-node-agent"] {
            let found = &object(&objects, "ServiceAccount", account)?["imagePullSecrets"];
            let none = secrets == json!([]) && found.is_null();
            ensure!(none || *found == secrets, "{account} has {found}");
        }
        // Pods get them from their account, so the operator may name none.
        let pods = pods_of_agents(&objects)?;
        ensure!(pods["imagePullSecrets"].is_null() && pods["serviceAccountName"] == "sallyport-node-agent", "{pods}");
    }
    Ok(())
}

#[test]
fn policies_deny_what_they_do_not_know_and_name_the_accounts_of_the_namespace() -> Result<()> {
    let objects = helm::objects(&helm::render(&json!({}))?)?;
    let mut policies = 0;
    for policy in objects.iter().filter(|object| object["kind"] == "ValidatingAdmissionPolicy") {
        let name = policy["metadata"]["name"].as_str().context("a policy has a name")?;
        ensure!(policy["spec"]["failurePolicy"] == "Fail", "{name} lets pass what it fails on");
        let account = if name == "sallyport-node-agent" { name } else { "sallyport-operator" };
        let condition = policy["spec"]["matchConditions"][0]["expression"].as_str().unwrap_or_default();
        let user = format!("request.userInfo.username == 'system:serviceaccount:{NAMESPACE}:{account}'");
        ensure!(condition == user, "{name}: {condition}");
        let binding = &object(&objects, "ValidatingAdmissionPolicyBinding", name)?["spec"];
        let wanted = json!({ "policyName": name, "validationActions": ["Deny", "Audit"] });
        ensure!(*binding == wanted, "{name}: {binding}");
        policies += 1;
    }
    ensure!(policies == 5, "{policies} policies");
    Ok(())
}

#[test]
fn everything_is_labelled_and_is_in_the_namespace_of_the_release() -> Result<()> {
    for object in helm::objects(&helm::render(&json!({}))?)? {
        let (kind, metadata) = (object["kind"].as_str().unwrap_or_default(), &object["metadata"]);
        if kind == "CustomResourceDefinition" {
            continue;
        }
        for (label, value) in [
            ("instance", "sallyport"),
            ("part-of", "sallyport"),
            ("managed-by", "Helm"),
            ("version", env!("CARGO_PKG_VERSION")),
        ] {
            let found = &metadata["labels"][format!("app.kubernetes.io/{label}")];
            ensure!(found == value, "{kind} {} has {label} {found}", metadata["name"]);
        }
        let cluster_scoped = kind.starts_with("Cluster") || kind.starts_with("ValidatingAdmissionPolicy");
        let in_default = metadata["name"] == "sallyport-operator-api-server";
        let namespace = if in_default { json!("default") } else { json!(NAMESPACE) };
        let namespace = if cluster_scoped { Value::Null } else { namespace };
        ensure!(metadata["namespace"] == namespace, "{kind} {} is in {}", metadata["name"], metadata["namespace"]);
    }
    Ok(())
}

#[test]
fn the_default_pool_holds_what_the_values_say_and_the_programs_understand_it() -> Result<()> {
    // Helm merges maps: what the chart selects by is taken out with null.
    let mut given = full_pool();
    given["nodeSelector"]["matchLabels"]["sallyport.dev/gateway"] = Value::Null;
    let full = pool(&json!({ "defaultPool": given }))?;
    let read: Value = serde_saphyr::from_str(&full).context("parse the pool")?;
    ensure!(
        read == json!({
            "apiVersion": "sallyport.dev/v1alpha1",
            "kind": "GatewayPool",
            "metadata": { "name": "default" },
            "spec": full_pool(),
        }),
        "{full}"
    );
    for manifest in [full, pool(&json!({}))?] {
        let folder = tempfile::tempdir().context("make a folder for the pool")?;
        fs::write(folder.path().join("pool.yaml"), &manifest).context("write the pool")?;
        let output = Command::new(program::node_agent()?)
            .args(["render", "--node-address", "10.30.1.78", "--manifests"])
            .arg(folder.path())
            .output()
            .context("run the node agent")?;
        ensure!(output.status.success(), "{}\n{manifest}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn another_pool_restarts_the_operator() -> Result<()> {
    let annotations = |values: Value| -> Result<Value> {
        let objects = helm::objects(&helm::render(&values)?)?;
        let deployment = object(&objects, "Deployment", "sallyport-operator")?;
        Ok(deployment["spec"]["template"]["metadata"]["annotations"].clone())
    };
    let same = annotations(json!({ "crds": { "keep": false } }))?;
    ensure!(annotations(json!({}))? == same, "the operator restarts for nothing");
    ensure!(
        annotations(json!({ "defaultPool": { "ipForward": "Require" } }))? != same,
        "the operator keeps the old pool"
    );
    Ok(())
}

#[test]
fn no_default_pool_leaves_no_trace() -> Result<()> {
    let manifests = helm::render(&json!({ "defaultPool": { "create": false } }))?;
    ensure!(!manifests.contains("default-pool"), "{manifests}");
    Ok(())
}

#[test]
fn uninstalling_runs_the_operator_before_anything_is_deleted() -> Result<()> {
    let objects = helm::objects(&helm::render(&json!({}))?)?;
    let job = object(&objects, "Job", "sallyport-uninstall")?;
    ensure!(job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete", "{}", job["metadata"]);
    let asked = ["uninstall", "--namespace=$(POD_NAMESPACE)", "--identity=$(POD_NAME)", "--timeout=240"];
    ensure!(arguments(job) == asked, "{job}");
    // The program gives up before Kubernetes ends its pod, log and all, and before Helm's five minutes are over.
    ensure!(job["spec"]["backoffLimit"] == 0, "{job}");
    let deadline = job["spec"]["activeDeadlineSeconds"].as_i64().context("the Job has no deadline")?;
    ensure!((255..300).contains(&deadline), "{deadline} s");
    let selector = &object(&objects, "Deployment", "sallyport-operator")?["spec"]["selector"]["matchLabels"];
    let (name, labels) = ("app.kubernetes.io/name", &job["spec"]["template"]["metadata"]["labels"]);
    ensure!(labels[name] != selector[name], "the Deployment, its budget and its Service take the Job's pod for theirs");
    Ok(())
}

#[test]
fn notes_say_what_is_missing() -> Result<()> {
    let plain = helm::notes(&json!({}))?;
    for told in [
        "kubectl label namespace sallyport-system pod-security.kubernetes.io/enforce=privileged",
        "Nothing is forwarded until a grant",
        "kubectl label node NODE sallyport.dev/gateway=\n",
        "kind: PortForward",
        "kubectl get pf -A",
        "PortForwards stay",
    ] {
        ensure!(plain.contains(told), "{told:?} is not in:\n{plain}");
    }
    let granted = helm::notes(&json!({ "defaultPool": full_pool() }))?;
    ensure!(!granted.contains("until a grant"), "{granted}");
    let none = helm::notes(&json!({ "defaultPool": { "create": false }, "crds": { "keep": false } }))?;
    ensure!(none.contains("There is no default pool") && none.contains("are deleted"), "{none}");
    Ok(())
}
