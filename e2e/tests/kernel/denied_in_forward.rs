//! What others deny by name in `FORWARD` wins over a forward and is named, what they drop without naming anything does not, and
//! a first rule that drops everything stops all of it. The rules are in the shapes in which programs and handbooks write them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, APP1_V6, APP2, DB1, DB1_V6, GW1, GW1_V6, SOON, Scene, scene, socket};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::Protocol::{self, Tcp};
use sallyport_e2e::traffic::{ask, serve};
use sallyport_e2e::wait;

/// The longest that a load may go on.
const LOAD: Duration = Duration::from_mins(1);
/// How often others put their rules to the top.
const CHANGES: usize = 50;

/// Enterprise Linux: the file of its iptables service, whose only rule in `FORWARD` rejects.
const ENTERPRISE_LINUX: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
";

/// In both variants of iptables.
fn in_both(body: impl Fn(&mut Scene, Variant) -> Result<()>) -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| body(scene, variant))?;
    }
    Ok(())
}

fn iptables(scene: &Scene, variant: Variant, arguments: &str) -> Result<()> {
    scene.article.gw1.iptables(variant, Family::V4, arguments)
}

fn restore(scene: &Scene, variant: Variant, text: &str) -> Result<()> {
    scene.article.gw1.iptables_restore(variant, Family::V4, text)
}

/// The rules of gw1's `FORWARD`.
fn forward_rules(scene: &Scene, variant: Variant) -> Result<Vec<String>> {
    let saved = scene.article.gw1.iptables_save(variant, Family::V4)?;
    let rules = saved.lines().filter_map(|line| line.strip_prefix("-A FORWARD "));
    Ok(rules.map(str::to_owned).collect())
}

fn jump_of(rules: &[String]) -> Option<usize> {
    rules.iter().position(|rule| rule == "-j SALLY-FWD")
}

/// The agent has said all of `words` in one line since it had written `before`.
fn says(scene: &Scene, before: usize, words: &[&str]) -> Result<()> {
    wait::until_true(&format!("the agent saying {words:?}"), SOON, || {
        let log = scene.gateway.log();
        Ok(log[before..].lines().any(|line| words.iter().all(|word| line.contains(word))))
    })
    .map(drop)
}

/// Runs the command that the agent named last.
fn obey(scene: &Scene) -> Result<String> {
    let log = scene.gateway.log();
    let remedy = log.rsplit_once("run `").and_then(|(_, rest)| rest.split('`').next()).context("find the remedy")?;
    scene.article.gw1.check(&["sh", "-c", remedy])?;
    Ok(remedy.to_owned())
}

fn works(scene: &Scene) -> Result<()> {
    for protocol in [Tcp, Protocol::Udp] {
        scene.wait_for_answer(protocol, 3306, "db1")?;
    }
    Ok(())
}

#[test]
fn an_admins_deny_at_the_top_is_obeyed_and_named_and_stays() -> Result<()> {
    in_both(|scene, variant| {
        let _db1 = scene.forward_to_db1()?;
        let before = scene.gateway.log().len();
        iptables(scene, variant, &format!("-I FORWARD 1 -s {APP1}/32 -d {DB1}/32 -j DROP"))?;
        let named = format!("rule `-A FORWARD -s {APP1}/32 -d {DB1}/32 -j DROP`");
        says(scene, before, &["are dropped by", &named, "that wins"])?;
        scene.wait_for_no_answer(Tcp, 3306)?;
        ensure!(forward_rules(scene, variant)?[0].starts_with(&format!("-s {APP1}/32")), "the deny was moved");
        ensure!(
            !scene.gateway.log()[before..].contains("drift"),
            "a deny was taken for drift:\n{}",
            scene.gateway.log()
        );
        // Also after our jump had to be made anew.
        iptables(scene, variant, "-D FORWARD -j SALLY-FWD")?;
        wait::until_true("our jump being back", SOON, || Ok(jump_of(&forward_rules(scene, variant)?).is_some()))?;
        scene.expect_no_answer(Tcp, 3306)?;
        obey(scene)?;
        works(scene)
    })
}

