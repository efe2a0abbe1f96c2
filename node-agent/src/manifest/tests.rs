//! What is said about bad documents, and what survives beside them.

use sallyport_api::testing::Forward;

use super::*;

const FORWARD: &str = "\
apiVersion: sallyport.dev/v1alpha1
kind: PortForward
metadata: { name: f, namespace: n }
spec:
  ports: [ { name: p, port: 8000 } ]
  sources: { allow: [ { cidr: 10.30.1.80/32 } ] }
  targets: [ { name: t, ip: 10.30.1.79 } ]
";

const POOL: &str = "\
apiVersion: sallyport.dev/v1alpha1
kind: GatewayPool
metadata: { name: g }
spec:
  nodeSelector: {}
  grants: [ { name: a, namespaceSelector: {}, ports: [ { port: 80 } ] } ]
";

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: { name: n, labels: { team: a } }\n";

fn all(text: &str) -> Vec<Result<Object, Vec<DocumentProblem>>> {
    read(&mut text.as_bytes())
}

/// The one document of `text`.
fn one(text: &str) -> Result<Object, Vec<DocumentProblem>> {
    let mut documents = all(text);
    assert_eq!(documents.len(), 1, "{text:?}");
    documents.remove(0)
}

/// Each problem as people see it.
fn problems(text: &str) -> Vec<String> {
    let problems = one(text).expect_err(text);
    problems.into_iter().map(|problem| format!("{}: {}", problem.object, problem.message)).collect()
}

fn edited(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the text");
    text.replacen(from, to, 1)
}

/// Edits `text` and expects one problem that begins with `start` and contains `what`.
fn is_told(text: &str, from: &str, to: &str, start: &str, what: &str) {
    let found = problems(&edited(text, from, to));
    assert!(found.len() == 1 && found[0].starts_with(start) && found[0].contains(what), "{to:?} → {found:?}");
}

#[test]
fn good_documents_become_objects_without_what_only_a_cluster_adds() {
    let text = format!("{FORWARD}---\n{POOL}---\n{NAMESPACE}");
    let names: Vec<String> = all(&text).into_iter().map(|object| object.unwrap().identity().to_string()).collect();
    assert_eq!(names, ["PortForward n/f", "GatewayPool g", "Namespace n"]);
    let Ok(Object::Namespace(_, labels)) = one(NAMESPACE) else { panic!("no namespace") };
    assert_eq!(labels["team"], "a");
    assert_eq!(labels["kubernetes.io/metadata.name"], "n");
}

#[test]
fn a_word_that_older_yaml_took_for_a_boolean_is_a_name() {
    for name in ["y", "n", "yes", "no", "on", "off"] {
        let text = edited(FORWARD, "{ name: f, namespace: n }", &format!("{{ name: {name}, namespace: {name} }}"));
        assert_eq!(one(&text).unwrap().identity().to_string(), format!("PortForward {name}/{name}"));
    }
}

#[test]
fn namespace_defaults_to_default() {
    for written in ["{ name: f }", "{ name: f, namespace: null }"] {
        let object = one(&edited(FORWARD, "{ name: f, namespace: n }", written)).unwrap();
        assert_eq!(object.identity().to_string(), "PortForward default/f");
    }
}

#[test]
fn unknown_fields_are_told_with_their_path_at_every_level() {
    let misspelt = ": is not a field; check its spelling and indentation";
    for (text, from, to, path) in [
        (FORWARD, "spec:", "colour: red\nspec:", "colour"),
        (FORWARD, "name: f,", "name: f, nmespace: x,", "metadata.nmespace"),
        (FORWARD, "spec:", "spec:\n  Ports: []", "spec.Ports"),
        (FORWARD, "port: 8000", "port: 8000, targetport: 1", "spec.ports[0].targetport"),
        (FORWARD, "cidr: 10.30.1.80/32", "cidr: 10.30.1.80/32, port: 1", "spec.sources.allow[0].port"),
        (FORWARD, "{ allow:", "{ alow: [], allow:", "spec.sources.alow"),
        (FORWARD, "name: t,", "name: t, hostname: x,", "spec.targets[0].hostname"),
        (FORWARD, "spec:", "status: { phase: Ready }\nspec:", "status.phase"),
        (POOL, "nodeSelector: {}", "nodeSelector: { labels: {} }", "spec.nodeSelector.labels"),
        (POOL, "port: 80", "port: 80, proto: TCP", "spec.grants[0].ports[0].proto"),
        (POOL, "name: a,", "name: a, targetCidrs: [],", "spec.grants[0].targetCidrs"),
        (NAMESPACE, "labels:", "label: {}, labels:", "metadata.label"),
        (NAMESPACE, "metadata:", "spec: { finalizer: [] }\nmetadata:", "spec.finalizer"),
    ] {
        let found = problems(&edited(text, from, to));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with(&format!(": {path}{misspelt}")), "{path}: {found:?}");
    }
}

