//! What becomes of a packet in a base chain.
//!
//! Whatever may or may not fit is followed both ways, so the answer is certain only if every way ends alike.

use crate::firewall::packet::{Fit, Packet};
use crate::firewall::{BaseChain, FirewallTable, Verdict};

/// Nested chains are followed this far, which is as far as the kernel goes.
const DEPTH: usize = 16;

/// What a base chain does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// Nothing speaks of dropping them.
    Pass,
    /// It drops some packets, perhaps one of these.
    PassesMost,
    /// Nobody can tell.
    Unclear,
    /// All are dropped.
    Dropped,
}

/// How a chain ends for those packets that got to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
    /// The chain has come back to whoever called it.
    Back,
}

#[derive(Clone, Copy, Debug)]
struct Way {
    end: End,
    /// Some may have been accepted before that.
    accepts: bool,
    /// A rule that names what it drops may have dropped some before that.
    drops_some: bool,
    /// A rule may have dropped all of them before that.
    drops_all: bool,
}

/// What `base` of `table` does with `packet`.
pub(super) fn fate(table: &FirewallTable, base: &BaseChain, packet: &Packet) -> Fate {
    let way = walk(table, &base.name, packet, DEPTH);
    let dropped = way.end == End::Dropped || (way.end == End::Back && base.drops);
    if dropped && !way.accepts {
        Fate::Dropped
    } else if dropped || way.drops_all {
        Fate::Unclear
    } else if way.drops_some {
        Fate::PassesMost
    } else {
        Fate::Pass
    }
}

fn walk(table: &FirewallTable, chain: &str, packet: &Packet, depth: usize) -> Way {
    let mut way = Way { end: End::Back, accepts: false, drops_some: false, drops_all: false };
    // Some may have gone back before the end of the chain.
    let mut went_back = false;
    for rule in table.chains.get(chain).into_iter().flatten() {
        let fit = packet.fits(&rule.tests);
        if fit == Fit::None {
            continue;
        }
        let (end, comes_back) = match &rule.verdict {
            Verdict::Continue => continue,
            Verdict::Accept => (End::Accepted, false),
            Verdict::Drop => (End::Dropped, false),
            Verdict::Return => (End::Back, false),
            Verdict::Elsewhere => {
                way.accepts = true;
                continue;
            }
            Verdict::Jump(_) | Verdict::Goto(_) if depth == 0 => {
                way.accepts = true;
                continue;
            }
            Verdict::Jump(called) | Verdict::Goto(called) => {
                let called = walk(table, called, packet, depth - 1);
                way.accepts |= called.accepts;
                way.drops_some |= called.drops_some || (called.drops_all && fit == Fit::Some);
                way.drops_all |= called.drops_all && fit != Fit::Some;
                (called.end, matches!(rule.verdict, Verdict::Jump(_)))
            }
        };
        if end == End::Back && comes_back {
            continue;
        }
        if fit == Fit::All {
            way.end = end;
            break;
        }
        match end {
            End::Accepted => way.accepts = true,
            End::Dropped if fit == Fit::Some => way.drops_some = true,
            End::Dropped => way.drops_all = true,
            End::Back => went_back = true,
        }
    }
    if went_back {
        match way.end {
            End::Accepted => way.accepts = true,
            End::Dropped => way.drops_all = true,
            End::Back => {}
        }
        way.end = End::Back;
    }
    way
}
