//! A running agent becomes a newer version of itself, or stays what it was and says why.
//!
//! The releases are this very binary with another version number written into it, signed by a key of the test.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use ed25519_dalek::SigningKey;
use serde_json::Value;
use skein_tests::agents::{PATIENCE, SOON, wait_for};
use skein_tests::command::{Said, binary};
use skein_tests::{http, language};
use skein_update::{Version, sign};
use tempfile::TempDir;

const OLD: &str = "0.1.0";

/// The binary as it would be in another version: only its number differs.
fn as_version(version: &str) -> Result<Vec<u8>> {
    ensure!(version.len() == OLD.len());
    let mut bytes = fs::read(binary()?)?;
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(OLD.len()).position(|window| window == OLD.as_bytes()) {
        let start = at + found;
        bytes[start..start + OLD.len()].copy_from_slice(version.as_bytes());
        at = start + OLD.len();
    }
    ensure!(at > 0, "the binary does not name its version");
    Ok(bytes)
}

/// An installation, an agent in it, and a server of releases.
struct Machine {
    folder: TempDir,
    url: String,
    asked: Asked,
    agent: Option<Child>,
}

/// The paths that were asked for.
type Asked = Arc<Mutex<Vec<String>>>;

impl Machine {
    fn new() -> Result<Self> {
        // Not by itself; by hand it gets what everybody gets.
        let mut machine = Self::prepare("off")?;
        let command = machine.command(&["up"]);
        machine.start(command)?;
        Ok(machine)
    }

    /// Without an agent yet.
    fn prepare(channel: &str) -> Result<Self> {
        let folder = TempDir::with_prefix("skein-update-test-")?;
        for name in ["bin", "data", "releases"] {
            fs::create_dir(folder.path().join(name))?;
        }
        // By a process of its own: a program that another thread's child still holds open for writing cannot be started.
        let copied = Command::new("cp").arg(binary()?).arg(folder.path().join("bin/skein")).status()?;
        ensure!(copied.success(), "the program cannot be copied");
        let asked = Asked::default();
        let url = format!("http://{}", serve(folder.path().join("releases"), Arc::clone(&asked))?);
        let key = hex::encode(key().verifying_key().to_bytes());
        let config = format!(
            "listen = \"127.0.0.1:0\"\napi = \"127.0.0.1:0\"\ndevice = \"cpu\"\nthreads = 1\nheadless = true\n\
             update_url = \"{url}\"\nupdate_keys = [\"{key}\"]\nupdate_channel = \"{channel}\"\n"
        );
        fs::write(folder.path().join("data/config.toml"), config)?;
        // Whether there is room on the disk of whoever runs the tests is not what they are about.
        fs::write(folder.path().join("data/policy.toml"), "disk_free_min = \"off\"\n")?;
        Ok(Self { folder, url, asked, agent: None })
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        let said = fs::File::create(self.path("story"))?;
        self.agent = Some(command.stderr(said).spawn()?);
        self.version_is(OLD).map(|_| ())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/skein"));
        command.args(arguments).arg("--data-dir").arg(self.path("data")).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Said> {
        Said::of(self.command(arguments).output()?)
    }

    /// Publishes this program as a release, and returns its archive.
    fn publish(&self, version: &str, program: &[u8]) -> Result<PathBuf> {
        let directory = self.path("releases").join(version);
        let top = format!("skein-{version}-x86_64-unknown-linux-gnu");
        let inside = self.path("work").join(&top);
        fs::create_dir_all(&inside)?;
        fs::create_dir_all(&directory)?;
        fs::write(inside.join("skein"), program)?;
        fs::set_permissions(inside.join("skein"), fs::Permissions::from_mode(0o755))?;
        let archive = directory.join(format!("{top}.tar.gz"));
        let mut pack = Command::new("tar");
        ensure!(
            pack.arg("-czf").arg(&archive).arg("-C").arg(self.path("work")).arg(&top).status()?.success()
        );
        sign::sign_release(&directory, &[key()], &Version::parse(version)?, "2026-11-23T00:00:00Z")?;
        for end in ["", ".sig"] {
            let manifest = directory.join(format!("manifest.json{end}"));
            fs::copy(&manifest, self.path("releases").join(format!("stable.json{end}")))?;
        }
        Ok(archive)
    }

    /// How often an archive of this version was asked for.
    fn archives_asked(&self, version: &str) -> usize {
        let start = format!("{version}/skein-");
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|path| path.starts_with(&start) && path.ends_with(".tar.gz")).count()
    }

