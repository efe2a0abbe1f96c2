//! Which connections end, and which bypass their forward.

use std::sync::{Arc, LazyLock};

use sallyport_api::id::{IntentHash, Moment};
use sallyport_api::names::MARK_MASQUERADE;
use sallyport_api::testing::Forward;
use sallyport_policy::digest::intent_hash;
use serde_json::json;

use super::*;
use crate::facts::{LocalAddress, NodeFacts};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A forward of both protocols: 3306 as it is, 8000-8009 to 9000-9009, from 10.30.1.0/24 but 10.30.1.66.
fn forward() -> SliceForward {
    let ports = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|protocol| {
        [(3306, 3306, 3306), (8000, 8009, 9000)].map(|(port, end_port, target_port)| IntentPort {
            protocol,
            port,
            end_port,
            target_port,
        })
    });
    let mut forward = Forward::tcp("payments/mysql", 3306)
        .from(["10.30.1.0/24", "fd00:30::/64"])
        .to(["10.30.1.79", "10.30.1.81", "fd00:30::79"])
        .slice_forward(|_| IntentHash::default());
    forward.intent.ports = ports.collect();
    forward.intent.deny = vec!["10.30.1.66/32".parse().unwrap()];
    forward.intent.targets[1].weight = 0;
    forward
}

/// The table of a node with these two addresses.
fn table(forwards: &[&SliceForward]) -> ForwardingTable {
    let listen = ["10.30.1.78", "fd00:30::78"];
    let node = json!({ "pool": "default", "state": "Active", "addresses": listen });
    let own = listen.map(|listen| LocalAddress { ip: ip(listen), prefix_len: 32, global: true });
    let signed = |forward: &&SliceForward| {
        Arc::new(SliceForward { hash: intent_hash(&forward.intent), ..SliceForward::clone(forward) })
    };
    let forwards: Vec<_> = forwards.iter().map(signed).collect();
    ForwardingTable::new(&serde_json::from_value(node).unwrap(), &forwards, &NodeFacts::of(&own, Moment::default()))
}

