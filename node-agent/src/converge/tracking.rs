//! What connection tracking of the host is set to, as far as rules differ by it, and whether its table is nearly full.

use sallyport_engine::Engine;
use sallyport_engine::sysctl::Sysctl;
use sallyport_engine::tracking::Room;
use sallyport_ruleset::facts::{NodeFacts, Tracking};
use sallyport_runtime::once::Once;

use crate::converge::Converger;

/// Of a hundred connections that there may be, so many are told of, and are told of no more once there are fewer.
const NEARLY: [u64; 2] = [95, 85];

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    settings: Once,
    nearly_full: bool,
}

impl Told {
    /// Whether it is news that the table is nearly full.
    fn is_news(&mut self, room: Room) -> bool {
        let [from, until] = NEARLY.map(|part| room.count * 100 >= room.max * part);
        let before = self.nearly_full;
        self.nearly_full = from || until && before;
        self.nearly_full && !before
    }
}

impl<E: Engine> Converger<E> {
    /// `facts`, and what connection tracking is set to now, which is told where a rule is missing for it.
    pub(super) fn with_tracking<'a>(&mut self, facts: &NodeFacts<'a>) -> NodeFacts<'a> {
        let tracking = self.tracking();
        let why = why(tracking);
        if why.is_none() {
            self.told.settings.clear();
        }
        if let Some(why) = why.filter(|why| self.told.settings.is_news(*why)) {
            tracing::warn!("no rule drops segments of targets that connection tracking cannot place: {why}");
        }
        NodeFacts { tracking, ..*facts }
    }

    fn tracking(&self) -> Tracking {
        self.sysctl.as_ref().map(Sysctl::tracking).unwrap_or_default()
    }

    /// Whether rules would be others by now. Tells when the table is nearly full.
    pub(super) fn is_tracked_otherwise(&mut self) -> bool {
        let room = self.sysctl.as_ref().and_then(Sysctl::room);
        if let Some(room) = room.filter(|room| self.told.is_news(*room)) {
            tracing::warn!(
                connections = room.count,
                most = room.max,
                "connection tracking is nearly full; once it is, new connections are dropped, forwarded or not: raise \
                 net.netfilter.nf_conntrack_max of this host, or find out who opens so many (`conntrack -L`)"
            );
        }
        self.held && !self.table.carries_nothing() && self.tracking() != self.table.tracking()
    }
}

/// Why no such segment is dropped, and what that means.
fn why(tracking: Tracking) -> Option<&'static str> {
    if tracking.liberal {
        Some("net.netfilter.nf_conntrack_tcp_be_liberal=1 places them all, so none is needed")
    } else if !tracking.loose {
        Some(
            "with net.netfilter.nf_conntrack_tcp_loose=0 connections whose state was lost would hang instead of being reset; \
             one that comes late may reset its session, unless net.netfilter.nf_conntrack_tcp_be_liberal=1",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_nearly_full_is_told_of_once() {
        let mut told = Told::default();
        let news: Vec<bool> =
            [10, 94, 95, 99, 86, 95, 84, 96].map(|count| told.is_news(Room { count, max: 100 })).to_vec();
        assert_eq!(news, [false, false, true, false, false, false, false, true]);
    }
}
