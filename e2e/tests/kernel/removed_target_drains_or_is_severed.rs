//! Long connections outlive every change but the one that removes their target and says `Sever`; UDP follows at once.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, APP1_V6, APP2, APP2_V6, DB1, DB1_V6, GW1, GW1_V6, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Process, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Held, Protocol, ask, ask_from, hold, serve};
use sallyport_e2e::wait;

/// Longer than an answer may take: a conversation that was cut is over by then.
const CERTAIN: Duration = Duration::from_millis(1500);
/// They are counted every five seconds.
const COUNTED: Duration = Duration::from_secs(15);

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const GATEWAYS: [&str; 2] = [GW1, GW1_V6];

/// db1 and app2 serve 3306 of both protocols and families to gw1.
fn servers(scene: &Scene) -> Result<Vec<Process>> {
    let article = &scene.article;
    article.guard_ipv6(3306, 3306)?;
    for protocol in BOTH {
        article.let_gateway_in(&article.app2, protocol, 3306, 3306)?;
        let rule = format!("-A INPUT -s {GW1_V6}/128 -p {protocol} --dport 3306 -j ACCEPT");
        article.app2.iptables(Variant::Nft, Family::V6, &rule)?;
    }
    article.let_gateway_in(&article.db1, Protocol::Udp, 3306, 3306)?;
    [(&article.db1, [DB1, DB1_V6]), (&article.app2, [APP2, APP2_V6])]
        .into_iter()
        .map(|(host, ips)| {
            let listeners: Vec<_> =
                ips.iter().flat_map(|ip| BOTH.map(|protocol| (protocol, socket(ip, 3306)))).collect();
            serve(host, &listeners)
        })
        .collect()
}

/// The same two forwards, TCP and UDP, to db1 and app2 by these weights; `None` is no target. In one file: of two, an agent
/// may well see the one before the other.
fn declare(scene: &Scene, db1: Option<u16>, app2: Option<u16>, on_target_removed: &'static str) -> Result<()> {
    let weighted = |ips: [&str; 2], weight: Option<u16>| -> Vec<(String, u16)> {
        weight.map(|weight| ips.map(|ip| (ip.to_owned(), weight))).into_iter().flatten().collect()
    };
    let forwards = [Forward::tcp("tcp", 3306, "", ""), Forward::udp("udp", 3306, "", "")].map(|mut forward| {
        forward.allow = vec![format!("{APP1}/32"), format!("{APP1_V6}/128")];
        forward.targets = [weighted([DB1, DB1_V6], db1), weighted([APP2, APP2_V6], app2)].concat();
        forward.on_target_removed = on_target_removed;
        forward.yaml()
    });
    scene.gateway.manifests().write("forwards.yaml", forwards.join("---\n"))
}

/// Waits until new connections go to `server`, by both families.
fn wait_for(scene: &Scene, server: &str) -> Result<()> {
    for gateway in GATEWAYS {
        wait::until_true(&format!("{server} answering at {gateway}"), SOON, || {
            Ok(ask(&scene.article.app1, Protocol::Tcp, socket(gateway, 3306))?.is_from(server))
        })?;
    }
    Ok(())
}

/// A session through each address of gw1.
fn converse(scene: &Scene) -> Result<Vec<Held>> {
    GATEWAYS.iter().map(|gateway| hold(&scene.article.app1, Protocol::Tcp, socket(gateway, 3306), None)).collect()
}

fn all_alive(held: &mut [Held]) -> Result<bool> {
    held.iter_mut().map(Held::is_alive).try_fold(true, |all, one| Ok(all && one?))
}

/// Whether `server` answers the datagrams of one old flow through each address of gw1. A datagram that is under way while
/// its flow is redirected may be lost, as any may.
fn datagrams_go_to(scene: &Scene, server: &str) -> Result<bool> {
    let flows = [(APP1, GW1), (APP1_V6, GW1_V6)];
    flows.iter().try_fold(true, |all, (from, to)| {
        let answer = ask_from(&scene.article.app1, Protocol::Udp, socket(from, 40_000), socket(to, 3306))?;
        Ok(all && answer.is_from(server))
    })
}

/// Waits until the agent has logged `words` so many times.
fn wait_for_log(scene: &Scene, words: &str, times: usize, limit: Duration) -> Result<()> {
    let what = format!("{words:?} in the agent's log, {times} times");
    wait::until_true(&what, limit, || Ok(scene.gateway.log().matches(words).count() == times)).map(drop)
}

#[test]
fn sessions_outlive_changes_of_targets_until_they_are_severed() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let _servers = servers(scene)?;
        declare(scene, Some(1), None, "Drain")?;
        scene.start_agent()?;
        wait_for(scene, "db1")?;
        let mut to_db1 = converse(scene)?;
        wait::until_true("datagrams going to db1", SOON, || datagrams_go_to(scene, "db1"))?;

        // Another target comes, and the old one takes no new connections.
        declare(scene, Some(1), Some(1), "Drain")?;
        declare(scene, Some(0), Some(1), "Drain")?;
        wait_for(scene, "app2")?;
        wait_for_log(scene, "open connections go on to targets that take no new ones", 1, SOON)?;
        let mut to_app2 = converse(scene)?;
        ensure!(datagrams_go_to(scene, "db1")?, "weight 0 redirected datagrams");

        // It is removed: datagrams leave it, sessions go on.
        declare(scene, None, Some(1), "Drain")?;
        wait::until_true("datagrams going to app2", SOON, || datagrams_go_to(scene, "app2"))?;
        wait::holds_for("sessions to a removed target", CERTAIN, || all_alive(&mut to_db1))?;
        let ended = "the last connection to a target that takes no new ones has ended";
        ensure!(!scene.gateway.log().contains(ended), "sessions that go on are not counted");
        drop(to_db1);
        wait_for_log(scene, ended, 1, COUNTED)?;

        // Now app2 goes, and its sessions stay; the forward says Sever afterwards, which changes no rule.
        declare(scene, Some(1), None, "Drain")?;
        wait_for(scene, "db1")?;
        wait::until_true("datagrams going to db1", SOON, || datagrams_go_to(scene, "db1"))?;
        let mut kept = converse(scene)?;
        wait::holds_for("sessions to a removed target", CERTAIN, || all_alive(&mut to_app2))?;
        declare(scene, Some(1), None, "Sever")?;
        for held in &mut to_app2 {
            let took = held.wait_until_cut(SOON)?;
            println!("severed after {} ms", took.as_millis());
        }
        wait_for_log(scene, ended, 2, COUNTED)?;

        // With Sever, removal itself ends them, and weight 0 still does not.
        declare(scene, Some(0), Some(1), "Sever")?;
        wait_for(scene, "app2")?;
        let mut others = converse(scene)?;
        wait::holds_for("sessions to a target of weight 0", CERTAIN, || all_alive(&mut kept))?;
        declare(scene, None, Some(1), "Sever")?;
        for held in &mut kept {
            held.wait_until_cut(SOON)?;
        }
        wait::until_true("datagrams going to app2", SOON, || datagrams_go_to(scene, "app2"))?;
        wait::holds_for("the other target's sessions", CERTAIN, || all_alive(&mut others))
    })
}