#[test]
fn wrong_types_are_told_with_the_field_and_what_was_found() {
    let forward = "PortForward n/f: ";
    for (from, to, start, what) in [
        ("port: 8000", "port: \"8000\"", "spec.ports[0].port: ", "string \"8000\", expected a whole number"),
        ("port: 8000", "port: 99999999999", "spec.ports[0].port: ", "`99999999999`"),
        ("port: 8000", "port: 99999999999999999999999999", "spec.ports[0].port: ", "expected a whole number"),
        ("port: 8000", "port: 80.5", "spec.ports[0].port: ", "`80.5`"),
        ("port: 8000", "port: 0777", "spec.ports[0].port: ", "expected a whole number"),
        ("port: 8000", "port: null", "spec.ports[0].port: ", "null"),
        ("port: 8000", "port: [ 8000 ]", "spec.ports[0].port: ", "sequence"),
        ("port: 8000", "port: 65536", "spec.ports[0].port: ", "use 1 to 65535"),
        ("port: 8000", "port: 0", "spec.ports[0].port: ", "use 1 to 65535"),
        ("port: 8000", "protocol: TCP", "spec.ports[0]: ", "missing field `port`"),
        ("port: 8000", "port: 8000, protocol: tcp", "spec.ports[0].protocol: ", "expected `TCP` or `UDP`"),
        ("spec:", "spec:\n  pool: 5", "spec.pool: ", "expected a string"),
        ("spec:", "spec:\n  addresses: 10.30.1.78", "spec.addresses: ", "expected a sequence"),
        ("{ allow:", "{ deny: {}, allow:", "spec.sources.deny: ", "expected a sequence"),
        ("namespace: n", "namespace: 5", "metadata.namespace: ", "expected a string"),
        ("namespace: n", "labels: { a: 1 }", "metadata.labels.a: ", "expected a string"),
    ] {
        let forward = if from == "namespace: n" { "PortForward default/f: " } else { forward };
        is_told(FORWARD, from, to, &format!("{forward}{start}"), what);
    }
}

#[test]
fn an_absent_part_is_named() {
    let head = "apiVersion: sallyport.dev/v1alpha1\nkind: PortForward\n";
    for (text, what) in [
        (format!("{head}metadata: {{ name: f }}\n"), "PortForward default/f: missing field `spec`"),
        (format!("{head}metadata: {{ name: f }}\nspec:\n"), "PortForward default/f: spec: "),
        (head.to_owned(), "PortForward in document 1: metadata.name: "),
        (format!("{head}metadata:\n"), "PortForward in document 1: metadata.name: "),
        (format!("{head}metadata: f\n"), "PortForward in document 1: metadata.name: "),
        (format!("{head}metadata: {{ namespace: n }}\n"), "PortForward in document 1: metadata.name: "),
    ] {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].starts_with(what), "{text} → {found:?}");
    }
}

#[test]
fn a_name_that_yaml_takes_for_something_else_wants_quotes() {
    for name in ["5", "true", "1e3", "null", "[ f ]", "{ a: f }"] {
        let text = edited(FORWARD, "name: f,", &format!("name: {name},"));
        assert_eq!(
            problems(&text),
            ["PortForward in document 1: metadata.name: is not text; put it in quotes"],
            "{name}"
        );
    }
}

#[test]
fn names_that_kubernetes_would_refuse_are_refused() {
    for name in ["F", "a_b", "-a", "a-", "a..b", ".", "a b", "ü", "x\\u202e", "", "a/b", "../../etc"] {
        is_told(
            FORWARD,
            "name: f,",
            &format!("name: \"{name}\","),
            "PortForward in document 1: metadata.name: ",
            "is not a name",
        );
    }
    let long = "a".repeat(254);
    is_told(
        FORWARD,
        "name: f,",
        &format!("name: {long},"),
        "PortForward in document 1: metadata.name: ",
        "at most 253",
    );
    for namespace in ["a.b", "A", ""] {
        let to = format!("namespace: \"{namespace}\"");
        is_told(FORWARD, "namespace: n", &to, "PortForward in document 1: metadata.namespace: ", "is not a name");
    }
}

