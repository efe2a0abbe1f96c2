//! The stage of this tier's tests: app1 and app2 are clients, gw1 and gw2 nodes and gateways, db1 lets only the
//! gateways in. The chart is applied, an operator runs, and the pool `default` has both gateways.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::api::Api;
use super::kubectl::Terminal;
use super::kubelet::{Kubelets, Node};
use super::operator::{Operator, Setting};
use super::server::{PREFIX, Server, end_of};
use crate::article::{APP1, APP2, DB1, GW1, mostly_tcp, socket};
use crate::lab::{Family, Host, Lab, Process, Variant};
use crate::program;
use crate::traffic::{self, Protocol, RunningLoad};
use crate::wait;

/// The second gateway.
pub const GW2: &str = "10.30.1.77";

/// The operator's namespace.
pub const SYSTEM: &str = "sallyport-system";
/// A namespace that may forward any port to anywhere.
pub const PAYMENTS: &str = "payments";
/// A namespace that may make two forwards, of ports 3306 to 3310, from and to the lab's own network.
pub const ORDERS: &str = "orders";
/// A namespace without a grant.
pub const STRANGERS: &str = "strangers";

/// The service account of the agents.
pub const AGENT: &str = "sallyport-node-agent";
/// The service account of the operator.
pub const OPERATOR: &str = "sallyport-operator";

/// The longest that the cluster may take for anything that needs no pod.
pub const SOON: Duration = Duration::from_secs(10);
/// Seconds that a load may go on.
const LONGEST_LOAD: u64 = 120;
/// The longest that it may take to start agents.
const AGENTS: Duration = Duration::from_secs(40);

/// The paths of our objects at the API server.
pub const KINDS: &str = "/apis/sallyport.dev/v1alpha1";

/// A running cluster with its hosts. Fields are dropped in this order: the lab comes last.
#[derive(Debug)]
pub struct Scene {
    /// The replicas of the operator that run.
    pub operators: Vec<Operator>,
    /// The nodes.
    pub kubelets: Kubelets,
    /// The administrator's connection.
    pub api: Api,
    /// The administrator's command line.
    pub terminal: Terminal,
    /// The control plane.
    pub server: Server,
    /// The client.
    pub app1: Host,
    /// A client that nobody lists.
    pub app2: Host,
    /// A gateway.
    pub gw1: Host,
    /// Another gateway.
    pub gw2: Host,
    /// The host of the servers.
    pub db1: Host,
    _lab: Lab,
}

/// One condition of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// What to do.
    pub message: String,
}

/// Runs `body` when everything is settled. On failure it prints what explains it. Everything is removed afterwards,
/// also when `body` panics.
pub fn scene(body: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let mut scene = Scene::build()?;
    let outcome = scene.settle().and_then(|()| body(&mut scene));
    if let Err(error) = outcome {
        bail!("{error:#}\n{}", scene.diagnostics());
    }
    Ok(())
}

impl Scene {
    fn build() -> Result<Self> {
        let mut lab = Lab::new();
        let server = Server::start(&mut lab)?;
        let lan = lab.network("lan")?;
        let mut host = |name: &str, ip: &str| {
            let host = lab.host(name)?;
            lab.connect(&host, "eth0", &lan, &[&format!("{ip}/23")])?;
            anyhow::Ok(host)
        };
        let (app1, app2, db1) = (host("app1", APP1)?, host("app2", APP2)?, host("db1", DB1)?);
        let (gw1, gw2) = (host("gw1", GW1)?, host("gw2", GW2)?);
        for (number, gateway) in [(3, &gw1), (4, &gw2)] {
            let address = format!("{}/{PREFIX}", server.nth_address(number));
            lab.connect(gateway, "manage", server.network(), &[&address])?;
        }
        let firewall = format!(
            "*filter\n:INPUT DROP [0:0]\n-A INPUT -s {GW1}/32 -j ACCEPT\n-A INPUT -s {GW2}/32 -j ACCEPT\nCOMMIT\n"
        );
        db1.iptables_restore(Variant::Nft, Family::V4, &firewall)?;

        let api = Api::new(&server.admin())?;
        let terminal = Terminal::new(server.admin(), server.folder());
        let labels = json!({ "sallyport.dev/gateway": "" });
        let nodes = vec![Node::join(&api, &gw1, GW1, &labels)?, Node::join(&api, &gw2, GW2, &labels)?];
        let kubelets = Kubelets::start(&api, &server, SYSTEM, nodes, &[]);
        Ok(Self { operators: Vec::new(), kubelets, api, terminal, server, app1, app2, gw1, gw2, db1, _lab: lab })
    }

