//! What is on disk: for whom, whole, and what happens when it is not understood.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, Mode, mkfifoat};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::gateway_pool::{FirewallBackend, IpForward};

use super::*;

fn intents(pool: &str) -> Intents {
    let node = GatewayNodeSpec {
        pool: pool.to_owned(),
        state: NodeState::Active,
        addresses: vec!["10.30.1.78".parse().unwrap()],
        listen_cidrs: Vec::new(),
        ip_forward: IpForward::default(),
        backend: FirewallBackend::default(),
        order: None,
        reserved_ports: Vec::new(),
    };
    Intents { node, slices: BTreeMap::new() }
}

fn object(name: &str) -> Object {
    Object::Namespace(name.to_owned(), BTreeMap::new())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A state directory in a directory that goes with the guard.
fn state() -> (tempfile::TempDir, StateDir) {
    let guard = tempfile::tempdir().unwrap();
    let state = StateDir::lock(&guard.path().join("state")).unwrap();
    (guard, state)
}

#[test]
fn a_second_agent_is_refused_until_the_first_is_gone() {
    let guard = tempfile::tempdir().unwrap();
    let first = StateDir::lock(guard.path()).unwrap();
    let error = StateDir::lock(guard.path()).unwrap_err();
    assert!(matches!(&error, Error::InUse { path } if path == guard.path()), "{error}");
    assert!(error.to_string().contains("in use by another agent on this host; stop that one first"));
    drop(first);
    StateDir::lock(guard.path()).unwrap();
}

#[test]
fn what_a_killed_agent_was_just_starting_is_waited_for() {
    let guard = tempfile::tempdir().unwrap();
    // A child that was forked shares the lock until it is another program.
    let dead = StateDir::lock(guard.path()).unwrap();
    let forked = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(dead);
    });
    StateDir::lock(guard.path()).unwrap();
    forked.join().unwrap();
}

#[test]
fn the_lock_survives_a_clear() {
    let (guard, state) = state();
    state.clear().unwrap();
    assert!(matches!(StateDir::lock(&guard.path().join("state")), Err(Error::InUse { .. })));
}

#[test]
fn only_its_owner_can_read_what_is_kept() {
    let (guard, state) = state();
    state.keep_intents(&intents("a")).unwrap();
    state.keep_host(&Host::default()).unwrap();
    state.keep_good_objects("x.yaml", &[object("a")]).unwrap();
    let path = guard.path().join("state");
    for directory in ["", "manifests"] {
        assert_eq!(mode(&path.join(directory)), 0o700, "{directory}");
    }
    for file in ["lock", "intents.json", "host.json", "manifests/x.yaml.json"] {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
    }
}

#[test]
fn what_was_kept_is_read_back_by_the_next_agent() {
    let (guard, state) = state();
    let mut host = state.host().unwrap();
    assert_eq!((host.sysctls.len(), &host.created_by_us), (0, &None));
    host.created_by_us = Some(Vec::new());
    state.keep_intents(&intents("a")).unwrap();
    state.keep_host(&host).unwrap();
    state.keep_good_objects("x.yaml", &[object("a"), object("b")]).unwrap();
    drop(state);

    let path = guard.path().join("state");
    for next in [StateDir::read_only(&path), StateDir::lock(&path).unwrap()] {
        assert_eq!(next.intents().unwrap(), Some(intents("a")));
        assert_eq!(next.host().unwrap(), host);
        assert_eq!(next.good_objects("x.yaml").unwrap(), [object("a"), object("b")]);
        assert_eq!(next.good_names(), ["x.yaml"]);
    }
}

/// A later agent has to find what this one wrote, and this one what an earlier one did.
#[test]
fn how_the_host_was_is_written_as_it_always_was() {
    let host = Host { boot: "b".into(), created_by_us: Some(Vec::new()), ..Host::default() };
    let text = r#"{"boot":"b","sysctls":[],"absent":[]}"#;
    assert_eq!(serde_json::to_string(&host).unwrap(), text);
    assert_eq!(serde_json::from_str::<Host>(text).unwrap(), host);
}

#[test]
fn settings_of_an_earlier_boot_are_no_longer_to_be_put_back() {
    let (_guard, state) = state();
    state.keep_host(&Host { boot: "another".into(), created_by_us: Some(Vec::new()), ..Host::default() }).unwrap();
    let host = state.host().unwrap();
    assert_eq!(host.created_by_us, None);
    assert_eq!(host.boot, boot().unwrap());
}

