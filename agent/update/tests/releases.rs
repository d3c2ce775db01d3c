//! Which releases are believed and staged, and which are not: each refusal leaves the machine as it was.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{
    Answer, Entry, Machine, OLD, Server, TARGET, archive, archive_name, file, good, tar_gz, version,
};
use skein_update::{Outcome, State, UpdateError, Updater};

/// Checks and stages; gives the error, which must leave nothing behind.
fn refusal(machine: &Machine, updater: &Updater) -> UpdateError {
    let error = match updater.check() {
        Err(error) => error,
        Ok(release) => updater.stage(&release.unwrap(), &mut |_, _| {}).unwrap_err(),
    };
    machine.assert_untouched();
    assert!(error.to_string().contains("\nhint: "), "{error}");
    let last = updater.state().last_result.unwrap();
    assert_eq!(last.outcome, Outcome::Refused);
    assert_eq!(last.reason.unwrap(), error.to_string());
    error
}

/// The refusal of an archive that is signed as it should be.
fn refused_archive(bytes: &[u8]) -> UpdateError {
    let (server, machine) = (Server::start(), Machine::new());
    server.publish("0.2.0", bytes, &[1]);
    refusal(&machine, &machine.updater(&server.url, &[1]))
}

#[test]
fn a_good_release_is_staged_and_nothing_else_changes() {
    use std::os::unix::fs::PermissionsExt as _;
    let (server, machine) = (Server::start(), Machine::new());
    let manifest = server.publish("0.2.0", &archive("0.2.0", &good("0.2.0")), &[1]);
    let updater = machine.updater(&server.url, &[1]);
    let release = updater.check().unwrap().unwrap();
    assert_eq!((release.version.to_string(), &release.archive), ("0.2.0".to_owned(), &manifest.files[0]));
    assert_eq!(updater.state().last_result.unwrap().outcome, Outcome::Available);
    let mut seen = Vec::new();
    let staged = updater.stage(&release, &mut |done, all| seen.push((done, all))).unwrap();
    assert_eq!(seen.last(), Some(&(manifest.files[0].bytes, manifest.files[0].bytes)));
    assert_eq!(fs::read_to_string(staged.path()).unwrap(), good("0.2.0"));
    assert_eq!(fs::metadata(staged.path()).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(
        (machine.installed().as_str(), machine.names()),
        (OLD, vec!["skein".into(), "skein.new".into()])
    );
    // Another process does not disturb it.
    assert!(matches!(updater.stage(&release, &mut |_, _| {}), Err(UpdateError::Busy)));
    assert_eq!(updater.recover().unwrap(), skein_update::Recovery::Busy);
    assert!(staged.path().exists());
    drop(staged);
    machine.assert_untouched();
}

#[test]
fn an_archive_is_fetched_once_and_checked_twice() {
    let (server, machine) = (Server::start(), Machine::new());
    server.publish("0.2.0", &archive("0.2.0", &good("0.2.0")), &[1]);
    let updater = machine.updater(&server.url, &[1]);
    let release = updater.check().unwrap().unwrap();
    let kept = machine.data.join("update-archive");
    updater.prefetch(&release, &mut |_, _| {}).unwrap();
    machine.assert_untouched();
    assert!(kept.exists());
    let staged = updater.stage(&release, &mut |_, _| {}).unwrap();
    assert_eq!(fs::read_to_string(staged.path()).unwrap(), good("0.2.0"));
    assert_eq!(server.archives_asked(), 1);
    drop(staged);
    machine.assert_untouched();
    assert!(!kept.exists(), "it serves once");

    // What was changed since, in place or in length, is fetched anew.
    let changes: [fn(&mut Vec<u8>); 2] = [|bytes| bytes[20] ^= 1, |bytes| bytes.truncate(30)];
    for change in changes {
        updater.prefetch(&release, &mut |_, _| {}).unwrap();
        let mut bytes = fs::read(&kept).unwrap();
        change(&mut bytes);
        fs::write(&kept, bytes).unwrap();
        let before = server.archives_asked();
        drop(updater.stage(&release, &mut |_, _| {}).unwrap());
        assert_eq!(server.archives_asked(), before + 1);
    }

    // An agent that starts without applying it throws it away, and nothing was interrupted.
    updater.prefetch(&release, &mut |_, _| {}).unwrap();
    assert_eq!(updater.recover().unwrap(), skein_update::Recovery::Nothing);
    assert!(!kept.exists());
    assert_eq!(updater.state().last_result.unwrap().outcome, Outcome::Available);
}

#[test]
fn what_cannot_be_found_is_noted() {
    let (server, machine) = (Server::start(), Machine::new());
    let updater = machine.updater(&server.url, &[1]);
    let error = updater.find(&version("0.9.0")).unwrap_err();
    let last = updater.state().last_result.unwrap();
    assert_eq!((last.outcome, last.version), (Outcome::Refused, Some(version("0.9.0"))));
    assert_eq!(last.reason.unwrap(), error.to_string());
}

#[test]
fn either_of_two_keys_suffices() {
    let (server, machine) = (Server::start(), Machine::new());
    server.publish("0.2.0", &archive("0.2.0", &good("0.2.0")), &[1, 2]);
    for trusted in [&[1][..], &[2], &[2, 3]] {
        let updater = machine.updater(&server.url, trusted);
        let release = updater.check().unwrap().unwrap();
        updater.stage(&release, &mut |_, _| {}).unwrap();
    }
    let error = refusal(&machine, &machine.updater(&server.url, &[3]));
    assert!(matches!(error, UpdateError::Untrusted { .. }), "{error}");
    let error = refusal(&machine, &machine.updater(&server.url, &[]));
    assert!(matches!(error, UpdateError::NoTrustedKey), "{error}");
}

#[test]
fn a_changed_manifest_is_refused() {
    let (server, machine) = (Server::start(), Machine::new());
    server.publish("0.2.0", &archive("0.2.0", &good("0.2.0")), &[1]);
    let text = fs::read_to_string(server.root.join("stable.json")).unwrap();
    server.answer("stable.json", Answer::Bytes(text.replace("0.2.0", "0.3.0").into_bytes()));
    let error = refusal(&machine, &machine.updater(&server.url, &[1]));
    assert!(matches!(error, UpdateError::BadSignature { .. }), "{error}");
}

#[test]
fn a_changed_archive_is_refused() {
    let (server, machine) = (Server::start(), Machine::new());
    server.publish("0.2.0", &archive("0.2.0", &good("0.2.0")), &[1]);
    let updater = machine.updater(&server.url, &[1]);
    let path = format!("0.2.0/{}", archive_name("0.2.0"));
    let bytes = fs::read(server.root.join(&path)).unwrap();
    let mut changed = bytes.clone();
    changed[20] ^= 1;
    server.answer(&path, Answer::Bytes(changed));
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::WrongChecksum { .. }), "{error}");
    server.answer(&path, Answer::Cut(bytes.len() / 2));
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::Network { .. } | UpdateError::WrongSize { .. }), "{error}");
    server.answer(&path, Answer::Bytes(bytes[..bytes.len() / 2].to_vec()));
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::WrongSize { .. }), "{error}");
    for answer in [Answer::Endless, Answer::Bytes([bytes.as_slice(), b"x"].concat())] {
        server.answer(&path, answer);
        let error = refusal(&machine, &updater);
        assert!(matches!(error, UpdateError::TooLarge { .. }), "{error}");
    }
    server.answer(&path, Answer::Bytes(bytes));
    let release = updater.check().unwrap().unwrap();
    updater.stage(&release, &mut |_, _| {}).unwrap();
}

