//! What is reported of this node: a status after each pass, and whenever something else in it has changed.
//!
//! What is in the status is composed in `status`; that it gets there is `writer`'s.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sallyport_api::SourceNatMode;
use sallyport_api::gateway_node::{Drift, GatewayNodeStatus};
use sallyport_api::names::MAX_ADDRESSES;
use sallyport_engine::route::masquerade;
use sallyport_runtime::admin::Serving;

use crate::error_chain::chain_of;
use crate::intents::Intents;
use crate::pass_report::PassReport;
use crate::source::cluster::knowledge::Knowledge;
use crate::source::cluster::status::{Facts, compose, shortened};
use crate::source::cluster::writer::StatusWriter;

/// Routes may change without anybody telling us: the source addresses are looked up at least this often.
const ROUTES: Duration = Duration::from_secs(30);

/// Keeps what a status holds besides the last pass.
pub(super) struct Reporter {
    pub(super) writer: StatusWriter,
    routes: Option<Routes>,
    last_drift: Option<Drift>,
    /// The status that was last composed.
    pub(super) reported: Option<GatewayNodeStatus>,
}

/// Where masqueraded connections leave from.
struct Routes {
    at: Instant,
    targets: BTreeSet<IpAddr>,
    sources: Vec<IpAddr>,
}

impl Reporter {
    /// Has reported nothing yet.
    pub(super) fn new(writer: StatusWriter) -> Self {
        Self { writer, routes: None, last_drift: None, reported: None }
    }

    /// A pass has put this back.
    pub(super) fn repaired(&mut self, what: &str) {
        self.last_drift = Some(Drift { time: now(), message: shortened(what) });
    }

    /// The host's addresses have changed, so packets may leave by others.
    pub(super) fn forget_routes(&mut self) {
        self.routes = None;
    }

    /// Whether routes are to be looked up again.
    pub(super) fn is_due(&self) -> bool {
        self.routes.as_ref().is_some_and(|routes| routes.at.elapsed() >= ROUTES)
    }

    /// Reports what is known now of a node that has this `generation` and shall do `intents`.
    pub(super) fn report(
        &mut self,
        knowledge: &Knowledge,
        generation: Option<i64>,
        admin: &Serving,
        intents: &Intents,
        report: &PassReport,
    ) {
        self.look_up_routes(intents, report);
        let previous = self.reported.clone().or_else(|| self.writer.seen().status).unwrap_or_default();
        let facts = Facts {
            knowledge,
            intents,
            // How far a pass came that failed is not known, so neither is what the kernel holds.
            verified: report.outcome.is_ok().then_some(&*report.intents),
            report,
            source_addresses: self.routes.as_ref().map_or(&[], |routes| &routes.sources),
            admin,
            last_drift: self.last_drift.as_ref(),
            generation,
            now: &now(),
        };
        let status = compose(&previous, &facts);
        self.writer.want(status.clone());
        self.reported = Some(status);
    }

    fn look_up_routes(&mut self, intents: &Intents, report: &PassReport) {
        let Ok(report) = &report.outcome else { return };
        let failed: BTreeSet<_> = report.failures.iter().map(|failure| &failure.forward).collect();
        let forwards = intents.forwards().filter(|forward| !failed.contains(&forward.r#ref));
        let masqueraded = forwards.filter(|forward| forward.intent.source_nat == SourceNatMode::Masquerade);
        let targets: BTreeSet<IpAddr> =
            masqueraded.flat_map(|forward| forward.intent.targets.iter().map(|target| target.ip)).collect();
        if self.routes.as_ref().is_some_and(|routes| routes.targets == targets && routes.at.elapsed() < ROUTES) {
            return;
        }
        match masquerade::source_addresses(&targets) {
            Ok(sources) => {
                let sources = sources.into_iter().take(MAX_ADDRESSES).collect();
                self.routes = Some(Routes { at: Instant::now(), targets, sources });
            }
            Err(error) => tracing::debug!(error = chain_of(&error), "cannot look up the way to the targets"),
        }
    }
}

/// In whole seconds, as the API keeps it, so that a status read back equals the one written.
fn now() -> Time {
    let now = jiff::Timestamp::now();
    Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}
