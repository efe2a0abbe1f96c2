//! The packets of a connection, and what is known of each before it is known of which forward it is.

use crate::family::Family;
use crate::firewall::packet::Packet;
use crate::firewall::{AddressType, BaseChain, Hook, State};

/// Priority at which connection tracking begins (`NF_IP_PRI_CONNTRACK`, `include/uapi/linux/netfilter_ipv4.h`).
const CONNTRACK: i32 = -200;
/// Priority at which our rules translate destinations (`NF_IP_PRI_NAT_DST`).
const DNAT: i32 = -100;
/// Priority at which source addresses are rewritten (`NF_IP_PRI_NAT_SRC`).
const SNAT: i32 = 100;

/// Whether the destination is still the gateway in `base`, and our mark not yet there to be seen.
pub(super) fn is_pre_dnat(base: &BaseChain) -> bool {
    base.hook == Hook::Ingress || base.hook == Hook::Prerouting && (base.priority <= DNAT || base.translates)
}

/// Whether addresses have been translated already in `base`, where packets leave.
pub(super) fn is_post_snat(base: &BaseChain) -> bool {
    base.hook == Hook::Postrouting && base.priority >= SNAT
}

/// One of the packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    /// The one that opens it.
    First,
    /// Its answer.
    Answer,
    /// A later request.
    Later,
}

/// Those that `base` is asked about: of a connection's packets only the first is translated by rules.
pub(super) fn reaches(base: &BaseChain) -> impl Iterator<Item = Leg> {
    let translates = base.translates;
    [Leg::First, Leg::Answer, Leg::Later].into_iter().filter(move |leg| !translates || *leg == Leg::First)
}

/// What is known of every packet of every forward, but for its marks.
pub(super) fn any_packet(family: Family, base: &BaseChain, leg: Leg) -> Packet<'static> {
    let tracked = match base.hook {
        Hook::Ingress => false,
        Hook::Prerouting => base.priority > CONNTRACK || base.translates,
        Hook::Forward | Hook::Postrouting => true,
    };
    let states: &'static [State] = match leg {
        _ if !tracked => &[State::Invalid],
        Leg::First if is_pre_dnat(base) => &[State::New],
        Leg::First => &[State::New, State::Dnat],
        Leg::Answer | Leg::Later => &[State::Established, State::Dnat],
    };
    let reply = leg == Leg::Answer;
    // The gateway is at the end of what has not been translated yet, and at the beginning of what has been.
    let leaves = is_post_snat(base);
    Packet {
        states: Some(states),
        tracked,
        source_type: if leaves { None } else { Some(AddressType::Unicast) },
        destination_type: match (reply, is_pre_dnat(base)) {
            (true, true) => None,
            (false, true) => Some(AddressType::Local),
            (_, false) => Some(AddressType::Unicast),
        },
        first: Some(leg == Leg::First),
        reply,
        ..Packet::of(family)
    }
}

/// The states of packets whose source is translated too.
pub(super) const MASQUERADED: &[State] = &[State::Established, State::Dnat, State::Snat];

/// Whether a chain of translations is no longer asked, because one before it has translated.
pub(super) fn is_translated(base: &BaseChain, destination: bool, source: bool) -> bool {
    match base.hook {
        Hook::Prerouting => destination,
        Hook::Ingress | Hook::Forward => false,
        Hook::Postrouting => source,
    }
}
