//! How soon a gateway with 1,000 forwards is right again after somebody has changed something behind the agent's back.
//!
//! The clock starts before the command that does the damage and stops with the first answer that came through the
//! damaged forward afterwards, so the times hold what running that command and a client take.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use super::many::{self, Path, TARGET_PORT};
use super::table::Table;
use crate::article::{APP1, DB1, GW1, socket};
use crate::gateway::Gateway;
use crate::lab::{Family, Host, Process, Variant};
use crate::manifest::Forward;
use crate::traffic::{Protocol, ask, percentile, serve, wait_for_first_answer};
use crate::wait;

/// Forwards on the gateway.
const FORWARDS: u16 = 1_000;
/// Tries of each kind.
const TRIES: usize = 50;
/// Tries where nothing tells the agent, so that it has to look by itself.
const UNTOLD_TRIES: usize = 5;
/// Time between two tries: the agent reads back what it repaired, and damage done meanwhile would be part of that repair.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest wait for the agent.
const PATIENCE: Duration = Duration::from_secs(30);
/// An address of the gateway that comes and goes, and the port of the forward on it.
const EXTRA: (&str, u16) = ("10.30.1.70", 11_000);
/// A rule that takes the packets of the last forward before ours do.
const RIVAL: &str = "PREROUTING -p tcp -m tcp --dport 12999 -j DNAT --to-destination 10.30.1.79:9";
/// After this many of them in a row the agent would leave the first place to it.
const RIVALS_IN_A_ROW: usize = 4;

/// Damages a gateway; the rule is that of the last forward, as `iptables-save` prints it after `-A`.
type Damage = fn(&Host, Variant, &str) -> Result<()>;

const KINDS: [(&str, Damage); 6] = [
    ("nat table flushed", |host, variant, _| host.iptables(variant, Family::V4, "-t nat -F")),
    ("rule deleted", |host, variant, rule| host.iptables(variant, Family::V4, &format!("-t nat -D {rule}"))),
    ("rule edited", |host, variant, rule| {
        let chain = rule.split(' ').next().unwrap_or_default();
        let edited = rule.replace(":3306", ":9");
        let text = format!("*nat\n-D {rule}\n-A {chain}{}\nCOMMIT\n", edited.trim_start_matches(chain));
        host.iptables_restore(variant, Family::V4, &text)
    }),
    ("our jump deleted", |host, variant, _| host.iptables(variant, Family::V4, "-t nat -D PREROUTING -j SALLY-PRE")),
    ("ip_forward off", |host, _, _| host.write_sysctl("net/ipv4/ip_forward", "0")),
    ("foreign rule before our jump", |host, variant, _| {
        host.iptables(variant, Family::V4, &format!("-t nat -I {RIVAL}"))
    }),
];

/// Measures with both variants.
pub fn measure(table: &mut Table) -> Result<()> {
    for variant in Variant::ALL {
        let mut site = Site::start(variant)?;
        for (kind, damage) in KINDS {
            let is_rival = kind.starts_with("foreign");
            let mut times = Vec::new();
            for number in 0..TRIES {
                if is_rival && number % RIVALS_IN_A_ROW == 0 {
                    site.restart_agent()?;
                }
                times.push(site.repair(|site| damage(&site.path.gateway, variant, &site.last_rule))?);
                if is_rival {
                    site.path.gateway.iptables(variant, Family::V4, &format!("-t nat -D {RIVAL}"))?;
                }
            }
            report(table, kind, variant, times);
        }
        if variant == Variant::Nft {
            let flush = |site: &Site| site.path.gateway.check(&["nft", "flush", "ruleset"]).map(drop);
            let times = (0..TRIES).map(|_| site.repair(flush)).collect::<Result<Vec<_>>>()?;
            report(table, "nft flush ruleset", variant, times);
        }
        let (added, removed) = site.addresses()?;
        report(table, "listen address added", variant, added);
        report(table, "listen address removed", variant, removed);
        if variant == Variant::Legacy {
            site.untold(table)?;
        }
    }
    Ok(())
}

fn report(table: &mut Table, kind: &str, variant: Variant, times: Vec<f64>) {
    let (p50, p99) = (percentile(times.clone(), 50), percentile(times, 99));
    let what = format!("drift to repaired at {FORWARDS} forwards, {kind}, {variant}: p50, p99 of {TRIES}");
    table.number(&what, format!("{p50:.0} ms, {p99:.0} ms"), "p99 < 1,000 ms", p99 < 1_000.0);
}

