//! How soon an applied forward carries packets in a real cluster, beside a `NodePort` Service of the same target
//! through kube-proxy. The clock starts when the API server has answered the write.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::table::Table;
use crate::article::{APP1, DB1, socket};
use crate::cluster::scene::{PORT, forward};
use crate::cluster::{Cluster, Helm, SOON};
use crate::control_plane::Api;
use crate::traffic::{Answer, Protocol, ask, percentile, wait_for_first_answer};
use crate::{script, wait};

/// Times that each is made and deleted.
const ROUNDS: usize = 50;

/// The port of the Service on every node.
const NODE_PORT: u16 = 30307;

/// The namespace of everything here.
const NAMESPACE: &str = "/namespaces/payments";

/// Something that can be made and deleted, after which a port of the gateway answers or does not.
struct Subject {
    path: String,
    object: Value,
    port: u16,
}

/// Milliseconds from the API server's answer, each round.
#[derive(Default)]
struct Times {
    made: Vec<f64>,
    deleted: Vec<f64>,
}

/// Makes and deletes a forward and a Service in turn.
pub fn measure(table: &mut Table) -> Result<()> {
    let _down = (!Cluster::is_up()?).then_some(script::DownAtEnd);
    let cluster = Cluster::up()?;
    cluster.load_images()?;
    cluster.reset()?;
    cluster.install(&Helm::v4()?, &[])?;
    cluster.kubectl("apply --filename examples/namespace.yaml")?;
    let _server = cluster.serve(&[DB1])?;
    let api = Api::new(cluster.kubeconfig())?;
    api.apply(&format!("/apis/discovery.k8s.io/v1{NAMESPACE}/endpointslices/db1"), &endpoints())?;

    let (ours, proxy) = (our_forward(), service());
    let (mut our_times, mut proxy_times) = (Times::default(), Times::default());
    for _ in 0..ROUNDS {
        for (subject, times) in [(&ours, &mut our_times), (&proxy, &mut proxy_times)] {
            subject.round(&cluster, &api, times).with_context(|| cluster.diagnostics())?;
        }
    }
    our_times.print(&proxy_times, table);
    Ok(())
}

fn our_forward() -> Subject {
    let path = format!("/apis/sallyport.dev/v1alpha1{NAMESPACE}/portforwards/db1");
    Subject { path, object: forward("db1", APP1, DB1), port: PORT }
}

/// A Service without a selector, whose endpoints are written by hand: how Kubernetes itself reaches such a target.
fn service() -> Subject {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "spec": {
            "type": "NodePort",
            "ports": [{ "name": "p", "port": PORT, "nodePort": NODE_PORT, "protocol": "TCP" }],
        },
    });
    Subject { path: format!("/api/v1{NAMESPACE}/services/db1"), object, port: NODE_PORT }
}

fn endpoints() -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "labels": { "kubernetes.io/service-name": "db1" } },
        "addressType": "IPv4",
        "ports": [{ "name": "p", "port": PORT, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [DB1], "conditions": { "ready": true } }],
    })
}

impl Subject {
    /// Makes it, awaits the first byte, deletes it, awaits the first refusal.
    fn round(&self, cluster: &Cluster, api: &Api, times: &mut Times) -> Result<()> {
        let gateway = cluster.gateways.first().context("find a gateway")?;
        let door = socket(&gateway.ip, self.port);
        let stopwatch = wait_for_first_answer(&cluster.app1, door)?;
        api.apply(&self.path, &self.object)?;
        times.made.push(milliseconds(stopwatch.since(SystemTime::now())?));

        api.delete(&self.path)?;
        let answered = Instant::now();
        // Each question is a process of its own, so this is some milliseconds too long.
        wait::until_true("the first refusal", SOON, || {
            Ok(!matches!(ask(&cluster.app1, Protocol::Tcp, door)?, Answer::Heard { .. }))
        })?;
        times.deleted.push(milliseconds(answered.elapsed()));
        wait::until_true("its end", SOON, || Ok(api.get(&self.path)?.is_none())).map(drop)
    }
}

impl Times {
    fn print(&self, beside: &Self, table: &mut Table) {
        for (what, ours, proxy) in [
            ("kubectl apply to first byte on kind", &self.made, &beside.made),
            ("kubectl delete to refused on kind", &self.deleted, &beside.deleted),
        ] {
            for (percent, goal, limit) in [(50, "≤ 150 ms", 150.0), (99, "< 1,000 ms", 1000.0)] {
                let (ours, proxy) = (percentile(ours.clone(), percent), percentile(proxy.clone(), percent));
                table.compare(
                    &format!("{what}, p{percent} of {ROUNDS}"),
                    format!("{ours:.0} ms"),
                    format!("NodePort Service, kube-proxy: {proxy:.0} ms"),
                    ours / proxy,
                    Some((goal, ours <= limit)),
                );
            }
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
