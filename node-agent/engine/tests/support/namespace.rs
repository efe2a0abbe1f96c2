//! A network namespace for one test: it has no name and goes with the last process inside, so
//! nothing is left behind whatever happens. Needs root and `unshare` of util-linux.

use std::env;
use std::process::Command;

/// Set in the copy of the test that runs inside the namespace.
const INSIDE: &str = "SALLYPORT_TEST_NAMESPACE";

/// Runs `body` inside a new network namespace, by running the test called `name` once more
/// there. Panics when that fails, or when no test has this name.
pub fn in_namespace(name: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let output = Command::new("unshare")
        .arg("--net")
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    println!("{out}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "failed inside the namespace");
    assert!(out.contains("1 passed"), "no test is called {name}");
}

/// Runs a program that must succeed, given as words.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
}
