//! Who holds which port: claims, and a table of them that finds an overlap in logarithmic time.
//!
//! Most claims are on every listen address, which is a map by port. Those on single addresses are kept by address, and once
//! more by port for who wants every address.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use sallyport_api::Protocol;
use sallyport_api::intent::Intent;

use crate::family::Family;
use crate::intervals::Intervals;
use crate::validate::range;

/// Family and protocol: claims that differ in them never overlap.
pub(crate) type Scope = (Family, Protocol);

/// What one forward occupies on the gateways of its pool: an address, a protocol and a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    family: Family,
    /// `None` for every listen address of the family.
    address: Option<IpAddr>,
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl Claim {
    /// The claims of `intent`: one for each port and each of its addresses, or each family of its targets.
    #[must_use]
    pub fn of(intent: &Intent) -> Vec<Self> {
        let places: Vec<(Family, Option<IpAddr>)> = if intent.addresses.is_empty() {
            Family::BOTH
                .into_iter()
                .filter(|family| intent.targets.iter().any(|target| Family::of(target.ip) == *family))
                .map(|family| (family, None))
                .collect()
        } else {
            intent.addresses.iter().map(|ip| (Family::of(*ip), Some(*ip))).collect()
        };
        intent
            .ports
            .iter()
            .flat_map(|port| {
                places.iter().map(|(family, address)| Self {
                    family: *family,
                    address: *address,
                    protocol: port.protocol,
                    first: port.port,
                    last: port.end_port,
                })
            })
            .collect()
    }

    /// The first and the last port.
    pub(crate) fn ports(&self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// The only listen address that it is on, if it is not on every one of the family.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Of which family and protocol.
    pub(crate) fn scope(&self) -> Scope {
        (self.family, self.protocol)
    }

    /// Whether one packet could be of both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.family == other.family
            && self.protocol == other.protocol
            && self.first <= other.last
            && other.first <= self.last
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }

    /// The ports of this claim that `other`, which overlaps it, wants too. Of the address of `other` it tells nothing.
    pub(crate) fn shared_with(self, other: &Self) -> Self {
        Self { first: self.first.max(other.first), last: self.last.min(other.last), ..self }
    }

    /// Whether this claim lies wholly inside `other`.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.overlaps(other)
            && other.first <= self.first
            && self.last <= other.last
            && (other.address.is_none() || self.address == other.address)
    }
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "port {}/{}", range(self.first, self.last), self.protocol)?;
        match self.address {
            Some(address) => write!(f, " on {address}"),
            None => Ok(()),
        }
    }
}

/// Claims by address, `None` for those on every one.
type ByAddress<'a> = BTreeMap<Option<IpAddr>, Vec<&'a Claim>>;

/// The claims of one forward by where they are, to compare them with those that it had.
pub(crate) struct ByPlace<'a> {
    claims: BTreeMap<Scope, ByAddress<'a>>,
}

impl<'a> ByPlace<'a> {
    pub(crate) fn of(claims: &'a [Claim]) -> Self {
        let mut by_place = Self { claims: BTreeMap::new() };
        for claim in claims {
            let scope = by_place.claims.entry(claim.scope()).or_default();
            scope.entry(claim.address).or_default().push(claim);
        }
        by_place
    }

    /// Whether `test` holds for a claim that may overlap `claim`.
    pub(crate) fn any(&self, claim: &Claim, test: impl Fn(&Claim) -> bool) -> bool {
        let Some(scope) = self.claims.get(&claim.scope()) else { return false };
        match claim.address {
            None => scope.values().flatten().any(|other| test(other)),
            address => [None, address].iter().filter_map(|at| scope.get(at)).flatten().any(|other| test(other)),
        }
    }
}

/// A claim and who has it.
#[derive(Clone, Copy, Debug)]
struct Held<Owner> {
    claim: Claim,
    owner: Owner,
}

/// Claims of one family and protocol.
#[derive(Debug)]
struct Scoped<Owner> {
    /// By address, `None` for every one, and by first port.
    by_address: BTreeMap<Option<IpAddr>, BTreeMap<u16, Held<Owner>>>,
    /// Those on single addresses by their ports; the least key is the one to be told. Empty until somebody wants every address.
    by_port: OnceCell<ByPort<Owner>>,
}

type ByPort<Owner> = Intervals<(Option<IpAddr>, u16), Owner>;

