//! Each forward by itself: what it asks of which pool, and whether it may ask that.
//!
//! Who gets what several forwards want is not here: `arbitrate` decides that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sallyport_api::Mode;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_pool::GatewayPoolSpec;
use sallyport_api::id::{Moment, Uid};
use sallyport_api::intent::Intent;

use crate::candidate::Candidate;
use crate::claim::{ByPlace, Claim};
use crate::digest;
use crate::expiry::has_expired;
use crate::observed::{Forward, Observed};
use crate::pool::{Labels, Lifetime, Pool};
use crate::validate::{Problem, revalidate, validate};

/// The forwards that want something of one pool.
#[derive(Default)]
pub struct Candidates<'a> {
    /// Those whose wish is to be fulfilled.
    pub active: Vec<Candidate<'a>>,
    /// What forwards that are not to be applied would want.
    pub proposed: Vec<Candidate<'a>>,
}

/// A pool that has no problem of its own.
pub struct UsablePool<'a> {
    /// When it was created.
    pub created: Moment,
    /// What it offers, typed.
    pub typed: Pool,
    /// The same as its admin wrote it.
    pub spec: &'a GatewayPoolSpec,
}

/// The usable pools by name.
pub type Pools<'a> = BTreeMap<String, UsablePool<'a>>;

/// What a slice holds for a forward.
#[derive(Clone, Copy)]
struct Held<'a> {
    /// The pool whose nodes carry it.
    pool: &'a str,
    entry: &'a SliceForward,
}

/// Judges one forward after the other.
pub struct Judge<'a> {
    pools: &'a Pools<'a>,
    observed: &'a Observed<'a>,
    gateways: &'a BTreeSet<IpAddr>,
    /// What the slices hold for each uid.
    held: BTreeMap<&'a Uid, Vec<Held<'a>>>,
    /// When forwards expire or did; those only that could hold otherwise.
    pub expiries: BTreeMap<ForwardRef, Moment>,
}

impl<'a> Judge<'a> {
    /// Has judged nobody yet.
    pub fn new(pools: &'a Pools<'a>, observed: &'a Observed<'a>, gateways: &'a BTreeSet<IpAddr>) -> Self {
        Self { pools, observed, gateways, held: held(observed.slices), expiries: BTreeMap::new() }
    }

    /// Lets a forward take part where it may, or says why not.
    pub fn evaluate(
        &mut self,
        forward: &'a Forward,
        candidates: &mut BTreeMap<&'a str, Candidates<'a>>,
    ) -> Result<(), Vec<Problem>> {
        let spec = match &forward.spec {
            Ok(spec) => spec,
            Err(unreadable) => {
                // One that cannot be read asks for what it has.
                let held = self.newest_held(forward, None).ok_or_else(|| vec![unreadable.clone()])?;
                let keeping = self.keeping(forward, held, forward.generation)?;
                candidates.entry(held.pool).or_default().active.push(keeping);
                return Ok(());
            }
        };
        let asked = spec.pool.as_str();
        let wanted = validate(spec).and_then(|intent| self.candidate(forward, asked, intent, forward.generation));
        if spec.mode == Mode::Apply {
            let wanted = wanted?;
            candidates.entry(asked).or_default().active.push(wanted);
            return Ok(());
        }
        // One that is not to be applied contends for what it has, and only proposes what its spec asks beyond that.
        if let Some(held) = self.newest_held(forward, Some(asked)) {
            match self.keeping(forward, held, held.entry.generation) {
                Ok(keeping) => {
                    let asks_it = |wanted: &Candidate<'_>| wanted.entry.intent == keeping.entry.intent;
                    let same = held.pool == asked && wanted.as_ref().is_ok_and(asks_it);
                    candidates.entry(held.pool).or_default().active.push(Candidate { keeps: !same, ..keeping });
                    if same {
                        return Ok(());
                    }
                }
                Err(found) => {
                    let mut problems = wanted.err().unwrap_or_default();
                    let more: Vec<Problem> = found.into_iter().filter(|found| !problems.contains(found)).collect();
                    problems.extend(more.into_iter().map(no_longer_allowed));
                    return Err(problems);
                }
            }
        }
        let wanted = wanted?;
        candidates.entry(asked).or_default().proposed.push(wanted);
        Ok(())
    }

