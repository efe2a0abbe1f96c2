//! Passes over a kernel of which some tables cannot be read.

use std::collections::BTreeSet;

use proptest::prelude::*;
use sallyport_api::id::Moment;
use sallyport_ruleset::iptables::op::Step;
use sallyport_ruleset::iptables::rule::{Line, Table};

use super::*;
use crate::converge::fake::{Kernel, forward, intents, local, over, rules_of};
use crate::converge::{Error, Report};
use crate::intents::Carried;
use crate::state::StateDir;
use crate::waiting::Waiting;

/// A converger over a kernel, beside a fresh state directory.
struct Scene {
    _guard: tempfile::TempDir,
    state: StateDir,
    converger: Converger<Kernel>,
}

impl Scene {
    fn new() -> Self {
        Self::over(Kernel::default())
    }

    fn over(kernel: Kernel) -> Self {
        let guard = tempfile::tempdir().unwrap();
        let state = StateDir::lock(&guard.path().join("state")).unwrap();
        Self { state, _guard: guard, converger: over(kernel, None) }
    }

    async fn try_pass(&mut self, text: &str) -> Result<Report, Error> {
        self.converger
            .converge(
                &Rc::new(intents(text)),
                Waiting::default(),
                &NodeFacts::of(&local(), Moment::default()),
                &self.state,
            )
            .await
    }

    async fn pass(&mut self, text: &str) -> Report {
        self.try_pass(text).await.unwrap()
    }

    /// Somebody adds a rule that iptables cannot read.
    fn add_native(&mut self, family: Family, table: Table) {
        self.converger.engine.native.insert((family, table));
        self.converger.engine.changed = true;
    }

    fn remove_native(&mut self) {
        self.converger.engine.native.clear();
        self.converger.engine.changed = true;
    }

    /// The ports that are delivered over IPv4.
    async fn ports(&mut self) -> BTreeSet<u16> {
        ports(&self.converger.engine.rules().await.ours())
    }

    /// How often the jumps of IPv4 are there.
    async fn jumps(&mut self) -> Vec<usize> {
        let rules = self.converger.engine.rules().await;
        let count = |table: Table, builtin: &str, ours: &str| {
            let there = rules.v4.table(table).foreign.get(builtin);
            there.map_or(0, |rules| rules.iter().filter(|rule| **rule == format!("-j {ours}")).count())
        };
        let hooks = Table::ALL.into_iter().flat_map(|table| table.hooks().iter().map(move |hook| (table, hook)));
        hooks.map(|(table, (builtin, ours))| count(table, builtin, ours)).collect()
    }
}

fn ports(ours: &Ruleset) -> BTreeSet<u16> {
    let rules = ours.v4.nat.values().flatten().filter(|rule| rule.as_str().contains("-j DNAT "));
    let port = |rule: &Line| rule.as_str().split_once("--dport ")?.1.split(' ').next()?.parse().ok();
    rules.filter_map(port).collect()
}

fn text(ports: &[u16]) -> String {
    ports.iter().map(|port| forward(&format!("f{port}"), *port)).collect()
}

fn refused(report: &Report) -> Vec<String> {
    report.failures.iter().map(|failure| format!("{} {}", failure.forward.name, failure.reason)).collect()
}

#[tokio::test]
async fn a_table_that_cannot_be_read_is_not_an_empty_one() {
    for table in Table::ALL.into_iter().filter(|table| table.is_needed()) {
        let mut scene = Scene::new();
        scene.pass(&text(&[8000])).await;
        scene.add_native(Family::V4, table);
        let report = scene.pass(&text(&[8000])).await;
        assert_eq!(report.changed, None, "no second jump");
        assert_eq!(report.unreadable, [format!("IPv4: cannot read table {}", table.name())]);
        assert_eq!(refused(&report), ["f8000 TableUnreadable"]);
        assert!(report.failures[0].message.contains("its rules are there as they were"));
        assert_eq!(scene.jumps().await, [1; 5]);
        assert!(!scene.converger.holds());

        scene.remove_native();
        let report = scene.pass(&text(&[8000])).await;
        assert_eq!((report.unreadable.len(), report.failures.len(), report.changed), (0, 0, None));
        assert!(scene.converger.holds());
    }
}

