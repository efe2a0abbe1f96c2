//! `cleanup` removes only what is ours, restores what we changed, and may be called at any time.

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, APP1_V6, DB1, DB1_V6, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::snapshot::Snapshot;
use sallyport_e2e::traffic::{Protocol, serve};

#[test]
fn host_is_as_before_with_either_variant() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            scene.article.guard_ipv6(3306, 3306)?;
            // Turning forwarding on changes this too; it must come back.
            gw1.write_sysctl("net/ipv4/conf/eth0/accept_redirects", "1")?;
            let before = Snapshot::of(&gw1)?;
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
            let mut wide = Forward::tcp("wide", 8000, &format!("{APP1}/32"), DB1);
            wide.end_port = Some(8031);
            wide.target_port = Some(9000);
            wide.deny = vec!["10.30.1.82/32".to_owned()];
            for forward in [
                Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1),
                Forward::udp("dns", 53, &format!("{APP1}/32"), DB1),
                Forward::tcp("six", 3306, &format!("{APP1_V6}/128"), DB1_V6),
                wide,
            ] {
                scene.gateway.manifests().save(&forward)?;
            }
            scene.start_agent()?;
            scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
            scene.agent()?.kill()?;
            ensure!(before.expect_equal(&Snapshot::of(&gw1)?).is_err(), "the agent left no trace itself");
            scene.gateway.cleanup()?;
            before.expect_equal(&Snapshot::of(&gw1)?)?;
            scene.expect_no_answer(Protocol::Tcp, 3306)?;

            scene.gateway.cleanup()?;
            before.expect_equal(&Snapshot::of(&gw1)?)
        })?;
    }
    Ok(())
}

#[test]
fn forwarding_that_was_on_stays_on() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let gw1 = scene.article.gw1.clone();
        gw1.write_sysctl("net/ipv4/ip_forward", "1")?;
        let before = Snapshot::of(&gw1)?;
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
        scene.gateway.once_accepting()?;
        ensure!(before.expect_equal(&Snapshot::of(&gw1)?).is_err(), "the agent left no trace itself");
        scene.gateway.cleanup()?;
        before.expect_equal(&Snapshot::of(&gw1)?)
    })
}

#[test]
fn forwarding_stays_on_where_an_interface_that_came_since_may_rely_on_it() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let gw1 = scene.article.gw1.clone();
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
        scene.gateway.once_accepting()?;
        // A container engine that finds forwarding on has no reason to turn it on, and none to turn it off.
        gw1.check(&["ip", "link", "add", "docker0", "type", "bridge"])?;
        let outcome = gw1.run(&scene.gateway.cleanup_command()?)?;
        ensure!(outcome.success(), "{}", outcome.stderr);
        ensure!(gw1.sysctl("net/ipv4/ip_forward")? == "1", "containers were cut off");
        for word in ["forwarding stays on", "docker0", "sysctl -w net.ipv4.ip_forward=0"] {
            ensure!(outcome.stderr.contains(word), "{word} was not said:\n{}", outcome.stderr);
        }
        ensure!(!gw1.iptables_save(Variant::Nft, Family::V4)?.contains("SALLY-"), "rules of ours are left");
        Ok(())
    })
}

#[test]
fn host_that_never_ran_an_agent_is_not_touched() -> Result<()> {
    scene(Variant::Legacy, Backend::Auto, |scene| {
        let gw1 = scene.article.gw1.clone();
        let before = Snapshot::of(&gw1)?;
        // Whether it has nothing to do or says that there is no state: it must not change the host.
        gw1.run(&scene.gateway.cleanup_command()?)?;
        before.expect_equal(&Snapshot::of(&gw1)?)
    })
}
