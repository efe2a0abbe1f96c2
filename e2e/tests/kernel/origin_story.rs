//! app1 reaches db1 through gw1, and nobody else does: the story of the docs, once by the demo itself.

use std::process::Command;

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, WEB1, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::Variant;
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Answer, Protocol, ask, serve};

#[test]
fn listed_client_reaches_the_target_through_the_gateway_and_nobody_else_does() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Auto, |scene| {
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
            let _web1 = serve(&scene.article.web1, &[(Protocol::Tcp, socket(WEB1, 3306))])?;
            let reach = |host, to| ask(host, Protocol::Tcp, socket(to, 3306));
            let (app1, app2) = (scene.article.app1.clone(), scene.article.app2.clone());
            ensure!(reach(&app1, DB1)? == Answer::Silence, "db1 is open to app1");
            scene.expect_no_answer(Protocol::Tcp, 3306)?;

            scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
            scene.start_agent()?;
            scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
            let Answer::Heard { peer, .. } = reach(&app1, GW1)? else {
                anyhow::bail!("no answer through gw1");
            };
            ensure!(peer.ip().to_string() == GW1, "db1 sees {peer}, not gw1");
            ensure!(reach(&app1, DB1)? == Answer::Silence, "db1 is open to app1");
            ensure!(reach(&app2, GW1)? == Answer::Silence, "app2 is let through");
            let routed = reach(&app1, WEB1)?;
            ensure!(
                matches!(&routed, Answer::Heard { server, peer, .. } if server == "web1" && peer.ip().to_string() == APP1),
                "routed traffic was touched: {routed:?}"
            );

            scene.gateway.manifests().remove("mysql.yaml")?;
            scene.wait_for_no_answer(Protocol::Tcp, 3306)?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_demo_proves_what_it_prints() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_sallyport-e2e")).arg("demo-standalone").output()?;
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{printed}{errors}");
    ensure!(printed.contains("10 proofs in "), "{printed}");
    Ok(())
}
