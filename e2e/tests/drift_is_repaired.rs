//! Whatever is done to our rules behind our back is seen and undone within five seconds, and what others
//! have put there stays.
#![expect(clippy::print_stdout, reason = "prints what it measured")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, APP2, DB1, GW1, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Host, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::snapshot::{rules, without};
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

/// Something done to gw1; it knows the rules that are ours, each with its table.
type Damage = fn(&Host, Variant, &[String]) -> Result<()>;

const DAMAGES: &[(&str, Damage)] = &[
    ("the whole nat table is flushed", |gw1, variant, _| gw1.iptables(variant, Family::V4, "-t nat -F")),
    ("one of our rules is deleted", |gw1, variant, ours| {
        let rule = find(ours, |rule| rule.contains("DNAT --to-destination"))?;
        delete(gw1, variant, rule)
    }),
    ("one of our rules is edited", |gw1, variant, ours| {
        let rule = find(ours, |rule| rule.contains("DNAT --to-destination"))?;
        let edited = rule.replace(DB1, APP2).replacen("nat -A ", "-t nat -A ", 1);
        delete(gw1, variant, rule)?;
        gw1.iptables(variant, Family::V4, &edited)
    }),
    ("our jump is deleted", |gw1, variant, ours| {
        let jump = find(ours, |rule| rule.starts_with("nat -A PREROUTING "))?;
        delete(gw1, variant, jump)
    }),
    ("a rule of ours in filter is deleted", |gw1, variant, ours| {
        let rule = find(ours, |rule| rule.starts_with("filter -A "))?;
        delete(gw1, variant, rule)
    }),
    ("somebody's rule before our jump takes our packets", |gw1, variant, _| {
        let rule = format!("-t nat -I PREROUTING -d {GW1}/32 -p tcp --dport 3306 -j DNAT --to-destination {APP2}:3306");
        gw1.iptables(variant, Family::V4, &rule)
    }),
    ("forwarding is turned off", |gw1, _, _| gw1.write_sysctl("net/ipv4/ip_forward", "0")),
];

fn find(ours: &[String], is_it: impl Fn(&str) -> bool) -> Result<&str> {
    ours.iter()
        .map(String::as_str)
        .find(|rule| is_it(rule))
        .with_context(|| format!("find the rule to damage among {ours:#?}"))
}

/// `nat -A CHAIN …` becomes `-t nat -D CHAIN …`.
fn delete(gw1: &Host, variant: Variant, rule: &str) -> Result<()> {
    let rule = format!("-t {}", rule.replacen(" -A ", " -D ", 1));
    gw1.iptables(variant, Family::V4, &rule)
}

fn drifts(scene: &mut Scene, variant: Variant) -> Result<()> {
    let gw1 = scene.article.gw1.clone();
    let saved = || Ok::<_, anyhow::Error>(rules(&gw1.iptables_save(variant, Family::V4)?));
    let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
    gw1.iptables(variant, Family::V4, "-t nat -A POSTROUTING -s 10.99.0.0/24 -j MASQUERADE")?;
    gw1.iptables(variant, Family::V4, "-t nat -A PREROUTING -p tcp --dport 81 -j ACCEPT")?;
    let before = saved()?;
    scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
    scene.start_agent()?;
    scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
    let ours = without(&saved()?, &before);

    for (what, damage) in DAMAGES {
        damage(&gw1, variant, &ours)?;
        let others = without(&saved()?, &ours);
        let took = repaired(scene, &gw1, variant, &ours).with_context(|| (*what).to_owned())?;
        println!("{variant}: {what}: repaired after {} ms", took.as_millis());
        // The edited rule was made of ours and is no longer wanted; everything else was never ours.
        let gone: Vec<String> = without(&others, &saved()?)
            .into_iter()
            .filter(|rule| !(what.contains("edited") && rule.contains(APP2)))
            .collect();
        ensure!(gone.is_empty(), "{what}: the repair took rules of others: {gone:#?}");
        scene.agent()?;
    }
    Ok(())
}

/// Waits until all our rules are back and the way through the gateway works.
fn repaired(scene: &Scene, gw1: &Host, variant: Variant, ours: &[String]) -> Result<Duration> {
    wait::until_true("our rules back and the forward working", SOON, || {
        let now = rules(&gw1.iptables_save(variant, Family::V4)?);
        Ok(without(ours, &now).is_empty()
            && gw1.sysctl("net/ipv4/ip_forward")? == "1"
            && scene.ask(Protocol::Tcp, 3306)?.is_from("db1"))
    })
}

#[test]
fn every_drift_is_repaired_within_five_seconds_with_nft() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| drifts(scene, Variant::Nft))
}

#[test]
fn every_drift_is_repaired_within_five_seconds_with_legacy() -> Result<()> {
    scene(Variant::Legacy, Backend::Iptables(Variant::Legacy), |scene| drifts(scene, Variant::Legacy))
}

#[test]
fn flushing_the_whole_ruleset_is_repaired_within_five_seconds() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let gw1 = scene.article.gw1.clone();
        let saved = || Ok::<_, anyhow::Error>(rules(&gw1.iptables_save(Variant::Nft, Family::V4)?));
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        let before = saved()?;
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        // The built-in chains return with our rules, but the policies were the administrator's.
        let ours: Vec<String> = without(&saved()?, &before).into_iter().filter(|rule| rule.contains(" -A ")).collect();
        gw1.check(&["nft", "flush", "ruleset"])?;
        let took = repaired(scene, &gw1, Variant::Nft, &ours)?;
        println!("nft flush ruleset: repaired after {} ms", took.as_millis());
        Ok(())
    })
}
