//! Sends writes: a few at a time, each object one at a time, and a failed one again later.
//!
//! Each pass replaces what waits; what is under way ends by itself and is then part of the store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kube::Client;
use sallyport_runtime::backoff::Backoff;
use sallyport_runtime::once::Once;
use tokio::time::{Instant, timeout};

use crate::controller::events::Events;
use crate::controller::send::{REQUEST_TIMEOUT, send};
use crate::controller::write::{Answer, ObjectKey, Write};
use crate::leader::Leadership;
use crate::metrics::Metrics;

/// Writes under way at once.
const AT_ONCE: usize = 16;
/// Wait after the first failure of a write; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
/// Writes of one object within a second; more of them wait, and are one by then.
const PACE: u32 = 20;

type Sent = (ObjectKey, Write, Result<Answer, Trouble>);

/// Why a write failed.
struct Trouble {
    why: String,
    /// Somebody else was quicker; nothing is wrong.
    outdated: bool,
    /// The API server takes no write of this object as it is.
    invalid: bool,
}

/// What waits to be written and what is under way.
pub(crate) struct Writer {
    client: Client,
    events: Events,
    leadership: Arc<Leadership>,
    metrics: Arc<Metrics>,
    waiting: VecDeque<Write>,
    under_way: FuturesUnordered<BoxFuture<'static, Sent>>,
    busy: BTreeSet<ObjectKey>,
    failed: BTreeMap<ObjectKey, Failed>,
    /// Since when, and how often, each object was written.
    pace: BTreeMap<ObjectKey, (Instant, u32)>,
    /// Whether a write was left out because its object was busy.
    left_out: bool,
}

struct Failed {
    write: Write,
    backoff: Backoff,
    until: Instant,
    why: Once,
}

impl Writer {
    /// Has nothing to write.
    pub(crate) fn new(client: Client, events: Events, leadership: Arc<Leadership>, metrics: Arc<Metrics>) -> Self {
        let (waiting, under_way, busy, failed, pace) = Default::default();
        Self { client, events, leadership, metrics, waiting, under_way, busy, failed, pace, left_out: false }
    }

    /// Replaces what waits, first come first.
    pub(crate) fn want(&mut self, writes: Vec<Write>) {
        let objects: BTreeSet<ObjectKey> = writes.iter().map(Write::object).collect();
        self.failed.retain(|object, _| objects.contains(object));
        self.waiting = writes.into();
        self.left_out = false;
        self.pace.retain(|_, (since, _)| since.elapsed() < SECOND);
        self.start();
    }

    /// Whether nothing waits, is under way, or has failed, apart from statuses that could not be told.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.busy.is_empty() && !self.failed.values().any(|failed| failed.write.matters())
    }

    /// When the next failed write may be tried again.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        if !self.leadership.is_valid() || self.busy.len() >= AT_ONCE {
            return None;
        }
        let paced = self.pace.values().filter(|(_, times)| *times >= PACE).map(|(since, _)| *since + SECOND);
        self.failed.values().map(|failed| failed.until).chain(paced).min()
    }

    /// The next answer, and whether it is a reason to decide again; pending while nothing is under way. Cancel-safe.
    pub(crate) async fn next(&mut self) -> (Option<Answer>, bool) {
        let Some((object, write, answer)) = self.under_way.next().await else { return std::future::pending().await };
        self.busy.remove(&object);
        let mut again = std::mem::take(&mut self.left_out);
        let answer = match answer {
            Ok(answer) => {
                self.failed.remove(&object);
                again |= write.matters();
                if let Write::ForwardStatus(report) = &write {
                    self.events.record(report);
                }
                Some(answer)
            }
            Err(trouble) => {
                self.put_off(object, write, trouble);
                None
            }
        };
        self.start();
        (answer, again)
    }

    fn put_off(&mut self, object: ObjectKey, write: Write, Trouble { why, outdated, invalid }: Trouble) {
        let (mut backoff, mut logged) = match self.failed.remove(&object) {
            Some(before) => (before.backoff, before.why),
            None => (Backoff::new(FIRST_WAIT, LONGEST_WAIT), Once::default()),
        };
        if logged.is_news(&why) && !outdated {
            tracing::warn!(subject = %object, why, "write failed; trying again");
            if let (Write::ForwardStatus(report), true) = (&write, invalid) {
                // Of an object on which a rule of its schema fails not even the status can be written: an Event can.
                self.events.record(report);
            }
        }
        let until = Instant::now() + backoff.failed();
        self.failed.insert(object, Failed { write, backoff, until, why: logged });
    }

    fn start(&mut self) {
        // Whoever does not lead for certain must not begin to write.
        if !self.leadership.is_valid() {
            return;
        }
        while self.busy.len() < AT_ONCE {
            let Some(write) = self.waiting.pop_front() else { break };
            let object = write.object();
            let not_yet = self.failed.get(&object).is_some_and(|failed| {
                // What failed for being outdated is another write by now.
                failed.write == write && failed.until > Instant::now()
            });
            if not_yet {
                continue;
            }
            let pace = self.pace.entry(object.clone()).or_insert_with(|| (Instant::now(), 0));
            if pace.0.elapsed() >= SECOND {
                *pace = (Instant::now(), 0);
            }
            if pace.1 >= PACE {
                continue;
            }
            if self.busy.contains(&object) {
                self.left_out = true;
                continue;
            }
            pace.1 += 1;
            self.busy.insert(object.clone());
            self.metrics.wrote(write.resource());
            let client = self.client.clone();
            self.under_way.push(Box::pin(async move {
                let answer = match timeout(REQUEST_TIMEOUT, send(write.clone(), client)).await {
                    Ok(Ok(answer)) => Ok(answer),
                    Ok(Err(kube::Error::Api(status))) => {
                        let outdated = status.is_conflict() || status.is_already_exists() || status.is_not_found();
                        Err(Trouble { why: status.message.clone(), outdated, invalid: status.code == 422 })
                    }
                    Ok(Err(error)) => Err(Trouble { why: error.to_string(), outdated: false, invalid: false }),
                    Err(_) => {
                        let why = "the API server did not answer in time".to_owned();
                        Err(Trouble { why, outdated: false, invalid: false })
                    }
                };
                (object, write, answer)
            }));
        }
    }
}

#[cfg(test)]
mod tests;
