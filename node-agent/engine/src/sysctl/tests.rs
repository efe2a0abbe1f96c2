//! Forwarding on a tree of plain files; what a real kernel does is in `tests/sysctl.rs`.

use super::*;
use tempfile::TempDir;

/// A settings tree as files that do not act: what the kernel does besides is written here.
struct Tree {
    directory: TempDir,
    sysctl: Sysctl,
}

impl Tree {
    /// Forwarding off, but for IPv4 of `eth1`; of router advertisements `eth1` wants none.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = Self { sysctl: Sysctl::new(directory.path()), directory };
        for family in ["ipv4", "ipv6"] {
            for interface in ["all", "default", "lo", "eth0", "eth1"] {
                tree.put(&format!("{family}/conf/{interface}/forwarding"), "0");
                tree.put(&format!("{family}/conf/{interface}/accept_redirects"), "1");
                tree.put(&format!("{family}/conf/{interface}/route_localnet"), "0");
                tree.put(&format!("ipv6/conf/{interface}/accept_ra"), "1");
            }
        }
        // Two names of one value.
        let switch = tree.directory.path().join("ipv4/ip_forward");
        std::os::unix::fs::symlink("conf/all/forwarding", switch).unwrap();
        tree.put("ipv4/conf/eth1/forwarding", "1");
        tree.put("ipv6/conf/eth1/accept_ra", "0");
        tree
    }

    fn put(&self, file: &str, value: &str) {
        let path = self.directory.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    fn get(&self, file: &str) -> String {
        read(&self.directory.path().join(file)).unwrap()
    }

    /// What the kernel makes of a write to the switch.
    fn follow(&self, family: &str, value: &str) {
        for interface in ["all", "default", "lo", "eth0", "eth1"] {
            self.put(&format!("{family}/conf/{interface}/forwarding"), value);
        }
        if family == "ipv4" {
            self.put("ipv4/conf/all/accept_redirects", if value == "1" { "0" } else { "1" });
        }
    }

    fn all(&self) -> BTreeMap<PathBuf, String> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.directory.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    files.insert(path.clone(), read(&path).unwrap());
                }
            }
        }
        files
    }

    fn on(&self, family: Family) -> Record {
        let record = self.sysctl.plan(family).unwrap().unwrap();
        self.sysctl.apply(&record).unwrap();
        self.follow(if family == Family::V4 { "ipv4" } else { "ipv6" }, "1");
        record
    }
}

#[test]
fn planning_writes_nothing_and_is_empty_when_forwarding_is_on() {
    let tree = Tree::new();
    let before = tree.all();
    for family in Family::BOTH {
        assert!(!tree.sysctl.forwarding(family).unwrap());
        assert_eq!(tree.sysctl.plan(family).unwrap().unwrap().family(), family);
    }
    assert_eq!(tree.all(), before);
    for family in Family::BOTH {
        tree.on(family);
        assert!(tree.sysctl.forwarding(family).unwrap());
        assert_eq!(tree.sysctl.plan(family).unwrap(), None);
    }
}

#[test]
fn only_the_switch_and_accept_ra_where_it_would_be_ignored_are_written() {
    let tree = Tree::new();
    let mut expected = tree.all();
    for family in Family::BOTH {
        let record = tree.sysctl.plan(family).unwrap().unwrap();
        tree.sysctl.apply(&record).unwrap();
    }
    let root = tree.directory.path();
    expected.insert(root.join("ipv4/ip_forward"), "1".to_owned());
    expected.insert(root.join("ipv4/conf/all/forwarding"), "1".to_owned());
    expected.insert(root.join("ipv6/conf/all/forwarding"), "1".to_owned());
    for interface in ["default", "lo", "eth0"] {
        expected.insert(root.join("ipv6/conf").join(interface).join("accept_ra"), "2".to_owned());
    }
    assert_eq!(tree.all(), expected);
}

#[test]
fn restore_puts_every_recorded_value_back() {
    let tree = Tree::new();
    let before = tree.all();
    let records = Family::BOTH.map(|family| tree.on(family));
    for record in records {
        let kept = serde_json::to_string(&record).unwrap();
        tree.sysctl.restore(&serde_json::from_str(&kept).unwrap()).unwrap();
    }
    assert_eq!(tree.all(), before);
}

