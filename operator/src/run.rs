//! `run` and `uninstall`: become the leader, act, and step down.

use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, Config, ResourceExt as _};
use prometheus_client::registry::Registry;
use sallyport_api::GatewayPool;
use sallyport_api::names::{AGENT_LEASE_PREFIX, OPERATOR_NAME};
use sallyport_runtime::shutdown::Shutdown;
use sallyport_runtime::tasks::Tasks;
use sallyport_runtime::{admin, file};
use serde_json::json;
use tokio::time::Instant;

use crate::args::{AgentArgs, ReplicaArgs};
use crate::controller::events::Events;
use crate::controller::observe::WATCH_SECONDS;
use crate::controller::{Controller, Readiness, until};
use crate::daemonset::daemon_set;
use crate::leader::Leadership;
use crate::metrics::Metrics;

/// A file with a pool that is larger is not read: the API server takes no larger object.
const MAX_POOL_BYTES: u64 = 2 * 1024 * 1024;

/// Leads when it is its turn, until a signal comes or the lease is lost.
pub async fn run(
    replica: &ReplicaArgs,
    agent: &AgentArgs,
    default_pool: Option<&Path>,
    service_cidrs: Vec<IpNet>,
    admin: std::net::SocketAddr,
) -> anyhow::Result<ExitCode> {
    let default_pool = default_pool.map(read_pool).transpose()?;
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let readiness = Readiness::default();
    let asked = Arc::clone(&readiness);
    let mut tasks = Tasks::default();
    // That it is not served is told in the log, and by the probes that fail.
    drop(admin::start(&mut tasks, admin, registry, move || {
        asked.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }));
    let agents = daemon_set(&replica.namespace, agent);
    let mode = Mode::Serve(Box::new(Configured { agents, service_cidrs, default_pool }));
    Box::pin(lead(&mut tasks, replica, mode, metrics, readiness, None)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Stops the operator, takes its lease, and takes everything of ours off the cluster; returns when it is gone. With `force` it waits for no silent agent. After
/// `patience` it gives up and says what it still waits for.
pub async fn uninstall(replica: &ReplicaArgs, force: bool, patience: Option<Duration>) -> anyhow::Result<ExitCode> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    stop_operator(&client().await?, &replica.namespace).await?;
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let left = Readiness::new(Mutex::new(Some("another replica, which leads".to_owned())));
    let waits_for = Arc::clone(&left);
    let mut tasks = Tasks::default();
    match Box::pin(lead(&mut tasks, replica, Mode::Uninstall { force }, metrics, left, deadline)).await? {
        Outcome::Finished => {}
        Outcome::Stopped => bail!("stopped before everything was taken off; run it again"),
        Outcome::Late => bail!(gave_up(patience.unwrap_or_default(), &waits_for)),
    }
    delete_leases(&client().await?, &replica.namespace).await?;
    Ok(ExitCode::SUCCESS)
}

/// What a replica leads for.
enum Mode {
    /// Keep the gateways configured.
    Serve(Box<Configured>),
    /// Leave nothing but what users wrote.
    Uninstall {
        /// Whether agents that are silent or gone are not waited for.
        force: bool,
    },
}

/// What the operator that serves was started with.
struct Configured {
    /// Runs the agents.
    agents: DaemonSet,
    /// Ranges of Services that the cluster itself may not tell.
    service_cidrs: Vec<IpNet>,
    /// Is applied at the start.
    default_pool: Option<GatewayPool>,
}

/// How leading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// An uninstallation has left nothing.
    Finished,
    /// A signal came.
    Stopped,
    /// The deadline has passed.
    Late,
}

/// Why an uninstallation has ended before it was finished.
fn gave_up(patience: Duration, left: &Readiness) -> String {
    let left = left.lock().unwrap_or_else(PoisonError::into_inner).clone();
    format!(
        "not finished after {} s, still waiting for: {}; mend that and run it again, until then the operator stays stopped \
         and the rules that are left stay in force",
        patience.as_secs(),
        left.unwrap_or_else(|| "the API server".to_owned())
    )
}

