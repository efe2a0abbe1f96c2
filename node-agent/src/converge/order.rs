//! Who wins in `FORWARD`, what others deny by name or the forwards: the flag, else the pool, else what this host has had. And
//! what others do to forwarded packets, now and once their denies win.

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::gateway_pool::FirewallOrder;
use sallyport_engine::Engine;
use sallyport_engine::route::routes::Interfaces;
use sallyport_ruleset::facts::LocalAddress;
use sallyport_ruleset::firewall::Assessment;

use crate::converge::Converger;

/// What decides where the pool says nothing, or although it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// `--order`.
    pub flag: Option<FirewallOrder>,
    /// What this host has had: `First` where a version served it that knew no other.
    pub kept: FirewallOrder,
}

impl Order {
    /// The one for a host of which the pool says `node`.
    #[must_use]
    pub fn on(self, node: &GatewayNodeSpec) -> FirewallOrder {
        self.flag.or(node.order).unwrap_or(self.kept)
    }

    /// Whether forwards win there only because nobody has said that they shall not any more.
    #[must_use]
    pub fn is_kept_first(self, node: &GatewayNodeSpec) -> bool {
        self.flag.or(node.order).is_none() && self.kept == FirewallOrder::First
    }
}

impl<E: Engine> Converger<E> {
    /// What the other firewalls, as they were last read, do with the packets of those forwards that are `seen`.
    pub(super) fn assess(&mut self, seen: &dyn Fn(&SliceForward) -> bool, local: &[LocalAddress]) -> Assessment {
        let Some(installed) = &self.installed else { return Assessment::default() };
        let interfaces = Interfaces::of(local);
        let interface = |net| interfaces.towards(net);
        let [now, later] = &mut self.paths;
        let mut found = now.assess(&installed.firewall, &self.table, seen, &interface);
        let is_kept = self.followed.as_ref().is_some_and(|intents| self.order.is_kept_first(&intents.node));
        if let Some(firewall) = is_kept.then(|| installed.firewall.with_denies_first()).flatten() {
            found.announce(later.assess(&firewall, &self.table, seen, &interface));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::fake::intents;

    #[test]
    fn the_flag_wins_over_the_pool_and_the_pool_over_what_this_host_has_had() {
        use FirewallOrder::{AfterDenies, First};
        let mut node = intents("").node;
        for (flag, pool, kept, order, is_kept) in [
            (None, None, AfterDenies, AfterDenies, false),
            (None, None, First, First, true),
            (None, Some(AfterDenies), First, AfterDenies, false),
            (None, Some(First), First, First, false),
            (Some(First), Some(AfterDenies), AfterDenies, First, false),
            (Some(AfterDenies), None, First, AfterDenies, false),
        ] {
            node.order = pool;
            let found = Order { flag, kept };
            assert_eq!((found.on(&node), found.is_kept_first(&node)), (order, is_kept), "{flag:?} {pool:?} {kept:?}");
        }
    }
}
