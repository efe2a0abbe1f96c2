//! The `DaemonSet` of the agents: made, compared in a dry run, and put back when somebody changes it.
//!
//! The API server compares: a dry run that replaces the spec raises the generation only if something differs, whoever
//! wrote it and whether or not this version knows the field.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{Api, PostParams};
use kube::{Client, Resource as _};
use sallyport_api::id::Uid;
use sallyport_api::names::{AGENT_NAME, OPERATOR_NAME};
use sallyport_runtime::backoff::Backoff;
use sallyport_runtime::once::Once;
use tokio::time::{Instant, timeout};

use crate::controller::events::Events;
use crate::controller::send::REQUEST_TIMEOUT;
use crate::daemonset::{differing, has_labels, replaced};
use crate::leader::Leadership;
use crate::metrics::Metrics;

/// What somebody changes is put back so often within [`WINDOW`].
const TIMES: usize = 3;
/// How long it is counted what was put back.
const WINDOW: Duration = Duration::from_mins(1);
/// How long the `DaemonSet` is then left alone.
const TRUCE: Duration = Duration::from_mins(5);
/// Wait after the first failure; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_secs(32);

/// Keeps the one `DaemonSet` as it shall be.
pub(crate) struct Agents {
    api: Api<DaemonSet>,
    events: Events,
    leadership: Arc<Leadership>,
    metrics: Arc<Metrics>,
    /// Uid and generation of the form that was last seen to be right.
    settled: Option<(Uid, i64)>,
    /// When somebody's changes were put back.
    restored: Vec<Instant>,
    /// Left alone until then.
    truce: Option<Instant>,
    /// Not tried again until then, after a failure.
    retry: Option<Instant>,
    backoff: Backoff,
    trouble: Once,
}

impl Agents {
    /// Knows nothing of it yet.
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        events: Events,
        leadership: Arc<Leadership>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            events,
            leadership,
            metrics,
            settled: None,
            restored: Vec::new(),
            truce: None,
            retry: None,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            trouble: Once::default(),
        }
    }

    /// When to look again although nothing happens.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        [self.truce, self.retry].into_iter().flatten().min().filter(|_| self.leadership.is_valid())
    }

    /// Makes it as it shall be, if it is not known to be so already. What was written, if anything; a failure is told, and
    /// tried again later.
    pub(crate) async fn settle(&mut self, existing: Option<&DaemonSet>, wanted: &DaemonSet) -> Option<DaemonSet> {
        for wait in [&mut self.truce, &mut self.retry] {
            *wait = wait.filter(|until| *until > Instant::now());
        }
        let right = existing.is_some_and(|set| has_labels(set, wanted) && self.settled == form(set));
        let left_alone = existing.is_some() && self.truce.is_some();
        if right || left_alone || self.retry.is_some() {
            return None;
        }
        let error = match timeout(REQUEST_TIMEOUT, self.write(existing, wanted)).await {
            Ok(Ok(written)) => {
                self.backoff.reset();
                self.trouble.clear();
                return written;
            }
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => {
                // Somebody else was quicker; nothing is wrong.
                self.retry = Some(Instant::now() + FIRST_WAIT);
                return None;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server did not answer in time".to_owned(),
        };
        if self.trouble.is_news(&error) {
            tracing::warn!(error, "cannot write the DaemonSet of the agents; trying again");
        }
        self.retry = Some(Instant::now() + self.backoff.failed());
        None
    }

    async fn write(
        &mut self,
        existing: Option<&DaemonSet>,
        wanted: &DaemonSet,
    ) -> Result<Option<DaemonSet>, kube::Error> {
        let params = PostParams { field_manager: Some(OPERATOR_NAME.into()), dry_run: false };
        let Some(existing) = existing else {
            let made = self.api.create(&params, wanted).await?;
            self.metrics.wrote("daemonsets");
            self.settled = form(&made);
            return Ok(Some(made));
        };
        let whole = replaced(existing, wanted);
        let dry = PostParams { dry_run: true, ..params.clone() };
        let compared = self.api.replace(AGENT_NAME, &dry, &whole).await?;
        if has_labels(existing, wanted) && form(&compared) == form(existing) {
            self.settled = form(existing);
            return Ok(None);
        }
        let what = differing(existing, &compared).join(", ");
        // At the start it is a template of another version that differs, as a rule.
        let by_somebody = self.settled.is_some();
        if by_somebody && !self.may_restore() {
            self.warn(existing, "DaemonSetContested", format!(
                "put back {TIMES} times within a minute, and somebody changed it again: {what}. It is left so for {} minutes",
                TRUCE.as_secs() / 60
            ));
            return Ok(None);
        }
        if !self.leadership.is_valid() {
            return Ok(None);
        }
        let written = self.api.replace(AGENT_NAME, &params, &whole).await?;
        self.metrics.wrote("daemonsets");
        self.settled = form(&written);
        if by_somebody {
            self.restored.push(Instant::now());
            self.warn(existing, "DaemonSetRestored", format!("somebody had changed {what}, which is put back"));
        } else {
            tracing::info!(what, "the DaemonSet of the agents is brought up to date");
        }
        Ok(Some(written))
    }

    /// Whether somebody's change may be put back; if not, it is left alone for a while.
    fn may_restore(&mut self) -> bool {
        self.restored.retain(|then| then.elapsed() < WINDOW);
        self.truce = (self.restored.len() >= TIMES).then(|| Instant::now() + TRUCE);
        self.truce.is_none()
    }

    fn warn(&self, about: &DaemonSet, reason: &str, note: String) {
        tracing::warn!(reason, "the DaemonSet of the agents: {note}");
        self.events.warn(about.object_ref(&()), reason, note);
    }
}

/// Uid and generation: a form of the spec.
fn form(set: &DaemonSet) -> Option<(Uid, i64)> {
    Some((set.metadata.uid.as_deref()?.into(), set.metadata.generation?))
}

#[cfg(test)]
mod tests;
