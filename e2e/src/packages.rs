//! The programs of other people that labs need, and the Debian packages that hold them.

use std::fs::File;
use std::path::{Path, PathBuf};
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

/// Where downloads are kept, and a lock on it: tests that run beside each other wait for the one that downloads.
fn cache() -> Result<(PathBuf, File)> {
    let cache = match (std::env::var_os("SALLYPORT_E2E_CACHE"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => Path::new(&home).join(".cache/sallyport-e2e"),
        (None, None) => std::env::temp_dir(),
    };
    let folder = cache.join("packages");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let lock = File::create(folder.join("lock")).context("open the lock of the packages")?;
    lock.lock().context("wait for the packages")?;
    Ok((folder, lock))
}

/// Unpacks into `root` a root file system of another release of Debian with `packages`, which is put together once.
pub fn root_file_system(release: &str, packages: &[&str], root: &Path) -> Result<()> {
    install_missing(&[Needed { program: "mmdebstrap", package: "mmdebstrap" }])?;
    let archive = {
        let (folder, _lock) = cache()?;
        let archive = folder.join(format!("{release}-{}.tar", packages.join("-")));
        if !archive.exists() {
            let unfinished = archive.with_extension("unfinished");
            let mut command = Command::new("mmdebstrap");
            command
                .args(["--quiet", "--variant=minbase", "--format=tar", "--aptopt=APT::Install-Recommends \"false\""])
                .args(["man", "doc", "locale"].map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")))
                .arg(format!("--include={}", packages.join(",")))
                .arg(release)
                .arg(&unfinished);
            finish(command, release)?;
            std::fs::rename(&unfinished, &archive).context("keep a root file system")?;
        }
        archive
    };
    let mut command = Command::new("tar");
    command.args(["--exclude=./dev/*", "--extract", "--file"]).arg(archive).arg("--directory").arg(root);
    finish(command, "a root file system")
}

/// Downloads packages, each once, without installing anything, and says where they are.
pub fn download(packages: &[&str]) -> Result<Vec<PathBuf>> {
    let (folder, _lock) = cache()?;
    let find = |package: &str| {
        let files = std::fs::read_dir(&folder).ok()?.flatten().map(|entry| entry.path());
        let of_package = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
        };
        files.into_iter().find(of_package)
    };
    let absent: Vec<&str> = packages.iter().copied().filter(|package| find(package).is_none()).collect();
    if !absent.is_empty() {
        apt_get(&["update", "-qq"])?;
        let fresh = tempfile::tempdir_in(&folder).context("make a folder for packages")?;
        let mut command = Command::new("apt-get");
        command.args(["download", "-qq", "-o", "APT::Sandbox::User=root"]).args(&absent).current_dir(fresh.path());
        finish(command, &format!("download {}", absent.join(" ")))?;
        // Only what has arrived completely is ever seen there.
        for entry in std::fs::read_dir(fresh.path()).context("list the packages")?.flatten() {
            std::fs::rename(entry.path(), folder.join(entry.file_name())).context("keep a package")?;
        }
    }
    packages.iter().map(|package| find(package).with_context(|| format!("find the package {package}"))).collect()
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(args);
    finish(command, &args.join(" "))
}

fn finish(mut command: Command, what: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.env("DEBIAN_FRONTEND", "noninteractive").output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} {what}: {}", String::from_utf8_lossy(&output.stderr).trim());
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
