//! When the agent looks, decides, keeps and tries again.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use sallyport_api::id::Moment;
use sallyport_engine::route::addresses::local_addresses;
use sallyport_ruleset::table::Failure;

use super::retry::{FIRST_RETRY, LONGEST_RETRY};
use super::*;
use crate::converge::fake::{Kernel, forward, intents, over};
use crate::pass_report::ReportSink;
use crate::source::manifests::{LISTING, Manifests};
use crate::state::StateDir;

/// Manifests and a state directory; files are older than the time that a writer is waited for.
struct Scene {
    guard: tempfile::TempDir,
    state: Rc<StateDir>,
    manifests: PathBuf,
    state_dir: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let (manifests, state_dir) = (guard.path().join("manifests"), guard.path().join("state"));
        fs::create_dir(&manifests).unwrap();
        let state = Rc::new(StateDir::lock(&state_dir).unwrap());
        Self { guard, state, manifests, state_dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.manifests.join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        let file = fs::File::options().append(true).open(self.path(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_hours(1)).unwrap();
    }

    fn source(&self) -> Lone {
        let manifests = Manifests::new(&self.manifests, "gw1", Rc::clone(&self.state));
        Lone { manifests, host: ThisHost::new(Rc::clone(&self.state)), log: PassLog::default() }
    }
}

/// A lone host, and the manifests that it follows.
struct Lone {
    manifests: Manifests,
    host: ThisHost,
    log: PassLog,
}

impl Lone {
    /// As the loop asks.
    async fn read(&mut self, reported: Option<&BTreeSet<String>>) -> Option<Rc<Intents>> {
        let moved = self.host.refresh_addresses();
        self.manifests.read(&mut self.host, moved, reported).await
    }

    fn last_good(&mut self) -> Option<Rc<Intents>> {
        let last_good = self.host.last_good();
        self.manifests.restore(last_good.as_ref()?);
        last_good
    }
}

fn agent(lone: &mut Lone, kernel: Kernel) -> Agent<'_, Manifests, Kernel> {
    let Lone { manifests, host, log } = lone;
    Agent::new(over(kernel, None), FirewallBackend::Auto, host, manifests, Metrics::default(), log)
}

fn failure<S>(agent: &Agent<'_, S, Kernel>) -> Option<String> {
    agent.report.as_ref().and_then(PassReport::failure)
}

