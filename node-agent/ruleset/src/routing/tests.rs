//! What is certain is a failure that names interface and remedy; what the kernel does not say is none.

use std::sync::Arc;

use sallyport_api::id::Moment;
use sallyport_api::testing::Forward;
use sallyport_policy::digest::intent_hash;
use serde_json::json;

use super::*;
use crate::facts::NodeFacts;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// 10.30.1.78 towards targets and some clients, 192.0.2.1 of a second uplink.
fn local() -> Vec<LocalAddress> {
    let of = |address| LocalAddress { ip: ip(address), prefix_len: 24, global: true };
    ["10.30.1.78", "192.0.2.1"].map(of).to_vec()
}

fn table(sources: &[&str], targets: &[&str]) -> ForwardingTable {
    let node = json!({ "pool": "default", "state": "Active", "addresses": ["10.30.1.78", "192.0.2.1", "10.30.1.100"] });
    let forward = Forward::tcp("payments/mysql", 3306).from(sources.iter().copied()).to(targets.iter().copied());
    let forward = Arc::new(forward.slice_forward(intent_hash));
    ForwardingTable::new(
        &serde_json::from_value(node).unwrap(),
        [&forward],
        &NodeFacts::of(&local(), Moment::default()),
    )
}

fn by(interface: &str) -> Answer {
    Answer::By(interface.to_owned())
}

/// A host with targets at eth0 and its default route there, which answers from 192.0.2.1 by eth1.
fn plain(question: &Question) -> Answer {
    match question {
        Question::Sends { from: Some(from), .. } if *from == ip("192.0.2.1") => by("eth1"),
        Question::Sends { .. } | Question::Forwards { .. } => by("eth0"),
        Question::ByMark(_) => Answer::NoRoute,
    }
}

/// The reason and message of the forward from 10.30.1.0/24, which connects by eth0 alone, if the kernel says so.
fn one_uplink(answer: impl Fn(&Question) -> Option<Answer>) -> Option<(Reason, String)> {
    let table = table(&["10.30.1.0/24"], &["10.30.1.79"]);
    let mut ask = |question: Question| {
        assert_ne!(question, Question::Sends { from: None, to: ip("10.30.1.78") });
        answer(&question).unwrap_or_else(|| match question {
            Question::ByMark(_) => Answer::NoRoute,
            _ => by("eth0"),
        })
    };
    let mut found = failures(&table, &local(), &mut ask);
    assert!(found.len() < 2, "one for a forward");
    found.pop().map(|failure| (failure.reason, failure.message))
}

#[test]
fn what_the_kernel_lets_pass_is_no_failure_and_what_it_does_not_say_is_none() {
    assert_eq!(one_uplink(|_| None), None);
    assert_eq!(one_uplink(|_| Some(Answer::Unclear)), None);
}

#[test]
fn a_target_without_a_route_is_named() {
    let to_target = |question: &Question| {
        (*question == Question::Sends { from: None, to: ip("10.30.1.79") }).then_some(Answer::NoRoute)
    };
    let (reason, message) = one_uplink(to_target).unwrap();
    assert_eq!(reason, Reason::NoRoute);
    assert!(message.contains("no route to target 10.30.1.79"), "{message}");
}

#[test]
fn an_interface_that_does_not_forward_is_named_whichever_direction_comes_in_by_it() {
    for (source, whose) in [("10.30.1.1", "clients in 10.30.1.0/24"), ("10.30.1.79", "answers of target 10.30.1.79")] {
        let comes_in = |question: &Question| match question {
            Question::Forwards { from, .. } if *from == ip(source) => Some(Answer::NotForwarding),
            _ => None,
        };
        let (reason, message) = one_uplink(comes_in).unwrap();
        assert_eq!(reason, Reason::NotForwarding);
        assert!(message.contains(whose) && message.contains("net.ipv4.conf.eth0.forwarding=1"), "{message}");
    }
}

#[test]
fn a_filter_of_sources_is_named_with_what_loosens_it() {
    for source in ["10.30.1.1", "10.30.1.79"] {
        let filtered = |question: &Question| match question {
            Question::Forwards { from, .. } if *from == ip(source) => Some(Answer::Filtered),
            _ => None,
        };
        let (reason, message) = one_uplink(filtered).unwrap();
        assert_eq!(reason, Reason::NoRouteBack);
        assert!(message.contains("net.ipv4.conf.eth0.rp_filter=2"), "{message}");
    }
}

#[test]
fn answers_that_leave_by_another_uplink_are_named_unless_a_mark_may_lead_them() {
    let table = table(&["198.51.100.0/24"], &["10.30.1.79"]);
    let found = failures(&table, &local(), &mut |question| plain(&question));
    let [Failure { reason: Reason::NoRouteBack, message, .. }] = &found[..] else { panic!("{found:?}") };
    for part in ["connect to 192.0.2.1 leave by eth0", "leave by eth1", "fwmark 0x2/0xff", "spec.addresses"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let marked = |question: Question| match question {
        Question::ByMark(_) => Answer::Unclear,
        other => plain(&other),
    };
    assert_eq!(failures(&table, &local(), &mut { marked }), []);
}

#[test]
fn a_client_without_a_route_is_named_and_of_a_network_that_is_not_certain() {
    for (source, certain) in [("198.51.100.9/32", true), ("198.51.100.0/24", false), ("0.0.0.0/0", false)] {
        let table = table(&[source], &["10.30.1.79"]);
        let mut ask = |question: Question| match question {
            Question::Sends { from: Some(_), .. } => Answer::NoRoute,
            other => plain(&other),
        };
        let found = failures(&table, &local(), &mut ask);
        assert_eq!(found.first().map(|failure| failure.reason), certain.then_some(Reason::NoRouteBack), "{source}");
    }
}

#[test]
fn an_address_that_is_away_and_the_host_itself_are_not_asked_about() {
    let table = table(&["10.30.1.78/32"], &["10.30.1.79"]);
    let mut ask = |question: Question| match question {
        Question::Sends { from: None, .. } => by("eth0"),
        other => panic!("{other:?}"),
    };
    assert_eq!(failures(&table, &local(), &mut ask), []);
}
