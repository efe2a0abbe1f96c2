//! What a new connection through the last of 10,000 forwards costs, beside a gateway that merely routes and one with a
//! single forward made by hand.
//!
//! Connections go by one path after the other, in random order: of many by the same path only the first would find the
//! processor's caches as others have left them.

use anyhow::Result;

use super::many::{self, Path, TARGET_PORT};
use super::table::Table;
use crate::article::{DB1, GW1, socket};
use crate::lab::{Family, Host, Variant};
use crate::traffic::{Connector, Protocol, percentile, serve};

/// Forwards on the gateway.
const FORWARDS: u16 = 10_000;

/// Rounds; a ratio is the median of the rounds' ratios.
const ROUNDS: usize = 5;

/// Connections by each path in a round.
const CONNECTIONS: usize = 1_500;

/// Measures with both variants.
pub fn measure(table: &mut Table) -> Result<()> {
    let target = socket(DB1, TARGET_PORT);
    for variant in Variant::ALL {
        // Fresh hosts each time: ports still in TIME_WAIT make the next connect slow.
        let paths = [Path::build()?, Path::build()?, Path::build()?];
        let [plain, by_hand, ours] = &paths;
        let _targets =
            paths.iter().map(|path| serve(&path.target, &[(Protocol::Tcp, target)])).collect::<Result<Vec<_>>>()?;
        forward_by_hand(&by_hand.gateway, variant)?;
        let gateway = ours.agent(variant, many::manifests(FORWARDS)?)?;
        gateway.once_accepting()?;
        let last = Path::entrance(FORWARDS - 1);
        let mut connectors = [
            Connector::start(&plain.client, target)?,
            Connector::start(&by_hand.client, socket(GW1, TARGET_PORT))?,
            Connector::start(&ours.client, last)?,
        ];
        let mut random = Random(0x5a11_0947);
        let [mut routed, mut made, mut through] = [const { Times(Vec::new()) }; 3];
        for _ in 0..ROUNDS {
            let mut taken = [const { Vec::new() }; 3];
            for _ in 0..CONNECTIONS {
                for path in random.order() {
                    taken[path].push(connectors[path].connect()?);
                }
            }
            for (times, taken) in [&mut routed, &mut made, &mut through].into_iter().zip(taken) {
                times.0.push(percentile(taken, 50));
            }
        }
        let what = format!("new connection p50, last of {FORWARDS} forwards, {variant}");
        for (name, beside, goal, limit) in
            [("plain routing", &routed, "≤ 1.3 times", 1.3), ("one forward by hand", &made, "≤ 1.1 times", 1.1)]
        {
            let ratio = through.ratio(beside);
            let beside = format!("{name}: {:.0} µs", beside.p50());
            table.compare(&what, format!("{:.0} µs", through.p50()), beside, ratio, Some((goal, ratio <= limit)));
        }
    }
    Ok(())
}

/// The article's two rules, and those that accept such packets on a gateway that drops what nobody accepts.
fn forward_by_hand(gateway: &Host, variant: Variant) -> Result<()> {
    let dnat = format!("-t nat -A PREROUTING -d {GW1} -p tcp --dport {TARGET_PORT} -j DNAT --to-destination {DB1}");
    gateway.iptables(variant, Family::V4, &dnat)?;
    let masquerade = format!("-t nat -A POSTROUTING -d {DB1} -p tcp --dport {TARGET_PORT} -j MASQUERADE");
    gateway.iptables(variant, Family::V4, &masquerade)?;
    gateway.iptables(variant, Family::V4, "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")?;
    gateway.iptables(variant, Family::V4, &format!("-A FORWARD -d {DB1} -p tcp --dport {TARGET_PORT} -j ACCEPT"))
}

/// Numbers that are the same in every run (xorshift).
struct Random(u32);

impl Random {
    /// The three paths in some order.
    fn order(&mut self) -> [usize; 3] {
        const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        ORDERS[self.0 as usize % ORDERS.len()]
    }
}

/// The median of each round, in microseconds.
struct Times(Vec<f64>);

impl Times {
    fn p50(&self) -> f64 {
        percentile(self.0.clone(), 50)
    }

    fn ratio(&self, beside: &Self) -> f64 {
        percentile(self.0.iter().zip(&beside.0).map(|(ours, theirs)| ours / theirs).collect(), 50)
    }
}
