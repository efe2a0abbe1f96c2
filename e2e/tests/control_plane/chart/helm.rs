//! Calls of Helm on the chart, and what comes out of them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use sallyport_e2e::{binaries, program};
use serde_json::Value;

/// The namespace that the chart is rendered for.
pub const NAMESPACE: &str = "sallyport-system";

/// The chart's folder.
pub fn chart() -> Result<PathBuf> {
    Ok(program::repository()?.join("charts/sallyport"))
}

/// The values that the chart comes with.
pub fn default_values() -> Result<Value> {
    let path = chart()?.join("values.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    serde_saphyr::from_str(&text).context("parse values.yaml")
}

/// What Helm prints, or the error that it prints.
pub fn run(args: &[&str]) -> Result<std::result::Result<String, String>> {
    let output = Command::new(binaries::ensure(&["helm"])?.join("helm"))
        .args(args)
        // No cluster that somebody's configuration leads to.
        .env("KUBECONFIG", "/nonexistent")
        .output()
        .context("run helm")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

/// What `helm COMMAND sallyport CHART` prints with `values` over the chart's own, or the error that it prints.
fn with_values(command: &str, values: &Value, more: &[&str]) -> Result<std::result::Result<String, String>> {
    let folder = tempfile::tempdir().context("make a folder for the values")?;
    let file = folder.path().join("values.json");
    fs::write(&file, values.to_string()).context("write the values")?;
    let (chart, file) = (chart()?, file.to_string_lossy().into_owned());
    let chart = chart.to_string_lossy();
    let args = [&[command, "sallyport", &*chart, "--namespace", NAMESPACE, "--values", &*file], more].concat();
    run(&args)
}

/// The manifests with `values`, hooks included.
pub fn render(values: &Value) -> Result<String> {
    with_values("template", values, &[])?.map_err(|error| anyhow!("helm template with {values}: {error}"))
}

/// Why the chart refuses `values`, or a cluster told of by `more`.
pub fn refusal(values: &Value, more: &[&str]) -> Result<String> {
    with_values("template", values, more)?.err().with_context(|| format!("helm accepts {values} {more:?}"))
}

/// What is told to whoever installs the chart with `values`.
pub fn notes(values: &Value) -> Result<String> {
    let printed = with_values("install", values, &["--dry-run=client"])?.map_err(|error| anyhow!(error))?;
    Ok(printed.split_once("NOTES:\n").context("helm install prints no notes")?.1.to_owned())
}

/// The objects of rendered manifests.
pub fn objects(manifests: &str) -> Result<Vec<Value>> {
    let is_empty = |document: &&str| document.lines().all(|line| line.trim().is_empty() || line.starts_with('#'));
    let documents = manifests.split("\n---\n").map(|text| text.trim_start_matches("---\n"));
    let objects: Vec<Value> = documents
        .filter(|document| !is_empty(document))
        .map(|text| serde_saphyr::from_str(text).with_context(|| format!("parse {text}")))
        .collect::<Result<_>>()?;
    ensure!(objects.iter().all(|object| object["kind"].is_string()), "a document is no object");
    Ok(objects)
}

/// The one object of a kind and a name.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let mut found = objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let object = found.next().with_context(|| format!("there is no {kind} {name}"))?;
    ensure!(found.next().is_none(), "there are several {kind} {name}");
    Ok(object)
}
