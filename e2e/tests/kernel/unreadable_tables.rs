//! A rule that iptables cannot read, in one of its tables: what is no longer allowed is taken away and proven to be gone
//! all the same, no jump is doubled, nothing new is programmed, and nothing is called verified until the rule is gone.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, SOON, Scene, scene, socket};
use sallyport_e2e::faults::figure;
use sallyport_e2e::gateway::{Backend, Gateway};
use sallyport_e2e::lab::{self, Family, Host, Lab, Outcome, Variant};
use sallyport_e2e::manifest::{Forward, Manifests};
use sallyport_e2e::traffic::{Protocol, hold, serve};
use sallyport_e2e::wait;

/// A rule that iptables 1.8.9 cannot read: the table and chain that it goes to, and what it says. None touches the traffic of
/// these tests. Of the first kind the save program says that the table is incompatible, and ends well; at the second it
/// gives up and fails.
const NATIVE: [(&str, &str, &str); 9] = [
    ("nat", "PREROUTING", "tcp dport 8080 counter dnat to 10.30.1.82:80"),
    ("nat", "POSTROUTING", "ip daddr 192.0.2.1 counter masquerade"),
    ("nat", "PREROUTING", "fib daddr type blackhole counter return"),
    ("nat", "OUTPUT", "tcp dport { 9998, 9999 } ct state new counter return"),
    ("filter", "FORWARD", "tcp dport { 9998, 9999 } ct state new counter accept"),
    ("filter", "FORWARD", "ip daddr 192.0.2.1 reject"),
    ("filter", "extra", "limit rate over 5/second counter drop"),
    ("nat", "PREROUTING", "meta skuid 12345 counter return"),
    ("nat", "PREROUTING", "ip length 65000-65001 return"),
];

/// How often each of our entry chains is jumped to, by `nft list ruleset`.
fn jumps(host: &Host) -> Result<Vec<usize>> {
    let rules = host.check(&["nft", "list", "ruleset"])?;
    let count = |chain: &str| rules.matches(&format!("jump {chain}\n")).count();
    Ok(["SALLY-PRE", "SALLY-POST", "SALLY-FWD"].map(count).to_vec())
}

fn is_gone(host: &Host) -> Result<bool> {
    Ok(!host.check(&["nft", "list", "ruleset"])?.contains("SALLY"))
}

/// Puts a native rule into a table of iptables, before all others.
fn add(host: &Host, family: &str, (table, chain, rule): (&str, &str, &str)) -> Result<()> {
    let base = match chain {
        "PREROUTING" => "{ type nat hook prerouting priority dstnat; }",
        "POSTROUTING" => "{ type nat hook postrouting priority srcnat; }",
        "OUTPUT" => "{ type nat hook output priority -100; }",
        "FORWARD" => "{ type filter hook forward priority filter; }",
        _ => "",
    };
    let text = format!(
        "add table {family} {table}\nadd chain {family} {table} {chain} {base}\ninsert rule {family} {table} {chain} {rule}\n"
    );
    host.check_with_input(&["nft", "-f", "-"], text.as_bytes()).with_context(|| format!("add {rule}")).map(drop)
}

/// Takes it away again: the first rule of its chain that is nobody else's.
fn remove(host: &Host, (table, chain, _): (&str, &str, &str)) -> Result<()> {
    let listing = host.check(&["nft", "-a", "list", "chain", "ip", table, chain])?;
    let rule = |line: &&str| line.contains(" # handle ") && !line.contains('{') || line.contains("dport { ");
    let line = listing.lines().filter(|line| !line.contains("chain ")).find(rule).context("find the native rule")?;
    let handle = line.rsplit(' ').next().context("read its handle")?;
    host.check(&["nft", "delete", "rule", "ip", table, chain, "handle", handle]).map(drop)
}

fn mysql(name: &str, port: u16) -> Forward {
    let forward = Forward::tcp(name, port, &format!("{APP1}/32"), DB1);
    Forward { target_port: Some(3306), ..forward }
}

