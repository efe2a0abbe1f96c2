//! Since when each forward of a lone host is there: what a cluster knows as the time of its creation.
//!
//! Remembered only while a grant limits lifetimes. Who takes a manifest away and saves it again creates the forward anew.

use std::collections::BTreeMap;
use std::rc::Rc;

use sallyport_api::id::{Moment, Uid};

use crate::error_chain::chain_of;
use crate::manifest::Object;
use crate::state::StateDir;

/// When each came, by uid.
#[derive(Debug)]
pub(crate) struct FirstSeen {
    times: BTreeMap<Uid, Moment>,
    state: Rc<StateDir>,
}

impl FirstSeen {
    /// Takes up what is in the state directory.
    #[must_use]
    pub(crate) fn new(state: Rc<StateDir>) -> Self {
        let times = state.first_seen().unwrap_or_else(|error| {
            let error = chain_of(&error);
            tracing::error!(error, "since when forwards are there is lost; their lifetimes begin anew");
            BTreeMap::new()
        });
        Self { times, state }
    }

    /// Since when the forwards among `objects` are there; the new ones since `now`. `broken_pool` says that a pool is not
    /// understood: it may limit lifetimes as before.
    pub(crate) fn of(&mut self, objects: &[(&str, &Object)], broken_pool: bool, now: Moment) -> &BTreeMap<Uid, Moment> {
        let remembered = broken_pool && !self.times.is_empty();
        let limited = remembered
            || objects.iter().any(|(_, object)| match object {
                Object::Pool(_, spec) => spec.grants.iter().any(|grant| grant.max_lifetime.is_some()),
                _ => false,
            });
        let forwards = objects.iter().filter(|_| limited).filter_map(|(_, object)| match object {
            Object::Forward(key, _) => Some(Uid::from(key.to_string())),
            _ => None,
        });
        let known = |uid: Uid| {
            let time = self.times.get(&uid).copied().unwrap_or(now);
            (uid, time)
        };
        let times: BTreeMap<Uid, Moment> = forwards.map(known).collect();
        if times != self.times {
            self.times = times;
            if let Err(error) = self.state.keep_first_seen(&self.times) {
                let error = chain_of(&error);
                tracing::warn!(
                    error,
                    "cannot keep since when forwards are there; after a restart their lifetimes begin anew"
                );
            }
        }
        &self.times
    }
}
