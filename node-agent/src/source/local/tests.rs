//! Which pool decides on a lone host, for which namespaces, and what stays from decision to decision.

use sallyport_api::condition::Reason;
use sallyport_api::id::Moment;
use sallyport_api::testing::Forward;

use super::*;
use crate::manifest;

type Held = BTreeMap<String, Arc<ForwardSliceSpec>>;

fn objects(text: &str) -> Vec<Object> {
    manifest::read(&mut text.as_bytes()).into_iter().map(|document| document.expect(text)).collect()
}

fn forward(name: &str, namespace: &str, port: u16) -> String {
    format!("---\n{}", Forward::tcp(&format!("{namespace}/{name}"), port).manifest())
}

fn pool(selector: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: sallyport.dev/v1alpha1\nkind: GatewayPool\nmetadata: {{ name: default }}\nspec:\n  \
         nodeSelector: {{ matchLabels: {{ role: gateway }} }}\n{rest}  grants:\n    - name: g\n      \
         namespaceSelector: {selector}\n      ports: [ {{ port: 8000, endPort: 8099 }} ]\n      \
         targetCIDRs: [ 10.30.1.0/24 ]\n      sourceCIDRs: [ 10.30.1.0/24 ]\n"
    )
}

fn decide(text: &str, held: &Held, broken: Option<&str>) -> (Intents, Vec<String>) {
    let objects = objects(text);
    let named: Vec<(&str, &Object)> = objects.iter().map(|object| ("x.yaml", object)).collect();
    let addresses = vec!["10.30.1.78".parse().unwrap(), "fd00::78".parse().unwrap()];
    let Decided { intents, problems, .. } =
        decide_here(&named, "gw1", addresses, held, broken, &BTreeMap::new(), Moment::default());
    (intents, problems.iter().map(ToString::to_string).collect())
}

