//! What comes into being with our rules, noted before it does, so that it can be taken away with them.

use sallyport_engine::Engine;
use sallyport_engine::iptables::remove_unused;

use crate::converge::{Converger, Error, keep};
use crate::state::{Host, StateDir};

impl<E: Engine> Converger<E> {
    /// Takes away the chains and tables that came into being with our rules, now that those are gone.
    pub fn leave_nothing(&mut self, state: &StateDir) -> Result<(), Error> {
        let host = state.host_or_nothing();
        if let Some(created_by_us) = &host.created_by_us {
            remove_unused(created_by_us).map_err(sallyport_engine::Error::from)?;
            keep(state, &Host { created_by_us: None, ..host });
        }
        self.remembered = false;
        Ok(())
    }

    /// Notes, once, what did not exist before us, so that cleanup can take it away again; an agent before this one may have noted
    /// less, if it needed less.
    pub(super) fn note_what_we_create(&mut self, state: &StateDir) -> Result<(), Error> {
        if self.remembered {
            return Ok(());
        }
        let host = state.host_or_nothing();
        let mut created = host.created_by_us.clone().unwrap_or_default();
        for object in self.engine.would_create()? {
            if !created.contains(&object) {
                created.push(object);
            }
        }
        if host.created_by_us.as_ref() != Some(&created) {
            keep(state, &Host { created_by_us: Some(created), ..host });
        }
        self.remembered = true;
        Ok(())
    }
}
