//! Two agents never run on one state directory.

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, DB1, SOON, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::Variant;
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};

#[test]
fn second_agent_ends_at_once_and_says_why() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;

        let second = scene.gateway.once()?;
        ensure!(!second.success(), "a second agent ran");
        let state = scene.gateway.state().display().to_string();
        ensure!(second.stderr.contains(&state), "the state directory is not named: {}", second.stderr);
        let cleanup = scene.article.gw1.run(&scene.gateway.cleanup_command()?)?;
        ensure!(!cleanup.success(), "cleanup ran beside a running agent");
        ensure!(scene.agent()?.ended()?.is_none(), "the first agent ended");
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;

        // A lock that outlived a killed agent would need a person.
        scene.agent()?.kill()?;
        scene.start_agent()?;
        scene.gateway.manifests().remove("mysql.yaml")?;
        scene.wait_for_no_answer(Protocol::Tcp, 3306)?;
        let status = scene.agent()?.terminate(SOON)?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    })
}
