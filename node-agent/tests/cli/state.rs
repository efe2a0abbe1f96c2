//! A start on a state directory in which something else is where a file should be.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{CWD, Mode, mkfifoat};

use crate::scene::{Scene, forward, wait_until};

fn fifo(path: &Path) {
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
}

fn huge(path: &Path) {
    File::create(path).unwrap().set_len(300 << 20).unwrap();
}

#[test]
fn a_start_names_what_is_in_place_of_its_state_and_neither_hangs_nor_eats_memory() {
    type Put = fn(&Path);
    let intruders: [(Put, &str); 3] = [
        (fifo, "is not a regular file"),
        (|path| fs::create_dir(path).unwrap(), "is not a regular file"),
        (huge, "has 314572800 bytes"),
    ];
    let files = [
        "intents.json",
        "newcomers.json",
        "clock.json",
        "first-seen.json",
        "manifests/a.yaml.json",
        "host.json",
        "lock",
    ];
    for (put, why) in intruders {
        for file in files {
            let scene = Scene::new();
            // What was last good of a file is wanted when the file itself is not.
            scene.put("a.yaml", &forward("a", 0));
            scene.on_host("run").arg("--once").output().unwrap();
            let path = scene.path("state").join(file);
            let _ = fs::remove_file(&path);
            put(&path);
            let mut running = scene.spawn(&mut scene.on_host("run"));
            match file {
                // How the host was before matters to those who change it.
                "host.json" => {}
                // Nobody reads it.
                "lock" if why.starts_with("has") => {}
                _ => {
                    running.wait_for(&format!("cannot access {}; move it away", path.display()));
                    running.wait_for(why);
                }
            }
            if file == "lock" && !why.starts_with("has") {
                wait_until(|| running.ended() == Some(1), || "it goes on".to_owned());
            } else {
                running.wait_for("verified");
                assert!(running.memory("VmHWM") < 40 * 1024, "{file}: {} KiB", running.memory("VmHWM"));
                assert_eq!(running.stop(), Some(0), "{file}");
            }
        }
    }
}
