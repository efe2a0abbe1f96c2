//! What is taken from a directory, and what stays of files that cannot be read.

use std::fs::File;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use sallyport_api::testing::Forward;

use super::*;

/// A directory of manifests beside a state directory.
struct Scene {
    guard: tempfile::TempDir,
    good: StateDir,
    directory: Directory,
}

fn forward(name: &str, port: u16) -> String {
    Forward::tcp(&format!("default/{name}"), port).manifest()
}

impl Scene {
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let manifests = guard.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let good = StateDir::lock(&guard.path().join("state")).unwrap();
        Self { directory: Directory::new(&manifests), guard, good }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.guard.path().join("manifests").join(name)
    }

    /// Writes a file that has been still for an hour.
    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
        self.age(name);
    }

    fn age(&self, name: &str) {
        let file = File::options().append(true).open(self.path(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
    }

    fn look(&mut self) -> Look {
        self.directory.look(&BTreeSet::new(), &self.good).unwrap()
    }

    fn look_at_closed(&mut self, name: &str) -> Look {
        self.directory.look(&BTreeSet::from([name.to_owned()]), &self.good).unwrap()
    }

    /// As after a restart of the agent.
    fn restart(&mut self) {
        self.directory = Directory::new(&self.guard.path().join("manifests"));
    }

    /// Name and port of every forward, in order of their files.
    fn forwards(&self) -> Vec<(String, i32)> {
        let (objects, _) = self.directory.objects();
        let port = |object: &Object| match object {
            Object::Forward(key, spec) => (key.name.clone(), spec.ports[0].port),
            other => panic!("{other:?}"),
        };
        objects.into_iter().map(|(_, object)| port(object)).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.directory.objects().1.iter().map(ToString::to_string).collect()
    }
}

/// Everything that can be wrong with a file as a whole, and what is said then.
fn broken() -> Vec<(Vec<u8>, &'static str)> {
    let cut = forward("a", 8000).trim_end().to_owned();
    let typo = forward("a", 8000).replace("ports:", "portz:");
    vec![
        (b"\xff\xfe\x00binary".to_vec(), "is not UTF-8 text"),
        (Vec::new(), "holds no object; delete the file to remove what it held"),
        (b"# nothing left\n".to_vec(), "holds no object"),
        (cut.clone().into_bytes(), "ends without a line break, so it may be cut off; end it with one"),
        (format!("{}\n", &cut[..cut.len() - 4]).into_bytes(), "is not valid YAML"),
        (typo.into_bytes(), "PortForward default/a: spec: missing field `ports`"),
        (forward("a", 8000).replace("10.30.1.79", "127.0.0.1").into_bytes(), "is a loopback address"),
        (b"kind: Secret\napiVersion: v1\n".to_vec(), "does not belong here"),
    ]
}

#[test]
fn manifests_end_in_yaml_or_yml_and_are_not_hidden() {
    let mut scene = Scene::new();
    for (port, name) in
        ["a.yaml", "b.yml", "c.json", ".d.yaml", "e.yaml.swp", "yaml", "f.YAML", "g.yaml~"].iter().enumerate()
    {
        scene.put(name, forward(&format!("f{port}"), 8000));
    }
    fs::create_dir(scene.path("deeper")).unwrap();
    scene.put("deeper/h.yaml", forward("h", 8000));
    assert_eq!(scene.look(), Look { changed: true, unsettled: false });
    assert_eq!(scene.forwards(), [("f0".into(), 8000), ("f1".into(), 8000)]);
    assert_eq!(scene.problems(), Vec::<String>::new());
}

#[test]
fn a_second_look_without_a_change_reads_nothing() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.put("b.yaml", "broken: [\n");
    symlink("/nonexistent", scene.path("c.yaml")).unwrap();
    fs::create_dir(scene.path("d.yaml")).unwrap();
    assert!(scene.look().changed);
    assert_eq!(scene.look(), Look { changed: false, unsettled: false });
}

