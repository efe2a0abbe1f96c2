//! The operator and agents whose kernels are left alone (`--backend=dry-run`), with many forwards on many gateways: the
//! time from the API server's answer to a verified status, how often each object is written, and what the programs take.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::footprint::{memory_mib, processor_share};
use super::table::Table;
use crate::control_plane::kubelet::{Kubelets, Node};
use crate::control_plane::operator::{Operator, Setting};
use crate::control_plane::scene::{KINDS, OPERATOR, PAYMENTS, STRANGERS, SYSTEM, forward_path, install, spec};
use crate::control_plane::server::{PREFIX, Server};
use crate::control_plane::{Api, Terminal};
use crate::lab::Lab;
use crate::traffic::percentile;
use crate::wait;

/// How large it is, and what it may take.
pub struct Size {
    forwards: u16,
    gateways: u32,
    /// Resident memory of the operator, in MiB.
    operator: f64,
    /// Seconds that one change may take, 99 times of 100.
    change: f64,
    /// Whether the last of those that are created at once has to be as quick as any.
    last: bool,
    /// Whether somebody else creates thousands meanwhile.
    burst: bool,
}

const SIZES: [Size; 2] = [
    Size { forwards: 1000, gateways: 10, operator: 80.0, change: 2.0, last: true, burst: false },
    // Nobody waits for the last of thousands: only a team's own number has that goal.
    Size { forwards: 5000, gateways: 20, operator: 150.0, change: 2.0, last: false, burst: true },
];

/// One that takes half a minute with programs that are not optimised. Other tests and the build of the images run beside it, which
/// have made a change three times as slow.
pub const SMALL: Size = Size { forwards: 300, gateways: 5, operator: 80.0, change: 6.0, last: false, burst: false };

/// Resident memory of one agent, in MiB.
const AGENT: f64 = 40.0;
/// Bytes of the largest object.
const LARGEST: usize = 256 << 10;
/// The share of a core that the operator may take at rest.
const REST: f64 = 0.2;
/// The first port.
const PORT: u16 = 20_000;
/// Forwards that are changed one after the other when all is settled.
const CHANGES: u16 = 20;
/// Forwards that somebody creates at once who may not forward anything.
const BURST: u16 = 10_000;
/// The longest that all forwards together may take.
const LIMIT: Duration = Duration::from_mins(5);

/// Measures.
pub fn measure(table: &mut Table) -> Result<()> {
    SIZES.iter().try_for_each(|size| measure_at(size, table))
}

/// Measures at one size.
pub fn measure_at(size: &Size, table: &mut Table) -> Result<()> {
    let Size { forwards, gateways, operator: limit, change, last, burst } = *size;
    let mut lab = Lab::new();
    let server = Server::start(&mut lab)?;
    let api = Api::new(&server.admin())?;
    install(&api, &Terminal::new(server.admin(), server.folder()))?;
    let mut nodes = Vec::new();
    for number in 0..gateways {
        let host = lab.host(&format!("gw{number}"))?;
        let ip = server.nth_address(3 + number).to_string();
        lab.connect(&host, "eth0", server.network(), &[&format!("{ip}/{PREFIX}")])?;
        nodes.push(Node::join(&api, &host, &ip, &json!({ "sallyport.dev/gateway": "" }))?);
    }
    let kubelets = Kubelets::start(&api, &server, SYSTEM, nodes, &["--backend=dry-run"]);
    let setting = Setting { api: &api, server: &server, namespace: SYSTEM, account: OPERATOR, options: &[] };
    let mut operator = Operator::start(setting, "operator", 8081)?;
    wait::until_true("all gateways being in step", LIMIT, || {
        let pool = api.get(&format!("{KINDS}/gatewaypools/default"))?.unwrap_or_default();
        Ok(pool["status"]["nodes"]["ready"] == gateways)
    })
    .with_context(|| format!("{}\n{}", operator.process().output(), kubelets.nodes()[0].log()))?;

    let at = format!("{forwards} forwards on {gateways} gateways");
    let mut log = Log { server: &server, place: 0, round: 0 };
    create(&api, PAYMENTS, forwards)?;
    let verified = log.verified(usize::from(forwards))?;
    times_row(
        table,
        &format!("applied to verified, {at}, created without a pause"),
        &verified.times(),
        last.then_some(change),
    );
    let changes = log.changes(&api, forwards)?;
    times_row(table, &format!("applied to verified, one change, {at}"), &changes.times, Some(change));
    let most = changes.most_writes;
    // Seen and verified are the two transitions of a change.
    table.number(&format!("writes of an object for one change, {at}"), format!("at most {most}"), "≤ 2", most <= 2);

    let pid = operator.process().pid();
    let share = processor_share(pid, Duration::from_secs(10))?;
    let text = format!("{:.1} % of a core", share * 100.0);
    table.number(&format!("processor of the operator at rest, {at}"), text, "< 20 %", share < REST);
    let [resident, peak] = [memory_mib(pid, "VmRSS:")?, memory_mib(pid, "VmHWM:")?];
    let text = format!("{resident:.1} MiB (peak {peak:.1})");
    table.number(&format!("resident memory of the operator, {at}"), text, &format!("≤ {limit} MiB"), resident <= limit);
    let agent = memory_mib(kubelets.agent("gw0").context("find an agent")?, "VmRSS:")?;
    table.number(&format!("resident memory of an agent, {at}"), format!("{agent:.1} MiB"), "≤ 40 MiB", agent <= AGENT);
    let largest = largest_object(&api)?;
    let text = format!("{} KiB", largest >> 10);
    table.number(&format!("largest object, {at}"), text, "< 256 KiB", largest < LARGEST);
    if burst {
        measure_burst(table, &api, &mut log, forwards)?;
    }
    Ok(())
}

