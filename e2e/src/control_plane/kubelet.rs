//! Plays scheduler and kubelet for the nodes of a test: binds the pods of the agents' `DaemonSet`, starts each with a
//! token bound to it, says that it runs, starts it again when it ends, and ends it when it is deleted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::api::Api;
use super::container::{self, Surroundings};
use super::pki;
use super::server::{PORT, Server};
use crate::lab::{self, Host, Process};

/// Time between two looks at the pods.
const BEAT: Duration = Duration::from_millis(50);

/// A pod that ended is started again after this long.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The longest that a pod may take to end, where its own spec says nothing shorter.
const GRACE: Duration = Duration::from_secs(5);

/// A host that is a node of the cluster.
#[derive(Debug)]
pub struct Node {
    host: Host,
    ip: String,
    folder: TempDir,
}

impl Node {
    /// Joins `host`, whose `InternalIP` is `ip`, to the cluster.
    pub fn join(api: &Api, host: &Host, ip: &str, labels: &Value) -> Result<Self> {
        let node = Self { host: host.clone(), ip: ip.to_owned(), folder: lab::folder()? };
        node.register(api, labels)?;
        Ok(node)
    }

    /// Makes its Node, as the kubelet does when it starts and there is none.
    pub fn register(&self, api: &Api, labels: &Value) -> Result<()> {
        let name = self.host.name();
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels } });
        api.create("/api/v1/nodes", &node)?;
        // Admission taints every new node until the node lifecycle controller, which is not here, takes that back.
        api.merge(&format!("/api/v1/nodes/{name}"), &json!({ "spec": { "taints": null } }))?;
        self.report(api, true, jiff::Timestamp::now())
    }

    /// Writes the node's status: its address, and whether it is ready since when.
    pub fn report(&self, api: &Api, ready: bool, since: jiff::Timestamp) -> Result<()> {
        let status = json!({ "status": {
            "addresses": [
                { "type": "InternalIP", "address": self.ip },
                { "type": "Hostname", "address": self.host.name() },
            ],
            "conditions": [{
                "type": "Ready",
                // What the node lifecycle controller writes for a node that it no longer hears of.
                "status": if ready { "True" } else { "Unknown" },
                "reason": if ready { "KubeletReady" } else { "NodeStatusUnknown" },
                "message": "",
                "lastHeartbeatTime": time(since),
                "lastTransitionTime": time(since),
            }],
        } });
        api.merge(&format!("/api/v1/nodes/{}/status", self.host.name()), &status).map(drop)
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Everything that the agents on it have printed.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("agent.log")
    }

    /// The folder that stands for its disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }
}

/// A time as Kubernetes writes it.
#[must_use]
pub fn time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A pod that was started on a node.
#[derive(Debug)]
struct Running {
    pod: Value,
    process: Process,
    token: String,
    // Holds the files of the pod.
    folder: TempDir,
    ended: Option<Instant>,
}

/// What the playing thread and the test share.
#[derive(Debug)]
struct Shared {
    api: Api,
    nodes: Vec<Node>,
    namespace: String,
    server: String,
    authority: PathBuf,
    arguments: Vec<String>,
    stop: AtomicBool,
    running: Mutex<BTreeMap<String, Running>>,
    trouble: Mutex<String>,
}

/// The nodes of a cluster, played until this value is dropped.
#[derive(Debug)]
pub struct Kubelets {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Kubelets {
    /// Begins to play for the pods of `namespace`; the programs get `arguments` after their pod's own.
    #[must_use]
    pub fn start(api: &Api, server: &Server, namespace: &str, nodes: Vec<Node>, arguments: &[&str]) -> Self {
        let shared = Arc::new(Shared {
            api: api.clone(),
            nodes,
            namespace: namespace.to_owned(),
            server: server.address().to_string(),
            authority: server.file(pki::AUTHORITY),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            stop: AtomicBool::new(false),
            running: Mutex::default(),
            trouble: Mutex::default(),
        });
        // A silent API server must not keep an agent from being started again.
        let threads = [Shared::beat, Shared::keep_running].map(|beat| {
            let playing = Arc::clone(&shared);
            std::thread::spawn(move || playing.play(beat))
        });
        Self { shared, threads: threads.into() }
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.shared.nodes
    }

    /// The process id of the agent that runs on a node.
    #[must_use]
    pub fn agent(&self, node: &str) -> Option<u32> {
        let mut running = lock(&self.shared.running);
        let agent = running.get_mut(node)?;
        agent.process.ended().is_ok_and(|ended| ended.is_none()).then(|| agent.process.pid())
    }

    /// The token of the agent's pod on a node.
    #[must_use]
    pub fn token(&self, node: &str) -> Option<String> {
        lock(&self.shared.running).get(node).map(|running| running.token.clone())
    }

    /// Kills the agent on a node; it is started again after a second.
    pub fn kill(&self, node: &str) -> Result<()> {
        let mut running = lock(&self.shared.running);
        running.get_mut(node).with_context(|| format!("find the agent on {node}"))?.process.kill()
    }

