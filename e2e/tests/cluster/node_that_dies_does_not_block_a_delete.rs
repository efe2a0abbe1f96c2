//! A gateway dies and its Node is deleted: forwards can still be deleted, and are gone from the gateway that lives.

use anyhow::{Context, Result};
use sallyport_e2e::cluster::scene::scene;
use sallyport_e2e::cluster::{Cluster, Gateway, PODS};
use sallyport_e2e::wait;

#[test]
fn forward_is_deleted_while_a_gateway_is_dead() -> Result<()> {
    scene(|cluster| {
        let [living, dying] = cluster.gateways.as_slice() else {
            anyhow::bail!("there are {} gateways, not two", cluster.gateways.len());
        };
        cluster.admin.check(&["docker", "pause", &dying.name])?;
        let outcome = deleted_without(cluster, living, dying);
        cluster.admin.check(&["docker", "unpause", &dying.name])?;
        // The kubelet registers its node when it starts.
        cluster.admin.check(&["docker", "exec", &dying.name, "systemctl", "restart", "kubelet"])?;
        wait::until_true("the node being back", PODS, || {
            Ok(cluster.try_kubectl(&format!("wait --for=condition=Ready node/{} --timeout=5s", dying.name))?.success())
        })?;
        outcome
    })
}

fn deleted_without(cluster: &Cluster, living: &Gateway, dying: &Gateway) -> Result<()> {
    cluster.kubectl(&format!("delete node {} --timeout 60s", dying.name))?;
    cluster
        .kubectl("delete portforward db1 --namespace payments --timeout 60s")
        .context("delete a forward without the dead gateway")?;
    cluster.wait_for_no_answer(living).map(drop)
}
