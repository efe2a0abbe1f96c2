//! Whatever is done to our rules behind our back is seen and undone within a second, and what others have put there
//! stays.
//!
//! `bench --only drift` measures the promise; here each thing is done three times, and it is the middle one that has to
//! be quick, since other tests may have the processor.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, APP2, DB1, GW1, SOON, Scene, scene, socket};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Host, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::snapshot::{rules, without};
use sallyport_e2e::traffic::{Protocol, serve, wait_for_first_answer};
use sallyport_e2e::wait;

/// An address that gw1 gets and loses.
const EXTRA: &str = "10.30.1.90";

/// Times that each thing is done.
const TRIES: usize = 3;

/// How soon it must be undone.
const PROMISE: Duration = Duration::from_secs(1);

/// Something done to gw1; it knows the rules that are ours, each with its table.
type Damage = fn(&Host, Variant, &[String]) -> Result<()>;

/// Each with the row of the table of faults that it belongs to.
const DAMAGES: &[(u8, &str, Damage)] = &[
    (7, "the whole nat table is flushed", |gw1, variant, _| gw1.iptables(variant, Family::V4, "-t nat -F")),
    (8, "one of our rules is deleted", |gw1, variant, ours| {
        let rule = find(ours, |rule| rule.contains("DNAT --to-destination"))?;
        delete(gw1, variant, rule)
    }),
    (8, "one of our rules is edited", |gw1, variant, ours| {
        let rule = find(ours, |rule| rule.contains("DNAT --to-destination"))?;
        let edited = rule.replace(DB1, APP2).replacen("nat -A ", "-t nat -A ", 1);
        delete(gw1, variant, rule)?;
        gw1.iptables(variant, Family::V4, &edited)
    }),
    (7, "our jump is deleted", |gw1, variant, ours| {
        let jump = find(ours, |rule| rule.starts_with("nat -A PREROUTING "))?;
        delete(gw1, variant, jump)
    }),
    (8, "a rule of ours in filter is deleted", |gw1, variant, ours| {
        let rule = find(ours, |rule| rule.starts_with("filter -A "))?;
        delete(gw1, variant, rule)
    }),
    (8, "somebody's rule before our jump takes our packets", |gw1, variant, _| {
        let rule = format!("-t nat -I PREROUTING -d {GW1}/32 -p tcp --dport 3306 -j DNAT --to-destination {APP2}:3306");
        gw1.iptables(variant, Family::V4, &rule)
    }),
    (12, "forwarding is turned off", |gw1, _, _| gw1.write_sysctl("net/ipv4/ip_forward", "0")),
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

    for (row, what, damage) in DAMAGES {
        let mut times = Vec::new();
        for _ in 0..TRIES {
            damage(&gw1, variant, &ours)?;
            let others = without(&saved()?, &ours);
            times.push(repaired(scene, &gw1, variant, &ours).with_context(|| (*what).to_owned())?);
            // The edited rule was made of ours and is no longer wanted; everything else was never ours.
            let gone: Vec<String> = without(&others, &saved()?)
                .into_iter()
                .filter(|rule| !(what.contains("edited") && rule.contains(APP2)))
                .collect();
            ensure!(gone.is_empty(), "{what}: the repair took rules of others: {gone:#?}");
            scene.agent()?;
        }
        quick(*row, &format!("{variant}: {what}"), times)?;
    }
    address_comes_and_goes(scene, &gw1, variant)
}

/// Fails unless the middle one of `times` keeps the promise.
fn quick(row: u8, what: &str, mut times: Vec<Duration>) -> Result<()> {
    times.sort();
    let middle = times.get(times.len() / 2).context("find the middle of the times")?;
    ensure!(*middle < PROMISE, "{what}: not undone within {PROMISE:?}: {times:?}");
    figure(row, format_args!("{what}: undone in {} ms", middle.as_millis()));
    Ok(())
}

/// A listen address that is added is listened on, and what is routed to one that is removed is not captured.
fn address_comes_and_goes(scene: &Scene, gw1: &Host, variant: Variant) -> Result<()> {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for _ in 0..TRIES {
        gw1.add_address("eth0", &format!("{EXTRA}/23"))?;
        added.push(first_answer(scene, EXTRA)?);
        gw1.remove_address("eth0", &format!("{EXTRA}/23"))?;
        let waits = format!("-d {EXTRA}/32 -m addrtype --dst-type LOCAL");
        removed.push(wait::until_true("the rules of the address waiting for it", SOON, || {
            Ok(gw1.iptables_save(variant, Family::V4)?.contains(&waits))
        })?);
    }
    quick(28, &format!("{variant}: an address is added"), added)?;
    quick(28, &format!("{variant}: an address is removed"), removed)
}

