//! etcd, kube-apiserver and kube-controller-manager as processes on one host of a lab, on the network that the
//! gateways and this machine reach them by.
//!
//! RBAC, admission policies, service accounts and tokens are real. There is no scheduler, no kubelet and no node
//! lifecycle: `kubelet` plays them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::api::Api;
use super::stopped::slowly;
use super::{Stopped, pki, programs};
use crate::lab::{self, Host, Lab, Network, Process};
use crate::wait;

/// The API server's port.
pub const PORT: u16 = 6443;

/// Bits of the prefix of the network that it is reached by.
pub const PREFIX: u8 = 27;

/// Services get addresses from here.
pub const SERVICES: &str = "10.96.0.0/16";

/// The longest that the control plane may take to start, on a machine that does much else.
const START: Duration = Duration::from_mins(1);

/// What of the controller manager is needed: collecting what lost its owner, ending namespaces, pods of `DaemonSet`s.
const CONTROLLERS: &str = "garbage-collector-controller,namespace-controller,daemonset-controller";

/// Where a copy of what etcd holds is kept.
const SNAPSHOT: &str = "etcd-snapshot";

/// A control plane that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    host: Host,
    network: Network,
    base: u32,
    folder: TempDir,
    admin_token: String,
    processes: BTreeMap<&'static str, Process>,
}

impl Server {
    /// Starts everything and waits until it is ready.
    pub fn start(lab: &mut Lab) -> Result<Self> {
        let base = take_network()?;
        let host = lab.host("api")?;
        let network = lab.network("manage")?;
        let folder = lab::folder()?;
        let admin_token = format!("admin-{base}");
        let mut server = Self { host, network, base, folder, admin_token, processes: BTreeMap::new() };
        lab.connect(&server.host, "eth0", &server.network, &[&format!("{}/{PREFIX}", server.address())])?;
        lab.connect_machine(&server.network, &format!("{}/{PREFIX}", server.nth_address(2)))?;

        pki::write(server.folder.path(), &[Ipv4Addr::LOCALHOST, server.address()])?;
        let users = format!("{},admin,admin,system:masters\n", server.admin_token);
        std::fs::write(server.file("users.csv"), users).context("write the users")?;
        std::fs::write(server.file("audit-policy.json"), audit_policy().to_string()).context("write audit rules")?;
        server.kubeconfig("admin", &server.admin_token)?;
        server.start_etcd()?;
        server.start_api()?;
        server.start_controllers()?;
        Ok(server)
    }

