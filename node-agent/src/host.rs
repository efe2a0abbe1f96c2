//! This host as the loop knows it: its addresses, the time, the gate before its ports, and the last good intents on its disk.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sallyport_api::gateway_pool::FirewallOrder;
use sallyport_api::id::Moment;
use sallyport_api::names::MAX_ADDRESSES;
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::listen::{Listen, selects};
use sallyport_runtime::once::Once;

use crate::clock::Clock;
use crate::converge::order::Order;
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
    /// The listen addresses that the pool has found here, those that are away first, the longest away before all.
    found: Vec<IpAddr>,
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
    /// Named addresses that are not here, as last told.
    away: Once<Vec<IpAddr>>,
}

impl ThisHost {
    /// Has looked at nothing yet.
    #[must_use]
    pub(crate) fn new(state: Rc<StateDir>) -> Self {
        let clock = Clock::new(Rc::clone(&state));
        let due = Instant::now();
        let port_gate = PortGate::default();
        let found = state.found().unwrap_or_else(|error| {
            tracing::warn!(error = chain_of(&error), "which listen addresses were found here before is lost");
            Vec::new()
        });
        let (unkept, away) = Default::default();
        Self { state, addresses: Vec::new(), found, clock, port_gate, due, kept: None, unkept, away }
    }

    /// The listen addresses that the pool has found here, now or before.
    pub(crate) fn found(&self) -> &[IpAddr] {
        &self.found
    }

    /// Who wins in `FORWARD`, but for what the pool says.
    pub(crate) fn order(&self, flag: Option<FirewallOrder>) -> Order {
        let kept = match self.state.order() {
            Ok((FirewallOrder::First, true)) => {
                tracing::warn!(
                    "an older version has served this host: until the pool sets spec.firewall.order, forwards go on to win over \
                     what other firewalls deny in FORWARD, as if it were First"
                );
                FirewallOrder::First
            }
            Ok((kept, _)) => kept,
            Err(error) => {
                let (error, kept) = (chain_of(&error), FirewallOrder::default());
                tracing::warn!(
                    error,
                    "whether forwards have won over other firewalls' denies here is lost: now they do not"
                );
                kept
            }
        };
        Order { flag, kept }
    }

    /// What rules depend on, at `now`.
    pub(crate) fn facts(&self, now: Moment) -> NodeFacts<'_> {
        NodeFacts { found: &self.found, ..NodeFacts::of(&self.addresses, now) }
    }

    /// Notes which addresses the pool of `intents` finds here. What it found before is wanted until it is not selected any
    /// more, be it here or not; of those that are away, the last [`MAX_ADDRESSES`].
    pub(crate) fn find(&mut self, intents: &Intents) {
        let node = &intents.node;
        let here = Listen::of(node, &self.addresses, &[]).here().to_vec();
        let stays = |ip: &IpAddr| selects(node, ip) && !here.contains(ip);
        let mut found: Vec<IpAddr> = self.found.iter().copied().filter(stays).collect();
        found.drain(..found.len().saturating_sub(MAX_ADDRESSES));
        self.tell_away(intents, &here, &found);
        found.extend(here);
        if found == self.found {
            return;
        }
        self.found = found;
        if let Err(error) = self.state.keep_found(&self.found) {
            tracing::warn!(
                error = chain_of(&error),
                "cannot note the listen addresses; those that are away when the agent starts anew lose their rules"
            );
        }
    }

    /// Tells, when that changes, on which listen addresses nothing is forwarded just now.
    fn tell_away(&mut self, intents: &Intents, here: &[IpAddr], away: &[IpAddr]) {
        let named = intents.forwards().flat_map(|forward| &forward.intent.addresses);
        let named = named.filter(|ip| selects(&intents.node, ip) && !here.contains(ip));
        let away: BTreeSet<IpAddr> = named.chain(away).copied().collect();
        let away: Vec<IpAddr> = away.into_iter().collect();
        if away.is_empty() {
            self.away.clear();
        } else if self.away.is_news(&away) {
            let addresses: Vec<String> = away.iter().map(ToString::to_string).collect();
            tracing::info!(
                addresses = addresses.join(", "),
                "listen addresses that are not on this host: their rules are there and bite once they come"
            );
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::converge::fake::{forward, intents};

    fn host(guard: &tempfile::TempDir, here: &[&str]) -> ThisHost {
        let mut host = ThisHost::new(Rc::new(StateDir::lock(guard.path()).unwrap()));
        set(&mut host, here);
        host
    }

    fn set(host: &mut ThisHost, here: &[&str]) {
        let of = |ip: &&str| LocalAddress { ip: ip.parse().unwrap(), prefix_len: 24, global: true };
        host.addresses = here.iter().map(of).collect();
    }

    /// What a pool is declared to be that listens in these blocks.
    fn listening(blocks: &[&str]) -> Intents {
        let mut intents = intents(&forward("a", 8000));
        let node = &mut intents.node;
        node.addresses.clear();
        node.listen_cidrs = blocks.iter().map(|block| block.parse().unwrap()).collect();
        intents
    }

    fn found(host: &ThisHost) -> Vec<String> {
        host.found().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_that_was_found_is_wanted_until_what_is_declared_excludes_it() {
        let guard = tempfile::tempdir().unwrap();
        let wide = listening(&["10.30.0.0/16"]);
        let mut first = host(&guard, &["10.30.1.78", "10.30.1.100", "192.0.2.1"]);
        first.find(&wide);
        assert_eq!(found(&first), ["10.30.1.78", "10.30.1.100"]);
        set(&mut first, &["10.30.1.78"]);
        first.find(&wide);
        assert_eq!(found(&first), ["10.30.1.100", "10.30.1.78"]);
        drop(first);

        let mut second = host(&guard, &["10.30.1.78"]);
        second.find(&wide);
        assert_eq!(found(&second), ["10.30.1.100", "10.30.1.78"], "it was away when the agent started");
        second.find(&listening(&["10.30.1.78/32"]));
        assert_eq!(found(&second), ["10.30.1.78"]);
        second.find(&wide);
        assert_eq!(found(&second), ["10.30.1.78"], "excluded, it is forgotten");
    }

    #[test]
    fn of_addresses_that_never_come_again_the_last_few_are_kept() {
        let guard = tempfile::tempdir().unwrap();
        let wide = Arc::new(listening(&["10.30.0.0/16"]));
        let mut host = host(&guard, &[]);
        for number in 1..=MAX_ADDRESSES + 3 {
            set(&mut host, &[&format!("10.30.2.{number}")]);
            host.find(&wide);
        }
        assert_eq!(host.found().len(), MAX_ADDRESSES + 1);
        assert_eq!(found(&host)[0], "10.30.2.3", "the longest away");
    }
}
