//! Who listens on this host where a forward would, and what is said to whoever has to wait for them.
//!
//! How long a forward waits is decided in `port_gate`.

use std::time::Duration;

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::SliceForward;
use sallyport_engine::listeners::process_of;
use sallyport_engine::network::Network;
use sallyport_ruleset::binding::bindings;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::listen::Listen;
use sallyport_ruleset::listener::{Listener, in_the_way};
use sallyport_ruleset::table::Failure;

use crate::intents::Intents;

/// A port must have been free for so long before a forward takes it: whoever listened there may only be starting anew.
pub(crate) const FREE: Duration = Duration::from_secs(10);

/// Who listens on this host, and where forwards would.
pub(crate) struct SocketView<'a> {
    listeners: &'a [Listener],
    listen: Listen,
}

impl<'a> SocketView<'a> {
    /// Of a host with `facts`, for the pool of `intents`.
    pub(crate) fn of(intents: &Intents, facts: &NodeFacts<'a>) -> Self {
        Self { listeners: facts.listeners, listen: Listen::of(&intents.node, facts.addresses, facts.found) }
    }

    /// Those that a forward would take the clients from.
    pub(crate) fn in_the_way(&self, forward: &SliceForward) -> Vec<&'a Listener> {
        in_the_way(&bindings(forward, &self.listen).collect::<Vec<_>>(), self.listeners)
    }
}

/// Why a forward that this host never carried would have to wait.
pub(crate) fn refusal(
    network: &dyn Network,
    forward: &SliceForward,
    intents: &Intents,
    facts: &NodeFacts<'_>,
) -> Option<Failure> {
    let listeners = network.listeners().ok()??;
    let sockets = SocketView::of(intents, &NodeFacts { listeners: &listeners, ..*facts });
    sockets.in_the_way(forward).first().map(|listener| in_use(forward, listener))
}

/// Of a forward where `listener` was there first.
pub(crate) fn in_use(forward: &SliceForward, listener: &Listener) -> Failure {
    let who = process_of(listener.inode).unwrap_or_else(|| "a program of this host".to_owned());
    let place = if listener.ip.is_unspecified() { "every address".to_owned() } else { listener.ip.to_string() };
    let (port, protocol) = (listener.port, listener.protocol);
    let wait = FREE.as_secs();
    refused(
        forward,
        format!(
            "{who} listens on port {port}/{protocol} on {place} and would lose its clients; stop it, or let it listen on \
             another port or address, and {wait} s later the forward follows by itself (`ss -lntup 'sport = :{port}'` shows it)"
        ),
    )
}

/// Of a forward that waits, and why.
pub(crate) fn refused(forward: &SliceForward, message: String) -> Failure {
    Failure { forward: forward.r#ref.clone(), reason: Reason::PortInUse, message }
}