/// Waits until the way through the gateway works and all our rules are back.
fn repaired(scene: &Scene, gw1: &Host, variant: Variant, ours: &[String]) -> Result<Duration> {
    let start = Instant::now();
    first_answer(scene, GW1)?;
    wait::until_true("our rules back", SOON, || {
        let now = rules(&gw1.iptables_save(variant, Family::V4)?);
        Ok(without(ours, &now).is_empty() && gw1.sysctl("net/ipv4/ip_forward")? == "1")
    })?;
    Ok(start.elapsed())
}

/// Waits until db1 answers app1 at an address of gw1; a single question could hang for longer than the promise.
fn first_answer(scene: &Scene, address: &str) -> Result<Duration> {
    let start = SystemTime::now();
    wait_for_first_answer(&scene.article.app1, socket(address, 3306))?.since(start)
}

#[test]
fn every_drift_is_repaired_within_a_second_with_nft() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| drifts(scene, Variant::Nft))
}

#[test]
fn every_drift_is_repaired_within_a_second_with_legacy() -> Result<()> {
    scene(Variant::Legacy, Backend::Iptables(Variant::Legacy), |scene| drifts(scene, Variant::Legacy))
}

#[test]
fn flushing_the_whole_ruleset_is_repaired_within_a_second() -> Result<()> {
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
        let mut times = Vec::new();
        for _ in 0..TRIES {
            gw1.check(&["nft", "flush", "ruleset"])?;
            times.push(repaired(scene, &gw1, Variant::Nft, &ours)?);
        }
        quick(7, "nft: the whole ruleset is flushed", times)
    })
}

#[test]
fn a_program_that_takes_no_lock_is_found_out_all_the_same() -> Result<()> {
    scene(Variant::Legacy, Backend::Iptables(Variant::Legacy), |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        let lock = scene.gateway.state().join("another-lock");
        let lock = format!("XTABLES_LOCKFILE={}", lock.display());
        gw1.check(&["env", &lock, "iptables-legacy", "-t", "nat", "-F"])?;
        let took = wait::until_true("db1 answering again", Duration::from_secs(15), || {
            Ok(scene.ask(Protocol::Tcp, 3306)?.is_from("db1"))
        })?;
        figure(7, format_args!("legacy: flushed without the lock: undone in {} ms", took.as_millis()));
        Ok(())
    })
}

#[test]
fn the_first_place_is_left_to_whoever_keeps_taking_it_and_they_are_named() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        let rival = format!("PREROUTING -d {GW1}/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination {APP2}:3306");
        for _ in 0..5 {
            gw1.iptables(Variant::Nft, Family::V4, &format!("-t nat -I {rival}"))?;
            wait::until_true("the first place taken back", SOON, || first_is_ours(&gw1))?;
        }
        gw1.iptables(Variant::Nft, Family::V4, &format!("-t nat -I {rival}"))?;
        let told = format!(
            "somebody keeps inserting rules before ours, so the first place is left to them for five \
                            minutes at a time; stop that program or narrow its rules: IPv4 nat PREROUTING: a rule before \
                            ours would take our packets: {}",
            rival.trim_start_matches("PREROUTING ")
        );
        scene.agent()?.wait_for(&told, SOON)?;
        wait::holds_for("the place left to them", Duration::from_secs(2), || Ok(!first_is_ours(&gw1)?))?;
        for _ in 0..6 {
            gw1.iptables(Variant::Nft, Family::V4, &format!("-t nat -D {rival}"))?;
        }
        scene.agent()?.wait_for("nobody keeps changing or outranking our rules any more", SOON)?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        figure(8, "nft: the first place taken back five times, then left to the rule that is named");
        Ok(())
    })
}

fn first_is_ours(gw1: &Host) -> Result<bool> {
    let saved = gw1.iptables_save(Variant::Nft, Family::V4)?;
    Ok(saved.lines().find(|line| line.starts_with("-A PREROUTING ")) == Some("-A PREROUTING -j SALLY-PRE"))
}
