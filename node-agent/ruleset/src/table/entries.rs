//! The forwards of a forwarding table: which of them are carried, and what stands in the way of the others.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use sallyport_api::SourceNatMode;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::id::{Moment, Uid};
use sallyport_policy::claim::{Claim, ClaimTable};

use crate::facts::LocalAddress;
use crate::table::{Failure, TableChange};

/// A forward in a table. They stand in the order of their references, then of their uids.
#[derive(Clone, Debug)]
pub struct Entry {
    forward: Arc<SliceForward>,
    /// A forged slice may hold several of one reference and uid.
    copy: u32,
}

impl Entry {
    fn of(forward: &Arc<SliceForward>, copy: u32) -> Self {
        Self { forward: Arc::clone(forward), copy }
    }

    fn key(&self) -> (&ForwardRef, &Uid, u32) {
        (&self.r#ref, &self.uid, self.copy)
    }

    /// What tells it from all others that hold claims.
    fn holder(&self) -> Holder {
        (Arc::as_ptr(&self.forward).addr(), self.copy)
    }
}

impl Deref for Entry {
    type Target = SliceForward;

    fn deref(&self) -> &SliceForward {
        &self.forward
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

type Holder = (usize, u32);

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Entries {
    all: BTreeSet<Entry>,
    failed: BTreeMap<Entry, Failure>,
    /// What those that are carried hold.
    claims: ClaimTable<Holder>,
    /// How many failed because another one holds a port.
    conflicts: usize,
    /// How many there are of each uid, and how many uids there are several of.
    uids: BTreeMap<Uid, u32>,
    repeated: usize,
    /// Those that have not expired and will, by when.
    expiring: BTreeMap<Moment, BTreeSet<Entry>>,
    /// How many forwards have each target, and of those with `Preserve`.
    targets: BTreeMap<IpAddr, u32>,
    preserved: BTreeMap<IpAddr, u32>,
    now: Moment,
    /// Whether nothing is carried, whatever there is.
    resting: bool,
}

impl Entries {
    /// Whether nothing is to be carried, from the next update on, which has to be `anew`.
    pub(super) fn rest(&mut self, resting: bool) {
        self.resting = resting;
    }

    /// Those that are carried, in order.
    pub(super) fn carried(&self) -> impl Iterator<Item = &Entry> {
        let failed = |entry: &Entry| !self.failed.is_empty() && self.failed.contains_key(entry);
        self.all.iter().filter(move |entry| !self.resting && !failed(entry))
    }

    /// Why the others are not, in order.
    pub(super) fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.failed.values()
    }

    /// Whether it matters to any of them that this is an address of the node.
    pub(super) fn concerns(&self, own: &LocalAddress) -> bool {
        let link = own.network();
        self.targets.contains_key(&own.ip)
            || own.broadcast().is_some_and(|ip| self.targets.contains_key(&ip))
            || self.preserved.range(link.network()..=link.broadcast()).next().is_some()
    }

    /// Takes out those in `gone` and in those in `come`. Judged are only these and those that have expired by `now`,
    /// unless all of them have to be, `anew` or because what one holds may decide about another.
    pub(super) fn update(
        &mut self,
        gone: &[Arc<SliceForward>],
        come: &[Arc<SliceForward>],
        anew: bool,
        now: Moment,
        check: &dyn Fn(&SliceForward) -> Option<(Reason, String)>,
    ) -> TableChange {
        let mut anew = anew || now < self.now || self.conflicts > 0 || self.repeated > 0;
        self.now = now;
        let mut change = TableChange::default();
        for forward in gone {
            change.gone.extend(self.take_out(forward));
        }
        let mut unjudged: BTreeSet<Entry> = come.iter().map(|forward| self.put_in(forward)).collect();
        anew |= self.repeated > 0;
        if !anew && !self.resting {
            let later = self.expiring.split_off(&Moment(now.0.saturating_add(1)));
            for entry in std::mem::replace(&mut self.expiring, later).into_values().flatten() {
                if self.failed.remove(&entry).is_none() {
                    self.claims.remove(&Claim::of(&entry.intent), entry.holder());
                    change.gone.push(entry.clone());
                }
                unjudged.insert(entry);
            }
            for entry in unjudged {
                match self.judge(&entry, check) {
                    Ok(()) => change.come.push(entry),
                    Err(failure) => {
                        // It stands before the other one, or after it.
                        anew |= failure.reason == Reason::PortConflict;
                        self.failed.insert(entry, failure);
                    }
                }
            }
        }
        if anew {
            self.judge_all(check);
            change = TableChange { is_new: true, gone: Vec::new(), come: self.carried().cloned().collect() };
        }
        change
    }

    fn judge_all(&mut self, check: &dyn Fn(&SliceForward) -> Option<(Reason, String)>) {
        self.failed.clear();
        self.claims = ClaimTable::default();
        self.expiring.clear();
        self.conflicts = 0;
        if self.resting {
            return;
        }
        for entry in self.all.clone() {
            if let Err(failure) = self.judge(&entry, check) {
                self.conflicts += usize::from(failure.reason == Reason::PortConflict);
                self.failed.insert(entry, failure);
            }
        }
    }

    /// Gives `entry` what it claims, if nothing is in its way.
    fn judge(
        &mut self,
        entry: &Entry,
        check: &dyn Fn(&SliceForward) -> Option<(Reason, String)>,
    ) -> Result<(), Failure> {
        if let Some(end) = entry.intent.expires_at.filter(|end| *end > self.now) {
            self.expiring.entry(end).or_default().insert(entry.clone());
        }
        let claims = Claim::of(&entry.intent);
        let refusal = check(entry).or_else(|| {
            let (claim, _) = self.claims.conflict(&claims, entry.holder())?;
            let message = format!(
                "{claim} is already programmed for another forward; wait until that one is gone, or choose another port"
            );
            Some((Reason::PortConflict, message))
        });
        if let Some((reason, message)) = refusal {
            return Err(Failure { forward: entry.r#ref.clone(), reason, message });
        }
        self.claims.insert(&claims, entry.holder());
        Ok(())
    }

    /// Those with the reference and the uid of `forward`.
    fn copies(&self, forward: &Arc<SliceForward>) -> impl DoubleEndedIterator<Item = &Entry> {
        self.all.range(Entry::of(forward, 0)..=Entry::of(forward, u32::MAX))
    }

    fn put_in(&mut self, forward: &Arc<SliceForward>) -> Entry {
        let last = self.copies(forward).next_back();
        let entry = Entry::of(forward, last.map_or(0, |last| last.copy + 1));
        self.all.insert(entry.clone());
        let with_uid = self.uids.entry(forward.uid.clone()).or_default();
        *with_uid += 1;
        self.repeated += usize::from(*with_uid == 2);
        for target in &forward.intent.targets {
            *self.targets.entry(target.ip).or_default() += 1;
            if forward.intent.source_nat == SourceNatMode::Preserve {
                *self.preserved.entry(target.ip).or_default() += 1;
            }
        }
        entry
    }

    /// Takes out `forward`; what was carried of it is given back.
    fn take_out(&mut self, forward: &Arc<SliceForward>) -> Option<Entry> {
        let entry = self.copies(forward).find(|entry| entry.forward == *forward)?.clone();
        self.all.remove(&entry);
        if let Some(with_uid) = self.uids.get_mut(&forward.uid) {
            *with_uid -= 1;
            self.repeated -= usize::from(*with_uid == 1);
            if *with_uid == 0 {
                self.uids.remove(&forward.uid);
            }
        }
        for target in &forward.intent.targets {
            less(&mut self.targets, target.ip);
            if forward.intent.source_nat == SourceNatMode::Preserve {
                less(&mut self.preserved, target.ip);
            }
        }
        if let Some(end) = entry.intent.expires_at
            && let Some(others) = self.expiring.get_mut(&end)
        {
            others.remove(&entry);
        }
        if self.failed.remove(&entry).is_some() || self.resting {
            return None;
        }
        self.claims.remove(&Claim::of(&entry.intent), entry.holder());
        Some(entry)
    }
}

/// One less of `key`.
fn less(counted: &mut BTreeMap<IpAddr, u32>, key: IpAddr) {
    if let Some(count) = counted.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counted.remove(&key);
        }
    }
}