#[test]
fn a_file_that_cannot_be_used_keeps_what_it_held() {
    for (content, message) in broken() {
        let mut scene = Scene::new();
        scene.put("a.yaml", forward("a", 8000));
        scene.put("b.yaml", forward("b", 8001));
        scene.look();
        scene.put("a.yaml", &content);
        scene.put("b.yaml", forward("b", 8002));
        assert!(scene.look().changed);
        assert_eq!(scene.forwards(), [("a".into(), 8000), ("b".into(), 8002)], "{message}");
        let problems = scene.problems();
        assert!(
            problems.len() == 1 && problems[0].starts_with("a.yaml: ") && problems[0].contains(message),
            "{problems:?}"
        );

        // And so it is after a restart, from the state directory.
        scene.restart();
        scene.look();
        assert_eq!(scene.forwards(), [("a".into(), 8000), ("b".into(), 8002)], "{message}");
        assert_eq!(scene.problems(), problems);

        scene.put("a.yaml", forward("a", 9000));
        scene.look();
        assert_eq!(scene.forwards(), [("a".into(), 9000), ("b".into(), 8002)]);
        assert_eq!(scene.problems(), Vec::<String>::new());
    }
}

#[test]
fn a_file_that_never_was_good_holds_nothing() {
    for (content, message) in broken() {
        let mut scene = Scene::new();
        scene.put("a.yaml", &content);
        scene.look();
        assert_eq!(scene.forwards(), [], "{message}");
        assert_eq!(scene.problems().len(), 1, "{message}");
    }
}

#[test]
fn what_is_no_file_is_refused_without_being_opened() {
    let mut scene = Scene::new();
    let fifo = scene.path("a.yaml");
    // A reader of a FIFO without a writer would wait for ever.
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fs::create_dir(scene.path("b.yaml")).unwrap();
    symlink("/dev/zero", scene.path("c.yaml")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(scene.path("d.yaml")).unwrap();
    scene.look();
    let expected = ["a.yaml", "b.yaml", "c.yaml", "d.yaml"].map(|name| format!("{name}: is not a regular file"));
    assert_eq!(scene.problems(), expected);
}

#[test]
fn a_link_that_leads_nowhere_keeps_what_it_led_to() {
    let mut scene = Scene::new();
    scene.put("target", forward("a", 8000));
    symlink("target", scene.path("a.yaml")).unwrap();
    symlink("b.yaml", scene.path("b.yaml")).unwrap();
    scene.look();
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    fs::remove_file(scene.path("target")).unwrap();
    assert!(scene.look().changed);
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    let problems = scene.problems();
    assert!(problems[0].starts_with("a.yaml: cannot be read: No such file"), "{problems:?}");
    assert!(problems[1].starts_with("b.yaml: cannot be read: Too many levels"), "{problems:?}");
    assert!(!scene.look().changed, "it is read again and again");

    fs::remove_file(scene.path("a.yaml")).unwrap();
    scene.look();
    assert_eq!(scene.forwards(), []);
}

#[test]
fn a_file_that_may_not_be_read_keeps_what_it_held() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    fs::set_permissions(scene.path("a.yaml"), fs::Permissions::from_mode(0o0)).unwrap();
    let forbidden = File::open(scene.path("a.yaml")).is_err();
    scene.look();
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    // Root may read it all the same.
    assert_eq!(scene.problems().len(), usize::from(forbidden));
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    scene.put("a.yaml", "");
    File::options().write(true).open(scene.path("a.yaml")).unwrap().set_len(100 * 1024 * 1024).unwrap();
    scene.age("a.yaml");
    scene.look();
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    assert_eq!(scene.problems(), ["a.yaml: has 104857600 bytes; at most 33554432 are read, split it"]);
}

#[test]
fn one_broken_document_keeps_its_object_and_lets_the_others_change() {
    let mut scene = Scene::new();
    let two = |a: &str, b: &str| format!("{a}---\n{b}");
    scene.put("a.yaml", two(&forward("a", 8000), &forward("b", 8001)));
    scene.look();
    scene.put("a.yaml", two(&forward("a", 0), &forward("b", 9001)));
    scene.look();
    let mut now = scene.forwards();
    now.sort();
    assert_eq!(now, [("a".into(), 8000), ("b".into(), 9001)]);
    assert_eq!(scene.problems().len(), 1);

    // What is taken out beside one that is broken stays, and that is told.
    scene.put("a.yaml", forward("a", 0));
    scene.look();
    assert_eq!(scene.forwards().len(), 2);
    let gone =
        "a.yaml: PortForward default/b: is not in the file any more, but stays until nothing in the file is wrong";
    let problems = scene.problems();
    assert!(problems.len() == 2 && problems.contains(&gone.to_owned()), "{problems:?}");

    // Taken out on purpose, it goes.
    scene.put("a.yaml", forward("b", 9001));
    scene.look();
    assert_eq!(scene.forwards(), [("b".into(), 9001)]);
}

