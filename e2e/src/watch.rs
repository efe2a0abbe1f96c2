//! Watching a host for changes of its `nf_tables` rules: also those that put back what was there.

use std::time::Duration;

use anyhow::Result;

use crate::lab::{Host, Process};

/// A table that is made and removed to know that the watch has begun.
const CANARY: &str = "sp_canary";

/// A watch that goes on until it is dropped.
#[derive(Debug)]
pub struct Watch {
    monitor: Process,
    begun: usize,
}

impl Watch {
    /// Begins to watch.
    pub fn begin(host: &Host) -> Result<Self> {
        let mut monitor = host.spawn(&["nft", "monitor"])?;
        // Nothing tells when the monitor listens, so it is shown changes until it reports one.
        crate::wait::until_true("the monitor listening", Duration::from_secs(5), || {
            host.check(&["nft", "add", "table", "ip", CANARY])?;
            host.check(&["nft", "delete", "table", "ip", CANARY])?;
            Ok(monitor.output().contains(CANARY))
        })?;
        host.check(&["nft", "add", "table", "ip", "sp_begun"])?;
        host.check(&["nft", "delete", "table", "ip", "sp_begun"])?;
        monitor.wait_for("delete table ip sp_begun", Duration::from_secs(5))?;
        let mut begun = 0;
        crate::wait::until_true("the monitor falling silent", Duration::from_secs(5), || {
            let before = std::mem::replace(&mut begun, monitor.output().len());
            Ok(before == begun)
        })?;
        Ok(Self { monitor, begun })
    }

    /// What has changed since the watch began, in the words of `nft monitor`.
    #[must_use]
    pub fn changes(&self) -> String {
        self.monitor.output().split_off(self.begun)
    }
}