    /// Installs Sallyport and waits until both gateways are in step.
    fn settle(&mut self) -> Result<()> {
        install(&self.api, &self.terminal)?;
        self.start_operator("operator-a")?;
        for node in ["gw1", "gw2"] {
            self.wait_for(&node_path(node), "Synced", "Synced", AGENTS)?;
        }
        Ok(())
    }

    /// Starts one more replica of the operator.
    pub fn start_operator(&mut self, name: &str) -> Result<()> {
        self.start_operator_with(name, &[])
    }

    /// The same, told more.
    pub fn start_operator_with(&mut self, name: &str, options: &[String]) -> Result<()> {
        let setting = Setting { api: &self.api, server: &self.server, namespace: SYSTEM, account: OPERATOR, options };
        let port = 8081 + u16::try_from(self.operators.len()).context("count the operators")?;
        let operator = Operator::start(setting, name, port)?;
        self.operators.push(operator);
        Ok(())
    }

    /// Applies a forward.
    pub fn apply(&self, namespace: &str, name: &str, spec: &Value) -> Result<()> {
        let object = json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "PortForward", "spec": spec });
        self.api.apply(&forward_path(namespace, name), &object).map(drop)
    }

    /// Applies a forward and waits until it is Ready.
    pub fn apply_ready(&self, namespace: &str, name: &str, spec: &Value) -> Result<Duration> {
        self.apply(namespace, name, spec)?;
        self.wait_for(&forward_path(namespace, name), "Ready", "Ready", SOON)
    }

    /// A condition of the object at `path`, if it speaks of the object's present generation.
    pub fn condition(&self, path: &str, kind: &str) -> Result<Option<Condition>> {
        let Some(object) = self.api.get(path)? else {
            return Ok(None);
        };
        let conditions = object["status"]["conditions"].as_array();
        let Some(found) = conditions.into_iter().flatten().find(|condition| condition["type"] == kind) else {
            return Ok(None);
        };
        if found["observedGeneration"].is_number() && found["observedGeneration"] != object["metadata"]["generation"] {
            return Ok(None);
        }
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        Ok(Some(Condition { status: text("status"), reason: text("reason"), message: text("message") }))
    }

    /// Waits until a condition of the object at `path` has the given reason.
    pub fn wait_for(&self, path: &str, kind: &str, reason: &str, limit: Duration) -> Result<Duration> {
        let what = format!("{kind} of {path} being {reason}");
        let mut last = None;
        wait::until_true(&what, limit, || {
            last = self.condition(path, kind)?;
            Ok(last.as_ref().is_some_and(|condition| condition.reason == reason))
        })
        .with_context(|| format!("it was {last:?}"))
    }

    /// Waits until no object is at `path`.
    pub fn wait_until_gone(&self, path: &str, limit: Duration) -> Result<Duration> {
        wait::until_true(&format!("the end of {path}"), limit, || Ok(self.api.get(path)?.is_none()))
    }

    /// Starts servers on db1, TCP and UDP.
    pub fn serve(&self, ports: &[u16]) -> Result<Process> {
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let listeners: Vec<_> =
            protocols.iter().flat_map(|protocol| ports.iter().map(|port| (*protocol, socket(DB1, *port)))).collect();
        traffic::serve(&self.db1, &listeners)
    }

    /// Starts a load from app1 through a port of both gateways: of five connections four are TCP and one is UDP.
    pub fn load(&self, port: u16) -> Result<RunningLoad> {
        RunningLoad::start(&self.app1, &mostly_tcp(&[socket(GW1, port), socket(GW2, port)]), 250, 250, LONGEST_LOAD)
    }

    /// Runs `uninstall` of the operator's program as the cluster's administrator; it goes on until dropped.
    pub fn uninstall(&self, options: &[&str]) -> Result<Process> {
        let mut command = vec![
            "env".to_owned(),
            format!("KUBECONFIG={}", self.server.admin().display()),
            program::operator()?.display().to_string(),
            "uninstall".to_owned(),
            format!("--namespace={SYSTEM}"),
            "--identity=by-hand".to_owned(),
        ];
        command.extend(options.iter().map(|option| (*option).to_owned()));
        self.server.host().spawn(&command)
    }

    /// Asks once from app1 at a port of both gateways; db1 must answer.
    pub fn expect_answers(&self, port: u16) -> Result<()> {
        for gateway in [GW1, GW2] {
            let answer = self.ask(gateway, port)?;
            ensure!(answer.is_from("db1"), "{answer:?} at {gateway}:{port}, not db1");
        }
        Ok(())
    }

    /// Asks once from app1 at a port of both gateways; nobody may answer.
    pub fn expect_refusals(&self, port: u16) -> Result<()> {
        for gateway in [GW1, GW2] {
            let answer = self.ask(gateway, port)?;
            ensure!(!matches!(answer, traffic::Answer::Heard { .. }), "{answer:?} at {gateway}:{port}, not silence");
        }
        Ok(())
    }

    /// Asks from app1.
    pub fn ask(&self, gateway: &str, port: u16) -> Result<traffic::Answer> {
        traffic::ask(&self.app1, Protocol::Tcp, socket(gateway, port))
    }

    /// The rules of both gateways.
    pub fn rules(&self) -> Result<Vec<String>> {
        [&self.gw1, &self.gw2].into_iter().map(|host| host.iptables_save(Variant::Nft, Family::V4)).collect()
    }

    /// Everything that explains a failure.
    #[must_use]
    pub fn diagnostics(&self) -> String {
        let mut text = String::new();
        for arguments in [
            &["get", "portforwards,gatewaypools,forwardslices,gatewaynodes", "-A", "-o", "yaml"][..],
            &["get", "nodes,pods,daemonsets,leases", "-A", "--show-labels"],
            &["get", "events", "-A"],
        ] {
            let printed = self.terminal.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
            text += &format!("--- kubectl {}\n{printed}", arguments.join(" "));
        }
        for operator in &self.operators {
            let log = std::fs::read_to_string(operator.log()).unwrap_or_default();
            text += &format!("--- {}\n{}", operator.name(), end_of(&log, 8000));
        }
        for node in self.kubelets.nodes() {
            let host = node.host();
            let rules = host.check(&["iptables-nft-save", "-c"]).unwrap_or_else(|error| format!("{error:#}\n"));
            text += &format!("--- rules of {0}\n{rules}--- agent on {0}\n{1}", host.name(), end_of(&node.log(), 8000));
        }
        text + "--- trouble of the played kubelets\n" + &self.kubelets.trouble()
    }
}

