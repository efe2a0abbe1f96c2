//! What is no longer allowed is cut, TCP and UDP alike, and nobody else's connection is touched.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, APP2, DB1, GW1, SOON, WEB1, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::Variant;
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Held, Protocol, hold, serve};
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
