//! Watches everything that a decision depends on.
//!
//! ```text
//! watch of each kind ─► Change ─► Store
//! ```
//! What is known then is in `store`.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, watcher};
use kube::{Client, Resource};
use sallyport_api::names::AGENT_NAME;
use sallyport_runtime::backoff::Backoff;
use serde::de::DeserializeOwned;

use crate::controller::guard::DeserializeGuard;
use crate::controller::store::{Change, Watched};

/// How long a watch lasts before it is made anew, so that a connection that died silently is noticed.
pub(crate) const WATCH_SECONDS: u32 = 60;

/// Wait before a watch that failed is tried again; it doubles with each failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait. There is one operator, so it may ask often; users wait for it.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// After so long without a failure the next one is the first again.
const WITHOUT_FAILURE: Duration = Duration::from_mins(1);

/// Watches everything that [`Store`](crate::controller::store::Store) holds, for ever. `namespace` is the one that the agents
/// run in.
pub(crate) fn watch(client: &Client, namespace: &str) -> BoxStream<'static, Change> {
    let all = Config::default;
    let named = |name: &str| all().fields(&format!("metadata.name={name}"));
    let ours = all().labels(&format!("app.kubernetes.io/name={AGENT_NAME}"));
    let server = all().labels("kubernetes.io/service-name=kubernetes");
    stream::select_all([
        follow(Api::all(client.clone()), all(), Change::Forward),
        follow(Api::all(client.clone()), all(), Change::Pool),
        follow(Api::all(client.clone()), all(), Change::Slice),
        follow(Api::all(client.clone()), all(), Change::Gateway),
        follow(Api::all(client.clone()), all(), Change::Node),
        follow(Api::all(client.clone()), all(), Change::Namespace),
        follow(Api::namespaced(client.clone(), namespace), ours, Change::Lease),
        follow(Api::namespaced(client.clone(), namespace), named(AGENT_NAME), Change::DaemonSet),
        follow(Api::namespaced(client.clone(), "default"), server, Change::ApiServer),
        follow(Api::all(client.clone()), all(), Change::ServiceRange),
    ])
    .boxed()
}

fn follow<K>(
    api: Api<DeserializeGuard<K>>,
    config: Config,
    change: fn(Watched<K>) -> Change,
) -> BoxStream<'static, Change>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    watcher(api, config.timeout(WATCH_SECONDS))
        .backoff(WatchBackoff(Backoff::new(FIRST_WAIT, LONGEST_WAIT).calm_after(WITHOUT_FAILURE)))
        .map(move |seen| change(Box::new(seen)))
        .boxed()
}

/// [`Backoff`] as kube asks for it.
struct WatchBackoff(Backoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.failed())
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    /// Called for every event, and a list begins with one that needs no answer: that is no sign of health.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::collections::BTreeMap;

    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::controller::store::Store;
    use crate::fixture::{api_server, respond};

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_refuses_is_asked_less_and_less_often_and_followed_once_it_answers() {
        for code in [429, 503] {
            let (client, mut requests) = api_server();
            let mut changes = watch(&client, "sallyport-system");
            let mut asked = BTreeMap::<String, u32>::new();
            let end = Instant::now() + Duration::from_mins(5);
            let serve = async {
                let mut watched = Vec::new();
                while let Some((request, send)) = requests.next_request().await {
                    let list = json!({ "metadata": { "resourceVersion": "1" }, "items": [] });
                    let busy = json!({ "kind": "Status", "status": "Failure", "code": code, "message": "too busy" });
                    match request.uri().query() {
                        _ if Instant::now() < end => {
                            *asked.entry(request.uri().path().to_owned()).or_default() += 1;
                            respond(send, code, &busy);
                        }
                        Some(query) if query.contains("watch=") => watched.push(send),
                        _ => respond(send, 200, &list),
                    }
                }
            };
            let mut store = Store::default();
            let follow = async {
                while !store.missing().is_empty() {
                    store.observe(changes.next().await.unwrap());
                }
            };
            tokio::select! { () = serve => {}, () = follow => {} }
            assert_eq!(store.missing(), Vec::<String>::new());
            assert!(Instant::now() >= end && end.elapsed() <= Duration::from_secs(4), "{:?} late", end.elapsed());
            assert_eq!(asked.len(), 10);
            // Every 4 s in the end.
            assert!(asked.values().all(|times| (60..90).contains(times)), "{code}: {asked:?} in 5 minutes");
        }
    }
}