    /// The API server's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.nth_address(1)
    }

    /// An address of its network: 1 is the API server's, 2 this machine's, 3 to 30 are free.
    #[must_use]
    pub fn nth_address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + number)
    }

    /// The network that the API server is reached by.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The host that the control plane runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The path of a file of the control plane.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of all files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The cluster's administrator.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.file("admin.kubeconfig")
    }

    /// Writes a kubeconfig file for the holder of `token`.
    pub fn kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        let path = self.file(&format!("{name}.kubeconfig"));
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{}:{PORT}", self.address()),
                "certificate-authority": self.file(pki::AUTHORITY),
            }}],
            "users": [{ "name": name, "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
        });
        std::fs::write(&path, kubeconfig.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn start_etcd(&mut self) -> Result<()> {
        let flags = [
            format!("--data-dir={}", self.file("etcd").display()),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=error".to_owned(),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        ];
        self.run("etcd", &flags)
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_api(&mut self) -> Result<()> {
        let file = |name: &str| self.file(name).display().to_string();
        let flags = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--advertise-address={}", self.address()),
            format!("--secure-port={PORT}"),
            format!("--tls-cert-file={}", file(pki::CERTIFICATE)),
            format!("--tls-private-key-file={}", file(pki::KEY)),
            format!("--token-auth-file={}", file("users.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-signing-key-file={}", file(pki::TOKENS_KEY)),
            format!("--service-account-key-file={}", file(pki::TOKENS_PUBLIC)),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--allow-privileged".to_owned(),
            format!("--audit-policy-file={}", file("audit-policy.json")),
            format!("--audit-log-path={}", file("audit.log")),
            "--audit-log-mode=blocking".to_owned(),
            // A watch that ended by itself would cost a list: none shall, within a test.
            "--min-request-timeout=3600".to_owned(),
        ];
        self.run("kube-apiserver", &flags)?;
        let api = Api::new(&self.admin())?;
        wait::until_true("the API server being ready", START, || {
            self.still_running()?;
            Ok(api.get("/readyz").is_ok_and(|text| text == Some(Value::String("ok".to_owned()))))
        })
        .map(drop)
    }

    /// Ends the API server without warning.
    pub fn kill_api(&mut self) -> Result<()> {
        self.kill("kube-apiserver")
    }

    /// Makes the API server stand still: it takes connections and answers nobody.
    pub fn silence_api(&self) -> Result<Stopped> {
        Stopped::stop(self.api_pid()?)
    }

    /// Runs `body` while every answer of the API server is late, by up to a second.
    pub fn with_slow_api<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        slowly(self.api_pid()?, body)
    }

    fn api_pid(&self) -> Result<u32> {
        Ok(self.processes.get("kube-apiserver").context("find the API server")?.pid())
    }

    fn kill(&mut self, program: &str) -> Result<()> {
        self.processes.remove(program).with_context(|| format!("find {program}"))?.kill()
    }

    /// Keeps a copy of all that etcd holds now.
    pub fn take_snapshot(&self) -> Result<()> {
        let etcd = self.processes.get("etcd").context("find etcd")?;
        let _still = Stopped::stop(etcd.pid())?;
        self.copy_folder("etcd", SNAPSHOT)
    }

    /// Puts etcd back to the last snapshot, as after a disaster, and starts everything again.
    pub fn restore_snapshot(&mut self) -> Result<()> {
        for program in ["kube-controller-manager", "kube-apiserver", "etcd"] {
            self.kill(program)?;
        }
        std::fs::remove_dir_all(self.file("etcd")).context("lose what etcd holds")?;
        self.copy_folder(SNAPSHOT, "etcd")?;
        self.start_etcd()?;
        self.start_api()?;
        self.start_controllers()
    }

    fn copy_folder(&self, from: &str, to: &str) -> Result<()> {
        let [from, to] = [from, to].map(|name| self.file(name).display().to_string());
        self.host.check(&["cp", "-a", &from, &to]).map(drop)
    }

    fn start_controllers(&mut self) -> Result<()> {
        let admin = self.admin().display().to_string();
        let flags = [
            format!("--kubeconfig={admin}"),
            format!("--authentication-kubeconfig={admin}"),
            format!("--authorization-kubeconfig={admin}"),
            format!("--controllers={CONTROLLERS}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
            format!("--cert-dir={}", self.file("controllers").display()),
        ];
        self.run("kube-controller-manager", &flags)
    }

    fn run(&mut self, program: &'static str, flags: &[String]) -> Result<()> {
        let mut command = vec![programs::find(program)?.display().to_string()];
        command.extend_from_slice(flags);
        let process = self.host.spawn_logging_to(&command, &self.file(&format!("{program}.log")))?;
        self.processes.insert(program, process);
        Ok(())
    }

    /// Fails with the end of the log of a program that has ended.
    fn still_running(&mut self) -> Result<()> {
        for (name, process) in &mut self.processes {
            if let Some(status) = process.ended()? {
                bail!("{name} ended with {status}:\n{}", end_of(&process.output(), 4000));
            }
        }
        Ok(())
    }

    /// Every request so far that may have changed something, oldest first, as the API server's audit log has it.
    pub fn writes(&self) -> Result<Vec<Value>> {
        self.writes_after(&mut 0)
    }

    /// Those that the audit log has from byte `place` on, which is moved to its end.
    pub fn writes_after(&self, place: &mut u64) -> Result<Vec<Value>> {
        let mut log = File::open(self.file("audit.log")).context("open the audit log")?;
        log.seek(SeekFrom::Start(*place)).context("go on in the audit log")?;
        let mut text = String::new();
        log.read_to_string(&mut text).context("read the audit log")?;
        // The last line may be half written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        *place += u64::try_from(whole).context("count the bytes of the audit log")?;
        text[..whole].lines().map(|line| serde_json::from_str(line).context("understand the audit log")).collect()
    }
}

/// The end of a text, at most `bytes` of it.
#[must_use]
pub fn end_of(text: &str, bytes: usize) -> &str {
    let from = text.len().saturating_sub(bytes);
    (from..=text.len()).find_map(|from| text.get(from..)).unwrap_or_default()
}

/// Who changed what, once answered, for forwards with what was sent; reading is not of interest.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            { "level": "None", "verbs": ["get", "list", "watch"] },
            { "level": "None", "resources": [{ "group": "authentication.k8s.io" }, { "group": "authorization.k8s.io" }] },
            { "level": "Request", "resources": [{ "group": "sallyport.dev", "resources": [
                "portforwards", "portforwards/status",
            ] }] },
            { "level": "Metadata" },
        ],
    })
}

/// Takes the first address of a network until this process ends, of the block for benchmarks of networks (RFC 2544), which
/// nobody else routes: this machine gets an address of it, so no two that run may have the same.
fn take_network() -> Result<u32> {
    const NETWORKS: u32 = 1 << (PREFIX - 15);
    let first = std::process::id().wrapping_mul(8);
    for number in (0..NETWORKS).map(|next| first.wrapping_add(next) % NETWORKS) {
        let base = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (number << (32 - PREFIX));
        let name = SocketAddr::from_abstract_name(format!("sallyport-e2e-network-{base}")).context("name a network")?;
        match UnixListener::bind_addr(&name) {
            Ok(taken) => {
                // Whose name is gone when this process is.
                std::mem::forget(taken);
                return Ok(base);
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("take a network"),
        }
    }
    bail!("all networks for control planes are taken")
}
