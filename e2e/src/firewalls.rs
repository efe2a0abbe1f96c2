//! The firewalls of other people as real programs inside one host of a lab: ufw, firewalld, docker.
//!
//! Their packages are unpacked into a temporary folder, never installed: installing them would turn them on for this
//! machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::lab::{self, Host, Outcome, Process};
use crate::packages::{self, Needed};
use crate::wait;

/// What is unpacked, with the libraries that a machine without them lacks.
const PACKAGES: &[&str] = &[
    "ufw",
    "firewalld",
    "python3-firewall",
    "python3-nftables",
    "python3-dbus",
    "python3-gi",
    "gir1.2-glib-2.0",
    "libgirepository-1.0-1",
];

/// What is installed, which starts nothing.
const NEEDED: &[Needed] = &[
    Needed { program: "dbus-daemon", package: "dbus-daemon" },
    Needed { program: "python3", package: "python3-minimal" },
];

/// How long one of these programs may take to be up.
const START: Duration = Duration::from_secs(30);

/// The unpacked programs.
#[derive(Debug)]
pub struct Programs {
    root: TempDir,
    /// Whether they run with that as their root, because they are of another release than this machine.
    apart: bool,
}

impl Programs {
    /// Downloads what was never downloaded before, and unpacks it.
    pub fn unpack() -> Result<Self> {
        packages::install_missing(NEEDED)?;
        let root = lab::folder()?;
        for package in packages::download(PACKAGES)? {
            let unpacked =
                Command::new("dpkg").arg("-x").arg(&package).arg(root.path()).output().context("run dpkg")?;
            ensure!(unpacked.status.success(), "dpkg -x {}", package.display());
        }
        Ok(Self { root, apart: false })
    }

    /// firewalld 2, which has options that the one of Debian 12 lacks.
    pub fn of_debian_13() -> Result<Self> {
        packages::install_missing(NEEDED)?;
        let root = lab::folder()?;
        packages::root_file_system("trixie", &["firewalld"], root.path())?;
        Ok(Self { root, apart: true })
    }

    fn path(&self, below: &str) -> String {
        self.root.path().join(below).display().to_string()
    }

    /// The same path as the programs see it.
    fn seen(&self, below: &str) -> String {
        if self.apart { format!("/{below}") } else { self.path(below) }
    }

    /// The command that runs one of the programs, which are all written in Python.
    fn command(&self, program: &str, arguments: &[&str]) -> Result<Vec<String>> {
        if self.apart {
            let root = self.root.path().display();
            // The mounts go with the program.
            let enter = format!(
                "mount --rbind /proc {root}/proc && mount --rbind /dev {root}/dev && \
                 exec env DBUS_SYSTEM_BUS_ADDRESS=unix:path=/bus chroot {root} \"$0\" \"$@\""
            );
            let command = ["unshare", "--mount", "sh", "-c", &enter, &format!("/{program}")].map(str::to_owned);
            return Ok(command.into_iter().chain(arguments.iter().map(|&word| word.to_owned())).collect());
        }
        // The folder that is named after this machine's architecture.
        let libraries = find(&self.root.path().join("usr/lib"), "girepository-1.0")?;
        let libraries = libraries.parent().context("find the folder of libraries")?.display().to_string();
        let mut command = vec![
            "env".to_owned(),
            format!("PYTHONPATH={}", self.path("usr/lib/python3/dist-packages")),
            format!("LD_LIBRARY_PATH={libraries}"),
            format!("GI_TYPELIB_PATH={libraries}/girepository-1.0"),
            format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={}", self.path("bus")),
            "/usr/bin/python3".to_owned(),
            self.path(program),
        ];
        command.extend(arguments.iter().map(|&word| word.to_owned()));
        Ok(command)
    }
}

/// The folder `name` in one of the folders in `parent`.
fn find(parent: &Path, name: &str) -> Result<PathBuf> {
    let folders = std::fs::read_dir(parent).with_context(|| format!("list {}", parent.display()))?;
    let mut found = folders.flatten().map(|entry| entry.path().join(name)).filter(|path| path.is_dir());
    found.next().with_context(|| format!("find {name} below {}", parent.display()))
}

/// ufw on one host, with the configuration that its package brings.
#[derive(Debug)]
pub struct Ufw {
    host: Host,
    programs: Programs,
}

impl Ufw {
    /// Not enabled yet.
    pub fn new(host: &Host, programs: Programs) -> Result<Self> {
        let ufw = Self { host: host.clone(), programs };
        // What the package's installation copies into place.
        let root = ufw.programs.path("");
        let copy = "cp usr/share/ufw/iptables/*.rules usr/share/ufw/ufw.conf usr/share/ufw/*.init etc/ufw/";
        host.check(&["sh", "-c", &format!("cd {root} && {copy}")])?;
        Ok(ufw)
    }

