//! Passes over a kernel that drifts, refuses, or is fought over.

mod many;
mod previews;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use sallyport_api::id::Moment;
use sallyport_ruleset::iptables::op::Step;
use sallyport_ruleset::iptables::rule::{Chains, Line, Table};

use super::fake::{Kernel, REQUIRE, forward, intents, local, over, planned, rules_of};
use super::*;

/// A converger over a fresh kernel, beside a fresh state directory.
struct Scene {
    guard: tempfile::TempDir,
    state: StateDir,
    converger: Converger<Kernel>,
    wanted: Rc<Intents>,
    now: Moment,
}

impl Scene {
    fn new() -> Self {
        Self::with(Kernel::default(), |_| None)
    }

    fn with(kernel: Kernel, sysctl: impl FnOnce(&Path) -> Option<Sysctl>) -> Self {
        let guard = tempfile::tempdir().unwrap();
        let state = StateDir::lock(&guard.path().join("state")).unwrap();
        let wanted = Rc::new(intents(""));
        Self { converger: over(kernel, sysctl(guard.path())), state, guard, wanted, now: Moment::default() }
    }

    /// Whose forwarding switches are files; all are off.
    fn with_switches() -> Self {
        Self::with(Kernel::default(), |root| {
            for family in ["ipv4", "ipv6"] {
                let conf = root.join(family).join("conf/all");
                fs::create_dir_all(&conf).unwrap();
                fs::write(conf.join("forwarding"), "0\n").unwrap();
                fs::write(conf.join("accept_redirects"), "1\n").unwrap();
            }
            fs::write(root.join("ipv4/ip_forward"), "0\n").unwrap();
            fs::write(root.join("routes"), "").unwrap();
            Some(Sysctl::new(root))
        })
    }

    async fn pass(&mut self, intents: &Intents) -> Result<Report, Error> {
        self.wanted = Rc::new(intents.clone());
        self.converger.converge(&self.wanted, Waiting::default(), &NodeFacts::of(&local(), self.now), &self.state).await
    }

    /// Whether connections were looked at with what was wanted last.
    fn is_settled(&self) -> bool {
        self.converger.connections.is_settled(&self.wanted, &[])
    }

    /// What somebody else has changed.
    async fn drift(&mut self) -> Option<String> {
        self.converger.drift(&local()).await.unwrap().map(|found| told(&found))
    }

    fn kernel(&mut self) -> &mut Kernel {
        &mut self.converger.engine
    }

    fn switch(&self) -> String {
        fs::read_to_string(self.guard.path().join("ipv4/ip_forward")).unwrap().trim().to_owned()
    }
}

#[tokio::test]
async fn what_is_wanted_is_applied_once_and_read_back() {
    let mut scene = Scene::new();
    let wanted = intents(&forward("a", 8000));
    let report = scene.pass(&wanted).await.unwrap();
    assert!(report.changed.unwrap().contains("IPv4 SALLY-PRE"));
    let read = scene.kernel().rules().await.ours();
    assert_eq!(report.digest, read.digest());
    assert_eq!(read, rules_of(&wanted));

    let again = scene.pass(&wanted).await.unwrap();
    assert_eq!((again.changed, again.digest), (None, report.digest));
    assert_eq!(scene.kernel().applied.len(), 1);
    // Once to plan, once to verify; later nothing had moved.
    assert_eq!(scene.kernel().observed, 2);
}

#[tokio::test]
async fn where_rules_led_is_on_disk_before_the_kernel_is_touched() {
    let mut scene = Scene::new();
    scene.pass(&intents(&forward("a", 8000))).await.unwrap();
    let (addresses, past) = (local(), scene.guard.path().join("state/past.json"));
    assert!(!past.exists());
    let facts = NodeFacts::of(&addresses, scene.now);
    scene.converger.prepare(&Rc::new(intents("")), Waiting::default(), &facts, &scene.state);
    assert!(past.exists(), "or a crash now would let go on whoever is connected, once the intents are kept");
    assert_eq!(scene.kernel().applied.len(), 1);
}

#[tokio::test]
async fn a_new_agent_finds_the_rules_of_the_last_one_and_changes_nothing() {
    let mut scene = Scene::new();
    let wanted = intents(&forward("a", 8000));
    scene.pass(&wanted).await.unwrap();
    let kernel = std::mem::take(scene.kernel());
    let mut next = Scene::with(kernel, |_| None);
    assert_eq!(next.pass(&wanted).await.unwrap().changed, None);
    assert_eq!(next.kernel().applied.len(), 1);
}