fn names(intents: &Intents) -> Vec<String> {
    let mut names: Vec<String> = intents.forwards().map(|forward| forward.r#ref.to_string()).collect();
    names.sort();
    names
}

#[test]
fn without_a_pool_everything_is_granted_on_the_hosts_addresses() {
    let (intents, problems) = decide(&(forward("a", "one", 1) + &forward("b", "two", 29999)), &Held::new(), None);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(names(&intents), ["one/a", "two/b"]);
    assert_eq!(intents.node.pool, "default");
    let everything = ["0.0.0.0/0", "::/0"].map(|block| block.parse::<IpNet>().unwrap());
    assert_eq!((intents.node.addresses, intents.node.listen_cidrs), (Vec::new(), everything.to_vec()));
}

#[test]
fn without_a_pool_what_is_always_refused_is_refused_all_the_same() {
    let own = forward("a", "one", 8000).replace("10.30.1.79", "10.30.1.78");
    let (intents, problems) = decide(&own, &Held::new(), None);
    assert_eq!(names(&intents), Vec::<String>::new());
    assert!(problems[0].starts_with("x.yaml: PortForward one/a: spec.targets: "), "{problems:?}");
    let (_, problems) =
        decide(&(forward("a", "one", 8000).replace("spec:", "spec:\n  pool: other")), &Held::new(), None);
    assert!(
        problems[0].starts_with("x.yaml: PortForward one/a: spec.pool: ") && problems[0].contains("PoolNotFound"),
        "{problems:?}"
    );
}

#[test]
fn a_pool_decides_and_its_node_selector_always_matches_here() {
    let text = pool(
        "{}",
        "  ipForward: Require\n  firewall: { backend: IptablesLegacy }\n  listen: { addresses: [ { type: CIDR, value: fd00::/8 } ] }\n",
    );
    let (intents, problems) =
        decide(&(text + &forward("a", "one", 8000) + &forward("b", "one", 9000)), &Held::new(), None);
    assert_eq!(names(&intents), ["one/a"]);
    assert!(problems.len() == 1 && problems[0].starts_with("x.yaml: PortForward one/b: "), "{problems:?}");
    assert!(problems[0].ends_with(&format!("({:?})", Reason::NotGranted)), "{problems:?}");
    assert_eq!(intents.node.ip_forward, IpForward::Require);
    assert_eq!(intents.node.backend, FirewallBackend::IptablesLegacy);
    let block = vec!["fd00::/8".parse::<IpNet>().unwrap()];
    assert_eq!((intents.node.addresses, intents.node.listen_cidrs), (Vec::new(), block));
}

#[test]
fn a_namespace_has_the_labels_of_its_manifest_or_only_its_name() {
    let manifest = "---\napiVersion: v1\nkind: Namespace\nmetadata: { name: one, labels: { team: a } }\n";
    for (selector, accepted) in [
        ("{ matchLabels: { team: a } }", vec!["one/f"]),
        ("{ matchLabels: { kubernetes.io/metadata.name: one } }", vec!["one/f"]),
        ("{ matchLabels: { kubernetes.io/metadata.name: two } }", vec!["two/f"]),
        ("{ matchExpressions: [ { key: team, operator: DoesNotExist } ] }", vec!["two/f"]),
    ] {
        let text = pool(selector, "") + manifest + &forward("f", "one", 8000) + &forward("f", "two", 8001);
        let (intents, problems) = decide(&text, &Held::new(), None);
        assert_eq!(names(&intents), accepted, "{selector}: {problems:?}");
    }
}

#[test]
fn the_label_with_the_name_cannot_be_forged() {
    let forged = "---\napiVersion: v1\nkind: Namespace\nmetadata: { name: evil, labels: { kubernetes.io/metadata.name: one } }\n";
    let text = pool("{ matchLabels: { kubernetes.io/metadata.name: one } }", "") + forged + &forward("f", "evil", 8000);
    assert_eq!(names(&decide(&text, &Held::new(), None).0), Vec::<String>::new());
}

#[test]
fn the_holder_of_a_port_keeps_it_from_decision_to_decision() {
    let z = forward("z", "one", 8000);
    let (first, _) = decide(&z, &Held::new(), None);
    // By name alone `a` would come first.
    let both = forward("a", "one", 8000) + &z;
    assert_eq!(names(&decide(&both, &Held::new(), None).0), ["one/a"]);
    let (second, problems) = decide(&both, &first.slices, None);
    assert_eq!(names(&second), ["one/z"]);
    assert!(
        problems[0].starts_with("x.yaml: PortForward one/a: spec.ports: port 8000/TCP is held by")
            && problems[0].contains("PortConflict"),
        "{problems:?}"
    );
    // Also after the decision was on disk.
    let kept: Intents = serde_json::from_str(&serde_json::to_string(&second).unwrap()).unwrap();
    assert_eq!(decide(&both, &kept.slices, None).0, second);
    assert_eq!(names(&decide(&forward("a", "one", 8000), &second.slices, None).0), ["one/a"]);
}

#[test]
fn the_same_objects_make_the_same_intents_in_any_order() {
    let (a, b, c) = (forward("a", "one", 8000), forward("b", "one", 8001), forward("c", "two", 8000));
    let (first, _) = decide(&format!("{a}{b}{c}"), &Held::new(), None);
    for text in [format!("{c}{b}{a}"), format!("{b}{a}{c}")] {
        assert_eq!(decide(&text, &Held::new(), None).0, first);
        assert_eq!(decide(&text, &first.slices, None).0, first);
    }
}

#[test]
fn a_pool_that_is_not_understood_does_not_open_the_host() {
    let old = forward("old", "one", 8000);
    let new = forward("new", "one", 8001);
    let (intents, problems) = decide(&new, &Held::new(), Some("pool.yaml"));
    assert_eq!(names(&intents), Vec::<String>::new());
    assert_eq!(
        problems,
        ["x.yaml: PortForward one/new: spec.pool: the GatewayPool in \"pool.yaml\" has problems; mend it first"]
    );

    // What was let in before stays.
    let (before, _) = decide(&old, &Held::new(), None);
    let (intents, problems) = decide(&(old + &new), &before.slices, Some("pool.yaml"));
    assert_eq!(names(&intents), ["one/old"]);
    assert_eq!(problems.len(), 1);

    // And expires as the pool had it, which is not there to be asked.
    let limited = pool("{}", "").replace("- name: g\n", "- name: g\n      maxLifetime: 100s\n");
    let old = forward("old", "one", 8000);
    let (before, _) = decide(&(limited + &old), &Held::new(), None);
    assert_eq!(before.forwards().next().unwrap().intent.expires_at, Some(Moment(100)));
    let (intents, _) = decide(&old, &before.slices, Some("pool.yaml"));
    assert_eq!(intents.slices, before.slices);
}

#[test]
fn a_broken_pool_beside_a_good_one_changes_nothing() {
    let text = pool("{}", "") + &forward("a", "one", 8000);
    assert_eq!(decide(&text, &Held::new(), Some("pool.yaml")), decide(&text, &Held::new(), None));
}

#[test]
fn the_younger_of_two_pools_is_told_that_the_host_is_taken() {
    let other = pool("{}", "").replace("name: default", "name: zone");
    let (intents, problems) = decide(&(pool("{}", "") + &other), &Held::new(), None);
    assert_eq!(intents.node.pool, "default");
    assert!(problems[0].starts_with("x.yaml: GatewayPool zone: spec.nodeSelector: "), "{problems:?}");
}

#[test]
fn without_forwards_the_node_is_configured_all_the_same() {
    let (intents, problems) = decide("", &Held::new(), None);
    assert_eq!((names(&intents).len(), problems.len()), (0, 0));
    assert_eq!(intents.node.state, NodeState::Active);
}
