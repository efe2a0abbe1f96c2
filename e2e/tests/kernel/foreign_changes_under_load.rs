//! What others do to the firewall of a gateway under load: their own rules may change as they like and nothing is lost;
//! when they flush ours, long connections live on, and new ones are let in again after the repair.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{SOON, Scene, scene};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::traffic::{LoadReport, Protocol};
use sallyport_e2e::wait;

/// The longest that a load may go on.
const LOAD: Duration = Duration::from_mins(1);

/// How often others change their rules.
const CHANGES: usize = 50;

/// What kube-proxy and container engines do all day, with one commit a change.
const THEIRS: [&str; 4] = [
    "*nat\n:THEIRS - [0:0]\n-A THEIRS -p tcp -m tcp --dport 8443 -j DNAT --to-destination 10.88.0.3:443\nCOMMIT\n",
    "*filter\n-A FORWARD -s 172.17.0.0/16 -j ACCEPT\nCOMMIT\n",
    "*nat\n-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n",
    "*nat\n-D POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n*filter\n-D FORWARD -s 172.17.0.0/16 -j ACCEPT\nCOMMIT\n",
];

#[test]
fn others_change_their_rules_and_nothing_is_lost() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let _db1 = scene.forward_to_db1()?;
            let gw1 = scene.article.gw1.clone();
            let ours = our_rules(scene, variant)?;
            let load = scene.load(LOAD)?;
            for text in THEIRS.iter().cycle().take(CHANGES) {
                gw1.iptables_restore(variant, Family::V4, text)?;
            }
            ensure!(our_rules(scene, variant)? == ours, "rules of ours changed");
            let report = load.end()?;
            report.expect_no_loss().context("while others changed their rules")?;
            figure(9, format_args!("{variant}: {CHANGES} changes by others: {report}"));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn long_connections_live_through_a_flush_of_one_table() -> Result<()> {
    for variant in Variant::ALL {
        for flush in ["-t nat -F", "-t filter -F"] {
            let report = flushed(variant, &format!("iptables {flush}"), |scene| {
                scene.article.gw1.iptables(variant, Family::V4, flush)
            })?;
            ensure!(report.established_lost == 0, "long connections were lost: {report:?}");
            // Without our rules in filter nothing passes until the repair, and nobody sends a datagram again.
            ensure!(report.unanswered == 0 || flush.contains("filter"), "datagrams were lost: {report:?}");
        }
    }
    Ok(())
}

#[test]
fn new_connections_are_let_in_again_after_a_flush_of_everything() -> Result<()> {
    flushed(Variant::Nft, "nft flush ruleset", |scene| scene.article.gw1.check(&["nft", "flush", "ruleset"]).map(drop))
        .map(drop)
}

/// Somebody flushes under load; what is lost is lost until the repair.
fn flushed(variant: Variant, what: &str, flush: impl Fn(&Scene) -> Result<()>) -> Result<LoadReport> {
    let mut seen = None;
    scene(variant, Backend::Iptables(variant), |scene| {
        let _db1 = scene.forward_to_db1()?;
        let ours = our_rules(scene, variant)?;
        let load = scene.load(LOAD)?;
        flush(scene)?;
        let repaired = wait::until_true("our rules being back", SOON, || Ok(our_rules(scene, variant)? == ours))?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            scene.expect_answer(protocol, 3306, "db1").context("after the repair")?;
        }
        let report = load.end()?;
        ensure!(report.new_lost * 2 < report.new, "too few were let in after the repair: {report:?}");
        figure(7, format_args!("{variant}: `{what}`: repaired in {} ms, {report}", repaired.as_millis()));
        seen = Some(report);
        Ok(())
    })?;
    seen.context("find the report")
}

/// The rules in our chains and those that lead to them.
fn our_rules(scene: &Scene, variant: Variant) -> Result<Vec<String>> {
    let saved = scene.article.gw1.iptables_save(variant, Family::V4)?;
    Ok(saved.lines().filter(|line| line.contains("SALLY-")).map(str::to_owned).collect())
}
