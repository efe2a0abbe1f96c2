//! What is carried apart from the intents, on disk: in tables that cannot be read, the kernel does not follow them.

use std::rc::Rc;

use sallyport_engine::Engine;

use super::Agent;
use crate::error_chain::chain_of;
use crate::intents::Intents;
use crate::source::Source;

impl<S: Source, E: Engine> Agent<'_, S, E> {
    /// Takes up what an agent before this one noted of tables that could not be read.
    pub(super) fn take_up_carried(&mut self) {
        match self.host.state.carried() {
            Ok(noted) => {
                self.converger.carry_noted(noted.clone());
                self.noted = noted;
            }
            Err(error) => tracing::warn!(error = chain_of(&error), "what is carried apart from the intents is lost"),
        }
    }

    /// Notes what is carried apart from `intents`, when that changes.
    pub(super) fn note_carried(&mut self, intents: &Rc<Intents>) {
        let carried = self.converger.carried_apart(intents);
        if carried != self.noted {
            match self.host.state.keep_carried(&carried) {
                Ok(()) => self.noted = carried,
                Err(error) => {
                    tracing::warn!(error = chain_of(&error), "cannot note what is carried apart from the intents");
                }
            }
        }
    }
}
