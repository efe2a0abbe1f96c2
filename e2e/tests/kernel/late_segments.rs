//! A segment that comes late from a target, so that connection tracking cannot place it, ends no session.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, APP1_V6, DB1, DB1_V6, GW1, GW1_V6, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Held, Protocol, hold, send_late, serve};
use sallyport_e2e::wait;

const FAMILIES: [(Family, &str, &str, &str); 2] = [(Family::V4, APP1, GW1, DB1), (Family::V6, APP1_V6, GW1_V6, DB1_V6)];

/// A session through gw1 whose target sends segments that come late; it may be over then.
fn late(scene: &Scene, family: Family, gw1: &str, db1: &str) -> Result<Held> {
    let held = hold(&scene.article.app1, Protocol::Tcp, socket(gw1, 3306), None)?;
    let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let entries =
        scene.article.gw1.conntrack(&["-f", name, "-p", "tcp", "--reply-src", db1, "--state", "ESTABLISHED"])?;
    let entry = entries.last().context("find the session")?;
    // The address and port behind which gw1 hides app1.
    let port = entry.rsplit("dport=").next().and_then(|rest| rest.split(' ').next()).context("find the port")?;
    send_late(&scene.article.db1, socket(db1, 3306), SocketAddr::new(gw1.parse()?, port.parse()?))?;
    Ok(held)
}

/// How many resets gw1 itself has sent to db1: with the right numbers in them, each would have ended the session.
fn resets(scene: &Scene, family: Family) -> Result<u64> {
    let save = scene.article.variant().program(family, "save");
    let saved = scene.article.gw1.check(&[save.as_str(), "-c", "-t", "raw"])?;
    let rule = saved.lines().find(|line| line.contains("RST")).context("find what counts")?;
    rule.trim_start_matches('[').split(':').next().context("find the count")?.parse().context("read the count")
}

fn goes_on(mut held: Held) -> Result<()> {
    let before = held.answers();
    wait::until_true("the session going on", SOON, || Ok(held.answers() > before + 5 || !held.is_alive()?))?;
    ensure!(held.is_alive()?, "the session ended");
    Ok(())
}

fn rules(scene: &Scene, family: Family) -> Result<String> {
    scene.article.gw1.iptables_save(scene.article.variant(), family)
}

fn a_late_segment_ends_no_session(variant: Variant) -> Result<()> {
    scene(variant, Backend::Iptables(variant), |scene| {
        let gw1 = scene.article.gw1.clone();
        scene.article.guard_ipv6(3306, 3306)?;
        // A host without a firewall of its own answers what it does not know.
        for (family, _, _, db1) in FAMILIES {
            gw1.iptables(variant, family, "-P INPUT ACCEPT")?;
            gw1.iptables(variant, family, &format!("-t raw -A OUTPUT -d {db1} -p tcp --tcp-flags RST RST"))?;
        }
        let _db1 =
            serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306)), (Protocol::Tcp, socket(DB1_V6, 3306))])?;
        for (name, app1, db1, bits) in [("four", APP1, DB1, 32), ("six", APP1_V6, DB1_V6, 128)] {
            scene.gateway.manifests().save(&Forward::tcp(name, 3306, &format!("{app1}/{bits}"), db1))?;
        }
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        for (family, _, gw1, db1) in FAMILIES {
            goes_on(late(scene, family, gw1, db1)?).with_context(|| format!("{family:?}"))?;
            ensure!(resets(scene, family)? == 0, "gw1 answers what comes late: {family:?}");
        }
        // Where connections are not taken up that it did not see begin, what is lost is reset and does not hang.
        let strict = "net/netfilter/nf_conntrack_tcp_loose";
        gw1.write_sysctl(strict, "0")?;
        let is_there = |there: bool| Ok(rules(scene, Family::V4)?.contains("SALLY-IN") == there);
        wait::until_true("the rule going", SOON, || is_there(false))?;
        ensure!(scene.gateway.log().contains("nf_conntrack_tcp_loose=0"), "{}", scene.gateway.log());
        let _session = late(scene, Family::V4, GW1, DB1)?;
        wait::until_true("resets without the rule", SOON, || Ok(resets(scene, Family::V4)? > 0))?;
        gw1.write_sysctl(strict, "1")?;
        wait::until_true("the rule coming", SOON, || is_there(true))?;
        let before = resets(scene, Family::V4)?;
        goes_on(late(scene, Family::V4, GW1, DB1)?)?;
        ensure!(resets(scene, Family::V4)? == before, "gw1 answers what comes late although the rule is back");
        // Somebody who takes it away is repaired.
        gw1.iptables(variant, Family::V4, "-t mangle -F")?;
        let jumps =
            || Ok(rules(scene, Family::V4)?.lines().filter(|line| *line == "-A INPUT -j SALLY-IN").count() == 1);
        wait::until_true("the repair", Duration::from_secs(15), jumps)?;
        goes_on(late(scene, Family::V4, GW1, DB1)?)
    })
}

#[test]
fn a_late_segment_ends_no_session_with_nft() -> Result<()> {
    a_late_segment_ends_no_session(Variant::Nft)
}

#[test]
fn a_late_segment_ends_no_session_with_legacy() -> Result<()> {
    a_late_segment_ends_no_session(Variant::Legacy)
}