/// A gateway with an agent that has applied its forwards.
struct Site {
    path: Path,
    gateway: Gateway,
    variant: Variant,
    last_rule: String,
    agent: Process,
    _target: Process,
}

impl Site {
    fn start(variant: Variant) -> Result<Self> {
        let path = Path::build()?;
        let target = serve(&path.target, &[(Protocol::Tcp, socket(DB1, TARGET_PORT))])?;
        let manifests = many::manifests(FORWARDS)?;
        let mut extra = Forward::tcp("extra", EXTRA.1, &format!("{APP1}/32"), DB1);
        (extra.target_port, extra.addresses) = (Some(TARGET_PORT), vec![EXTRA.0.to_owned()]);
        manifests.save(&extra)?;
        let gateway = path.agent(variant, manifests)?;
        let agent = gateway.start()?;
        let mut site = Self { path, gateway, variant, last_rule: String::new(), agent, _target: target };
        site.wait_until_good()?;
        let port = format!("--dport {} ", many::FIRST_PORT + FORWARDS - 1);
        let saved = site.path.gateway.iptables_save(variant, Family::V4)?;
        let rule = saved.lines().find(|line| line.contains(&port) && line.contains("DNAT")).context("find its rule")?;
        ensure!(rule.contains(GW1) && rule.contains(":3306"), "not the rule that was expected: {rule}");
        rule.trim_start_matches("-A ").clone_into(&mut site.last_rule);
        Ok(site)
    }

    fn restart_agent(&mut self) -> Result<()> {
        self.agent.kill()?;
        let before = self.gateway.log().matches("cause=\"start\"").count();
        self.agent = self.gateway.start()?;
        wait::until_true("the agent being back", PATIENCE, || {
            Ok(self.gateway.log().matches("cause=\"start\"").count() > before)
        })
        .map(drop)
    }

    fn wait_until_good(&self) -> Result<()> {
        wait::until_true("the last forward answering", PATIENCE, || {
            Ok(ask(&self.path.client, Protocol::Tcp, Path::entrance(FORWARDS - 1))?.is_from("target"))
        })
        .map(drop)
        .with_context(|| self.gateway.log())
    }

    /// Milliseconds from before the damage until the last forward answers.
    fn repair(&self, damage: impl Fn(&Self) -> Result<()>) -> Result<f64> {
        self.time(damage, socket(GW1, many::FIRST_PORT + FORWARDS - 1))
    }

    fn time(&self, damage: impl Fn(&Self) -> Result<()>, entrance: std::net::SocketAddr) -> Result<f64> {
        std::thread::sleep(PAUSE);
        let start = SystemTime::now();
        damage(self)?;
        let stopwatch = wait_for_first_answer(&self.path.client, entrance)?;
        let took = stopwatch.since(start).with_context(|| self.gateway.log())?;
        Ok(took.as_secs_f64() * 1e3)
    }

    /// Milliseconds until the forward on an address that came answers, and until its rules are gone with the address.
    fn addresses(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let (address, port) = EXTRA;
        let network = format!("{address}/32");
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for _ in 0..TRIES {
            added.push(self.time(|site| site.path.gateway.add_address("eth0", &network), socket(address, port))?);
            let start = SystemTime::now();
            self.path.gateway.remove_address("eth0", &network)?;
            wait::until_true("the rules of the address going", PATIENCE, || {
                Ok(!self.path.gateway.iptables_save(self.variant, Family::V4)?.contains(&network))
            })?;
            removed.push(start.elapsed().context("read the clock")?.as_secs_f64() * 1e3);
        }
        Ok((added, removed))
    }

    /// A program that does not take the lock that everybody else takes gives no sign.
    fn untold(&self, table: &mut Table) -> Result<()> {
        let flush = |site: &Self| {
            let command = ["env", "XTABLES_LOCKFILE=/tmp/another-xtables.lock", "iptables-legacy", "-t", "nat", "-F"];
            site.path.gateway.check(&command).map(drop)
        };
        let times = (0..UNTOLD_TRIES).map(|_| self.repair(flush)).collect::<Result<Vec<_>>>()?;
        let slowest = percentile(times, 100);
        let what = format!("the same, flushed by a program that does not use the host's lock, {}", self.variant);
        let ours = format!("{slowest:.0} ms, the slowest of {UNTOLD_TRIES}");
        table.number(&what, ours, "< 11,000 ms", slowest < 11_000.0);
        Ok(())
    }
}