#[tokio::test]
async fn without_forwards_nothing_of_ours_is_left() {
    let mut scene = Scene::new();
    scene.pass(&intents(&forward("a", 8000))).await.unwrap();
    scene.pass(&intents("")).await.unwrap();
    assert!(scene.kernel().rules().await.ours().v4.is_empty());
}

#[tokio::test]
async fn drift_is_seen_and_repaired() {
    let mut scene = Scene::new();
    let wanted = intents(&forward("a", 8000));
    scene.pass(&wanted).await.unwrap();
    assert_eq!(scene.drift().await, None);
    for (drift, said) in [
        ("*nat\n-D PREROUTING -j SALLY-PRE\nCOMMIT\n", "nat PREROUTING: the jump to SALLY-PRE is missing"),
        ("*nat\n:SALLY-PRE - [0:0]\nCOMMIT\n", "nat SALLY-PRE: 1 rule missing: "),
        ("*nat\n-A SALLY-PRE -j ACCEPT\nCOMMIT\n", "nat SALLY-PRE: 1 rule added: -j ACCEPT"),
        ("*filter\n-D FORWARD -j SALLY-FWD\n-X SALLY-FWD\nCOMMIT\n", "filter SALLY-FWD: the chain is missing; "),
        (
            "*nat\n:SALLY-EVIL - [0:0]\n-A SALLY-EVIL -j ACCEPT\nCOMMIT\n",
            "nat SALLY-EVIL: the chain should not be there",
        ),
        (
            "*nat\n-I PREROUTING 1 -p tcp -m tcp --dport 8000 -j DNAT --to-destination 10.9.9.9\nCOMMIT\n",
            "nat PREROUTING: a rule before ours would take our packets: -p tcp -m tcp --dport 8000 -j DNAT",
        ),
    ] {
        scene.kernel().meddle(drift);
        let found = scene.drift().await.unwrap();
        assert!(found.starts_with(&format!("IPv4 {said}")), "{found}");
        let report = scene.pass(&wanted).await.unwrap();
        assert!(report.changed.is_some(), "{drift}");
        assert_eq!(report.digest, rules_of(&wanted).digest());
        assert_eq!(scene.drift().await, None, "{drift}");
    }
}

#[tokio::test]
async fn a_change_that_is_none_of_ours_is_no_drift() {
    let mut scene = Scene::new();
    let wanted = intents(&forward("a", 8000));
    scene.pass(&wanted).await.unwrap();
    // As after a change of another table: the counter moved, what we look at did not.
    scene.kernel().changed = true;
    assert_eq!(scene.drift().await, None);

    scene.kernel().meddle("*filter\n-A INPUT -j DROP\nCOMMIT\n");
    assert_eq!(scene.drift().await.as_deref(), Some(""), "a pass looks at it, and finds nothing of ours");
    scene.pass(&wanted).await.unwrap();
    assert_eq!(scene.kernel().applied.len(), 1);
}

#[tokio::test]
async fn a_kernel_that_does_not_hold_what_is_applied_is_given_up_after_three_tries() {
    let mut scene = Scene::new();
    scene.kernel().meddling = Some("*nat\n-D PREROUTING -j SALLY-PRE\nCOMMIT\n");
    let wanted = intents(&forward("a", 8000));
    let error = scene.pass(&wanted).await.unwrap_err();
    assert!(
        matches!(&error, Error::Different { difference } if difference.contains("-I PREROUTING 1 -j SALLY-PRE")),
        "{error}"
    );
    assert_eq!(scene.kernel().applied.len(), ATTEMPTS);

    scene.kernel().meddling = None;
    assert!(scene.pass(&wanted).await.unwrap().changed.is_some());
}

#[tokio::test]
async fn a_refusal_leaves_the_kernel_as_it_was_and_the_next_pass_looks_again() {
    let mut scene = Scene::new();
    let (old, new) = (intents(&forward("a", 8000)), intents(&forward("a", 9000)));
    scene.pass(&old).await.unwrap();
    let before = scene.kernel().rules().await;
    scene.kernel().failures.1 = 1;
    assert!(matches!(scene.pass(&new).await, Err(Error::Engine(_))));
    assert_eq!(scene.kernel().rules().await, before);
    assert!(scene.pass(&new).await.unwrap().changed.is_some());
}

