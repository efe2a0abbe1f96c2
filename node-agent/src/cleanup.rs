//! `cleanup`: leave the host as it was before the agent. Needs no manifests and no API server.

use std::path::Path;
use std::process::ExitCode;

use sallyport_api::names::MARK_OURS;
use sallyport_engine::Engine as _;
use sallyport_engine::conntrack::Conntrack;
use sallyport_engine::iptables::{Iptables, Variant, remove_vacant};
use sallyport_ruleset::plan::plan;
use sallyport_ruleset::rule::Ruleset;

use crate::converge::chain_of;
use crate::state::StateDir;
use crate::sysctl::Sysctl;

/// Removes our rules of both variants, ends our connections, puts back the settings that were changed.
pub async fn cleanup(state_dir: &Path) -> anyhow::Result<ExitCode> {
    let state = StateDir::lock(state_dir)?;
    for variant in Variant::BOTH {
        remove_rules(&mut Iptables::new(variant)).await?;
    }
    let conntrack = Conntrack::open()?;
    let mut ended = 0;
    for flow in conntrack.ours(MARK_OURS, MARK_OURS)?.iter().filter(|flow| flow.is_ours()) {
        ended += usize::from(conntrack.delete(flow)?);
    }
    let host = state.host().inspect_err(|error| {
        let error = chain_of(error);
        tracing::error!(error, "how this host was before is lost: forwarding stays as it is, put it back by hand");
    });
    let known = host.is_ok();
    let host = host.unwrap_or_default();
    let removed = remove_vacant(host.absent.as_deref().unwrap_or_default())?;
    let sysctl = Sysctl::default();
    for record in &host.sysctls {
        sysctl.restore(record)?;
        tracing::info!(family = %record.family(), "settings are as they were before");
    }
    state.clear()?;
    if !known {
        return Ok(ExitCode::FAILURE);
    }
    tracing::info!(ended, removed, "this host is as it was");
    Ok(ExitCode::SUCCESS)
}

/// Takes our rules out of the kernel, if there are any.
pub async fn remove_rules(iptables: &mut Iptables) -> Result<bool, sallyport_engine::Error> {
    if !iptables.is_in_use() {
        return Ok(false);
    }
    let installed = iptables.observe().await?;
    let batch = plan(&Ruleset::default(), &installed, false);
    if batch.is_empty() {
        return Ok(false);
    }
    iptables.apply(&batch).await?;
    let left = iptables.observe().await?.ours();
    if left == Ruleset::default() {
        tracing::info!(backend = iptables.name(), "removed our rules");
    } else {
        tracing::warn!(
            backend = iptables.name(),
            "somebody's rules lead to our chains, which were emptied but cannot be deleted; delete those rules"
        );
    }
    Ok(true)
}