#[test]
fn a_first_rule_that_drops_everything_stops_all_forwarding_until_it_is_taken_out() -> Result<()> {
    in_both(|scene, variant| {
        let _db1 = scene.forward_to_db1()?;
        for stop in ["-j DROP", "-j REJECT --reject-with icmp-port-unreachable"] {
            let before = scene.gateway.log().len();
            iptables(scene, variant, &format!("-I FORWARD 1 {stop}"))?;
            says(scene, before, &["ForwardingStopped", "somebody has stopped all forwarding"])?;
            scene.wait_for_no_answer(Tcp, 3306)?;
            // A rule of ours that is edited meanwhile is repaired, and the stop stays.
            iptables(scene, variant, "-A SALLY-FWD -j RETURN")?;
            says(scene, before, &["drift repaired"])?;
            ensure!(forward_rules(scene, variant)?[0] == stop, "the stop was moved");
            let remedy = obey(scene)?;
            ensure!(
                remedy == format!("{} -D FORWARD 1", variant.program(Family::V4, "").trim_end_matches('-')),
                "{remedy}"
            );
            works(scene)?;
        }
        Ok(())
    })
}

#[test]
fn a_reject_that_a_distribution_ships_is_no_stop() -> Result<()> {
    in_both(|scene, variant| {
        iptables(scene, variant, "-F FORWARD")?;
        restore(scene, variant, ENTERPRISE_LINUX)?;
        let _db1 = scene.forward_to_db1()?;
        let rules = forward_rules(scene, variant)?;
        ensure!(jump_of(&rules) == Some(0) && rules[1].starts_with("-j REJECT"), "{rules:#?}");
        // As `systemctl restart iptables` does it.
        let flushing = variant.program(Family::V4, "restore");
        scene.article.gw1.check_with_input(&[flushing.as_str()], ENTERPRISE_LINUX.as_bytes())?;
        works(scene)?;
        ensure!(!scene.gateway.log().contains("ForwardingStopped"), "{}", scene.gateway.log());
        Ok(())
    })
}

/// What docker's handbook says of `DOCKER-USER`: whoever is not `only` gets through to nobody.
fn docker_user(only: &str) -> String {
    format!(
        "*filter\n:DOCKER-USER - [0:0]\n-I FORWARD 1 -j DOCKER-USER\n-A DOCKER-USER -i eth0 ! -s {only}/32 -j DROP\n\
         -A DOCKER-USER -j RETURN\nCOMMIT\n"
    )
}

#[test]
fn what_dockers_handbook_denies_is_denied_to_forwards_too() -> Result<()> {
    in_both(|scene, variant| {
        restore(scene, variant, &docker_user(APP1))?;
        // Answers of db1 come in by the same interface and are told by nobody; the handbook has this line before, too.
        iptables(scene, variant, "-I DOCKER-USER 1 -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN")?;
        let _db1 = scene.forward_to_db1()?;
        scene.gateway.manifests().save(&Forward::tcp("tcp", 3306, &format!("{APP2}/32"), DB1))?;
        says(scene, 0, &["are dropped by", "-A DOCKER-USER ! -s"])
    })
}

/// A pool for everybody whose forwards win.
const FIRST: &str = "apiVersion: sallyport.dev/v1alpha1\nkind: GatewayPool\nmetadata: { name: default }\nspec:\n  \
     nodeSelector: {}\n  firewall: { order: First }\n  grants: [ { name: g, namespaceSelector: {}, ports: \
     [ { port: 1, endPort: 65535 }, { protocol: UDP, port: 1, endPort: 65535 } ], targetCIDRs: [ 0.0.0.0/0 ], \
     sourceCIDRs: [ 0.0.0.0/0 ] } ]\n";

