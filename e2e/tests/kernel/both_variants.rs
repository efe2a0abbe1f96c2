//! The rules go where the host's own rules live, or where the user says.

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, DB1, scene, socket};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::watch::Watch;

fn other(variant: Variant) -> Variant {
    match variant {
        Variant::Nft => Variant::Legacy,
        Variant::Legacy => Variant::Nft,
    }
}

#[test]
fn auto_follows_the_rules_of_the_host() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Auto, |scene| {
            let gw1 = scene.article.gw1.clone();
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
            scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
            scene.gateway.once_accepting()?;
            scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
            let here = gw1.iptables_save(variant, Family::V4)?;
            ensure!(here.contains("DNAT --to-destination"), "nothing is in {variant}:\n{here}");
            let there = gw1.iptables_save(other(variant), Family::V4)?;
            ensure!(there.is_empty(), "something is in {}:\n{there}", other(variant));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn second_apply_changes_nothing_and_dry_run_touches_nothing() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
            let mut dry: Vec<String> = scene.gateway.run_command()?;
            if let Some(backend) = dry.last_mut() {
                "dry-run".clone_into(backend);
            }
            dry.push("--once".to_owned());
            let before = gw1.iptables_save(variant, Family::V4)?;
            gw1.check(&dry)?;
            ensure!(gw1.iptables_save(variant, Family::V4)? == before, "the dry run changed rules");
            ensure!(gw1.sysctl("net/ipv4/ip_forward")? == "0", "the dry run turned forwarding on");

            scene.gateway.once_accepting()?;
            let applied = gw1.iptables_save(variant, Family::V4)?;
            ensure!(applied != before, "the first apply changed nothing");
            let watch = Watch::begin(&gw1)?;
            scene.gateway.once_accepting()?;
            ensure!(gw1.iptables_save(variant, Family::V4)? == applied, "the second apply changed rules");
            ensure!(watch.changes().is_empty(), "the second apply wrote: {}", watch.changes());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn rules_left_in_the_other_variant_go_and_nobody_elses_do() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            let theirs = "-t nat -A PREROUTING -s 10.77.0.0/16 -j ACCEPT";
            gw1.iptables(variant, Family::V4, theirs)?;
            let before = gw1.iptables_save(variant, Family::V4)?;
            scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
            scene.gateway.once_accepting()?;
            ensure!(gw1.iptables_save(variant, Family::V4)? != before, "nothing was left behind in {variant}");

            let mut other_one: Vec<String> = scene.gateway.run_command()?;
            if let Some(backend) = other_one.last_mut() {
                *backend = Backend::Iptables(other(variant)).to_string();
            }
            other_one.push("--once".to_owned());
            // The administrators' policy drops there what nobody accepts any more, and that is said at once.
            let outcome = gw1.run(&other_one)?;
            let dropped = format!("are dropped by table filter of iptables-{variant}, chain FORWARD");
            ensure!(outcome.code == Some(1) && outcome.stderr.contains(&dropped), "{outcome:?}");
            let now = gw1.iptables_save(variant, Family::V4)?;
            let missing: Vec<&str> = before.lines().filter(|line| !now.contains(line)).collect();
            ensure!(missing.is_empty() && !now.contains("SALLY-"), "in {variant}, before:\n{before}\nnow:\n{now}");
            ensure!(
                gw1.iptables_save(other(variant), Family::V4)?.contains("DNAT"),
                "nothing is in {}",
                other(variant)
            );
            figure(11, format_args!("{variant} to {}: ours gone from {variant}, theirs as before", other(variant)));
            Ok(())
        })?;
    }
    Ok(())
}
