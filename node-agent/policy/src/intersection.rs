//! What two intents of one forward allow both: what may run while no rule may be added.

use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::intent::{Intent, IntentPort, IntentTarget};

/// What `was` and `is` both allow, never more than either; `None` if that is nothing. Where both allow something but say
/// different things about it, as a target's weight, `is` is followed.
#[must_use]
pub fn intersection(was: &Intent, is: &Intent) -> Option<Intent> {
    let ports = pairs(&was.ports, &is.ports, |a, b| both_ports(*a, *b));
    let allow = pairs(&was.allow, &is.allow, |a, b| smaller(*a, *b));
    let targets = pairs(&was.targets, &is.targets, both_targets);
    let addresses = both_addresses(&was.addresses, &is.addresses)?;
    if was.source_nat != is.source_nat || ports.is_empty() || allow.is_empty() || targets.is_empty() {
        return None;
    }
    let mut deny = [was.deny.as_slice(), is.deny.as_slice()].concat();
    deny.sort_unstable();
    deny.dedup();
    let expires_at = was.expires_at.into_iter().chain(is.expires_at).min();
    // Each field by its name: what comes to an intent has to be thought of here.
    let (source_nat, on_target_removed) = (is.source_nat, is.on_target_removed);
    Some(Intent { addresses, ports, allow, deny, targets, source_nat, on_target_removed, expires_at })
}

/// What `both` makes of each of `a` with each of `b`, sorted.
fn pairs<T: Ord>(a: &[T], b: &[T], both: impl Fn(&T, &T) -> Option<T>) -> Vec<T> {
    let mut found: Vec<T> = a.iter().flat_map(|one| b.iter().filter_map(|other| both(one, other))).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// None listed means all.
fn both_addresses(was: &[IpAddr], is: &[IpAddr]) -> Option<Vec<IpAddr>> {
    match (was, is) {
        ([], all) | (all, []) => Some(all.to_vec()),
        _ => Some(is.iter().copied().filter(|ip| was.contains(ip)).collect()).filter(|both: &Vec<_>| !both.is_empty()),
    }
}

/// The ports that are in both ranges, if both deliver them to the same ports.
fn both_ports(was: IntentPort, is: IntentPort) -> Option<IntentPort> {
    let shift = |port: IntentPort| i32::from(port.target_port) - i32::from(port.port);
    let (port, end_port) = (was.port.max(is.port), was.end_port.min(is.end_port));
    let same = was.protocol == is.protocol && shift(was) == shift(is);
    (same && port <= end_port).then(|| IntentPort {
        port,
        end_port,
        target_port: is.target_port + (port - is.port),
        protocol: is.protocol,
    })
}

/// One that takes no new connections in either takes none.
fn both_targets(was: &IntentTarget, is: &IntentTarget) -> Option<IntentTarget> {
    let weight = if was.weight == 0 { 0 } else { is.weight };
    (was.ip == is.ip).then_some(IntentTarget { ip: is.ip, weight })
}

/// The smaller of two networks if one contains the other: two networks overlap in no other way.
#[must_use]
pub fn smaller(a: IpNet, b: IpNet) -> Option<IpNet> {
    if a.contains(&b) {
        Some(b)
    } else if b.contains(&a) {
        Some(a)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sallyport_api::{Moment, OnTargetRemoved, Protocol, SourceNatMode};

    use super::*;

    fn intents() -> impl Strategy<Value = Intent> {
        let ip = (1..6_u8).prop_map(|last| IpAddr::from([10, 0, 0, last]));
        let port = (any::<bool>(), 80..90_u16, 0..4_u16, 0..2_u16).prop_map(|(tcp, port, more, shift)| IntentPort {
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            port,
            end_port: port + more,
            target_port: port + shift,
        });
        let net = (1..6_u8, 28..=32_u8)
            .prop_map(|(last, length)| IpNet::new(IpAddr::from([10, 0, 1, last]), length).unwrap().trunc());
        let target = (ip.clone(), 0..3_u16).prop_map(|(ip, weight)| IntentTarget { ip, weight });
        (
            prop::collection::vec(ip, 0..3),
            prop::collection::vec(port, 1..4),
            prop::collection::vec(net.clone(), 1..3),
            prop::collection::vec(net, 0..2),
            prop::collection::btree_map(1..6_u8, target, 1..4),
            prop::option::of((1..9_i64).prop_map(Moment)),
            any::<bool>(),
        )
            .prop_map(|(addresses, ports, allow, deny, targets, expires_at, masquerade)| Intent {
                addresses,
                ports,
                allow,
                deny,
                targets: targets.into_values().collect(),
                source_nat: if masquerade { SourceNatMode::Masquerade } else { SourceNatMode::Preserve },
                on_target_removed: OnTargetRemoved::Drain,
                expires_at,
            })
    }

    /// Whether a connection from `client` to `port` of `address` may be delivered to `target` at `now`.
    fn allows(intent: &Intent, address: IpAddr, port: u16, client: IpAddr, target: (IpAddr, u16), now: Moment) -> bool {
        let in_port = |range: &IntentPort| {
            range.protocol == Protocol::Tcp
                && (range.port..=range.end_port).contains(&port)
                && range.target_port + (port - range.port) == target.1
        };
        (intent.addresses.is_empty() || intent.addresses.contains(&address))
            && intent.ports.iter().any(in_port)
            && intent.allow.iter().any(|net| net.contains(&client))
            && !intent.deny.iter().any(|net| net.contains(&client))
            && intent.targets.iter().any(|to| to.ip == target.0 && to.weight > 0)
            && intent.expires_at.is_none_or(|end| now < end)
    }

    proptest! {
        #[test]
        fn what_both_allow_is_what_each_allows(
            was in intents(), is in intents(),
            address in 1..6_u8, port in 80..94_u16, client in 0..18_u8, target in 1..6_u8, shift in 0..2_u16, now in 0..9_i64,
        ) {
            let packet = |intent: &Intent| {
                let client = IpAddr::from([10, 0, 1, client]);
                let target = (IpAddr::from([10, 0, 0, target]), port + shift);
                allows(intent, IpAddr::from([10, 0, 0, address]), port, client, target, Moment(now))
            };
            let both = intersection(&was, &is);
            let expected = packet(&was) && packet(&is) && was.source_nat == is.source_nat;
            prop_assert_eq!(both.as_ref().is_some_and(packet), expected);
        }

        #[test]
        fn an_intent_has_all_of_itself_in_common_with_itself(intent in intents()) {
            let both = intersection(&intent, &intent).unwrap();
            prop_assert_eq!(intersection(&both, &both), Some(both));
        }
    }
}
