//! Who waits, for how long, and what is remembered of them.

use std::rc::Rc;

use super::*;
use crate::converge::fake::{Kernel, forward, intents, listener, local, planned};

/// A host, its agent, and what the agent remembers.
struct Scene {
    _guard: tempfile::TempDir,
    state: StateDir,
    converger: Converger<Kernel>,
    newcomers: Newcomers,
}

impl Scene {
    /// Somebody listens on these ports.
    fn with_listeners(ports: &[u16]) -> Self {
        let guard = tempfile::tempdir().unwrap();
        let state = StateDir::lock(&guard.path().join("state")).unwrap();
        let listeners = ports.iter().map(|port| listener(*port)).collect();
        let converger = Converger::new(Kernel { listeners, ..Kernel::default() }, None);
        Self { _guard: guard, state, converger, newcomers: Newcomers::default() }
    }

    /// A pass as the agent makes it; the names of those who have to wait.
    async fn pass(&mut self, wanted: &Intents) -> Vec<String> {
        let newcomers = self.newcomers.among(wanted);
        self.converger.admit(&newcomers, wanted, &local(), 0).await;
        self.newcomers.wait(&newcomers, &self.converger.waiting, &self.state);
        self.state.keep_intents(wanted).unwrap();
        let outcome = self.converger.converge(&Rc::new(wanted.clone()), &local(), &self.state, 0).await;
        let failures = outcome.as_ref().ok().map(|report| report.failures.as_slice());
        self.newcomers.passed(wanted, failures, &self.state);
        let waiting = self.converger.waiting.failures.clone();
        if let Ok(report) = &outcome {
            assert!(waiting.iter().all(|failure| report.failures.contains(failure)));
            let drift = self.converger.drift(wanted, &local()).await.unwrap();
            assert!(drift.is_none_or(|found| found.is_empty()), "who waits is no drift");
        }
        self.converger
            .waiting
            .failures
            .iter()
            .map(|failure| format!("{} {:?}", failure.forward.name, failure.reason))
            .collect()
    }

    /// The agent starts anew.
    fn restart(&mut self) {
        self.newcomers = Newcomers::default();
        if let Some(kept) = self.state.intents().unwrap() {
            self.newcomers.restore(&kept, &self.state);
        }
    }

    /// The host was booted: nothing is in the kernel.
    fn reboot(&mut self) {
        let listeners = self.converger.engine.listeners.clone();
        self.converger = Converger::new(Kernel { listeners, ..Kernel::default() }, None);
        self.restart();
    }

    async fn ports(&mut self) -> usize {
        let rules = self.converger.engine.rules().await;
        rules.v4.nat.ours.get("SALLY-MT").map_or(0, Vec::len)
    }
}

fn two() -> Intents {
    intents(&(forward("a", 8000) + &forward("b", 8001)))
}

const NOBODY: [&str; 0] = [];

#[tokio::test]
async fn a_listener_keeps_a_newcomer_out_and_nobody_else() {
    let mut scene = Scene::with_listeners(&[8000]);
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    assert_eq!(scene.ports().await, 1);
    assert_eq!(scene.state.newcomers().unwrap(), ["default/a".to_owned()].into());
    scene.converger.engine.listeners.clear();
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!((scene.ports().await, scene.state.newcomers().unwrap().len()), (2, 0));
}

#[tokio::test]
async fn who_listens_later_revokes_nothing_and_is_not_even_looked_for() {
    let mut scene = Scene::with_listeners(&[]);
    scene.pass(&two()).await;
    scene.converger.engine.listeners = vec![listener(8000)];
    let asked = scene.converger.engine.asked.get();
    // An edit is no first programming.
    let edited = intents(&(forward("a", 8000).replace("10.30.1.79", "10.30.1.90") + &forward("b", 8001)));
    for wanted in [two(), edited] {
        assert_eq!(scene.pass(&wanted).await, NOBODY);
        assert_eq!((scene.ports().await, scene.converger.engine.asked.get()), (2, asked));
    }
    scene.restart();
    assert_eq!(scene.pass(&two()).await, NOBODY);
    scene.reboot();
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!(scene.ports().await, 2);
}