#[tokio::test]
async fn what_a_failed_pass_left_undone_is_nobodys_drift() {
    let mut scene = Scene::new();
    scene.pass(&intents(&forward("a", 8000))).await.unwrap();
    let new = intents(&forward("a", 9000));
    scene.kernel().failures.1 = 1;
    scene.pass(&new).await.unwrap_err();
    assert_eq!(scene.drift().await, None);
    scene.kernel().meddle("*filter\n-A INPUT -j DROP\nCOMMIT\n");
    assert_eq!(scene.drift().await.as_deref(), Some(""), "somebody changed something: worth a try");
}

#[tokio::test]
async fn connections_are_looked_at_again_after_a_pass_that_changed_rules_but_did_not_end() {
    let mut scene = Scene::new();
    scene.pass(&intents(&forward("a", 8000))).await.unwrap();
    assert!(scene.is_settled());
    // The reading after the change fails, so what has to be cut is not cut yet.
    scene.kernel().failures.0 = 1;
    assert!(scene.pass(&intents("")).await.is_err());
    assert!(!scene.is_settled());
    let report = scene.pass(&intents("")).await.unwrap();
    assert_eq!(report.changed, None);
    assert!(scene.is_settled());
}

#[tokio::test]
async fn connections_are_looked_at_again_when_an_intent_changes_and_its_rules_do_not() {
    let mut scene = Scene::new();
    let severing = forward("a", 8000) + "  lifecycle: { onTargetRemoved: Sever }\n";
    for (wanted, looks) in [(&forward("a", 8000), 1), (&forward("a", 8000), 1), (&severing, 2), (&severing, 2)] {
        scene.pass(&intents(wanted)).await.unwrap();
        assert_eq!(scene.kernel().network.looked.get(), looks, "{wanted}");
    }
    assert_eq!(scene.kernel().applied.len(), 1, "the rules are the same");
    assert!(!scene.converger.recount().await.unwrap(), "nothing drains, and it is counted");
    assert_eq!(scene.kernel().network.looked.get(), 2);
}

#[tokio::test]
async fn a_forward_that_expires_loses_its_rules_and_connections_and_others_keep_theirs() {
    let mut scene = Scene::new();
    // Of weight 0 it has no rule of its own, but it may have connections.
    let idle = forward("c", 8002).replace("ip: 10.30.1.79", "ip: 10.30.1.79, weight: 0");
    let expiring =
        (forward("a", 8000) + "  expiresAt: 1970-01-01T00:01:40Z\n", idle + "  expiresAt: 1970-01-01T00:03:20Z\n");
    let wanted = intents(&(expiring.0 + &forward("b", 8001) + &expiring.1));
    let ports =
        |nat: &Chains| ["8000", "8001"].map(|port| nat["SALLY-MT"].iter().any(|rule| rule.as_str().contains(port)));
    for (now, here, failed, looks) in [(99, [true, true], 0, 1), (100, [false, true], 1, 2), (200, [false, true], 2, 3)]
    {
        scene.now = Moment(now);
        let report = scene.pass(&wanted).await.unwrap();
        assert_eq!(ports(&scene.kernel().rules().await.ours().v4.nat), here, "{now}");
        assert_eq!(report.failures.len(), failed, "{now}");
        assert_eq!(scene.kernel().network.looked.get(), looks, "{now}");
    }
}

#[tokio::test]
async fn a_pass_that_cannot_list_connections_is_no_success() {
    let mut scene = Scene::new();
    scene.kernel().network.blind.set(true);
    assert!(scene.pass(&intents(&forward("a", 8000))).await.is_err());
    assert!(!scene.is_settled());
    scene.kernel().network.blind.set(false);
    scene.pass(&intents(&forward("a", 8000))).await.unwrap();
    assert!(scene.is_settled());
}

