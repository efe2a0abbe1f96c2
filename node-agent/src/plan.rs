//! `plan`: what `run` would change now. Touches nothing, not even the state directory.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context as _;
use sallyport_engine::Engine;
use sallyport_engine::dry_run::DryRun;
use sallyport_engine::iptables::{Iptables, Variant};
use sallyport_engine::network::{Namespace, NoKernel};
use sallyport_ruleset::facts::NodeFacts;

use crate::args::HostArgs;
use crate::backend::{self, Backend};
use crate::converge::Converger;
use crate::converge::preview::{PlannedChange, Preview, would_turn_on};
use crate::host::ThisHost;
use crate::intents::Intents;
use crate::script::{write_change, write_comment};
use crate::source::Source as _;
use crate::source::manifests::Manifests;
use crate::state::StateDir;
use sallyport_engine::sysctl::Sysctl;

/// Prints the change as a shell script. Exit code 1 when an object has problems.
pub async fn plan(manifests: &Path, args: &HostArgs) -> anyhow::Result<ExitCode> {
    let state = Rc::new(StateDir::read_only(&args.state_dir));
    let mut host = ThisHost::new(Rc::clone(&state));
    let mut source = Manifests::new(manifests, &args.node_name, state);
    let intents = source.decide_once(&mut host).await;
    let mut lines: Vec<String> = source.problems.iter().map(ToString::to_string).collect();
    lines.extend(source.unreadable().map(str::to_owned));
    if let Some(intents) = &intents {
        let found = match backend::choose(args.backend, intents.node.backend).await? {
            Backend::DryRun => {
                let converger = Converger::new(DryRun::default(), Rc::new(NoKernel), None);
                preview(converger, None, args, intents, &source, &mut host).await?
            }
            Backend::Iptables(variant) => {
                let sysctl = Sysctl::mounted_at(&args.proc_sys);
                let converger = Converger::new(Iptables::new(variant), Rc::new(Namespace), Some(sysctl));
                preview(converger, Some(variant), args, intents, &source, &mut host).await?
            }
        };
        lines.extend(found);
    }
    report(&lines)
}

/// Times that the kernel is read again for what is planned, where somebody changes it meanwhile.
const READINGS: usize = 3;

async fn preview<E: Engine>(
    mut converger: Converger<E>,
    variant: Option<Variant>,
    args: &HostArgs,
    intents: &Rc<Intents>,
    source: &Manifests,
    host: &mut ThisHost,
) -> anyhow::Result<Vec<String>> {
    converger.order = host.order(args.order.map(Into::into));
    let now = host.clock.now();
    let (addresses, found) = (host.addresses.clone(), host.found().to_vec());
    let facts = NodeFacts { found: &found, ..NodeFacts::of(&addresses, now) };
    let waiting = host.port_gate.admit(&mut converger, intents, &facts, Instant::now()).await?;
    converger.carry(host.state.intents()?.map(Rc::new).as_ref());
    converger.carry_noted(host.state.carried()?);
    converger.take_up_connections(&facts, &host.state);
    let Preview { ops, families, ended, failures, unreadable } = converger.preview(intents, waiting, &facts).await?;
    let mut plans = converger.plans(intents, &facts)?;
    for _ in 0..READINGS {
        if plans.is_none() {
            converger.observe().await?;
            plans = converger.plans(intents, &facts)?;
        }
    }
    let plans = plans.context("somebody changed rules meanwhile; try again")?;
    let mut out = std::io::stdout().lock();
    write_change(&mut out, variant, &ops)?;
    for family in families {
        write_comment(&mut out, &would_turn_on(family))?;
    }
    if ended > 0 {
        write_comment(&mut out, &format!("would end {ended} connections"))?;
    }
    if ops.is_empty() {
        write_comment(&mut out, "the rules are as they should be")?;
    }
    for note in source.notes() {
        write_comment(&mut out, note)?;
    }
    for PlannedChange { forward, change, .. } in plans {
        write_comment(&mut out, &format!("PortForward {forward}: with mode Apply would change\n{change}"))?;
    }
    Ok(unreadable.into_iter().chain(failures.iter().map(|failure| source.locate(failure))).collect())
}

/// Prints problems to standard error; the exit code says whether there were any.
pub fn report(lines: &[String]) -> anyhow::Result<ExitCode> {
    let mut err = std::io::stderr().lock();
    for line in lines {
        writeln!(err, "error: {line}")?;
    }
    Ok(if lines.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
