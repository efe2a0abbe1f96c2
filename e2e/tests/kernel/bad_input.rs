//! Bad input gives a clear error and never a rule; the good neighbour works, and old rules stay.

use std::fs::File;
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, Scene, scene, socket};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Outcome, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::snapshot::{self, without};
use sallyport_e2e::traffic::{Protocol, serve};

/// A `PortForward` named `bad`, before the one edit that makes it bad.
const GOOD_SPEC: &str = "\
apiVersion: sallyport.dev/v1alpha1
kind: PortForward
metadata: { name: bad }
spec:
  ports: [ { name: p, protocol: TCP, port: 8000 } ]
  sources: { allow: [ { cidr: 10.30.1.80/32 } ] }
  targets: [ { name: db1, ip: 10.30.1.79 } ]
";

/// What is replaced in [`GOOD_SPEC`], by what, and the field that the error must name.
const EDITS: &[(&str, &str, &str)] = &[
    ("port: 8000", "port: 0", "port"),
    ("port: 8000", "port: 65536", "port"),
    ("port: 8000", "port: -1", "port"),
    ("port: 8000", "port: eight", "port"),
    ("port: 8000", "port: 8000, endPort: 7999", "endPort"),
    ("port: 8000", "port: 8000, targetPort: 0", "targetPort"),
    ("port: 8000", "port: 65000, endPort: 65010, targetPort: 65530", "targetPort"),
    ("port: 8000", "port: 8000, endPort: 8300, targetPort: 9000", "ndPort"),
    ("protocol: TCP", "protocol: SCTP", "protocol"),
    ("[ { name: p, protocol: TCP, port: 8000 } ]", "[]", "ports"),
    ("port: 8000 } ]", "port: 8000 }, { name: p, protocol: TCP, port: 8001 } ]", "ports"),
    ("port: 8000 } ]", "port: 8000 }, { name: q, protocol: TCP, port: 8000 } ]", "ports"),
    ("port: 8000", "port: 22", "port"),
    ("port: 8000", "port: 6443", "port"),
    ("port: 8000", "port: 10250", "port"),
    ("port: 8000", "port: 30000", "port"),
    ("port: 8000", "port: 20, endPort: 25", "port"),
    ("[ { cidr: 10.30.1.80/32 } ]", "[]", "sources"),
    ("10.30.1.80/32", "10.30.1.80/33", "cidr"),
    ("10.30.1.80/32", "10.30.1.800/32", "cidr"),
    ("10.30.1.80/32", "'fd00:30::80/128'", "sources"),
    ("10.30.1.80/32", "\"10.30.1.80/32\\n-A FORWARD -j ACCEPT\"", "cidr"),
    ("10.30.1.80/32", "10.30.1.80/32 -j ACCEPT", "cidr"),
    ("[ { name: db1, ip: 10.30.1.79 } ]", "[]", "targets"),
    ("ip: 10.30.1.79 }", "ip: 10.30.1.79 }, { name: db1, ip: 10.30.1.81 }", "targets"),
    ("ip: 10.30.1.79", "ip: 10.30.1.79, weight: 1001", "weight"),
    ("ip: 10.30.1.79", "ip: 10.30.1.79, weight: -1", "weight"),
    ("10.30.1.79", "db1", "ip"),
    ("10.30.1.79", "\"10.30.1.79; -j ACCEPT\"", "ip"),
    ("10.30.1.79", "\"10.30.1.79\\nCOMMIT\"", "ip"),
    ("10.30.1.79", "127.0.0.1", "targets"),
    ("10.30.1.79", "0.0.0.0", "targets"),
    ("10.30.1.79", "169.254.169.254", "targets"),
    ("10.30.1.79", "224.0.0.1", "targets"),
    ("10.30.1.79", "255.255.255.255", "targets"),
    ("10.30.1.79", "10.30.1.78", "targets"),
    ("10.30.1.79", "10.40.0.1", "targets"),
    ("10.30.1.79", "'::1'", "targets"),
    ("10.30.1.79", "'::'", "targets"),
    ("10.30.1.79", "'fe80::1'", "targets"),
    ("10.30.1.79", "'ff02::1'", "targets"),
    ("10.30.1.79", "'::ffff:10.30.1.79'", "targets"),
    ("10.30.1.79", "'64:ff9b::a1e:14f'", "targets"),
    ("spec:\n", "spec:\n  addresses: [ 127.0.0.1 ]\n", "addresses"),
    ("spec:\n", "spec:\n  pool: elsewhere\n", "pool"),
    ("spec:\n", "spec:\n  colour: red\n", "colour"),
    ("spec:\n", "spec:\n  sourceNAT: { mode: Sometimes }\n", "sourceNAT"),
    ("port: 8000", "port: 8000, speed: 5", "speed"),
    ("name: bad", "name: \"bad; -j ACCEPT\"", "name"),
    ("name: bad", "name: \"bad\\n-A INPUT -j ACCEPT\"", "name"),
    ("name: bad", "name: bad, namespace: \"a b\"", "namespace"),
    ("port: 8000", "port: 3306", "3306"),
    ("kind: PortForward", "kind: Gateway", "kind"),
    ("v1alpha1", "v9", "apiVersion"),
];

