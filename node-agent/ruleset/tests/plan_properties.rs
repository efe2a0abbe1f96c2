//! Whatever a kernel holds, one planned change makes it hold what it shall, and nobody else's rule is touched.
//!
//! `support/kernel.rs` plays `iptables-restore`; it shares no code with what is tested.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sallyport_api::gateway_pool::FirewallOrder;
use sallyport_api::port_forward::PortForwardSpec;
use sallyport_api::testing::Forward;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::installed::{Installed, InstalledRuleset};
use sallyport_ruleset::iptables::plan::{plan, render};
use sallyport_ruleset::iptables::restore::restore;
use sallyport_ruleset::iptables::rule::{self, Ruleset};
use sallyport_ruleset::iptables::shadow::Packets;

#[path = "support/compiled.rs"]
mod compiled;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "../../policy/tests/support/scene.rs"]
mod scene;
#[path = "../../policy/tests/support/specs.rs"]
mod specs;

use kernel::{Chain, Kernel, target};
use scene::Scene;
use specs::{LISTEN, scene, spec};

const HOOKS: [(&str, &str, &str); 5] = [
    ("filter", "FORWARD", "SALLY-FWD"),
    ("nat", "PREROUTING", "SALLY-PRE"),
    ("nat", "OUTPUT", "SALLY-PRE"),
    ("nat", "POSTROUTING", "SALLY-POST"),
    ("mangle", "INPUT", "SALLY-IN"),
];

/// Rules of others: some could take our packets, some could not.
const FOREIGN: [(&str, &str); 18] = [
    ("filter", "-j DROP"),
    ("filter", "-p icmp -j DROP"),
    ("filter", "-j DROPS"),
    ("filter", "-m conntrack --ctstate NEW -j DROPS"),
    ("filter", "-j DENIES"),
    ("filter", "-i eth9 -j DENIES"),
    ("filter", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ("filter", "-m conntrack --ctstate INVALID -j DROP"),
    ("filter", "-m comment --comment \"a \\\"quoted\\\" -j DROP\" -j LOG"),
    ("filter", "-s 10.0.0.0/8 -g FOREIGN"),
    ("filter", "-i eth9 -j FOREIGN"),
    ("nat", "-p tcp -m tcp --dport 3306 -j ACCEPT"),
    ("nat", "-d 10.30.1.78/32 -p udp -j DNAT --to-destination 172.20.0.5:53"),
    ("nat", "! -d 10.0.0.0/8 -p tcp -j RETURN"),
    ("nat", "-d 203.0.113.5/32 -j DNAT --to-destination 172.20.0.5"),
    ("nat", "-s 172.31.0.0/16 -j MASQUERADE"),
    ("nat", "-m addrtype --dst-type LOCAL -j FOREIGN"),
    ("nat", "-j FOREIGN"),
];

const ORDERS: [FirewallOrder; 2] = [FirewallOrder::AfterDenies, FirewallOrder::First];

/// Something that happened to a kernel behind our back.
#[derive(Clone, Debug)]
enum Tampering {
    /// A rule of somebody else, somewhere in a built-in chain.
    Foreign(Index, Index, Index),
    /// One more jump of ours, somewhere.
    Jump(Index, Index),
    /// All our jumps out of a chain.
    NoJump(Index),
    /// A rule of ours is gone.
    Lost(Index, Index),
    /// A rule in a chain of ours that we did not write.
    Junk(Index, &'static str),
    /// Chains of ours that nobody wants any more, one leading to the other.
    Stale(bool),
    /// Everything of ours is gone.
    Flushed,
}

fn tampering() -> impl Strategy<Value = Tampering> {
    let index = any::<Index>;
    prop_oneof![
        8 => (index(), index(), index()).prop_map(|(a, b, c)| Tampering::Foreign(a, b, c)),
        6 => (index(), index()).prop_map(|(a, b)| Tampering::Jump(a, b)),
        1 => index().prop_map(Tampering::NoJump),
        2 => (index(), index()).prop_map(|(a, b)| Tampering::Lost(a, b)),
        1 => (index(), select(vec!["-j RETURN", "-p tcp -m tcp --dport 1 -j ACCEPT"])).prop_map(|(a, b)| Tampering::Junk(a, b)),
        1 => any::<bool>().prop_map(Tampering::Stale),
        1 => Just(Tampering::Flushed),
    ]
}

fn ours(chain: &str) -> bool {
    chain.starts_with("SALLY-")
}

fn tamper(kernel: &mut Kernel, tampering: &[Tampering]) {
    for tampering in tampering {
        match tampering {
            Tampering::Foreign(rule, chain, at) => {
                let (table, rule) = *rule.get(&FOREIGN);
                let hooks: Vec<_> = HOOKS.iter().filter(|hook| hook.0 == table).collect();
                insert(kernel, table, chain.get(&hooks).1, *at, rule);
            }
            Tampering::Jump(hook, at) => {
                let (table, chain, ours) = *hook.get(&HOOKS);
                if kernel.tables[table].chains.contains_key(ours) {
                    insert(kernel, table, chain, *at, &format!("-j {ours}"));
                }
            }
            Tampering::NoJump(hook) => {
                let (table, chain, ours) = *hook.get(&HOOKS);
                rules(kernel, table, chain).retain(|rule| target(rule) != Some(ours));
            }
            Tampering::Lost(chain, at) => {
                if let Some(rules) = chain_of_ours(kernel, *chain).filter(|rules| !rules.is_empty()) {
                    rules.remove(at.index(rules.len()));
                }
            }
            Tampering::Junk(chain, rule) => {
                if let Some(rules) = chain_of_ours(kernel, *chain) {
                    rules.insert(0, (*rule).to_owned());
                }
            }
            Tampering::Stale(backwards) => {
                let (from, to) = if *backwards { ("SALLY-Z", "SALLY-A") } else { ("SALLY-A", "SALLY-Z") };
                kernel.append("nat", to, "-j RETURN");
                kernel.append("nat", from, &format!("-j {to}"));
            }
            Tampering::Flushed => *kernel = strip(kernel),
        }
    }
}

fn rules<'a>(kernel: &'a mut Kernel, table: &str, chain: &str) -> &'a mut Vec<String> {
    &mut kernel.tables.get_mut(table).unwrap().chains.get_mut(chain).unwrap().rules
}

