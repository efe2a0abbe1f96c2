//! What several grants allow together: each covers a whole forward or none of it, and the one that lets it last longest
//! counts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use proptest::collection::vec;
use proptest::prelude::*;
use sallyport_api::Reason;
use sallyport_api::id::Moment;
use sallyport_policy::decide::{Decision, Verdict};
use sallyport_policy::observed::Forward;
use serde_json::{Value, json};

#[path = "support/scene.rs"]
mod scene;
#[path = "support/specs.rs"]
mod specs;

use scene::Scene;
use specs::{LISTEN, forward, minimal, scene};

/// The forward 8080/TCP from 10.30.1.80 to 10.30.1.79, created at 1000, in a pool with these grants.
fn asking(asked: Option<Moment>, grants: &[Value]) -> Scene {
    let mut spec = minimal();
    spec.expires_at = asked.map(|at| at.to_time().unwrap());
    let mut scene = scene(&[], &LISTEN);
    scene.forwards = vec![Forward { created: Moment(1000), ..forward(0, &spec) }];
    let all = serde_json::to_value(&scene.pools[0].spec.grants[0]).unwrap();
    let grant = |(number, change): (usize, &Value)| {
        let mut grant = all.clone();
        grant["name"] = format!("g{number}").into();
        grant.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(grant).unwrap()
    };
    scene.pools[0].spec.grants = grants.iter().enumerate().map(grant).collect();
    scene
}

fn verdict<'a>(scene: &Scene, decision: &'a Decision) -> Result<&'a str, (Reason, &'a str)> {
    match &decision.forwards[&scene.forwards[0].key] {
        Verdict::Accepted(hash) => Ok(hash.as_str()),
        Verdict::Refused(problems) => Err((problems[0].reason, &problems[0].message)),
    }
}

#[test]
fn two_grants_that_cover_a_half_each_cover_nothing() {
    let mut scene = asking(None, &[json!({ "ports": [{ "port": 1 }] }), json!({ "sourceCIDRs": ["10.30.1.81/32"] })]);
    let decision = scene.decide();
    let message = "grant g0 allows ports [1/TCP], not 8080/TCP; grant g1 allows sourceCIDRs [10.30.1.81/32], not \
                   10.30.1.80/32; one grant must cover the whole forward";
    assert_eq!(verdict(&scene, &decision), Err((Reason::NotGranted, message)));
    let third = serde_json::from_value(json!({
        "name": "g2", "namespaceSelector": {}, "ports": [{ "port": 8080 }],
        "targetCIDRs": ["10.30.1.79/32"], "sourceCIDRs": ["10.30.1.80/32"],
    }));
    scene.pools[0].spec.grants.push(third.unwrap());
    assert!(verdict(&scene, &scene.decide()).is_ok());
}

#[test]
fn a_lifetime_is_the_longest_that_a_covering_grant_allows() {
    let elsewhere = json!({ "ports": [{ "port": 1 }] });
    let life = |text: &str| json!({ "maxLifetime": text });
    let closed = json!({ "maxForwards": 0 });
    let rows: [(Option<i64>, &[Value], Option<i64>); 10] = [
        (None, &[json!({})], None),
        (Some(5000), &[json!({})], Some(5000)),
        (None, &[life("1h")], Some(4600)),
        (Some(2000), &[life("1h")], Some(2000)),
        (Some(5000), &[life("1h")], Some(4600)),
        (None, &[life("1h"), life("2h")], Some(8200)),
        (None, &[life("1h"), json!({})], None),
        (Some(5000), &[life("1h"), json!({})], Some(5000)),
        (None, &[life("1h"), elsewhere], Some(4600)),
        (None, &[life("1h"), closed], Some(4600)),
    ];
    for (asked, grants, expiry) in rows {
        let (asked, expiry) = (asked.map(Moment), expiry.map(Moment));
        let scene = asking(asked, grants);
        let decision = scene.decide();
        let slice = decision.slices.values().next().unwrap();
        assert_eq!(slice.forwards[0].intent.expires_at, expiry, "{asked:?} under {grants:?}");
        assert_eq!(decision.expiries.values().next().copied(), expiry, "{asked:?} under {grants:?}");
    }
}

