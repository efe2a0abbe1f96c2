//! Which backend programs this host: the flag, else the pool, else where the host's own rules are.

use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_engine::Error;
use sallyport_engine::iptables::{Variant, detect, lock};

use crate::args::BackendArg;

/// The backend to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Rules through one variant of iptables.
    Iptables(Variant),
    /// No kernel at all.
    DryRun,
}

impl Backend {
    /// The word for it in a status.
    #[must_use]
    pub fn reported(self) -> Option<FirewallBackend> {
        match self {
            Self::Iptables(Variant::Nft) => Some(FirewallBackend::IptablesNft),
            Self::Iptables(Variant::Legacy) => Some(FirewallBackend::IptablesLegacy),
            Self::DryRun => None,
        }
    }
}

/// Chooses, looking at the host only where neither the flag nor the pool decides.
pub async fn choose(flag: BackendArg, pool: FirewallBackend) -> Result<Backend, Error> {
    Ok(match (flag, pool) {
        (BackendArg::DryRun, _) => Backend::DryRun,
        (BackendArg::IptablesNft, _) | (BackendArg::Auto, FirewallBackend::IptablesNft) => {
            Backend::Iptables(Variant::Nft)
        }
        (BackendArg::IptablesLegacy, _) | (BackendArg::Auto, FirewallBackend::IptablesLegacy) => {
            Backend::Iptables(Variant::Legacy)
        }
        (BackendArg::Auto, FirewallBackend::Auto) => {
            let detected = detect().await?;
            tracing::info!(backend = detected.variant.name(), because = detected.because, "backend chosen");
            Backend::Iptables(detected.variant)
        }
    })
}

/// Closes the lock of iptables to everybody but root, as far as it is not, and says so.
pub fn close_lock() {
    match lock::close_to_others() {
        Ok(false) => {}
        Ok(true) => tracing::info!("the lock of iptables could be held by anybody; now only by root"),
        Err(error) => tracing::warn!(%error, "cannot close the lock of iptables to others, who can stop its programs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_flag_wins_over_the_pool() {
        for pool in [FirewallBackend::Auto, FirewallBackend::IptablesNft, FirewallBackend::IptablesLegacy] {
            for (flag, backend) in [
                (BackendArg::DryRun, Backend::DryRun),
                (BackendArg::IptablesNft, Backend::Iptables(Variant::Nft)),
                (BackendArg::IptablesLegacy, Backend::Iptables(Variant::Legacy)),
            ] {
                assert_eq!(choose(flag, pool).await.unwrap(), backend, "{flag:?} {pool:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_pool_decides_where_the_flag_leaves_it_to_it() {
        for (pool, variant) in
            [(FirewallBackend::IptablesNft, Variant::Nft), (FirewallBackend::IptablesLegacy, Variant::Legacy)]
        {
            assert_eq!(choose(BackendArg::Auto, pool).await.unwrap(), Backend::Iptables(variant));
        }
    }
}