#[test]
fn an_archive_needs_its_own_signature_too() {
    let (server, machine) = (Server::start(), Machine::new());
    server.publish_by_hand("0.2.0", &archive("0.2.0", &good("0.2.0")), 1, |_| {});
    let error = refusal(&machine, &machine.updater(&server.url, &[1]));
    assert!(matches!(error, UpdateError::BadArchiveSignature { .. }), "{error}");
    // Signed by a stranger.
    let other = Server::start();
    other.publish("0.2.0", &archive("0.2.0", &good("0.2.0")), &[9]);
    let bytes = fs::read(other.root.join("0.2.0").join(archive_name("0.2.0"))).unwrap();
    server.publish_by_hand("0.2.0", &bytes, 1, |_| {});
    let error = refusal(&machine, &machine.updater(&server.url, &[1]));
    assert!(matches!(error, UpdateError::BadArchiveSignature { .. }), "{error}");
}

#[test]
fn an_archive_holds_plain_files_in_one_directory() {
    let top = format!("skein-0.2.0-{TARGET}");
    let program = format!("{top}/skein");
    let binary = good("0.2.0");
    let link = |name, to: &'static str, kind| Entry { name, kind, bytes: to.as_bytes() };
    let (above, absolute) = (format!("{top}/../../evil"), "/tmp/skein-evil".to_owned());
    let (deep, other) = (format!("{top}/a/b"), "other/skein".to_owned());
    let inner = format!("{top}/link");
    let cases: [(&str, Vec<Entry<'_>>); 10] = [
        ("a way up", vec![file(&program, &binary), file(&above, "x")]),
        ("an absolute path", vec![file(&program, &binary), file(&absolute, "x")]),
        ("a directory inside", vec![file(&program, &binary), file(&deep, "x")]),
        ("another top", vec![file(&program, &binary), file(&other, "x")]),
        ("the program as a link", vec![link(&program, "/bin/sh", tar::EntryType::Symlink)]),
        ("a link", vec![file(&program, &binary), link(&inner, "../..", tar::EntryType::Symlink)]),
        ("a hard link", vec![file(&program, &binary), link(&inner, "/etc/passwd", tar::EntryType::Link)]),
        ("a device", vec![file(&program, &binary), link(&inner, "", tar::EntryType::Char)]),
        ("the program twice", vec![file(&program, &binary), file(&program, "x")]),
        ("no program", vec![file(&inner, &binary)]),
    ];
    for (what, entries) in cases {
        let error = refused_archive(&tar_gz(&entries));
        assert!(matches!(error, UpdateError::BadArchive { .. }), "{what}: {error}");
    }
    assert!(!std::path::Path::new("/tmp/skein-evil").exists());
    let error = refused_archive(&tar_gz(&[file(&program, "")]));
    assert!(matches!(error, UpdateError::BadArchive { .. }), "empty: {error}");
    let whole = tar_gz(&[file(&program, &binary)]);
    let error = refused_archive(&whole[..whole.len() / 2]);
    assert!(matches!(error, UpdateError::BadArchive { .. }), "torn: {error}");
    let error = refused_archive(b"this is not an archive at all");
    assert!(matches!(error, UpdateError::BadArchive { .. }), "none: {error}");
}

#[test]
fn versions_go_forward_only_unless_asked() {
    let (server, machine) = (Server::start(), Machine::new());
    for name in ["0.0.9", "0.1.0", "0.3.0-beta.1"] {
        server.publish(name, &archive(name, &good(name)), &[1]);
    }
    let updater = machine.updater(&server.url, &[1]);
    server.point("stable", "0.1.0");
    assert_eq!(updater.check().unwrap(), None);
    let state = updater.state();
    assert_eq!(state.last_result.unwrap().outcome, Outcome::UpToDate);
    assert!(state.last_check_ms.is_some());
    server.point("stable", "0.0.9");
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::Downgrade { .. }), "{error}");
    assert_eq!(updater.find(&version("0.0.9")).unwrap().version, version("0.0.9"));
    server.point("stable", "0.3.0-beta.1");
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::PreRelease(_)), "{error}");
    server.point("beta", "0.3.0-beta.1");
    let beta = Updater { channel: "beta".to_owned(), ..updater.clone() };
    assert_eq!(beta.check().unwrap().unwrap().version, version("0.3.0-beta.1"));
    assert!(matches!(updater.find(&version("0.7.0")), Err(UpdateError::NotFound(_))));
    // One version's manifest at another's address.
    fs::create_dir(server.root.join("0.7.0")).unwrap();
    for end in ["", ".sig"] {
        let name = format!("manifest.json{end}");
        fs::copy(server.root.join("0.1.0").join(&name), server.root.join("0.7.0").join(&name)).unwrap();
    }
    assert!(matches!(updater.find(&version("0.7.0")), Err(UpdateError::WrongVersion { .. })));
    let elsewhere = Updater { target: "aarch64-apple-darwin".to_owned(), ..beta };
    assert!(matches!(elsewhere.check(), Err(UpdateError::NoArchive { .. })));
    let nowhere = Updater { channel: "../stable".to_owned(), ..updater };
    assert!(matches!(nowhere.check(), Err(UpdateError::NotFound(_))));
}

