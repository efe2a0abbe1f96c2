//! The firewalls of other people run beside us: they reload and restart, our forward goes on, and nobody's rules are
//! touched. Where one of them would drop our packets that is said, with what to do, and doing it helps.
#![expect(clippy::print_stdout, reason = "prints what it measured")]

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, SOON, Scene, scene, socket};
use sallyport_e2e::firewalls::{Docker, Firewalld, Programs, Ufw};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Host, Process, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::snapshot::{rules, without};
use sallyport_e2e::traffic::{Protocol, serve, wait_for_first_answer};
use sallyport_e2e::wait;
use sallyport_e2e::watch::Watch;

/// Docker's rules as the daemon of Debian 12 writes them, for machines without it.
const DOCKER: &str = include_str!("../../../node-agent/ruleset/tests/firewalls/docker-20.10.save");
const UFW: &str = include_str!("../../../node-agent/ruleset/tests/firewalls/ufw-0.36.save");
const KUBE_PROXY: &str = include_str!("../../../node-agent/ruleset/tests/firewalls/kube-proxy.save");
const CALICO: &str = include_str!("../../../node-agent/ruleset/tests/firewalls/calico.save");

const NFT: Variant = Variant::Nft;

/// The rules of others on gw1: of both variants of iptables without ours, and of native tables of nftables.
fn theirs(gw1: &Host) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for variant in Variant::ALL {
        found.extend(rules(&gw1.iptables_save(variant, Family::V4)?));
    }
    // Built-in chains appear with our jumps in them.
    found.retain(|rule| !rule.contains("SALLY-") && !rule.ends_with(" ACCEPT"));
    for table in gw1.check(&["nft", "list", "tables", "inet"])?.lines() {
        let listed = gw1.check(&["sh", "-c", &format!("nft --stateless list {table}")])?;
        found.extend(listed.lines().map(str::to_owned));
    }
    Ok(found)
}

fn expect_untouched(gw1: &Host, before: &[String], when: &str) -> Result<()> {
    let now = theirs(gw1)?;
    ensure!(
        now == before,
        "{when}, rules of others changed:\n- {:#?}\n+ {:#?}",
        without(before, &now),
        without(&now, before)
    );
    Ok(())
}

/// Starts db1's server and the agent with one forward, and waits until it answers.
fn forwarding(scene: &mut Scene) -> Result<Process> {
    let db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
    scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
    scene.start_agent()?;
    scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
    Ok(db1)
}

/// The forward works again within a second of `what`; twice that is for busy machines.
fn works_after(scene: &Scene, what: &str) -> Result<()> {
    let done = SystemTime::now();
    let took = wait_for_first_answer(&scene.article.app1, socket(GW1, 3306))?.since(done);
    let took = took.with_context(|| what.to_owned())?;
    println!("{what}: the forward works after {} ms", took.as_millis());
    ensure!(took < Duration::from_secs(2), "{what}: took {} ms", took.as_millis());
    Ok(())
}

fn says(scene: &Scene, words: &[&str]) -> Result<()> {
    wait::until_true(&format!("the agent saying {words:?}"), SOON, || {
        Ok(scene.gateway.log().lines().any(|line| words.iter().all(|word| line.contains(word))))
    })
    .map(drop)
}

fn expect_no_complaint(scene: &Scene) -> Result<()> {
    let log = scene.gateway.log();
    ensure!(!log.contains("are dropped by"), "a false alarm:\n{log}");
    Ok(())
}

#[test]
fn ufw_reloads_and_restarts_beside_us() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let gw1 = scene.article.gw1.clone();
        let ufw = Ufw::new(&gw1, Programs::unpack()?)?;
        ufw.run(&["enable"])?;
        let before = theirs(&gw1)?;
        ensure!(before.iter().any(|rule| rule.contains("ufw-before-forward")), "ufw has no rules: {before:#?}");
        let _db1 = forwarding(scene)?;
        expect_untouched(&gw1, &before, "with a forward")?;
        for (what, actions) in [("ufw reload", &["reload"][..]), ("ufw disable and enable", &["disable", "enable"])] {
            for action in actions {
                ufw.run(&[action])?;
            }
            works_after(scene, what)?;
            expect_untouched(&gw1, &before, what)?;
        }
        expect_no_complaint(scene)
    })
}

#[test]
fn what_ufw_denies_by_name_wins_and_what_it_rejects_by_default_does_not() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let ufw = Ufw::new(&scene.article.gw1.clone(), Programs::unpack()?)?;
        ufw.run(&["default", "reject", "routed"])?;
        ufw.run(&["enable"])?;
        let _db1 = forwarding(scene)?;
        ufw.run(&["reload"])?;
        works_after(scene, "ufw reload, with reject by default")?;
        expect_no_complaint(scene)?;
        let deny = ["deny", "from", APP1, "to", DB1];
        ufw.run(&[&["route"], &deny[..]].concat())?;
        says(scene, &["dropped by", "-A ufw-user-forward -s 10.30.1.80/32 -d 10.30.1.79/32 -j DROP", "that wins"])?;
        scene.wait_for_no_answer(Protocol::Tcp, 3306)?;
        ufw.run(&[&["route", "delete"], &deny[..]].concat())?;
        works_after(scene, "ufw route delete deny")
    })
}

