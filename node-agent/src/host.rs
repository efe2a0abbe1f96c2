//! This host as the loop knows it: its addresses, the time, the gate before its ports, and the last good intents on its disk.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sallyport_ruleset::facts::LocalAddress;
use sallyport_runtime::once::Once;

use crate::clock::Clock;
use crate::error_chain::chain_of;
use crate::intents::Intents;
use crate::port_gate::PortGate;
use crate::state::StateDir;
use sallyport_engine::route::addresses::local_addresses;

/// Addresses are read this often even if the kernel reported no change.
const ADDRESSES: Duration = Duration::from_secs(30);
/// Time to the next try after they could not be read.
const AGAIN: Duration = Duration::from_secs(1);

/// This host, as of the last look.
pub(crate) struct ThisHost {
    /// The state directory.
    pub state: Rc<StateDir>,
    /// Every address on every interface.
    pub addresses: Vec<LocalAddress>,
    /// The time by which forwards expire.
    pub clock: Clock,
    /// The forwards that were admitted here, and those that wait.
    pub port_gate: PortGate,
    /// When the addresses are to be read again.
    due: Instant,
    /// The intents that are on disk.
    kept: Option<Rc<Intents>>,
    /// Why the last ones could not be kept.
    pub(crate) unkept: Once,
}

impl ThisHost {
    /// Has looked at nothing yet.
    #[must_use]
    pub(crate) fn new(state: Rc<StateDir>) -> Self {
        let clock = Clock::new(Rc::clone(&state));
        let due = Instant::now();
        let port_gate = PortGate::default();
        Self { state, addresses: Vec::new(), clock, port_gate, due, kept: None, unkept: Once::default() }
    }

    /// The kernel reports that its addresses may be others.
    pub(crate) fn invalidate_addresses(&mut self) {
        self.due = Instant::now();
    }

    /// Reads the addresses if that is due; whether they are others than before.
    pub(crate) fn refresh_addresses(&mut self) -> bool {
        if Instant::now() < self.due {
            return false;
        }
        self.due = Instant::now() + ADDRESSES;
        // No forward listens on a link-local one or may have it as its target: those of pods come and go all the time.
        let matters = |own: &LocalAddress| match own.ip {
            IpAddr::V4(ip) => !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        };
        match local_addresses().map(|all| all.into_iter().filter(matters).collect::<Vec<_>>()) {
            Ok(addresses) if addresses != self.addresses => {
                self.addresses = addresses;
                true
            }
            Ok(_) => false,
            Err(error) => {
                self.due = Instant::now() + AGAIN;
                tracing::warn!(error = chain_of(&error), "cannot read this host's addresses; taking them as before");
                false
            }
        }
    }

    /// Takes up the last good intents from the state directory.
    pub(crate) fn last_good(&mut self) -> Option<Rc<Intents>> {
        let kept = self.state.intents().unwrap_or_else(|error| {
            tracing::error!(error = chain_of(&error), "the last good intents are lost");
            None
        });
        if let Some(kept) = &kept {
            self.port_gate.restore(kept, &self.state, Instant::now());
        }
        self.kept = kept.map(Rc::new);
        self.kept.clone()
    }

    /// The intents that were last kept: the kernel may hold rules of them.
    pub(crate) fn kept(&self) -> Option<Rc<Intents>> {
        self.kept.clone()
    }

    /// A state directory that cannot be written must not keep a rule in the kernel that has to go.
    pub(crate) fn keep(&mut self, intents: &Rc<Intents>) {
        if self.kept.as_ref() == Some(intents) {
            return;
        }
        match self.state.keep_intents(intents) {
            Ok(()) => {
                self.kept = Some(Rc::clone(intents));
                self.unkept.clear();
            }
            Err(error) => {
                let error = chain_of(&error);
                if self.unkept.is_news(&error) {
                    tracing::warn!(error, "cannot keep the intents; after a reboot the host starts with older ones");
                }
            }
        }
    }
}