#[test]
fn a_server_cannot_lead_away_hang_or_flood() {
    let (server, machine) = (Server::start(), Machine::new());
    server.publish("0.2.0", &archive("0.2.0", &good("0.2.0")), &[1]);
    let mut updater = machine.updater(&server.url, &[1]);
    let other = Server::serve(server.root.clone());
    server.answer("stable.json", Answer::Redirect(format!("{}/stable.json", other.url)));
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::Network { .. }), "{error}");
    server.answer("stable.json", Answer::Endless);
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::TooLarge { .. }), "{error}");
    updater.network.stall = Duration::from_millis(300);
    server.answer("stable.json", Answer::Silence);
    let start = Instant::now();
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::Network { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    // A stream of single bytes that never stalls is bounded as a whole.
    updater.network.manifest = Duration::from_millis(300);
    updater.network.stall = Duration::from_secs(60);
    server.answer("stable.json", Answer::Drip);
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::Network { .. }), "{error}");
    updater.base_url = "http://192.0.2.1".to_owned();
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::BadAddress { .. }), "{error}");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    updater.base_url = format!("http://127.0.0.1:{port}");
    // Nobody was asked, so the look of the day is still due.
    State { last_check_ms: Some(1), ..updater.state() }.save(&machine.data).unwrap();
    let error = refusal(&machine, &updater);
    assert!(matches!(error, UpdateError::Network { .. }), "{error}");
    assert_eq!(updater.state().last_check_ms, Some(1));
}