#[test]
fn what_somebody_changed_since_is_left_alone() {
    let tree = Tree::new();
    let record = tree.on(Family::V4);
    tree.put("ipv4/conf/eth1/forwarding", "0");
    tree.put("ipv4/conf/all/accept_redirects", "1");
    tree.sysctl.restore(&record).unwrap();
    assert_eq!(tree.get("ipv4/conf/eth1/forwarding"), "0");
    assert_eq!(tree.get("ipv4/conf/all/accept_redirects"), "1");

    let record = tree.on(Family::V6);
    tree.put("ipv6/conf/eth0/accept_ra", "0");
    tree.sysctl.restore(&record).unwrap();
    assert_eq!(tree.get("ipv6/conf/eth0/accept_ra"), "0");
    assert_eq!(tree.get("ipv6/conf/all/forwarding"), "0");
}

#[test]
fn a_gone_interface_is_skipped_and_a_new_one_gets_the_default() {
    let tree = Tree::new();
    let record = tree.on(Family::V6);
    fs::remove_dir_all(tree.directory.path().join("ipv6/conf/eth0")).unwrap();
    tree.put("ipv6/conf/ppp0/forwarding", "1");
    tree.sysctl.restore(&record).unwrap();
    assert_eq!(tree.get("ipv6/conf/ppp0/forwarding"), "0");
    assert!(!tree.directory.path().join("ipv6/conf/eth0").exists());
}

#[test]
fn whoever_has_an_interface_ignore_advertisements_again_is_followed_and_all_is_put_back() {
    let tree = Tree::new();
    let before = tree.all();
    let record = tree.on(Family::V6);
    assert_eq!(tree.sysctl.plan_advertisements(&record).unwrap(), None);
    assert_eq!(tree.sysctl.plan_advertisements(&tree.on(Family::V4)).unwrap(), None);
    // One begins with what `default` says, one is set by a program of the host, one is its admin's.
    for (interface, value) in [("ppp0", "2"), ("eth0", "1"), ("tun0", "1"), ("tun1", "0")] {
        tree.put(&format!("ipv6/conf/{interface}/accept_ra"), value);
        tree.put(&format!("ipv6/conf/{interface}/forwarding"), "1");
    }
    let record = tree.sysctl.plan_advertisements(&record).unwrap().unwrap();
    tree.sysctl.apply_advertisements(&record).unwrap();
    let now = ["ppp0", "eth0", "tun0", "tun1"].map(|name| tree.get(&format!("ipv6/conf/{name}/accept_ra")));
    assert_eq!(now, ["2", "2", "2", "0"]);
    tree.sysctl.restore(&record).unwrap();
    let after = ["ppp0", "eth0", "tun0", "tun1"].map(|name| tree.get(&format!("ipv6/conf/{name}/accept_ra")));
    assert_eq!(after, ["1", "1", "1", "0"]);
    for (path, value) in before {
        let family = path.strip_prefix(tree.directory.path()).unwrap();
        assert!(family.starts_with("ipv4") || fs::read_to_string(&path).unwrap().trim() == value, "{}", path.display());
    }
}

#[test]
fn merging_keeps_the_older_value_and_adds_what_is_new() {
    let tree = Tree::new();
    let mut record = tree.on(Family::V4);
    tree.put("ipv4/ip_forward", "0");
    tree.follow("ipv4", "0");
    tree.put("ipv4/conf/ppp0/forwarding", "0");
    record.merge(tree.on(Family::V4));
    tree.put("ipv4/conf/ppp0/forwarding", "1");
    tree.sysctl.restore(&record).unwrap();
    assert_eq!(tree.get("ipv4/conf/eth1/forwarding"), "1", "as before the first record");
    assert_eq!(tree.get("ipv4/conf/ppp0/forwarding"), "0");
}

#[test]
fn a_name_in_a_record_never_leaves_the_tree() {
    let tree = Tree::new();
    tree.put("elsewhere/accept_ra", "2");
    let record = tree.on(Family::V6);
    let mut forged = serde_json::to_value(&record).unwrap();
    forged["accept_ra"] = serde_json::json!(["../../elsewhere"]);
    forged["forwarding"]["../../elsewhere"] = "1".into();
    tree.sysctl.restore(&serde_json::from_value(forged).unwrap()).unwrap();
    assert_eq!(tree.get("elsewhere/accept_ra"), "2");
}

#[test]
fn a_family_that_the_kernel_lacks_is_an_error_with_the_path() {
    let tree = Tree::new();
    fs::remove_dir_all(tree.directory.path().join("ipv6")).unwrap();
    let error = tree.sysctl.plan(Family::V6).unwrap_err();
    assert!(error.to_string().ends_with("ipv6/conf/all/forwarding"), "{error}");
    assert!(!tree.directory.path().join("ipv6").exists());
}