#[tokio::test]
async fn a_forward_stays_and_its_sources_are_put_right_whatever_somebody_did_to_them() {
    let mut scene = Scene::new();
    let two = text(&[8000]).replace("{ cidr: 10.30.1.80/32 }", "{ cidr: 10.30.1.80/32 }, { cidr: 10.30.1.81/32 }");
    scene.pass(&two).await;
    let before = scene.converger.engine.rules().await;
    let sources = before.v4.nat.ours.keys().find(|chain| chain.starts_with("SALLY-S-")).unwrap().clone();
    let chain = scene.converger.engine.rules.installed.v4.nat.ours.get_mut(&sources).unwrap();
    *chain = chain[1..].to_vec().into();
    scene.add_native(Family::V4, Table::Nat);
    let report = scene.pass(&two).await;
    assert_eq!(refused(&report), ["f8000 TableUnreadable"]);
    assert!(report.failures[0].message.contains("its rules are there as they were"), "{report:?}");
    assert_eq!(scene.converger.engine.rules().await, before);
}

#[tokio::test]
async fn what_is_new_waits_until_the_table_can_be_read() {
    let mut scene = Scene::new();
    scene.add_native(Family::V4, Table::Nat);
    let report = scene.pass(&text(&[8000])).await;
    assert_eq!(refused(&report), ["f8000 TableUnreadable"]);
    assert!(report.failures[0].message.contains("it has no rules there yet"));
    assert_eq!(scene.converger.engine.rules().await, InstalledRuleset::default());

    scene.remove_native();
    assert_eq!(refused(&scene.pass(&text(&[8000])).await), [""; 0]);
    assert_eq!(scene.ports().await, [8000].into());
}

#[tokio::test]
async fn a_table_without_which_all_is_delivered_holds_up_nothing() {
    let mut scene = Scene::new();
    scene.pass(&text(&[8000])).await;
    let input = scene.converger.engine.rules().await.ours().v4.mangle;
    scene.add_native(Family::V4, Table::Mangle);
    let report = scene.pass(&text(&[8001, 8002])).await;
    assert_eq!((report.unreadable.len(), refused(&report)), (0, Vec::<String>::new()));
    assert_eq!(scene.ports().await, [8001, 8002].into());
    assert_eq!(scene.converger.engine.rules().await.ours().v4.mangle, input, "it waits as it is");
    assert!(scene.converger.holds());
    // Nothing of ours outlives the last forward.
    scene.pass("").await;
    assert_eq!(scene.jumps().await, [0; 5]);
    assert_eq!(scene.converger.engine.rules().await.ours(), Ruleset::default());
}

#[tokio::test]
async fn what_is_not_wanted_any_more_goes_and_the_rest_stays() {
    let mut scene = Scene::new();
    scene.pass(&text(&[8000, 8001])).await;
    scene.add_native(Family::V4, Table::Nat);
    let report = scene.pass(&text(&[8001, 8002])).await;
    assert_eq!(refused(&report), ["f8001 TableUnreadable", "f8002 TableUnreadable"]);
    assert_eq!(scene.ports().await, [8001].into());

    scene.pass("").await;
    assert_eq!(scene.jumps().await, [0; 5]);
    assert_eq!(scene.converger.engine.rules().await.ours(), Ruleset::default());
}

#[tokio::test]
async fn a_hundred_jumps_of_an_older_agent_go_with_what_they_led_to() {
    let mut scene = Scene::new();
    scene.pass(&text(&[8000])).await;
    let many: String = (0..100).map(|_| "-I PREROUTING 1 -j SALLY-PRE\n").collect();
    scene.converger.engine.meddle(&format!("*nat\n{many}COMMIT\n"));
    scene.add_native(Family::V4, Table::Nat);
    scene.pass("").await;
    assert_eq!(scene.jumps().await, [0; 5]);
}

#[tokio::test]
async fn narrowed_sources_are_narrowed_and_widened_ones_wait() {
    let (one, two) = ("10.30.1.80/32", "10.30.1.81/32");
    let from = |allow: &[&str]| {
        let allow: String = allow.iter().map(|cidr| format!("{{ cidr: {cidr} }}, ")).collect();
        forward("a", 8000).replace("{ cidr: 10.30.1.80/32 }", &allow)
    };
    let mut scene = Scene::new();
    scene.pass(&from(&[one, two])).await;
    scene.add_native(Family::V4, Table::Filter);
    let report = scene.pass(&from(&[one, "10.30.1.90/32"])).await;
    let said = &report.failures[0].message;
    assert!(said.contains("those are there that were before and are still allowed"), "{said}");
    let now = intents(&from(&[one]));
    let expected = rules_of(&now);
    assert_eq!(scene.converger.engine.rules().await.ours().v4.nat, expected.v4.nat);

    let report = scene.pass(&from(&[one, two])).await;
    assert_eq!((refused(&report), report.changed), (vec!["a TableUnreadable".to_owned()], None));
}