fn good(scene: &Scene) -> Result<()> {
    scene.gateway.manifests().save(&Forward::tcp("good", 3306, &format!("{APP1}/32"), DB1))
}

fn printed(outcome: &Outcome) -> String {
    format!("{}{}", outcome.stdout, outcome.stderr)
}

/// The file `bad.yaml` is there: `run --once` fails and names all of `words`, and the rules are `rules`.
fn is_refused(scene: &Scene, what: &str, words: &[&str], rules: &str) -> Result<()> {
    let outcome = scene.gateway.once()?;
    let printed = printed(&outcome);
    ensure!(outcome.code == Some(1), "{what}: exit code {:?}, not 1:\n{printed}", outcome.code);
    for word in words {
        ensure!(printed.contains(word), "{what}: {word:?} is not named:\n{printed}");
    }
    ensure!(!printed.contains("panicked"), "{what}: {printed}");
    let now = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
    let (before, after) = (snapshot::rules(rules), snapshot::rules(&now));
    let (gone, new) = (without(&before, &after), without(&after, &before));
    ensure!(now == rules, "{what}: rules gone: {gone:#?}\nnew rules: {new:#?}\n{printed}");
    let six = scene.article.gw1.iptables_save(Variant::Nft, Family::V6)?;
    ensure!(!six.contains("DNAT"), "{what}: an IPv6 rule was made:\n{six}");
    Ok(())
}

#[test]
fn each_bad_object_is_named_makes_no_rule_and_harms_nobody() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        good(scene)?;
        scene.gateway.once_accepting()?;
        let rules = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
        let mut wrong = Vec::new();
        for (from, to, field) in EDITS {
            let manifest = GOOD_SPEC.replacen(from, to, 1);
            ensure!(manifest != GOOD_SPEC, "{from:?} is not in the manifest");
            scene.gateway.manifests().write("bad.yaml", &manifest)?;
            let object = if to.contains("\"bad") { "bad.yaml" } else { "bad" };
            if let Err(error) = is_refused(scene, to, &["bad.yaml", object, field], &rules) {
                wrong.push(format!("{error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), EDITS.len(), wrong.join("\n---\n"));
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        scene.expect_no_answer(Protocol::Tcp, 8000)?;
        figure(18, format_args!("{} bad manifests of a lone gateway, each named; no rule", EDITS.len()));

        // And the manifest itself is fine.
        scene.gateway.manifests().write("bad.yaml", GOOD_SPEC)?;
        scene.gateway.once_accepting()
    })
}

#[test]
fn object_without_a_grant_is_refused_and_one_with_a_grant_is_not() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let pool = "\
apiVersion: sallyport.dev/v1alpha1
kind: GatewayPool
metadata: { name: default }
spec:
  nodeSelector: {}
  listen: { addresses: [ { type: NodeInternalIP } ] }
  grants:
    - name: databases
      namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: default } }
      ports: [ { protocol: TCP, port: 3306, endPort: 3307 } ]
      targetCIDRs: [ 10.30.1.79/32 ]
      sourceCIDRs: [ 10.30.0.0/23 ]
";
        scene.gateway.manifests().write("pool.yaml", pool)?;
        good(scene)?;
        scene.gateway.once_accepting()?;
        let rules = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
        let covered = GOOD_SPEC.replace("port: 8000", "port: 3307");
        for (from, to) in [
            ("port: 3307", "port: 3308"),
            ("10.30.1.80/32", "0.0.0.0/0"),
            ("10.30.1.79", "10.30.1.81"),
            ("name: bad", "name: bad, namespace: stranger"),
        ] {
            let manifest = covered.replace(from, to);
            scene.gateway.manifests().write("bad.yaml", manifest)?;
            is_refused(scene, to, &["bad.yaml", "bad"], &rules)?;
        }
        scene.gateway.manifests().write("bad.yaml", covered)?;
        scene.gateway.once_accepting()
    })
}