/// Claims that never overlap, each with its owner.
#[derive(Debug)]
pub struct ClaimTable<Owner> {
    scopes: BTreeMap<Scope, Scoped<Owner>>,
}

impl<Owner> Default for ClaimTable<Owner> {
    fn default() -> Self {
        Self { scopes: BTreeMap::new() }
    }
}

impl<Owner> Default for Scoped<Owner> {
    fn default() -> Self {
        Self { by_address: BTreeMap::new(), by_port: OnceCell::new() }
    }
}

impl<Owner: Copy + PartialEq> ClaimTable<Owner> {
    /// The first of `wanted` that overlaps a claim of somebody other than `owner`, as far as it does, and who that is.
    pub fn conflict(&self, wanted: &[Claim], owner: Owner) -> Option<(Claim, Owner)> {
        wanted.iter().find_map(|claim| {
            let scope = self.scopes.get(&claim.scope())?;
            let held = scope.conflict(None, claim, owner).or_else(|| {
                let address = match claim.address {
                    None => scope.by_port().least(claim.ports(), |held| *held != owner)?.0.0,
                    address => address,
                };
                scope.conflict(address, claim, owner)
            })?;
            Some((claim.shared_with(&held.claim), held.owner))
        })
    }

    /// Records claims that [`Self::conflict`] found free. They may overlap each other, but nothing else that `owner` has.
    pub fn insert(&mut self, claims: &[Claim], owner: Owner) {
        for claim in disjoint(claims) {
            let scope = self.scopes.entry(claim.scope()).or_default();
            scope.by_address.entry(claim.address).or_default().insert(claim.first, Held { claim, owner });
            if claim.address.is_some()
                && let Some(by_port) = scope.by_port.get_mut()
            {
                by_port.insert(claim.ports(), (claim.address, claim.first), owner);
            }
        }
    }

    /// Forgets claims of `owner`, as they were [inserted](Self::insert).
    pub fn remove(&mut self, claims: &[Claim], owner: Owner) {
        for claim in disjoint(claims) {
            if let Some(scope) = self.scopes.get_mut(&claim.scope())
                && let Some(ports) = scope.by_address.get_mut(&claim.address)
                && ports.get(&claim.first).is_some_and(|held| held.owner == owner)
                && let Some(held) = ports.remove(&claim.first)
                && let Some(by_port) = scope.by_port.get_mut()
            {
                by_port.remove(held.claim.ports(), (claim.address, claim.first));
            }
        }
    }
}

/// The same claims without those that overlap: a forward that is in two slices for a moment holds what either says.
fn disjoint(claims: &[Claim]) -> Vec<Claim> {
    let place = |claim: &Claim| (claim.scope(), claim.address);
    let mut sorted = claims.to_vec();
    sorted.sort_unstable_by_key(|claim| (place(claim), claim.first));
    let mut disjoint: Vec<Claim> = Vec::with_capacity(sorted.len());
    for claim in sorted {
        match disjoint.last_mut() {
            Some(last) if place(last) == place(&claim) && claim.first <= last.last => {
                last.last = last.last.max(claim.last);
            }
            _ => disjoint.push(claim),
        }
    }
    disjoint
}

impl<Owner: Copy + PartialEq> Scoped<Owner> {
    fn by_port(&self) -> &ByPort<Owner> {
        self.by_port.get_or_init(|| {
            let mut by_port = ByPort::default();
            let single = self.by_address.iter().filter(|(address, _)| address.is_some());
            for held in single.flat_map(|(_, ports)| ports.values()) {
                by_port.insert(held.claim.ports(), (held.claim.address, held.claim.first), held.owner);
            }
            by_port
        })
    }

    /// Of the claims on `address`, the one with the highest ports that overlaps `claim` and is not of `owner`.
    fn conflict(&self, address: Option<IpAddr>, claim: &Claim, owner: Owner) -> Option<Held<Owner>> {
        // Claims of one address are disjoint, so walking down from the end of the range stops at once.
        let below = self.by_address.get(&address)?.range(..=claim.last).rev().map(|(_, held)| held);
        let mut overlapping = below.take_while(|held| held.claim.last >= claim.first);
        overlapping.find(|held| held.owner != owner && held.claim.overlaps(claim)).copied()
    }
}

#[cfg(test)]
mod tests;
