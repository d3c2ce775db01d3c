//! The binary starts and knows its version.
//!
//! Exists above all so that `cargo test` builds the binary, which the tests of the workspace then run.
//! Must never need more than the binary.

use std::process::Command;

#[test]
fn it_prints_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_skein")).arg("--version").output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("skein {}\n", env!("CARGO_PKG_VERSION")));
}
