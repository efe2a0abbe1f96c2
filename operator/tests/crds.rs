//! What `sallyport-operator crds` prints is what lies in `crds/`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn the_printed_definitions_are_the_files_of_the_repository() {
    let output = Command::new(env!("CARGO_BIN_EXE_sallyport-operator")).arg("crds").output().unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).unwrap();
            assert!(printed.contains(text.trim_start_matches("---\n")), "{} is not printed", path.display());
            files += 1;
        }
    }
    assert_eq!(printed.matches("\nkind: CustomResourceDefinition\n").count(), files);
    assert_eq!(files, 4);
}
