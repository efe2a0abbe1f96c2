//! `cleanup`: leave the host as it was before the agent. Needs no manifests and no API server.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use sallyport_api::id::Moment;
use sallyport_api::names::MARK_OURS;
use sallyport_engine::Engine as _;
use sallyport_engine::conntrack::Conntrack;
use sallyport_engine::iptables::{Iptables, Variant, remove_unused};
use sallyport_engine::route::addresses::local_addresses;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::flow::{Flow, Translations};
use sallyport_ruleset::iptables::installed::InstalledRuleset;
use sallyport_ruleset::iptables::plan::plan;
use sallyport_ruleset::iptables::rule::Ruleset;
use sallyport_ruleset::iptables::shadow::Packets;

use crate::connections::{end, led_to};
use crate::error_chain::chain_of;
use crate::state::StateDir;
use sallyport_engine::sysctl::Sysctl;

/// Times that rules are taken away before it is given up: somebody else may put theirs back meanwhile.
const TRIES: usize = 3;

/// Why our rules are not gone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend failed.
    #[error(transparent)]
    Engine(#[from] sallyport_engine::Error),
    /// They are still there.
    #[error("rules of ours are still there: {why}")]
    Left {
        /// What keeps them there, and what helps.
        why: String,
    },
}

/// Removes our rules of both variants, ends our connections, puts back the settings that were changed.
pub async fn cleanup(state_dir: &Path) -> anyhow::Result<ExitCode> {
    let state = StateDir::lock(state_dir)?;
    for variant in Variant::BOTH {
        remove_rules(&mut Iptables::new(variant)).await?;
    }
    let ours = all_translations(&state);
    let conntrack = Conntrack::open()?;
    let mut flows = Vec::new();
    let look = |flow: &Flow| flows.extend(flow.is_ours(&ours).then_some(*flow));
    conntrack.flows(MARK_OURS, &ours.addresses().collect(), &BTreeSet::new(), look).await?;
    let ended = end(&conntrack, &flows).await?;
    let host = state.host().inspect_err(|error| {
        let error = chain_of(error);
        tracing::error!(error, "how this host was before is lost: forwarding stays as it is, put it back by hand");
    });
    let known = host.is_ok();
    let host = host.unwrap_or_default();
    let removed = remove_unused(host.created_by_us.as_deref().unwrap_or_default())?;
    let (sysctl, mut relied_on) = (Sysctl::default(), false);
    for record in &host.sysctls {
        let (family, come_since) = (record.family(), sysctl.come_since(record)?);
        if come_since.is_empty() {
            sysctl.restore(record)?;
            tracing::info!(%family, "settings are as they were before");
            continue;
        }
        relied_on = true;
        tracing::warn!(
            %family,
            interfaces = come_since.join(", "),
            "forwarding stays on: these have come since it was turned on, and whoever made them may rely on it; if nobody does, \
             run `sysctl -w net.{}=0`",
            if family == Family::V4 { "ipv4.ip_forward" } else { "ipv6.conf.all.forwarding" }
        );
    }
    state.clear()?;
    if !known {
        return Ok(ExitCode::FAILURE);
    }
    tracing::info!(ended, removed, "this host is as it was{}", if relied_on { ", but for forwarding" } else { "" });
    Ok(ExitCode::SUCCESS)
}

/// Where all rules of an agent on this host led to. What of it is lost is no reason to leave rules in place.
fn all_translations(state: &StateDir) -> Translations {
    let lost = |error: &dyn std::error::Error| {
        let error = chain_of(error);
        tracing::warn!(error, "where our rules led to is lost: connections whose mark was overwritten go on");
    };
    let mut all = state.past().inspect_err(|error| lost(error)).unwrap_or_default();
    let addresses = local_addresses().inspect_err(|error| lost(error)).unwrap_or_default();
    let carried = state.carried().inspect_err(|error| lost(error)).unwrap_or_default();
    let intents = state.intents().inspect_err(|error| lost(error)).unwrap_or_default();
    let found = state.found().inspect_err(|error| lost(error)).unwrap_or_default();
    let facts = NodeFacts { found: &found, ..NodeFacts::of(&addresses, Moment::default()) };
    for intents in carried.into_families().map(|(_, intents)| intents).chain(intents) {
        all.append(led_to(&intents, &facts, state));
    }
    all
}

/// Takes our rules out of the kernel, if there are any; done when they were read to be gone.
pub async fn remove_rules(iptables: &mut Iptables) -> Result<bool, Error> {
    if !iptables.is_in_use()? {
        return Ok(false);
    }
    let mut removed = false;
    for _ in 0..TRIES {
        let installed = iptables.observe().await?;
        let ops = plan(&Ruleset::default(), &Packets::default(), &installed);
        if ops.is_empty() {
            if removed {
                tell_removed(iptables.name(), &installed);
            }
            return Ok(removed);
        }
        removed = true;
        iptables.apply(&ops).await?;
    }
    let left = iptables.observe().await?;
    let why: Vec<&str> = left.unreadable().collect();
    let why = if why.is_empty() { "somebody else keeps changing them".to_owned() } else { why.join("; ") };
    Err(Error::Left { why })
}

fn tell_removed(backend: &str, installed: &InstalledRuleset) {
    if installed.ours() == Ruleset::default() {
        tracing::info!(backend, "removed our rules");
    } else {
        tracing::warn!(
            backend,
            "somebody's rules lead to our chains, which were emptied but cannot be deleted; delete those rules"
        );
    }
    for why in installed.unreadable() {
        tracing::warn!(backend, "no rule of ours is left, as was read chain by chain, but {why}");
    }
}