/// Creates forwards as quickly as one client can.
fn create(api: &Api, namespace: &str, count: u16) -> Result<()> {
    let mut place = PORT;
    for number in 0..count {
        let object = json!({
            "apiVersion": "sallyport.dev/v1alpha1",
            "kind": "PortForward",
            "metadata": { "name": name(number) },
            "spec": spec(place),
        });
        api.create(&format!("{KINDS}/namespaces/{namespace}/portforwards"), &object)?;
        place = if place == 29_999 { 1 } else { place + 1 };
    }
    Ok(())
}

/// Somebody without a grant creates thousands of forwards, and others go on with their work meanwhile.
fn measure_burst(table: &mut Table, api: &Api, log: &mut Log<'_>, forwards: u16) -> Result<()> {
    let (created, changes) = std::thread::scope(|scope| {
        let creation = scope.spawn(|| create(api, STRANGERS, BURST));
        let changes = log.changes(api, forwards);
        (creation.join(), changes)
    });
    let changes = changes?;
    created.map_err(|_| anyhow::anyhow!("the creation of the burst panicked"))??;
    let what = format!("applied to verified, one change while {BURST} forwards without a grant are created");
    let [p50, p99] = [50, 99].map(|percent| percentile(changes.times.clone(), percent));
    table.number(&what, format!("p50 {p50:.0} ms, p99 {p99:.0} ms"), "p99 < 5 s", p99 < 5000.0);
    let took = wait::until_true("a verdict on everything", LIMIT, || {
        let list = api.list(&format!("{KINDS}/namespaces/{STRANGERS}/portforwards?limit={BURST}"))?;
        Ok(list.len() == usize::from(BURST)
            && list.iter().all(|one| one["status"]["conditions"][0]["reason"] == "NotGranted"))
    })?;
    let text = format!("{:.1} s after the last was created", took.as_secs_f64());
    table.number(&format!("a verdict on each of {BURST} forwards"), text, "< 60 s", took < Duration::from_mins(1));
    Ok(())
}

/// The bytes of the largest object of ours as the API server sends it.
fn largest_object(api: &Api) -> Result<usize> {
    let mut largest = 0;
    for kind in ["forwardslices", "gatewaynodes", "gatewaypools", "portforwards"] {
        let objects = api.list(&format!("{KINDS}/{kind}"))?;
        largest = objects.iter().map(|object| object.to_string().len()).max().unwrap_or_default().max(largest);
    }
    Ok(largest)
}

/// With the `goal` in seconds, if there is one.
fn times_row(table: &mut Table, what: &str, times: &[f64], goal: Option<f64>) {
    let [p50, p99] = [50, 99].map(|percent| percentile(times.to_vec(), percent));
    let text = format!("p50 {p50:.0} ms, p99 {p99:.0} ms");
    if let Some(goal) = goal {
        table.number(what, text, &format!("p99 < {goal} s"), p99 < goal * 1000.0);
    } else {
        table.note(what, text);
    }
}

fn name(number: u16) -> String {
    format!("f{number:05}")
}

/// The API server's audit log from somewhere on.
struct Log<'a> {
    server: &'a Server,
    place: u64,
    /// How often forwards were changed, so that each change is one.
    round: u8,
}

/// Forwards that were changed one after the other.
struct Changes {
    /// Milliseconds until each was verified.
    times: Vec<f64>,
    /// The most writes that one object had for one change.
    most_writes: usize,
}

impl Log<'_> {
    /// Waits until `count` forwards of [`PAYMENTS`] that are written from here on are verified.
    fn verified(&mut self, count: usize) -> Result<Verified> {
        let mut verified = Verified::default();
        wait::until_true("all forwards being verified", LIMIT, || {
            for write in self.server.writes_after(&mut self.place)? {
                verified.take(&write)?;
            }
            Ok(verified.times.len() >= count)
        })?;
        Ok(verified)
    }

    /// Changes one forward after the other, in the presence of all.
    fn changes(&mut self, api: &Api, forwards: u16) -> Result<Changes> {
        let mut changes = Changes { times: Vec::new(), most_writes: 0 };
        self.round += 1;
        let source = format!("10.31.0.{}/32", self.round);
        let change = json!({ "spec": { "sources": { "allow": [{ "cidr": source }] } } });
        for number in 0..CHANGES {
            self.server.writes_after(&mut self.place)?;
            api.merge(&forward_path(PAYMENTS, &name(number * (forwards / CHANGES))), &change)?;
            let verified = self.verified(1)?;
            changes.times.extend(verified.times());
            changes.most_writes = changes.most_writes.max(verified.most_writes_of_an_object());
        }
        Ok(changes)
    }
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
            *self.writes.entry(format!("{kind}/{}/{name}", what["namespace"])).or_default() += 1;
            let is_verified =
                what["namespace"] == PAYMENTS && kind == "portforwards" && says_verified(&write["requestObject"]);
            if let Some(written) = self.authors.get(name).filter(|_| is_verified) {
                self.times.entry(name.to_owned()).or_insert((*written, answered));
            }
        } else if kind == "portforwards" && what["namespace"] == PAYMENTS {
            self.authors.insert(name.to_owned(), answered);
        }
        Ok(())
    }

    fn times(&self) -> Vec<f64> {
        self.times
            .values()
            .map(|(written, verified)| verified.duration_since(*written).as_secs_f64() * 1000.0)
            .collect()
    }

    fn most_writes_of_an_object(&self) -> usize {
        self.writes.values().copied().max().unwrap_or_default()
    }
}

fn says_verified(sent: &Value) -> bool {
    let conditions = sent["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == "Programmed" && one["status"] == "True")
}