    /// What the slices hold for a forward: the newest form, and of the pool that it asks for if it is in several.
    fn newest_held(&self, forward: &Forward, asked: Option<&str>) -> Option<Held<'a>> {
        let held = self.held.get(&forward.uid)?;
        held.iter().copied().max_by_key(|held| (Some(held.pool) == asked, held.entry.generation))
    }

    /// A forward that asks for what it has, held to what could be asked for today.
    fn keeping(
        &mut self,
        forward: &'a Forward,
        held: Held<'_>,
        generation: i64,
    ) -> Result<Candidate<'a>, Vec<Problem>> {
        let intent = revalidate(held.pool, &held.entry.intent)?;
        self.candidate(forward, held.pool, intent, generation)
    }

    /// A forward that asks the pool `name` for `intent`, if nothing but other forwards can be in its way.
    fn candidate(
        &mut self,
        forward: &'a Forward,
        name: &str,
        mut intent: Intent,
        generation: i64,
    ) -> Result<Candidate<'a>, Vec<Problem>> {
        let Some(UsablePool { typed: pool, .. }) = self.pools.get(name) else {
            let known = self.observed.pools.iter().any(|pool| pool.name == name);
            let message = if known {
                format!("pool {name} has problems of its own; its admin must mend it first")
            } else {
                format!("there is no GatewayPool {name}; correct the name or ask for the pool")
            };
            return Err(vec![Problem { field: "spec.pool".into(), reason: Reason::PoolNotFound, message }]);
        };
        let mut problems = pool.check(&intent);
        problems.extend(self.refused_target(&intent));
        let namespace = forward.key.namespace.as_str();
        let unlabelled = Labels::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
        let labels = self.observed.namespaces.get(namespace).unwrap_or(&unlabelled);
        let covering = match pool.covering(namespace, labels, &intent) {
            Ok(covering) if problems.is_empty() => covering,
            outcome => {
                problems.extend(outcome.err());
                return Err(problems);
            }
        };
        let Lifetime { grants, expires_at, limit } = pool.lifetime(&covering, forward.created, intent.expires_at);
        intent.expires_at = expires_at;
        match expires_at {
            Some(expiry) => self.expiries.insert(forward.key.clone(), expiry),
            None => self.expiries.remove(&forward.key),
        };
        if has_expired(&intent, self.observed.now) {
            return Err(vec![expired(&intent, limit)]);
        }
        let claims = Claim::of(&intent);
        let held = self.held.get(&forward.uid).into_iter().flatten().filter(|held| held.pool == name);
        let before: Vec<&Intent> = held.map(|held| &held.entry.intent).collect();
        let unchanged = before.contains(&&intent);
        let held = before.iter().flat_map(|intent| Claim::of(intent));
        let wanted = ByPlace::of(&claims);
        let held: Vec<Claim> = held.filter(|held| wanted.any(held, |claim| claim.overlaps(held))).collect();
        let has = ByPlace::of(&held);
        let fresh = claims.iter().filter(|claim| !has.any(claim, |held| claim.is_within(held))).copied().collect();
        let entry = SliceForward {
            uid: forward.uid.clone(),
            r#ref: forward.key.clone(),
            generation,
            hash: digest::intent_hash(&intent),
            intent,
        };
        let entry = Arc::new(entry);
        Ok(Candidate { forward, entry, keeps: false, unchanged, claims, held, fresh, grants })
    }

    /// A target that only who sees the whole cluster can refuse.
    fn refused_target(&self, intent: &Intent) -> Vec<Problem> {
        let problem = |message| Problem { field: "spec.targets".into(), reason: Reason::InvalidTarget, message };
        let gateway =
            intent.targets.iter().find(|target| self.gateways.contains(&target.ip)).map(|target| {
                problem(format!("{} is an address of a gateway; a target must be another host", target.ip))
            });
        let cluster = intent.targets.iter().find_map(|target| {
            let net = self.observed.forbidden.iter().find(|net| net.contains(&target.ip))?;
            Some(problem(format!(
                "{} is in {net}, which belongs to the cluster itself (API server, Services); choose another target",
                target.ip
            )))
        });
        gateway.into_iter().chain(cluster).collect()
    }
}

fn held(slices: &BTreeMap<String, ForwardSliceSpec>) -> BTreeMap<&Uid, Vec<Held<'_>>> {
    let mut held: BTreeMap<&Uid, Vec<Held<'_>>> = BTreeMap::new();
    for slice in slices.values() {
        for entry in &slice.forwards {
            held.entry(&entry.uid).or_default().push(Held { pool: &slice.pool, entry });
        }
    }
    held
}

/// `limit` is that of the grant, if not the forward itself says when.
fn expired(intent: &Intent, limit: Option<String>) -> Problem {
    let at = intent.expires_at.unwrap_or_default();
    let (field, message) = match limit {
        None => ("spec.expiresAt", format!("expired at {at}; set a later moment, or delete the forward")),
        Some(limit) => (
            "spec",
            format!("expired at {at}: {limit} from its creation; create it anew, or ask the pool's admin for longer"),
        ),
    };
    Problem { field: field.into(), reason: Reason::Expired, message }
}

fn no_longer_allowed(problem: Problem) -> Problem {
    Problem { message: format!("what was kept is not allowed any more: {}", problem.message), ..problem }
}
