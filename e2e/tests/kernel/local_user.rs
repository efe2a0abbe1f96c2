//! What an unprivileged user of a gateway does to the agent there stops no change of the rules.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Process, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

const PROBES: &str = "127.0.0.1:9478";
/// More than an agent needs, and far fewer than connections are opened.
const DESCRIPTORS: &str = "--nofile=64:64";
/// Opens connections to the port that it is told, says nothing on them, and keeps them.
const IDLE: &str = "ulimit -n 4096; \
                    for number in $(seq 2000); do exec {open}<>/dev/tcp/127.0.0.1/$0; echo opened $number.; done; \
                    sleep 600";
/// How long it may take to open them on a busy machine.
const OPENED: Duration = Duration::from_mins(1);
const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// Starts the agent with few descriptors, and `more` in its environment.
fn start_agent(scene: &Scene, more: &[&str]) -> Result<Process> {
    let mut command: Vec<String> =
        ["env"].iter().chain(more).chain(&["prlimit", DESCRIPTORS]).map(ToString::to_string).collect();
    command.extend(scene.gateway.run_command()?);
    command.extend(["--admin", PROBES].map(str::to_owned));
    scene.article.gw1.spawn(&command)
}

fn nobody(scene: &Scene, command: &[&str]) -> Result<Process> {
    scene.article.gw1.spawn(&[&NOBODY[..], command].concat())
}

fn is_ready(scene: &Scene) -> Result<bool> {
    let ask = format!(
        "exec 3<>/dev/tcp/{} && printf 'GET /readyz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3 && head -n 1 <&3",
        PROBES.replace(':', "/")
    );
    Ok(scene.article.gw1.run(&["timeout", "5", "bash", "-c", &ask])?.stdout.starts_with("HTTP/1.1 200 "))
}

fn mysql() -> Forward {
    let mut forward = Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1);
    forward.target_port = Some(3306);
    forward
}

#[test]
fn idle_connections_of_a_local_user_keep_no_deleted_forward_open() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        let agent = start_agent(scene, &[])?;
        scene.gateway.manifests().save(&mysql())?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        let port = PROBES.parse::<SocketAddr>()?.port().to_string();
        let mut idle = nobody(scene, &["bash", "-c", IDLE, &port])?;
        // More than it has descriptors for, and fewer than the kernel opens for it.
        idle.wait_for("opened 100.", OPENED)?;
        scene.gateway.manifests().remove("mysql.yaml")?;
        scene.wait_for_no_answer(Protocol::Tcp, 3306).with_context(|| agent.output())?;
        idle.wait_for("opened 2000.", OPENED)?;
        ensure!(is_ready(scene)?, "the agent answers no probe:\n{}", agent.output());
        Ok(())
    })
}

#[test]
fn a_local_user_who_has_the_address_of_the_probes_stops_nothing_else() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        let thief = serve(&scene.article.gw1, &[(Protocol::Tcp, PROBES.parse()?)])?;
        let mut agent = start_agent(scene, &[])?;
        scene.gateway.manifests().save(&mysql())?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1").with_context(|| agent.output())?;
        agent.wait_for("cannot answer probes there", SOON)?;
        scene.gateway.manifests().remove("mysql.yaml")?;
        scene.wait_for_no_answer(Protocol::Tcp, 3306).with_context(|| agent.output())?;
        drop(thief);
        wait::until_true("probes being answered", SOON, || is_ready(scene)).with_context(|| agent.output())?;
        Ok(())
    })
}

#[test]
fn a_lock_that_the_kubelet_made_readable_can_be_held_by_root_alone() -> Result<()> {
    scene(Variant::Legacy, Backend::Iptables(Variant::Legacy), |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        // Not the lock that all tests of this machine share.
        let folder = tempfile::tempdir().context("make a folder for the lock")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let lock = folder.path().join("xtables.lock");
        fs::write(&lock, "")?;
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644))?;
        let path = lock.display().to_string();
        let agent = start_agent(scene, &[&format!("XTABLES_LOCKFILE={path}")])?;
        scene.gateway.manifests().save(&mysql())?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1").with_context(|| agent.output())?;
        let hold = [&NOBODY[..], &["flock", "--no-fork", &path, "sleep", "600"]].concat();
        let outcome = scene.article.gw1.run(&[&["timeout", "2"][..], &hold[..]].concat())?;
        ensure!(outcome.stderr.contains("Permission denied"), "a local user holds the lock: {outcome:?}");
        scene.gateway.manifests().remove("mysql.yaml")?;
        scene.wait_for_no_answer(Protocol::Tcp, 3306).map(drop).with_context(|| agent.output())
    })
}
