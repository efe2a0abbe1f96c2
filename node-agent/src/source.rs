//! Where intents come from. On a lone host: a directory of manifests, decided upon right here.

pub mod directory;
pub mod local;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use sallyport_ruleset::compile::Failure;
use sallyport_ruleset::facts::LocalAddress;

use crate::addresses::local_addresses;
use crate::args::HostArgs;
use crate::converge::chain_of;
use crate::manifest::Identity;
use crate::source::directory::{Directory, FileProblem};
use crate::source::local::decide_here;
use crate::state::{Intents, StateDir};

/// The manifests are listed this often even if no change was reported: a link may lead out of the directory.
pub(crate) const LISTING: Duration = Duration::from_secs(30);
/// How long the first look waits for a file that is still being written.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Time between two looks at a file that is still being written.
const STEP: Duration = Duration::from_millis(50);

/// The manifests, and what was decided upon them.
pub struct Source<'a> {
    pub(crate) args: &'a HostArgs,
    pub(crate) state: &'a StateDir,
    pub(crate) directory: Directory,
    pub(crate) local: Vec<LocalAddress>,
    pub(crate) intents: Option<Rc<Intents>>,
    /// The intents that are on disk.
    pub(crate) kept: Option<Rc<Intents>>,
    /// What is wrong with the manifests, sorted.
    pub problems: Vec<FileProblem>,
    pub(crate) told: Vec<FileProblem>,
    pub(crate) unreadable: Option<String>,
    pub(crate) unsettled: bool,
    pub(crate) patience: Duration,
    pub(crate) listed: Option<Instant>,
    /// Whether the directory or the addresses have changed since the last decision.
    pub(crate) undecided: bool,
}

impl<'a> Source<'a> {
    /// Has read nothing yet.
    #[must_use]
    pub fn new(args: &'a HostArgs, state: &'a StateDir) -> Self {
        Self {
            args,
            state,
            directory: Directory::new(&args.manifests),
            local: Vec::new(),
            intents: None,
            kept: None,
            problems: Vec::new(),
            told: Vec::new(),
            unreadable: None,
            unsettled: false,
            patience: FIRST_LOOK,
            listed: None,
            undecided: true,
        }
    }

    /// Takes up the last good intents from the state directory.
    pub(crate) fn last_good(&mut self) -> Option<Rc<Intents>> {
        let kept = self.state.intents().unwrap_or_else(|error| {
            tracing::error!(error = chain_of(&error), "the last good intents are lost");
            None
        });
        self.kept = kept.map(Rc::new);
        self.intents.clone_from(&self.kept);
        self.intents.clone()
    }

    /// The host's addresses as of the last look.
    #[must_use]
    pub fn local(&self) -> &[LocalAddress] {
        &self.local
    }

    /// Why the directory cannot be read, if it cannot.
    #[must_use]
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// Looks at the host's addresses and, when due, at the directory; the intents, if either changed. The first look
    /// waits a little for a file that is still being written.
    ///
    /// `reported` says that something happened in the directory, and which files are complete.
    pub async fn look(&mut self, reported: Option<&BTreeSet<String>>) -> Option<Rc<Intents>> {
        match local_addresses() {
            Ok(local) if local != self.local => {
                self.local = local;
                self.undecided = true;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = chain_of(&error), "cannot read this host's addresses; taking them as before");
            }
        }
        let mut waited = Duration::ZERO;
        let none = BTreeSet::new();
        let due = self.unsettled || self.unreadable.is_some() || self.listed.is_none_or(|at| at.elapsed() >= LISTING);
        while due || reported.is_some() {
            self.listed = Some(Instant::now());
            match self.directory.look(reported.unwrap_or(&none), self.state) {
                Ok(look) => {
                    if self.unreadable.take().is_some() {
                        tracing::info!(directory = %self.args.manifests.display(), "manifests are readable again");
                    }
                    self.undecided |= look.changed;
                    self.unsettled = look.unsettled;
                }
                Err(error) => {
                    let text = chain_of(&error);
                    if self.unreadable.as_ref() != Some(&text) {
                        tracing::error!("{text}");
                        self.unreadable = Some(text);
                    }
                    return None;
                }
            }
            // Time that the reading took does not count: a file must have had the chance to be still.
            if self.unsettled && waited < self.patience {
                tokio::time::sleep(STEP).await;
                waited += STEP;
            } else {
                break;
            }
        }
        self.patience = Duration::ZERO;
        if !std::mem::take(&mut self.undecided) {
            return None;
        }
        let (objects, mut problems) = self.directory.objects();
        let global = self.local.iter().filter(|own| own.global).map(|own| own.ip).collect();
        let nothing = BTreeMap::new();
        let held = self.intents.as_ref().map_or(&nothing, |intents| &intents.slices);
        let (intents, refused) =
            decide_here(&objects, &self.args.node_name, global, held, self.directory.broken_pool());
        problems.extend(refused);
        problems.sort();
        self.problems = problems;
        self.intents = Some(Rc::new(intents));
        self.intents.clone()
    }

    /// A failure, for people, with the file of its forward in front.
    #[must_use]
    pub fn locate(&self, failure: &Failure) -> String {
        let identity = Identity(format!("PortForward {}", failure.forward));
        match self.directory.file_of(&identity) {
            Some(file) => format!("{file}: {}", describe(failure)),
            None => describe(failure),
        }
    }

    /// Logs each problem when it appears.
    pub(crate) fn tell_problems(&mut self) {
        for problem in self.problems.iter().filter(|problem| self.told.binary_search(problem).is_err()) {
            tracing::warn!("{problem}");
        }
        self.told.clone_from(&self.problems);
    }

    /// Reads the held claims and the manifests once, for commands that change nothing.
    pub async fn decide_once(&mut self) -> Option<Rc<Intents>> {
        let last = self.last_good();
        self.look(None).await.or(last)
    }
}

/// A failure, for people.
#[must_use]
pub fn describe(failure: &Failure) -> String {
    format!("PortForward {}: {} ({:?})", failure.forward, failure.message, failure.reason)
}
