//! A gateway that is a busy node of a cluster: kube-proxy with thousands of Services writes its rules again each second, ten pods
//! a second come and go, and the agent beside them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::footprint::{memory_mib, processor_share};
use super::many::{self, Path, TARGET_PORT};
use super::table::Table;
use crate::article::{DB1, socket};
use crate::lab::{self, Family, Process, Variant};
use crate::traffic::{Protocol, ask, percentile, serve};
use crate::wait;

const FORWARDS: u16 = 1_000;
/// Of kube-proxy: eleven rules each.
const SERVICES: usize = 5_000;
/// How long the agent is watched.
const WATCHED: Duration = Duration::from_secs(30);
/// Tries of each kind, and the time between two.
const TRIES: u16 = 15;
const PAUSE: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_mins(1);

/// Measures with iptables-nft, by which kube-proxy works where it does today.
pub fn measure(table: &mut Table) -> Result<()> {
    let path = Path::build()?;
    let _target = serve(&path.target, &[(Protocol::Tcp, socket(DB1, TARGET_PORT))])?;
    path.gateway.iptables_restore(Variant::Nft, Family::V4, &services())?;
    let gateway = path.agent(Variant::Nft, many::manifests(FORWARDS)?)?;
    let agent = gateway.start()?;
    let answers = |number: u16| Ok(ask(&path.client, Protocol::Tcp, Path::entrance(number))?.is_from("target"));
    wait::until_true("the last forward answering", PATIENCE, || answers(FORWARDS - 1))
        .with_context(|| gateway.log())?;
    let folder = lab::folder()?;
    let _others = others(&path, folder.path())?;
    std::thread::sleep(WATCHED / 3);

    let share = processor_share(agent.pid(), WATCHED)? * 100.0;
    table.number("busy node: processor of the agent", format!("{share:.1} % of a core"), "≤ 5 %", share <= 5.0);
    let (mut repairs, mut changes) = (Vec::new(), Vec::new());
    for number in 0..TRIES {
        path.gateway.iptables(Variant::Nft, Family::V4, "-t nat -F SALLY-PRE")?;
        let begun = Instant::now();
        wait::until_true("the repair", PATIENCE, || answers(0)).with_context(|| gateway.log())?;
        repairs.push(begun.elapsed());
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        gateway.manifests().save(&many::forward(FORWARDS + number))?;
        wait::until_true("the new forward", PATIENCE, || answers(FORWARDS + number)).with_context(|| gateway.log())?;
        changes.push(begun.elapsed());
        std::thread::sleep(PAUSE);
    }
    for (what, times, goal, limit) in
        [("drift repaired", repairs, "< 1 s", 1000.0), ("one change of ours", changes, "≤ 100 ms", 100.0)]
    {
        let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        let (middle, most) = (percentile(times.clone(), 50), percentile(times, 100));
        let text = format!("{middle:.0} ms (at most {most:.0})");
        table.number(&format!("busy node: {what}"), text, goal, middle <= limit);
    }
    let (resident, peak) = (memory_mib(agent.pid(), "VmRSS:")?, memory_mib(agent.pid(), "VmHWM:")?);
    let text = format!("{resident:.1} MiB (peak {peak:.1})");
    table.number("busy node: resident memory", text, "≤ 60 MiB", resident <= 60.0);
    Ok(())
}

/// Those who keep the node busy, until what is returned is dropped.
fn others(path: &Path, folder: &std::path::Path) -> Result<[Process; 2]> {
    for turned in 0..2 {
        std::fs::write(folder.join(turned.to_string()), sync(turned)).context("write what kube-proxy writes")?;
    }
    let syncs = format!(
        "cd {}; while :; do for n in 0 1; do iptables-nft-restore -w --noflush < $n; sleep 1; done; done",
        folder.display()
    );
    // One stays. The host's end of each has the same address, as the plugin `ptp` of CNI gives it.
    let pods = "pod() { ip link add $1 type veth peer name $1-peer; ip addr add 10.244.7.1/32 dev $1; ip link set $1 up; }; \
                pod stays; while :; do pod goes; sleep 0.1; ip link del goes; done";
    Ok([path.gateway.spawn(&["sh", "-c", &syncs])?, path.gateway.spawn(&["sh", "-c", pods])?])
}

fn cluster_ip(number: usize) -> String {
    format!("10.96.{}.{}", number / 250, number % 250 + 1)
}

/// What the Services have in `nat`, each with three endpoints, and what leads to them.
fn services() -> String {
    let mut text = ":KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n".to_owned();
    for number in 0..SERVICES {
        let (ip, service) = (cluster_ip(number), format!("KUBE-SVC-{number:016}"));
        _ = write!(
            text,
            ":{service} - [0:0]\n-A {service} ! -s 10.244.0.0/16 -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ\n"
        );
        for (endpoint, chance) in ["0.33333333349", "0.50000000000", ""].into_iter().enumerate() {
            let (chain, pod) =
                (format!("KUBE-SEP-{number:015}{endpoint}"), format!("10.244.{}.{}", number % 250, endpoint + 2));
            let asks = if chance.is_empty() {
                String::new()
            } else {
                format!("-m statistic --mode random --probability {chance} ")
            };
            _ = write!(
                text,
                ":{chain} - [0:0]\n-A {service} {asks}-j {chain}\n-A {chain} -s {pod}/32 -j KUBE-MARK-MASQ\n\
                 -A {chain} -p tcp -m tcp -j DNAT --to-destination {pod}:8080\n"
            );
        }
    }
    // Chains are made before the rules that lead to them.
    let (chains, rules): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with(':'));
    let leads = "-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n";
    let own = sync(0).replace("*nat\n", "").replace("COMMIT\n", "");
    let (own_chains, own_rules): (Vec<&str>, Vec<&str>) = own.lines().partition(|line| line.starts_with(':'));
    let all = [chains, own_chains, rules, own_rules].concat().join("\n");
    format!("*nat\n{all}\n{leads}COMMIT\n")
}

/// What kube-proxy writes again at each sync: what leads to all Services, in another order each time.
fn sync(turned: usize) -> String {
    let mut text = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n".to_owned();
    for number in (0..SERVICES).map(|number| (number + turned) % SERVICES) {
        let ip = cluster_ip(number);
        _ = writeln!(text, "-A KUBE-SERVICES -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{number:016}");
    }
    text + "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n"
}
