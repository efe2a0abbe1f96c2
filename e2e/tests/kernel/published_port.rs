//! A port that a rule of others publishes is theirs, as that of a socket: a new forward waits for it, and so does what an edit
//! adds; whoever publishes it later takes nothing from a forward.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, SOON, Scene, WEB1, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

/// How long a port has to be free before a forward takes it.
const FREE: Duration = Duration::from_secs(10);

fn mysql(name: &str, port: u16) -> Forward {
    Forward { target_port: Some(3306), ..Forward::tcp(name, port, &format!("{APP1}/32"), DB1) }
}

/// What docker (without its proxy), the portmap plugin and kube-proxy make of a container port, an external IP and what the
/// like, each to the "container" web1.
fn publish(scene: &Scene, variant: Variant) -> Result<()> {
    let to_web1 = format!("-j DNAT --to-destination {WEB1}:3306");
    for rule in [
        "-t nat -N DOCKER".to_owned(),
        "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
        format!("-t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 {to_web1}"),
        "-t nat -N CNI-HOSTPORT-DNAT".to_owned(),
        "-t nat -N CNI-DN-x".to_owned(),
        "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT".to_owned(),
        "-t nat -A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 8081 -j CNI-DN-x".to_owned(),
        format!("-t nat -A CNI-DN-x -p tcp -m tcp --dport 8081 {to_web1}"),
        "-t nat -N KUBE-SERVICES".to_owned(),
        "-t nat -N KUBE-EXT-x".to_owned(),
        "-t nat -I PREROUTING -j KUBE-SERVICES".to_owned(),
        format!("-t nat -A KUBE-SERVICES -d {GW1}/32 -p tcp -m tcp --dport 8082 -j KUBE-EXT-x"),
        format!("-t nat -A KUBE-EXT-x -p tcp -m tcp {to_web1}"),
    ] {
        scene.article.gw1.iptables(variant, Family::V4, &rule)?;
    }
    Ok(())
}

fn published_ports_stay_with_whoever_publishes_them(variant: Variant) -> Result<()> {
    scene(variant, Backend::Iptables(variant), |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        let _web1 = serve(&scene.article.web1, &[(Protocol::Tcp, socket(WEB1, 3306))])?;
        gw1.check(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        publish(scene, variant)?;
        for port in [8080, 8081, 8082] {
            scene.expect_answer(Protocol::Tcp, port, "web1").context("before there is a forward")?;
        }
        // One that is carried first, so that others' rules are read no further than they concern it.
        scene.gateway.manifests().save(&mysql("first", 3307))?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3307, "db1")?;
        for (name, port) in [("docker", 8080), ("hostport", 8081), ("external", 8082)] {
            scene.gateway.manifests().save(&mysql(name, port))?;
        }
        let rules = ["-A DOCKER ! -i docker0", "-A CNI-DN-x -p tcp -m tcp --dport 8081", "-A KUBE-EXT-x -p tcp"];
        for (name, rule) in ["docker", "hostport", "external"].into_iter().zip(rules) {
            wait::until_true("the one who holds the port being named", SOON, || {
                let log = scene.gateway.log();
                let told = |line: &str| {
                    let words =
                        ["(PortInUse)", rule, "chain PREROUTING", "table nat of iptables", &format!("default/{name}")];
                    words.iter().all(|word| line.contains(word))
                };
                Ok(log.lines().any(told))
            })?;
        }
        // An edit that adds such a port: the port that it had follows the edit, and no other comes.
        scene.gateway.manifests().save(&Forward {
            target_port: None,
            end_port: Some(8082),
            ..mysql("docker", 8079)
        })?;
        scene.gateway.manifests().save(&Forward { end_port: None, ..mysql("first", 3308) })?;
        scene.wait_for_answer(Protocol::Tcp, 3308, "db1")?;
        for port in [8080, 8081, 8082] {
            scene.expect_answer(Protocol::Tcp, port, "web1").context("while forwards wait")?;
        }
        // Not even with the state lost: all that was not carried is new then.
        scene.agent()?.kill()?;
        std::fs::remove_dir_all(scene.gateway.state()).context("lose the state directory")?;
        scene.start_agent()?;
        scene.gateway.manifests().save(&mysql("docker", 8080))?;
        scene.gateway.manifests().save(&mysql("another", 3309))?;
        scene.wait_for_answer(Protocol::Tcp, 3309, "db1")?;
        scene.expect_answer(Protocol::Tcp, 8080, "web1")?;

        // The container goes, and the forward follows.
        let begun = std::time::Instant::now();
        gw1.iptables(variant, Family::V4, "-t nat -F DOCKER")?;
        let follows = || Ok(scene.ask(Protocol::Tcp, 8080)?.is_from("db1"));
        wait::until_true("the forward following", 3 * FREE, follows)?;
        ensure!(begun.elapsed() > FREE / 2, "the port was taken while its container might have been starting anew");
        // One that comes later revokes nothing, not even after a restart.
        let rule = format!("-t nat -A DOCKER -p tcp -m tcp --dport 8080 -j DNAT --to-destination {WEB1}:3306");
        gw1.iptables(variant, Family::V4, &rule)?;
        scene.agent()?.kill()?;
        scene.start_agent()?;
        scene.gateway.manifests().save(&mysql("last", 3310))?;
        scene.wait_for_answer(Protocol::Tcp, 3310, "db1")?;
        scene.expect_answer(Protocol::Tcp, 8080, "db1")
    })
}

#[test]
fn published_ports_stay_with_whoever_publishes_them_by_nft() -> Result<()> {
    published_ports_stay_with_whoever_publishes_them(Variant::Nft)
}

#[test]
fn published_ports_stay_with_whoever_publishes_them_by_legacy() -> Result<()> {
    published_ports_stay_with_whoever_publishes_them(Variant::Legacy)
}

#[test]
fn ports_that_an_edit_adds_wait_while_the_rest_of_it_is_in_force() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let gw1 = scene.article.gw1.clone();
        scene.article.let_gateway_in(&scene.article.db1, Protocol::Tcp, 8079, 8082)?;
        let all = [8079, 8080, 8081, 8082].map(|port| (Protocol::Tcp, socket(DB1, port)));
        let _db1 = serve(&scene.article.db1, &all)?;
        let _web1 = serve(&scene.article.web1, &[(Protocol::Tcp, socket(WEB1, 3306))])?;
        gw1.check(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        publish(scene, Variant::Nft)?;
        let one = Forward::tcp("mysql", 8079, "192.0.2.0/24", DB1);
        scene.gateway.manifests().save(&one)?;
        scene.start_agent()?;
        wait::until_true("the first programming", SOON, || Ok(scene.gateway.log().contains("verified")))?;
        // It lets app1 in as well, which is in force.
        let wide = Forward { end_port: Some(8082), ..Forward::tcp("mysql", 8079, &format!("{APP1}/32"), DB1) };
        scene.gateway.manifests().save(&wide)?;
        scene.wait_for_answer(Protocol::Tcp, 8079, "db1")?;
        for port in [8080, 8081, 8082] {
            scene.expect_answer(Protocol::Tcp, port, "web1").context("what the edit would add")?;
        }
        let outcome = scene.gateway.log();
        ensure!(outcome.contains("on the ports and addresses that the forward had before it"), "{outcome}");
        scene.agent()?.kill()?;
        scene.start_agent()?;
        scene.gateway.manifests().save(&mysql("other", 3310))?;
        scene.wait_for_answer(Protocol::Tcp, 8079, "db1")?;
        scene.expect_answer(Protocol::Tcp, 8080, "web1").context("after a restart")
    })
}
