//! What the tree finds, held against looking at every range.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn range() -> impl Strategy<Value = (u16, u16)> {
    let near = prop_oneof![Just(0), Just(32_760), Just(u16::MAX - 40)];
    let narrow =
        (near, 0..40_u16, 0..20_u16).prop_map(|(base, more, width)| (base + more, (base + more).saturating_add(width)));
    let wide = (any::<u16>(), any::<u16>()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    prop_oneof![3 => narrow, 1 => wide]
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_least_of_those_that_share_a_port_is_found(
        ranges in vec((range(), 0..4_u8), 0..40),
        removed in vec(any::<prop::sample::Index>(), 0..10),
        asked in vec((range(), 0..4_u8), 20),
    ) {
        let mut intervals = Intervals::default();
        let mut all: Vec<_> = ranges.into_iter().enumerate().collect();
        for (key, (range, value)) in &all {
            intervals.insert(*range, *key, *value);
        }
        for at in removed {
            if !all.is_empty() {
                let (key, (range, _)) = all.remove(at.index(all.len()));
                intervals.remove(range, key);
            }
        }
        for ((first, last), except) in asked {
            let walked = all.iter().find(|(_, ((from, to), value))| *from <= last && first <= *to && *value != except);
            let found = intervals.least((first, last), |value| *value != except);
            prop_assert_eq!(found, walked.map(|(key, (_, value))| (*key, *value)));
        }
        for (key, (range, _)) in all {
            intervals.remove(range, key);
        }
        prop_assert!(intervals.values.is_empty());
    }

    #[test]
    fn a_range_has_its_middle_at_the_most_round_number((first, last) in range()) {
        let roundest = (first..=last).max_by_key(|port| port.trailing_zeros()).unwrap();
        prop_assert_eq!(middle(first, last).trailing_zeros(), roundest.trailing_zeros());
        prop_assert!((first..=last).contains(&middle(first, last)));
    }
}
