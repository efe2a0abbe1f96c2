//! An address that is away takes nothing from anybody: its rules are there beforehand, and bite while it is there.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, APP1_V6, DB1, DB1_V6, GW1, SOON, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Held, Protocol, ask, ask_from, hold, serve};
use sallyport_e2e::wait;

/// The address that moves, and the same for IPv6.
const VIP: &str = "10.30.1.100";
const VIP_V6: &str = "fd00:30::100";
/// Longer than an answer may take: a conversation that was cut is over by then.
const CERTAIN: Duration = Duration::from_millis(1500);

fn on_vip(forward: Forward) -> Forward {
    Forward { addresses: vec![VIP.to_owned()], ..forward }
}

#[test]
fn a_session_outlives_the_absence_of_its_address() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let (app1, gw1, db1) = (scene.article.app1.clone(), scene.article.gw1.clone(), scene.article.db1.clone());
        // Whether anybody has the address or not, app1 sends to gw1.
        app1.add_route(&format!("{VIP}/32"), GW1)?;
        scene.article.let_gateway_in(&db1, Protocol::Tcp, 3306, 3307)?;
        let _db1 = serve(&db1, &[3306, 3307].map(|port| (Protocol::Tcp, socket(DB1, port))))?;
        gw1.add_address("eth0", &format!("{VIP}/32"))?;
        let source = format!("{APP1}/32");
        // One names it, the other listens wherever its pool does.
        scene.gateway.manifests().save(&on_vip(Forward::tcp("named", 3306, &source, DB1)))?;
        scene.gateway.manifests().save(&Forward::tcp("found", 3307, &source, DB1))?;
        scene.start_agent()?;
        for port in [3306, 3307] {
            let answered = || ask(&app1, Protocol::Tcp, socket(VIP, port)).map(|answer| answer.is_from("db1"));
            wait::until_true("db1 answering at the address", SOON, answered)?;
        }
        let mut held = [3306, 3307]
            .map(|port| hold(&app1, Protocol::Tcp, socket(VIP, port), None))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let told = |times: usize| {
            let told =
                "that are not on this host: their rules are there and bite once they come addresses=\"10.30.1.100\"";
            wait::until_true("told that it is away", SOON, || Ok(scene.gateway.log().matches(told).count() == times))
        };
        gw1.remove_address("eth0", &format!("{VIP}/32"))?;
        told(1)?;
        ensure!(held.iter_mut().map(Held::is_alive).all(|alive| matches!(alive, Ok(true))), "cut with the address");

        // Another agent knows what was found before it.
        scene.agent()?.kill()?;
        scene.start_agent()?;
        let told = "bite once they come";
        wait::until_true("told again", SOON, || Ok(scene.gateway.log().matches(told).count() == 2))?;
        gw1.add_address("eth0", &format!("{VIP}/32"))?;
        wait::holds_for("sessions through the address", CERTAIN, || {
            held.iter_mut().map(Held::is_alive).try_fold(true, |all, one| Ok(all && one?))
        })?;
        for port in [3306, 3307] {
            let answered = || ask(&app1, Protocol::Tcp, socket(VIP, port)).map(|answer| answer.is_from("db1"));
            wait::until_true("db1 answering at the address again", SOON, answered)?;
        }

        // What is declared revokes: nobody is served there any more.
        scene.gateway.manifests().remove("named.yaml")?;
        held[0].wait_until_cut(SOON).map(drop)
    })
}

#[test]
fn a_backup_is_content_and_serves_once_it_has_the_address_even_without_an_agent() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let (app1, gw1, db1) = (scene.article.app1.clone(), scene.article.gw1.clone(), scene.article.db1.clone());
            app1.add_route(&format!("{VIP}/32"), GW1)?;
            gw1.iptables(variant, Family::V4, "-P FORWARD ACCEPT")?;
            // Which would tell app1 to look for the address by itself.
            for interface in ["all", "eth0"] {
                gw1.write_sysctl(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
            }
            scene.article.let_gateway_in(&db1, Protocol::Udp, 3306, 3306)?;
            let _db1 = serve(&db1, &[Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, socket(DB1, 3306))))?;
            let source = format!("{APP1}/32");
            scene.gateway.manifests().save(&on_vip(Forward::tcp("tcp", 3306, &source, DB1)))?;
            scene.gateway.manifests().save(&on_vip(Forward::udp("udp", 3306, &source, DB1)))?;
            scene.gateway.once_accepting()?;
            ensure!(!ask(&app1, Protocol::Tcp, socket(VIP, 3306))?.is_from("db1"), "served where it is not");

            gw1.add_address("eth0", &format!("{VIP}/32"))?;
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let answer = ask(&app1, protocol, socket(VIP, 3306))?;
                ensure!(answer.is_from("db1"), "{answer:?} by {protocol} without an agent");
            }
            gw1.remove_address("eth0", &format!("{VIP}/32"))?;

            // A client that keeps sending meanwhile is not lost.
            scene.start_agent()?;
            let flow = || ask_from(&app1, Protocol::Udp, socket(APP1, 40_000), socket(VIP, 3306));
            wait::until_true("the agent's start", SOON, || Ok(scene.gateway.log().contains("nothing to change")))?;
            ensure!(!flow()?.is_from("db1"), "served where it is not");
            let entries = gw1.conntrack(&["-p", "udp", "--orig-port-src", "40000"])?;
            ensure!(entries.len() == 1 && !entries[0].contains(DB1), "{entries:?}");
            gw1.add_address("eth0", &format!("{VIP}/32"))?;
            wait::until_true("the old flow reaching db1", SOON, || Ok(flow()?.is_from("db1"))).map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn a_deprecated_address_serves_and_cuts_nothing_by_becoming_so() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let (app1, gw1) = (scene.article.app1.clone(), scene.article.gw1.clone());
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1_V6, 3306))])?;
        let address = format!("{VIP_V6}/128");
        let deprecate = ["-6", "address", "change", &address, "dev", "eth0", "nodad", "preferred_lft", "0"];
        gw1.check(&["ip", "-6", "address", "add", &address, "dev", "eth0", "nodad"])?;
        let forward = Forward::tcp("mysql", 3306, &format!("{APP1_V6}/128"), DB1_V6);
        scene.gateway.manifests().save(&Forward { addresses: vec![VIP_V6.to_owned()], ..forward })?;
        scene.start_agent()?;
        let answered = || ask(&app1, Protocol::Tcp, socket(VIP_V6, 3306)).map(|answer| answer.is_from("db1"));
        wait::until_true("db1 answering at the address", SOON, answered)?;
        let mut held = hold(&app1, Protocol::Tcp, socket(VIP_V6, 3306), None)?;
        gw1.check(&[&["ip"], &deprecate[..]].concat())?;
        wait::holds_for("the session through it", CERTAIN, || held.is_alive())?;
        ensure!(answered()?, "a new connection is refused");
        scene.agent()?.kill()?;
        scene.gateway.once_accepting()
    })
}