async fn lead(
    tasks: &mut Tasks,
    replica: &ReplicaArgs,
    mode: Mode,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    deadline: Option<Instant>,
) -> anyhow::Result<Outcome> {
    let mut late = pin!(until(deadline));
    let mut shutdown = Shutdown::new().context("failed to listen for signals")?;
    let client = client().await?;
    let leases = Api::namespaced(client.clone(), &replica.namespace);
    let leadership = Arc::new(Leadership::new(leases, OPERATOR_NAME, &replica.identity));
    tokio::select! {
        () = leadership.acquire() => {}
        ended = tasks.ended() => return Err(ended.into()),
        () = shutdown.requested() => return Ok(Outcome::Stopped),
        () = &mut late => return Ok(Outcome::Late),
    }
    tracing::info!(identity = replica.identity, "leading");
    metrics.leads(true);
    let events = Events::start(tasks, client.clone(), &replica.identity);
    let leading = async {
        if let Mode::Serve(configured) = &mode
            && let Some(pool) = &configured.default_pool
        {
            apply_pool(&client, pool).await;
        }
        // Watches begin here, so that their first lists hold all that the leader before wrote.
        let mut controller =
            Controller::new(client.clone(), &replica.namespace, Arc::clone(&leadership), metrics, readiness, events);
        match mode {
            Mode::Serve(configured) => controller.serve(&configured.agents, configured.service_cidrs).await,
            Mode::Uninstall { force } => controller.uninstall(force).await,
        }
    };
    let outcome = tokio::select! {
        () = leading => {
            tracing::info!("nothing of Sallyport is left on the gateways");
            Ok(Outcome::Finished)
        }
        ended = tasks.ended() => Err(ended.into()),
        () = leadership.keep() => Err(anyhow::anyhow!("the lease was lost; whoever leads next lists everything anew")),
        () = shutdown.requested() => {
            tracing::info!("stopping; the gateways go on as they are");
            Ok(Outcome::Stopped)
        }
        () = &mut late => Ok(Outcome::Late),
    };
    leadership.release().await;
    outcome
}

/// Stops every replica of the operator, if there is any.
async fn stop_operator(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let api = Api::<Deployment>::namespaced(client.clone(), namespace);
    let none = json!({ "spec": { "replicas": 0 } });
    match api.patch_scale(OPERATOR_NAME, &PatchParams::default(), &Patch::Merge(&none)).await {
        Ok(_) => tracing::info!("the operator is stopped"),
        Err(kube::Error::Api(status)) if status.is_not_found() => tracing::info!("no operator is installed here"),
        Err(error) => return Err(error).context("failed to stop the operator"),
    }
    Ok(())
}

/// Deletes the leases of the operator and of the agents, which nobody renews any more.
async fn delete_leases(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let api = Api::<Lease>::namespaced(client.clone(), namespace);
    let leases = api.list_metadata(&ListParams::default()).await.context("failed to list the leases")?;
    let names = leases.items.into_iter().filter_map(|lease| lease.metadata.name);
    for name in names.filter(|name| name == OPERATOR_NAME || name.starts_with(AGENT_LEASE_PREFIX)) {
        match api.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            deleted => drop(deleted.with_context(|| format!("failed to delete the lease {name}"))?),
        }
    }
    Ok(())
}

async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer()
        .await
        .context("found no cluster: run inside one with a service account, or point KUBECONFIG at a kubeconfig file")?;
    // Failed requests are tried again by those who sent them, with what is right by then.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Longer than any watch is silent.
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS)) + Duration::from_secs(10));
    Client::try_from(config).context("failed to make a client for the API server")
}

fn read_pool(path: &Path) -> anyhow::Result<GatewayPool> {
    let text = file::read(path, MAX_POOL_BYTES).with_context(|| format!("failed to read {}", path.display()))?;
    let pool: GatewayPool =
        serde_saphyr::from_slice(&text).with_context(|| format!("{} does not hold a GatewayPool", path.display()))?;
    if pool.name_any().is_empty() {
        bail!("{}: metadata.name is missing", path.display());
    }
    Ok(pool)
}

/// A pool that the API server refuses is reported, and the one that is there stays.
async fn apply_pool(client: &Client, pool: &GatewayPool) {
    let api = Api::<GatewayPool>::all(client.clone());
    let params = PatchParams::apply(OPERATOR_NAME).force();
    match api.patch(&pool.name_any(), &params, &Patch::Apply(pool)).await {
        Ok(_) => tracing::info!(pool = pool.name_any(), "the default pool is applied"),
        Err(error) => {
            tracing::error!(%error, pool = pool.name_any(), "the default pool was not applied; correct the chart's values");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_up_says_what_is_still_waited_for() {
        let left = Readiness::new(Mutex::new(Some("gw2: its agent does not answer; 1 daemonsets".to_owned())));
        let said = gave_up(Duration::from_mins(4), &left);
        assert!(
            said.starts_with("not finished after 240 s, still waiting for: gw2: its agent does not answer; 1 daem")
        );
    }
}