/// Makes the namespaces, applies the chart and the pool. Nothing runs the pods of the chart's operator.
pub fn install(api: &Api, terminal: &Terminal) -> Result<()> {
    for (name, labels) in [
        (SYSTEM, json!({})),
        (PAYMENTS, json!({ "team": "payments" })),
        (ORDERS, json!({ "team": "orders" })),
        (STRANGERS, json!({})),
    ] {
        let namespace = json!({ "metadata": { "name": name, "labels": labels } });
        api.create("/api/v1/namespaces", &namespace)?;
    }
    terminal.apply(&terminal.chart(SYSTEM)?)?;
    terminal.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=20s"])?;
    api.apply(&format!("{KINDS}/gatewaypools/default"), &pool()).map(drop)
}

/// The path of a forward.
#[must_use]
pub fn forward_path(namespace: &str, name: &str) -> String {
    format!("{KINDS}/namespaces/{namespace}/portforwards/{name}")
}

/// The path of a `GatewayNode`.
#[must_use]
pub fn node_path(node: &str) -> String {
    format!("{KINDS}/gatewaynodes/{node}")
}

/// What a forward asks for that lets app1 reach a port of db1, by TCP and by UDP.
#[must_use]
pub fn both(port: u16) -> Value {
    let mut spec = spec(port);
    spec["ports"] = json!([
        { "name": "tcp", "protocol": "TCP", "port": port },
        { "name": "udp", "protocol": "UDP", "port": port },
    ]);
    spec
}

/// What a forward asks for that lets app1 reach a port of db1.
#[must_use]
pub fn spec(port: u16) -> Value {
    json!({
        "pool": "default",
        "ports": [{ "name": "p", "protocol": "TCP", "port": port }],
        "sources": { "allow": [{ "cidr": format!("{APP1}/32") }] },
        "targets": [{ "name": "db1", "ip": DB1 }],
    })
}

/// The pool of both gateways.
#[must_use]
pub fn pool() -> Value {
    let anywhere = json!(["0.0.0.0/0"]);
    json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": "GatewayPool",
        "spec": {
            "nodeSelector": { "matchLabels": { "sallyport.dev/gateway": "" } },
            "grants": [
                {
                    "name": "payments",
                    "namespaceSelector": { "matchLabels": { "team": "payments" } },
                    "ports": [
                        { "protocol": "TCP", "port": 1, "endPort": 65535 },
                        { "protocol": "UDP", "port": 1, "endPort": 65535 },
                    ],
                    "targetCIDRs": anywhere,
                    "sourceCIDRs": anywhere,
                },
                {
                    "name": "orders",
                    "namespaceSelector": { "matchLabels": { "team": "orders" } },
                    "ports": [{ "protocol": "TCP", "port": 3306, "endPort": 3310 }],
                    "targetCIDRs": ["10.30.1.0/24"],
                    "sourceCIDRs": ["10.30.0.0/23"],
                    "maxForwards": 2,
                },
            ],
        },
    })
}
