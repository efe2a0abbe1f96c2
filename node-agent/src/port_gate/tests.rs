//! Who waits, for how long, and what is remembered of them.

use std::rc::Rc;
use std::time::Duration;

use sallyport_api::id::Moment;
use sallyport_engine::dry_run::DryRun;
use sallyport_engine::network::NoKernel;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Holder, xtables};
use sallyport_ruleset::listener::Listener;

use super::*;
use crate::converge::fake::{Kernel, forward, intents, listener, local, over, planned};

/// A host, its agent, and what the agent remembers.
struct Scene {
    _guard: tempfile::TempDir,
    state: StateDir,
    converger: Converger<Kernel>,
    gate: PortGate,
    now: Instant,
    /// How many the last pass left out.
    waiting: usize,
}

impl Scene {
    /// Somebody listens on these ports.
    fn with_listeners(ports: &[u16]) -> Self {
        let guard = tempfile::tempdir().unwrap();
        let state = StateDir::lock(&guard.path().join("state")).unwrap();
        let (converger, gate) = (over(Kernel::default(), None), PortGate::default());
        let mut scene = Self { _guard: guard, state, converger, gate, now: Instant::now(), waiting: 0 };
        scene.listen(ports);
        scene
    }

    fn listen(&mut self, ports: &[u16]) {
        self.converger.engine.network.listeners.replace(ports.iter().map(|port| listener(*port)).collect());
    }

    /// Docker publishes these ports.
    fn publish(&mut self, ports: &[u16]) {
        let rule =
            |port: &u16| format!("-A DOCKER -p tcp -m tcp --dport {port} -j DNAT --to-destination 172.17.0.2:80\n");
        let rules: String = ports.iter().map(rule).collect();
        let save = format!(
            "*nat\n:PREROUTING ACCEPT\n:DOCKER -\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n{rules}COMMIT\n"
        );
        let holder = Holder::Iptables { program: "iptables-nft", own: true };
        self.converger.engine.rules.installed.firewall.tables = xtables::parse(&save, Family::V4, holder);
        self.converger.engine.changed = true;
    }

    /// A pass as the agent makes it; the names of those who have to wait.
    async fn pass(&mut self, wanted: &Intents) -> Vec<String> {
        let addresses = local();
        let facts = NodeFacts::of(&addresses, Moment::default());
        let waiting = self.gate.admit(&mut self.converger, wanted, &facts, self.now).await.unwrap();
        self.gate.keep(wanted, &self.state);
        self.state.keep_intents(wanted).unwrap();
        self.waiting = waiting.instead.len();
        let failures = waiting.failures.clone();
        let wanted = Rc::new(wanted.clone());
        if let Ok(report) = self.converger.converge(&wanted, waiting, &facts, &self.state).await {
            self.gate.passed(&wanted);
            assert!(failures.iter().all(|failure| report.failures.contains(failure)));
            let drift = self.converger.drift(&local()).await.unwrap();
            assert!(drift.is_none_or(|found| found.is_empty()), "who waits is no drift");
        }
        failures.iter().map(|failure| format!("{} {:?}", failure.forward.name, failure.reason)).collect()
    }

    /// Looks again after so many seconds; whether somebody may be let in.
    fn freed_after(&mut self, seconds: u64, wanted: &Intents) -> bool {
        self.now += Duration::from_secs(seconds);
        self.gate.is_freed(&self.converger, wanted, &NodeFacts::of(&local(), Moment::default()), self.now)
    }

    /// The agent starts anew.
    fn restart(&mut self) {
        self.gate = PortGate::default();
        if let Some(kept) = self.state.intents().unwrap() {
            self.gate.restore(&kept, &self.state, self.now);
        }
    }

    /// The host was booted: nothing is in the kernel, and nobody listens yet.
    fn reboot(&mut self) {
        self.converger = over(Kernel::default(), None);
        self.restart();
    }

    fn kept(&self) -> Vec<String> {
        self.state.not_admitted().unwrap().into_keys().map(|uid| uid.to_string()).collect()
    }