#[test]
fn who_has_expired_is_told_what_ended_it_and_what_helps() {
    let rows = [
        (Some(Moment(2000)), "expired at 1970-01-01T00:33:20Z; set a later moment, or delete the forward"),
        (
            None,
            "expired at 1970-01-01T01:16:40Z: grant g0 allows maxLifetime 60m from its creation; create it anew, or ask \
             the pool's admin for longer",
        ),
    ];
    for (asked, message) in rows {
        let mut scene = asking(asked, &[json!({ "maxLifetime": "60m" })]);
        scene.now = Moment(4599);
        assert_eq!(verdict(&scene, &scene.decide()).is_ok(), asked.is_none());
        scene.now = Moment(4600);
        let decision = scene.decide();
        assert_eq!(verdict(&scene, &decision), Err((Reason::Expired, message)));
        assert!(decision.slices.is_empty());
    }
}

#[test]
fn a_place_is_taken_under_a_grant_that_lets_the_forward_last() {
    // g0 has room but lets it last an hour; g1 lets it last, and is full.
    let mut scene = asking(None, &[json!({ "maxLifetime": "1h" }), json!({ "maxForwards": 1 })]);
    let mut second = scene.forwards[0].clone();
    second.key.name = "older".into();
    second.uid = "older".into();
    second.created = Moment(999);
    let mut spec = minimal();
    spec.ports[0].port = 8081;
    second.spec = Ok(spec.into());
    scene.forwards.push(second);
    let decision = scene.decide();
    let message = "namespace payments already has as many forwards as it may: grant g1 allows maxForwards 1; delete one \
                   or ask the pool's admin";
    assert_eq!(verdict(&scene, &decision), Err((Reason::QuotaExceeded, message)));
    // Who asks for no more than g0 allows gets a place there.
    scene.forwards[0] = asking(Some(Moment(4600)), &[]).forwards.remove(0);
    assert!(verdict(&scene, &scene.decide()).is_ok());
}

#[test]
fn a_grant_that_is_tightened_closes_what_it_no_longer_covers_and_names_the_clause() {
    let wide = json!({ "ports": [{ "port": 8080 }] });
    let rows = [
        (json!({ "ports": [{ "port": 8081 }] }), "grant g0 allows ports [8081/TCP], not 8080/TCP"),
        (json!({ "targetCIDRs": ["10.30.1.0/26"] }), "grant g0 allows targetCIDRs [10.30.1.0/26], not 10.30.1.79"),
        (json!({ "sourceCIDRs": ["10.30.1.81/32"] }), "grant g0 allows sourceCIDRs [10.30.1.81/32], not 10.30.1.80/32"),
        (json!({ "sourceNATModes": ["Preserve"] }), "grant g0 allows sourceNATModes [Preserve], not Masquerade"),
        (json!({ "maxForwards": 0 }), "grant g0 allows maxForwards 0"),
        (json!({ "maxLifetime": "1s" }), "grant g0 allows maxLifetime 1s"),
        (
            json!({ "namespaceSelector": { "matchLabels": { "a": "b" } } }),
            "no grant of the pool selects namespace payments",
        ),
    ];
    for (tightened, words) in rows {
        let before = asking(None, std::slice::from_ref(&wide)).decide();
        assert_eq!(before.slices.len(), 1);
        let mut scene = asking(None, std::slice::from_ref(&tightened));
        scene.slices = before.slices;
        scene.now = Moment(2000);
        let decision = scene.decide();
        let (_, message) = verdict(&scene, &decision).unwrap_err();
        assert!(message.contains(words), "{tightened}: {message}");
        assert!(decision.slices.is_empty(), "{tightened}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_forward_outlives_the_most_generous_grant_that_covers_it(
        grants in vec((any::<bool>(), prop::option::of(1..50_i64)), 1..5),
        asked in prop::option::of(990..1060_i64),
        now in 990..1070_i64,
    ) {
        let written: Vec<Value> = grants
            .iter()
            .map(|(covers, life)| {
                let mut grant = json!({ "ports": [{ "port": if *covers { 8080 } else { 1 } }] });
                if let Some(life) = life {
                    grant["maxLifetime"] = format!("{life}s").into();
                }
                grant
            })
            .collect();
        let mut scene = asking(asked.map(Moment), &written);
        scene.now = Moment(now);
        let decision = scene.decide();
        // Open, at any moment, exactly if some grant that covers it and the forward itself still say so.
        let open = grants.iter().any(|(covers, life)| *covers && life.is_none_or(|life| now < 1000 + life))
            && asked.is_none_or(|asked| now < asked);
        prop_assert_eq!(verdict(&scene, &decision).is_ok(), open);
        for slice in decision.slices.values() {
            for other in now..1080 {
                scene.now = Moment(other);
                let later = verdict(&scene, &scene.decide()).is_ok();
                prop_assert_eq!(later, slice.forwards[0].intent.expires_at.is_none_or(|expiry| Moment(other) < expiry), "{}", other);
            }
        }
    }
}
