//! Whether the definitions of forwards and pools are there to stay.
//!
//! Deleting one deletes every object of its kind, of every user. What is kept then is in `retention`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::{Client, CustomResourceExt as _};
use sallyport_api::{GatewayPool, NodeState, PortForward};
use sallyport_runtime::once::Once;
use tokio::time::timeout;

use crate::controller::retention::Retention;
use crate::controller::rollout::SliceRevisions;
use crate::controller::send::REQUEST_TIMEOUT;
use crate::controller::store::Store;

/// Why a definition may not be there to stay.
struct Going {
    /// Whether it goes, or that could not be asked.
    certain: bool,
    why: String,
}

/// Asks for definitions when objects of theirs go, and remembers which pools went with theirs.
pub(crate) struct Definitions {
    client: Client,
    /// Why objects that are deleted are kept, by what they are.
    kept: BTreeMap<&'static str, Once>,
    /// Pools that went with their definition and have not come back.
    lost_pools: BTreeSet<String>,
    ask_again: bool,
}

impl Definitions {
    /// Has not asked yet.
    pub(crate) fn new(client: Client) -> Self {
        Self { client, kept: BTreeMap::new(), lost_pools: BTreeSet::new(), ask_again: false }
    }

    /// What is kept although it is deleted.
    pub(crate) async fn retention(&mut self, store: &Store, revisions: &SliceRevisions) -> Retention {
        self.ask_again = false;
        Retention { keep_deleted: self.keep_deleted(store).await, keep_pools: self.keep_pools(store, revisions).await }
    }

    /// Whether to ask again soon, whatever happens.
    pub(crate) fn ask_again(&self) -> bool {
        self.ask_again
    }

    /// Deleting the definition of `PortForward` deletes every forward of every user. Nobody who does that means to close
    /// them all, so they stay until they are deleted one by one, or Sallyport is uninstalled.
    async fn keep_deleted(&mut self, store: &Store) -> bool {
        let going = store
            .forwards
            .entries()
            .any(|(_, entry)| entry.meta().deletion_timestamp.is_some() && entry.has_our_finalizer());
        if !going {
            return false;
        }
        let trouble = self.definition_is_going(PortForward::crd_name()).await;
        self.keep("forwards", trouble.map(|trouble| trouble.why))
    }

    /// Nor does deleting the definition of `GatewayPool`: a pool that went with it stays as it was until it is back.
    async fn keep_pools(&mut self, store: &Store, revisions: &SliceRevisions) -> bool {
        let carried = revisions.slices().map(|(_, slice)| slice.pool.as_str());
        let serving = store.gateways.objects().filter(|gateway| gateway.spec.state == NodeState::Active);
        let serving = serving.map(|gateway| gateway.spec.pool.as_str());
        let missing = |pool: &&str| store.pools.entry("", pool).is_none();
        let gone: BTreeSet<String> = carried.chain(serving).filter(missing).map(str::to_owned).collect();
        self.lost_pools.retain(|pool| gone.contains(pool));
        if gone.is_empty() || gone == self.lost_pools {
            return !gone.is_empty();
        }
        let trouble = self.definition_is_going(GatewayPool::crd_name()).await;
        // What could not be asked is asked again; only a definition that goes takes its pools along for good.
        if trouble.as_ref().is_some_and(|trouble| trouble.certain) {
            self.lost_pools = gone;
        }
        self.keep("pools", trouble.map(|trouble| trouble.why)) || !self.lost_pools.is_empty()
    }

    /// Why it is not certain that a definition is there to stay; `None` if it is.
    async fn definition_is_going(&self, name: &str) -> Option<Going> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        let (certain, why) = match timeout(REQUEST_TIMEOUT, api.get_metadata(name)).await {
            Ok(Ok(definition)) if definition.metadata.deletion_timestamp.is_none() => return None,
            Ok(Ok(_)) => (true, format!("the definition {name} is being deleted")),
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {
                (true, format!("the definition {name} is gone"))
            }
            Ok(Err(error)) => (false, format!("cannot read the definition {name}: {error}")),
            Err(_) => (false, format!("cannot read the definition {name}: no answer in time")),
        };
        Some(Going { certain, why })
    }

    /// Tells, once, that deleted objects are kept, and asks again soon.
    fn keep(&mut self, what: &'static str, trouble: Option<String>) -> bool {
        let Some(trouble) = trouble else {
            self.kept.remove(what);
            return false;
        };
        if self.kept.entry(what).or_default().is_news(&trouble) {
            tracing::warn!(
                "{trouble}: all rules and {what} stay as they are. To take the rules off, uninstall the chart"
            );
        }
        self.ask_again = true;
        true
    }
}
