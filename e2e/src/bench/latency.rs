//! What a new connection through the last of 10,000 forwards costs, beside a gateway that merely routes.

use anyhow::Result;

use super::many::{self, Path, TARGET_PORT};
use super::table::Table;
use crate::article::{DB1, socket};
use crate::lab::Variant;
use crate::traffic::{Latency, Protocol, percentile, serve};

/// Forwards on the gateway.
const FORWARDS: u16 = 10_000;

/// Rounds, in each of which both are measured; the ratio is the median of the rounds' ratios.
const ROUNDS: usize = 7;

/// Connections in a round.
const CONNECTIONS: usize = 1_500;

/// Measures with both variants.
pub fn measure(table: &mut Table) -> Result<()> {
    let target = socket(DB1, TARGET_PORT);
    for variant in Variant::ALL {
        // Fresh hosts each time: ports still in TIME_WAIT make the next connect slow.
        let plain = Path::build()?;
        let _plain = serve(&plain.target, &[(Protocol::Tcp, target)])?;
        let path = Path::build()?;
        let _target = serve(&path.target, &[(Protocol::Tcp, target)])?;
        let gateway = path.agent(variant, many::manifests(FORWARDS)?)?;
        gateway.once_accepting()?;
        let last = Path::entrance(FORWARDS - 1);
        let (mut ours, mut routed, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let beside = Latency::measure(&plain.client, target, CONNECTIONS)?.p50_us;
            let through = Latency::measure(&path.client, last, CONNECTIONS)?.p50_us;
            ours.push(through);
            routed.push(beside);
            ratios.push(through / beside);
        }
        let ratio = percentile(ratios, 50);
        table.compare(
            &format!("new connection p50, last of {FORWARDS} forwards, {variant}"),
            format!("{:.0} µs", percentile(ours, 50)),
            format!("plain routing: {:.0} µs", percentile(routed, 50)),
            ratio,
            Some(("≤ 1.3 times", ratio <= 1.3)),
        );
    }
    Ok(())
}
