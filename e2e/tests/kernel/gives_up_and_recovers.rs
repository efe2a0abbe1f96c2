//! When rules cannot be written, what is in the kernel stays and carries traffic, the log says why, and the next change
//! gets through as soon as it can.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, SOON, Scene, scene, socket};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Process, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

/// A program may run for 30 s before it is killed, and the next try may come as late as that.
const GIVE_UP: Duration = Duration::from_secs(45);
const NEXT_TRY: Duration = Duration::from_secs(45);

/// Stands before the real programs: does what the file beside it says.
const WRAPPER: &str = r#"#!/bin/sh
here=$(dirname "$0")
name=$(basename "$0")
trouble=$(cat "$here/trouble" 2>/dev/null)
case "$trouble" in
  hang) exec sleep 600 ;;
  fail) echo "out of order" >&2; exit 4 ;;
esac
PATH=${PATH#*:}
[ "$trouble" = cut ] && exec 0<<END
$(head -n 3)
END
exec "$name" "$@"
"#;

/// What is wrong with `iptables-nft-restore` on gw1.
struct Trouble(tempfile::TempDir);

impl Trouble {
    fn prepare() -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the wrapper")?;
        let wrapper = folder.path().join("iptables-nft-restore");
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(Self(folder))
    }

    fn is(&self, what: &str) -> Result<()> {
        fs::write(self.0.path().join("trouble"), what).context("say what is wrong")
    }

    /// Starts the agent with the wrapper in its way.
    fn start_agent(&self, scene: &Scene) -> Result<Process> {
        let path = std::env::var("PATH").context("find the programs")?;
        let mut command = vec!["env".to_owned(), format!("PATH={}:{path}", self.0.path().display())];
        command.extend(scene.gateway.run_command()?);
        scene.article.gw1.spawn(&command)
    }
}

fn forward(name: &str, port: u16) -> Forward {
    let mut forward = Forward::tcp(name, port, &format!("{APP1}/32"), DB1);
    forward.target_port = Some(3306);
    forward
}

#[test]
fn old_rules_stay_while_rules_cannot_be_written_and_the_change_gets_through_afterwards() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        let trouble = Trouble::prepare()?;
        let mut agent = trouble.start_agent(scene)?;
        scene.gateway.manifests().save(&forward("mysql", 3306))?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        for (number, what, said) in [
            (1, "fail", "out of order"),
            (2, "cut", "COMMIT expected"),
            (3, "hang", "did not end within 30 s and was killed"),
        ] {
            let before = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
            trouble.is(what)?;
            scene.gateway.manifests().save(&forward("more", 4000 + number))?;
            agent.wait_for(said, GIVE_UP).with_context(|| what.to_owned())?;
            scene.expect_answer(Protocol::Tcp, 3306, "db1").with_context(|| what.to_owned())?;
            let now = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
            ensure!(now == before, "{what}: the rules changed from\n{before}to\n{now}");
            trouble.is("")?;
            let took = wait::until_true("the change getting through", NEXT_TRY, || {
                Ok(scene.ask(Protocol::Tcp, 4000 + number)?.is_from("db1"))
            })
            .with_context(|| format!("{what}\n{}", agent.output()))?;
            figure(
                10,
                format_args!("{what}: the change is through {} ms after iptables works again", took.as_millis()),
            );
        }
        Ok(())
    })
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for_and_then_given_up_until_it_is_free() -> Result<()> {
    scene(Variant::Legacy, Backend::Iptables(Variant::Legacy), |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        // Not the lock that all tests of this machine share.
        let folder = tempfile::tempdir().context("make a folder for the lock")?;
        let lock = folder.path().join("xtables.lock").display().to_string();
        let mut command = vec!["env".to_owned(), format!("XTABLES_LOCKFILE={lock}")];
        command.extend(scene.gateway.run_command()?);
        let mut agent = scene.article.gw1.spawn(&command)?;
        scene.gateway.manifests().save(&forward("mysql", 3306))?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;

        let holder = scene.article.gw1.spawn(&["flock", "--no-fork", &lock, "sleep", "600"])?;
        wait::until_true("the lock being held", SOON, || {
            Ok(!scene.article.gw1.run(&["flock", "--nonblock", &lock, "true"])?.success())
        })?;
        scene.gateway.manifests().save(&forward("more", 4000))?;
        // Our program waits for 10 s.
        agent.wait_for("xtables lock", GIVE_UP)?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        scene.expect_no_answer(Protocol::Tcp, 4000)?;
        drop(holder);
        let took = wait::until_true("the change getting through", NEXT_TRY, || {
            Ok(scene.ask(Protocol::Tcp, 4000)?.is_from("db1"))
        })
        .with_context(|| agent.output())?;
        figure(10, format_args!("lock held: the change is through {} ms after it is free", took.as_millis()));
        Ok(())
    })
}

#[test]
fn a_full_state_directory_is_a_warning_and_rules_follow_all_the_same() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        // A small disk that only the agent sees, and that goes with it.
        let mut command: Vec<String> =
            ["sh", "-c", "mount -t tmpfs -o size=128k tmpfs \"$0\" && exec \"$@\""].map(str::to_owned).to_vec();
        command.push(scene.gateway.state().display().to_string());
        command.extend(scene.gateway.run_command()?);
        fs::create_dir_all(scene.gateway.state())?;
        let mut agent = scene.article.gw1.spawn(&command)?;
        let state = format!("/proc/{}/root{}", agent.pid(), scene.gateway.state().display());
        let state = Path::new(&state);
        scene.gateway.manifests().save(&forward("mysql", 3306))?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;

        let full = fs::write(state.join("fill"), vec![0; 1 << 20]);
        ensure!(full.is_err(), "the disk took more than it has");
        scene.gateway.manifests().save(&forward("more", 4000))?;
        scene.wait_for_answer(Protocol::Tcp, 4000, "db1")?;
        agent.wait_for("cannot keep the intents; after a reboot the host starts with older ones", SOON)?;

        fs::remove_file(state.join("fill"))?;
        scene.gateway.manifests().save(&forward("most", 4001))?;
        scene.wait_for_answer(Protocol::Tcp, 4001, "db1")?;
        wait::until_true("the intents on disk", SOON, || {
            Ok(fs::read_to_string(state.join("intents.json"))?.contains("most"))
        })
        .map(drop)
    })
}