    /// What went wrong in playing.
    #[must_use]
    pub fn trouble(&self) -> String {
        lock(&self.shared.trouble).clone()
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Locks; what a panicking test has left is still good enough to be cleaned up.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    fn play(&self, beat: fn(&Self) -> Result<()>) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = beat(self) {
                let mut trouble = lock(&self.trouble);
                let line = format!("{error:#}\n");
                // The API server may well be away: once is enough.
                if !trouble.ends_with(&line) {
                    trouble.push_str(&line);
                }
            }
            std::thread::sleep(BEAT);
        }
    }

    fn beat(&self) -> Result<()> {
        let pods = self.api.list(&format!("/api/v1/namespaces/{}/pods", self.namespace))?;
        let mut running = lock(&self.running);
        // A pod that is gone without having been ended was deleted by force.
        running.retain(|_, agent| pods.iter().any(|pod| pod["metadata"]["uid"] == agent.pod["metadata"]["uid"]));
        for pod in &pods {
            let Some(node) = self.nodes.iter().find(|node| wanted_node(pod) == Some(node.host.name())) else {
                continue;
            };
            self.attend(pod, node, &mut running)?;
        }
        Ok(())
    }

    /// Takes one pod a step further.
    fn attend(&self, pod: &Value, node: &Node, running: &mut BTreeMap<String, Running>) -> Result<()> {
        let name = pod["metadata"]["name"].as_str().context("read a pod's name")?;
        let path = format!("/api/v1/namespaces/{}/pods/{name}", self.namespace);
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if let Some(mut ended) = running.remove(node.host.name()) {
                let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().map_or(GRACE, Duration::from_secs);
                // What does not end in time is killed when dropped.
                let _ = ended.process.terminate(grace.min(GRACE));
            }
            return self.api.delete(&format!("{path}?gracePeriodSeconds=0"));
        }
        if pod["spec"]["nodeName"].is_null() {
            let binding = json!({
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": { "name": name },
                "target": { "kind": "Node", "name": node.host.name() },
            });
            return self.api.create(&format!("{path}/binding"), &binding).map(drop);
        }
        if running.contains_key(node.host.name()) {
            return Ok(());
        }
        running.insert(node.host.name().to_owned(), self.run(pod, name, node)?);
        self.api.merge(&format!("{path}/status"), &ready(node)).map(drop)
    }

    /// Starts agents again that have ended, after a while; it takes no API server.
    fn keep_running(&self) -> Result<()> {
        let mut running = lock(&self.running);
        for node in &self.nodes {
            let Some(agent) = running.get_mut(node.host.name()) else {
                continue;
            };
            if agent.process.ended()?.is_none() {
                continue;
            }
            if agent.ended.get_or_insert_with(Instant::now).elapsed() >= BACK_OFF {
                agent.process = self.contain(&agent.pod, node, &agent.folder, &agent.token)?;
                agent.ended = None;
            }
        }
        Ok(())
    }

    fn run(&self, pod: &Value, name: &str, node: &Node) -> Result<Running> {
        let uid = &pod["metadata"]["uid"];
        let account = pod["spec"]["serviceAccountName"].as_str().context("read a pod's service account")?;
        let bound = json!({ "kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid });
        let token = request_token(&self.api, &self.namespace, account, Some(&bound))?;
        let folder = lab::folder()?;
        let process = self.contain(pod, node, &folder, &token)?;
        Ok(Running { pod: pod.clone(), process, token, folder, ended: None })
    }

    fn contain(&self, pod: &Value, node: &Node, folder: &TempDir, token: &str) -> Result<Process> {
        let around = Surroundings {
            host: &node.host,
            ip: node.ip.clone(),
            disk: &node.disk(),
            folder: folder.path(),
            token,
            authority: &self.authority,
            api: (self.server.clone(), PORT),
            arguments: &self.arguments,
        };
        container::start(pod, &around, &node.log_file())
    }
}

/// The node that a pod is bound to, or that the `DaemonSet` made it for.
fn wanted_node(pod: &Value) -> Option<&str> {
    let term = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
    let made_for = || pod.pointer(term)?["matchFields"][0]["values"][0].as_str();
    pod["spec"]["nodeName"].as_str().or_else(made_for)
}

/// The status of a pod that runs.
fn ready(node: &Node) -> Value {
    let now = time(jiff::Timestamp::now());
    let conditions: Vec<Value> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": now }))
        .to_vec();
    json!({ "status": {
        "phase": "Running",
        "conditions": conditions,
        "hostIP": node.ip,
        "podIP": node.ip,
        "podIPs": [{ "ip": node.ip }],
        "startTime": now,
    } })
}

/// Asks for a token of a service account, bound to an object or to nothing.
pub fn request_token(api: &Api, namespace: &str, account: &str, bound_to: Option<&Value>) -> Result<String> {
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": { "audiences": [], "expirationSeconds": 7200, "boundObjectRef": bound_to },
    });
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let answer = api.create(&path, &request)?;
    answer["status"]["token"].as_str().map(str::to_owned).context("read the token")
}