#[test]
fn other_kinds_and_versions_are_refused_and_the_right_ones_named() {
    for (from, to, place) in [
        ("kind: PortForward", "kind: Service", "document 1: "),
        ("kind: PortForward", "kind: portforward", "document 1: "),
        ("kind: PortForward", "kind: 5", "document 1: "),
        ("kind: PortForward\n", "", "document 1: "),
        ("apiVersion: sallyport.dev/v1alpha1\n", "", "document 1: "),
        ("sallyport.dev/v1alpha1", "sallyport.dev/v1", "document 1: "),
        ("sallyport.dev/v1alpha1", "v1", "document 1: "),
        ("kind: PortForward", "kind: GatewayPool\ntypo", "document 1: is not valid YAML"),
    ] {
        let found = problems(&edited(FORWARD, from, to));
        assert!(found.len() == 1 && found[0].starts_with(place), "{to} → {found:?}");
    }
    for text in ["apiVersion: v1\nkind: List\nitems: []\n", "hello\n", "- a\n- b\n", "5\n", "{}\n"] {
        let found = problems(text);
        assert!(
            found[0].starts_with("document 1: kind ") && found[0].contains("use PortForward or GatewayPool"),
            "{found:?}"
        );
    }
    // Somebody looks for a pool that is not understood, see `decide_here`.
    let other = edited(POOL, "v1alpha1", "v1beta1");
    assert!(problems(&other)[0].starts_with("GatewayPool in document 1: kind \"GatewayPool\" of apiVersion"));
}

#[test]
fn what_is_no_yaml_is_told_with_its_place() {
    for (from, to, what) in [
        ("spec:", "spec:\n  pool: a\n  pool: b", "duplicate mapping key: pool at line 6"),
        ("spec:", "spec:\n\tpool: a", "tab"),
        ("spec:", "spec:\n  pool: \"a\0b\"", "\\u{0}"),
        ("spec:", "spec:\n  pool: \"a", "line"),
        ("spec:", "spec: [", "line"),
        ("spec:", "spec:\n  pool: *nothing", "line"),
        ("spec:", "spec:\n  pool: .nan", "line 5"),
    ] {
        is_told(FORWARD, from, to, "document 1: is not valid YAML: ", what);
    }
}

#[test]
fn bombs_are_refused_without_being_unfolded() {
    let mut alias = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (from, to) in ["a", "b", "c", "d", "e", "f", "g", "h"].iter().zip(["b", "c", "d", "e", "f", "g", "h", "i"]) {
        alias += &format!("{to}: &{to} [{}]\n", vec![format!("*{from}"); 10].join(", "));
    }
    let deep = format!("a: {}{}\n", "[".repeat(5_000), "]".repeat(5_000));
    let indented: String = (0..200).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    for text in [alias, deep, indented] {
        let found = problems(&text);
        assert!(found[0].starts_with("document 1: is not valid YAML: "), "{found:?}");
        assert!(found[0].len() < 700, "{found:?}");
    }
}

#[test]
fn ordinary_yaml_of_other_editors_is_read() {
    for text in [
        FORWARD.replace('\n', "\r\n"),
        format!("\u{feff}{FORWARD}"),
        format!("# a comment\n---\n{FORWARD}"),
        format!("%YAML 1.2\n---\n{FORWARD}...\n"),
        format!("{FORWARD}---\n"),
        FORWARD.trim_end().to_owned(),
        Forward::tcp("n/f", 8000).object().to_string(),
    ] {
        assert_eq!(one(&text).unwrap(), one(FORWARD).unwrap(), "{text:?}");
    }
}

#[test]
fn a_text_without_documents_holds_nothing() {
    for text in ["", "\n", "# only a comment\n", "---\n", "---\n---\n", "\u{feff}"] {
        assert_eq!(all(text), [], "{text:?}");
    }
}

#[test]
fn a_broken_document_hides_no_other() {
    let text = format!("{NAMESPACE}---\nkind: Service\n---\n{FORWARD}");
    let documents = all(&text);
    assert_eq!(documents.len(), 3);
    assert!(documents[0].is_ok() && documents[2].is_ok());
    assert_eq!(documents[1].as_ref().unwrap_err()[0].object.to_string(), "document 2");
}

