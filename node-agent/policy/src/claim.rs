//! Who holds which port: claims, and a table of them that finds an overlap in logarithmic time.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sallyport_api::Protocol;
use sallyport_api::intent::Intent;

use crate::family::Family;
use crate::validate::range;

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

/// A claim and who has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held<Owner> {
    pub(crate) claim: Claim,
    pub(crate) owner: Owner,
}

/// Claims of one address by their first port.
type ByPort<Owner> = BTreeMap<u16, Held<Owner>>;

/// Claims that never overlap, each with its owner.
#[derive(Debug)]
pub struct ClaimTable<Owner> {
    scopes: BTreeMap<(Family, Protocol), BTreeMap<Option<IpAddr>, ByPort<Owner>>>,
}

impl<Owner> Default for ClaimTable<Owner> {
    fn default() -> Self {
        Self { scopes: BTreeMap::new() }
    }
}

impl<Owner: Copy + PartialEq> ClaimTable<Owner> {
    /// The first of `wanted` that overlaps a claim of somebody other than `owner`, as far as it does, and who that is.
    pub fn conflict(&self, wanted: &[Claim], owner: Owner) -> Option<(Claim, Owner)> {
        wanted.iter().find_map(|claim| {
            let addresses = self.scopes.get(&(claim.family, claim.protocol))?;
            addresses.values().find_map(|ports| {
                // Claims of one address are disjoint, so walking down from the end of the range stops at once.
                ports
                    .range(..=claim.last)
                    .rev()
                    .map(|(_, held)| held)
                    .take_while(|held| held.claim.last >= claim.first)
                    .find(|held| held.owner != owner && held.claim.overlaps(claim))
                    .map(|held| (claim.shared_with(&held.claim), held.owner))
            })
        })
    }

    /// Records claims that [`Self::conflict`] found free.
    pub fn insert(&mut self, claims: &[Claim], owner: Owner) {
        for claim in claims {
            self.scopes
                .entry((claim.family, claim.protocol))
                .or_default()
                .entry(claim.address)
                .or_default()
                .insert(claim.first, Held { claim: *claim, owner });
        }
    }

    /// Forgets claims of `owner`.
    pub fn remove(&mut self, claims: &[Claim], owner: Owner) {
        for claim in claims {
            if let Some(ports) = self
                .scopes
                .get_mut(&(claim.family, claim.protocol))
                .and_then(|addresses| addresses.get_mut(&claim.address))
                && ports.get(&claim.first).is_some_and(|held| held.owner == owner)
            {
                ports.remove(&claim.first);
            }
        }
    }
}

#[cfg(test)]
mod tests;
