//! What is no longer allowed is cut, TCP and UDP alike, and nobody else's connection is touched.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, APP2, DB1, GW1, SOON, Scene, WEB1, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Held, Protocol, ask, hold, serve};
use sallyport_e2e::wait;

/// Longer than an answer may take: a conversation that was cut is over by then.
const CERTAIN: Duration = Duration::from_millis(1500);

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn deleted_forward_is_cut_and_all_other_flows_go_on() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let (app1, gw1, db1) = (scene.article.app1.clone(), scene.article.gw1.clone(), scene.article.db1.clone());
            let mut listeners = Vec::new();
            for protocol in BOTH {
                scene.article.let_gateway_in(&db1, protocol, 3306, 3310)?;
                listeners.extend([3306, 3307].map(|port| (protocol, socket(DB1, port))));
            }
            let _db1 = serve(&db1, &listeners)?;
            let _web1 = serve(&scene.article.web1, &[(Protocol::Tcp, socket(WEB1, 3306))])?;
            let source = format!("{APP1}/32");
            let manifests = scene.gateway.manifests();
            for port in [3306, 3307] {
                manifests.save(&Forward::tcp(&format!("tcp-{port}"), port, &source, DB1))?;
                manifests.save(&Forward::udp(&format!("udp-{port}"), port, &source, DB1))?;
            }
            scene.start_agent()?;
            for protocol in BOTH {
                scene.wait_for_answer(protocol, 3306, "db1")?;
                scene.wait_for_answer(protocol, 3307, "db1")?;
            }
            let mut cut = Vec::new();
            let mut kept = vec![hold(&app1, Protocol::Tcp, socket(WEB1, 3306), None)?];
            for protocol in BOTH {
                cut.push(hold(&app1, protocol, socket(GW1, 3306), None)?);
                kept.push(hold(&app1, protocol, socket(GW1, 3307), None)?);
            }
            // Nobody's packets match this entry, but it names the port, the gateway and the target.
            gw1.check(&[
                "conntrack",
                "-I",
                "-p",
                "tcp",
                "-s",
                "192.0.2.7",
                "-d",
                DB1,
                "--sport",
                "1000",
                "--dport",
                "3306",
                "--state",
                "ESTABLISHED",
                "--timeout",
                "300",
            ])?;

            scene.gateway.manifests().remove("tcp-3306.yaml")?;
            scene.gateway.manifests().remove("udp-3306.yaml")?;
            for held in &mut cut {
                let took = held.wait_until_cut(SOON)?;
                println!("{variant}: cut after {} ms", took.as_millis());
            }
            for protocol in BOTH {
                scene.expect_no_answer(protocol, 3306)?;
            }
            wait::holds_for("the other flows go on", CERTAIN, || {
                kept.iter_mut().map(Held::is_alive).try_fold(true, |all, one| Ok(all && one?))
            })?;
            let foreign = gw1.conntrack(&["-p", "tcp", "--orig-src", "192.0.2.7"])?;
            ensure!(foreign.len() == 1, "somebody else's conntrack entry is gone");
            Ok(())
        })?;
    }
    Ok(())
}

/// Waits until no open session through gw1's port 3306 has a mark of ours.
fn wait_for_overwritten_marks(scene: &Scene) -> Result<()> {
    let overwritten = || {
        let sessions =
            scene.article.gw1.conntrack(&["-p", "tcp", "--orig-port-dst", "3306", "--state", "ESTABLISHED"])?;
        Ok(!sessions.is_empty() && sessions.iter().all(|session| session.contains("mark=1 ")))
    };
    wait::until_true("somebody overwriting the mark", SOON, overwritten).map(drop)
}

