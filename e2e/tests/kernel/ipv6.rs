//! IPv6 is forwarded as IPv4 is, each family by itself.

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, APP1_V6, DB1, DB1_V6, GW1_V6, SOON, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::snapshot::Snapshot;
use sallyport_e2e::traffic::{Answer, Protocol, ask, hold, serve};
use sallyport_e2e::wait;

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn ipv6_forward_works_is_closed_to_others_and_is_cut() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let (app1, app2) = (scene.article.app1.clone(), scene.article.app2.clone());
            scene.article.guard_ipv6(3306, 3306)?;
            let before = Snapshot::of(&scene.article.gw1)?;
            let _db1 = serve(&scene.article.db1, &BOTH.map(|protocol| (protocol, socket(DB1_V6, 3306))))?;
            let source = format!("{APP1_V6}/128");
            scene.gateway.manifests().save(&Forward::tcp("tcp", 3306, &source, DB1_V6))?;
            scene.gateway.manifests().save(&Forward::udp("udp", 3306, &source, DB1_V6))?;
            scene.start_agent()?;
            let gateway = socket(GW1_V6, 3306);
            let mut held = Vec::new();
            for protocol in BOTH {
                wait::until_true("db1 answering by IPv6", SOON, || Ok(ask(&app1, protocol, gateway)?.is_from("db1")))?;
                let answer = ask(&app1, protocol, gateway)?;
                ensure!(
                    matches!(&answer, Answer::Heard { peer, .. } if peer.ip() == gateway.ip()),
                    "db1 does not see gw1: {answer:?}"
                );
                let refused = ask(&app2, protocol, gateway)?;
                ensure!(refused == Answer::Silence, "app2 is let through: {refused:?}");
                held.push(hold(&app1, protocol, gateway, None)?);
            }
            ensure!(
                scene.article.gw1.sysctl("net/ipv4/ip_forward")? == "0",
                "IPv4 forwarding was turned on though nothing needs it"
            );
            scene.gateway.manifests().remove("tcp.yaml")?;
            scene.gateway.manifests().remove("udp.yaml")?;
            for held in &mut held {
                held.wait_until_cut(SOON)?;
            }
            scene.agent()?.terminate(SOON)?;
            scene.gateway.cleanup()?;
            before.expect_equal(&Snapshot::of(&scene.article.gw1)?)
        })?;
    }
    Ok(())
}

#[test]
fn drift_of_ipv6_is_repaired_as_that_of_ipv4() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let (app1, gw1) = (scene.article.app1.clone(), scene.article.gw1.clone());
            scene.article.guard_ipv6(3306, 3306)?;
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1_V6, 3306))])?;
            scene.gateway.manifests().save(&Forward::tcp("tcp", 3306, &format!("{APP1_V6}/128"), DB1_V6))?;
            scene.start_agent()?;
            let gateway = socket(GW1_V6, 3306);
            let answers = || Ok(ask(&app1, Protocol::Tcp, gateway)?.is_from("db1"));
            wait::until_true("db1 answering by IPv6", SOON, answers)?;
            let ours = gw1.iptables_save(variant, Family::V6)?;
            let rules = |saved: &str| saved.lines().filter(|line| line.contains("SALLY-")).count();
            let rival =
                format!("-t nat -I PREROUTING -d {GW1_V6}/128 -p tcp --dport 3306 -j DNAT --to-destination ::1");
            for damage in ["-t nat -F", "-t filter -D FORWARD -j SALLY-FWD", &rival] {
                gw1.iptables(variant, Family::V6, damage)?;
                wait::until_true(&format!("ip6tables {damage} being repaired"), SOON, || {
                    Ok(rules(&gw1.iptables_save(variant, Family::V6)?) == rules(&ours) && answers()?)
                })?;
            }
            gw1.write_sysctl("net/ipv6/conf/all/forwarding", "0")?;
            wait::until_true("forwarding of IPv6 on again", SOON, || {
                Ok(gw1.sysctl("net/ipv6/conf/all/forwarding")? == "1" && answers()?)
            })
            .map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn both_families_work_side_by_side() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let app1 = scene.article.app1.clone();
        scene.article.guard_ipv6(3306, 3306)?;
        let _db1 =
            serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306)), (Protocol::Tcp, socket(DB1_V6, 3306))])?;
        scene.gateway.manifests().save(&Forward::tcp("six", 3306, &format!("{APP1_V6}/128"), DB1_V6))?;
        scene.gateway.manifests().save(&Forward::tcp("four", 3306, &format!("{APP1}/32"), DB1))?;
        scene.gateway.once_accepting()?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        let answer = ask(&app1, Protocol::Tcp, socket(GW1_V6, 3306))?;
        ensure!(answer.is_from("db1"), "{answer:?} by IPv6");
        Ok(())
    })
}
