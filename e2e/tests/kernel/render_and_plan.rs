//! `render` and `plan` print what `run` does and touch nothing. What they print works when an administrator runs it, and harms
//! nobody when it is fed to the wrong program.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, APP1_V6, DB1, DB1_V6, GW1, GW1_V6, Scene, scene, socket};
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
        "--node-address",
        GW1_V6,
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

/// A pool that grants everything on gw1, programmed through one variant.
fn pool(variant: Variant) -> String {
    let backend = match variant {
        Variant::Nft => "IptablesNft",
        Variant::Legacy => "IptablesLegacy",
    };
    format!(
        "apiVersion: sallyport.dev/v1alpha1
kind: GatewayPool
metadata: {{ name: default }}
spec:
  nodeSelector: {{}}
  listen: {{ addresses: [{{ type: CIDR, value: {GW1}/32 }}, {{ type: CIDR, value: '{GW1_V6}/128' }}] }}
  firewall: {{ backend: {backend} }}
  grants:
    - name: all
      namespaceSelector: {{}}
      ports: [{{ port: 1, endPort: 65535 }}]
      targetCIDRs: [0.0.0.0/0, '::/0']
      sourceCIDRs: [0.0.0.0/0, '::/0']
"
    )
}

/// Rules of gw1's administrators in the tables that ours stand in too, beside the firewall with its policies.
fn guard(scene: &Scene, variant: Variant) -> Result<()> {
    scene.article.guard_ipv6(3306, 3307)?;
    for family in FAMILIES {
        for rule in [
            "-t nat -A PREROUTING -p tcp --dport 8443 -j REDIRECT --to-ports 443",
            "-t nat -A POSTROUTING -o eth9 -j MASQUERADE",
            "-A FORWARD -i eth9 -j ACCEPT",
        ] {
            scene.article.gw1.iptables(variant, family, rule)?;
        }
    }
    Ok(())
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[test]
fn what_is_printed_leaves_the_hosts_firewall_alone_whoever_it_is_fed_to() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            let _db1 = serve(
                &scene.article.db1,
                &[(Protocol::Tcp, socket(DB1, 3306)), (Protocol::Tcp, socket(DB1_V6, 3307))],
            )?;
            guard(scene, variant)?;
            mysql(scene)?;
            scene.gateway.manifests().write("pool.yaml", pool(variant))?;
            for (name, mode) in [("six", "Apply"), ("planned", "Plan")] {
                let port = if mode == "Plan" { 3308 } else { 3307 };
                let forward = Forward::tcp(name, port, &format!("{APP1_V6}/128"), DB1_V6);
                scene.gateway.manifests().save(&Forward { mode, ..forward })?;
            }
            let save = || Ok::<_, anyhow::Error>(FAMILIES.map(|family| gw1.iptables_save(variant, family)));
            let administrators: Vec<_> = save()?.into_iter().collect::<Result<_>>()?;

            let before = Snapshot::of(&gw1)?;
            let planned = plan(scene)?;
            for (what, printed) in
                [("plan", &planned), ("gateway", &render(scene, "gateway")?), ("targets", &render(scene, "targets")?)]
            {
                for program in Variant::ALL.iter().flat_map(|any| FAMILIES.map(|family| any.program(family, "restore")))
                {
                    let outcome = gw1.run_with_input(&[&program], printed.as_bytes())?;
                    before.expect_equal(&Snapshot::of(&gw1)?).with_context(|| format!("{what} into {program}"))?;
                    ensure!(!outcome.success(), "{program} took {what} for its own:\n{printed}");
                }
            }

            // As it is printed: a shell script.
            gw1.check_with_input(&["sh"], planned.as_bytes())?;
            for (administrators, now) in administrators.iter().zip(save()?) {
                let (administrators, now) = (rules(administrators), rules(&now?));
                let ours = without(&now, &administrators);
                ensure!(without(&now, &ours) == administrators, "{administrators:#?} became {now:#?}");
                // A table that nobody had comes with all of its chains.
                let is_ours = |rule: &String| {
                    rule.contains("SALLY-") || rule.starts_with("mangle :") && rule.ends_with(" ACCEPT")
                };
                ensure!(!ours.is_empty() && ours.iter().all(is_ours), "not only ours: {ours:#?}");
            }
            for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                gw1.write_sysctl(setting, "1")?;
            }
            scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
            let six = ask(&scene.article.app1, Protocol::Tcp, socket(GW1_V6, 3307))?;
            ensure!(six.is_from("db1"), "{six:?} by IPv6");

            // Nothing is left but what is only planned; that is comments, which nobody takes for anything.
            let rest = plan(scene)?;
            ensure!(rest.contains("# the rules are as they should be\n"), "{rest}");
            ensure!(rest.contains("# + -A SALLY-") && rest.lines().all(|line| line.starts_with('#')), "{rest}");
            let before = Snapshot::of(&gw1)?;
            for program in FAMILIES.map(|family| variant.program(family, "restore")) {
                gw1.check_with_input(&[&program], rest.as_bytes())?;
            }
            before.expect_equal(&Snapshot::of(&gw1)?)
        })?;
    }
    Ok(())
}

#[test]
fn rendered_rules_work_when_loaded_by_hand() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
            mysql(scene)?;
            scene.gateway.manifests().write("pool.yaml", pool(variant))?;
            let before = Snapshot::of(&gw1)?;
            let text = render(scene, "gateway")?;
            before.expect_equal(&Snapshot::of(&gw1)?)?;
            gw1.check_with_input(&["sh"], text.as_bytes())?;
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

        db1.check_with_input(&["sh"], render(scene, "targets")?.as_bytes())?;
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