#[test]
fn a_session_whose_mark_somebody_overwrote_is_cut_whatever_became_of_its_rules_since() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let (app1, gw1, app2) = (scene.article.app1.clone(), scene.article.gw1.clone(), scene.article.app2.clone());
        // Without our mark nothing else would let it through.
        gw1.iptables(Variant::Nft, Family::V4, "-P FORWARD ACCEPT")?;
        let answers = format!("-t mangle -A POSTROUTING -d {APP1}/32 -p tcp --sport 3306 -j CONNMARK --set-mark 1");
        gw1.iptables(Variant::Nft, Family::V4, &answers)?;
        scene.article.let_gateway_in(&app2, Protocol::Tcp, 3306, 3306)?;
        let _app2 = serve(&app2, &[(Protocol::Tcp, socket(APP2, 3306))])?;
        let _db1 = scene.forward_to_db1()?;
        let session = || hold(&app1, Protocol::Tcp, socket(GW1, 3306), None);

        // Its forward goes while the agent is there.
        let mut held = session()?;
        wait_for_overwritten_marks(scene)?;
        scene.gateway.manifests().remove("tcp.yaml")?;
        held.wait_until_cut(SOON)?;

        // Its target is removed, which lets it finish, then its forward while no agent is there.
        let mut forward = Forward::tcp("tcp", 3306, &format!("{APP1}/32"), DB1);
        scene.gateway.manifests().save(&forward)?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        let mut held = session()?;
        wait_for_overwritten_marks(scene)?;
        forward.targets = vec![(APP2.to_owned(), 1)];
        scene.gateway.manifests().save(&forward)?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "app2")?;
        ensure!(held.is_alive()?, "the session to a removed target is cut");
        scene.agent()?.kill()?;
        scene.gateway.manifests().remove("tcp.yaml")?;
        ensure!(held.is_alive()?, "the session is cut without an agent");
        scene.start_agent()?;
        held.wait_until_cut(SOON)?;
        let past = scene.gateway.state().join("past.json");
        wait::until_true("nothing noted any more", SOON, || Ok(!past.exists()))?;

        // Cleanup finds it, too.
        scene.gateway.manifests().save(&Forward::tcp("tcp", 3306, &format!("{APP1}/32"), DB1))?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        let mut held = session()?;
        wait_for_overwritten_marks(scene)?;
        scene.agent()?.kill()?;
        scene.gateway.cleanup()?;
        held.wait_until_cut(SOON).map(drop)
    })
}

#[test]
fn an_edit_of_source_nat_cuts_what_goes_by_the_former_mode_and_nothing_else() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let web1 = scene.article.web1.clone();
        let _db1 = scene.forward_to_db1()?;
        // web1 is behind the gateway, so that Preserve is possible.
        scene.article.db1.add_route("10.40.0.0/24", GW1)?;
        let from_web1 = format!("-A INPUT -s {WEB1}/32 -p tcp --dport 3307 -j ACCEPT");
        scene.article.db1.iptables(Variant::Nft, Family::V4, &from_web1)?;
        scene.article.let_gateway_in(&scene.article.db1, Protocol::Tcp, 3307, 3307)?;
        let _also = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3307))])?;
        let mut forward = Forward::tcp("web", 3307, &format!("{WEB1}/32"), DB1);
        scene.gateway.manifests().save(&forward)?;
        let answered = || ask(&web1, Protocol::Tcp, socket(GW1, 3307)).map(|answer| answer.is_from("db1"));
        wait::until_true("db1 answering web1", SOON, answered)?;
        let mut kept = hold(&scene.article.app1, Protocol::Tcp, socket(GW1, 3306), None)?;
        for mode in ["Preserve", "Masquerade"] {
            let mut held = hold(&web1, Protocol::Tcp, socket(GW1, 3307), None)?;
            forward.source_nat = mode;
            scene.gateway.manifests().save(&forward)?;
            held.wait_until_cut(SOON)?;
            wait::until_true("db1 answering web1 again", SOON, answered)?;
        }
        wait::holds_for("the session of another forward", CERTAIN, || kept.is_alive())
    })
}

#[test]
fn narrowed_sources_cut_those_who_are_no_longer_listed() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let (app1, app2, db1) = (scene.article.app1.clone(), scene.article.app2.clone(), scene.article.db1.clone());
        scene.article.let_gateway_in(&db1, Protocol::Udp, 3306, 3306)?;
        let _db1 = serve(&db1, &BOTH.map(|protocol| (protocol, socket(DB1, 3306))))?;
        let mut forwards =
            [Forward::tcp("tcp", 3306, "10.30.0.0/23", DB1), Forward::udp("udp", 3306, "10.30.0.0/23", DB1)];
        for forward in &forwards {
            scene.gateway.manifests().save(forward)?;
        }
        scene.start_agent()?;
        let (mut cut, mut kept) = (Vec::new(), Vec::new());
        for protocol in BOTH {
            scene.wait_for_answer(protocol, 3306, "db1")?;
            kept.push(hold(&app1, protocol, socket(GW1, 3306), None)?);
            cut.push(hold(&app2, protocol, socket(GW1, 3306), None)?);
        }
        for forward in &mut forwards {
            forward.deny = vec![format!("{APP2}/32")];
            scene.gateway.manifests().save(forward)?;
        }
        for held in &mut cut {
            held.wait_until_cut(SOON)?;
        }
        wait::holds_for("those who are listed go on", CERTAIN, || {
            kept.iter_mut().map(Held::is_alive).try_fold(true, |all, one| Ok(all && one?))
        })?;
        let mut again = [hold(&app2, Protocol::Tcp, socket(GW1, 3306), None)];
        ensure!(again.iter_mut().all(|held| held.is_err()), "app2 is let through again");

        for forward in &mut forwards {
            forward.deny.clear();
            forward.allow = vec![format!("{APP2}/32")];
            scene.gateway.manifests().save(forward)?;
        }
        for held in &mut kept {
            held.wait_until_cut(SOON)?;
        }
        Ok(())
    })
}
