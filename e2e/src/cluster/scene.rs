//! The stage of this tier's tests: Sallyport is installed, the namespace payments may ask for forwards, and servers
//! answer on db1 beside its database.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::{Cluster, Gateway, Helm, SOON, condition};
use crate::article::{APP1, DB1, socket};
use crate::lab::{Family, Process, Variant};
use crate::traffic::{Answer, Protocol, RunningLoad, ask, serve};
use crate::wait;

/// The port of the forward that [`scene`] makes; a server answers on it at db1.
pub const PORT: u16 = 3307;

/// There is one cluster: a test has it for itself.
static CLUSTER: Mutex<()> = Mutex::new(());

/// Runs `body` where nothing of ours is installed. The images are those that were loaded last. On failure it prints what explains it.
pub fn bare(body: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let _alone = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::up()?;
    ensure!(cluster.has_images()?, "the cluster has no image of ours: run `e2e/cluster/images.sh load`");
    cluster.reset()?;
    if let Err(error) = body(&cluster) {
        bail!("{error:#}\n{}", cluster.diagnostics());
    }
    Ok(())
}

/// Runs `body` where app1 reaches the server on db1 through both gateways, by the forward `payments/db1`.
pub fn scene(body: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    bare(|cluster| {
        cluster.install(&Helm::v4()?, &[])?;
        cluster.kubectl("apply --filename examples/namespace.yaml")?;
        let _server = cluster.serve(&[DB1])?;
        cluster.apply(&forward("db1", APP1, DB1))?;
        cluster.wait_until_ready("payments", "db1")?;
        cluster.expect_answers()?;
        for Gateway { name, .. } in &cluster.gateways {
            let node = cluster.get(&format!("gatewaynode/{name}"))?.unwrap_or_default();
            let compatible = condition(&node, "HostFirewallCompatible");
            ensure!(compatible == Some("True"), "{name}: a false alarm: {}", node["status"]);
        }
        body(cluster)
    })
}

/// A forward of [`PORT`] in the namespace payments.
#[must_use]
pub fn forward(name: &str, source: &str, target: &str) -> Value {
    let length = if source.contains(':') { 128 } else { 32 };
    json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": "PortForward",
        "metadata": { "name": name, "namespace": "payments" },
        "spec": {
            "ports": [{ "name": "p", "port": PORT }],
            "sources": { "allow": [{ "cidr": format!("{source}/{length}") }] },
            "targets": [{ "name": "db1", "ip": target }],
        },
    })
}

impl Cluster {
    /// Starts servers on addresses of db1.
    pub fn serve(&self, addresses: &[&str]) -> Result<Process> {
        let listeners: Vec<_> = addresses.iter().map(|address| (Protocol::Tcp, socket(address, PORT))).collect();
        serve(&self.db1, &listeners)
    }

    /// [`PORT`] of every gateway.
    #[must_use]
    pub fn doors(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|gateway| socket(&gateway.ip, PORT)).collect()
    }

    /// Asks once from app1 at each gateway; db1 must answer, and must see the gateway.
    pub fn expect_answers(&self) -> Result<()> {
        for door in self.doors() {
            let answer = ask(&self.app1, Protocol::Tcp, door)?;
            ensure!(answer.is_from("db1"), "{answer:?} at {door}, not db1");
        }
        Ok(())
    }

    /// Waits until nobody answers app1 at a gateway.
    pub fn wait_for_no_answer(&self, gateway: &Gateway) -> Result<Duration> {
        let door = socket(&gateway.ip, PORT);
        wait::until_true(&format!("nobody answering at {door}"), SOON, || {
            Ok(!matches!(ask(&self.app1, Protocol::Tcp, door)?, Answer::Heard { .. }))
        })
    }

    /// Our rules on every gateway. Those of kube-proxy and the pods' network come and go.
    pub fn our_rules(&self) -> Result<Vec<String>> {
        let of = |gateway: &Gateway| {
            let saved = gateway.host.iptables_save(Variant::Nft, Family::V4)?;
            Ok(saved.lines().filter(|line| line.contains("SALLY-")).flat_map(|line| [line, "\n"]).collect())
        };
        self.gateways.iter().map(of).collect()
    }

    /// Starts a load from app1 through both gateways.
    pub fn load(&self, seconds: u64) -> Result<RunningLoad> {
        let doors: Vec<_> = self.doors().into_iter().map(|door| (Protocol::Tcp, door)).collect();
        RunningLoad::start(&self.app1, &doors, 200, 60, seconds)
    }
}