/// firewalld reloads and restarts beside a forward.
fn beside_firewalld(scene: &mut Scene, firewalld: &mut Firewalld) -> Result<Process> {
    let gw1 = scene.article.gw1.clone();
    let before = theirs(&gw1)?;
    ensure!(before.iter().any(|rule| rule.contains("filter_FORWARD")), "firewalld has no rules: {before:#?}");
    let db1 = forwarding(scene)?;
    expect_untouched(&gw1, &before, "with a forward")?;
    firewalld.run(&["--reload"])?;
    works_after(scene, "firewall-cmd --reload")?;
    expect_untouched(&gw1, &before, "after a reload")?;
    firewalld.run(&["--complete-reload"])?;
    works_after(scene, "firewall-cmd --complete-reload")?;
    expect_untouched(&gw1, &before, "after a complete reload")?;
    firewalld.restart()?;
    works_after(scene, "restart of firewalld")?;
    expect_untouched(&gw1, &before, "after a restart")?;
    expect_no_complaint(scene)?;
    Ok(db1)
}

const STRICT: [&str; 3] = ["dropped by", "table inet firewalld, chain filter_FORWARD", "StrictForwardPorts=no"];

#[test]
fn firewalld_reloads_and_restarts_beside_us_and_is_named_when_it_is_strict() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let gw1 = scene.article.gw1.clone();
        let mut firewalld = Firewalld::start(&gw1, Programs::unpack()?)?;
        let _db1 = beside_firewalld(scene, &mut firewalld)?;
        // What StrictForwardPorts=yes of later versions leaves out.
        let chain = ["inet", "firewalld", "filter_FORWARD"];
        let listed = gw1.check(&[&["nft", "--handle", "list", "chain"][..], &chain].concat())?;
        let handle = listed.lines().find(|line| line.contains("ct status dnat accept"));
        let handle =
            handle.and_then(|line| line.rsplit(' ').next()).context("find the rule for what was translated")?;
        gw1.check(&[&["nft", "delete", "rule"][..], &chain, &["handle", handle]].concat())?;
        says(scene, &STRICT)?;
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        firewalld.run(&["--reload"])?;
        works_after(scene, "firewalld letting forwards pass again")?;
        says(scene, &["nothing else on this host drops or diverts forwarded packets"])
    })
}

#[test]
fn firewalld_2_reloads_and_restarts_beside_us_and_what_is_said_of_it_helps() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let mut firewalld = Firewalld::start(&scene.article.gw1.clone(), Programs::of_debian_13()?)?;
        let _db1 = beside_firewalld(scene, &mut firewalld)?;
        firewalld.set("StrictForwardPorts", "yes")?;
        firewalld.run(&["--reload"])?;
        says(scene, &STRICT)?;
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        firewalld.set("StrictForwardPorts", "no")?;
        firewalld.run(&["--reload"])?;
        works_after(scene, "StrictForwardPorts=no and firewall-cmd --reload")?;
        says(scene, &["nothing else on this host drops or diverts forwarded packets"])
    })
}

/// A router's firewall as `/etc/nftables.conf` holds it, which is loaded anew as a whole.
fn nftables_conf(allow: &str) -> String {
    format!(
        "flush ruleset\ntable inet filter {{\n  chain input {{ type filter hook input priority filter; policy accept; }}\n  \
         chain forward {{ type filter hook forward priority filter; policy drop;\n    {allow}\n    \
         ct state established,related accept\n  }}\n}}\n"
    )
}

#[test]
fn nftables_service_is_named_with_a_remedy_that_helps_and_reloads_beside_us() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let gw1 = scene.article.gw1.clone();
        let load = |allow: &str| gw1.check_with_input(&["nft", "-f", "-"], nftables_conf(allow).as_bytes());
        let _db1 = forwarding(scene)?;
        load("")?;
        says(scene, &["forwarded packets are dropped by table inet filter, chain forward", "policy drop"])?;
        says(scene, &["HostFirewallConflict"])?;
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        ensure!(gw1.iptables_save(NFT, Family::V4)?.contains("SALLY-FWD"), "a conflict stopped the programming");

        // Exactly what the message says.
        let log = scene.gateway.log();
        let remedy =
            log.rsplit_once("run `").and_then(|(_, rest)| rest.split('`').next()).context("find the remedy")?;
        gw1.check(&["sh", "-c", remedy])?;
        works_after(scene, remedy)?;
        says(scene, &["nothing else on this host drops or diverts forwarded packets"])?;

        let kept = remedy.trim_start_matches("nft insert rule inet filter forward ");
        load(kept)?;
        let before = theirs(&gw1)?;
        works_after(scene, "nft -f with flush ruleset")?;
        expect_untouched(&gw1, &before, "after loading it again")?;

        let outcome = {
            load("")?;
            scene.agent()?.kill()?;
            scene.gateway.once()?
        };
        ensure!(outcome.code == Some(1), "run --once ended with {:?}", outcome.code);
        ensure!(outcome.stderr.contains("payments") || outcome.stderr.contains("mysql"), "{}", outcome.stderr);
        ensure!(outcome.stderr.contains("are dropped by table inet filter"), "{}", outcome.stderr);
        Ok(())
    })
}

