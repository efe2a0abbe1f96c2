//! What a kernel shall hold of a forwarding table, as rules of iptables, kept from one pass to the next.

use sallyport_api::gateway_pool::FirewallOrder;

use crate::iptables::installed::InstalledRuleset;
use crate::iptables::layout::Layout;
use crate::iptables::op::Op;
use crate::iptables::plan::{plan, plan_changed};
use crate::iptables::rule::Ruleset;
use crate::iptables::shadow::Packets;
use crate::table::{ForwardingTable, TableChange};

/// The rules of a forwarding table, and what the packets look like that they are for.
#[derive(Debug, Default)]
pub struct Desired {
    layout: Layout,
    packets: Packets,
}

impl Desired {
    /// That of `table`.
    #[must_use]
    pub fn of(table: &ForwardingTable) -> Self {
        let mut desired = Self::default();
        desired.follow(table, &TableChange::all_of(table));
        desired
    }

    /// Follows what `change` has done to `table`.
    pub fn follow(&mut self, table: &ForwardingTable, change: &TableChange) {
        self.layout.follow(table, change);
        self.packets.follow(table, change);
    }

    /// The rules.
    #[must_use]
    pub fn ruleset(&self) -> &Ruleset {
        self.layout.ruleset()
    }

    /// From now on what others deny by name wins, or it does not.
    pub fn set_order(&mut self, order: FirewallOrder) {
        self.packets.order = order;
    }

    /// The packets that they are for.
    #[must_use]
    pub fn packets(&self) -> &Packets {
        &self.packets
    }

    /// The change from `installed` to these rules.
    #[must_use]
    pub fn plan(&self, installed: &InstalledRuleset) -> Vec<Op> {
        plan(self.ruleset(), &self.packets, installed)
    }

    /// The same where `installed` was equal to them [before](Self::installed) they last changed: no other chain is
    /// looked at.
    #[must_use]
    pub fn plan_changed(&self, installed: &InstalledRuleset) -> Vec<Op> {
        plan_changed(self.layout.changed(), self.ruleset(), &self.packets, installed)
    }

    /// They are `installed` as they are now; what is equal is kept once.
    pub fn installed(&mut self, installed: Option<&mut InstalledRuleset>) {
        self.layout.forget_changes();
        if let Some(installed) = installed {
            installed.share(self.layout.ruleset());
        }
    }
}
