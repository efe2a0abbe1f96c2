//! The operator with 1,000 forwards on 10 gateways whose kernels are left alone (`--backend=dry-run`): its memory, the
//! time from the API server's answer to a verified status, and how often each object is written.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::footprint::memory_mib;
use super::table::Table;
use crate::control_plane::kubelet::{Kubelets, Node};
use crate::control_plane::operator::{Operator, Setting};
use crate::control_plane::scene::{KINDS, OPERATOR, PAYMENTS, SYSTEM, forward_path, install, spec};
use crate::control_plane::server::Server;
use crate::control_plane::{Api, Terminal};
use crate::lab::Lab;
use crate::traffic::percentile;
use crate::wait;

/// Forwards on the gateways.
const FORWARDS: u16 = 1000;
/// Gateways.
const NODES: u32 = 10;
/// The first port.
const PORT: u16 = 20_000;
/// Forwards that are changed one after the other when all is settled.
const CHANGES: u16 = 20;
/// The longest that all forwards together may take.
const LIMIT: Duration = Duration::from_mins(3);

/// Measures.
pub fn measure(table: &mut Table) -> Result<()> {
    let mut lab = Lab::new();
    let server = Server::start(&mut lab)?;
    let api = Api::new(&server.admin())?;
    install(&api, &Terminal::new(server.admin(), server.folder()))?;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        let host = lab.host(&format!("gw{number}"))?;
        let ip = server.nth_address(3 + number).to_string();
        lab.connect(&host, "eth0", server.network(), &[&format!("{ip}/28")])?;
        nodes.push(Node::join(&api, &host, &ip, &json!({ "sallyport.dev/gateway": "" }))?);
    }
    let kubelets = Kubelets::start(&api, &server, SYSTEM, nodes, &["--backend=dry-run"]);
    let setting = Setting { api: &api, server: &server, namespace: SYSTEM, account: OPERATOR };
    let mut operator = Operator::start(setting, "operator", 8081)?;
    wait::until_true("all gateways being in step", LIMIT, || {
        let pool = api.get(&format!("{KINDS}/gatewaypools/default"))?.unwrap_or_default();
        Ok(pool["status"]["nodes"]["ready"] == NODES)
    })
    .with_context(|| format!("{}\n{}", operator.process().output(), kubelets.nodes()[0].log()))?;

    load(table, &api, &server)?;
    change(table, &api, &server)?;
    let resident = memory_mib(operator.process().pid(), "VmRSS:")?;
    let peak = memory_mib(operator.process().pid(), "VmHWM:")?;
    let what = format!("resident memory of the operator, {FORWARDS} forwards on {NODES} gateways");
    table.number(&what, format!("{resident:.1} MiB (peak {peak:.1})"), "≤ 80 MiB", resident <= 80.0);
    Ok(())
}

/// All forwards, as quickly as one client can write them.
fn load(table: &mut Table, api: &Api, server: &Server) -> Result<()> {
    let mut place = 0;
    for number in 0..FORWARDS {
        let name = name(number);
        let object = json!({
            "apiVersion": "sallyport.dev/v1alpha1",
            "kind": "PortForward",
            "metadata": { "name": name },
            "spec": spec(PORT + number),
        });
        api.create(&format!("{KINDS}/namespaces/{PAYMENTS}/portforwards"), &object)?;
    }
    let verified = Verified::wait(server, &mut place, usize::from(FORWARDS))?;
    times_row(table, &format!("applied to verified, {FORWARDS} forwards at once"), &verified.milliseconds());
    Ok(())
}

/// One forward after the other, in the presence of all.
fn change(table: &mut Table, api: &Api, server: &Server) -> Result<()> {
    let (mut times, mut most, mut place) = (Vec::new(), 0, 0);
    for number in 0..CHANGES {
        server.writes_after(&mut place)?;
        let change = json!({ "spec": { "sources": { "allow": [{ "cidr": "10.30.1.81/32" }] } } });
        api.merge(&forward_path(PAYMENTS, &name(number)), &change)?;
        let verified = Verified::wait(server, &mut place, 1)?;
        times.extend(verified.milliseconds());
        most = most.max(verified.most_writes_of_an_object());
    }
    times_row(table, &format!("applied to verified, one of {FORWARDS}"), &times);
    // Seen and verified are the two transitions of a change.
    table.number("writes of an object for one change", format!("at most {most}"), "≤ 2", most <= 2);
    Ok(())
}

fn times_row(table: &mut Table, what: &str, times: &[f64]) {
    let [p50, p99] = [50, 99].map(|percent| percentile(times.to_vec(), percent));
    table.number(what, format!("p50 {p50:.0} ms, p99 {p99:.0} ms"), "p99 < 2 s", p99 < 2000.0);
}

fn name(number: u16) -> String {
    format!("f{number:04}")
}

/// What the API server's audit log says of forwards that were written and became verified.
#[derive(Debug, Default)]
struct Verified {
    /// When each forward's author got an answer.
    authors: BTreeMap<String, Timestamp>,
    /// For each forward: the answer to its author, and to the operator that called it verified.
    times: BTreeMap<String, (Timestamp, Timestamp)>,
    /// How often our programs wrote each object.
    writes: BTreeMap<String, usize>,
}

impl Verified {
    /// Waits until `count` forwards that were written from `place` in the log on are verified.
    fn wait(server: &Server, place: &mut u64, count: usize) -> Result<Self> {
        let mut verified = Self::default();
        wait::until_true("all forwards being verified", LIMIT, || {
            for write in server.writes_after(place)? {
                verified.take(&write)?;
            }
            Ok(verified.times.len() >= count)
        })?;
        Ok(verified)
    }

    fn take(&mut self, write: &Value) -> Result<()> {
        let what = &write["objectRef"];
        // A created object is named in what was sent.
        let name = what["name"].as_str().or_else(|| write["requestObject"]["metadata"]["name"].as_str());
        let (Some(name), Some(kind)) = (name, what["resource"].as_str()) else {
            return Ok(());
        };
        if write["responseStatus"]["code"].as_u64().is_none_or(|code| code >= 300)
            || what["apiGroup"] != "sallyport.dev"
        {
            return Ok(());
        }
        let answered = write["stageTimestamp"].as_str().context("read when it was answered")?;
        let answered: Timestamp = answered.parse().context("understand when it was answered")?;
        if write["user"]["username"].as_str().is_some_and(|user| user.contains(SYSTEM)) {
            *self.writes.entry(format!("{kind}/{name}")).or_default() += 1;
            let is_verified = kind == "portforwards" && says_verified(&write["requestObject"]);
            if let Some(written) = self.authors.get(name).filter(|_| is_verified) {
                self.times.entry(name.to_owned()).or_insert((*written, answered));
            }
        } else if kind == "portforwards" {
            self.authors.insert(name.to_owned(), answered);
        }
        Ok(())
    }

    fn milliseconds(&self) -> Vec<f64> {
        let times = self.times.values();
        times.map(|(written, verified)| verified.duration_since(*written).as_secs_f64() * 1000.0).collect()
    }

    fn most_writes_of_an_object(&self) -> usize {
        self.writes.values().copied().max().unwrap_or_default()
    }
}

fn says_verified(sent: &Value) -> bool {
    let conditions = sent["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == "Programmed" && one["status"] == "True")
}
