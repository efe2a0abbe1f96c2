//! A forward with IPv6 addresses, on gateways that listen where a pool's range says.

use anyhow::{Result, ensure};
use sallyport_e2e::article::socket;
use sallyport_e2e::cluster::scene::{PORT, bare, forward};
use sallyport_e2e::cluster::{APP1_V6, DB1_V6, Helm};
use sallyport_e2e::traffic::{Protocol, ask};

/// The nodes of an IPv4 cluster have IPv6 addresses that Kubernetes does not know.
const LISTEN: &[&str] =
    &["defaultPool.listen.addresses[0].type=CIDR", "defaultPool.listen.addresses[0].value=fd00:30::/64"];

#[test]
fn app1_reaches_db1_by_ipv6() -> Result<()> {
    bare(|cluster| {
        cluster.install(&Helm::v4()?, LISTEN)?;
        cluster.kubectl("apply --filename examples/namespace.yaml")?;
        let _server = cluster.serve(&[DB1_V6])?;
        cluster.apply(&forward("db1", APP1_V6, DB1_V6))?;
        cluster.wait_until_ready("payments", "db1")?;
        let direct = ask(&cluster.app1, Protocol::Tcp, socket(DB1_V6, PORT))?;
        ensure!(!direct.is_from("db1"), "db1's own firewall lets app1 in: {direct:?}");
        for gateway in &cluster.gateways {
            let answer = ask(&cluster.app1, Protocol::Tcp, socket(&gateway.ip_v6, PORT))?;
            ensure!(answer.is_from("db1"), "{answer:?} at {}, not db1", gateway.ip_v6);
        }
        Ok(())
    })
}
