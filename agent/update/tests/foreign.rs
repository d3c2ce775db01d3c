//! What `skein-release` signs is verified by tools that are not ours: openssl, ssh-keygen, tar, sha256sum, and a
//! shell with awk, as the installer has them.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{archive, archive_name, good};

const VERSION: &str = "0.2.0";
const AT: &str = "2026-11-23T00:00:00Z";

fn release(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skein-release")).args(arguments).output().unwrap()
}

fn good_output(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("error: ") && text.contains("\nhint: "), "{text}");
    text
}

fn sh(script: &str, folder: &Path) -> Output {
    Command::new("sh").args(["-euc", script]).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

/// A directory with a release signed by two new keys: the folder, and the public keys.
fn signed() -> (tempfile::TempDir, [String; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let public = ["one", "two"].map(|name| good_output(release(&["keygen", &at(name)])).trim().to_owned());
    fs::create_dir(at("tree")).unwrap();
    fs::write(at(&format!("tree/{}", archive_name(VERSION))), archive(VERSION, &good(VERSION))).unwrap();
    fs::write(at("tree/skein_0.2.0_amd64.deb"), "a package").unwrap();
    fs::write(at("tree/install.sh"), "#!/bin/sh\n").unwrap();
    good_output(sign(folder.path(), &["one", "two"]));
    (folder, public)
}

fn sign(folder: &Path, keys: &[&str]) -> Output {
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (keys, tree): (Vec<String>, String) = (keys.iter().map(|name| at(name)).collect(), at("tree"));
    let mut arguments = vec!["sign"];
    for key in &keys {
        arguments.extend(["--key", key]);
    }
    arguments.extend(["--version", VERSION, "--released-at", AT, &tree]);
    release(&arguments)
}

fn has(tool: &str, minimum: &str) -> bool {
    let found = sh(&format!("command -v {tool} && {minimum}"), Path::new("/"));
    if !found.status.success() {
        eprintln!("left out: no fitting {tool} here");
    }
    found.status.success()
}

#[test]
fn openssl_verifies_each_signature() {
    let (folder, public) = signed();
    if !has("openssl", "openssl version | grep -q ' 3'") {
        return;
    }
    for (line, key) in public.iter().enumerate() {
        let pem = good_output(release(&["public", key]));
        let pem = &pem[pem.find("-----BEGIN").unwrap()..];
        fs::write(folder.path().join("key.pem"), pem).unwrap();
        let script = format!(
            "sed -n {}p tree/manifest.json.sig | cut -d' ' -f3 | openssl base64 -d -A > sig
             openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in tree/manifest.json -sigfile sig",
            line + 1
        );
        good_output(sh(&script, folder.path()));
        let changed = sh(&script.replace("-in tree/manifest.json", "-in tree/install.sh"), folder.path());
        assert!(!changed.status.success());
    }
}

#[test]
fn ssh_keygen_verifies_the_first_key() {
    let (folder, public) = signed();
    if !has("ssh-keygen", "true") {
        return;
    }
    let script = "ssh-keygen -Y verify -f allowed -I skein-release -n skein-release -s tree/manifest.json.sshsig \
                  < tree/manifest.json";
    let lines = public.each_ref().map(|key| good_output(release(&["public", key])));
    let allow = |index: usize| {
        fs::write(folder.path().join("allowed"), lines[index].lines().nth(1).unwrap()).unwrap()
    };
    allow(0);
    good_output(sh(script, folder.path()));
    assert!(!sh(&script.replace("-n skein-release", "-n file"), folder.path()).status.success());
    allow(1);
    assert!(!sh(script, folder.path()).status.success());
}

/// The way of the installer: the public key in hex, no base64 tool, no xxd; both verifications.
const INSTALLER: &str = r#"
# Hex digits to base64: three digits are two letters.
hex_base64() {
    printf '%s' "$1" | awk '
        function value(d) { return index("0123456789abcdef", d) - 1 }
        { alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
          digits = length($0); while (length($0) % 3) $0 = $0 "0"
          for (i = 1; i <= length($0); i += 3) {
              bits = value(substr($0, i, 1)) * 256 + value(substr($0, i + 1, 1)) * 16 + value(substr($0, i + 2, 1))
              out = out substr(alphabet, int(bits / 64) + 1, 1) substr(alphabet, bits % 64 + 1, 1)
          }
          letters = int((digits * 4 + 5) / 6); out = substr(out, 1, letters)
          while (length(out) % 4) out = out "="
          print out }'
}
verify_openssl() { # KEY MANIFEST DIRECTORY
    { echo "-----BEGIN PUBLIC KEY-----"; hex_base64 "302a300506032b6570032100$1"; echo "-----END PUBLIC KEY-----"; } > "$3/key.pem"
    while read -r algorithm _ signature; do
        [ "$algorithm" = ed25519 ] || continue
        printf '%s' "$signature" | openssl base64 -d -A > "$3/signature" || continue
        openssl pkeyutl -verify -pubin -inkey "$3/key.pem" -rawin -in "$2" -sigfile "$3/signature" > /dev/null 2>&1 && return 0
    done < "$2.sig"
    return 1
}
verify_ssh() { # KEY MANIFEST DIRECTORY
    echo "skein-release ssh-ed25519 $(hex_base64 "0000000b7373682d6564323535313900000020$1")" > "$3/allowed"
    ssh-keygen -Y verify -f "$3/allowed" -I skein-release -n skein-release -s "$2.sshsig" < "$2" > /dev/null 2>&1
}
"#;

#[test]
fn a_shell_verifies_with_either_tool() {
    let (folder, public) = signed();
    let stranger = hex::encode(common::key(9).verifying_key());
    fs::create_dir(folder.path().join("work")).unwrap();
    let ask = |call: &str, key: &str| {
        sh(&format!("{INSTALLER}\n{call} {key} tree/manifest.json work"), folder.path()).status.success()
    };
    if has("openssl", "openssl version | grep -q ' 3'") {
        assert!(ask("verify_openssl", &public[0]) && ask("verify_openssl", &public[1]));
        assert!(!ask("verify_openssl", &stranger));
    }
    if has("ssh-keygen", "true") {
        assert!(ask("verify_ssh", &public[0]));
        assert!(!ask("verify_ssh", &public[1]) && !ask("verify_ssh", &stranger));
    }
    // Each file is one line, so a shell finds its own.
    let found = good_output(sh(
        "sed -n 's/.*\"name\":\"\\([^\"]*\\)\".*\"kind\":\"archive\".*\"sha256\":\"\\([^\"]*\\)\".*/\\2  \\1/p' tree/manifest.json | (cd tree && sha256sum -c)",
        folder.path(),
    ));
    assert_eq!(found.trim(), format!("{}: OK", archive_name(VERSION)));
}

#[test]
fn a_signed_archive_is_still_an_archive() {
    let (folder, _) = signed();
    let script = format!(
        "tar -xzOf tree/{name} skein-{VERSION}-{}/skein",
        common::TARGET,
        name = archive_name(VERSION)
    );
    assert_eq!(good_output(sh(&script, folder.path())), good(VERSION));
}

#[test]
fn a_signed_zip_is_still_a_zip() {
    if !has("python3", "true") {
        return;
    }
    let (folder, public) = signed();
    let name = format!("skein-{VERSION}-x86_64-pc-windows-gnu");
    let script =
        format!("cd tree; printf MZ > skein.exe; python3 -m zipfile -c {name}.zip skein.exe; rm skein.exe");
    good_output(sh(&script, folder.path()));
    good_output(sign(folder.path(), &["one", "two"]));
    let text = good_output(release(&[
        "verify",
        folder.path().join("tree").to_str().unwrap(),
        "--trust",
        &public[0],
        &public[1],
    ]));
    assert!(text.contains(&format!(" archive {name}.zip")), "{text}");
    let read = format!(
        "python3 -c 'import zipfile; z = zipfile.ZipFile(\"tree/{name}.zip\"); assert z.testzip() is None; print(z.read(\"skein.exe\").decode())'"
    );
    assert_eq!(good_output(sh(&read, folder.path())).trim(), "MZ");
}

#[test]
fn verify_accepts_the_whole_tree_and_nothing_less() {
    let (folder, public) = signed();
    let tree = folder.path().join("tree");
    let verify = |key: &str| release(&["verify", tree.to_str().unwrap(), "--trust", key]);
    let text = good_output(verify(&public[0]));
    assert!(
        text.contains("release 0.2.0 of 2026-11-23T00:00:00Z") && text.contains("skein_0.2.0_amd64.deb"),
        "{text}"
    );
    refused(&verify(&hex::encode(common::key(9).verifying_key())));
    // Signing again changes no byte of what was published.
    let before = fs::read(tree.join(archive_name(VERSION))).unwrap();
    good_output(sign(folder.path(), &["one", "two"]));
    assert_eq!(fs::read(tree.join(archive_name(VERSION))).unwrap(), before);
    good_output(verify(&public[0]));
    // Another set of keys over an archive that some of them signed already.
    good_output(release(&["keygen", folder.path().join("three").to_str().unwrap()]));
    let text = refused(&sign(folder.path(), &["one", "three"]));
    assert!(text.contains("signed by some of the keys already"), "{text}");
    let changes: [(&str, &dyn Fn()); 3] = [
        ("a changed file", &|| fs::write(tree.join("install.sh"), "#!/bin/sj\n").unwrap()),
        ("a file more", &|| fs::write(tree.join("extra"), "x").unwrap()),
        ("a file less", &|| fs::remove_file(tree.join("skein_0.2.0_amd64.deb")).unwrap()),
    ];
    for (what, change) in changes {
        change();
        let text = refused(&verify(&public[0]));
        assert!(!text.is_empty(), "{what}");
        let _ = fs::remove_file(tree.join("extra"));
        fs::write(tree.join("install.sh"), "#!/bin/sh\n").unwrap();
    }
}

#[test]
fn secret_keys_are_kept_secret() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let name = path.to_str().unwrap();
    let public = good_output(release(&["keygen", name]));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(&path).unwrap();
    assert!(secret.len() == 65 && public.len() == 65 && secret != public);
    refused(&release(&["keygen", name]));
    assert_eq!(fs::read_to_string(&path).unwrap(), secret, "a key is never overwritten");
    assert!(good_output(release(&["public", name])).starts_with(&public));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let text = refused(&release(&["public", name]));
    assert!(text.contains("others can read it") && !text.contains(secret.trim()), "{text}");
}