#[test]
fn an_absent_directory_is_empty_and_is_not_made_by_a_reader() {
    let guard = tempfile::tempdir().unwrap();
    let path = guard.path().join("none");
    let state = StateDir::read_only(&path);
    assert_eq!(state.intents().unwrap(), None);
    assert_eq!(state.good_objects("x.yaml").unwrap(), []);
    assert_eq!(state.good_names(), Vec::<String>::new());
    state.keep_good_objects("x.yaml", &[object("a")]).unwrap();
    state.forget_objects("x.yaml").unwrap();
    assert!(!path.exists());
}

#[test]
fn a_reader_forgets_nothing() {
    let (guard, state) = state();
    state.keep_good_objects("x.yaml", &[object("a")]).unwrap();
    let reader = StateDir::read_only(&guard.path().join("state"));
    reader.forget_objects("x.yaml").unwrap();
    reader.keep_good_objects("x.yaml", &[]).unwrap();
    assert_eq!(state.good_objects("x.yaml").unwrap(), [object("a")]);
}

#[test]
fn a_write_that_did_not_finish_is_never_seen() {
    let (guard, state) = state();
    let path = guard.path().join("state");
    state.keep_intents(&intents("a")).unwrap();
    state.keep_good_objects("x.yaml", &[object("a")]).unwrap();
    // A crash half-way leaves only this.
    for name in ["intents.json.new", "host.json.new", "manifests/x.yaml.json.new", "manifests/y.yaml.json.new"] {
        fs::write(path.join(name), "{\"node\": {\"po").unwrap();
    }
    assert_eq!(state.intents().unwrap(), Some(intents("a")));
    assert_eq!(state.good_objects("x.yaml").unwrap(), [object("a")]);
    assert_eq!(state.good_objects("y.yaml").unwrap(), []);
    assert_eq!(state.good_names(), ["x.yaml"]);
    state.keep_intents(&intents("b")).unwrap();
    assert_eq!(state.intents().unwrap(), Some(intents("b")));
}

#[test]
fn a_reader_sees_the_old_or_the_new_whole() {
    let (guard, state) = state();
    let path = guard.path().join("state");
    let names = ["a".repeat(10), "b".repeat(100_000)];
    state.keep_intents(&intents(&names[0])).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let reader = StateDir::read_only(&path);
            for _ in 0..300 {
                let pool = reader.intents().unwrap().unwrap().node.pool;
                assert!(names.contains(&pool), "{} characters", pool.len());
            }
        });
        for round in 0..100 {
            state.keep_intents(&intents(&names[round % 2])).unwrap();
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_failed_write_keeps_the_old() {
    let (guard, state) = state();
    state.keep_intents(&intents("a")).unwrap();
    // Nobody, root included, can open a directory for writing.
    fs::create_dir(guard.path().join("state/intents.json.new")).unwrap();
    let error = state.keep_intents(&intents("b")).unwrap_err();
    assert!(matches!(error, Error::Access { .. }), "{error}");
    assert_eq!(state.intents().unwrap(), Some(intents("a")));
}

#[test]
fn content_that_is_not_understood_is_an_error_that_names_the_file() {
    let (guard, state) = state();
    let path = guard.path().join("state");
    fs::create_dir(path.join("manifests")).unwrap();
    for broken in ["", "{", "\0\0\0\0", "[]", "{\"node\": 5}", "null"] {
        for file in ["intents.json", "host.json", "manifests/x.yaml.json"] {
            fs::write(path.join(file), broken).unwrap();
        }
        let errors = [
            ("intents.json", state.intents().err()),
            ("host.json", state.host().err()),
            ("x.yaml.json", state.good_objects("x.yaml").err()),
        ];
        for (file, error) in errors {
            match error {
                Some(error @ Error::Content { .. }) => assert!(error.to_string().ends_with(file), "{error}"),
                // Some of these texts are values of some of the types.
                None if broken == "[]" || broken == "null" => {}
                other => panic!("{broken:?} in {file}: {other:?}"),
            }
        }
    }
}

/// What nobody expects where a file should be.
const INTRUDERS: [&str; 4] = ["fifo", "directory", "socket", "huge"];

/// Puts it there, in place of what was there.
fn put(intruder: &str, path: &Path) {
    if fs::remove_file(path).is_err() {
        let _ = fs::remove_dir(path);
    }
    match intruder {
        "fifo" => mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap(),
        "directory" => fs::create_dir(path).unwrap(),
        "socket" => drop(UnixListener::bind(path).unwrap()),
        _ => File::create(path).unwrap().set_len(300 << 20).unwrap(),
    }
}

/// What `work` returns, which must not hang; it may be given up on only by the end of the test.
fn soon<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, hears) = std::sync::mpsc::channel();
    thread::spawn(move || done.send(work()));
    hears.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| panic!("{what}: hangs"))
}

