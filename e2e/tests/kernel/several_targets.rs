//! Several targets share the new connections by their weights; weight 0 is the graceful way out.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, APP2, DB1, GW1, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Process, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, hold, serve};
use sallyport_e2e::wait;

/// Connections counted: with weights 3 to 1 the expected 45 of 60 has a standard deviation of 3.4.
const CONNECTIONS: usize = 60;

fn two_targets(scene: &Scene) -> Result<Vec<Process>> {
    [(&scene.article.db1, DB1), (&scene.article.app2, APP2)]
        .into_iter()
        .map(|(host, ip)| {
            scene.article.let_gateway_in(host, Protocol::Tcp, 8000, 8000)?;
            serve(host, &[(Protocol::Tcp, socket(ip, 8000))])
        })
        .collect()
}

/// How many of the connections db1 answers.
fn share_of_db1(scene: &Scene) -> Result<usize> {
    let mut share = 0;
    for _ in 0..CONNECTIONS {
        let answer = scene.ask(Protocol::Tcp, 8000)?;
        ensure!(answer.is_from("db1") || answer.is_from("app2"), "a connection was lost: {answer:?}");
        share += usize::from(answer.is_from("db1"));
    }
    Ok(share)
}

#[test]
fn new_connections_are_shared_by_weight() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let _targets = two_targets(scene)?;
            let mut forward = Forward::tcp("web", 8000, &format!("{APP1}/32"), DB1);
            forward.targets = vec![(DB1.to_owned(), 3), (APP2.to_owned(), 1)];
            scene.gateway.manifests().save(&forward)?;
            scene.gateway.once_accepting()?;
            let share = share_of_db1(scene)?;
            println!("{variant}: db1 with weight 3 of 4 took {share} of {CONNECTIONS}");
            // Five standard deviations either way.
            ensure!((28..=59).contains(&share), "db1 with weight 3 of 4 took {share} of {CONNECTIONS}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn weight_zero_takes_no_new_connection_and_keeps_the_old_ones() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let _targets = two_targets(scene)?;
        let mut forward = Forward::tcp("web", 8000, &format!("{APP1}/32"), DB1);
        scene.gateway.manifests().save(&forward)?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 8000, "db1")?;
        let mut old = hold(&scene.article.app1, Protocol::Tcp, socket(GW1, 8000), None)?;

        forward.targets = vec![(DB1.to_owned(), 0), (APP2.to_owned(), 1)];
        scene.gateway.manifests().save(&forward)?;
        wait::until_true("app2 answering", SOON, || Ok(scene.ask(Protocol::Tcp, 8000)?.is_from("app2")))?;
        ensure!(share_of_db1(scene)? == 0, "a target of weight 0 took a new connection");
        let answers = old.answers();
        wait::until_true("the old connection going on", Duration::from_secs(3), || {
            ensure!(old.is_alive()?, "the old connection was cut");
            Ok(old.answers() > answers + 10)
        })?;
        Ok(())
    })
}