#[tokio::test]
async fn who_waits_does_so_after_a_restart_and_a_reboot() {
    let mut scene = Scene::with_listeners(&[8000]);
    scene.pass(&two()).await;
    scene.restart();
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    scene.reboot();
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    assert_eq!(scene.ports().await, 1);
}

#[tokio::test]
async fn what_the_kernel_holds_is_carried_even_if_the_state_is_lost() {
    let mut scene = Scene::with_listeners(&[]);
    let many =
        intents(&forward("a", 8000).replace("cidr: 10.30.1.80/32", "cidr: 10.30.1.80/32 }, { cidr: 10.30.1.81/32"));
    for wanted in [two(), many] {
        scene.converger.engine.listeners.clear();
        scene.newcomers = Newcomers::default();
        scene.pass(&wanted).await;
        scene.converger.engine.listeners = vec![listener(8000)];
        scene.newcomers = Newcomers::default();
        assert_eq!(scene.pass(&wanted).await, NOBODY);
    }
    scene.newcomers = Newcomers::default();
    let other = intents(&forward("a", 8000).replace("10.30.1.79", "10.30.1.90"));
    assert_eq!(scene.pass(&other).await, ["a PortInUse"], "another of the same port");
}

#[tokio::test]
async fn a_pass_that_fails_makes_nobody_carried_and_takes_it_from_nobody() {
    let mut scene = Scene::with_listeners(&[]);
    scene.pass(&intents(&forward("b", 8001))).await;
    scene.converger.engine.failures = (0, 1);
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!(scene.state.newcomers().unwrap(), ["default/a".to_owned()].into());
    scene.converger.engine.listeners = vec![listener(8000), listener(8001)];
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    // Nor does a forward that left and came back keep what it had.
    scene.pass(&intents("")).await;
    assert_eq!(scene.pass(&two()).await, ["a PortInUse", "b PortInUse"]);
}

#[tokio::test]
async fn a_port_is_freed_when_its_listener_is_gone() {
    let mut scene = Scene::with_listeners(&[8000, 9000]);
    scene.pass(&two()).await;
    assert!(!scene.converger.is_freed());
    scene.converger.engine.listeners = vec![listener(8000)];
    assert!(!scene.converger.is_freed(), "another one is gone");
    scene.converger.engine.listeners.clear();
    assert!(scene.converger.is_freed());
    scene.pass(&two()).await;
    let asked = scene.converger.engine.asked.get();
    assert!(!scene.converger.is_freed());
    assert_eq!(scene.converger.engine.asked.get(), asked, "where nobody waits nobody looks");
}

#[tokio::test]
async fn where_listeners_cannot_be_seen_nobody_waits() {
    let mut scene = Scene::with_listeners(&[8000]);
    scene.converger.engine.deaf = true;
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!(scene.ports().await, 2);
}

#[tokio::test]
async fn a_plan_says_who_would_be_in_the_way() {
    let mut scene = Scene::with_listeners(&[8000, 8001]);
    let carried = intents(&forward("a", 8000));
    scene.converger.engine.listeners.clear();
    scene.pass(&carried).await;
    scene.converger.engine.listeners = vec![listener(8000), listener(8001)];
    // An edit of one that is carried is no first programming; a new forward is.
    let edit = forward("a", 8000).replace("10.30.1.79", "10.30.1.90");
    let wanted = planned(&carried, &(edit + &forward("b", 8001)));
    scene.pass(&wanted).await;
    let plans = scene.converger.plans(&wanted, &local()).unwrap().unwrap();
    assert!(plans[0].change.contains("+ -A SALLY-MT"), "{plans:?}");
    assert!(
        plans[1].change.starts_with("# it would fail here: ") && plans[1].change.ends_with("(PortInUse)\n"),
        "{plans:?}"
    );
}
