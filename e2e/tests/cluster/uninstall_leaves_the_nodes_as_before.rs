//! `helm uninstall` takes every rule off the gateways, though a forward is still asked for, with either Helm.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1};
use sallyport_e2e::cluster::scene::{bare, forward};
use sallyport_e2e::cluster::{Cluster, Helm};
use sallyport_e2e::demo::proofs::Kernels;

#[test]
fn nodes_are_as_before_with_helm_4_and_with_helm_3() -> Result<()> {
    for helm in [Helm::v4()?, Helm::v3()?] {
        bare(|cluster| installed_and_uninstalled(cluster, &helm))?;
    }
    Ok(())
}

fn installed_and_uninstalled(cluster: &Cluster, helm: &Helm) -> Result<()> {
    let before = Kernels::of(cluster)?;
    cluster.install(helm, &[])?;
    cluster.kubectl("apply --filename examples/namespace.yaml")?;
    let _server = cluster.serve(&[DB1])?;
    cluster.apply(&forward("db1", APP1, DB1))?;
    cluster.wait_until_ready("payments", "db1")?;
    cluster.expect_answers()?;

    cluster.admin.check(&helm.uninstall())?;
    cluster.wait_until_nothing_is_installed()?;
    for gateway in &cluster.gateways {
        cluster.wait_for_no_answer(gateway)?;
    }
    before.wait_until_equal(cluster)?;
    let left = cluster.get("portforward/db1 --namespace payments")?.context("find the forward that a user wrote")?;
    ensure!(left["metadata"]["finalizers"].is_null(), "the forward cannot be deleted any more: {left}");
    Ok(())
}
