//! The source of a lone host: a directory of manifests, decided upon right here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use sallyport_ruleset::table::Failure;

use sallyport_runtime::once::Once;

use crate::converge::preview::PlannedChange;
use crate::error_chain::chain_of;
use crate::host::ThisHost;
use crate::intents::Intents;
use crate::manifest::Identity;
use crate::pass_report::{PassReport, ReportSink};
use crate::source::directory::{Directory, FileProblem};
use crate::source::first_seen::FirstSeen;
use crate::source::local::{Decided, decide_here, unapplied};
use crate::source::watch::{Change, Watch};
use crate::source::{News, Source, describe};
use crate::state::StateDir;

/// The manifests are listed this often even if no change was reported: a link may lead out of the directory.
pub(crate) const LISTING: Duration = Duration::from_secs(30);
/// How long the first look waits for a file that is still being written.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Time between two looks at a file that is still being written.
const STEP: Duration = Duration::from_millis(50);

/// The manifests, and what was decided upon them.
pub(crate) struct Manifests {
    path: PathBuf,
    node_name: String,
    pub(crate) directory: Directory,
    first_seen: FirstSeen,
    intents: Option<Rc<Intents>>,
    /// What is wrong with the manifests, sorted.
    pub problems: Vec<FileProblem>,
    /// What is not applied, and stays as it is.
    notes: Once<Vec<String>>,
    /// What would change for planned forwards.
    plans: Once<Vec<PlannedChange>>,
    /// Why the directory cannot be read, while it cannot.
    unreadable: Once,
    unsettled: bool,
    settle_wait: Duration,
    pub(crate) listed: Option<Instant>,
    /// Whether the directory or the addresses have changed since the last decision.
    undecided: bool,
    watch: Option<Watch>,
    /// Something happened in the directory, and these files are complete.
    reported: Option<BTreeSet<String>>,
}

impl Manifests {
    /// Has read nothing yet.
    #[must_use]
    pub(crate) fn new(path: &Path, node_name: &str, state: Rc<StateDir>) -> Self {
        Self {
            path: path.to_owned(),
            node_name: node_name.to_owned(),
            first_seen: FirstSeen::new(state),
            directory: Directory::new(path),
            intents: None,
            problems: Vec::new(),
            notes: Once::default(),
            plans: Once::default(),
            unreadable: Once::default(),
            unsettled: false,
            settle_wait: FIRST_LOOK,
            listed: None,
            undecided: true,
            watch: None,
            reported: None,
        }
    }

    /// Looks at the directory when that is due; the intents, if they may be others, also because the host's addresses have
    /// `moved` or something has expired. The first look waits a little for a file that is still being written.
    ///
    /// `reported` says that something happened in the directory, and which files are complete.
    pub(crate) async fn read(
        &mut self,
        host: &mut ThisHost,
        moved: bool,
        reported: Option<&BTreeSet<String>>,
    ) -> Option<Rc<Intents>> {
        self.undecided |= moved | host.clock.is_due();
        let mut waited = Duration::ZERO;
        let none = BTreeSet::new();
        let due =
            self.unsettled || self.unreadable.last().is_some() || self.listed.is_none_or(|at| at.elapsed() >= LISTING);
        while due || reported.is_some() {
            self.listed = Some(Instant::now());
            match self.directory.look(reported.unwrap_or(&none), &host.state) {
                Ok(look) => {
                    if self.unreadable.clear() {
                        tracing::info!(directory = %self.path.display(), "manifests are readable again");
                    }
                    self.undecided |= look.changed;
                    self.unsettled = look.unsettled;
                }
                Err(error) => {
                    let text = chain_of(&error);
                    if self.unreadable.is_news(&text) {
                        tracing::error!("{text}");
                    }
                    return None;
                }
            }
            // Time that the reading took does not count: a file must have had the chance to be still.
            if self.unsettled && waited < self.settle_wait {
                tokio::time::sleep(STEP).await;
                waited += STEP;
            } else {
                break;
            }
        }
        self.settle_wait = Duration::ZERO;
        if !std::mem::take(&mut self.undecided) {
            return None;
        }
        let (objects, mut problems) = self.directory.objects();
        let global = host.addresses.iter().filter(|own| own.global).map(|own| own.ip).collect();
        let nothing = BTreeMap::new();
        let held = self.intents.as_ref().map_or(&nothing, |intents| &intents.slices);
        let now = host.clock.now();
        let broken_pool = self.directory.broken_pool();
        let first_seen = self.first_seen.of(&objects, broken_pool.is_some(), now);
        let Decided { intents, problems: refused, expiries } =
            decide_here(&objects, &self.node_name, global, held, broken_pool, first_seen, now);
        host.clock.expect(expiries.into_iter(), now);
        problems.extend(refused);
        problems.sort();
        self.problems = problems;
        for note in self.notes.news_of(&unapplied(&objects, &intents)) {
            tracing::info!("{note}");
        }
        self.intents = Some(Rc::new(intents));
        self.intents.clone()
    }

    /// What is not applied, and stays as it is.
    #[must_use]
    pub(crate) fn notes(&self) -> &[String] {
        self.notes.last().map(Vec::as_slice).unwrap_or_default()
    }

    /// Reads the held claims and the manifests once, for commands that change nothing.
    pub(crate) async fn decide_once(&mut self, host: &mut ThisHost) -> Option<Rc<Intents>> {
        let last = host.last_good();
        if let Some(last) = &last {
            self.restore(last);
        }
        let moved = host.refresh_addresses();
        self.read(host, moved, None).await.or(last)
    }
}

impl Source for Manifests {
    const CAUSE: &'static str = "manifests";

    fn restore(&mut self, last_good: &Rc<Intents>) {
        self.intents = Some(Rc::clone(last_good));
    }

    async fn changed(&mut self) {
        match &mut self.watch {
            Some(watch) => match watch.next().await {
                Change::Files(files) => self.reported = Some(files),
                Change::Lost => self.watch = None,
            },
            None => std::future::pending().await,
        }
    }

    fn tick(&mut self) {
        if self.watch.is_none() {
            self.reported = Some(BTreeSet::new());
            self.watch = Watch::new(&self.path).ok();
        }
    }

    async fn decide(&mut self, host: &mut ThisHost, moved: bool) -> News {
        let (reported, before) = (self.reported.take(), self.intents.clone());
        match self.read(host, moved, reported.as_ref()).await {
            None => News::None,
            Some(intents) if before.as_ref() == Some(&intents) => News::Objects,
            Some(intents) => News::Intents(intents),
        }
    }

    fn problems(&self) -> Vec<String> {
        self.problems.iter().map(ToString::to_string).collect()
    }

    fn unreadable(&self) -> Option<&str> {
        self.unreadable.last().map(String::as_str)
    }

    fn locate(&self, failure: &Failure) -> String {
        let identity = Identity(format!("PortForward {}", failure.forward));
        match self.directory.file_of(&identity) {
            Some(file) => format!("{file}: {}", describe(failure)),
            None => describe(failure),
        }
    }
}

impl ReportSink for Manifests {
    fn passed(&mut self, _report: &PassReport) {}

    /// Logs what would change for planned forwards: a lone host has no status to say so.
    fn updated(&mut self, report: &PassReport) {
        for PlannedChange { forward, change, .. } in report.plans.iter().flat_map(|plans| self.plans.news_of(plans)) {
            tracing::info!("PortForward {forward}: with mode Apply would change\n{change}");
        }
    }
}
