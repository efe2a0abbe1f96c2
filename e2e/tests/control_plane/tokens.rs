//! What a stolen token is worth: an agent's can write about its own node, the operator's can write the agents' one
//! `DaemonSet` and one label of Nodes, and neither can do anything else. Real tokens ask a real API server.

mod agent;
mod fields;
mod operator;
mod request;
mod table;

use anyhow::{Context, Result, ensure};
use http::Method;
use sallyport_e2e::control_plane::scene::{AGENT, OPERATOR, PAYMENTS, SOON, SYSTEM, Scene, scene, spec};
use sallyport_e2e::control_plane::{Api, kubelet};
use sallyport_e2e::wait;
use serde_json::json;

use request::Request;

/// What nobody may read who was not given it.
const SECRETS: &str = "/api/v1/secrets";

#[test]
fn tokens_reach_no_further_than_their_work() -> Result<()> {
    scene(|scene| {
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        let connect = |name: &str, token: &str| Api::new(&scene.server.kubeconfig(name, token)?);
        let unbound = |account: &str| connect(account, &kubelet::request_token(&scene.api, SYSTEM, account, None)?);
        let agent = connect("gw1", &scene.kubelets.token("gw1").context("find the agent on gw1")?)?;
        let (operator, homeless) = (unbound(OPERATOR)?, unbound(AGENT)?);
        let account = json!({ "metadata": { "name": "nobody" } });
        scene.api.create(&format!("/api/v1/namespaces/{PAYMENTS}/serviceaccounts"), &account)?;
        let powerless = connect("nobody", &kubelet::request_token(&scene.api, PAYMENTS, "nobody", None)?)?;

        // Policies are seen by the API server a moment after they were made.
        let early = agent::of_another_node();
        wait::until_true("the policies being in force", SOON, || Ok(early.send(&homeless)?.code == 403))?;
        agent::does_its_work(&agent)?;
        for (account, api) in [(AGENT, &agent), (OPERATOR, &operator)] {
            let asked = table::everything_else_is_refused(account, api, &powerless)?;
            println!("{account}: {asked} requests outside of its permissions, all refused");
        }
        let changes = fields::none_can_be_changed(&scene.api, &operator, &operator::agents())?;
        println!("{OPERATOR}: {changes} changes of the agents' DaemonSet, all refused");
        let confined =
            [(&agent, agent::beyond()), (&homeless, agent::homeless()), (&operator, operator::beyond(scene)?)];
        for (api, requests) in &confined {
            all(requests, |request| request.is_refused(api))?;
        }

        // Even with every permission that RBAC has, the policies hold.
        give_everything(scene, &agent, &operator)?;
        for (api, requests) in &confined {
            all(requests, |request| request.is_refused_with_words(api))?;
        }
        all(&operator::work(scene)?, |request| request.is_accepted(&operator))
    })
}

/// Fails with everything that is not as it must be.
fn all(requests: &[Request], must: impl Fn(&Request) -> Result<()>) -> Result<()> {
    let wrong: Vec<String> = requests.iter().filter_map(|request| must(request).err()).map(|e| e.to_string()).collect();
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), requests.len(), wrong.join("\n"));
    Ok(())
}

/// Binds the accounts of both programs to the role that may do everything.
fn give_everything(scene: &Scene, agent: &Api, operator: &Api) -> Result<()> {
    ensure!(Request::new(Method::GET, SECRETS).send(agent)?.code == 403, "an agent may read Secrets");
    let account = |name: &str| json!({ "kind": "ServiceAccount", "name": name, "namespace": SYSTEM });
    let binding = json!({
        "metadata": { "name": "everything" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [account(AGENT), account(OPERATOR)],
    });
    scene.api.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding)?;
    wait::until_true("the permissions being in force", SOON, || {
        let of = |api: &Api| anyhow::Ok(Request::new(Method::GET, SECRETS).send(api)?.success());
        Ok(of(agent)? && of(operator)?)
    })
    .map(drop)
}