    /// Where the API of the agent is that runs, or is on trial.
    fn api(&self) -> Option<SocketAddr> {
        let running: Value = serde_json::from_slice(&fs::read(self.path("data/agent.json")).ok()?).ok()?;
        running["api"].as_str()?.parse().ok()
    }

    /// What `update.json` says.
    fn state(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.path("data/update.json"))?)?)
    }

    fn status(&self) -> Option<Value> {
        let api = self.api()?;
        http::send(api, &http::request("GET", "/api/status", api, &[], &[])).ok()?.json().ok()
    }

    /// Waits for an agent of this version that is not on trial.
    fn version_is(&self, version: &str) -> Result<Value> {
        wait_for("the agent's version", SOON, || {
            Ok(self.status().filter(|status| status["version"] == version && status["on_trial"] == false))
        })
        .with_context(|| fs::read_to_string(self.path("story")).unwrap_or_default())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Serves a directory on loopback for as long as the test runs.
fn serve(root: PathBuf, asked: Asked) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &root, &asked);
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, root: &Path, asked: &Asked) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let path = first.split(' ').nth(1).context("no path")?.trim_start_matches('/').to_owned();
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
    let (status, body) = match fs::read(root.join(path)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body)?;
    Ok(())
}

#[test]
fn an_agent_becomes_its_next_version_and_never_one_that_does_not_work() -> Result<()> {
    let machine = Machine::new()?;
    let pid = machine.status().context("a status")?["pid"].clone();
    machine.publish("0.1.1", &as_version("0.1.1")?)?;
    let looked = machine.run(&["update", "--dry-run"])?;
    ensure!(looked.code == 0 && looked.out.contains("would update 0.1.0 to 0.1.1"), "{looked:?}");
    let updated = machine.run(&["update"])?;
    ensure!(updated.code == 0 && updated.out.contains("updated to 0.1.1"), "{updated:?}");
    let status = machine.version_is("0.1.1")?;
    ensure!(status["pid"] == pid, "service managers would notice: {status}");
    let fetched = machine.archives_asked("0.1.1");
    ensure!(fetched == 1, "what was fetched and checked is not fetched again: {fetched} times");
    let old = Command::new(machine.path("bin/skein.old")).arg("--version").output()?;
    ensure!(String::from_utf8_lossy(&old.stdout).contains(OLD), "the old version is kept: {old:?}");
    let again = machine.run(&["update"])?;
    ensure!(again.code == 0 && again.out.contains("newest"), "{again:?}");

    // One that crashes at its start: the old one is back by itself, and says why.
    machine.publish("0.1.2", b"#!/bin/sh\necho this driver is too old >&2\nexit 3\n")?;
    let failed = machine.run(&["update"])?;
    ensure!(failed.code == 1 && failed.err.contains("this driver is too old"), "{failed:?}");
    machine.version_is("0.1.1")?;
    let again = machine.run(&["update"])?;
    ensure!(again.code == 1 && again.err.contains("0.1.2"), "it is not tried again by itself: {again:?}");
    let told = machine.run(&["status"])?;
    ensure!(told.out.contains("0.1.1") && told.out.contains("this driver is too old"), "{told:?}");
    let story = fs::read_to_string(machine.path("data/story.log"))?;
    ensure!(story.contains("this driver is too old"), "{story}");

    // One that nobody signed, and one that was changed on the way.
    let archive = machine.publish("0.1.3", &as_version("0.1.3")?)?;
    let mut bytes = fs::read(&archive)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&archive, bytes)?;
    let refused = machine.run(&["update"])?;
    ensure!(refused.code == 1 && refused.err.contains("hint:"), "{refused:?}");
    let status = machine.version_is("0.1.1")?;
    ensure!(status["pid"] == pid, "work went on without a break: {status}");
    ensure!(!machine.path("bin/skein.new").exists());

    // One that the channel names and the agent does not find: whoever asked hears of it.
    machine.publish("0.1.4", &as_version("0.1.4")?)?;
    fs::remove_file(machine.path("releases/0.1.4/manifest.json"))?;
    let lost = machine.run(&["update"])?;
    ensure!(lost.code == 1 && lost.err.contains("no update: the server has no "), "{lost:?}");

    // Back by hand: what runs goes on until it is started again.
    let back = machine.run(&["update", "--back"])?;
    ensure!(back.code == 0 && back.out.contains("skein 0.1.0 again"), "{back:?}");
    ensure!(back.out.contains("start it again"), "{back:?}");
    let installed = Command::new(machine.path("bin/skein")).arg("--version").output()?;
    ensure!(String::from_utf8_lossy(&installed.stdout).contains(OLD), "{installed:?}");
    machine.version_is("0.1.1")?;
    Ok(())
}

