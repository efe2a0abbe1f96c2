//! The programs of other people that labs need, and the Debian packages that hold them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A program and the Debian package it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    /// The program's name.
    pub program: &'static str,
    /// The package's name.
    pub package: &'static str,
}

/// What every lab needs.
pub const LAB: &[Needed] = &[
    Needed { program: "ip", package: "iproute2" },
    Needed { program: "iptables-nft-restore", package: "iptables" },
    Needed { program: "nft", package: "nftables" },
    Needed { program: "conntrack", package: "conntrack" },
];

/// What the demo needs besides: the server and the client without the packages that start a service.
pub const MARIADB: &[Needed] = &[
    Needed { program: "mariadbd", package: "mariadb-server-core" },
    Needed { program: "mariadb-install-db", package: "mariadb-server-core" },
    Needed { program: "mariadb", package: "mariadb-client-core" },
];

/// Those of `needed` that are not in `$PATH`.
#[must_use]
pub fn missing(needed: &[Needed]) -> Vec<Needed> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    needed
        .iter()
        .filter(|needed| !std::env::split_paths(&path).any(|dir| dir.join(needed.program).is_file()))
        .copied()
        .collect()
}

/// Installs what is missing of `needed` by `apt-get`; does nothing when nothing is.
pub fn install_missing(needed: &[Needed]) -> Result<()> {
    let mut packages: Vec<&str> = missing(needed).iter().map(|needed| needed.package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("install {} (this machine has no apt-get)", packages.join(", "));
    }
    apt_get(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(packages);
    apt_get(&install)
}

fn apt_get(args: &[&str]) -> Result<()> {
    let output =
        Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").output().context("run apt-get")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("apt-get {}: {}", args.join(" "), errors.trim());
    }
    Ok(())
}

/// Whether this process is root, which making network namespaces takes.
#[must_use]
pub fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .filter_map(|line| line.strip_prefix("Uid:"))
            .any(|ids| ids.split_whitespace().nth(1) == Some("0"))
    })
}
