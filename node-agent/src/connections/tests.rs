//! Where rules led to is noted before they go, and is found again by the next agent.

use sallyport_api::id::Moment;
use sallyport_api::testing::Forward;
use sallyport_policy::places::Places;
use sallyport_ruleset::facts::LocalAddress;
use sallyport_ruleset::flow::{Flow, Tuple};

use super::*;
use crate::converge::fake::{forward, intents, local};
use crate::intents::Instead;
use crate::state::NotAdmitted;

/// A table that followed intents, and what the connections of its node are known to be.
struct Scene {
    connections: Connections,
    table: ForwardingTable,
    before: Option<Intents>,
}

impl Scene {
    fn new() -> Self {
        Self { connections: Connections::default(), table: ForwardingTable::default(), before: None }
    }

    fn follow(&mut self, text: &str, addresses: &[LocalAddress]) {
        let mut wanted = intents(text);
        wanted.node.addresses = addresses.iter().map(|own| own.ip).collect();
        let nothing = Instead::new();
        let changes = wanted.changes_since(self.before.as_ref(), &nothing, &nothing);
        let facts = NodeFacts::of(addresses, Moment::default());
        let change = self.table.update(&wanted.node, &changes.gone, &changes.come, &facts);
        self.connections.follow(&self.table, &change);
        self.before = Some(wanted);
    }
}

/// A connection from 10.30.1.80 that somebody took the mark of.
fn to_port(port: u16) -> Flow {
    let socket = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
    Flow {
        protocol: Protocol::Tcp,
        original: Tuple { src: socket("10.30.1.80", 40_000), dst: socket("10.30.1.78", port) },
        reply: Tuple { src: socket("10.30.1.79", port), dst: socket("10.30.1.78", 40_000) },
        master: None,
        mark: 0,
        dnat: true,
        id: 1,
        zone: 0,
        stage: Stage::Open,
    }
}

/// Which of the ports 8000 to 8002 somebody's connections were led by that are noted.
fn noted(state: &StateDir) -> Vec<u16> {
    let past = state.past().unwrap();
    (8000..8006).filter(|port| past.lead(&to_port(*port))).collect()
}

fn state() -> (tempfile::TempDir, StateDir) {
    let guard = tempfile::tempdir().unwrap();
    let state = StateDir::lock(guard.path()).unwrap();
    (guard, state)
}

#[test]
fn where_rules_lead_is_noted_once_they_are_to_go() {
    let (guard, state) = state();
    let mut scene = Scene::new();
    let all = [8000, 8001, 8002].map(|port| forward(&format!("f{port}"), port));
    scene.follow(&all.concat(), &local());
    scene.connections.note(&state);
    assert!(!guard.path().join("past.json").exists(), "nothing has gone");

    scene.follow(&all[1..].concat(), &local());
    scene.connections.note(&state);
    assert_eq!(noted(&state), [8000]);

    // All of them at once, as an address that is not selected any more takes them along.
    let rest: Vec<LocalAddress> = local().into_iter().filter(|own| own.ip.is_ipv6()).collect();
    scene.follow(&all[2..].concat(), &rest);
    scene.connections.note(&state);
    assert_eq!(noted(&state), [8000, 8001, 8002]);
}

#[test]
fn what_an_agent_before_carried_is_noted_once_its_rules_are_to_go() {
    let (_guard, state) = state();
    let carried = Rc::new(intents(&(forward("a", 8000) + &forward("b", 8001))));
    let mut scene = Scene::new();
    scene.connections.take_up([&carried], &NodeFacts::of(&local(), Moment::default()), &state);
    scene.follow(&forward("b", 8001), &local());
    scene.connections.note(&state);
    assert_eq!(noted(&state), [8000]);

    // Another one, which has not come to ending them.
    let mut scene = Scene::new();
    let carried = Rc::new(intents(&forward("b", 8001)));
    scene.connections.take_up([&carried], &NodeFacts::of(&local(), Moment::default()), &state);
    scene.follow("", &local());
    scene.connections.note(&state);
    assert_eq!(noted(&state), [8000, 8001]);
}

#[test]
fn who_never_was_admitted_or_ended_long_ago_led_nowhere() {
    let (_guard, state) = state();
    let ended = forward("old", 8002) + "  expiresAt: 2020-01-01T00:00:00Z\n";
    let edited = forward("b", 8004).replace("port: 8004", "port: 8004, endPort: 8005");
    let carried = Rc::new(intents(&(forward("a", 8000) + &forward("waits", 8001) + &ended + &edited)));
    assert_eq!(carried.forwards().count(), 4);
    let had = Places::of(&Forward::tcp("default/b", 8004).intent());
    let waits = |had| NotAdmitted { had, waits: true };
    let outside = [("default/waits".into(), waits(Places::default())), ("default/b".into(), waits(had))];
    state.keep_not_admitted(&outside.into()).unwrap();
    state.keep_highest_time(sallyport_api::id::Moment(1_700_000_000)).unwrap();
    let mut scene = Scene::new();
    scene.connections.take_up([&carried], &NodeFacts::of(&local(), Moment::default()), &state);
    scene.follow("", &local());
    scene.connections.note(&state);
    assert_eq!(noted(&state), [8000, 8004], "connections to the same places are somebody else's");
}

#[tokio::test]
async fn what_has_gone_is_forgotten_once_no_connection_goes_by_it() {
    let (guard, state) = state();
    let mut scene = Scene::new();
    scene.follow(&forward("a", 8000), &local());
    scene.follow("", &local());
    scene.connections.note(&state);
    assert_eq!(noted(&state), [8000]);
    // Without a kernel there are none.
    scene.connections.settle(None, &scene.table, &Rc::new(intents("")), &[]).await.unwrap();
    scene.connections.note(&state);
    assert!(!guard.path().join("past.json").exists());
}