    async fn ports(&mut self) -> usize {
        let rules = self.converger.engine.rules().await;
        rules.v4.nat.ours.get("SALLY-MT").map_or(0, |chain| chain.len())
    }

    /// The ports that the kernel forwards, as iptables writes them.
    async fn forwarded(&mut self) -> Vec<String> {
        let rules = self.converger.engine.rules().await;
        let rules = rules.v4.nat.ours.get("SALLY-MT").into_iter().flatten().map(|rule| rule.as_str().to_owned());
        let port = |rule: String| rule.split_once("--dport ").unwrap().1.split(' ').next().unwrap().to_owned();
        rules.map(port).collect()
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
    assert_eq!((scene.ports().await, scene.kept()), (1, vec!["default/a".to_owned()]));
    scene.listen(&[]);
    assert!(scene.freed_after(11, &two()));
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!((scene.ports().await, scene.kept().len()), (2, 0));
    let asked = scene.converger.engine.network.asked.get();
    assert!(!scene.freed_after(11, &two()));
    assert_eq!(scene.converger.engine.network.asked.get(), asked, "where nobody waits nobody looks");
}

#[tokio::test]
async fn who_listens_later_revokes_nothing_and_is_not_even_looked_for() {
    let mut scene = Scene::with_listeners(&[]);
    scene.pass(&two()).await;
    scene.listen(&[8000]);
    let asked = scene.converger.engine.network.asked.get();
    // An edit is no first programming.
    let edited = intents(&(forward("a", 8000).replace("10.30.1.79", "10.30.1.90") + &forward("b", 8001)));
    for wanted in [two(), edited] {
        assert_eq!(scene.pass(&wanted).await, NOBODY);
        assert_eq!((scene.ports().await, scene.converger.engine.network.asked.get()), (2, asked));
    }
    scene.restart();
    assert_eq!(scene.pass(&two()).await, NOBODY);
    scene.reboot();
    scene.listen(&[8000]);
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!(scene.ports().await, 2);
}

#[tokio::test]
async fn whoever_was_let_in_stays_so_whatever_becomes_of_the_pass() {
    let mut scene = Scene::with_listeners(&[]);
    scene.pass(&intents(&forward("b", 8001))).await;
    scene.converger.engine.failures = (0, 1);
    assert_eq!(scene.pass(&two()).await, NOBODY);
    scene.listen(&[8000, 8001]);
    // One that is taken back and comes again before a pass succeeds never left the kernel.
    scene.converger.engine.failures = (0, 1);
    scene.pass(&intents("")).await;
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!(scene.ports().await, 2);
    scene.pass(&intents("")).await;
    assert_eq!(scene.pass(&two()).await, ["a PortInUse", "b PortInUse"], "these have left");
}

#[tokio::test]
async fn whoever_listens_may_start_anew() {
    let mut scene = Scene::with_listeners(&[8000]);
    scene.pass(&two()).await;
    assert!(!scene.freed_after(60, &two()), "the listener is there");
    scene.listen(&[]);
    assert!(!scene.freed_after(5, &two()), "it may only be starting anew");
    scene.converger.engine.network.listeners.replace(vec![Listener { inode: 99, ..listener(8000) }]);
    assert!(!scene.freed_after(4, &two()), "which it does, with another socket");
    scene.listen(&[]);
    assert!(!scene.freed_after(9, &two()));
    assert!(scene.freed_after(1, &two()));
}

#[tokio::test]
async fn only_those_who_were_there_first_are_waited_for() {
    let range = forward("r", 8000).replace("port: 8000", "port: 8000, endPort: 8009");
    let mut scene = Scene::with_listeners(&[8001]);
    assert_eq!(scene.pass(&intents(&range)).await, ["r PortInUse"]);
    // Clients come and go on ports of their own.
    scene.listen(&[8002]);
    assert!(scene.freed_after(11, &intents(&range)));
    scene.pass(&intents(&range)).await;
    assert_eq!(scene.waiting, 0);
    // Whoever asks for something else while it waits is looked at anew.
    let mut scene = Scene::with_listeners(&[8001]);
    scene.pass(&intents(&range)).await;
    scene.listen(&[8001, 8005]);
    let other = intents(&forward("r", 8005));
    assert_eq!(scene.pass(&other).await, ["r PortInUse"]);
    scene.listen(&[8005]);
    assert!(!scene.freed_after(20, &other));
}

#[tokio::test]
async fn who_waits_does_so_after_a_restart_and_a_reboot() {
    let mut scene = Scene::with_listeners(&[8000]);
    scene.pass(&two()).await;
    scene.restart();
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    // After a boot the agent is there first.
    scene.reboot();
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    assert!(!scene.freed_after(50, &two()));
    scene.listen(&[8000]);
    assert!(!scene.freed_after(5, &two()));
    assert!(!scene.freed_after(60, &two()));
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    assert_eq!(scene.ports().await, 1);
    scene.reboot();
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    assert!(scene.freed_after(60, &two()), "nobody came");
    assert_eq!(scene.pass(&two()).await, NOBODY);
}

#[tokio::test]
async fn what_the_kernel_holds_is_let_in_even_if_the_state_is_lost() {
    let mut scene = Scene::with_listeners(&[]);
    let many =
        intents(&forward("a", 8000).replace("cidr: 10.30.1.80/32", "cidr: 10.30.1.80/32 }, { cidr: 10.30.1.81/32"));
    for wanted in [two(), many] {
        scene.listen(&[]);
        scene.gate = PortGate::default();
        scene.pass(&wanted).await;
        scene.listen(&[8000]);
        scene.gate = PortGate::default();
        assert_eq!(scene.pass(&wanted).await, NOBODY);
    }
    scene.gate = PortGate::default();
    let other = intents(&forward("a", 8000).replace("10.30.1.79", "10.30.1.90"));
    assert_eq!(scene.pass(&other).await, ["a PortInUse"], "another of the same port");
}

#[tokio::test]
async fn what_the_kernel_holds_is_let_in_even_if_the_state_is_of_before() {
    let mut scene = Scene::with_listeners(&[8000]);
    scene.pass(&two()).await;
    let before = scene.state.not_admitted().unwrap();
    scene.listen(&[]);
    assert!(scene.freed_after(11, &two()));
    scene.pass(&two()).await;
    assert_eq!(scene.ports().await, 2);
    // As after a disk that could not be written, or an older version that does not know of it.
    scene.state.keep_not_admitted(&before).unwrap();
    scene.listen(&[8000]);
    scene.restart();
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!((scene.ports().await, scene.kept().len()), (2, 0));
}

#[tokio::test]
async fn where_listeners_cannot_be_seen_newcomers_do_not_wait_and_who_waits_goes_on() {
    let mut scene = Scene::with_listeners(&[8000]);
    scene.pass(&intents(&forward("a", 8000))).await;
    scene.converger.engine.network.deaf.set(true);
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    assert_eq!(scene.ports().await, 1);
    assert!(!scene.freed_after(60, &two()));
}

#[tokio::test]
async fn a_dry_run_lets_nobody_in_for_good() {
    let mut scene = Scene::with_listeners(&[8000]);
    let mut dry = Converger::new(DryRun::default(), Rc::new(NoKernel), None);
    let waiting =
        scene.gate.admit(&mut dry, &two(), &NodeFacts::of(&local(), Moment::default()), scene.now).await.unwrap();
    scene.gate.keep(&two(), &scene.state);
    scene.state.keep_intents(&two()).unwrap();
    assert_eq!(waiting.instead.len(), 0);
    scene.restart();
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"], "both come for the first time");
    assert_eq!(scene.ports().await, 1);
}

#[tokio::test]
async fn one_that_was_admitted_and_withdrawn_before_a_good_pass_comes_anew() {
    let mut scene = Scene::with_listeners(&[]);
    let (before, both) = (intents(&forward("a", 8000)), intents(&(forward("a", 8000) + &forward("b", 8001))));
    assert_eq!(scene.pass(&before).await, NOBODY);
    scene.converger.engine.failures = (0, 1);
    assert_eq!(scene.pass(&both).await, NOBODY);
    assert_eq!(scene.pass(&before).await, NOBODY);
    scene.listen(&[8001]);
    assert_eq!(scene.pass(&both).await, ["b PortInUse"]);
}

#[tokio::test]
async fn nobody_is_asked_to_stop_a_program_for_a_forward_that_cannot_be_carried() {
    let mut scene = Scene::with_listeners(&[8000]);
    let own = intents(&forward("a", 8000));
    let mut wanted = own.clone();
    for slice in wanted.slices.values_mut() {
        let slice = Arc::make_mut(slice);
        Arc::make_mut(&mut slice.forwards[0]).intent.targets[0].ip = "10.30.1.255".parse().unwrap();
    }
    assert_eq!(scene.pass(&wanted).await, NOBODY);
    assert_eq!((scene.ports().await, scene.kept()), (0, vec!["default/a".to_owned()]));
    assert_eq!(scene.pass(&own).await, ["a PortInUse"]);
}

#[tokio::test]
async fn what_an_edit_adds_is_not_admitted_while_it_cannot_be_carried() {
    let mut scene = Scene::with_listeners(&[]);
    assert_eq!(scene.pass(&intents(&forward("a", 8000))).await, NOBODY);
    let wide = intents(&forward("a", 8000).replace("port: 8000", "port: 8000, endPort: 8002"));
    let mut broken = wide.clone();
    for slice in broken.slices.values_mut() {
        let slice = Arc::make_mut(slice);
        Arc::make_mut(&mut slice.forwards[0]).intent.targets[0].ip = "10.30.1.255".parse().unwrap();
    }
    scene.listen(&[8002]);
    assert_eq!(scene.pass(&broken).await, NOBODY);
    assert_eq!(scene.pass(&wide).await, ["a PortInUse"]);
    assert_eq!(scene.kept(), ["default/a"]);
}

#[tokio::test]
async fn a_plan_says_who_would_be_in_the_way() {
    let mut scene = Scene::with_listeners(&[]);
    let carried = intents(&forward("a", 8000));
    scene.pass(&carried).await;
    scene.listen(&[8000, 8001, 8002]);
    let both = intents(&(forward("a", 8000) + &forward("c", 8002)));
    assert_eq!(scene.pass(&both).await, ["c PortInUse"]);
    // An edit of one that is carried is no first programming; a new forward is, and one that waits stays one.
    let edit = |text: String| text.replace("10.30.1.79", "10.30.1.90");
    let text = edit(forward("a", 8000)) + &forward("b", 8001) + &edit(forward("c", 8002));
    let wanted = planned(&both, &text);
    scene.pass(&wanted).await;
    let plans = scene.converger.plans(&wanted, &NodeFacts::of(&local(), Moment::default())).unwrap().unwrap();
    assert!(plans[0].change.contains("+ -A SALLY-MT"), "{plans:?}");
    for plan in &plans[1..] {
        assert!(
            plan.change.starts_with("# it would fail here: ") && plan.change.ends_with("(PortInUse)\n"),
            "{plans:?}"
        );
    }
}

#[tokio::test]
async fn a_rule_that_publishes_a_port_keeps_a_newcomer_out_as_a_listener_does() {
    let mut scene = Scene::with_listeners(&[]);
    scene.publish(&[8000]);
    assert_eq!(scene.pass(&two()).await, ["a PortInUse"]);
    assert_eq!((scene.forwarded().await, scene.kept()), (vec!["8001".to_owned()], vec!["default/a".to_owned()]));
    assert!(!scene.freed_after(60, &two()));
    scene.publish(&[]);
    // As the agent's loop does whenever rules have moved.
    scene.converger.drift(&local()).await.unwrap();
    assert!(!scene.freed_after(5, &two()), "the container may only be starting anew");
    assert!(scene.freed_after(11, &two()));
    assert_eq!(scene.pass(&two()).await, NOBODY);
    assert_eq!(scene.forwarded().await, ["8000", "8001"]);
    // Whoever publishes it later revokes nothing, and takes nothing from it after a restart, a reboot or an upgrade.
    scene.publish(&[8000, 8001]);
    assert_eq!(scene.pass(&two()).await, NOBODY);
    scene.restart();
    assert_eq!(scene.pass(&two()).await, NOBODY);
    scene.reboot();
    scene.publish(&[8000, 8001]);
    assert_eq!(scene.pass(&two()).await, NOBODY);
    scene.gate = PortGate::default();
    assert_eq!(scene.pass(&two()).await, NOBODY, "it is in the kernel, whatever became of the state");
    assert_eq!(scene.forwarded().await, ["8000", "8001"]);
}

#[tokio::test]
async fn what_an_edit_adds_waits_while_the_rest_of_it_is_in_force() {
    let wide = |to: &str| {
        intents(&forward("a", 8000).replace("port: 8000", "port: 8000, endPort: 8002").replace("10.30.1.79", to))
    };
    for published in [true, false] {
        let mut scene = Scene::with_listeners(&[]);
        scene.pass(&intents(&forward("a", 8000))).await;
        if published {
            scene.publish(&[8000, 8002]);
        } else {
            scene.listen(&[8000, 8002]);
        }
        // It goes to another target as well.
        assert_eq!(scene.pass(&wide("10.30.1.90")).await, ["a PortInUse"]);
        assert_eq!(scene.forwarded().await, ["8000"]);
        let rules = scene.converger.engine.rules().await;
        assert!(format!("{:?}", rules.v4.nat.ours).contains("10.30.1.90"), "the new target is in force");
        // Not even a restart lets it in, and its own port is not asked for.
        scene.restart();
        assert_eq!(scene.pass(&wide("10.30.1.90")).await, ["a PortInUse"]);
        assert_eq!(scene.forwarded().await, ["8000"]);
        scene.reboot();
        if published {
            scene.publish(&[8000, 8002]);
        } else {
            scene.listen(&[8000, 8002]);
        }
        assert_eq!(scene.pass(&wide("10.30.1.90")).await, ["a PortInUse"]);
        assert_eq!(scene.forwarded().await, ["8000"], "after a boot as well");
        // The edit is taken back, and made again without the port that is held.
        assert_eq!(scene.pass(&intents(&forward("a", 8000))).await, NOBODY);
        assert_eq!(scene.kept().len(), 0);
        let free = intents(&forward("a", 8000).replace("port: 8000", "port: 8000, endPort: 8001"));
        assert_eq!(scene.pass(&free).await, NOBODY);
        assert_eq!(scene.forwarded().await, ["8000:8001"]);
        // What an edit gave up it does not have any more.
        assert_eq!(scene.pass(&intents(&forward("a", 8001))).await, NOBODY);
        assert_eq!(scene.pass(&free).await, ["a PortInUse"]);
        assert_eq!(scene.forwarded().await, ["8001"]);
        scene.publish(&[]);
        scene.listen(&[]);
        scene.converger.drift(&local()).await.unwrap();
        assert!(scene.freed_after(11, &free));
        assert_eq!(scene.pass(&free).await, NOBODY);
        assert_eq!(scene.forwarded().await, ["8000:8001"]);
    }
}

#[tokio::test]
async fn an_edit_that_moves_a_forward_to_a_port_that_is_held_leaves_nothing_open() {
    let mut scene = Scene::with_listeners(&[]);
    scene.pass(&two()).await;
    scene.publish(&[8005]);
    let moved = intents(&(forward("a", 8005) + &forward("b", 8001)));
    assert_eq!(scene.pass(&moved).await, ["a PortInUse"]);
    assert_eq!(scene.forwarded().await, ["8001"], "the old port is wanted by nobody any more");
    scene.restart();
    assert_eq!(scene.pass(&moved).await, ["a PortInUse"]);
}
