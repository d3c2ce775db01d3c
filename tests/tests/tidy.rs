//! The house rules that nobody sees break: dependency directions, what the pure crates may pull in, and how
//! files look.
//!
//! Each rule says what it protects. Must never need the network, a build of the product, or a list of
//! exceptions.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file of the repository, by its path from the root.
fn rust_files() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            // Links are not followed: what they lead to is not part of the repository.
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                walk(&entry.path(), found);
            } else if kind.is_file() && name.ends_with(".rs") {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.sort();
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
    let files: Vec<_> = found.iter().map(|path| (relative(path), read(path))).collect();
    assert!(files.len() > 20, "the walk found only {} files: it looks in the wrong place", files.len());
    files
}

/// The crates of ours that `manifest` names in its section of dependencies for the product (not for tests).
fn own_dependencies(manifest: &str) -> BTreeSet<String> {
    let text = read(manifest);
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.contains("dependencies") && !section.contains("dev-dependencies");
        } else if inside && line.starts_with("skein") {
            found.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    found
}

/// The packages that go into `package` on `target`, as `(name, features)`.
fn closure(package: &str, target: &str) -> Vec<(String, Vec<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", package, "--edges", "normal,build", "--target", target])
        .args(["--prefix", "none", "--format", "{p}|{f}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: BTreeSet<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let parse = |line: &String| {
        let (package, features) = line.split_once('|')?;
        let name = package.split(' ').next()?;
        Some((name.to_owned(), features.trim_end_matches(" (*)").split(',').map(str::to_owned).collect()))
    };
    lines.iter().filter_map(parse).collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed: [(&str, &[&str]); 5] = [
        ("mesh/proto/Cargo.toml", &[]),
        ("agent/engine/Cargo.toml", &[]),
        ("agent/compute/Cargo.toml", &["skein-engine"]),
        ("mesh/ledger/Cargo.toml", &["skein-proto"]),
        ("mesh/Cargo.toml", &["skein-proto"]),
    ];
    for (manifest, allowed) in allowed {
        let found = own_dependencies(manifest);
        let expected: BTreeSet<String> = allowed.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(
            found, expected,
            "{manifest}: the core knows no shell, compute no network, ledger no mesh"
        );
    }
    assert!(!own_dependencies("agent/Cargo.toml").is_empty(), "the reader of manifests finds nothing at all");
}

#[test]
fn pure_crates_pull_in_no_input_output_clock_or_randomness() {
    // rand_core is named by ed25519-dalek; it holds traits only, as long as its feature getrandom is off.
    let banned = ["tokio", "smol", "async-io", "quinn", "rand", "getrandom", "burn", "wgpu", "sled", "mio"];
    for package in ["skein-proto", "skein-ledger"] {
        let closure = closure(package, "all");
        assert!(closure.iter().any(|(name, _)| name == "blake3"), "{package}: the closure was not read");
        for (name, features) in closure {
            assert!(!banned.contains(&name.as_str()), "{package} pulls in {name}");
            let draws = features.iter().any(|feature| feature == "getrandom" || feature == "std_rng");
            assert!(!draws, "{package} pulls in {name} with {features:?}");
        }
    }
}

#[test]
fn no_tokio_run_time_in_the_binary() {
    // hyper and quinn name the crate for its channels; a run time needs one of these features.
    let banned = ["rt", "rt-multi-thread", "net", "time", "process", "signal", "fs", "full"];
    // The platforms of the product, by name: for the browser, wgpu does ask for tokio.
    for target in ["x86_64-unknown-linux-gnu", "x86_64-pc-windows-msvc", "aarch64-apple-darwin"] {
        let closure = closure("skein", target);
        assert!(closure.iter().any(|(name, _)| name == "smol"), "the closure was not read");
        for (_, features) in closure.iter().filter(|(name, _)| name == "tokio") {
            let found: Vec<_> =
                features.iter().filter(|feature| banned.contains(&feature.as_str())).collect();
            assert!(
                found.is_empty(),
                "tokio has {found:?} on {target}: see `cargo tree -e features -i tokio`"
            );
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for (path, text) in rust_files() {
        assert!(text.starts_with("//! "), "{path} does not open with `//!`");
    }
}

#[test]
fn files_are_one_idea_long() {
    for (path, text) in rust_files() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{path} has {lines} lines: split it by reason");
    }
}

#[test]
fn nothing_is_left_for_later_and_no_lint_is_silenced_without_a_reason() {
    // Put together here, so that this file does not find itself.
    let banned = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[al", "low("),
        concat!("#![al", "low("),
    ];
    for (path, text) in rust_files() {
        for (number, line) in text.lines().enumerate() {
            for word in banned {
                assert!(!line.contains(word), "{path}:{} has `{word}`", number + 1);
            }
        }
    }
}

#[test]
fn every_dependency_is_justified() {
    let text = read("Cargo.toml");
    let section = text.split("[workspace.dependencies]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let mut seen = 0;
    for line in section.lines().filter(|line| line.contains(" = ") && !line.starts_with("skein-")) {
        seen += 1;
        let reason = line.split_once('#').map_or("", |(_, reason)| reason.trim());
        let sentence = reason.len() >= 5 && reason.ends_with('.');
        assert!(sentence, "no sentence says why we do not write this ourselves: {line}");
    }
    assert!(seen > 20, "only {seen} dependencies were read");
}

#[test]
fn order_is_never_left_to_a_hash_map() {
    for (path, text) in rust_files() {
        if path.starts_with("mesh/proto/src") || path.starts_with("mesh/ledger/src") {
            for word in [concat!("Hash", "Map"), concat!("Hash", "Set")] {
                let used =
                    text.lines().any(|line| line.contains(word) && !line.trim_start().starts_with("//"));
                assert!(!used, "{path} uses {word}: its order differs from run to run");
            }
        }
    }
}
