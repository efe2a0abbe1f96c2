//! Leadership: one replica acts, the others wait.
//!
//! The rules are those of client-go: a holder counts as gone only when its `Lease` was seen unchanged for as long as it
//! lasts, by our own clock; whoever takes it writes with the resource version that was read, so a lost race is a refusal.

use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use sallyport_runtime::once::Once;
use tokio::time::{Instant, timeout};

/// How long a lease lasts that is not renewed.
const LEASE: Duration = Duration::from_secs(15);
/// After this long without a renewal that worked, the leader stops.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time between two tries to take or renew it.
const RETRY: Duration = Duration::from_secs(2);
/// Longest time that one try may take.
const TRY: Duration = Duration::from_secs(4);

/// A lease, whoever holds it.
#[derive(Debug)]
pub(crate) struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// Holder and renewal as last seen, and since when.
    seen: Mutex<Option<Seen>>,
    /// When the last renewal that worked was begun.
    renewed: Mutex<Option<Instant>>,
    /// The resource version of what was last written, if that is known.
    written: Mutex<Option<String>>,
    /// What the API server's clock said, and when.
    clock: Mutex<Option<(Timestamp, Instant)>>,
}

/// A lease of somebody else.
#[derive(Debug)]
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    since: Instant,
}

impl Leadership {
    /// Knows nothing of the lease yet.
    pub(crate) fn new(api: Api<Lease>, name: &str, identity: &str) -> Self {
        let (seen, renewed, written, clock) = Default::default();
        Self { api, name: name.to_owned(), identity: identity.to_owned(), seen, renewed, written, clock }
    }

    /// Returns when the lease is ours.
    pub(crate) async fn acquire(&self) {
        let mut logged = Once::default();
        loop {
            match self.round().await {
                Ok(None) => return,
                Ok(Some(holder)) => {
                    if logged.is_news(&holder) {
                        tracing::info!(holder, "waiting: another replica leads");
                    }
                }
                Err(error) => tracing::warn!(error, lease = self.name, "cannot take the lease; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews the lease; returns when it is lost.
    pub(crate) async fn keep(&self) {
        while self.is_valid() {
            tokio::time::sleep(RETRY).await;
            match self.round().await {
                Ok(None) => {}
                Ok(Some(holder)) => {
                    tracing::error!(holder, "the lease is lost");
                    *lock(&self.renewed) = None;
                }
                Err(error) => tracing::warn!(error, lease = self.name, "cannot renew the lease; trying again"),
            }
        }
    }

    /// Whether it is certain that nobody else leads.
    pub(crate) fn is_valid(&self) -> bool {
        lock(&self.renewed).is_some_and(|at| at.elapsed() < DEADLINE)
    }

    /// The time by the API server's clock, as far as that is known: ours may be wrong, and what is read off the objects of
    /// the cluster was not written by it.
    pub(crate) fn now(&self) -> Timestamp {
        let clock = *lock(&self.clock);
        let by_server = clock.and_then(|(time, at)| time.checked_add(at.elapsed()).ok());
        by_server.unwrap_or_else(Timestamp::now)
    }

    /// Hands the lease back, so that another replica need not wait until it runs out.
    pub(crate) async fn release(&self) {
        if lock(&self.renewed).take().is_none() {
            return;
        }
        let handed_back = async {
            let mut lease = self.api.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() == Some(&self.identity) {
                spec.holder_identity = None;
                self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        if !matches!(timeout(TRY, handed_back).await, Ok(Ok(()))) {
            tracing::warn!(lease = self.name, "could not hand the lease back; it runs out by itself");
        }
    }

    /// One try; `None` if the lease is ours now, else who holds it.
    async fn round(&self) -> Result<Option<String>, String> {
        let begun = Instant::now();
        match timeout(TRY, self.take()).await {
            Ok(Ok(None)) => {
                *lock(&self.renewed) = Some(begun);
                Ok(None)
            }
            Ok(Ok(holder)) => Ok(holder),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }

    async fn take(&self) -> Result<Option<String>, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let lasts = i32::try_from(LEASE.as_secs()).unwrap_or(i32::MAX);
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let spec = LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(lasts),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            };
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let created = self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await;
            return self.wrote(created);
        };
        // Whoever holds it is the only one to write it.
        let written = lock(&self.written).take();
        if written.is_some() && written != lease.metadata.resource_version {
            return Ok(Some("nobody knows: it is not as we wrote it; was the cluster restored?".to_owned()));
        }
        let spec = lease.spec.get_or_insert_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        if holder.as_ref() != Some(&self.identity) {
            if let Some(holder) = &holder
                && !self.has_run_out(holder, spec)
            {
                return Ok(Some(holder.clone()));
            }
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(lasts);
        spec.renew_time = Some(now);
        // The resource version that was read goes back with it.
        let replaced = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        self.wrote(replaced)
    }

    /// What came of taking or renewing the lease.
    fn wrote(&self, answer: Result<Lease, kube::Error>) -> Result<Option<String>, kube::Error> {
        match answer {
            Ok(lease) => {
                // Whoever writes cannot choose the time that is noted there.
                let noted = lease.metadata.managed_fields.into_iter().flatten().filter_map(|entry| entry.time);
                if let Some(time) = noted.map(|time| time.0).max() {
                    *lock(&self.clock) = Some((time, Instant::now()));
                }
                *lock(&self.written) = lease.metadata.resource_version;
                Ok(None)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(Some("a replica that was quicker".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    fn has_run_out(&self, holder: &str, spec: &LeaseSpec) -> bool {
        let mut seen = lock(&self.seen);
        match &*seen {
            Some(Seen { holder: by, renewed, since }) if by == holder && *renewed == spec.renew_time => {
                let lasts = spec.lease_duration_seconds.and_then(|lasts| u64::try_from(lasts).ok());
                since.elapsed() >= lasts.map_or(LEASE, Duration::from_secs)
            }
            _ => {
                *seen =
                    Some(Seen { holder: holder.to_owned(), renewed: spec.renew_time.clone(), since: Instant::now() });
                false
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