#[tokio::test]
async fn an_agent_that_starts_beside_such_a_table_keeps_what_it_finds() {
    let mut scene = Scene::new();
    scene.pass(&text(&[8000, 8001])).await;
    let before = Rc::new(intents(&text(&[8000, 8001])));
    let mut next = Scene::over(std::mem::take(&mut scene.converger.engine));
    next.add_native(Family::V4, Table::Nat);
    next.converger.carry(Some(&before));
    next.pass(&text(&[8001, 8002])).await;
    assert_eq!(next.ports().await, [8001].into());

    // What was kept on disk and never came into the kernel does not count.
    let mut late = Scene::new();
    late.add_native(Family::V4, Table::Nat);
    late.converger.carry(Some(&before));
    late.pass(&text(&[8000, 8001])).await;
    assert_eq!(late.ports().await, [].into());
}

#[tokio::test]
async fn what_is_carried_apart_from_the_intents_outlives_a_restart() {
    let from = |allow: &str| forward("a", 8000).replace("{ cidr: 10.30.1.80/32 }", allow);
    let (one, both) = (from("{ cidr: 10.30.1.80/32 }"), from("{ cidr: 10.30.1.80/32 }, { cidr: 10.30.1.81/32 }"));
    let mut scene = Scene::new();
    scene.pass(&one).await;
    scene.add_native(Family::V4, Table::Nat);
    scene.pass(&both).await;
    let wanted = Rc::new(intents(&both));
    let noted = scene.converger.carried_apart(&wanted);
    assert_eq!((noted.v4.is_some(), noted.v6.is_some()), (true, false));
    scene.state.keep_carried(&noted).unwrap();
    assert_eq!(scene.state.carried().unwrap(), noted);

    let mut next = Scene::over(std::mem::take(&mut scene.converger.engine));
    next.converger.carry(Some(&wanted));
    next.converger.carry_noted(noted);
    assert_eq!(next.pass(&both).await.changed, None);
    assert_eq!(next.ports().await, [8000].into());
    next.remove_native();
    next.pass(&both).await;
    assert_eq!(next.converger.carried_apart(&wanted), Carried::default());
}

#[tokio::test]
async fn without_any_note_what_is_there_and_wanted_stays() {
    let mut scene = Scene::new();
    scene.pass(&text(&[8000, 8001])).await;
    let mut next = Scene::over(std::mem::take(&mut scene.converger.engine));
    next.add_native(Family::V4, Table::Nat);
    next.pass(&text(&[8001, 8002])).await;
    assert_eq!(next.ports().await, [8001].into());
}

#[tokio::test]
async fn a_table_that_can_be_read_again_is_seen_though_no_rule_has_changed() {
    let mut scene = Scene::new();
    scene.add_native(Family::V4, Table::Nat);
    scene.pass(&text(&[8000])).await;
    scene.converger.engine.native.clear();
    assert_eq!(scene.pass(&text(&[8000])).await.unreadable, [""; 0]);
    assert_eq!(scene.ports().await, [8000].into());
}

#[tokio::test]
async fn the_other_family_is_not_affected() {
    let six = forward("six", 8006).replace("10.30.1.80/32", "fd00::80/128").replace("10.30.1.79", "fd00::79");
    let mut scene = Scene::new();
    scene.add_native(Family::V4, Table::Nat);
    let report = scene.pass(&(six.clone() + &text(&[8000]))).await;
    assert_eq!(refused(&report), ["f8000 TableUnreadable"]);
    let wanted = intents(&six);
    let expected = rules_of(&wanted);
    assert_eq!(scene.converger.engine.rules().await.ours().v6, expected.v6);
}

