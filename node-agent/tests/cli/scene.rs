//! A running agent, and where it finds what it needs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sallyport_api::testing::Forward;

pub const AGENT: &str = env!("CARGO_BIN_EXE_sallyport-node-agent");
/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A directory of manifests, and place for the state.
pub struct Scene {
    pub guard: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        fs::create_dir(guard.path().join("manifests")).unwrap();
        Self { guard }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.guard.path().join(name)
    }

    /// Saves a manifest as an editor does: whole.
    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("manifests").join(name)).unwrap();
    }

    pub fn render(&self, more: &[&str]) -> Output {
        let manifests = self.path("manifests");
        let arguments = ["render", "--manifests", manifests.to_str().unwrap(), "--node-address", "10.30.1.78"];
        agent(&arguments).args(more).output().unwrap()
    }

    /// `run` or `plan` on the dry-run backend.
    pub fn on_host(&self, command: &str) -> Command {
        let mut agent = agent(&[command, "--node-name", "gw1", "--backend", "dry-run"]);
        agent.arg("--manifests").arg(self.path("manifests")).arg("--state-dir").arg(self.path("state"));
        agent
    }

    /// A running agent that has finished its first pass.
    pub fn start(&self) -> Running {
        let running = self.spawn(&mut self.on_host("run"));
        running.wait_for("verified");
        running
    }

    /// Starts `command`, whatever comes of it.
    pub fn spawn(&self, command: &mut Command) -> Running {
        let log = self.path("log");
        let child = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Running { child, log }
    }
}

/// An agent that ends with the test.
pub struct Running {
    pub child: Child,
    pub log: PathBuf,
}

impl Running {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn wait_for(&self, words: &str) {
        wait_until(|| self.log().contains(words), || format!("{words:?} is not in the log:\n{}", self.log()));
    }

    /// Its exit code, once it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().and_then(|status| status.code())
    }

    /// A line of `/proc/PID/status`, in KiB.
    pub fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Ends it by SIGTERM and returns its exit code.
    pub fn stop(mut self) -> Option<i32> {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it did not stop");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait_until(mut done: impl FnMut() -> bool, why: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{}", why());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(AGENT);
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .env_remove("SALLYPORT_LOG_FORMAT")
        .env_remove("POD_NAMESPACE")
        .env("RUST_BACKTRACE", "1");
    command
}

pub fn forward(name: &str, port: u16) -> String {
    format!("---\n{}", Forward::tcp(&format!("default/{name}"), port).manifest())
}
