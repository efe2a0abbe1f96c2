//! What a new connection through the last of 10,000 forwards costs, beside a gateway that merely routes and one with a
//! single forward made by hand.

use std::net::SocketAddr;

use anyhow::Result;

use super::many::{self, Path, TARGET_PORT};
use super::table::Table;
use crate::article::{DB1, GW1, socket};
use crate::lab::{Family, Host, Variant};
use crate::traffic::{Latency, Protocol, percentile, serve};

/// Forwards on the gateway.
const FORWARDS: u16 = 10_000;

/// Rounds, in each of which all are measured; a ratio is the median of the rounds' ratios.
const ROUNDS: usize = 7;

/// Connections in a round.
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
        let (mut through, mut routed, mut made) = (Times::default(), Times::default(), Times::default());
        for _ in 0..ROUNDS {
            routed.measure(&plain.client, target)?;
            made.measure(&by_hand.client, socket(GW1, TARGET_PORT))?;
            through.measure(&ours.client, last)?;
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

/// The article's two rules.
fn forward_by_hand(gateway: &Host, variant: Variant) -> Result<()> {
    let dnat = format!("-t nat -A PREROUTING -d {GW1} -p tcp --dport {TARGET_PORT} -j DNAT --to-destination {DB1}");
    gateway.iptables(variant, Family::V4, &dnat)?;
    let masquerade = format!("-t nat -A POSTROUTING -d {DB1} -p tcp --dport {TARGET_PORT} -j MASQUERADE");
    gateway.iptables(variant, Family::V4, &masquerade)
}

/// The median of each round, in microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn measure(&mut self, client: &Host, to: SocketAddr) -> Result<()> {
        self.0.push(Latency::measure(client, to, CONNECTIONS)?.p50_us);
        Ok(())
    }

    fn p50(&self) -> f64 {
        percentile(self.0.clone(), 50)
    }

    fn ratio(&self, beside: &Self) -> f64 {
        percentile(self.0.iter().zip(&beside.0).map(|(ours, theirs)| ours / theirs).collect(), 50)
    }
}
