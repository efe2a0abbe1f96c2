//! Writes the status of the `GatewayNode`, beside the loop: a pass never waits for the API server.
//!
//! The newest status wins. It is written when the object in the API differs from it, and again until that succeeds.

use std::time::Duration;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use sallyport_api::gateway_node::{GatewayNode, GatewayNodeStatus};
use sallyport_api::names::AGENT_NAME;
use sallyport_runtime::backoff::Backoff;
use sallyport_runtime::once::Once;
use sallyport_runtime::tasks::Tasks;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::source::cluster::request::within;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// What the watch last showed of the object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Whether it is there.
    pub there: bool,
    /// How often it was listed: a list is newer than whatever was written before it.
    pub listing: u64,
    /// Its `resourceVersion`, as a number.
    pub version: u64,
    /// Its status.
    pub status: Option<GatewayNodeStatus>,
}

impl Seen {
    /// Reads it off an object.
    #[must_use]
    pub(crate) fn of(object: &DynamicObject, listing: u64) -> Self {
        Self { there: true, listing, version: version(object), status: status(&object.data) }
    }
}

/// What a write left behind.
struct Written {
    wanted: GatewayNodeStatus,
    /// The status in the API server's answer: not `wanted` if an older schema dropped a field.
    answer: Option<GatewayNodeStatus>,
    listing: u64,
    version: u64,
}

/// Where the loop leaves what shall be written, and what was seen.
#[derive(Debug)]
pub(crate) struct StatusWriter {
    wanted: watch::Sender<Option<GatewayNodeStatus>>,
    seen: watch::Sender<Seen>,
}

impl StatusWriter {
    /// Starts the task that writes the status of the `GatewayNode` called `name`.
    #[must_use]
    pub(crate) fn start(tasks: &mut Tasks, nodes: Api<DynamicObject>, name: String) -> Self {
        let (wanted, wanted_by) = watch::channel(None);
        let (seen, seen_by) = watch::channel(Seen::default());
        tasks.spawn("status", write(nodes, name, wanted_by, seen_by));
        Self { wanted, seen }
    }

    /// The object shall have this status.
    pub(crate) fn want(&self, status: GatewayNodeStatus) {
        self.wanted.send_if_modified(|wanted| {
            let new = wanted.as_ref() != Some(&status);
            *wanted = Some(status);
            new
        });
    }

    /// The watch showed this.
    pub(crate) fn saw(&self, seen: Seen) {
        self.seen.send_replace(seen);
    }

    /// What the watch last showed.
    #[must_use]
    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }
}

async fn write(
    nodes: Api<DynamicObject>,
    name: String,
    mut wanted: watch::Receiver<Option<GatewayNodeStatus>>,
    mut seen: watch::Receiver<Seen>,
) {
    let mut written: Option<Written> = None;
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut failure: Once = Once::default();
    loop {
        let now = seen.borrow_and_update().clone();
        let status = wanted.borrow_and_update().clone().filter(|status| is_due(status, &now, written.as_ref()));
        let Some(status) = status else {
            let ended = tokio::select! {
                outcome = wanted.changed() => outcome.is_err(),
                outcome = seen.changed() => outcome.is_err(),
            };
            if ended {
                return;
            }
            continue;
        };
        let params = PatchParams::apply(AGENT_NAME).force();
        match within(nodes.patch_status(&name, &params, &Patch::Apply(&body(&name, &status)))).await {
            Ok(answer) => {
                let (version, answer) = (version(&answer), self::status(&answer.data));
                written = Some(Written { wanted: status, answer, listing: now.listing, version });
                backoff.reset();
                failure.clear();
            }
            Err(error) => {
                let error = error.to_string();
                if failure.is_news(&error) {
                    tracing::warn!(error, "cannot write the status of GatewayNode {name}; trying again");
                }
                // A sign of life from the API server is reason enough to try at once.
                let _ = tokio::time::timeout(backoff.failed(), seen.changed()).await;
            }
        }
    }
}

/// Whether `wanted` has to be written over what is in the API.
fn is_due(wanted: &GatewayNodeStatus, seen: &Seen, written: Option<&Written>) -> bool {
    let Some(written) = written else { return seen.there && seen.status.as_ref() != Some(wanted) };
    // The watch may be behind what was written, unless the object was listed since.
    let behind = seen.listing == written.listing && seen.version < written.version;
    let current = if behind { &written.answer } else { &seen.status };
    seen.there && current.as_ref() != Some(wanted) && (written.wanted != *wanted || *current != written.answer)
}

fn body(name: &str, status: &GatewayNodeStatus) -> Value {
    use kube::Resource as _;
    json!({
        "apiVersion": GatewayNode::api_version(&()),
        "kind": GatewayNode::kind(&()),
        "metadata": { "name": name },
        "status": status,
    })
}

/// Numbers in every API server there is; what is none counts as new.
fn version(object: &DynamicObject) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(u64::MAX)
}

/// `None` also for what this version does not understand, which is then written over.
fn status(data: &Value) -> Option<GatewayNodeStatus> {
    GatewayNodeStatus::deserialize(data.get("status")?).ok()
}

#[cfg(test)]
mod tests;
