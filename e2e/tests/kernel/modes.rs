//! A forward that is paused or planned changes nothing in the kernel, is repaired like any other, and what its plan shows
//! is what `Apply` then does.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, APP2, DB1, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::snapshot::{Snapshot, rules, without};
use sallyport_e2e::traffic::{Protocol, serve};
use sallyport_e2e::wait;

/// The forward that is carried on port 3306, asking for this.
fn mysql(port: u16, mode: &'static str) -> Forward {
    Forward { mode, target_port: Some(3306), ..Forward::tcp("mysql", port, &format!("{APP1}/32"), DB1) }
}

/// A forward with chains of its own.
fn second(mode: &'static str) -> Forward {
    let one = Forward::tcp("second", 3308, &format!("{APP1}/32"), DB1);
    Forward { mode, target_port: Some(3306), allow: vec![format!("{APP1}/32"), format!("{APP2}/32")], ..one }
}

/// Our rules and everybody else's for IPv4, each with its table; which chains there are is not among them.
fn saved(scene: &Scene) -> Result<Vec<String>> {
    let text = scene.article.gw1.iptables_save(scene.article.variant(), Family::V4)?;
    Ok(rules(&text).into_iter().filter(|line| line.contains(" -A ")).collect())
}

/// What `plan` prints about each planned forward, without the marks that make comments of it.
fn plans(scene: &Scene) -> Result<Vec<String>> {
    let mut command = scene.gateway.run_command()?;
    "plan".clone_into(command.get_mut(1).context("find the subcommand")?);
    let printed = scene.article.gw1.check(&command)?;
    ensure!(!printed.contains("COMMIT"), "something is to be loaded:\n{printed}");
    let sections = printed.split("# PortForward default/").skip(1).filter_map(|section| section.split_once('\n'));
    let changes = sections.filter(|(head, _)| head.ends_with("would change")).map(|(_, change)| change);
    Ok(changes.map(|change| change.replace("# - ", "- ").replace("# + ", "+ ")).collect())
}

/// The rules with `sign` in front, each with its table.
fn signed(plans: &[String], sign: &str) -> Vec<String> {
    let (mut table, mut found) = (String::new(), Vec::new());
    for line in plans.iter().flat_map(|plan| plan.lines()) {
        if let Some(name) = line.strip_prefix("# IPv4 ") {
            name.clone_into(&mut table);
        } else if let Some(rule) = line.strip_prefix(sign) {
            found.push(format!("{table} {rule}"));
        }
    }
    found.sort();
    found
}

fn sorted(mut rules: Vec<String>) -> Vec<String> {
    rules.sort();
    rules
}

fn run(variant: Variant) -> Result<()> {
    scene(variant, Backend::Iptables(variant), |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        scene.gateway.manifests().save(&mysql(3306, "Apply"))?;
        scene.gateway.once_accepting()?;
        let (before, rules_before) = (Snapshot::of(&gw1)?, saved(scene)?);

        // An edit that is paused, and one more forward that is.
        scene.gateway.manifests().save(&mysql(3307, "Paused"))?;
        scene.gateway.manifests().save(&second("Paused"))?;
        scene.gateway.once_accepting()?;
        before.expect_equal(&Snapshot::of(&gw1)?).context("paused")?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        scene.expect_no_answer(Protocol::Tcp, 3307)?;

        scene.gateway.manifests().save(&mysql(3307, "Plan"))?;
        scene.gateway.manifests().save(&second("Plan"))?;
        let printed = plans(scene)?;
        ensure!(printed.len() == 2, "not two plans: {printed:?}");
        scene.start_agent()?;
        wait::until_true("the plans in the log", SOON, || {
            let log = scene.gateway.log();
            Ok(printed.iter().all(|plan| log.contains(plan.trim_end())))
        })?;
        before.expect_equal(&Snapshot::of(&gw1)?).context("planned")?;

        // What is kept is kept against everybody.
        gw1.iptables(variant, Family::V4, "-t nat -F SALLY-MT")?;
        wait::until_true("the repair", SOON, || Ok(saved(scene)? == rules_before))?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;

        scene.gateway.manifests().save(&mysql(3307, "Apply"))?;
        scene.gateway.manifests().save(&second("Apply"))?;
        scene.wait_for_answer(Protocol::Tcp, 3307, "db1")?;
        scene.wait_for_answer(Protocol::Tcp, 3308, "db1")?;
        let rules_after = saved(scene)?;
        let (gone, come) = (without(&rules_before, &rules_after), without(&rules_after, &rules_before));
        ensure!(signed(&printed, "- ") == sorted(gone.clone()), "went: {gone:#?}\nplanned: {printed:#?}");
        ensure!(signed(&printed, "+ ") == sorted(come.clone()), "came: {come:#?}\nplanned: {printed:#?}");
        ensure!(!gone.is_empty() && come.len() > 2, "{gone:?} {come:?}");
        Ok(())
    })
}

#[test]
fn paused_and_planned_forwards_touch_nothing_and_the_plan_is_what_apply_does_with_nft() -> Result<()> {
    run(Variant::Nft)
}

#[test]
fn paused_and_planned_forwards_touch_nothing_and_the_plan_is_what_apply_does_with_legacy() -> Result<()> {
    run(Variant::Legacy)
}
