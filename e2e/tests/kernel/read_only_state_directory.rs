//! A state directory that is full or read-only is no reason to leave rules as they are, nor not to start.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, SOON, Scene, scene, socket};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Process, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

#[test]
fn rules_follow_while_the_state_directory_is_full_or_read_only() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let state = scene.gateway.state();
        std::fs::create_dir_all(&state).context("make the state directory")?;
        let state = state.display().to_string();
        // A disk of its own, in the mount namespace of the agent.
        let mount = format!("mount -t tmpfs -o size=64k tmpfs {state} && exec \"$@\"");
        let mut command = ["sh", "-c", &mount, "agent"].map(str::to_owned).to_vec();
        command.extend(scene.gateway.run_command()?);
        let mut agent = scene.article.gw1.spawn(&command)?;
        let _db1 = reach(scene, 3306, 3310)?;
        scene.gateway.manifests().save(&forward(3306))?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        let inside = |command: &str| {
            let enter =
                ["nsenter", "--mount", "--target", &agent.pid().to_string(), "sh", "-c", command].map(str::to_owned);
            scene.article.gw1.run(&enter)
        };

        inside(&format!("cat /dev/zero > {state}/filled"))?;
        scene.gateway.manifests().save(&forward(3307))?;
        let full = scene.wait_for_answer(Protocol::Tcp, 3307, "db1")?;
        wait::until_true("the warning", SOON, || Ok(agent.output().contains("cannot keep the intents")))?;
        scene.gateway.manifests().remove("tcp-3306.yaml")?;
        scene.wait_for_no_answer(Protocol::Tcp, 3306)?;

        // Something else has to keep the agent's mounts while there is no agent.
        let enter = ["nsenter", "--mount", "--target"].map(str::to_owned).to_vec();
        let keeper = [&enter[..], &[agent.pid().to_string(), "sleep".to_owned(), "600".to_owned()]].concat();
        let keeper = scene.article.gw1.spawn(&keeper)?;
        wait::until_true("the mounts having a second user", SOON, || same_mounts(agent.pid(), keeper.pid()))?;
        agent.kill()?;
        let enter = [&enter[..], &[keeper.pid().to_string()]].concat();
        let remount = ["mount", "-o", "remount,ro", &state].map(str::to_owned);
        scene.article.gw1.check(&[&enter[..], &remount].concat())?;
        // The next agent begins with what the disk holds, and then does what is asked for now.
        let mut agent = scene.article.gw1.spawn(&[enter, scene.gateway.run_command()?].concat())?;
        scene.gateway.manifests().save(&forward(3308))?;
        let read_only = wait::until_true("the next agent following", SOON, || {
            let ended = agent.ended()?;
            ensure!(ended.is_none(), "the next agent ended: {}", agent.output());
            Ok(scene.ask(Protocol::Tcp, 3308)?.is_from("db1"))
        })?;
        scene.expect_answer(Protocol::Tcp, 3307, "db1")?;
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        let (full, read_only) = (full.as_millis(), read_only.as_millis());
        figure(29, format_args!("full: followed in {full} ms; read-only: restarted and followed in {read_only} ms"));
        Ok(())
    })
}

/// Servers on these ports of db1, which let gw1 in.
fn reach(scene: &Scene, first: u16, last: u16) -> Result<Process> {
    let db1 = scene.article.db1.clone();
    scene.article.let_gateway_in(&db1, Protocol::Tcp, first, last)?;
    serve(&db1, &(first..=last).map(|port| (Protocol::Tcp, socket(DB1, port))).collect::<Vec<_>>())
}

fn forward(port: u16) -> Forward {
    Forward::tcp(&format!("tcp-{port}"), port, &format!("{APP1}/32"), DB1)
}

/// Whether two processes see the same mounts.
fn same_mounts(one: u32, other: u32) -> Result<bool> {
    let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).context("find a mount namespace");
    Ok(of(one)? == of(other)?)
}