#[test]
fn a_syntax_error_ends_the_text_but_not_what_came_before() {
    let documents = all(&format!("{FORWARD}---\nfoo: [\n---\n{POOL}"));
    assert!(documents[0].is_ok());
    assert!(documents[1].is_err());
    assert!(documents[2..].iter().all(Result::is_err), "{documents:?}");
}

#[test]
fn no_string_of_a_document_can_begin_a_line_of_a_log() {
    for attack in ["x\\n-A FORWARD -j ACCEPT", "x; -j ACCEPT", "x\\r\\nerror: forged", "x\\e[2J", "x\\u2028y", "x\\0"] {
        for (text, from, to) in [
            (FORWARD, "name: f,", format!("name: \"{attack}\",")),
            (FORWARD, "namespace: n", format!("namespace: \"{attack}\"")),
            (FORWARD, "name: p,", format!("name: \"{attack}\",")),
            (FORWARD, "name: t,", format!("name: \"{attack}\",")),
            (FORWARD, "10.30.1.80/32", format!("\"{attack}\"")),
            (FORWARD, "10.30.1.79", format!("\"{attack}\"")),
            (FORWARD, "port: 8000", format!("port: \"{attack}\"")),
            (FORWARD, "port: 8000", format!("port: 8000, protocol: \"{attack}\"")),
            (FORWARD, "port: 8000", format!("port: 8000, \"{attack}\": 1")),
            (FORWARD, "spec:", format!("spec:\n  pool: \"{attack}\"")),
            (FORWARD, "spec:", format!("spec:\n  addresses: [ \"{attack}\" ]")),
            (FORWARD, "spec:", format!("spec:\n  sourceNAT: {{ mode: \"{attack}\" }}")),
            (FORWARD, "spec:", format!("spec:\n  mode: \"{attack}\"")),
            (FORWARD, "spec:", format!("spec:\n  \"{attack}\": 1")),
            (FORWARD, "spec:", format!("spec:\n  \"{attack}\": 1\n  \"{attack}\": 2")),
            (FORWARD, "kind: PortForward", format!("kind: \"{attack}\"")),
            (FORWARD, "sallyport.dev/v1alpha1", format!("\"{attack}\"")),
            (POOL, "name: g", format!("name: \"{attack}\"")),
            (POOL, "name: a,", format!("name: \"{attack}\",")),
            (POOL, "name: a,", format!("name: a, targetCIDRs: [ \"{attack}\" ],")),
            (POOL, "nodeSelector: {}", format!("nodeSelector: {{ matchLabels: {{ a: {{ \"{attack}\": 1 }} }} }}")),
            (NAMESPACE, "name: n,", format!("name: \"{attack}\",")),
            (NAMESPACE, "team: a", format!("\"{attack}\": 1")),
        ] {
            let edited = edited(text, from, &to);
            for problem in problems(&edited) {
                assert!(!problem.contains(|c: char| c.is_control() || c == '\u{2028}'), "{to} → {problem:?}");
            }
        }
    }
}

#[test]
fn an_endless_string_is_not_repeated_whole() {
    let long = "x".repeat(50_000);
    for (from, to) in [
        ("kind: PortForward", format!("kind: {long}")),
        ("spec:", format!("spec:\n  {long}: 1")),
        ("port: 8000", format!("port: {long}")),
        ("name: f,", format!("name: {long},")),
    ] {
        let found = problems(&edited(FORWARD, from, &to));
        assert!(found[0].len() < 600, "{}", found[0].len());
    }
}

#[test]
fn problems_without_end_are_cut_short() {
    let fields: String = (0..1_000).map(|n| format!("a{n}: 1\n")).collect();
    assert_eq!(problems(&format!("{NAMESPACE}{fields}")).len(), MAX_PROBLEMS);

    let documents = all(&format!("{FORWARD}---\n{}", "a\n---\n".repeat(5_000)));
    assert_eq!(documents.len(), 1 + MAX_BROKEN + 1);
    let last = &documents.last().unwrap().as_ref().unwrap_err()[0];
    assert_eq!(last.object.to_string(), format!("document {}", MAX_BROKEN + 2));
    assert!(last.message.contains("the rest are not read"), "{}", last.message);
}

#[test]
fn thousands_of_documents_are_one_text() {
    let text: String =
        (0..2_000).map(|n| format!("---\n{}", FORWARD.replace("name: f", &format!("name: f{n}")))).collect();
    assert_eq!(all(&text).into_iter().flatten().count(), 2_000);
}