fn insert(kernel: &mut Kernel, table: &str, chain: &str, at: Index, rule: &str) {
    let rules = rules(kernel, table, chain);
    rules.insert(at.index(rules.len() + 1), rule.to_owned());
}

fn chain_of_ours(kernel: &mut Kernel, chosen: Index) -> Option<&mut Vec<String>> {
    let mut chains: Vec<&mut Chain> = kernel
        .tables
        .values_mut()
        .flat_map(|table| &mut table.chains)
        .filter(|(name, _)| ours(name))
        .map(|(_, chain)| chain)
        .collect();
    if chains.is_empty() { None } else { Some(&mut chains.swap_remove(chosen.index(chains.len())).rules) }
}

/// What is left of a kernel without anything of ours.
fn strip(kernel: &Kernel) -> Kernel {
    let mut stripped = kernel.clone();
    for table in stripped.tables.values_mut() {
        table.chains.retain(|name, _| !ours(name));
        for chain in table.chains.values_mut() {
            chain.rules.retain(|rule| !target(rule).is_some_and(ours));
        }
    }
    stripped
}

/// Whether `rule` drops whatever nobody has named.
fn is_default(rule: &str) -> bool {
    matches!(rule, "-j DROP" | "-j DROPS" | "-m conntrack --ctstate NEW -j DROPS")
}

/// Our jump stands before all of those, but below a first rule that stops everything.
fn stands_where_it_belongs(forward: &[String]) -> bool {
    let Some(jump) = forward.iter().position(|rule| rule == "-j SALLY-FWD") else { return true };
    let stopped = jump > 0 && forward[0] == "-j DROP";
    !forward[usize::from(stopped)..jump].iter().any(|rule| is_default(rule))
}