#[test]
fn forwards_win_over_denies_where_the_pool_says_so_and_follow_when_it_says_otherwise() -> Result<()> {
    in_both(|scene, variant| {
        restore(scene, variant, &docker_user(APP2))?;
        scene.gateway.manifests().write("pool.yaml", FIRST)?;
        let _db1 = scene.forward_to_db1()?;
        // docker starts anew, and puts its jump to the top.
        iptables(scene, variant, "-I FORWARD 1 -j DOCKER-USER")?;
        wait::until_true("our jump first again", SOON, || Ok(jump_of(&forward_rules(scene, variant)?) == Some(0)))?;
        works(scene)?;
        let before = scene.gateway.log().len();
        scene.gateway.manifests().write("pool.yaml", FIRST.replace("order: First", "order: AfterDenies"))?;
        says(scene, before, &["are dropped by", "-A DOCKER-USER"])?;
        scene.wait_for_no_answer(Tcp, 3306)?;
        Ok(())
    })
}

#[test]
fn a_host_that_an_older_version_served_goes_on_as_it_did_and_names_what_will_win() -> Result<()> {
    in_both(|scene, variant| {
        let _db1 = scene.forward_to_db1()?;
        // What an older version leaves: its jump first, its intents, and no word of who wins.
        scene.agent()?.kill()?;
        std::fs::remove_file(scene.gateway.state().join("order.json")).context("take the order away")?;
        iptables(scene, variant, "-D FORWARD -j SALLY-FWD")?;
        iptables(scene, variant, "-I FORWARD 1 -j SALLY-FWD")?;
        restore(scene, variant, &docker_user(APP2).replace("-I FORWARD 1", "-I FORWARD 2"))?;
        let before = scene.gateway.log().len();
        scene.start_agent()?;
        says(scene, before, &["an older version has served this host", "spec.firewall.order"])?;
        says(scene, before, &["pass now", "from version 0.3.0 on are dropped by", "-A DOCKER-USER ! -s"])?;
        works(scene)?;
        // Also after all is gone, and docker has come first.
        iptables(scene, variant, "-F FORWARD")?;
        iptables(scene, variant, "-I FORWARD 1 -j DOCKER-USER")?;
        works(scene)?;
        ensure!(jump_of(&forward_rules(scene, variant)?) == Some(0), "{:#?}", forward_rules(scene, variant)?);
        let once = scene.gateway.log()[before..].matches("an older version has served this host").count();
        ensure!(once == 1, "it was said {once} times");
        Ok(())
    })
}

#[test]
fn a_chain_that_denies_some_and_drops_the_rest_is_named_with_the_line_that_helps() -> Result<()> {
    in_both(|scene, variant| {
        let blocklist = format!(
            "*filter\n:MYFW - [0:0]\n-F FORWARD\n-A FORWARD -j MYFW\n-A MYFW -s {APP2}/32 -j DROP\n\
             -A MYFW -p tcp -m tcp --dport 80 -j ACCEPT\n-A MYFW -j DROP\nCOMMIT\n"
        );
        restore(scene, variant, &blocklist)?;
        let server = scene.forward_to_db1();
        ensure!(server.is_err(), "it works behind a chain that drops the rest");
        let line = "-t filter -I MYFW 3 -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT";
        says(scene, 0, &["are dropped by", "rule `-A MYFW -j DROP`", line])?;
        obey(scene)?;
        let _db1 = serve(&scene.article.db1, &[Tcp, Protocol::Udp].map(|protocol| (protocol, socket(DB1, 3306))))?;
        works(scene)?;
        ensure!(jump_of(&forward_rules(scene, variant)?) == Some(1), "before its denies");
        Ok(())
    })
}

/// Rules that others keep putting to the top, as kube-router, Calico, crowdsec and csf do it.
const AT_THE_TOP: [&str; 4] = [
    "*filter\n:KUBE-ROUTER-FORWARD - [0:0]\n:KUBE-POD-FW-1 - [0:0]\n-I FORWARD 1 -j KUBE-ROUTER-FORWARD\n\
     -A KUBE-ROUTER-FORWARD -d 10.244.1.7/32 -j KUBE-POD-FW-1\n-A KUBE-ROUTER-FORWARD -m mark --mark 0x20000/0x20000 -j ACCEPT\n\
     -A KUBE-POD-FW-1 -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n",
    "*filter\n:cali-FORWARD - [0:0]\n:cali-tw-1 - [0:0]\n-I FORWARD 1 -j cali-FORWARD\n-A cali-FORWARD -o cali+ -g cali-tw-1\n\
     -A cali-tw-1 -j DROP\nCOMMIT\n",
    "*filter\n:CROWDSEC_CHAIN - [0:0]\n-I FORWARD 1 -j CROWDSEC_CHAIN\n-A CROWDSEC_CHAIN -s 203.0.113.0/24 -j DROP\nCOMMIT\n",
    "*filter\n:DENYIN - [0:0]\n-I FORWARD 1 -j DENYIN\n-A DENYIN -s 198.51.100.0/24 -j DROP\nCOMMIT\n",
];

