//! Router advertisements, which a host that forwards ignores unless it is told not to: its default route may come by them.

use std::time::{Duration, Instant};

use sallyport_engine::Engine;
use sallyport_ruleset::family::Family;

use crate::converge::{Converger, Error, keep};
use crate::state::StateDir;

/// Time between two looks whether an interface ignores router advertisements.
const HEARING: Duration = Duration::from_secs(1);

impl<E: Engine> Converger<E> {
    /// Has interfaces that ignore router advertisements since forwarding was turned on here heed them, and notes it before.
    pub(super) fn heed_advertisements(&mut self, state: &StateDir) -> Result<(), Error> {
        self.heeded = None;
        let Some(sysctl) = self.sysctl.as_ref().filter(|_| self.forwarding.contains_key(&Family::V6)) else {
            return Ok(());
        };
        let failed = |source| Error::Forwarding { family: Family::V6, source };
        let mut host = state.host_or_nothing();
        // Where somebody else turned it on, they know what they want of advertisements.
        let Some(record) = host.sysctls.iter_mut().find(|record| record.family() == Family::V6) else { return Ok(()) };
        if let Some(more) = sysctl.plan_advertisements(record).map_err(failed)? {
            record.clone_from(&more);
            keep(state, &host);
            sysctl.apply_advertisements(&more).map_err(failed)?;
            self.heeded = Some(more);
        } else {
            self.heeded = Some(record.clone());
        }
        self.heard = Instant::now();
        Ok(())
    }

    /// Whether an interface ignores router advertisements again; looked at once in a while.
    pub(super) fn is_deaf(&mut self) -> bool {
        let Some((sysctl, record)) = self.sysctl.as_ref().zip(self.heeded.as_ref()) else { return false };
        if self.heard.elapsed() < HEARING {
            return false;
        }
        self.heard = Instant::now();
        // A pass meets the same error, and tells it.
        sysctl.plan_advertisements(record).map_or(true, |more| more.is_some())
    }
}
