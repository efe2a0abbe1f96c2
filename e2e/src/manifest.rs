//! A folder of manifests, and `PortForward`s written into it the way a user writes them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::lab;

/// A folder of manifests that exists until this value is dropped.
#[derive(Debug)]
pub struct Manifests {
    folder: TempDir,
}

impl Manifests {
    /// An empty folder.
    pub fn new() -> Result<Self> {
        Ok(Self { folder: lab::folder()? })
    }

    /// A copy of the manifests in `original`.
    pub fn copy_of(original: &Path) -> Result<Self> {
        let manifests = Self::new()?;
        let entries = std::fs::read_dir(original).with_context(|| format!("read the folder {}", original.display()))?;
        for entry in entries {
            let from = entry.context("read a folder entry")?.path();
            if let Some(name) = from.file_name() {
                std::fs::copy(&from, manifests.path().join(name))
                    .with_context(|| format!("copy {}", from.display()))?;
            }
        }
        Ok(manifests)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The path of a file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file in one step: beside its place, then renamed, as editors and deploy tools do.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let beside = self.file(&format!(".{name}.new"));
        std::fs::write(&beside, content).with_context(|| format!("write {}", beside.display()))?;
        std::fs::rename(&beside, self.file(name)).with_context(|| format!("save {name}"))
    }

    /// Writes a forward into a file of its own, `<name>.yaml`.
    pub fn save(&self, forward: &Forward) -> Result<()> {
        self.write(&format!("{}.yaml", forward.name), forward.yaml())
    }

    /// Deletes a file.
    pub fn remove(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.file(name)).with_context(|| format!("delete {name}"))
    }
}

/// A `PortForward` with one port, before it is written as YAML.
#[derive(Clone, Debug)]
pub struct Forward {
    /// `metadata.name`.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// The gateway's port.
    pub port: u16,
    /// The last port of a range.
    pub end_port: Option<u16>,
    /// The first port on the target.
    pub target_port: Option<u16>,
    /// Sources that may connect.
    pub allow: Vec<String>,
    /// Sources that may not, though allowed.
    pub deny: Vec<String>,
    /// Target addresses and their weights.
    pub targets: Vec<(String, u16)>,
    /// The gateway's addresses; none means all of them.
    pub addresses: Vec<String>,
    /// `Masquerade` or `Preserve`.
    pub source_nat: &'static str,
    /// `Drain` or `Sever`.
    pub on_target_removed: &'static str,
    /// When it expires, as RFC 3339.
    pub expires_at: Option<String>,
    /// `Apply`, `Plan` or `Paused`.
    pub mode: &'static str,
}

impl Forward {
    /// A TCP forward that lets `source` reach `target` on the same port.
    #[must_use]
    pub fn tcp(name: &str, port: u16, source: &str, target: &str) -> Self {
        Self {
            name: name.to_owned(),
            protocol: "TCP",
            port,
            end_port: None,
            target_port: None,
            allow: vec![source.to_owned()],
            deny: Vec::new(),
            targets: vec![(target.to_owned(), 1)],
            addresses: Vec::new(),
            source_nat: "Masquerade",
            on_target_removed: "Drain",
            expires_at: None,
            mode: "Apply",
        }
    }

    /// A UDP forward that lets `source` reach `target` on the same port.
    #[must_use]
    pub fn udp(name: &str, port: u16, source: &str, target: &str) -> Self {
        Self { protocol: "UDP", ..Self::tcp(name, port, source, target) }
    }

    /// The manifest.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut port = format!("name: p, protocol: {}, port: {}", self.protocol, self.port);
        if let Some(end) = self.end_port {
            let _ = write!(port, ", endPort: {end}");
        }
        if let Some(target) = self.target_port {
            let _ = write!(port, ", targetPort: {target}");
        }
        let targets: Vec<String> = self
            .targets
            .iter()
            .enumerate()
            .map(|(number, (ip, weight))| format!("{{ name: t{number}, ip: '{ip}', weight: {weight} }}"))
            .collect();
        format!(
            "apiVersion: sallyport.dev/v1alpha1\n\
             kind: PortForward\n\
             metadata: {{ name: {name} }}\n\
             spec:\n\
             \x20 addresses: [{addresses}]\n\
             \x20 ports: [ {{ {port} }} ]\n\
             \x20 sources: {{ allow: [{allow}], deny: [{deny}] }}\n\
             \x20 targets: [ {targets} ]\n\
             \x20 sourceNAT: {{ mode: {source_nat} }}\n\
             {lifecycle}{expiry}{mode}",
            name = self.name,
            addresses = self.addresses.iter().map(|ip| format!("'{ip}'")).collect::<Vec<_>>().join(", "),
            allow = cidrs(&self.allow),
            deny = cidrs(&self.deny),
            targets = targets.join(", "),
            source_nat = self.source_nat,
            lifecycle = match self.on_target_removed {
                // The default, so it is left to the program.
                "Drain" => String::new(),
                other => format!("\x20 lifecycle: {{ onTargetRemoved: {other} }}\n"),
            },
            expiry = self.expires_at.as_ref().map(|at| format!("\x20 expiresAt: {at}\n")).unwrap_or_default(),
            mode = match self.mode {
                "Apply" => String::new(),
                other => format!("\x20 mode: {other}\n"),
            },
        )
    }
}

fn cidrs(sources: &[String]) -> String {
    let list: Vec<String> = sources.iter().map(|cidr| format!("{{ cidr: '{cidr}' }}")).collect();
    list.join(", ")
}
