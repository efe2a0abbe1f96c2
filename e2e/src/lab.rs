//! Network labs: hosts are network namespaces, networks are bridges, and all of it goes away when the
//! [`Lab`] is dropped, whatever happened. Everything is done by `ip`; no code here enters a namespace.
//!
//! Not here: what the hosts are called and what their firewalls say (`article`).

mod host;
mod process;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

pub use host::{Family, Host, Outcome, Variant};
pub use process::{Dialogue, Process};

/// Every namespace of ours is named `sp-<pid of its maker>-<lab>-<host>`, and every temporary file and folder
/// `sp-<pid>-<random>`.
const PREFIX: &str = "sp-";

/// Labs made by this process so far: their number keeps the names of parallel tests apart.
static LABS: AtomicU32 = AtomicU32::new(0);

/// Hosts and networks that exist until this value is dropped.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    namespaces: Vec<String>,
}

/// A layer 2 network: a bridge in a namespace of its own.
#[derive(Debug)]
pub struct Network {
    bridge: Host,
}

impl Lab {
    /// An empty lab.
    pub fn new() -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        Self { prefix: format!("{PREFIX}{}-{number}-", std::process::id()), namespaces: Vec::new() }
    }

    /// A host with nothing but its loopback interface, and forwarding off.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        let namespace = format!("{}{name}", self.prefix);
        ip(&["netns", "add", &namespace])?;
        self.namespaces.push(namespace.clone());
        let host = Host::new(name, &namespace);
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        // A new namespace copies the settings of the machine's own: the machine may well forward.
        host.write_sysctl("net/ipv4/ip_forward", "0")?;
        Ok(host)
    }

    /// A network without hosts.
    pub fn network(&mut self, name: &str) -> Result<Network> {
        let bridge = self.host(name)?;
        let namespace = bridge.namespace();
        ip(&["-n", namespace, "link", "add", "br0", "up", "type", "bridge", "mcast_snooping", "0"])?;
        Ok(Network { bridge })
    }

    /// Plugs `interface` of `host` into `network` and gives it `addresses` (with prefix lengths).
    pub fn connect(&self, host: &Host, interface: &str, network: &Network, addresses: &[&str]) -> Result<()> {
        let (inside, bridge) = (host.namespace(), network.bridge.namespace());
        let port = format!("{}-{interface}", host.name());
        ip(&["-n", inside, "link", "add", interface, "type", "veth", "peer", "name", &port, "netns", bridge])?;
        ip(&["-n", bridge, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", inside, "link", "set", interface, "up"])?;
        for address in addresses {
            host.add_address(interface, address)?;
        }
        Ok(())
    }

    /// Plugs this machine itself into `network`, with `address`. Its interface there goes away with the network.
    pub fn connect_machine(&self, network: &Network, address: &str) -> Result<()> {
        let interface = self.prefix.trim_end_matches('-');
        let bridge = network.bridge.namespace();
        ip(&["link", "add", interface, "type", "veth", "peer", "name", "machine", "netns", bridge])?;
        ip(&["-n", bridge, "link", "set", "machine", "master", "br0", "up"])?;
        ip(&["address", "add", address, "dev", interface])?;
        ip(&["link", "set", interface, "up"])
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in self.namespaces.drain(..) {
            remove_namespace(&namespace);
        }
    }
}

/// A temporary folder that is removed with the returned value, or by [`sweep`].
pub fn folder() -> Result<TempDir> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().context("make a temporary folder")
}

/// Removes what earlier runs left behind: the namespaces and temporary files whose maker is no longer alive,
/// and the processes inside the namespaces. Returns the names of what was removed.
pub fn sweep() -> Result<Vec<String>> {
    remove_where(|pid| !is_alive(pid))
}

/// Whether a process exists and is more than an exit status that nobody has fetched yet.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

/// Removes every namespace and temporary file that this process made: for a program that is about to be ended by a signal.
pub fn remove_own() -> Result<Vec<String>> {
    remove_where(|pid| pid == std::process::id())
}

fn remove_where(unwanted: impl Fn(u32) -> bool) -> Result<Vec<String>> {
    let is_unwanted = |name: &str| {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        maker.and_then(|pid| pid.parse().ok()).is_some_and(&unwanted)
    };
    let mut removed = Vec::new();
    for namespace in namespaces()?.into_iter().filter(|name| is_unwanted(name)) {
        remove_namespace(&namespace);
        removed.push(namespace);
    }
    let temporary = std::env::temp_dir();
    for entry in std::fs::read_dir(&temporary).context("list temporary files")?.flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if is_unwanted(&name) {
            let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.push(path.display().to_string());
        }
    }
    Ok(removed)
}

/// The names of all network namespaces of this machine.
fn namespaces() -> Result<BTreeSet<String>> {
    let output = Command::new("ip").args(["netns", "list"]).output().context("list the network namespaces")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Ends the processes inside by their ids, then deletes the namespace. Failures leave nothing to do here:
/// the next sweep tries again.
fn remove_namespace(namespace: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", namespace]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", pid]).output();
        }
    }
    let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
}

/// Runs `ip` and fails with what it printed.
fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("run ip (package iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