fn names(intents: &Intents) -> Vec<String> {
    intents.forwards().map(|forward| forward.r#ref.name.clone()).collect()
}

const REPORTED: BTreeSet<String> = BTreeSet::new();

#[tokio::test]
async fn a_look_decides_when_something_changed_and_only_then() {
    let scene = Scene::new();
    let mut source = scene.source();
    scene.put("a.yaml", &forward("a", 8000));
    assert_eq!(names(&source.read(None).await.unwrap()), ["a"]);
    assert_eq!(source.read(Some(&REPORTED)).await, None);
    scene.put("b.yaml", &forward("b", 8001));
    assert_eq!(names(&source.read(Some(&REPORTED)).await.unwrap()), ["a", "b"]);
    assert_eq!(source.read(None).await, None);
}

#[tokio::test]
async fn without_a_report_the_directory_is_listed_only_now_and_then() {
    let scene = Scene::new();
    let mut source = scene.source();
    source.read(None).await.unwrap();
    scene.put("a.yaml", &forward("a", 8000));
    assert_eq!(source.read(None).await, None);
    source.manifests.listed = Instant::now().checked_sub(LISTING);
    assert_eq!(names(&source.read(None).await.unwrap()), ["a"]);
}

#[tokio::test]
async fn the_first_look_waits_for_a_file_that_was_just_saved() {
    let scene = Scene::new();
    fs::write(scene.path("a.yaml"), forward("a", 8000)).unwrap();
    let mut source = scene.source();
    assert_eq!(names(&source.read(None).await.unwrap()), ["a"]);
    assert_eq!(source.manifests.problems, []);
}

#[tokio::test]
async fn a_host_starts_with_its_last_good_intents_while_the_manifests_are_away() {
    let scene = Scene::new();
    let kept = intents(&forward("a", 8000));
    scene.state.keep_intents(&kept).unwrap();
    fs::remove_dir(&scene.manifests).unwrap();
    let mut source = scene.source();
    assert_eq!(*source.last_good().unwrap(), kept);
    // Not the addresses make it decide.
    source.host.addresses = local_addresses().unwrap();
    assert_eq!(source.read(None).await, None);
    assert!(source.manifests.unreadable().unwrap().contains("cannot list the manifests in"));
    assert_eq!(source.read(None).await, None);

    // Back, and empty: nobody wants the forward any more.
    fs::create_dir(&scene.manifests).unwrap();
    assert_eq!(names(&source.read(None).await.unwrap()), Vec::<String>::new());
    assert_eq!(source.manifests.unreadable(), None);
}

#[tokio::test]
async fn a_claim_outlives_a_restart() {
    let scene = Scene::new();
    scene.put("z.yaml", &forward("z", 8000));
    let mut source = scene.source();
    let decided = source.read(None).await.unwrap();
    agent(&mut source, Kernel::default()).try_pass(&decided).await.unwrap();

    scene.put("a.yaml", &forward("a", 8000));
    let mut next = scene.source();
    assert_eq!(names(&next.last_good().unwrap()), ["z"]);
    assert_eq!(names(&next.read(None).await.unwrap()), ["z"]);
    assert!(
        next.manifests.problems[0].to_string().starts_with("a.yaml: PortForward default/a: spec.ports: "),
        "{:?}",
        next.manifests.problems
    );
}

#[tokio::test]
async fn intents_are_on_disk_before_the_kernel_changes() {
    let scene = Scene::new();
    let mut source = scene.source();
    let wanted = Rc::new(intents(&forward("a", 8000)));
    let state_dir = scene.state_dir.clone();
    let expected = Rc::clone(&wanted);
    let look = move || assert_eq!(StateDir::read_only(&state_dir).intents().unwrap().as_ref(), Some(&*expected));
    let kernel = Kernel { before_apply: Some(Box::new(look)), ..Kernel::default() };
    // The host of the test may lack the address, so that nothing would be applied.
    source.host.addresses = crate::converge::fake::local();
    let mut agent = agent(&mut source, kernel);
    agent.try_pass(&wanted).await.unwrap();
    assert_eq!(agent.converger.engine.applied.len(), 1);
}

#[tokio::test]
async fn a_state_that_cannot_be_written_keeps_no_rule_alive() {
    let scene = Scene::new();
    let mut source = scene.source();
    source.host.addresses = crate::converge::fake::local();
    let mut agent = agent(&mut source, Kernel::default());
    agent.pass(&Rc::new(intents(&forward("a", 8000))), "start").await;
    let blocker = scene.state_dir.join("intents.json.new");
    fs::create_dir(&blocker).unwrap();
    let nothing = Rc::new(intents(""));
    agent.pass(&nothing, "manifests").await;
    assert!(agent.converger.engine.rules().await.ours().v4.is_empty());
    assert!(agent.host.unkept.last().is_some());

    fs::remove_dir(&blocker).unwrap();
    agent.pass(&nothing, "retry").await;
    assert_eq!((agent.host.unkept.last().is_some(), scene.state.intents().unwrap().as_ref()), (false, Some(&*nothing)));
}

#[tokio::test]
async fn what_failed_is_tried_again_later_and_later_until_it_works() {
    let scene = Scene::new();
    let mut source = scene.source();
    source.host.addresses = crate::converge::fake::local();
    let mut agent = agent(&mut source, Kernel { failures: (3, 0), ..Kernel::default() });
    let wanted = Rc::new(intents(&forward("a", 8000)));
    let mut waits = Vec::new();
    for _ in 0..3 {
        agent.pass(&wanted, "retry").await;
        assert!(failure(&agent).unwrap().starts_with("failed to program the kernel: iptables-fake is not installed"));
        waits.push(agent.retry.backoff.clone().failed());
        agent.repair(&wanted).await;
        assert_eq!(agent.converger.engine.applied.len(), 0, "did not wait");
    }
    assert_eq!(waits, [2 * FIRST_RETRY, 4 * FIRST_RETRY, 8 * FIRST_RETRY]);

    agent.retry.at = Some(Instant::now());
    agent.repair(&wanted).await;
    assert_eq!(agent.converger.engine.applied.len(), 1);
    assert_eq!((agent.retry.backoff.failed(), agent.retry.at, failure(&agent)), (FIRST_RETRY, None, None));
}

#[tokio::test]
async fn drift_is_repaired_on_the_next_beat() {
    let scene = Scene::new();
    let mut source = scene.source();
    source.host.addresses = crate::converge::fake::local();
    let mut agent = agent(&mut source, Kernel::default());
    let wanted = Rc::new(intents(&forward("a", 8000)));
    agent.pass(&wanted, "start").await;
    agent.converger.engine.meddle("*nat\n-D PREROUTING -j SALLY-PRE\nCOMMIT\n");
    agent.repair(&wanted).await;
    assert_eq!(agent.converger.engine.applied.len(), 2);
    agent.repair(&wanted).await;
    assert_eq!(agent.converger.engine.applied.len(), 2);
}

#[tokio::test]
async fn somebody_as_quick_as_we_are_is_not_waited_for_longer_and_longer() {
    let scene = Scene::new();
    let mut source = scene.source();
    source.host.addresses = crate::converge::fake::local();
    let meddling = Some("*nat\n-D PREROUTING -j SALLY-PRE\nCOMMIT\n");
    let mut agent = agent(&mut source, Kernel { meddling, ..Kernel::default() });
    let wanted = Rc::new(intents(&forward("a", 8000)));
    for _ in 0..8 {
        agent.pass(&wanted, "retry").await;
        assert!(failure(&agent).unwrap().starts_with("the kernel does not hold what was applied"));
        assert!(agent.retry.at.unwrap() <= Instant::now() + FIRST_RETRY);
    }
}

#[tokio::test]
async fn drift_does_not_wait_for_the_next_try_of_what_failed() {
    let scene = Scene::new();
    let mut source = scene.source();
    source.host.addresses = crate::converge::fake::local();
    let mut agent = agent(&mut source, Kernel::default());
    let wanted = Rc::new(intents(&forward("a", 8000)));
    agent.pass(&wanted, "start").await;
    agent.converger.engine.meddle("*nat\n-D PREROUTING -j SALLY-PRE\nCOMMIT\n");
    agent.converger.engine.failures.1 = 1;
    agent.repair(&wanted).await;
    assert!(failure(&agent).is_some() && agent.drift.pending().unwrap().contains("the jump to SALLY-PRE is missing"));

    // Long before the next try, but not at once.
    agent.retry.at = Some(Instant::now() + LONGEST_RETRY);
    agent.converger.engine.meddle("*nat\n:SALLY-PRE - [0:0]\nCOMMIT\n");
    agent.repair(&wanted).await;
    assert_eq!(agent.converger.engine.applied.len(), 1, "did not rest");
    agent.cooldown_until = Instant::now();
    agent.repair(&wanted).await;
    assert_eq!((agent.converger.engine.applied.len(), agent.drift.pending()), (2, None));
}

#[tokio::test]
async fn drift_is_told_while_it_is_put_back_if_that_takes_long() {
    tokio::time::pause();
    let scene = Scene::new();
    let (mut source, mut log) = (Hearing::default(), PassLog::default());
    let (mut host, wanted) = (ThisHost::new(Rc::clone(&scene.state)), Rc::new(intents(&forward("a", 8000))));
    host.addresses = crate::converge::fake::local();
    let converger = over(Kernel { slow: 2 * SLOW_REPAIR, ..Kernel::default() }, None);
    let metrics = Metrics::default();
    let mut agent = Agent::new(converger, FirewallBackend::Auto, &mut host, &mut source, metrics, &mut log);
    agent.pass(&wanted, "start").await;
    agent.converger.engine.meddle("*nat\n-D PREROUTING -j SALLY-PRE\nCOMMIT\n");
    agent.repair(&wanted).await;
    let jump = "IPv4 nat PREROUTING: the jump to SALLY-PRE is missing";
    let meanwhile = format!("amiss: somebody has changed this and it is not put back yet: {jump}");
    assert_eq!(source.heard, ["good".to_owned(), meanwhile, format!("good, put back: {jump}")]);
}

/// A source that notes what becomes of passes.
#[derive(Default)]
struct Hearing {
    heard: Vec<String>,
}

impl Source for Hearing {
    const CAUSE: &'static str = "test";

    fn restore(&mut self, _last_good: &Rc<Intents>) {}

    async fn changed(&mut self) {}

    fn tick(&mut self) {}

    async fn decide(&mut self, _host: &mut ThisHost, _moved: bool) -> News {
        News::None
    }

    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

impl ReportSink for Hearing {
    fn passed(&mut self, report: &PassReport) {
        let outcome = if report.outcome.is_ok() { "good" } else { "bad" };
        let drift = report.repair().map(|what| format!(", put back: {what}")).unwrap_or_default();
        self.heard.push(format!("{outcome}{drift}"));
    }

    fn updated(&mut self, report: &PassReport) {
        self.heard.push(format!("amiss: {}", report.drift().unwrap_or_default()));
    }
}

#[tokio::test]
async fn once_is_content_only_if_everything_was_accepted_and_verified() {
    let scene = Scene::new();
    scene.put("a.yaml", &forward("a", 8000));
    let mut source = scene.source();
    let decided = source.read(None).await.unwrap();
    source.host.addresses = crate::converge::fake::local();
    let on_host = Rc::new(intents(&forward("a", 8000)));
    assert!(agent(&mut source, Kernel::default()).once(Some(&on_host)).await);
    assert!(!agent(&mut source, Kernel { failures: (1, 0), ..Kernel::default() }).once(Some(&decided)).await);
    let elsewhere = Rc::new(intents(&forward("a", 8000).replace("spec:", "spec:\n  addresses: [ 10.30.1.99 ]")));
    assert!(!agent(&mut source, Kernel::default()).once(Some(&elsewhere)).await);

    scene.put("b.yaml", "broken: [\n");
    source.read(Some(&REPORTED)).await.unwrap();
    source.host.addresses = crate::converge::fake::local();
    assert!(!agent(&mut source, Kernel::default()).once(Some(&on_host)).await);
    drop(source);

    let mut source = scene.source();
    fs::rename(&scene.manifests, scene.guard.path().join("away")).unwrap();
    assert_eq!(source.read(None).await, None);
    assert!(!agent(&mut source, Kernel::default()).once(None).await);
}

#[test]
fn a_failure_is_told_with_its_file() {
    let scene = Scene::new();
    scene.put("a.yaml", &forward("a", 8000));
    let mut source = scene.source();
    source.manifests.directory.look(&REPORTED, &scene.state).unwrap();
    let failure = |name: &str| Failure {
        forward: sallyport_api::forward_slice::ForwardRef { namespace: "default".into(), name: name.into() },
        reason: sallyport_api::condition::Reason::InvalidTarget,
        message: "is here".into(),
    };
    assert_eq!(source.manifests.locate(&failure("a")), "a.yaml: PortForward default/a: is here (InvalidTarget)");
    assert_eq!(source.manifests.locate(&failure("gone")), "PortForward default/gone: is here (InvalidTarget)");
}

/// A forward on the host of tests that expires `seconds` after 1970.
fn expiring(name: &str, port: u16, seconds: i64) -> String {
    forward(name, port) + &format!("  expiresAt: {}\n", Moment(seconds))
}

#[tokio::test]
async fn a_forward_is_closed_on_the_beat_after_it_expires_and_no_clock_opens_it_again() {
    let scene = Scene::new();
    scene.put("a.yaml", &(expiring("a", 8000, 1_000_010) + &forward("b", 8001)));
    let wall = Rc::new(std::cell::Cell::new(1_000_000));
    let clock = || -> Box<dyn Fn() -> Duration> {
        let wall = Rc::clone(&wall);
        Box::new(move || Duration::from_secs(wall.get()))
    };
    let mut source = scene.source();
    source.host.clock.wall = clock();
    let decided = source.read(None).await.unwrap();
    assert_eq!(names(&decided), ["a", "b"]);
    agent(&mut source, Kernel::default()).pass(&decided, "start").await;
    wall.set(1_000_009);
    assert_eq!(source.read(None).await, None);
    wall.set(1_000_010);
    let decided = source.read(None).await.unwrap();
    assert_eq!(names(&decided), ["b"]);
    assert_eq!(
        source.manifests.problems[0].to_string(),
        "a.yaml: PortForward default/a: spec.expiresAt: expired at 1970-01-12T13:46:50Z; set a later moment, or delete the \
         forward (Expired)"
    );
    assert_eq!(source.read(None).await, None, "once is enough");
    drop(source);

    // The host boots with a clock from before.
    wall.set(3);
    let mut source = scene.source();
    source.host.clock.wall = clock();
    assert_eq!(names(&source.read(None).await.unwrap()), ["b"]);
}

#[tokio::test]
async fn what_expires_is_closed_by_the_loop_alone_while_the_source_is_silent() {
    let scene = Scene::new();
    let wall = Rc::new(std::cell::Cell::new(1_000_000));
    let mut source = scene.source();
    let seen = Rc::clone(&wall);
    source.host.clock.wall = Box::new(move || Duration::from_secs(seen.get()));
    source.host.addresses = crate::converge::fake::local();
    let wanted = Rc::new(intents(&(expiring("a", 8000, 1_000_010) + &forward("b", 8001))));
    let mut agent = agent(&mut source, Kernel::default());
    agent.pass(&wanted, "start").await;
    agent.repair(&wanted).await;
    assert_eq!(agent.converger.engine.applied.len(), 1);
    // Also while something else is waited for.
    agent.retry.later();
    wall.set(1_000_010);
    agent.repair(&wanted).await;
    let ports = agent.converger.engine.rules().await.ours().v4.nat["SALLY-MT"]
        .iter()
        .map(ToString::to_string)
        .collect::<String>();
    assert!(!ports.contains("8000") && ports.contains("8001"), "{ports}");
    let failures = &agent.report.as_ref().unwrap().outcome.as_ref().unwrap().failures;
    assert_eq!(failures[0].reason, sallyport_api::condition::Reason::Expired);
    assert_eq!(scene.state.highest_time().unwrap(), Moment(1_000_010), "on disk before it is closed");
    wall.set(1_000_000);
    agent.pass(&wanted, "start").await;
    assert_eq!(agent.converger.engine.applied.len(), 2, "a clock stepped back opened it");
}

#[tokio::test]
async fn a_lifetime_counts_from_when_the_host_first_saw_the_forward() {
    let scene = Scene::new();
    let pool = crate::converge::fake::REQUIRE.replace("name: g,", "name: g, maxLifetime: 100s,");
    scene.put("pool.yaml", &pool);
    scene.put("a.yaml", &forward("a", 8000));
    let wall = Rc::new(std::cell::Cell::new(1_000_000));
    let start = || {
        let (mut source, wall) = (scene.source(), Rc::clone(&wall));
        source.host.clock.wall = Box::new(move || Duration::from_secs(wall.get()));
        source
    };
    let expiry = |intents: &Intents| intents.forwards().next().and_then(|forward| forward.intent.expires_at);
    assert_eq!(expiry(&start().read(None).await.unwrap()), Some(Moment(1_000_100)));
    // A restart changes nothing, and neither does an edit.
    wall.set(1_000_050);
    scene.put("a.yaml", &forward("a", 8001));
    let mut source = start();
    assert_eq!(expiry(&source.read(None).await.unwrap()), Some(Moment(1_000_100)));
    wall.set(1_000_100);
    assert_eq!(names(&source.read(None).await.unwrap()), Vec::<String>::new());
    assert!(
        source.manifests.problems[0].to_string().contains("grant g allows maxLifetime 100s from its creation"),
        "{:?}",
        source.manifests.problems
    );
    // Taken away and saved again it is another one.
    fs::remove_file(scene.path("a.yaml")).unwrap();
    source.read(Some(&REPORTED)).await;
    scene.put("a.yaml", &forward("a", 8001));
    assert_eq!(expiry(&source.read(Some(&REPORTED)).await.unwrap()), Some(Moment(1_000_200)));
}