#[test]
fn pool_with_a_mistake_does_not_open_the_gateway() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let pool = "\
apiVersion: sallyport.dev/v1alpha1
kind: GatewayPool
metadata: { name: default }
spec:
  nodeSelector: {}
  grants: [ { name: databases, namespaceSelektor: {} } ]
";
        scene.gateway.manifests().write("pool.yaml", pool)?;
        good(scene)?;
        let outcome = scene.gateway.once()?;
        ensure!(outcome.code == Some(1), "exit code {:?}", outcome.code);
        ensure!(printed(&outcome).contains("pool.yaml"), "{}", printed(&outcome));
        let now = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
        ensure!(!now.contains("DNAT"), "without a grant a forward was made:\n{now}");
        Ok(())
    })
}

#[test]
fn duplicate_object_is_refused() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        good(scene)?;
        scene.gateway.once_accepting()?;
        let manifest = Forward::tcp("good", 9000, &format!("{APP1}/32"), DB1).yaml();
        scene.gateway.manifests().write("zwilling.yaml", manifest)?;
        let outcome = scene.gateway.once()?;
        ensure!(outcome.code == Some(1), "two objects of one name were accepted");
        let printed = printed(&outcome);
        ensure!(printed.contains("zwilling.yaml") && printed.contains("good"), "{printed}");
        let now = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
        ensure!(!now.contains("9000"), "the duplicate made a rule:\n{now}");
        Ok(())
    })
}

#[test]
fn file_that_cannot_be_decoded_keeps_the_old_rules() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        good(scene)?;
        scene.gateway.manifests().write("bad.yaml", GOOD_SPEC)?;
        scene.gateway.once_accepting()?;
        let rules = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
        let half = GOOD_SPEC.get(..GOOD_SPEC.len() / 2).context("halve the manifest")?;
        let binary: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
        let deep = "[".repeat(100_000);
        let cases: [(&str, &[u8]); 6] = [
            ("half-written", half.as_bytes()),
            ("binary", &binary),
            ("not YAML", b"{ : ["),
            ("an alias bomb", bomb.as_bytes()),
            ("deeply nested", deep.as_bytes()),
            ("a list of text", b"- one\n- two\n"),
        ];
        for (what, content) in cases {
            scene.gateway.manifests().write("bad.yaml", content)?;
            is_refused(scene, what, &["bad.yaml"], &rules)?;
        }

        let megabyte = vec![b'x'; 1 << 20];
        let mut file = File::create(scene.gateway.manifests().file("bad.yaml"))?;
        for _ in 0..100 {
            file.write_all(&megabyte)?;
        }
        drop(file);
        is_refused(scene, "100 MB", &["bad.yaml"], &rules)?;

        scene.gateway.manifests().remove("bad.yaml")?;
        scene.gateway.once_accepting()?;
        let now = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;
        ensure!(!now.contains(":8000"), "the deleted file's forward is still there:\n{now}");
        Ok(())
    })
}

#[test]
fn running_agent_lives_through_bad_files_and_a_folder_that_vanishes() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        good(scene)?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
        let rules = scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?;

        scene.gateway.manifests().write("good.yaml", "kind: [")?;
        scene.agent()?.wait_for("good.yaml", std::time::Duration::from_secs(5))?;
        let folder = scene.gateway.manifests().path().to_owned();
        let elsewhere = folder.with_extension("away");
        std::fs::rename(&folder, &elsewhere).context("move the folder away")?;
        let unchanged = sallyport_e2e::wait::holds_for(
            "the rules stay while the manifests are away",
            std::time::Duration::from_secs(2),
            || Ok(scene.article.gw1.iptables_save(Variant::Nft, Family::V4)? == rules),
        );
        std::fs::rename(&elsewhere, &folder).context("move the folder back")?;
        unchanged?;
        ensure!(scene.agent()?.ended()?.is_none(), "the agent ended");

        // It watches the folder that came back.
        good(scene)?;
        scene.gateway.manifests().save(&Forward::tcp("new", 3307, &format!("{APP1}/32"), DB1))?;
        scene.article.let_gateway_in(&scene.article.db1, Protocol::Tcp, 3307, 3307)?;
        let _new = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3307))])?;
        scene.wait_for_answer(Protocol::Tcp, 3307, "db1")?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")?;
        ensure!(!scene.gateway.log().contains("panicked"), "the agent panicked at {GW1}");
        Ok(())
    })
}