#[test]
fn what_goes_to_an_address_that_is_away_stays_as_it_is() {
    let (forward, node) = (forward(), json!({ "pool": "default", "state": "Active", "addresses": ["10.30.1.78"] }));
    let signed = Arc::new(SliceForward { hash: intent_hash(&forward.intent), ..forward });
    let (local, node) =
        (LocalAddress { ip: ip("10.30.1.77"), prefix_len: 32, global: true }, serde_json::from_value(node));
    let table = ForwardingTable::new(&node.unwrap(), [&signed], &NodeFacts::of(&[local], Moment::default()));
    let allowed = Allowed::new(&table, &NOTHING);
    let ours = flow(TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306");
    assert!(!allowed.forbids(&ours), "the absence of an address ends nothing");
    let routed = Flow { mark: 0, dnat: false, ..flow(UDP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.78:3306") };
    assert!(!allowed.bypasses(&routed));
}

/// A connection of ours from `client` to `listen`, answered by `server`.
fn flow(protocol: Protocol, client: &str, listen: &str, server: &str) -> Flow {
    let client = SocketAddr::new(ip(client), 40000);
    let listen: SocketAddr = listen.parse().unwrap();
    Flow {
        protocol,
        original: Tuple { src: client, dst: listen },
        reply: Tuple { src: server.parse().unwrap(), dst: SocketAddr::new(listen.ip(), 40000) },
        master: None,
        mark: MARK_OURS | MARK_MASQUERADE,
        dnat: true,
        id: 7,
        zone: 0,
        stage: Stage::Open,
    }
}

static NOTHING: LazyLock<Translations> = LazyLock::new(Translations::default);

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;

/// What becomes of a flow of ours when its target's removal drains, and when it severs: its protocol, client, listen
/// address and server, and what it is.
const FATES: &str = "\
kept   TCP 10.30.1.80   10.30.1.78:3306     10.30.1.79:3306     as declared
kept   UDP 10.30.1.80   10.30.1.78:3306     10.30.1.79:3306     as declared
kept   UDP fd00:30::80  [fd00:30::78]:3306  [fd00:30::79]:3306  as declared
kept   UDP 10.30.1.80   10.30.1.78:8000     10.30.1.79:9000     first of a shifted range
kept   UDP 10.30.1.80   10.30.1.78:8009     10.30.1.79:9009     last of a shifted range
ended  TCP 10.30.1.80   10.30.1.78:7999     10.30.1.79:8999     below the range
ended  TCP 10.30.1.80   10.30.1.78:8010     10.30.1.79:9010     above the range
ended  UDP 10.30.1.80   10.30.1.78:8001     10.30.1.79:9000     another port of the target
severs TCP 10.30.1.80   10.30.1.78:8001     10.30.1.79:9000     another port of the target, TCP
drains UDP 10.30.1.80   10.30.1.78:3306     10.30.1.81:3306     a target of weight 0
drains TCP 10.30.1.80   10.30.1.78:3306     10.30.1.81:3306     a target of weight 0, TCP
ended  UDP 10.30.1.80   10.30.1.78:3306     10.30.1.82:3306     a target that is gone
severs TCP 10.30.1.80   10.30.1.78:3306     10.30.1.82:3306     a target that is gone, TCP
severs TCP fd00:30::80  [fd00:30::78]:3306  [fd00:30::82]:3306  a target that is gone, TCP
ended  UDP fd00:30::80  [fd00:30::78]:3306  [fd00:30::82]:3306  a target that is gone
ended  TCP 10.30.1.66   10.30.1.78:3306     10.30.1.79:3306     a denied client
ended  TCP 10.30.2.0    10.30.1.78:3306     10.30.1.79:3306     a client beyond the block
ended  TCP 10.30.1.80   10.30.1.77:3306     10.30.1.79:3306     another listen address
ended  TCP 10.30.1.80   10.30.1.78:3307     10.30.1.79:3307     an unforwarded port";

#[test]
fn a_flow_ends_with_what_allowed_it() {
    for on_target_removed in [OnTargetRemoved::Drain, OnTargetRemoved::Sever] {
        let mut forward = forward();
        forward.intent.on_target_removed = on_target_removed;
        let table = table(&[&forward]);
        let allowed = Allowed::new(&table, &NOTHING);
        for row in FATES.lines() {
            let words: Vec<&str> = row.split_whitespace().collect();
            let flow = flow(if words[1] == "TCP" { TCP } else { UDP }, words[2], words[3], words[4]);
            let fate = match words[0] {
                "severs" if on_target_removed == OnTargetRemoved::Sever => "ended",
                "severs" => "drains",
                other => other,
            };
            assert_eq!(allowed.forbids(&flow), fate == "ended", "{on_target_removed:?}: {row}");
            let drained = allowed.drains(&flow).map(|forward| forward.uid.as_str());
            assert_eq!(drained, (fate == "drains").then_some("mysql"), "{on_target_removed:?}: {row}");
        }
    }
}

#[test]
fn a_flow_of_another_protocol_ends() {
    let mut forward = forward();
    forward.intent.ports.retain(|port| port.protocol == TCP);
    let table = table(&[&forward]);
    let allowed = Allowed::new(&table, &NOTHING);
    for (protocol, ends) in [(TCP, false), (UDP, true)] {
        let flow = flow(protocol, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306");
        assert_eq!((allowed.forbids(&flow), allowed.drains(&flow).is_some()), (ends, false), "{protocol}");
    }
}

#[test]
fn flows_of_others_are_left_alone() {
    let table = table(&[]);
    let allowed = Allowed::new(&table, &NOTHING);
    let ours = flow(TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306");
    assert!(allowed.forbids(&ours));
    let others = [
        Flow { mark: 0, ..ours },
        Flow { mark: MARK_MASQUERADE, ..ours },
        Flow { mark: 0x4000, ..ours },
        Flow { dnat: false, ..ours },
    ];
    for other in others {
        assert!(!allowed.forbids(&other) && allowed.drains(&other).is_none(), "{other:?}");
    }
    assert!(allowed.forbids(&Flow { mark: ours.mark | 0x4000, ..ours }), "foreign bits beside ours");
}

/// The translations of `forward` on the node with these two addresses.
fn past(forward: &SliceForward) -> Translations {
    Translations::of(table(&[forward]).bindings())
}

/// The same flow, of which somebody has overwritten the mark.
fn unmarked(flow: Flow) -> Flow {
    Flow { mark: 0x1, ..flow }
}

#[test]
fn a_flow_whose_mark_was_overwritten_ends_with_what_allowed_it() {
    let (forward, nothing) = (forward(), table(&[]));
    let past = past(&forward);
    let allowed = Allowed::new(&nothing, &past);
    for (protocol, client, listen, server) in [
        (TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306"),
        (UDP, "10.30.1.80", "10.30.1.78:8009", "10.30.1.81:9009"),
        (TCP, "fd00:30::80", "[fd00:30::78]:8000", "[fd00:30::79]:9000"),
    ] {
        let ours = unmarked(flow(protocol, client, listen, server));
        assert!(allowed.forbids(&ours), "{ours:?}");
        assert!(!Allowed::new(&nothing, &NOTHING).forbids(&ours), "nobody knows any more: {ours:?}");
        let elsewhere = Flow { zone: 1, ..ours };
        assert!(!allowed.forbids(&elsewhere), "a zone of somebody else's");
        assert!(allowed.forbids(&Flow { mark: MARK_OURS, ..elsewhere }), "there the mark tells");
    }
}

#[test]
fn a_flow_without_our_mark_is_ours_only_where_a_rule_of_ours_leads() {
    let forward = forward();
    let (with, without, past) = (table(&[&forward]), table(&[]), past(&forward));
    let here = unmarked(flow(TCP, "10.30.1.66", "10.30.1.78:3306", "10.30.1.79:3306"));
    let at = |to: &str| Flow { original: Tuple { dst: to.parse().unwrap(), ..here.original }, ..here };
    let from = |server: &str| Flow { reply: Tuple { src: server.parse().unwrap(), ..here.reply }, ..here };
    let others = [
        ("not translated", Flow { dnat: false, ..here }),
        ("on another address", at("10.30.1.90:3306")),
        ("on a port that nobody claims", at("10.30.1.78:3307")),
        ("to another host, as by a rule of docker's", from("172.17.0.2:3306")),
        ("to another port of a target", from("10.30.1.79:3307")),
        ("in another zone", Flow { zone: 7, ..here }),
    ];
    for (table, past) in [(&with, &*NOTHING), (&without, &past)] {
        let allowed = Allowed::new(table, past);
        assert!(allowed.forbids(&here), "of a client that is denied");
        for (what, flow) in &others {
            assert!(!allowed.is_ours(flow) && !allowed.forbids(flow), "{what}");
        }
    }
}

#[test]
fn a_flow_without_our_mark_drains_from_a_target_that_its_forward_had() {
    let before = forward();
    let mut now = before.clone();
    now.intent.targets.retain(|target| target.ip != ip("10.30.1.79"));
    let (table, past) = (table(&[&now]), past(&before));
    let allowed = Allowed::new(&table, &past);
    let fate = |protocol| {
        let flow = unmarked(flow(protocol, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306"));
        (allowed.drains(&flow).is_some(), allowed.forbids(&flow))
    };
    assert_eq!([fate(TCP), fate(UDP)], [(true, false), (false, true)]);
}

#[test]
fn a_flow_ends_whose_source_is_treated_in_another_way_by_now() {
    let kept = |mark, rewritten: bool, mode| {
        let mut forward = forward();
        forward.intent.source_nat = mode;
        // A client that the gateway has no link to, as Preserve asks.
        forward.intent.allow = vec!["10.40.0.0/16".parse().unwrap()];
        let flow = flow(TCP, "10.40.1.80", "10.30.1.78:3306", "10.30.1.79:3306");
        let to = if rewritten { flow.original.dst.ip() } else { flow.original.src.ip() };
        let reply = Tuple { dst: SocketAddr::new(to, 40000), ..flow.reply };
        let table = table(&[&forward]);
        !Allowed::new(&table, &NOTHING).forbids(&Flow { reply, mark, ..flow })
    };
    let (masqueraded, preserved, overwritten) = (MARK_OURS | MARK_MASQUERADE, MARK_OURS, 1);
    for (mark, rewritten, masquerade, preserve) in [
        (masqueraded, true, true, false),
        // A program of the gateway itself: its address is the one that would be chosen.
        (masqueraded, false, true, false),
        (preserved, false, false, true),
        // Somebody else rewrites what we preserve.
        (preserved, true, false, true),
        (overwritten, true, true, false),
        // It may be so because the mark that asks for it was overwritten.
        (overwritten, false, true, true),
    ] {
        let found = [SourceNatMode::Masquerade, SourceNatMode::Preserve].map(|mode| kept(mark, rewritten, mode));
        assert_eq!(found, [masquerade, preserve], "mark {mark:#x}, rewritten {rewritten}");
    }
}

/// A control connection of FTP through the forward, the connection for a file that its helper expects, one that a helper
/// expects for that, and one of somebody else's control connection.
fn family_of_flows() -> [Flow; 4] {
    let control = flow(TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306");
    let file =
        Flow { master: Some(control.start()), ..flow(TCP, "10.30.1.80", "10.30.1.78:50001", "10.30.1.79:50001") };
    let media = Flow { master: Some(file.start()), ..flow(UDP, "10.30.1.80", "10.30.1.78:50002", "10.30.1.79:50002") };
    let foreign = unmarked(flow(TCP, "10.30.1.80", "10.30.1.99:21", "10.30.1.79:21"));
    let others = flow(TCP, "10.30.1.80", "10.30.1.99:50001", "10.30.1.79:50001");
    let others = Flow { master: Some(foreign.start()), ..unmarked(others) };
    [control, file, media, others]
}

/// Those of `flows` that end.
fn ended(allowed: &Allowed<'_>, flows: &[Flow]) -> Vec<Flow> {
    let mut review = Review::new(allowed);
    for flow in flows {
        review.see(flow);
    }
    let mut doomed = review.finish().doomed;
    doomed.sort_by_key(|flow| flow.original.dst.port());
    doomed
}

#[test]
fn a_flow_that_a_helper_expected_lives_and_ends_with_its_master() {
    let forward = forward();
    let (with, without, past) = (table(&[&forward]), table(&[]), past(&forward));
    let (allowing, forbidding) = (Allowed::new(&with, &NOTHING), Allowed::new(&without, &past));
    let flows = family_of_flows();
    for marks in [true, false] {
        let flows = if marks { flows } else { flows.map(unmarked) };
        let [control, file, media, _] = flows;
        for seen in [flows, [flows[2], flows[1], flows[0], flows[3]]] {
            assert_eq!(ended(&allowing, &seen), [], "marks {marks}");
            assert_eq!(ended(&forbidding, &seen), [control, file, media], "marks {marks}");
        }
    }
    let [_, file, media, _] = flows;
    assert_eq!(ended(&allowing, &[file, media]), [], "a master that ended by itself takes nobody along");
    assert_eq!(ended(&forbidding, &[file, media]), [file, media], "the forward of a master that ended is gone");
    assert_eq!(ended(&forbidding, &[unmarked(file)]), [], "nobody can tell whose it is");
    for flow in [file, media] {
        assert!(!allowing.forbids(&flow) && allowing.drains(&flow).is_none());
    }
}

#[test]
fn a_client_that_is_denied_loses_what_its_connection_had_opened_as_well() {
    let mut forward = forward();
    let flows = family_of_flows();
    forward.intent.deny.push("10.30.1.80/32".parse().unwrap());
    let table = table(&[&forward]);
    assert_eq!(ended(&Allowed::new(&table, &NOTHING), &flows), flows[..3]);
}

#[test]
fn translations_that_have_gone_are_known_until_their_last_flow_has_ended() {
    let forward = forward();
    let (past, mut now) = (past(&forward), forward.clone());
    now.intent.targets.retain(|target| target.ip != ip("10.30.1.79"));
    let table = table(&[&now]);
    let allowed = Allowed::new(&table, &past);
    let still_led = |flows: &[Flow]| {
        let mut review = Review::new(&allowed);
        for flow in flows {
            review.see(flow);
        }
        review.finish().still_led
    };
    let goes_on = flow(TCP, "10.30.1.80", "10.30.1.78:8003", "10.30.1.79:9003");
    let ends = flow(UDP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306");
    assert_eq!(still_led(&[ends]), Translations::default());
    let left = still_led(&[goes_on, ends, unmarked(goes_on)]);
    assert!(left.lead(&goes_on) && !left.lead(&ends));
    assert!(still_led(&[unmarked(goes_on)]).without(&past).is_empty());
}

#[test]
fn a_forward_without_rules_here_allows_nothing() {
    let mut forward = forward();
    forward.intent.targets[0].ip = ip("10.30.1.78");
    let table = table(&[&forward]);
    assert_eq!(table.failures().count(), 1);
    let allowed = Allowed::new(&table, &NOTHING);
    assert!(allowed.forbids(&flow(TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306")));
    assert!(allowed.kinds().is_empty());
}

#[test]
fn only_the_listed_addresses_of_a_forward_count() {
    let mut forward = forward();
    forward.intent.addresses = vec![ip("fd00:30::78")];
    let table = table(&[&forward]);
    let allowed = Allowed::new(&table, &NOTHING);
    assert!(allowed.forbids(&flow(TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306")));
    assert!(!allowed.forbids(&flow(TCP, "fd00:30::80", "[fd00:30::78]:3306", "[fd00:30::79]:3306")));
}

#[test]
fn what_began_before_the_rules_bypasses_the_forward() {
    let forward = forward();
    let table = table(&[&forward]);
    let allowed = Allowed::new(&table, &NOTHING);
    let kinds: Vec<_> = allowed.kinds().into_iter().collect();
    assert_eq!(kinds, [(Family::V4, TCP), (Family::V4, UDP), (Family::V6, TCP), (Family::V6, UDP)]);
    let stale = Flow { mark: 0, dnat: false, ..flow(UDP, "10.30.1.80", "10.30.1.78:8003", "10.30.1.78:8003") };
    let opening = Flow { protocol: TCP, stage: Stage::Opening, ..stale };
    assert!(allowed.bypasses(&stale) && allowed.bypasses(&opening));
    let at = |text: &str| Tuple { dst: text.parse().unwrap(), ..stale.original };
    let from = |text: &str| Tuple { src: SocketAddr::new(ip(text), 40000), ..stale.original };
    let kept = [
        ("TCP that was answered", Flow { stage: Stage::Open, ..opening }),
        ("TCP that is over", Flow { stage: Stage::Over, ..opening }),
        ("one that goes through it", Flow { mark: MARK_OURS, dnat: true, ..stale }),
        ("one that somebody else translates", Flow { dnat: true, ..stale }),
        ("one in a zone of somebody's", Flow { zone: 3, ..stale }),
        ("a denied client's", Flow { original: from("10.30.1.66"), ..stale }),
        ("a client's beyond the block", Flow { original: from("10.30.2.1"), ..stale }),
        ("to another port", Flow { original: at("10.30.1.78:8010"), ..stale }),
        ("to another host, merely routed", Flow { original: at("10.30.1.90:8003"), ..stale }),
    ];
    for (what, flow) in kept {
        assert!(!allowed.bypasses(&flow), "{what}");
    }
}
