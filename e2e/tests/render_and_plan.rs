//! `render` and `plan` print what `run` does, touch nothing, and what they print works when an administrator
//! loads it.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::program;
use sallyport_e2e::snapshot::{Snapshot, rules, without};
use sallyport_e2e::traffic::{Answer, Protocol, ask, serve};

/// `render`, on a host that is not even a gateway.
fn render(scene: &Scene, audience: &str) -> Result<String> {
    scene.article.web1.check(&[
        &program::node_agent()?.display().to_string(),
        "render",
        "--manifests",
        &scene.gateway.manifests().path().display().to_string(),
        "--node-address",
        GW1,
        "--for",
        audience,
    ])
}

fn plan(scene: &Scene) -> Result<String> {
    let mut command = scene.gateway.run_command()?;
    "plan".clone_into(command.get_mut(1).context("find the subcommand")?);
    scene.article.gw1.check(&command)
}

fn mysql(scene: &Scene) -> Result<()> {
    scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))
}

#[test]
fn rendered_rules_work_when_loaded_by_hand() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
            mysql(scene)?;
            let before = Snapshot::of(&gw1)?;
            let text = render(scene, "gateway")?;
            before.expect_equal(&Snapshot::of(&gw1)?)?;
            gw1.iptables_restore(variant, Family::V4, &text)?;
            gw1.write_sysctl("net/ipv4/ip_forward", "1")?;
            scene.expect_answer(Protocol::Tcp, 3306, "db1")
        })?;
    }
    Ok(())
}

#[test]
fn rules_for_targets_let_the_gateway_in_and_nobody_else() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let db1 = scene.article.db1.clone();
        let _db1 = serve(&db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        let rule = format!("-D INPUT -s {GW1}/32 -p tcp --dport 3306:3306 -j ACCEPT");
        db1.iptables(Variant::Nft, Family::V4, &rule)?;
        mysql(scene)?;
        scene.gateway.once_accepting()?;
        scene.expect_no_answer(Protocol::Tcp, 3306)?;

        db1.iptables_restore(Variant::Nft, Family::V4, &render(scene, "targets")?)?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        let direct = ask(&scene.article.app1, Protocol::Tcp, socket(DB1, 3306))?;
        ensure!(direct == Answer::Silence, "db1 is open to app1: {direct:?}");
        Ok(())
    })
}

#[test]
fn plan_touches_nothing_and_says_what_run_will_do() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            let saved = || Ok::<_, anyhow::Error>(rules(&gw1.iptables_save(variant, Family::V4)?));
            let before = Snapshot::of(&gw1)?;
            let administrator = saved()?;
            mysql(scene)?;
            let planned = plan(scene)?;
            before.expect_equal(&Snapshot::of(&gw1)?).context("after plan")?;
            scene.gateway.once_accepting()?;
            for rule in without(&saved()?, &administrator) {
                let (_, rule) = rule.split_once(' ').context("leave out the table")?;
                // A jump is put at a position: `-I CHAIN 1 -j …` becomes `-A CHAIN -j …`.
                let is_planned =
                    planned.lines().any(|line| line.replacen("-I ", "-A ", 1).replacen(" 1 -j", " -j", 1) == rule);
                ensure!(is_planned || rule.starts_with(':'), "{rule} was not planned:\n{planned}");
            }
            let rest = plan(scene)?;
            ensure!(!rest.contains("COMMIT"), "there is something to change after run:\n{rest}");

            scene.gateway.manifests().remove("mysql.yaml")?;
            let removal = plan(scene)?;
            ensure!(removal.contains("COMMIT"), "removing a forward plans nothing:\n{removal}");
            ensure!(saved()?.iter().any(|rule| rule.contains("DNAT --to-destination")), "plan removed the rule");
            Ok(())
        })?;
    }
    Ok(())
}
