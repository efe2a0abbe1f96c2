//! `run`: apply what the source says and keep it applied.
//!
//! What is decided here is the source, and the backend again whenever the pool asks for another; the loop is `agent`.

use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Context as _;
use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_engine::dry_run::DryRun;
use sallyport_engine::iptables::Iptables;
use sallyport_engine::network::{Namespace, NoKernel};
use sallyport_engine::route::events::RouteEvents;
use sallyport_engine::sysctl::Sysctl;
use sallyport_runtime::shutdown::Shutdown;
use sallyport_runtime::tasks::Tasks;

use crate::agent::{Agent, Ended, PassLog};
use crate::args::{HostArgs, RunArgs};
use crate::backend::{self, Backend};
use crate::converge::Converger;
use crate::host::ThisHost;
use crate::metrics::Metrics;
use crate::source::cluster::Cluster;
use crate::source::manifests::Manifests;
use crate::source::{News, Source};
use crate::state::StateDir;

/// Runs until a signal, or with `once` until the manifests are applied.
pub async fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let state = Rc::new(StateDir::lock(&args.host.state_dir)?);
    let host = ThisHost::new(Rc::clone(&state));
    let metrics = Metrics::default();
    let mut tasks = Tasks::default();
    tasks.watch();
    let admin = args.admin.map(|address| metrics.serve(&mut tasks, address));
    if let Some(manifests) = &args.manifests {
        let source = Manifests::new(manifests, &args.host.node_name, state);
        return Box::pin(tasks.beside(drive(source, host, &args.host, metrics, args.once))).await;
    }
    let namespace = args.namespace.as_deref().context("--namespace is needed without --manifests")?;
    let source = Cluster::connect(&mut tasks, &args.host.node_name, namespace, admin).await?;
    Box::pin(tasks.beside(drive(source, host, &args.host, metrics, false))).await
}

async fn drive<S: Source>(
    mut source: S,
    mut host: ThisHost,
    args: &HostArgs,
    metrics: Metrics,
    once: bool,
) -> anyhow::Result<ExitCode> {
    let mut shutdown = Shutdown::new().context("failed to listen for signals")?;
    let routes = RouteEvents::open().context("cannot listen to the kernel for changed addresses")?;
    let mut log = PassLog::default();
    // After a reboot the last good intents are enforced even before anybody else has spoken.
    let last_good = host.last_good();
    if let Some(last_good) = &last_good {
        source.restore(last_good);
    }
    let mut intents = last_good.clone();
    let order = host.order(args.order.map(Into::into));
    loop {
        let moved = host.refresh_addresses();
        if let News::Intents(decided) = source.decide(&mut host, moved).await {
            intents = Some(decided);
        }
        let pool = intents.as_ref().map_or(FirewallBackend::Auto, |intents| intents.node.backend);
        let backend = backend::choose(args.backend, pool).await?;
        let ended = match backend {
            Backend::DryRun => {
                let mut converger = Converger::new(DryRun::default(), Rc::new(NoKernel), None);
                converger.order = order;
                let mut agent = Agent::new(converger, pool, &mut host, &mut source, metrics.clone(), &mut log);
                agent.run(&mut intents, once, &routes, &mut shutdown).await
            }
            Backend::Iptables(variant) => {
                backend::close_lock();
                let sysctl = Sysctl::mounted_at(&args.proc_sys);
                let mut converger = Converger::new(Iptables::new(variant), Rc::new(Namespace), Some(sysctl));
                converger.order = order;
                let kept = host.kept();
                let mut agent = Agent::new(converger, pool, &mut host, &mut source, metrics.clone(), &mut log);
                agent.take_over(kept.as_ref(), backend, variant);
                agent.run(&mut intents, once, &routes, &mut shutdown).await
            }
        };
        match ended {
            Ended::BackendChanged => {}
            Ended::Stopped => return Ok(ExitCode::SUCCESS),
            Ended::Done(good) => return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        }
    }
}