#[test]
fn a_power_cut_in_the_midst_of_an_update_leaves_a_version_that_works() -> Result<()> {
    let mut machine = Machine::new()?;
    machine.publish("0.1.1", &as_version("0.1.1")?)?;
    let mut asked = machine.command(&["update"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // The process that changes the binary has the agent's process id; the trial is its child.
    wait_for("the trial", PATIENCE, || Ok(machine.path("bin/skein.new").exists().then_some(())))?;
    let mut agent = machine.agent.take().context("an agent")?;
    agent.kill()?;
    agent.wait()?;
    asked.kill()?;
    asked.wait()?;
    let version = Command::new(machine.path("bin/skein")).arg("--version").output()?;
    ensure!(version.status.success(), "the installed name leads to nothing that works: {version:?}");
    let said = fs::File::create(machine.path("story"))?;
    // A trial ends with the process that tries it, and lets go of the data.
    wait_for("the trial's end", SOON, || {
        let held = fs::File::open(machine.path("data/lock"))?.try_lock().is_err();
        Ok((!held).then_some(()))
    })?;
    machine.agent = Some(machine.command(&["up"]).stderr(said).spawn()?);
    wait_for("an agent", SOON, || Ok(machine.status()))?;
    ensure!(!machine.path("bin/skein.new").exists(), "what was cut off is cleared away");
    ensure!(machine.url.starts_with("http://127.0.0.1"));
    Ok(())
}

#[test]
fn an_agent_that_is_told_to_leave_while_its_next_version_is_on_trial_stays_away() -> Result<()> {
    let mut machine = Machine::new()?;
    machine.publish("0.1.1", &as_version("0.1.1")?)?;
    let asked = machine.command(&["update"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    wait_for("the trial", PATIENCE, || Ok(machine.status().filter(|status| status["on_trial"] == true)))?;
    let down = machine.run(&["down"])?;
    ensure!(down.code == 0, "{down:?}");
    let ended = machine.agent.take().context("an agent")?.wait()?;
    ensure!(ended.success(), "for a service manager it has left: {ended}");
    let asked = Said::of(asked.wait_with_output()?)?;
    ensure!(asked.code == 1 && asked.err.contains("told to leave"), "{asked:?}");
    ensure!(machine.status().is_none() && !machine.path("bin/skein.new").exists());
    let state = machine.state()?;
    ensure!(state["failed"] == serde_json::json!([]), "the version is not to blame: {state}");
    let updated = machine.run(&["update"])?;
    ensure!(updated.code == 0 && updated.out.contains("updated to 0.1.1"), "{updated:?}");
    Ok(())
}

#[test]
fn answers_under_way_are_finished_first() -> Result<()> {
    const TOKENS: usize = 3_000;
    let Some(model) = language::file() else { return Ok(()) };
    let machine = Machine::new()?;
    machine.publish("0.1.1", &as_version("0.1.1")?)?;
    let model = model.display().to_string();
    let added = machine.run(&["model", "add", &model, "--name", "smol"])?;
    ensure!(added.code == 0, "{added:?}");
    let api = machine.api().context("an agent")?;
    let body = serde_json::json!({
        "model": "smol", "prompt": "1, 2, 3, 4,", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true,
        "stream": true, "stream_options": { "include_usage": true },
    });
    let headers = [("content-type", "application/json")];
    let request = http::request("POST", "/v1/completions", api, &headers, body.to_string().as_bytes());
    let answer = http::open(api, &request)?;
    ensure!(answer.status == 200, "{}", answer.head);
    let mut events = BufReader::new(answer).lines().filter(|line| !line.as_ref().is_ok_and(String::is_empty));
    events.next().context("no answer")??;

    let asked = machine.command(&["update"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (mut last, mut waited) = (String::new(), false);
    for event in events {
        let event = event.context("the stream broke off")?;
        if event == "data: [DONE]" {
            waited = fs::read_to_string(machine.path("story"))?.contains("finishing the work at hand first");
        } else if event.starts_with("data: ") {
            last = event;
        }
    }
    let usage: Value = serde_json::from_str(last.trim_start_matches("data: "))?;
    ensure!(usage["usage"]["completion_tokens"] == TOKENS, "it was cut off: {usage}");
    ensure!(waited, "the new version was not there before the answer ended: it has to be longer");
    let updated = Said::of(asked.wait_with_output()?)?;
    ensure!(updated.code == 0 && updated.out.contains("updated to 0.1.1"), "{updated:?}");
    machine.version_is("0.1.1")?;
    Ok(())
}

#[test]
fn an_agent_that_may_not_replace_its_program_says_once_that_a_newer_version_is_there() -> Result<()> {
    let mut machine = Machine::prepare("stable")?;
    machine.publish("0.1.1", &as_version("0.1.1")?)?;
    let mut command = machine.command(&["up"]);
    let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    if fs::metadata(machine.folder.path())?.uid() == 0 {
        // As the machine's service: root has installed the program, and another user runs it.
        allow(machine.folder.path(), 0o755)?;
        let given = Command::new("chown").args(["-R", "65534"]).arg(machine.path("data")).status()?;
        ensure!(given.success());
        command.uid(65_534).gid(65_534).current_dir("/");
    } else {
        allow(&machine.path("bin"), 0o555)?;
    }
    machine.start(command)?;
    let told = "version 0.1.1 is there: ";
    let story = wait_for("the new version to be told of", SOON, || {
        let story = fs::read_to_string(machine.path("story"))?;
        Ok(story.contains(told).then_some(story))
    })?;
    ensure!(story.matches(told).count() == 1 && story.contains("hint: run the installer again"), "{story}");
    ensure!(machine.archives_asked("0.1.1") == 0, "what cannot be installed is not fetched");
    machine.version_is(OLD)?;
    allow(&machine.path("bin"), 0o755)?;
    Ok(())
}

/// Listens, says where, and never answers; ends with its updater.
const SILENT: &str = r#"#!/usr/bin/env python3
import json, socket, sys
place = sys.argv[sys.argv.index("--data-dir") + 1]
silent = socket.create_server(("127.0.0.1", 0))
api = "127.0.0.1:%d" % silent.getsockname()[1]
with open(place + "/agent.json", "w") as file:
    json.dump({"pid": 1, "node": "00" * 32, "listen": api, "api": api, "token": "silent"}, file)
sys.stdin.read()
"#;

#[test]
fn a_version_that_listens_and_never_answers_is_given_up() -> Result<()> {
    let machine = Machine::new()?;
    machine.publish("0.1.1", SILENT.as_bytes())?;
    let failed = machine.run(&["update"])?;
    ensure!(failed.code == 1 && failed.err.contains("it was not healthy within 60 s"), "{failed:?}");
    ensure!(failed.err.contains("does not answer"), "{failed:?}");
    machine.version_is(OLD)?;
    ensure!(!machine.path("bin/skein.new").exists());
    Ok(())
}
