//! A host that does not let a forward's packets pass is named, with what helps, as soon as it does not, and until it does.

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, DB1, SOON, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::Variant;
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

#[test]
fn an_interface_that_does_not_forward_is_named_until_it_does() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        let switch = "net/ipv4/conf/eth0/forwarding";
        gw1.write_sysctl(switch, "0")?;
        ensure!(gw1.sysctl("net/ipv4/ip_forward")? == "1", "the switch of all follows");
        let remedy = "sysctl -w net.ipv4.conf.eth0.forwarding=1";
        wait::until_true("the interface named", SOON, || Ok(scene.gateway.log().contains(remedy)))?;
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        scene.agent()?.kill()?;

        let once = scene.gateway.once()?;
        ensure!(!once.success() && once.stderr.contains("(NotForwarding)"), "{once:?}");
        gw1.write_sysctl(switch, "1")?;
        scene.gateway.once_accepting()
    })
}

#[test]
fn a_target_without_a_route_is_named_until_there_is_one() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), "10.99.0.1"))?;
        let once = scene.gateway.once()?;
        let named = once.stderr.contains("no route to target 10.99.0.1") && once.stderr.contains("(NoRoute)");
        ensure!(!once.success() && named, "{once:?}");
        scene.article.gw1.add_route("10.99.0.0/24", DB1)?;
        scene.gateway.once_accepting()
    })
}
