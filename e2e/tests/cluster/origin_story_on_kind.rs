//! The origin story in a real cluster: what `make demo` prints as proof holds.

use anyhow::Result;
use sallyport_e2e::cluster::{Helm, scene};
use sallyport_e2e::demo;

#[test]
fn every_proof_of_the_demo_holds() -> Result<()> {
    scene::bare(|cluster| demo::tell(cluster, &Helm::v4()?))
}