/// The rules of these forwards, and what their packets look like, which win in this order.
fn wanted_in(order: FirewallOrder, specs: &[PortForwardSpec]) -> (Ruleset, Packets) {
    let (ruleset, mut packets) = wanted(specs);
    packets.order = order;
    (ruleset, packets)
}

/// The same in the order of a new host.
fn wanted(specs: &[PortForwardSpec]) -> (Ruleset, Packets) {
    let scene = scene(specs, &LISTEN);
    let decision = scene.decide();
    let compiled = Scene::compile(&decision, &scene.nodes[0]).unwrap();
    let packets = Packets::of(&compiled.table);
    (compiled.ruleset, packets)
}

/// Two kernels, one a family, with rules of others.
fn hosts() -> [Kernel; 2] {
    let mut kernel = Kernel::default();
    kernel.append("filter", "FOREIGN", "-j RETURN");
    kernel.append("filter", "DENIES", "-s 10.30.1.80/32 -j DROP");
    kernel.append("filter", "DROPS", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    kernel.append("filter", "DROPS", "-j DROP");
    kernel.append("nat", "FOREIGN", "-p tcp -m tcp --dport 8005 -j DNAT --to-destination 172.20.0.5:80");
    [kernel.clone(), kernel]
}

fn read(hosts: &[Kernel; 2]) -> InstalledRuleset {
    InstalledRuleset {
        v4: Installed::parse(&hosts[0].save()),
        v6: Installed::parse(&hosts[1].save()),
        ..InstalledRuleset::default()
    }
}

/// Plans and applies, and checks all that a plan promises.
fn change(
    hosts: &mut [Kernel; 2],
    (desired, packets): &(Ruleset, Packets),
    yield_place: bool,
) -> Result<(), TestCaseError> {
    let plan = |installed: &InstalledRuleset| {
        let mut ops = plan(desired, packets, installed);
        ops.retain(|op| !(yield_place && op.is_move()));
        ops
    };
    let installed = read(hosts);
    let ops = plan(&installed);
    let mut applied = installed.clone();
    for op in &ops {
        applied.apply(op);
    }
    for (family, host) in Family::BOTH.into_iter().zip(hosts.iter_mut()) {
        let text = restore(&ops, family).unwrap_or_default();
        let text = text.as_str();
        let others = strip(host);
        let differing: BTreeSet<(String, String)> = differing(host, desired, family);
        host.restore(text).map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
        prop_assert_eq!(&strip(host), &others, "somebody else's rules changed");
        prop_assert_eq!(declared(text), differing, "other chains than those that differ were written");
        for table in rule::Table::ALL.map(rule::Table::name) {
            prop_assert!(text.matches(&format!("*{table}\n")).count() <= 1, "a table in two transactions");
        }
        for (table, chain, ours) in HOOKS {
            let jump = format!("-j {ours}");
            let jumps = rules(host, table, chain).iter().filter(|rule| **rule == jump).count();
            let wanted = rule::Table::ALL.iter().any(|table| desired.family(family).table(*table).contains_key(ours));
            prop_assert_eq!(jumps, usize::from(wanted), "jumps in {}", chain);
        }
        let forward = &*rules(host, "filter", "FORWARD");
        prop_assert!(yield_place || stands_where_it_belongs(forward), "{:#?}", forward);
    }
    let now = read(hosts);
    prop_assert_eq!(&now.ours(), desired);
    prop_assert_eq!(&applied, &now, "a change as values and as text differ");
    let again = plan(&now);
    prop_assert!(again.is_empty(), "a second plan does more: {:?}", again);
    Ok(())
}

/// The chains of ours that are not as they shall be.
fn differing(host: &Kernel, desired: &Ruleset, family: Family) -> BTreeSet<(String, String)> {
    let mut differing = BTreeSet::new();
    for (name, wanted) in rule::Table::ALL.map(|table| (table.name(), desired.family(family).table(table))) {
        let there = &host.tables[name].chains;
        for chain in there.keys().filter(|chain| ours(chain)).chain(wanted.keys()) {
            let text = |rules: &rule::Chain| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
            if there.get(chain).map(|chain| chain.rules.clone()) != wanted.get(chain).map(text) {
                differing.insert((name.to_owned(), chain.clone()));
            }
        }
    }
    differing
}

fn declared(text: &str) -> BTreeSet<(String, String)> {
    let mut table = "";
    let mut declared = BTreeSet::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            declared.insert((table.to_owned(), chain.split(' ').next().unwrap().to_owned()));
        }
    }
    declared
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_change_makes_any_kernel_hold_what_it_shall(
        before in vec(spec(), 0..4),
        after in vec(spec(), 0..4),
        tampering in vec(tampering(), 0..14),
        yield_place in prop::bool::weighted(0.3),
        orders in [select(ORDERS.to_vec()), select(ORDERS.to_vec())],
    ) {
        let mut hosts = hosts();
        change(&mut hosts, &wanted_in(orders[0], &before), false)?;
        for host in &mut hosts {
            tamper(host, &tampering);
        }
        let others = hosts.each_ref().map(strip);
        change(&mut hosts, &wanted_in(orders[1], &after), yield_place)?;
        change(&mut hosts, &Default::default(), yield_place)?;
        prop_assert_eq!(hosts, others, "cleaning up does not leave the host as it was");
    }

}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        // Each case compiles hundreds of forwards, twice.
        cases: ProptestConfig::default().cases.div_ceil(16),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_changed_forward_rewrites_few_chains(ports in 100_usize..400, changed in any::<Index>()) {
        let forward = |index: usize, target: &str| {
            Forward::tcp("payments/f", u16::try_from(11000 + 7 * index).unwrap()).to([target]).spec()
        };
        let mut specs: Vec<_> = (0..ports).map(|index| forward(index, "10.30.1.79")).collect();
        let mut hosts = hosts();
        hosts[0].restore(&restore(&render(&wanted(&specs).0), Family::V4).unwrap()).map_err(TestCaseError::fail)?;
        let at = changed.index(ports);
        specs[at] = forward(at, "10.30.1.81");
        let (desired, packets) = wanted(&specs);
        let batch = restore(&plan(&desired, &packets, &read(&hosts)), Family::V4).unwrap();
        // That with its port, and that with its target, beside the only other one.
        prop_assert_eq!(batch.lines().filter(|line| line.starts_with(':')).count(), 2, "{}", batch);
        // At most the rules of one small bucket on two addresses, and the frame of the transaction.
        prop_assert!(batch.matches("-A SALLY-I").count() <= ports + 3, "{}", batch);
        let batch: Vec<&str> = batch.lines().filter(|line| !line.contains("SALLY-I")).collect();
        prop_assert!(batch.len() <= 2 * 64 + 5, "{:?}", batch);
    }
}

#[test]
fn a_kernel_refuses_what_the_real_one_refuses() {
    for (text, why) in [
        ("*nat\n-A SALLY-NONE -j RETURN\nCOMMIT\n", "no such chain"),
        ("*nat\n-I PREROUTING 1 -j SALLY-NONE\nCOMMIT\n", "no such target"),
        ("*nat\n-D PREROUTING -j RETURN\nCOMMIT\n", "no such rule"),
        ("*nat\n:SALLY-A - [0:0]\n-I PREROUTING 1 -j SALLY-A\n-X SALLY-A\nCOMMIT\n", "still referenced"),
        ("*nat\n:SALLY-A - [0:0]\n-A SALLY-A -j RETURN\n-X SALLY-A\nCOMMIT\n", "not empty"),
        ("*nat\n:SALLY-A - [0:0]\n-A SALLY-A -j SALLY-A\nCOMMIT\n", "leads to itself"),
        ("*filter\n-I FORWARD 1 -j MASQUERADE\nCOMMIT\n", "another table"),
        ("*nat\n:SALLY-A - [0:0]\n", "COMMIT expected"),
    ] {
        let mut kernel = Kernel::default();
        let error = kernel.restore(text).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(kernel, Kernel::default(), "a failed transaction left something");
    }
}
