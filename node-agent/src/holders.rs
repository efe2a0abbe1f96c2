//! Who holds ports of this host where a forward would listen, a program or a rule of others, and what is said to whoever has to
//! wait for them.
//!
//! How long a forward waits is decided in `port_gate`.

use std::sync::Arc;
use std::time::Duration;

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::SliceForward;
use sallyport_engine::listeners::process_of;
use sallyport_policy::digest::intent_hash;
use sallyport_policy::places::Places;
use sallyport_ruleset::binding::{Binding, bindings};
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::firewall::{Conflict, Holds, HostFirewall};
use sallyport_ruleset::listen::Listen;
use sallyport_ruleset::listener::{Endpoint, Listener, in_the_way};
use sallyport_ruleset::table::Failure;

use crate::intents::Intents;

/// A port must have been free for so long before a forward takes it: whoever held it may only be starting anew.
pub(crate) const FREE: Duration = Duration::from_secs(10);

/// Somebody who was there first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A program that listens.
    Program(Listener),
    /// A rule that gives what is sent there to somebody else, be it this one or one that stands for it later.
    Rule(Endpoint, Box<Conflict>),
}

impl Holder {
    /// What it holds.
    pub(crate) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Program(listener) => listener.endpoint(),
            Self::Rule(endpoint, _) => *endpoint,
        }
    }
}

/// All who hold ports of this host, as some forwards may meet them.
pub(crate) struct Holders<'a> {
    listeners: &'a [Listener],
    rules: Holds<'a>,
    listen: Listen,
}

impl<'a> Holders<'a> {
    /// Of a host with `facts`, for `forwards` of the pool of `intents`.
    pub(crate) fn of<'f>(
        intents: &Intents,
        facts: &NodeFacts<'a>,
        firewall: &'a HostFirewall,
        forwards: impl IntoIterator<Item = &'f Arc<SliceForward>>,
    ) -> Self {
        let listen = Listen::of(&intents.node, facts.addresses, facts.found);
        let all: Vec<Binding<'_>> = forwards.into_iter().flat_map(|forward| bindings(forward, &listen)).collect();
        let rules = Holds::new(firewall, &all);
        Self { listeners: facts.listeners, rules, listen }
    }

    /// Those who hold a place of `forward` that it did not have.
    pub(crate) fn in_the_way(&self, forward: &SliceForward, had: &Places) -> Vec<Holder> {
        let new = |binding: Binding<'_>| had.lacking(binding.listen, binding.port);
        let new: Vec<Binding<'_>> = bindings(forward, &self.listen)
            .flat_map(|binding| new(binding).into_iter().map(move |port| Binding { port, ..binding }))
            .collect();
        let programs = in_the_way(&new, self.listeners).into_iter().map(|listener| Holder::Program(*listener));
        let rules = new.iter().filter_map(|binding| {
            let endpoint = (binding.protocol(), binding.listen, binding.port.port);
            self.rules.on(binding).map(|conflict| Holder::Rule(endpoint, Box::new(conflict)))
        });
        programs.chain(rules).collect()
    }
}

/// Of a forward that had only these places when `holder` was at another one of its.
pub(crate) fn in_use(forward: &SliceForward, had: &Places, holder: &Holder) -> Failure {
    let wait = FREE.as_secs();
    let message = match holder {
        Holder::Program(listener) => {
            let who = process_of(listener.inode).unwrap_or_else(|| "a program of this host".to_owned());
            let place = if listener.ip.is_unspecified() { "every address".to_owned() } else { listener.ip.to_string() };
            let (port, protocol) = (listener.port, listener.protocol);
            format!(
                "{who} listens on port {port}/{protocol} on {place} and would lose its clients; stop it, or let it listen \
                 on another port or address, and {wait} s later the forward follows by itself (`ss -lntup 'sport = :{port}'` \
                 shows it)"
            )
        }
        Holder::Rule((protocol, ip, port), conflict) => {
            format!(
                "packets to port {port}/{protocol} on {ip} {conflict}; {wait} s later the forward follows by itself"
            )
        }
    };
    refused(forward, had, message)
}

/// Of a forward that waits, and why.
pub(crate) fn refused(forward: &SliceForward, had: &Places, mut message: String) -> Failure {
    if !had.is_empty() {
        message.push_str(
            "; what else the edit says is in force, on the ports and addresses that the forward had before it",
        );
    }
    Failure { forward: forward.r#ref.clone(), reason: Reason::PortInUse, message }
}

/// `forward` at the places that it `had`; `None` if it has none of them any more.
pub(crate) fn cut(forward: &Arc<SliceForward>, had: &Places) -> Option<Arc<SliceForward>> {
    let intent = had.cut(&forward.intent)?;
    Some(Arc::new(SliceForward { hash: intent_hash(&intent), intent, ..SliceForward::clone(forward) }))
}
