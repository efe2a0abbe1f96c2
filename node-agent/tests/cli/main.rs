//! The program as scripts call it: arguments, exit codes, what it prints, and what it survives.
//!
//! Needs neither root nor a kernel: rules go to the dry-run backend.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this is a test, its functions outside of #[test] included"
)]

mod probes;
mod scene;
mod state;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use scene::{AGENT, Running, Scene, agent, forward, wait_until};

/// Forwards of the tests with many; a debug build reads slowly.
const MANY: u16 = if cfg!(debug_assertions) { 1_000 } else { 10_000 };

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn errors(output: &Output) -> Vec<String> {
    stderr(output).lines().filter(|line| line.starts_with("error: ")).map(str::to_owned).collect()
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: { name: payments }\n";

/// Ports that no forward is refused for.
fn free_ports() -> impl Iterator<Item = u16> {
    (11_000..30_000).chain(33_000..65_000)
}

#[test]
fn help_names_every_command_and_option() {
    for (arguments, names) in [
        (&["--help"][..], &["run", "plan", "render", "cleanup", "--log-format", "--version"][..]),
        (
            &["run", "--help"],
            &"--manifests --namespace --node-name --state-dir --proc-sys --admin --once --backend auto iptables-nft \
              iptables-legacy dry-run"
                .split(' ')
                .collect::<Vec<_>>(),
        ),
        (&["plan", "--help"], &["--manifests", "--node-name", "--state-dir", "--proc-sys", "--backend"]),
        (&["render", "--help"], &["--manifests", "--node-address", "--for", "gateway", "targets"]),
        (&["cleanup", "--help"], &["--state-dir"]),
    ] {
        let output = agent(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        for name in names {
            assert!(stdout(&output).contains(name), "{arguments:?} does not tell {name}");
        }
    }
}

#[test]
fn without_a_cluster_to_follow_the_agent_says_what_is_missing() {
    let scene = Scene::new();
    let output = agent(&["run", "--node-name", "gw1", "--namespace", "sallyport", "--backend", "dry-run"])
        .arg("--state-dir")
        .arg(scene.path("state"))
        .env("KUBECONFIG", scene.path("none"))
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("error: cannot tell which cluster to follow; set KUBECONFIG"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn arguments_that_are_not_understood_end_with_2_and_a_hint() {
    for (arguments, hint) in [
        (&[][..], "Usage"),
        (&["fly"], "unrecognized subcommand"),
        (&["run", "--state-dir", "b", "--node-name", "c"], "--namespace <NAMESPACE>"),
        (
            &["run", "--once", "--state-dir", "b", "--node-name", "c", "--namespace", "d"],
            "required arguments were not provided:\n  --manifests <DIR>",
        ),
        (
            &["run", "--manifests", "a", "--once", "--admin", "127.0.0.1:0", "--state-dir", "b", "--node-name", "c"],
            "'--once' cannot be used with '--admin <IP:PORT>'",
        ),
        (&["run", "--manifests", "a", "--state-dir", "b"], "--node-name <NAME>"),
        (
            &["run", "--manifests", "a", "--state-dir", "b", "--node-name", "c", "--backend", "pf"],
            "possible values: auto, iptables-nft",
        ),
        (&["render", "--manifests", "a"], "--node-address <IP>"),
        (&["render", "--manifests", "a", "--node-address", "gw1"], "invalid value 'gw1'"),
        (
            &["render", "--manifests", "a", "--node-address", "10.0.0.1", "--for", "me"],
            "possible values: gateway, targets",
        ),
        (&["cleanup"], "--state-dir <DIR>"),
    ] {
        let output = agent(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(hint), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn the_examples_render_to_the_rules_of_the_gateway() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let arguments = ["render", "--manifests", examples.to_str().unwrap(), "--node-address", "10.30.1.78"];
    let output = agent(&arguments).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert_eq!(
        stdout(&output),
        "\
set -e
iptables-restore --noflush <<'EOF'
*filter
:SALLY-FWD - [0:0]
-A SALLY-FWD -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
-I FORWARD 1 -j SALLY-FWD
COMMIT
*nat
:SALLY-M - [0:0]
:SALLY-MT - [0:0]
:SALLY-POST - [0:0]
:SALLY-PRE - [0:0]
-A SALLY-M -j CONNMARK --set-xmark 0x30000000/0x30000000
-A SALLY-M -p tcp -j SALLY-MT
-A SALLY-M -j CONNMARK --set-xmark 0x0/0x30000000
-A SALLY-MT -s 10.30.1.80/32 -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79
-A SALLY-POST -m conntrack --ctstate DNAT -m connmark --mark 0x30000000/0x30000000 -j MASQUERADE
-A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M
-I PREROUTING 1 -j SALLY-PRE
-I OUTPUT 1 -j SALLY-PRE
-I POSTROUTING 1 -j SALLY-POST
COMMIT
*mangle
:SALLY-IN - [0:0]
-A SALLY-IN -m conntrack ! --ctstate INVALID -j RETURN
-A SALLY-IN -p tcp -m tcp --tcp-flags RST RST -j RETURN
-A SALLY-IN -s 10.30.1.79/32 -p tcp -m tcp --sport 3306 -j DROP
-I INPUT 1 -j SALLY-IN
COMMIT
EOF
"
    );

    let for_targets = agent(&arguments).args(["--node-address", "10.30.1.77", "--for", "targets"]).output().unwrap();
    assert_eq!(
        stdout(&for_targets),
        "\
set -e
# on 10.30.1.79
iptables-restore --noflush <<'EOF'
*filter
-A INPUT -s 10.30.1.77 -p tcp -m tcp --dport 3306 -j ACCEPT
-A INPUT -s 10.30.1.78 -p tcp -m tcp --dport 3306 -j ACCEPT
COMMIT
EOF
"
    );
}

#[test]
fn every_problem_is_one_line_with_file_object_and_field_and_hides_no_good_neighbour() {
    let scene = Scene::new();
    scene.put("good.yaml", &forward("good", 8000));
    scene.put("a.yaml", &forward("a", 0));
    scene.put("b.yaml", &forward("b", 8001).replace("port: 8001", "port: 8001, speed: 5"));
    scene.put("c.yaml", &forward("c", 8000));
    scene.put("d.yaml", "kind: Pod\napiVersion: v1\n");
    scene.put("e.yaml", &forward("e", 8002).replace("10.30.1.79", "10.30.1.78"));
    scene.put("f.yaml", &forward("f", 8003).replace("spec:", "spec:\n  addresses: [ 127.0.0.1 ]"));
    scene.put("g.yaml", &format!("{}{}", forward("h", 8004), forward("g", 22)));
    fs::write(scene.path("manifests/i.yaml"), b"\xff\xfe").unwrap();
    let output = scene.render(&[]);
    assert_eq!(output.status.code(), Some(1));
    let expected = [
        "error: a.yaml: PortForward default/a: spec.ports[0].port: 0 is not a port; use 1 to 65535",
        "error: b.yaml: PortForward default/b: spec.ports[0].speed: is not a field",
        "error: d.yaml: document 1: kind \"Pod\" of apiVersion \"v1\" does not belong here",
        "error: e.yaml: PortForward default/e: spec.targets: 10.30.1.78 is an address of a gateway",
        "error: g.yaml: PortForward default/g: spec.ports[0].port: 22/TCP is kept for the gateway itself",
        "error: good.yaml: PortForward default/good: spec.ports: port 8000/TCP is held by PortForward c",
        "error: i.yaml: is not UTF-8 text",
        "error: f.yaml: PortForward default/f: spec.addresses[0]: 127.0.0.1 is a loopback address",
    ];
    let found = errors(&output);
    for start in expected {
        assert!(found.iter().any(|line| line.starts_with(start)), "{start:?} is not among {found:#?}");
    }
    assert_eq!((found.len(), stderr(&output).lines().count()), (expected.len(), expected.len()), "{found:#?}");
    let rules = stdout(&output);
    assert!(rules.contains("--dport 8000 ") && rules.contains("--dport 8004 "), "{rules}");
    assert_eq!(rules.matches("--dport").count(), 2, "{rules}");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let scene = Scene::new();
    fs::remove_dir(scene.path("manifests")).unwrap();
    let render = scene.render(&[]);
    let once = scene.on_host("run").arg("--once").output().unwrap();
    let plan = scene.on_host("plan").output().unwrap();
    for output in [render, once, plan] {
        assert_eq!(output.status.code(), Some(1));
        let lines = errors(&output);
        let named = scene.path("manifests");
        assert!(
            lines.len() == 1 && lines[0].contains(named.to_str().unwrap()) && lines[0].contains("No such file"),
            "{lines:?}"
        );
        assert!(!stderr(&output).contains("backtrace"), "{}", stderr(&output));
    }
}

#[test]
fn once_ends_with_0_if_all_is_well_and_with_1_if_not() {
    let scene = Scene::new();
    scene.put("namespace.yaml", NAMESPACE);
    let output = scene.on_host("run").arg("--once").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("verified: forwards 0, rules v3:"), "{}", stdout(&output));
    assert_eq!(fs::metadata(scene.path("state")).unwrap().mode() & 0o777, 0o700);

    scene.put("a.yaml", &forward("a", 0));
    let output = scene.on_host("run").arg("--once").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        errors(&output),
        ["error: a.yaml: PortForward default/a: spec.ports[0].port: 0 is not a port; use 1 to 65535"]
    );
    assert!(stdout(&output).starts_with("verified: "), "the others are applied all the same");
}

#[test]
fn the_dry_run_needs_no_root() {
    let scene = Scene::new();
    scene.put("namespace.yaml", NAMESPACE);
    let mut command = scene.on_host("run");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        // Where anybody can run it and write beside it.
        let copy = scene.path("agent");
        // By another program: no file that this one has open for writing can be run, and other tests start programs meanwhile.
        assert!(Command::new("cp").arg(AGENT).arg(&copy).status().unwrap().success());
        fs::set_permissions(scene.guard.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = Command::new(copy);
        command.args(arguments).uid(65534).gid(65534);
    }
    let output = command.arg("--once").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_plan_touches_nothing() {
    let scene = Scene::new();
    scene.put("namespace.yaml", NAMESPACE);
    let output = scene.on_host("plan").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "# the rules are as they should be\n");
    assert!(!scene.path("state").exists());

    scene.put("a.yaml", "broken: [\n");
    assert_eq!(scene.on_host("plan").output().unwrap().status.code(), Some(1));
    // Beside a running agent too.
    let running = scene.start();
    assert_eq!(scene.on_host("plan").output().unwrap().status.code(), Some(1));
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_second_agent_on_one_state_directory_is_refused() {
    let scene = Scene::new();
    let running = scene.start();
    for arguments in [&["--once"][..], &[]] {
        let output = scene.on_host("run").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let lines = errors(&output);
        assert!(
            lines.len() == 1 && lines[0].ends_with("is in use by another agent on this host; stop that one first"),
            "{lines:?}"
        );
    }
    let cleanup = agent(&["cleanup", "--state-dir"]).arg(scene.path("state")).output().unwrap();
    assert_eq!(cleanup.status.code(), Some(1));
    assert_eq!(running.stop(), Some(0));
    assert_eq!(scene.on_host("run").arg("--once").output().unwrap().status.code(), Some(0));
}

#[test]
fn logs_can_be_json() {
    let scene = Scene::new();
    scene.put("a.yaml", &forward("a", 0));
    let log = scene.path("log");
    let child =
        scene.on_host("run").args(["--log-format", "json"]).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let running = Running { child, log };
    running.wait_for("verified");
    for line in running.log().lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["level"].is_string(), "{line}");
    }
    assert!(running.log().contains("a.yaml: PortForward default/a: "));
}

#[test]
fn an_agent_follows_its_directory_and_outlives_it() {
    let scene = Scene::new();
    scene.put("a.yaml", "broken: [\n");
    let running = scene.start();
    running.wait_for("a.yaml: document 1: is not valid YAML");
    scene.put("b.yaml", "\0\n");
    running.wait_for("b.yaml: document 1: is not valid YAML");

    fs::rename(scene.path("manifests"), scene.path("away")).unwrap();
    running.wait_for("cannot list the manifests in");
    fs::rename(scene.path("away"), scene.path("manifests")).unwrap();
    running.wait_for("manifests are readable again");
    scene.put("c.yaml", "5\n");
    running.wait_for("c.yaml: document 1: kind \"\"");
    assert_eq!(running.log().matches("cannot list").count(), 1, "told again and again:\n{}", running.log());
    assert_eq!(running.log().matches("a.yaml: ").count(), 1, "told again and again:\n{}", running.log());
    assert!(!running.log().contains("panicked"));
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_file_of_100_megabytes_costs_a_message_and_no_memory() {
    let scene = Scene::new();
    scene.put("namespace.yaml", NAMESPACE);
    File::create(scene.path("manifests/huge.yaml")).unwrap().set_len(100 * 1024 * 1024).unwrap();
    let running = scene.start();
    running.wait_for("huge.yaml: has 104857600 bytes; at most 33554432 are read, split it");
    assert!(running.memory("VmHWM") < 40 * 1024, "{} KiB", running.memory("VmHWM"));
    let mut zeros = String::new();
    // Within the limit, and nothing but what no YAML may hold.
    File::open("/dev/zero").unwrap().take(30 * 1024 * 1024).read_to_string(&mut zeros).unwrap();
    scene.put("huge.yaml", &(zeros + "\n"));
    running.wait_for("huge.yaml: document 1: is not valid YAML");
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn many_forwards_in_one_file_and_in_many_are_carried_in_little_memory() {
    for files in [1, usize::from(MANY)] {
        let scene = Scene::new();
        let forwards: Vec<String> =
            free_ports().take(usize::from(MANY)).enumerate().map(|(n, port)| forward(&format!("f{n}"), port)).collect();
        for (number, part) in forwards.chunks(forwards.len().div_ceil(files)).enumerate() {
            scene.put(&format!("{number}.yaml"), &part.concat());
        }
        let started = Instant::now();
        let running = scene.start();
        println!("{MANY} forwards in {files} files: first pass after {:?}", started.elapsed());
        let changed = Instant::now();
        scene.put("0.yaml", &(forward("f0", 10_999) + &forwards[1..forwards.len().div_ceil(files)].concat()));
        wait_until(|| running.log().matches("verified").count() >= 2, || running.log());
        println!("{MANY} forwards in {files} files: a change after {:?}", changed.elapsed());
        // What a pass needs for a moment is given back within some seconds. Not counted is the program's own file.
        let limit = 16 * 1024;
        wait_until(
            || running.memory("RssAnon") <= limit,
            || format!("{} KiB stay resident", running.memory("RssAnon")),
        );
        println!(
            "{MANY} forwards in {files} files: {} KiB, peak {} KiB",
            running.memory("RssAnon"),
            running.memory("VmHWM")
        );
        assert_eq!(running.stop(), Some(0));
    }
}
