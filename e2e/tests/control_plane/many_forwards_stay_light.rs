//! What the benchmark of scale promises of thousands of forwards, on a cluster that is small enough for every day: how long
//! a change takes, how often an object is written for it, and what the programs take.

use anyhow::Result;
use sallyport_e2e::bench;

#[test]
fn small_cluster_keeps_within_the_limits_of_a_large_one() -> Result<()> {
    bench::small_scale()
}