/// What the agent says, how often.
fn said(scene: &Scene, what: &str) -> usize {
    scene.gateway.log().matches(what).count()
}

const NOT_VERIFIED: &str = "not verified, and nothing new is programmed";

#[test]
fn native_rules_of_every_kind_double_no_jump_and_keep_nothing_open() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        scene.start_agent()?;
        let mut longest = Duration::ZERO;
        for native in NATIVE {
            longest = longest.max(one_kind(scene, &gw1, native).with_context(|| format!("{native:?}"))?);
        }
        let (kinds, longest) = (NATIVE.len(), longest.as_millis());
        figure(
            34,
            format!("{kinds} kinds of rules: no jump doubled, a deleted forward closed and cut within {longest} ms"),
        );
        Ok(())
    })
}

/// Says how long a deleted forward's connection lived on.
fn one_kind(scene: &Scene, gw1: &Host, native: (&str, &str, &str)) -> Result<Duration> {
    let told = said(scene, NOT_VERIFIED);
    for (name, port) in [("goes", 3306), ("stays", 3307)] {
        scene.gateway.manifests().save(&mysql(name, port))?;
        scene.wait_for_answer(Protocol::Tcp, port, "db1")?;
    }
    let before = jumps(gw1)?;
    ensure!(before == [2, 1, 1], "{before:?}");
    add(gw1, "ip", native)?;
    wait::until_true("the agent naming the rule", SOON, || Ok(said(scene, NOT_VERIFIED) > told))?;
    let log = scene.gateway.log();
    let named = log.lines().rfind(|line| line.contains(NOT_VERIFIED)).unwrap_or_default().to_owned();
    ensure!(named.contains(&format!("cannot read table {}", native.0)), "{named}");
    ensure!(named.contains(native.1) && named.contains("goes on by itself"), "{named}");

    let mut held = hold(&scene.article.app1, Protocol::Tcp, socket(GW1, 3306), None)?;
    wait::until_true("the connection answering", SOON, || Ok(held.answers() > 0))?;
    scene.gateway.manifests().save(&mysql("new", 3308))?;
    scene.gateway.manifests().remove("goes.yaml")?;
    let cut = held.wait_until_cut(SOON)?;
    scene.wait_for_no_answer(Protocol::Tcp, 3306)?;
    scene.expect_answer(Protocol::Tcp, 3307, "db1").context("what is still allowed")?;
    scene.expect_no_answer(Protocol::Tcp, 3308).context("what is new")?;
    let during = jumps(gw1)?;
    ensure!(during == before, "{during:?}");

    scene.gateway.manifests().remove("stays.yaml")?;
    scene.gateway.manifests().remove("new.yaml")?;
    wait::until_true("all rules gone", SOON, || is_gone(gw1))?;
    scene.gateway.manifests().save(&mysql("new", 3308))?;
    scene.expect_no_answer(Protocol::Tcp, 3308)?;
    remove(gw1, native)?;
    scene.wait_for_answer(Protocol::Tcp, 3308, "db1").context("once the rule is gone")?;
    scene.gateway.manifests().remove("new.yaml")?;
    wait::until_true("all rules gone", SOON, || is_gone(gw1))?;
    Ok(cut)
}