#[tokio::test]
async fn the_first_place_is_left_to_whoever_keeps_taking_it() {
    let mut scene = Scene::new();
    let wanted = intents(&forward("a", 8000));
    scene.pass(&wanted).await.unwrap();
    let rival = "*nat\n-I PREROUTING 1 -p tcp -m tcp --dport 8000 -j DNAT --to-destination 10.9.9.9\nCOMMIT\n";
    for round in 1..=precedence::MOVES {
        scene.kernel().meddle(rival);
        assert_eq!(scene.pass(&wanted).await.unwrap().shadowed_by, None);
        assert_eq!(scene.kernel().applied.len(), 1 + round);
    }
    scene.kernel().meddle(rival);
    let told = scene.pass(&wanted).await.unwrap().shadowed_by.unwrap();
    assert_eq!(scene.kernel().applied.len(), 1 + precedence::MOVES, "still fighting");
    assert!(told.starts_with("IPv4 nat PREROUTING: a rule before ours would take our packets: -p tcp"), "{told}");
    scene.kernel().changed = true;
    assert_eq!(scene.drift().await, None, "that they are there is known");

    // What is missing altogether is repaired all the same, without fighting for the place.
    scene.kernel().meddle("*nat\n:SALLY-PRE - [0:0]\nCOMMIT\n");
    let report = scene.pass(&wanted).await.unwrap();
    assert!(report.changed.is_some() && report.shadowed_by.is_some());
    let prerouting = scene.kernel().rules().await.v4.nat.foreign["PREROUTING"].clone();
    assert!(prerouting[0].contains("10.9.9.9"), "{prerouting:?}");

    // They go: that is seen, and nothing is left to tell.
    let leave = format!(
        "*nat\n{}COMMIT\n",
        "-D PREROUTING -p tcp -m tcp --dport 8000 -j DNAT --to-destination 10.9.9.9\n".repeat(6)
    );
    scene.kernel().meddle(&leave);
    assert_eq!(scene.drift().await.as_deref(), Some(""));
    assert_eq!(scene.pass(&wanted).await.unwrap().shadowed_by, None);
}

#[tokio::test]
async fn forwarding_is_turned_on_for_families_with_rules_and_only_then() {
    let mut scene = Scene::with_switches();
    assert_eq!(scene.pass(&intents("")).await.unwrap().forwarding, []);
    assert_eq!(scene.switch(), "0");
    let wanted = intents(&forward("a", 8000));
    assert_eq!(scene.pass(&wanted).await.unwrap().forwarding, [Family::V4]);
    assert_eq!(scene.switch(), "1");
    assert_eq!(fs::read_to_string(scene.guard.path().join("ipv6/conf/all/forwarding")).unwrap(), "0\n");
    assert_eq!(scene.pass(&wanted).await.unwrap().forwarding, []);

    // Somebody turns it off.
    fs::write(scene.guard.path().join("ipv4/ip_forward"), "0\n").unwrap();
    assert_eq!(scene.drift().await.as_deref(), Some("forwarding of IPv4 packets is off"));
    assert_eq!(scene.pass(&wanted).await.unwrap().forwarding, [Family::V4]);
    assert_eq!(scene.drift().await, None);
}

#[tokio::test]
async fn how_forwarding_was_is_on_disk_before_it_is_turned_on() {
    let mut scene = Scene::with_switches();
    let switch = scene.guard.path().join("ipv4/ip_forward");
    fs::remove_file(&switch).unwrap();
    // Reads as off, and nobody can write it, root included.
    symlink("/sys/class/net/lo/addr_assign_type", &switch).unwrap();
    let error = scene.pass(&intents(&forward("a", 8000))).await.unwrap_err();
    assert!(matches!(error, Error::Forwarding { family: Family::V4, source: sysctl::Error::Write { .. } }), "{error}");
    let families: Vec<Family> = scene.state.host().unwrap().sysctls.iter().map(sysctl::Record::family).collect();
    assert_eq!(families, [Family::V4]);
}

#[tokio::test]
async fn a_pool_that_requires_forwarding_never_writes_it_but_says_that_it_is_off() {
    let mut scene = Scene::with_switches();
    let wanted = intents(&(REQUIRE.to_owned() + &forward("a", 8000)));
    let error = scene.pass(&wanted).await.unwrap_err();
    assert!(matches!(error, Error::ForwardingRequired { family: Family::V4 }), "{error}");
    assert_eq!(scene.switch(), "0");
    // The rules are there all the same, for when it is on.
    assert!(!scene.kernel().rules().await.ours().v4.is_empty());

    // Nothing is new about that, and rules are looked after meanwhile.
    assert_eq!(scene.drift().await, None);
    scene.kernel().meddle("*nat\n:SALLY-PRE - [0:0]\nCOMMIT\n");
    assert!(scene.drift().await.unwrap().contains("SALLY-PRE: 1 rule missing"));
    scene.pass(&wanted).await.unwrap_err();
    assert_eq!(scene.kernel().applied.len(), 2);

    fs::write(scene.guard.path().join("ipv4/ip_forward"), "1\n").unwrap();
    assert_eq!(scene.drift().await.as_deref(), Some(""), "on again");
    scene.pass(&wanted).await.unwrap();
    assert_eq!(scene.drift().await, None);
    fs::write(scene.guard.path().join("ipv4/ip_forward"), "0\n").unwrap();
    assert_eq!(scene.drift().await.as_deref(), Some("forwarding of IPv4 packets is off"));
}

