//! A real cluster for the demo and the tests: kind with one control plane and two workers, which are the gateways, and
//! beside it two plain hosts, app1 and db1, with the firewall of the story. The scripts of `e2e/cluster/` make it.
//!
//! Not here: what is installed in it (`release`).

mod diagnostics;
mod release;
pub mod scene;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::article;
use crate::demo_standalone::database;
use crate::lab::{Family, Host, Outcome, Variant};
use crate::{binaries, packages, program, script, wait};

pub use release::{Helm, NAMESPACE};

/// The longest that the control plane may take for anything that starts no pod.
pub const SOON: Duration = Duration::from_secs(15);
/// The longest that pods may take to start or to end.
pub const PODS: Duration = Duration::from_mins(2);
/// The label that makes a node a gateway of the default pool.
pub const GATEWAY_LABEL: &str = "sallyport.dev/gateway";

/// The IPv6 address of app1.
pub const APP1_V6: &str = "fd00:30::1:80";
/// The IPv6 address of db1.
pub const DB1_V6: &str = "fd00:30::1:79";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Where people type `kubectl`, `helm` and `docker`.
    pub admin: Host,
    /// The client.
    pub app1: Host,
    /// The database host.
    pub db1: Host,
    /// The two workers.
    pub gateways: Vec<Gateway>,
    kubeconfig: PathBuf,
}

/// A worker node.
#[derive(Debug)]
pub struct Gateway {
    /// Its network.
    pub host: Host,
    /// Its name, as a node and as a container.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// Its IPv6 address.
    pub ip_v6: String,
}

impl Cluster {
    /// Whether the cluster runs, or was left halfway.
    pub fn is_up() -> Result<bool> {
        let inspect = Command::new("docker").args(["inspect", "sallyport-control-plane"]).output();
        match inspect {
            Ok(output) => Ok(output.status.success()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("run docker"),
        }
    }

    /// Makes the cluster, or uses the one that runs, and makes the hosts anew. What it needs besides is built first,
    /// which takes many minutes once.
    pub fn up() -> Result<Self> {
        packages::install_missing(&[packages::LAB, packages::MARIADB].concat())?;
        script::run("up.sh", &[])?;
        let tools = binaries::ensure(&["kubectl", "kind"])?;
        let kubeconfig = tools.parent().context("find the cache")?.join("kubeconfig");
        let path = std::env::var("PATH").unwrap_or_default();
        let admin = Host::entered_by(
            "admin",
            &[
                "env",
                &format!("--chdir={}", program::repository()?.display()),
                &format!("KUBECONFIG={}", kubeconfig.display()),
                &format!("PATH={}:{path}", tools.display()),
            ],
        );
        let gateways = ["sallyport-worker", "sallyport-worker2"];
        let cluster = Self {
            app1: network_of(&admin, "app1", "sallyport-app1")?,
            db1: network_of(&admin, "db1", "sallyport-db1")?,
            gateways: gateways.iter().map(|name| Gateway::find(&admin, name)).collect::<Result<_>>()?,
            kubeconfig,
            admin,
        };
        cluster.load_firewalls()?;
        cluster.fill_database()?;
        Ok(cluster)
    }

    /// The administrators of app1 and db1 let in what the story says, and db1's the two gateways besides.
    fn load_firewalls(&self) -> Result<()> {
        for host in [&self.app1, &self.db1] {
            host.iptables_restore(Variant::Nft, Family::V4, article::FIREWALL)?;
            host.iptables_restore(Variant::Nft, Family::V6, article::FIREWALL_V6)?;
        }
        for Gateway { ip, ip_v6, .. } in &self.gateways {
            for (family, from) in [(Family::V4, ip), (Family::V6, ip_v6)] {
                let rule = format!("-A INPUT -s {from} -p tcp --dport 3306:3310 -j ACCEPT");
                self.db1.iptables(Variant::Nft, family, &rule)?;
            }
        }
        Ok(())
    }

    fn fill_database(&self) -> Result<()> {
        let mariadb = ["docker", "exec", "-i", "sallyport-db1", "mariadb", "--socket=/run/mariadb.sock"];
        wait::until_true("the database of db1", PODS, || {
            Ok(self.admin.run_with_input(&mariadb, b"SELECT 1")?.success())
        })?;
        self.admin.check_with_input(&mariadb, database::CONTENT.as_bytes()).map(drop)
    }

    /// Runs `kubectl`, which must succeed.
    pub fn kubectl(&self, arguments: &str) -> Result<String> {
        self.admin.check(&words("kubectl", arguments))
    }

    /// Runs `kubectl`.
    pub fn try_kubectl(&self, arguments: &str) -> Result<Outcome> {
        self.admin.run(&words("kubectl", arguments))
    }

    /// `kubectl apply` of a manifest, which must succeed.
    pub fn apply(&self, manifest: &Value) -> Result<()> {
        let command = words("kubectl", "apply --filename -");
        self.admin.check_with_input(&command, manifest.to_string().as_bytes()).map(drop)
    }

    /// An object, or `None` if there is none of that name.
    pub fn get(&self, object: &str) -> Result<Option<Value>> {
        let outcome = self.try_kubectl(&format!("get {object} --ignore-not-found --output json"))?;
        if !outcome.success() {
            bail!("kubectl get {object}: {}", outcome.stderr);
        }
        if outcome.stdout.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&outcome.stdout).map(Some).with_context(|| format!("read {object}"))
    }

    /// Waits until a forward is Ready on both gateways, and gives it.
    pub fn wait_until_ready(&self, namespace: &str, name: &str) -> Result<Value> {
        let object = format!("portforward/{name} --namespace {namespace}");
        let is_ready = |forward: &Value| {
            forward["status"]["summary"]["nodes"] == "2/2"
                && forward["status"]["observedGeneration"] == forward["metadata"]["generation"]
                && condition(forward, "Ready") == Some("True")
        };
        let mut last = None;
        wait::until(&format!("{object} being Ready on both gateways"), PODS, || {
            last = self.get(&object)?;
            Ok(last.clone().filter(is_ready))
        })
        .map(|(forward, _)| forward)
        .with_context(|| format!("it is {last:?}"))
    }

    /// The file that lets `kubectl` reach the cluster.
    #[must_use]
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }
}

impl Gateway {
    fn find(admin: &Host, name: &str) -> Result<Self> {
        let [ip, ip_v6] = ["IPAddress", "GlobalIPv6Address"].map(|field| {
            let format = format!("{{{{.NetworkSettings.Networks.sallyport.{field}}}}}");
            admin.check(&["docker", "inspect", "--format", &format, name]).map(|address| address.trim().to_owned())
        });
        Ok(Self { host: network_of(admin, name, name)?, name: name.to_owned(), ip: ip?, ip_v6: ip_v6? })
    }
}

/// The network of a container, in which the programs of this machine run.
fn network_of(admin: &Host, name: &str, container: &str) -> Result<Host> {
    let pid = admin.check(&["docker", "inspect", "--format", "{{.State.Pid}}", container])?;
    Ok(Host::entered_by(name, &["nsenter", &format!("--net=/proc/{}/ns/net", pid.trim())]))
}

/// The status of a condition of an object.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

fn words(program: &str, arguments: &str) -> Vec<String> {
    [program].into_iter().chain(arguments.split_whitespace()).map(str::to_owned).collect()
}