#[test]
fn docker_starts_and_restarts_beside_us() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let gw1 = scene.article.gw1.clone();
        let mut docker = None;
        if Docker::is_here() {
            docker = Some(Docker::start(&gw1)?);
        } else {
            println!("no dockerd here: its rules as they were seen once");
            gw1.iptables_restore(NFT, Family::V4, DOCKER)?;
        }
        let before = theirs(&gw1)?;
        ensure!(before.iter().any(|rule| rule.contains("DOCKER-USER")), "docker has no rules: {before:#?}");
        let _db1 = forwarding(scene)?;
        expect_untouched(&gw1, &before, "with a forward")?;
        match &mut docker {
            Some(docker) => docker.restart()?,
            None => gw1.iptables_restore(NFT, Family::V4, DOCKER)?,
        }
        works_after(scene, "restart of dockerd")?;
        expect_no_complaint(scene)
    })
}

#[test]
fn whoever_inserts_harmless_rules_at_the_top_again_and_again_is_let_be() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let gw1 = scene.article.gw1.clone();
        // Objects that are not here; and packets of pods, of which this host has none, may be told from ours by nobody.
        let kube_proxy = KUBE_PROXY.replace("-m nfacct --nfacct-name ct_state_invalid_dropped_pkts ", "");
        let calico: Vec<&str> = CALICO.lines().filter(|line| !line.contains("Unknown interface")).collect();
        for save in [kube_proxy, calico.join("\n") + "\n"] {
            gw1.iptables_restore(NFT, Family::V4, &save)?;
        }
        let before = theirs(&gw1)?;
        let _db1 = forwarding(scene)?;
        expect_untouched(&gw1, &before, "with a forward")?;
        let watch = Watch::begin(&gw1)?;
        for _ in 0..8 {
            // Again to the top, as Calico does, and a full sync of kube-proxy, in one transaction.
            let again = "*filter\n-I FORWARD 1 -j KUBE-FORWARD\n-I FORWARD 1 -j cali-FORWARD\nCOMMIT\n";
            gw1.iptables_restore(NFT, Family::V4, again)?;
            scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        }
        let changes = watch.changes();
        ensure!(!changes.contains("SALLY-"), "we fought for the first place:\n{changes}");
        expect_no_complaint(scene)
    })
}

#[test]
fn the_other_variant_is_reported_named_when_it_drops_and_left_without_our_rules() -> Result<()> {
    scene(NFT, Backend::Iptables(Variant::Legacy), |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
        // The administrator's rules are in the one, ours were put into the other: the policy of the former drops.
        let outcome = scene.gateway.once()?;
        ensure!(
            outcome.stderr.contains("dropped by table filter of iptables-nft, chain FORWARD"),
            "{}",
            outcome.stderr
        );
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        let ours = |variant| Ok::<_, anyhow::Error>(gw1.iptables_save(variant, Family::V4)?.contains("SALLY-"));
        ensure!(ours(Variant::Legacy)?, "a conflict stopped the programming");

        // Now where the administrator's are; what was in the other goes.
        scene.gateway.use_backend(Backend::Iptables(NFT));
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        wait::until_true("our rules gone from the other variant", SOON, || Ok(!ours(Variant::Legacy)?))?;
        expect_no_complaint(scene)?;

        // Somebody's firewall in the other variant is seen at the next change of ours.
        gw1.iptables_restore(Variant::Legacy, Family::V4, UFW)?;
        gw1.check(&["nft", "add", "table", "inet", "nudge"])?;
        says(
            scene,
            &["dropped by table filter of iptables-legacy, chain FORWARD", "both iptables-nft and iptables-legacy"],
        )?;
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        let log = scene.gateway.log();
        let remedy =
            log.rsplit_once("run `").and_then(|(_, rest)| rest.split('`').next()).context("find the remedy")?;
        gw1.check(&["sh", "-c", remedy])?;
        works_after(scene, remedy)?;
        gw1.check(&["nft", "delete", "table", "inet", "nudge"])?;
        says(
            scene,
            &["nothing else on this host drops or diverts forwarded packets", "both iptables-nft and iptables-legacy"],
        )
    })
}