#[tokio::test]
async fn what_was_absent_before_us_is_noted_before_the_first_change_and_once() {
    let object = |table: &str| {
        serde_json::from_value(serde_json::json!({ "ipv6": false, "table": table, "chain": null })).unwrap()
    };
    let mut scene = Scene::new();
    scene.kernel().would_create = vec![object("nat")];
    scene.pass(&intents("")).await.unwrap();
    assert_eq!(scene.state.host().unwrap().created_by_us, None, "noted without a change");

    let host = scene.guard.path().join("state/host.json");
    scene.kernel().before_apply = Some(Box::new(move || assert!(host.exists(), "changed before it was noted")));
    scene.pass(&intents(&forward("a", 8000))).await.unwrap();
    let noted = vec![object("nat")];
    assert_eq!(scene.state.host().unwrap().created_by_us.as_ref(), Some(&noted));

    let kernel = std::mem::take(scene.kernel());
    scene.converger = over(Kernel { would_create: vec![object("mangle")], ..kernel }, None);
    scene.pass(&intents(&forward("a", 9000))).await.unwrap();
    let more = vec![object("nat"), object("mangle")];
    assert_eq!(scene.state.host().unwrap().created_by_us.as_ref(), Some(&more), "an older agent needed less");
}

#[tokio::test]
async fn a_state_that_cannot_be_read_or_written_stops_no_pass() {
    let mut scene = Scene::with_switches();
    let host = scene.guard.path().join("state/host.json");
    fs::write(&host, "{").unwrap();
    scene.pass(&intents(&forward("a", 8000))).await.unwrap();
    assert_eq!(scene.switch(), "1");
    assert_eq!(scene.state.host().unwrap().sysctls.len(), 1);

    let mut scene = Scene::with_switches();
    fs::create_dir(scene.guard.path().join("state/host.json.new")).unwrap();
    scene.pass(&intents(&forward("a", 8000))).await.unwrap();
    assert_eq!(scene.switch(), "1");
}

#[tokio::test]
async fn a_forward_that_cannot_be_on_this_host_fails_alone() {
    let mut scene = Scene::new();
    let elsewhere = forward("b", 8001).replace("spec:", "spec:\n  addresses: [ 10.30.1.99 ]");
    let report = scene.pass(&intents(&(forward("a", 8000) + &elsewhere))).await.unwrap();
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.failures[0].forward.to_string(), "default/b");
    let nat = scene.kernel().rules().await.ours().v4.nat;
    assert!(
        nat["SALLY-MT"].iter().any(|rule| rule.as_str().contains("8000"))
            && !nat["SALLY-MT"].iter().any(|rule| rule.as_str().contains("8001"))
    );
}

#[test]
fn a_long_change_is_told_in_short() {
    let flush = |n| Op { family: Family::V4, table: Table::Nat, step: Step::Flush { chain: format!("SALLY-{n}") } };
    let told = summary(&(0..21).map(flush).collect::<Vec<_>>());
    assert!(told.starts_with("IPv4 SALLY-0, IPv4 SALLY-1, ") && told.ends_with(", IPv4 SALLY-7 and 13 more"), "{told}");
}

#[test]
fn a_chain_of_causes_is_one_line() {
    let error = Error::Forwarding {
        family: Family::V6,
        source: sysctl::Error::Write {
            path: "/proc/x".into(),
            value: "1".into(),
            source: std::io::Error::from(std::io::ErrorKind::PermissionDenied),
        },
    };
    assert_eq!(chain_of(&error), "failed to turn on forwarding of IPv6 packets: write 1 to /proc/x: permission denied");
}
