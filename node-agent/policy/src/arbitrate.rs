//! Who gets what several forwards want: ports, and places under a quota.
//!
//! Holders keep what they hold. What makes a forward acceptable by itself is not here: `decide` asks that first.

use std::collections::{BTreeMap, BTreeSet};

use sallyport_api::condition::Reason;
use sallyport_api::id::Uid;

use crate::candidate::Candidate;
use crate::claim::{Claim, ClaimTable};
use crate::observed::Forward;
use crate::outgoing::OutgoingClaims;
use crate::pool::Grant;
use crate::validate::Problem;

/// Why a candidate cannot have yet what nobody holds any more: some node may still carry the former holder.
pub fn blocked_by(candidate: &Candidate<'_>, unknown: bool, outgoing: &OutgoingClaims<'_>) -> Option<Problem> {
    let claim = candidate.fresh.first()?;
    if unknown {
        return Some(Problem {
            field: "spec.ports".into(),
            reason: Reason::Pending,
            message: format!(
                "{claim} is given once every gateway has reported what it carries, and this forward follows by itself; if \
                 that lasts, look at the agents' pods"
            ),
        });
    }
    let claim = candidate.fresh.iter().find_map(|claim| outgoing.conflict(claim, &candidate.forward.uid))?;
    Some(Problem {
        field: "spec.ports".into(),
        reason: Reason::PortConflict,
        message: format!("{claim} is still being taken off the gateways; this forward follows by itself"),
    })
}

/// The claims and places of one pool, given out.
pub struct Settled<'a> {
    /// For each candidate, in their order, `None` or why it is refused.
    pub outcome: Vec<Option<Problem>>,
    table: ClaimTable<usize>,
    quota: Quota<'a>,
    /// The candidates by uid.
    by_uid: BTreeMap<&'a Uid, usize>,
}

impl Settled<'_> {
    /// Why `late` would be refused, who comes after all the others and may want to replace what the same forward has.
    /// It takes nothing from anybody.
    pub fn refusal(&self, late: &Candidate<'_>, blocked: Option<Problem>) -> Option<Problem> {
        let Quota { candidates, grants, .. } = self.quota;
        let own = self.by_uid.get(&late.forward.uid).copied();
        if let Some((claim, by)) = self.table.conflict(&late.claims, own.unwrap_or(candidates.len())) {
            return Some(conflict(late, claim, candidates[by].forward));
        }
        blocked.or_else(|| (!self.quota.has_room(late, own)).then(|| over_quota(late, grants)))
    }
}

/// Gives out the claims of one pool. Candidates that have to wait are refused for that reason, unless somebody else's
/// claim is in their way.
pub fn arbitrate<'a>(candidates: &'a [Candidate<'a>], waiting: &[Option<Problem>], grants: &'a [Grant]) -> Settled<'a> {
    let mut table = ClaimTable::default();
    let mut reserved = vec![false; candidates.len()];
    for (index, candidate) in candidates.iter().enumerate() {
        if table.conflict(&candidate.held, index).is_none() {
            table.insert(&candidate.held, index);
            reserved[index] = true;
        }
    }
    let mut quota = Quota { candidates, late: None, grants, holders: BTreeMap::new(), full: BTreeMap::new() };
    let mut outcome: Vec<Option<Problem>> = vec![None; candidates.len()];
    let mut pending: Vec<usize> = (0..candidates.len()).collect();
    // A candidate lets go of what it held when it is refused or takes something else instead, which may let in one that
    // was refused before it: try those again. Each round needs a release and nobody releases twice, so this ends.
    loop {
        let mut released = false;
        let mut refused = Vec::new();
        for index in pending {
            let candidate = &candidates[index];
            outcome[index] = if let Some((claim, by)) = table.conflict(&candidate.claims, index) {
                Some(conflict(candidate, claim, candidates[by].forward))
            } else if let Some(problem) = &waiting[index] {
                Some(problem.clone())
            } else if quota.admit(index) {
                let had = std::mem::take(&mut reserved[index]);
                if !had || candidate.held != candidate.claims {
                    if had {
                        table.remove(&candidate.held, index);
                        released = true;
                    }
                    table.insert(&candidate.claims, index);
                }
                None
            } else {
                Some(over_quota(candidate, grants))
            };
            if outcome[index].is_some() {
                refused.push(index);
                if std::mem::take(&mut reserved[index]) {
                    table.remove(&candidate.held, index);
                    released = true;
                }
            }
        }
        if !released {
            let by_uid = candidates.iter().enumerate().map(|(index, candidate)| (&candidate.forward.uid, index));
            return Settled { outcome, table, quota, by_uid: by_uid.collect() };
        }
        pending = refused;
    }
}