#[tokio::test]
async fn a_chain_of_ours_that_cannot_be_read_is_written_anew() {
    let mut scene = Scene::new();
    scene.pass(&text(&[8000])).await;
    scene.add_native(Family::V4, Table::Nat);
    scene.converger.engine.native_in.insert("SALLY-PRE".to_owned());
    let report = scene.pass(&text(&[8000])).await;
    assert_eq!(report.changed.as_deref(), Some("IPv4 SALLY-PRE"));
    assert_eq!(scene.converger.engine.native_in.len(), 0);
    assert_eq!(scene.ports().await, [8000].into());
}

#[tokio::test]
async fn where_not_even_our_chains_can_be_read_they_are_flushed() {
    let mut scene = Scene::new();
    scene.pass(&text(&[8000, 8001])).await;
    scene.add_native(Family::V4, Table::Nat);
    let chains: Vec<String> = scene.converger.engine.rules().await.v4.nat.ours.into_keys().collect();
    scene.converger.engine.stays_native = true;
    scene.converger.engine.native_in.extend(chains);
    let report = scene.pass(&text(&[8001])).await;
    assert_eq!(refused(&report), ["f8001 TableUnreadable"]);
    assert_eq!(scene.ports().await, [].into(), "what cannot be seen to be right is not left there");
}

#[derive(Clone, Debug)]
enum Event {
    Want(Vec<u16>),
    Native(Family, Table),
    Readable,
    Foreign(&'static str),
    Restart,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let table = prop_oneof![Just(Table::Filter), Just(Table::Nat)];
    let foreign = prop_oneof![
        Just("*nat\n-I PREROUTING 1 -p tcp -j ACCEPT\nCOMMIT\n"),
        Just("*nat\n-A PREROUTING -j OTHER\nCOMMIT\n"),
        Just("*filter\n-I FORWARD 1 -j DROP\nCOMMIT\n"),
        Just("*filter\n-A FORWARD -j REJECT\nCOMMIT\n"),
    ];
    let event = prop_oneof![
        4 => prop::collection::btree_set(8000..8006_u16, 0..5).prop_map(|ports| Event::Want(ports.into_iter().collect())),
        3 => (family, table).prop_map(|(family, table)| Event::Native(family, table)),
        2 => Just(Event::Readable),
        2 => foreign.prop_map(Event::Foreign),
        1 => Just(Event::Restart),
    ];
    prop::collection::vec(event, 1..24)
}

proptest! {
    // Each is up to two dozen passes.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn whatever_others_do_no_jump_is_doubled_nothing_unwanted_stays_and_verified_is_true(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut scene = Scene::new();
            let mut wanted = Vec::new();
            for event in events {
                match event {
                    Event::Want(ports) => wanted = ports,
                    Event::Native(family, table) => scene.add_native(family, table),
                    Event::Readable => scene.remove_native(),
                    Event::Foreign(rule) => scene.converger.engine.meddle(rule),
                    Event::Restart => {
                        let carried = std::mem::take(&mut scene.converger.carried);
                        scene = Scene::over(std::mem::take(&mut scene.converger.engine));
                        scene.converger.carried = carried;
                    }
                }
                let before = scene.ports().await;
                let report = scene.pass(&text(&wanted)).await;
                let after = scene.ports().await;
                let all: BTreeSet<u16> = wanted.iter().copied().collect();
                prop_assert!(after.is_subset(&all), "{after:?} of {all:?}");
                prop_assert!(scene.jumps().await.into_iter().all(|jumps| jumps <= 1));
                if scene.converger.engine.native.iter().any(|(family, _)| *family == Family::V4) {
                    prop_assert!(!report.unreadable.is_empty());
                    prop_assert_eq!(after, before.intersection(&all).copied().collect());
                } else {
                    prop_assert_eq!(after, all);
                }
                if report.unreadable.is_empty() {
                    let wanted = intents(&text(&wanted));
                    let expected = rules_of(&wanted);
                    prop_assert_eq!(scene.converger.engine.rules().await.ours(), expected);
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_preview_says_what_waits_and_shows_what_goes() {
    let mut scene = Scene::new();
    scene.pass(&text(&[8000])).await;
    scene.add_native(Family::V4, Table::Nat);
    let preview = scene
        .converger
        .preview(&Rc::new(intents(&text(&[8001]))), Waiting::default(), &NodeFacts::of(&local(), Moment::default()))
        .await
        .unwrap();
    assert_eq!(preview.unreadable, ["IPv4: cannot read table nat"]);
    assert!(preview.ops.iter().any(|op| op.step == Step::Delete { chain: "SALLY-PRE".to_owned() }));
}