#[test]
fn a_removed_file_takes_its_objects_along_for_good() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    fs::remove_file(scene.path("a.yaml")).unwrap();
    assert!(scene.look().changed);
    assert_eq!(scene.forwards(), []);
    assert_eq!(scene.good.good_names(), Vec::<String>::new());
    scene.put("a.yaml", "broken: [\n");
    scene.look();
    assert_eq!(scene.forwards(), []);
}

#[test]
fn a_file_removed_while_nobody_looked_is_forgotten_too() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.put("b.yaml", forward("b", 8001));
    scene.look();
    fs::remove_file(scene.path("a.yaml")).unwrap();
    scene.restart();
    scene.look();
    assert_eq!(scene.forwards(), [("b".into(), 8001)]);
    assert_eq!(scene.good.good_names(), ["b.yaml"]);
}

#[test]
fn a_renamed_file_keeps_its_objects() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    fs::rename(scene.path("a.yaml"), scene.path("z.yaml")).unwrap();
    scene.look();
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    assert_eq!(scene.directory.file_of(&Identity("PortForward default/a".into())), Some("z.yaml"));
}

#[test]
fn of_two_objects_with_one_name_the_first_file_wins_whatever_came_first() {
    for order in [["a.yaml", "b.yaml"], ["b.yaml", "a.yaml"]] {
        let mut scene = Scene::new();
        for name in order {
            scene.put(name, forward("same", if name == "a.yaml" { 8000 } else { 9000 }));
            scene.look();
        }
        assert_eq!(scene.forwards(), [("same".into(), 8000)]);
        assert_eq!(scene.problems(), ["b.yaml: PortForward default/same: is in a.yaml too; keep one of them"]);
        fs::remove_file(scene.path("a.yaml")).unwrap();
        scene.look();
        assert_eq!(scene.forwards(), [("same".into(), 9000)]);
    }
    let mut scene = Scene::new();
    scene.put("a.yaml", format!("{}---\n{}", forward("same", 8000), forward("same", 9000)));
    scene.look();
    assert_eq!(scene.forwards(), [("same".into(), 8000)]);
    assert_eq!(scene.problems().len(), 1);
}

#[test]
fn a_directory_that_vanishes_changes_nothing_until_it_is_back() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    let (there, away) = (scene.path(""), scene.guard.path().join("away"));
    fs::rename(&there, &away).unwrap();
    let error = scene.directory.look(&BTreeSet::new(), &scene.good).unwrap_err();
    assert!(error.to_string().starts_with("cannot list the manifests in "), "{error}");
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    fs::rename(&away, &there).unwrap();
    assert!(!scene.look().changed);
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);

    fs::remove_dir_all(&there).unwrap();
    fs::create_dir(&there).unwrap();
    assert!(scene.look().changed);
    assert_eq!(scene.forwards(), []);
}

#[test]
fn a_directory_that_vanished_before_a_restart_loses_nothing() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    let (there, away) = (scene.path(""), scene.guard.path().join("away"));
    fs::rename(&there, &away).unwrap();
    scene.restart();
    scene.directory.look(&BTreeSet::new(), &scene.good).unwrap_err();
    assert_eq!(scene.good.good_names(), ["a.yaml"]);
}

#[test]
fn links_as_kubernetes_swaps_them_are_followed() {
    let mut scene = Scene::new();
    for (version, port) in [("..1", 8000), ("..2", 9000)] {
        fs::create_dir(scene.path(version)).unwrap();
        scene.put(&format!("{version}/a.yaml"), forward("a", port));
    }
    symlink("..1", scene.path("..data")).unwrap();
    symlink("..data/a.yaml", scene.path("a.yaml")).unwrap();
    scene.look();
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    symlink("..2", scene.path("..new")).unwrap();
    fs::rename(scene.path("..new"), scene.path("..data")).unwrap();
    assert!(scene.look().changed);
    assert_eq!(scene.forwards(), [("a".into(), 9000)]);
}