/// What nft can do around our chains that iptables does not show, and that it cannot undo.
const UNSEEN: [&str; 4] = [
    "add rule ip nat PREROUTING tcp dport vmap { 3306 : jump SALLY-PRE }",
    "add rule ip filter FORWARD tcp dport vmap { 3306 : jump SALLY-FWD }",
    "add chain ip nat SALLY-X { type nat hook prerouting priority -150; }; add rule ip nat SALLY-X ct state new counter",
    "add chain ip nat SALLY-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

#[test]
fn what_iptables_does_not_see_around_our_chains_keeps_nothing_open() -> Result<()> {
    for beside in ["", "insert rule ip nat PREROUTING tcp dport 8080 counter dnat to 10.30.1.82:80"] {
        for unseen in UNSEEN {
            scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
                let gw1 = scene.article.gw1.clone();
                let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
                scene.gateway.manifests().save(&mysql("mysql", 3306))?;
                scene.gateway.once_accepting()?;
                let text = format!("{}\n{beside}\n", unseen.replace("; add", "\nadd"));
                gw1.check_with_input(&["nft", "-f", "-"], text.as_bytes())?;
                scene.gateway.manifests().remove("mysql.yaml")?;
                let outcome = scene.gateway.once()?;
                scene.expect_no_answer(Protocol::Tcp, 3306).with_context(|| format!("{outcome:?}"))?;
                scene.gateway.cleanup()?;
                scene.expect_no_answer(Protocol::Tcp, 3306)
            })
            .with_context(|| format!("{unseen} {beside}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_rule_of_ours_that_asks_a_set_besides_is_not_taken_for_ours() -> Result<()> {
    scene(Variant::Nft, Backend::Iptables(Variant::Nft), |scene| {
        let gw1 = scene.article.gw1.clone();
        let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
        scene.gateway.manifests().save(&mysql("mysql", 3306))?;
        scene.gateway.once_accepting()?;
        for chain in ["SALLY-PRE", "PREROUTING"] {
            let target = if chain == "SALLY-PRE" { "SALLY-M" } else { "SALLY-PRE" };
            let listing = gw1.check(&["nft", "-a", "list", "chain", "ip", "nat", chain])?;
            let line =
                listing.lines().find(|line| line.contains(&format!("jump {target} "))).context("find the rule")?;
            let handle = line.rsplit(' ').next().context("read its handle")?;
            let text = format!(
                "add set ip nat nobody {{ type ipv4_addr; }}\n\
                 replace rule ip nat {chain} handle {handle} ip daddr {GW1} ip saddr @nobody counter jump {target}\n"
            );
            gw1.check_with_input(&["nft", "-f", "-"], text.as_bytes())?;
            scene.expect_no_answer(Protocol::Tcp, 3306).context("the fault itself")?;
            scene.gateway.once_accepting()?;
            scene.expect_answer(Protocol::Tcp, 3306, "db1").with_context(|| chain.to_owned())?;
        }
        let rules = gw1.check(&["nft", "list", "chain", "ip", "nat", "PREROUTING"])?;
        ensure!(rules.contains("@nobody"), "somebody else's rule is gone: {rules}");
        Ok(())
    })
}

/// A gateway with an address of each family and a forward of each, alone on its network.
fn lone(lab: &mut Lab, name: &str) -> Result<Gateway> {
    let (host, network) = (lab.host(name)?, lab.network(&format!("{name}n"))?);
    lab.connect(&host, "eth0", &network, &["10.30.1.78/23", "fd00:30::78/64"])?;
    let gateway = Gateway::new(&host, Backend::Iptables(Variant::Nft), Manifests::new()?)?;
    gateway.manifests().save(&mysql("v4", 3306))?;
    gateway.manifests().save(&Forward::tcp("v6", 3306, "fd00:30::80/128", "fd00:30::79"))?;
    Ok(gateway)
}

/// The lines of ours in the kernel, without what counts.
fn ours(host: &Host) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in host.check(&["nft", "list", "ruleset"])?.lines() {
        if let Some(chain) = line.trim().strip_prefix("chain ") {
            inside = chain.starts_with("SALLY-");
        }
        if inside || line.contains("jump SALLY-") {
            lines.push(line.trim().to_owned());
        }
    }
    lines.sort();
    Ok(lines)
}

fn verified(outcome: &Outcome) -> bool {
    outcome.stdout.contains("verified")
}

/// A generator of numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % limit
    }
}