#[test]
fn whoever_keeps_putting_denies_of_others_to_the_top_is_let_be_and_nothing_is_lost() -> Result<()> {
    in_both(|scene, variant| {
        let _db1 = scene.forward_to_db1()?;
        let before = scene.gateway.log().len();
        let load = scene.load(LOAD)?;
        for text in AT_THE_TOP.iter().cycle().take(CHANGES) {
            restore(scene, variant, text)?;
        }
        let report = load.end()?;
        report.expect_no_loss().context("while others took the top")?;
        ensure!(!scene.gateway.log()[before..].contains("drift"), "we fought:\n{}", scene.gateway.log());
        let rules = forward_rules(scene, variant)?;
        let above = jump_of(&rules).context("find our jump")?;
        ensure!(above >= CHANGES, "our jump went up: {rules:#?}");
        figure(36, format_args!("{variant}: {CHANGES} times somebody's denies at the top: {report}"));
        Ok(())
    })
}

#[test]
fn a_default_that_comes_before_our_jump_is_outranked_and_denies_above_it_are_not() -> Result<()> {
    in_both(|scene, variant| {
        let _db1 = scene.forward_to_db1()?;
        iptables(scene, variant, "-I FORWARD 1 -m conntrack --ctstate NEW -j REJECT")?;
        works(scene)?;
        let rules = forward_rules(scene, variant)?;
        ensure!(jump_of(&rules) == Some(0), "{rules:#?}");
        // What others deny stays above it.
        iptables(scene, variant, &format!("-I FORWARD 1 -s {APP2}/32 -j DROP"))?;
        iptables(scene, variant, "-D FORWARD -j SALLY-FWD")?;
        wait::until_true("our jump between both", SOON, || Ok(jump_of(&forward_rules(scene, variant)?) == Some(1)))?;
        works(scene)
    })
}

#[test]
fn what_is_denied_and_stopped_in_one_family_is_told_of_that_family() -> Result<()> {
    in_both(|scene, variant| {
        scene.article.guard_ipv6(3306, 3306)?;
        let gw1 = scene.article.gw1.clone();
        let servers = [(Tcp, socket(DB1, 3306)), (Tcp, socket(DB1_V6, 3306))];
        let _db1 = serve(&scene.article.db1, &servers)?;
        scene.gateway.manifests().save(&Forward::tcp("four", 3306, &format!("{APP1}/32"), DB1))?;
        scene.gateway.manifests().save(&Forward::tcp("six", 3306, &format!("{APP1_V6}/128"), DB1_V6))?;
        scene.start_agent()?;
        let answers = |scene: &Scene, gw1: &str| Ok(ask(&scene.article.app1, Tcp, socket(gw1, 3306))?.is_from("db1"));
        for gw1 in [GW1, GW1_V6] {
            wait::until_true("both families", SOON, || answers(scene, gw1))?;
        }
        for (rule, words) in [
            (format!("-s {APP1_V6}/128 -j DROP"), ["HostFirewallConflict", "ip6tables", "that wins"]),
            ("-j DROP".to_owned(), ["ForwardingStopped", "ip6tables", "-D FORWARD 1"]),
        ] {
            let before = scene.gateway.log().len();
            gw1.iptables(variant, Family::V6, &format!("-I FORWARD 1 {rule}"))?;
            says(scene, before, &words)?;
            wait::until_true("IPv6 silent", SOON, || Ok(!answers(scene, GW1_V6)?))?;
            ensure!(answers(scene, GW1)?, "IPv4 was hit, too");
            obey(scene)?;
            wait::until_true("IPv6 again", SOON, || answers(scene, GW1_V6))?;
        }
        Ok(())
    })
}
