//! Who listens on a gateway already keeps a new forward from their port until they stop; who comes later revokes nothing,
//! whatever happens to the agent, its host or its memory.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, SOON, Scene, WEB1, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

/// How long a port has to be free before a forward takes it.
const FREE: Duration = Duration::from_secs(10);

fn mysql(port: u16) -> Forward {
    let forward = Forward::tcp(&format!("mysql-{port}"), port, &format!("{APP1}/32"), DB1);
    Forward { target_port: Some(3306), ..forward }
}

/// Whether the kernel has a rule for this port.
fn is_programmed(scene: &Scene, protocol: Protocol, port: u16) -> Result<bool> {
    let rules = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
    Ok(rules.lines().any(|line| line.contains(&format!("-p {protocol} -m {protocol} --dport {port} -j DNAT"))))
}

#[test]
fn a_listener_refuses_the_first_programming_and_revokes_nothing() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        let listener = || serve(&gw1, &[(Protocol::Tcp, socket("0.0.0.0", 3306))]);
        let first = listener()?;
        // In nobody's way: on the loopback interface, and on another port, protocol or address.
        let _others = serve(
            &gw1,
            &[
                (Protocol::Tcp, socket("127.0.0.1", 3307)),
                (Protocol::Udp, socket("0.0.0.0", 3307)),
                (Protocol::Udp, socket(GW1, 3308)),
            ],
        )?;
        for port in [3306, 3307] {
            scene.gateway.manifests().save(&mysql(port))?;
        }
        scene.gateway.manifests().save(&Forward::udp("dns", 3308, &format!("{APP1}/32"), DB1))?;
        let outcome = scene.gateway.once()?;
        ensure!(outcome.code == Some(1), "run --once accepts everything: {outcome:?}");
        for (port, name) in
            [("3306/TCP on every address", "default/mysql-3306"), ("3308/UDP on 10.30.1.78", "default/dns")]
        {
            let told = outcome.stderr.lines().any(|line| {
                line.contains(port) && line.contains(name) && line.contains("(PortInUse)") && line.contains("process ")
            });
            ensure!(told, "nobody says who listens on {port}: {}", outcome.stderr);
        }

        // Who waited before a start waits a minute; this one comes for the first time.
        std::fs::remove_dir_all(scene.gateway.state()).context("lose the state directory")?;
        scene.start_agent()?;
        // What ran once has left its rules, so that an answer says nothing of this one.
        scene.agent()?.wait_for("verified", SOON)?;
        scene.expect_answer(Protocol::Tcp, 3307, "db1")?;
        ensure!(!is_programmed(scene, Protocol::Tcp, 3306)? && !is_programmed(scene, Protocol::Udp, 3308)?);
        drop(first);
        let freed = wait::until_true("the forward following", 2 * FREE, || is_programmed(scene, Protocol::Tcp, 3306))?;
        ensure!(freed > FREE / 2, "the port was taken while its listener might have been starting anew");
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        ensure!(!is_programmed(scene, Protocol::Udp, 3308)?, "the other listener has not gone");

        // One that comes later revokes nothing: not by a repair, not by a restart, not with the state lost.
        let _later = listener()?;
        gw1.iptables(Variant::Nft, Family::V4, "-t nat -F SALLY-MT")?;
        wait::until_true("the repair", SOON, || is_programmed(scene, Protocol::Tcp, 3306))?;
        scene.agent()?.kill()?;
        scene.start_agent()?;
        scene.gateway.manifests().save(&mysql(3310))?;
        scene.wait_for_answer(Protocol::Tcp, 3310, "db1")?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        scene.agent()?.kill()?;
        std::fs::remove_dir_all(scene.gateway.state()).context("lose the state directory")?;
        scene.start_agent()?;
        scene.gateway.manifests().save(&Forward::tcp("web", 3311, &format!("{APP1}/32"), WEB1))?;
        wait::until_true("another pass", SOON, || is_programmed(scene, Protocol::Tcp, 3311))?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;

        // After a reboot the kernel is empty, and who listened first is a matter of who started first.
        scene.agent()?.kill()?;
        let administrator = gw1.iptables_save(Variant::Nft, Family::V4)?;
        let others: Vec<&str> = administrator.lines().filter(|line| !line.contains("SALLY-")).collect();
        gw1.check(&["nft", "flush", "ruleset"])?;
        gw1.iptables_restore(Variant::Nft, Family::V4, &(others.join("\n") + "\n"))?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1").context("after a reboot")?;
        ensure!(!is_programmed(scene, Protocol::Udp, 3308)?, "one that never was programmed is now");
        Ok(())
    })
}