#[test]
fn verified_is_said_only_of_a_kernel_that_holds_our_rules_and_each_jump_once() -> Result<()> {
    let mut lab = Lab::new();
    let clean = lone(&mut lab, "clean")?;
    clean.once_accepting()?;
    let expected = ours(clean.host())?;
    let mut numbers = Numbers(7);
    let mut unverified = 0;
    for number in 0..16 {
        let gateway = lone(&mut lab, &format!("gw{number}"))?;
        let host = gateway.host().clone();
        let mut story = String::new();
        for _ in 0..4 {
            if numbers.below(3) > 0 {
                let (family, native) = (["ip", "ip6"][numbers.below(2)], NATIVE[numbers.below(NATIVE.len())]);
                let rule = native.2.replace("ip length", "meta length").replace("10.30.1.82:80", "10.30.1.82");
                let rule = if family == "ip6" { in_six(&rule) } else { rule };
                writeln!(story, "{family} {native:?}")?;
                add(&host, family, (native.0, native.1, &rule))?;
            }
            let before = jumps(&host)?;
            let outcome = gateway.once()?;
            writeln!(story, "{:?} {}", outcome.code, outcome.stdout)?;
            let after = jumps(&host)?;
            let most = before.iter().zip([4, 2, 2]).map(|(before, most)| most.max(*before));
            ensure!(after.iter().zip(most).all(|(after, most)| *after <= most), "{story}{after:?}");
            ensure!(verified(&outcome) == (outcome.code == Some(0)), "{story}{outcome:?}");
            if verified(&outcome) {
                ensure!(ours(&host)? == expected, "{story}{:?}", ours(&host)?);
            } else {
                ensure!(outcome.stderr.contains("cannot read table"), "{story}{}", outcome.stderr);
                unverified += 1;
            }
        }
        gateway.cleanup().with_context(|| story.clone())?;
        ensure!(is_gone(&host)?, "cleanup has left something: {story}");
    }
    ensure!(unverified > 8, "hardly any table was unreadable: {unverified}");
    Ok(())
}

/// The same rule for IPv6.
fn in_six(rule: &str) -> String {
    let rule = rule.replace("10.30.1.82", "fd00:30::82").replace("192.0.2.1", "2001:db8::1");
    rule.replace("ip daddr", "ip6 daddr").replace("ip dscp", "ip6 dscp")
}

/// A folder with the extensions of iptables, but for one.
fn extensions_without(name: &str, folder: &Path) -> Result<()> {
    let places = ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/aarch64-linux-gnu/xtables", "/usr/lib/xtables"];
    let all = places.iter().find(|place| Path::new(place).is_dir()).context("find the extensions of iptables")?;
    for entry in std::fs::read_dir(all)?.flatten() {
        if entry.file_name() != name {
            std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[test]
fn a_rule_of_an_extension_that_is_missing_is_no_empty_table_either() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
            for (name, port) in [("goes", 3306), ("stays", 3307)] {
                scene.gateway.manifests().save(&mysql(name, port))?;
            }
            scene.gateway.once_accepting()?;
            let rule = "-t nat -A PREROUTING -m length --length 65000:65001 -j RETURN";
            gw1.iptables(variant, Family::V4, rule)?;

            let folder = lab::folder()?;
            extensions_without("libxt_length.so", folder.path())?;
            let with = ["env".to_owned(), format!("XTABLES_LIBDIR={}", folder.path().display())];
            let run = [with.as_slice(), &scene.gateway.run_command()?].concat();
            scene.gateway.manifests().remove("goes.yaml")?;
            let once = gw1.run(&[run.as_slice(), &["--once".to_owned()]].concat())?;
            ensure!(once.code == Some(1) && !verified(&once), "{once:?}");
            ensure!(once.stderr.contains("cannot read table nat: chain PREROUTING"), "{}", once.stderr);
            scene.expect_no_answer(Protocol::Tcp, 3306)?;
            scene.expect_answer(Protocol::Tcp, 3307, "db1")?;

            let cleanup = [with.as_slice(), &scene.gateway.cleanup_command()?].concat();
            let cleanup = gw1.run(&cleanup)?;
            let left = gw1.iptables_save(variant, Family::V4)?;
            ensure!(cleanup.success() && !left.contains("SALLY"), "{variant}: {cleanup:?}\n{left}");
            ensure!(left.contains("length"), "the rule of somebody else is gone");
            Ok(())
        })?;
    }
    Ok(())
}