/// Which forwards count against which limited grant.
struct Quota<'a> {
    candidates: &'a [Candidate<'a>],
    /// One more, whose index is the number of the candidates.
    late: Option<&'a Candidate<'a>>,
    grants: &'a [Grant],
    /// By namespace and grant.
    holders: BTreeMap<(&'a str, usize), Vec<usize>>,
    /// Grants, by namespace, that are full and all of whose holders could only move to others of these.
    full: BTreeMap<&'a str, BTreeSet<usize>>,
}

impl Quota<'_> {
    /// Finds room for a candidate. Where there was none there never will be, for nobody gives up a place here.
    fn admit(&mut self, index: usize) -> bool {
        let namespace = self.candidates[index].forward.key.namespace.as_str();
        let mut tried = self.full.remove(namespace).unwrap_or_default();
        let full = tried.clone();
        let placed = self.place(index, &mut tried);
        self.full.insert(namespace, if placed { full } else { tried });
        placed
    }

    /// Finds room for a candidate under one of its grants other than those `tried`. Holders move to another grant of
    /// theirs where that makes room, so whether all fit never depends on the order in which they came.
    fn place(&mut self, index: usize, tried: &mut BTreeSet<usize>) -> bool {
        let Some(candidate) = self.candidates.get(index).or(self.late) else { return false };
        for grant in &candidate.grants {
            let Some(max) = self.grants[*grant].max_forwards else { return true };
            if !tried.insert(*grant) {
                continue;
            }
            let key = (candidate.forward.key.namespace.as_str(), *grant);
            let holders = self.holders.entry(key).or_default();
            if holders.len() < max {
                holders.push(index);
                return true;
            }
            for (at, holder) in holders.clone().into_iter().enumerate() {
                if self.place(holder, tried) {
                    self.holders.entry(key).or_default()[at] = index;
                    return true;
                }
            }
        }
        false
    }

    /// Whether there is a place for `late`, if it gives up that of its `own`.
    fn has_room(&self, late: &Candidate<'_>, own: Option<usize>) -> bool {
        let namespace = late.forward.key.namespace.as_str();
        let is_open = |grant: &usize| {
            let holders = self.holders.get(&(namespace, *grant)).map_or(&[][..], Vec::as_slice);
            let given_up = usize::from(own.is_some_and(|own| holders.contains(&own)));
            self.grants[*grant].max_forwards.is_none_or(|max| holders.len() - given_up < max)
        };
        if late.grants.iter().any(is_open) {
            return true;
        }
        if own.is_none()
            && self.full.get(namespace).is_some_and(|full| late.grants.iter().all(|grant| full.contains(grant)))
        {
            return false;
        }
        let here = self.holders.range((namespace, 0)..=(namespace, usize::MAX));
        let without = |holders: &Vec<usize>| holders.iter().copied().filter(|holder| Some(*holder) != own).collect();
        let holders = here.map(|(key, holders)| (*key, without(holders))).collect();
        let mut trial = Quota {
            candidates: self.candidates,
            late: Some(late),
            grants: self.grants,
            holders,
            full: BTreeMap::new(),
        };
        trial.place(self.candidates.len(), &mut BTreeSet::new())
    }
}

fn conflict(loser: &Candidate<'_>, claim: Claim, holder: &Forward) -> Problem {
    // Other namespaces' objects may be unreadable for the loser: of them no name is told, and no port or address that the
    // loser did not name itself.
    let holder = if holder.key.namespace == loser.forward.key.namespace {
        format!("PortForward {}", holder.key.name)
    } else {
        "a forward of another namespace".to_owned()
    };
    Problem {
        field: "spec.ports".into(),
        reason: Reason::PortConflict,
        message: format!("{claim} is held by {holder}; choose another port or address, or wait until it is free"),
    }
}

fn over_quota(candidate: &Candidate<'_>, grants: &[Grant]) -> Problem {
    let full: Vec<String> = candidate
        .grants
        .iter()
        .map(|grant| {
            format!(
                "grant {} allows maxForwards {}",
                grants[*grant].name,
                grants[*grant].max_forwards.unwrap_or_default()
            )
        })
        .collect();
    Problem {
        field: "spec".into(),
        reason: Reason::QuotaExceeded,
        message: format!(
            "namespace {} already has as many forwards as it may: {}; delete one or ask the pool's admin",
            candidate.forward.key.namespace,
            full.join(", ")
        ),
    }
}