#[test]
fn a_file_that_may_still_be_written_waits_until_it_is_closed_or_still() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    fs::write(scene.path("a.yaml"), forward("a", 9000)).unwrap();
    assert_eq!(scene.look(), Look { changed: false, unsettled: true });
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    assert_eq!(scene.look_at_closed("a.yaml"), Look { changed: true, unsettled: false });
    assert_eq!(scene.forwards(), [("a".into(), 9000)]);

    fs::write(scene.path("a.yaml"), forward("a", 9999)).unwrap();
    assert_eq!(scene.look(), Look { changed: false, unsettled: true });
    scene.age("a.yaml");
    assert_eq!(scene.look(), Look { changed: true, unsettled: false });
    assert_eq!(scene.forwards(), [("a".into(), 9999)]);
}

#[test]
fn a_closed_file_is_read_even_if_it_looks_as_before() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    scene.put("a.yaml", forward("a", 9000));
    // As when both were written within one tick of the clock.
    let now = Stamp::of(&fs::metadata(scene.path("a.yaml")).unwrap());
    scene.directory.files.get_mut("a.yaml").unwrap().stamp = now;
    assert!(!scene.look().changed);
    assert!(scene.look_at_closed("a.yaml").changed);
    assert_eq!(scene.forwards(), [("a".into(), 9000)]);
}

#[test]
fn a_restart_while_a_file_is_written_starts_with_what_was_good() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.look();
    fs::write(scene.path("a.yaml"), &forward("a", 9000)[..60]).unwrap();
    fs::write(scene.path("b.yaml"), &forward("b", 9000)[..60]).unwrap();
    scene.restart();
    assert_eq!(scene.look(), Look { changed: true, unsettled: true });
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
    let waiting =
        ["a.yaml", "b.yaml"].map(|name| format!("{name}: is still being written; what was last good of it stays"));
    assert_eq!(scene.problems(), waiting);

    scene.put("a.yaml", forward("a", 9000));
    scene.put("b.yaml", forward("b", 9001));
    scene.look();
    assert_eq!(scene.forwards(), [("a".into(), 9000), ("b".into(), 9001)]);
    assert_eq!(scene.problems(), Vec::<String>::new());
}

#[test]
fn a_file_of_the_future_is_read() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    let file = File::options().append(true).open(scene.path("a.yaml")).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_hours(1)).unwrap();
    assert_eq!(scene.look(), Look { changed: true, unsettled: false });
    assert_eq!(scene.forwards(), [("a".into(), 8000)]);
}

#[test]
fn a_lost_record_of_good_objects_loses_only_its_own_file() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 8000));
    scene.put("b.yaml", forward("b", 8001));
    scene.look();
    fs::write(scene.guard.path().join("state/manifests/a.yaml.json"), "{").unwrap();
    scene.put("a.yaml", "broken: [\n");
    scene.put("b.yaml", "broken: [\n");
    scene.restart();
    scene.look();
    assert_eq!(scene.forwards(), [("b".into(), 8001)]);
}

#[test]
fn a_pool_that_is_not_understood_is_found() {
    let mut scene = Scene::new();
    scene.put("a.yaml", forward("a", 0));
    scene.look();
    assert_eq!(scene.directory.broken_pool(), None);
    for pool in ["metadata: { name: p }\nspec: { nodeSelectr: {} }", "metadata: {}", "metadata: { name: p }\nspec: []"]
    {
        scene.put("b.yaml", format!("apiVersion: sallyport.dev/v1alpha1\nkind: GatewayPool\n{pool}\n"));
        scene.look();
        assert_eq!(scene.directory.broken_pool(), Some("b.yaml"), "{pool}");
    }
    let good =
        "apiVersion: sallyport.dev/v1alpha1\nkind: GatewayPool\nmetadata: { name: p }\nspec: { nodeSelector: {} }\n";
    scene.put("b.yaml", good);
    scene.look();
    assert_eq!(scene.directory.broken_pool(), None);
}

#[test]
fn a_file_name_cannot_begin_a_line_of_a_log() {
    let mut scene = Scene::new();
    scene.put("x\nerror: forged.yaml", "broken: [\n");
    scene.look();
    assert!(scene.problems()[0].starts_with("x\\nerror: forged.yaml: "), "{:?}", scene.problems());
}

#[test]
fn the_order_in_which_files_appear_changes_nothing() {
    let names = ["c.yaml", "a.yaml", "b.yaml", "d.yml"];
    let mut seen = Vec::new();
    for rotation in 0..names.len() {
        let mut scene = Scene::new();
        for at in 0..names.len() {
            let name = names[(at + rotation) % names.len()];
            scene.put(name, forward(&name[..1], 8000));
            scene.look();
        }
        seen.push((scene.forwards(), scene.problems()));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}