#[test]
fn whatever_is_where_a_file_should_be_is_named_at_once_and_costs_no_memory() {
    type Read = fn(&StateDir) -> Option<Error>;
    let rows: [(&str, Read); 6] = [
        ("intents.json", |state| state.intents().err()),
        ("newcomers.json", |state| state.not_admitted().err()),
        ("clock.json", |state| state.highest_time().err()),
        ("first-seen.json", |state| state.first_seen().err()),
        ("host.json", |state| state.host().err()),
        ("manifests/x.yaml.json", |state| state.good_objects("x.yaml").err()),
    ];
    for intruder in INTRUDERS {
        for (file, read) in rows {
            let (guard, state) = state();
            fs::create_dir(guard.path().join("state/manifests")).unwrap();
            let path = guard.path().join("state").join(file);
            put(intruder, &path);
            let error = soon(&format!("{intruder} in {file}"), move || read(&state)).unwrap();
            assert!(matches!(&error, Error::Access { path: named, .. } if *named == path), "{error}");
            let why = if intruder == "huge" { "has 314572800 bytes; at most" } else { "is not a regular file" };
            let said = chain_of(&error);
            assert!(said.contains("; move it away") && said.contains(why), "{intruder} in {file}: {said}");
        }
    }
}

#[test]
fn whatever_is_where_the_lock_should_be_is_named_at_once() {
    for intruder in INTRUDERS {
        let guard = tempfile::tempdir().unwrap();
        let path = guard.path().join("lock");
        put(intruder, &path);
        let directory = guard.path().to_owned();
        match soon(intruder, move || StateDir::lock(&directory)) {
            // Nobody reads it.
            Ok(_) => assert_eq!(intruder, "huge"),
            Err(error) => {
                let said = chain_of(&error);
                assert_eq!(said, format!("cannot access {}; move it away: is not a regular file", path.display()));
            }
        }
    }
}

#[test]
fn whatever_is_where_a_file_is_written_gives_way_or_is_named_at_once() {
    for intruder in INTRUDERS {
        for file in ["intents.json", "intents.json.new"] {
            let (guard, state) = state();
            let path = guard.path().join("state").join(file);
            put(intruder, &path);
            let kept = soon(&format!("{intruder} in {file}"), move || {
                let kept = state.keep_intents(&intents("a"));
                kept.map(|()| state.intents().unwrap().unwrap())
            });
            match kept {
                Ok(kept) => assert_eq!(kept, intents("a")),
                // A directory may hold somebody's files.
                Err(error) => assert!(intruder == "directory" && error.to_string().contains("intents.json"), "{error}"),
            }
        }
    }
}

#[test]
fn a_host_record_that_is_not_understood_counts_as_nothing_to_put_back() {
    let (guard, state) = state();
    fs::write(guard.path().join("state/host.json"), "{").unwrap();
    let host = state.host_or_nothing();
    assert_eq!((host.sysctls.len(), host.created_by_us), (0, Some(Vec::new())));
    assert_eq!(host.boot, boot().unwrap());
}

#[test]
fn clear_forgets_everything_even_what_a_crash_left() {
    let (guard, state) = state();
    let path = guard.path().join("state");
    state.keep_intents(&intents("a")).unwrap();
    state.keep_host(&Host::default()).unwrap();
    state.keep_good_objects("x.yaml", &[object("a")]).unwrap();
    for name in ["intents.json.new", "host.json.new", "manifests/x.yaml.json.new"] {
        fs::write(path.join(name), "{").unwrap();
    }
    state.clear().unwrap();
    let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
    state.clear().unwrap();
}

#[test]
fn a_host_that_an_older_version_served_keeps_its_order_and_a_new_one_does_not() {
    use FirewallOrder::{AfterDenies, First};
    for (served, order) in [(false, AfterDenies), (true, First)] {
        let guard = tempfile::tempdir().unwrap();
        let state = StateDir::lock(guard.path()).unwrap();
        if served {
            state.keep_intents(&intents("default")).unwrap();
        }
        assert_eq!(StateDir::read_only(guard.path()).order().unwrap(), (order, true), "who only looks decides nothing");
        assert_eq!(state.order().unwrap(), (order, true));
        state.keep_intents(&intents("default")).unwrap();
        assert_eq!(state.order().unwrap(), (order, false), "that does not change with what comes later");
        state.clear().unwrap();
        assert_eq!(state.order().unwrap(), (AfterDenies, true));
    }
}
