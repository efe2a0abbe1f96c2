//! What is still being taken off, held against looking at everything that is.

use proptest::collection::vec;
use proptest::prelude::*;
use sallyport_api::intent::Intent;
use sallyport_api::testing::Forward;

use super::*;

fn leaving() -> impl Strategy<Value = Outgoing> {
    let addresses = prop::sample::subsequence(vec!["10.0.0.1", "10.0.0.2", "fd00::1"], 0..3);
    (0..4_u8, addresses, 60..80_u16, 0..9_u16, any::<bool>()).prop_map(|(uid, addresses, first, width, here)| {
        let intent = Forward::tcp("one/http", first).through(first + width).to(["10.0.0.9", "fd00::9"]).intent();
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let pool = if here { "default" } else { "another" }.to_owned();
        Outgoing { pool, uid: uid.to_string().into(), intent: Intent { addresses, ..intent }.into() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_lingers_is_found_as_by_looking_at_all_of_it(all in vec(leaving(), 0..20), asks in vec(leaving(), 1..8)) {
        let outgoing = OutgoingClaims::of("default", &all);
        let held: Vec<(Claim, &str)> = (all.iter().filter(|gone| gone.pool == "default"))
            .flat_map(|gone| Claim::of(&gone.intent).into_iter().map(|claim| (claim, gone.uid.as_str())))
            .collect();
        for ask in asks {
            for claim in Claim::of(&ask.intent) {
                let others = held.iter().filter(|(held, owner)| *owner != ask.uid.as_str() && held.overlaps(&claim));
                let walked = others.min_by_key(|(held, _)| held.ports()).map(|(held, _)| claim.shared_with(held));
                prop_assert_eq!(outgoing.conflict(&claim, &ask.uid), walked);
            }
        }
    }
}
