//! What people type: `kubectl` and `helm`, as the administrator of the cluster of a test.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::programs;
use crate::lab::Outcome;
use crate::program as ours;

/// The command lines of one administrator.
#[derive(Clone, Debug)]
pub struct Terminal {
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Terminal {
    /// For the cluster and user of `kubeconfig`; caches go below `home`.
    #[must_use]
    pub fn new(kubeconfig: PathBuf, home: &Path) -> Self {
        Self { kubeconfig, home: home.to_owned() }
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<Outcome> {
        let line = format!("{program} {}", arguments.join(" "));
        let mut child = Command::new("timeout")
            .args(["--kill-after=2", "120"])
            .arg(programs::find(program)?)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .current_dir(ours::repository()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run `{line}`"))?;
        let mut stdin = child.stdin.take().context("take the program's input")?;
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().with_context(|| format!("wait for `{line}`"))?;
        Ok(Outcome {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn must(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        let outcome = self.run(program, arguments, input)?;
        if !outcome.success() {
            bail!("`{program} {}` ended with {:?}: {}", arguments.join(" "), outcome.code, outcome.stderr.trim());
        }
        Ok(outcome.stdout)
    }

    /// Runs `kubectl` in the repository's folder; it must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.must("kubectl", arguments, "")
    }

    /// `kubectl apply` of a manifest, whatever becomes of it.
    pub fn try_apply(&self, manifest: &str) -> Result<Outcome> {
        self.run("kubectl", &["apply", "-f", "-"], manifest)
    }

    /// `kubectl apply` of a manifest; it must succeed.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.must("kubectl", &["apply", "--server-side", "-f", "-"], manifest).map(drop)
    }

    /// The manifests of the chart, as `helm install` would apply them, without its hooks.
    pub fn chart(&self, namespace: &str) -> Result<String> {
        self.chart_with(namespace, &[])
    }

    /// The same with values, each as `key=value`.
    pub fn chart_with(&self, namespace: &str, values: &[&str]) -> Result<String> {
        // The image that the operator of this tier is told; it may run no other.
        let values = [&["agent.image.tag=test"], values].concat().join(",");
        let chart =
            ["template", "sallyport", "charts/sallyport", "--namespace", namespace, "--no-hooks", "--set", &values];
        self.must("helm", &chart, "")
    }
}
