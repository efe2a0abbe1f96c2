//! What the kernels of both gateways held before, to be compared with what they hold after.

use anyhow::Result;

use crate::cluster::{Cluster, SOON};
use crate::snapshot::Snapshot;
use crate::wait;

/// The rules and settings of every gateway.
#[derive(Debug)]
pub struct Kernels(Vec<Snapshot>);

impl Kernels {
    /// Reads them.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        cluster.gateways.iter().map(|gateway| Snapshot::of(&gateway.host)).collect::<Result<_>>().map(Self)
    }

    /// Waits until they are again what they were, as kube-proxy and the pods' network take their own rules away a
    /// little later than ours; says what was compared.
    pub fn wait_until_equal(&self, cluster: &Cluster) -> Result<String> {
        wait::until_ok("the kernels of the gateways being as before", SOON, || {
            let later = Self::of(cluster)?;
            self.0.iter().zip(&later.0).try_for_each(|(before, after)| before.expect_equal(after))
        })?;
        Ok(self.0.first().map(|snapshot| snapshot.names().join(", ")).unwrap_or_default())
    }
}
