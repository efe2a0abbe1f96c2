//! Where the programs are: this package's own, the node agent and the operator.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// This package's own program, which runs servers and clients inside the hosts of a lab.
pub fn own() -> Result<PathBuf> {
    find("sallyport-e2e", "SALLYPORT_E2E")
}

/// The node agent: `$SALLYPORT_NODE_AGENT`, or the one built beside the running program.
pub fn node_agent() -> Result<PathBuf> {
    find("sallyport-node-agent", "SALLYPORT_NODE_AGENT")
}

/// The operator: `$SALLYPORT_OPERATOR`, or the one built beside the running program.
pub fn operator() -> Result<PathBuf> {
    find("sallyport-operator", "SALLYPORT_OPERATOR")
}

/// The checkout this package was built from.
pub fn repository() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the repository above this package")
}

fn find(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let running = std::env::current_exe().context("find the running program")?;
    // Tests run from target/<profile>/deps, the programs are one folder above.
    let found = running.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    let Some(path) = found else {
        bail!("{name} is not built beside {} (build it, or set {variable})", running.display());
    };
    Ok(path)
}
