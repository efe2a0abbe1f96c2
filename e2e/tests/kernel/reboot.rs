//! After a reboot the last good intents are enforced, even when the manifests are not there (yet).

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, SOON, scene, socket};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

#[test]
fn rules_return_from_the_state_directory() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
            let administrator = gw1.iptables_save(variant, Family::V4)?;
            scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
            scene.start_agent()?;
            scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
            scene.agent()?.kill()?;

            // What a reboot leaves: no rules but those that the administrator loads, no forwarding.
            match variant {
                Variant::Nft => gw1.check(&["nft", "flush", "ruleset"]).map(drop)?,
                Variant::Legacy => {
                    gw1.iptables(variant, Family::V4, "-t nat -F")?;
                    gw1.iptables(variant, Family::V4, "-t nat -X")?;
                    gw1.iptables(variant, Family::V4, "-F")?;
                    gw1.iptables(variant, Family::V4, "-X")?;
                }
            }
            gw1.check(&["conntrack", "-F"])?;
            gw1.iptables_restore(variant, Family::V4, &administrator)?;
            gw1.write_sysctl("net/ipv4/ip_forward", "0")?;
            std::fs::remove_dir_all(scene.gateway.manifests().path()).context("remove the manifests")?;
            scene.expect_no_answer(Protocol::Tcp, 3306)?;

            scene.start_agent()?;
            let took = scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
            figure(6, format_args!("{variant}: {} ms after the agent's start", took.as_millis()));
            ensure!(scene.agent()?.ended()?.is_none(), "the agent ended");

            // The manifests return without the forward: now it goes.
            std::fs::create_dir(scene.gateway.manifests().path()).context("make the folder again")?;
            wait::until_true("the forward closing", SOON, || Ok(!scene.ask(Protocol::Tcp, 3306)?.is_from("db1")))?;
            Ok(())
        })?;
    }
    Ok(())
}