    /// `ufw …`, which must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let root = self.programs.root.path().display().to_string();
        let (rootdir, datadir) = (format!("--rootdir={root}"), format!("--datadir={root}"));
        let arguments = [&[rootdir.as_str(), datadir.as_str(), "--force"], arguments].concat();
        self.host.check(&self.programs.command("usr/sbin/ufw", &arguments)?)
    }
}

/// firewalld on one host, with a message bus of its own.
#[derive(Debug)]
pub struct Firewalld {
    host: Host,
    // Ended before the bus, which is ended before the folder that holds its socket goes.
    daemon: Option<Process>,
    _bus: Process,
    programs: Programs,
}

impl Firewalld {
    /// Starts the bus and the daemon.
    pub fn start(host: &Host, programs: Programs) -> Result<Self> {
        let socket = programs.path("bus");
        let configuration = programs.path("bus.conf");
        let all = ["own", "send_destination", "receive_sender"].map(|what| format!("<allow {what}=\"*\"/>")).concat();
        let text = format!(
            "<busconfig><type>system</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow user=\"*\"/>{all}</policy></busconfig>"
        );
        std::fs::write(&configuration, text).context("write the bus's configuration")?;
        let bus = host.spawn(&["dbus-daemon", "--nofork", &format!("--config-file={configuration}")])?;
        wait::until_true("the message bus", START, || Ok(Path::new(&socket).exists()))?;
        let mut firewalld = Self { host: host.clone(), daemon: None, _bus: bus, programs };
        firewalld.start_daemon()?;
        Ok(firewalld)
    }

    fn start_daemon(&mut self) -> Result<()> {
        let (system, default) = (self.programs.seen("etc/firewalld"), self.programs.seen("usr/lib/firewalld"));
        let log = self.programs.seen("firewalld.log");
        let arguments =
            ["--nofork", "--nopid", "--system-config", &system, "--default-config", &default, "--log-file", &log];
        let command = self.programs.command("usr/sbin/firewalld", &arguments)?;
        self.daemon = Some(self.host.spawn(&command)?);
        wait::until_true("firewalld running", START, || Ok(self.ask(&["--state"])?.success())).map(drop)
    }

    fn ask(&self, arguments: &[&str]) -> Result<Outcome> {
        self.host.run(&self.programs.command("usr/bin/firewall-cmd", arguments)?)
    }

    /// `firewall-cmd …`, which must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        let outcome = self.ask(arguments)?;
        ensure!(outcome.success(), "firewall-cmd {}: {}{}", arguments.join(" "), outcome.stdout, outcome.stderr);
        Ok(())
    }

    /// Writes an option of `firewalld.conf`, which a reload then reads.
    pub fn set(&self, option: &str, value: &str) -> Result<()> {
        let path = self.programs.path("etc/firewalld/firewalld.conf");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let key = format!("{option}=");
        let (options, others): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with(&key));
        ensure!(!options.is_empty(), "this firewalld has no option {option}");
        std::fs::write(&path, format!("{}\n{key}{value}\n", others.join("\n"))).with_context(|| format!("write {path}"))
    }

    /// As `systemctl restart firewalld`.
    pub fn restart(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.terminate(START)?;
        }
        self.start_daemon()
    }
}

/// dockerd on one host, apart from any other on this machine.
#[derive(Debug)]
pub struct Docker {
    // The daemon needs this machine's control groups, which `ip netns exec` hides.
    host: Host,
    folder: TempDir,
    daemon: Option<Process>,
}

impl Docker {
    /// Whether this machine has it.
    #[must_use]
    pub fn is_here() -> bool {
        packages::missing(&[Needed { program: "dockerd", package: "docker.io" }]).is_empty()
    }

    /// Starts the daemon.
    pub fn start(host: &Host) -> Result<Self> {
        let enter = format!("--net=/run/netns/{}", host.namespace());
        let host = Host::entered_by(host.name(), &["nsenter", &enter]);
        let mut docker = Self { host, folder: lab::folder()?, daemon: None };
        docker.start_daemon()?;
        Ok(docker)
    }

    fn start_daemon(&mut self) -> Result<()> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let socket = format!("unix://{}", path("socket"));
        let name = host_name(&self.folder);
        self.daemon = Some(self.host.spawn(&[
            "dockerd",
            "--data-root",
            &path("data"),
            "--exec-root",
            &path("exec"),
            "--pidfile",
            &path("pid"),
            "--host",
            &socket,
            "--storage-driver",
            "vfs",
            "--containerd-namespace",
            &name,
            "--containerd-plugins-namespace",
            &format!("{name}-plugins"),
        ])?);
        wait::until_true("dockerd answering", START, || {
            Ok(self.host.run(&["docker", "--host", &socket, "version"])?.success())
        })
        .map(drop)
    }

    /// As `systemctl restart docker`.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_daemon()
    }

    /// As `systemctl stop docker`.
    pub fn stop(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(mut daemon) => daemon.terminate(START).map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Killed, it would leave its containerd behind.
        let _ = self.stop();
    }
}

fn host_name(folder: &TempDir) -> String {
    folder.path().file_name().map(|name| name.to_string_lossy().replace('.', "-")).unwrap_or_default()
}
