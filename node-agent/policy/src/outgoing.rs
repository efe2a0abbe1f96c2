//! What the nodes of a pool may still carry although nobody holds it any more.
//!
//! These claims are of several forwards that held them one after the other, so unlike those in a table they may overlap.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sallyport_api::id::Uid;

use crate::claim::{Claim, Scope};
use crate::intervals::Intervals;
use crate::observed::Outgoing;

/// Which listen addresses a claim is found under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Under {
    /// Claims on all of them.
    All,
    /// Claims on any single one.
    Any,
    /// Claims on this one.
    One(IpAddr),
}

/// In order of first and last port, then as they came.
type Order = (u16, u16, usize);

/// Claims, each with the uid of the forward that had it.
type Claims<'a> = Intervals<Order, (Claim, &'a Uid)>;

/// What the nodes of one pool may still carry.
#[derive(Default)]
pub struct OutgoingClaims<'a> {
    claims: BTreeMap<(Scope, Under), Claims<'a>>,
}

impl<'a> OutgoingClaims<'a> {
    /// Of `pool`.
    pub fn of(pool: &str, outgoing: &'a [Outgoing]) -> Self {
        let mut outgoing_claims = Self::default();
        let here = outgoing.iter().filter(|gone| gone.pool == pool);
        let claims = here.flat_map(|gone| Claim::of(&gone.intent).into_iter().map(|claim| (claim, &gone.uid)));
        for (number, (claim, owner)) in claims.enumerate() {
            let (first, last) = claim.ports();
            let mut put = |under| {
                let claims = outgoing_claims.claims.entry((claim.scope(), under)).or_default();
                claims.insert((first, last), (first, last, number), (claim, owner));
            };
            match claim.address() {
                None => put(Under::All),
                Some(ip) => [Under::Any, Under::One(ip)].into_iter().for_each(put),
            }
        }
        outgoing_claims
    }

    /// The part of `claim` that somebody other than `uid` has too.
    pub fn conflict(&self, claim: &Claim, uid: &Uid) -> Option<Claim> {
        let under = [Under::All, claim.address().map_or(Under::Any, Under::One)];
        let found = under.into_iter().filter_map(|under| {
            let intervals = self.claims.get(&(claim.scope(), under))?;
            intervals.least(claim.ports(), |(_, owner)| *owner != uid)
        });
        found.min_by_key(|(order, _)| *order).map(|(_, (held, _))| claim.shared_with(&held))
    }
}

#[cfg(test)]
mod tests;
