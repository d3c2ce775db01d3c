//! What people, disks and programs get wrong: each is told what failed, with which value, and what to do;
//! nobody falls, and nothing that was acknowledged is lost.
//!
//! Peers that lie have a file of their own, `hostile.rs`. Must never accept a panic as an answer.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skein_tests::agents::{self, Agent, Network, PATIENCE, SOON, TEXT, Training, wait_for};
use skein_tests::command::{Said, explains, run, set, signal, skein};

const LONG_EPOCH_MS: u64 = 600_000;

/// Starts an agent that should not start, and returns what it said.
fn refused(data_dir: &Path, more: &[&str]) -> Result<Said> {
    let mut command = skein(&["up", "--headless", "--device", "cpu", "--data-dir"])?;
    command.arg(data_dir);
    for (flag, value) in [("--listen", "127.0.0.1:0"), ("--api", "127.0.0.1:0")] {
        if !more.contains(&flag) && !data_dir.join("config.toml").exists() {
            command.args([flag, value]);
        }
    }
    let mut child = command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let ended = wait_for("the agent to refuse to start", SOON, || Ok(child.try_wait()?));
    let _ = child.kill();
    let said = Said::of(child.wait_with_output()?);
    ended?;
    let said = said?;
    ensure!(said.code == 1, "it exits with {}: {said:?}", said.code);
    Ok(said)
}

/// Copies a data directory's files, two levels deep.
fn copy(from: &Path, to: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), target)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(to)
}

fn flip(path: &Path, at: usize) -> Result<Vec<u8>> {
    let mut bytes = fs::read(path)?;
    *bytes.get_mut(at).with_context(|| format!("{} has only {at} bytes", path.display()))? ^= 1;
    fs::write(path, &bytes)?;
    Ok(bytes)
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    let address = udp.local_addr()?.to_string();
    refused(folder.path(), &["--listen", &address])?.refuses(&[&address, "in use"])?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let address = tcp.local_addr()?.to_string();
    refused(folder.path(), &["--api", &address])?.refuses(&[&address, "--api"])?;
    // Neither left anything behind that hinders the next start.
    ensure!(!folder.path().join("agent.json").exists(), "agent.json of an agent that never ran");
    Ok(())
}

#[test]
fn a_damaged_key_is_not_replaced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("identity.key");
    for (text, word) in [
        ("", "skein-secret-key-1"),
        ("ssh-ed25519 AAAA\n", "skein-secret-key-1"),
        ("skein-secret-key-1 abcd 00\n", "hexadecimal"),
        (&format!("skein-secret-key-1 {} 01020304\n", "5a".repeat(32)), "checksum"),
    ] {
        fs::write(&key, text)?;
        refused(folder.path(), &[])?.refuses(&["damaged", "identity.key", word, "backup"])?;
        ensure!(fs::read_to_string(&key)? == text, "the damaged key was overwritten");
    }
    // Not even text.
    fs::write(&key, [0xff, 0xfe, 0x00])?;
    refused(folder.path(), &[])?.refuses(&["identity.key"])
}

#[test]
fn a_bad_configuration_is_named_with_its_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.toml");
    for (text, words) in [
        ("listen = \n", &["config.toml", "line 1"][..]),
        ("listen = \"127.0.0.1:0\"\ncolour = \"green\"\n", &["config.toml", "colour"]),
        ("memory = \"much\"\n", &["config.toml", "memory"]),
        ("listen = \"here\"\n", &["listen", "`here`", "127.0.0.1"][..2]),
        ("api = \"localhost:80\"\n", &["api", "`localhost:80`"]),
        ("bootstrap = [\"example.org\"]\n", &["bootstrap", "example.org"]),
    ] {
        fs::write(&config, text)?;
        refused(folder.path(), &[])?.refuses(words).with_context(|| text.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_bad_genesis_is_named_with_its_field() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let genesis = folder.path().join("genesis.toml");
    let path = genesis.display().to_string();
    refused(folder.path(), &["--network", &path])?.refuses(&["genesis.toml", "cannot read"])?;
    let good = "name = \"t\"\npolicy = \"io\"\nstarted_at_ms = 0\nepoch_ms = 5000\n";
    for (from, to, word) in [
        ("name = \"t\"", "name = ", "line 1"),
        ("name = \"t\"\n", "", "name"),
        ("epoch_ms = 5000", "epoch_ms = 10", "not 10"),
        ("\"io\"", "\"gold\"", "`gold`"),
        ("epoch_ms = 5000", "epoch_ms = 5000\nhalving = 4", "halving"),
        ("started_at_ms = 0", "started_at_ms = -1", "started_at_ms"),
    ] {
        fs::write(&genesis, good.replace(from, to))?;
        refused(folder.path(), &["--network", &path])?.refuses(&["genesis.toml", word])?;
    }
    Ok(())
}

#[test]
fn a_damaged_log_or_chain_is_named_and_left_as_it_is() -> Result<()> {
    let mut network = Network::of(1, 2_000)?;
    let agent = &network.agents[0];
    let job = agents::train(agent, &TEXT[..20_000], &Training::of(1, 2))?;
    agent.job_done(&job)?;
    wait_for("a settled epoch", SOON, || {
        Ok((agent.status()?["ledger"]["height"].as_u64() > Some(0)).then_some(()))
    })?;
    network.agents[0].kill()?;
    let agent = &network.agents[0];
    let (folder, genesis) = (network.folder.path(), network.genesis().display().to_string());
    let size = agent.log()?.size();
    ensure!(size == 6, "three leases give six entries, not {size}");
    let length = usize::try_from(fs::metadata(agent.data_dir.join("log/entries"))?.len())?;
    let start = |copy: &Path| refused(copy, &["--network", &genesis]);

    for (name, file, at, words) in [
        ("header", "log/entries", 20, &["header", "left as it is"][..]),
        ("first", "log/entries", 90, &["entry 0", "byte 78", "left as it is"]),
        ("last", "log/entries", length - 1, &["entry 5", "left as it is"]),
        ("signed", "log/checkpoint", 140, &["checkpoint", "left as it is"]),
        ("chain", "chain", 30, &["chain", "left as it is"]),
    ] {
        let copy = copy(&agent.data_dir, folder.join(name))?;
        let damaged = flip(&copy.join(file), at)?;
        start(&copy)?.refuses(words).with_context(|| name.to_owned())?;
        ensure!(fs::read(copy.join(file))? == damaged, "{name}: the damaged file was changed");
    }
    // A log that was cut is not a torn one: its checkpoint was shown to others.
    let cut = copy(&agent.data_dir, folder.join("cut"))?;
    let bytes = fs::read(cut.join("log/entries"))?;
    fs::write(cut.join("log/entries"), &bytes[..length - 7])?;
    start(&cut)?.refuses(&["entry 5", "left as it is"])?;
    ensure!(fs::read(cut.join("log/entries"))?.len() == length - 7, "the cut log was changed");
    // The log of another network.
    let elsewhere = folder.join("elsewhere.toml");
    fs::write(&elsewhere, fs::read_to_string(&genesis)?.replace("test", "rest"))?;
    let moved = copy(&agent.data_dir, folder.join("moved"))?;
    refused(&moved, &["--network", &elsewhere.display().to_string()])?.refuses(&["network"])?;

    // What a crash cut off behind the checkpoint was never told to anyone: dropped, and said.
    let torn = copy(&agent.data_dir, folder.join("torn"))?;
    fs::write(torn.join("log/entries"), [&bytes[..], &[200, 3, 0, 0, 1, 2, 3, 4, 0]].concat())?;
    let mut back = Agent::start(torn, network.genesis(), &[])?;
    ensure!(back.story().contains("cut off"), "a torn entry was dropped in silence: {}", back.story());
    ensure!(back.status()?["log"]["entries"] == size, "{}", back.status()?["log"]);
    signal("TERM", back.pid()?)?;
    ensure!(back.ended(SOON)?.success(), "it ended badly");
    ensure!(back.log()?.size() == size, "entries that were acknowledged are gone");
    network.agents.push(back);
    network.finish()
}

#[test]
fn two_agents_do_not_share_a_directory() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    refused(&agent.data_dir, &[])?.refuses(&["another agent runs", &agent.dir(), "skein down"])?;
    let status = run(&["status", "--json", "--data-dir", &agent.dir()])?;
    ensure!(status.json()?["node"] == agent.node.as_str(), "the second start hurt the first: {status:?}");
    network.finish()
}

#[test]
fn a_directory_that_cannot_be_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    fs::write(&file, "not a directory")?;
    let below = file.join("data");
    let words = [below.display().to_string()];
    refused(&below, &[])?.refuses(&["data directory", &words[0], "--data-dir"])?;
    // Parts of the directory taken by something else.
    let taken = folder.path().join("taken");
    for part in ["log", "blobs", "worker"] {
        let _ = fs::remove_dir_all(&taken);
        fs::create_dir_all(&taken)?;
        fs::write(taken.join(part), "in the way")?;
        if part == "worker" {
            continue;
        }
        let said = refused(&taken, &[])?;
        said.refuses(&[part]).with_context(|| part.to_owned())?;
    }
    Ok(())
}

/// A file system of its own, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    /// None, said loudly, where this process may not mount.
    fn new(at: PathBuf, bytes: &str) -> Result<Option<Self>> {
        fs::create_dir_all(&at)?;
        let mount = |options: &str| {
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "skein-test"]).arg(&at).output()
        };
        match mount(&format!("size={bytes}")) {
            Ok(output) if output.status.success() => Ok(Some(Self(at))),
            other => {
                eprintln!(
                    "SKIPPED: cannot mount a small disk: {other:?}\nhint: run this test as root on Linux"
                );
                Ok(None)
            }
        }
    }

    /// Makes `ballast` longer by half of what is missing until no more than so many bytes are left: an agent writes to the
    /// disk at the same time, and the log's own room must not go.
    fn fill(&self, ballast: &Path, left: u64) -> Result<()> {
        let df = Command::new("df").args(["--output=avail", "-B1"]).arg(&self.0).output()?;
        let text = String::from_utf8(df.stdout)?;
        let free: u64 = text.lines().last().context("df said nothing")?.trim().parse()?;
        let bytes = vec![7; usize::try_from(free.saturating_sub(left) / 2)?];
        Ok(fs::File::options().create(true).append(true).open(ballast)?.write_all(&bytes)?)
    }

    /// Once nobody has a file there to write to: an agent's worker ends a moment after it.
    fn read_only(&self) -> Result<()> {
        wait_for("the disk to be read-only", SOON, || {
            let done = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).output()?;
            Ok(done.status.success().then_some(()))
        })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_the_agent_with_a_reason_and_costs_nothing_acknowledged() -> Result<()> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    let Some(disk) = Mount::new(network.folder.path().join("disk"), "24m")? else { return network.finish() };
    let data_dir = disk.0.join("agent");
    let agent = Agent::start(data_dir, network.genesis(), &[])?;
    network.agents.push(agent);
    network.met(1)?;
    let agent = &network.agents[0];
    let small = Training::of(1, 2);
    let first = agents::train(agent, &TEXT[..20_000], &small)?;
    agent.job_done(&first)?;
    let before = wait_for("the acceptances", SOON, || {
        let log = agent.log()?;
        Ok((log.size() == 6).then(|| log.entries().to_vec()))
    })?;

    let ballast = disk.0.join("ballast");
    let full = fs::write(&ballast, vec![7; 64 << 20]);
    ensure!(full.is_err(), "the disk is not full");
    let blob = agent.post("/api/blobs", &TEXT[..200_000])?;
    ensure!(blob.status == 502 && blob.message()?.contains("No space"), "{blob:?}");
    // Its blobs are here already, so that only its results need room.
    agent.submit("second", agent.job(&first)?["work"].clone())?;
    // A receipt that cannot be made durable must not be sent: the agent ends, and says why.
    let ended = network.agents[0].ended(SOON)?;
    ensure!(ended.code() == Some(1), "it ended with {ended}");
    let agent = &mut network.agents[0];
    explains(&agent.story(), &["cannot write", "No space", "free some space"])?;
    fs::remove_file(&ballast)?;
    ensure!(agent.log()?.entries().starts_with(&before), "acknowledged entries are gone");
    agent.restart()?;
    network.met(1)?;
    let again = agents::train(&network.agents[0], &TEXT[..20_000], &small)?;
    network.agents[0].job_done(&again)?;

    // The same disk, read-only.
    signal("TERM", network.agents[0].pid()?)?;
    network.agents[0].ended(SOON)?;
    disk.read_only()?;
    let genesis = network.genesis().display().to_string();
    let said = refused(&network.agents[0].data_dir, &["--network", &genesis])?;
    said.refuses(&["data directory", "Read-only"])?;
    // Unmounted before the directory around it is removed.
    drop(disk);
    network.finish()
}

#[test]
fn a_disk_that_fills_during_a_checkpoint_costs_no_checkpoint_and_the_job_goes_on() -> Result<()> {
    const ROUNDS: u32 = 30;
    let mut network = Network::of(2, LONG_EPOCH_MS)?;
    let Some(disk) = Mount::new(network.folder.path().join("disk"), "24m")? else { return network.finish() };
    let first = &network.agents[0];
    let bootstrap = format!("{}@{}", first.node, first.listen);
    let small = Agent::start(disk.0.clone(), network.genesis(), &["--bootstrap", &bootstrap])?;
    network.agents.push(small);
    network.met(3)?;
    let job = agents::train(&network.agents[0], &TEXT[..40_000], &Training::of(ROUNDS, 20))?;
    let reached = |network: &Network, what: &str, round: u64| {
        network.agents[0].job_until(&job, what, PATIENCE, |job| job["round"].as_u64() >= Some(round))
    };
    reached(&network, "the second outer step", 2)?;

    // Leaves room for the log and for pseudo-gradients, and for no checkpoint, also when an old one is removed.
    let ballast = disk.0.join("ballast");
    wait_for("the small agent to say so", PATIENCE, || {
        disk.fill(&ballast, 192 << 10)?;
        Ok(network.agents[2].story().contains("No space left").then_some(()))
    })?;
    explains(&network.agents[2].story(), &["cannot write", "No space left", "free some space"])?;
    let full = network.agents[0].job(&job)?["round"].as_u64().context("no round")?;
    reached(&network, "the others to go on", full + 3)?;

    fs::remove_file(&ballast)?;
    let small = &mut network.agents[2];
    // Where the checkpoint took the last room just when the log needed it, the agent ended, as it must; its owner starts it.
    if small.status().is_err() {
        ensure!(small.ended(SOON)?.code() == Some(1), "{}", small.story());
        explains(&small.story(), &["log/entries: No space left", "start the agent again"])?;
        small.restart()?;
    }
    let (owner, small) = (&network.agents[0], &network.agents[2]);
    let taken = small.status()?["leases_taken"].as_u64();
    owner.job_until(&job, "the small agent to work again", PATIENCE, |job| {
        let takes = small.status().is_ok_and(|status| status["leases_taken"].as_u64() > taken.map(|n| n + 4));
        takes || job["phase"] == "done"
    })?;
    let done = owner.job_done(&job)?;
    ensure!(done["digests_equal"] == true && done["round"] == ROUNDS, "{done}");
    ensure!(done["regrants"].as_u64() > Some(0), "nothing failed: {done}");
    // Nobody has half a file, and the small agent has the whole result.
    let state = done["state"].as_str().context("no checkpoint")?;
    for agent in &network.agents {
        let bytes = agent.blob(state)?.with_context(|| format!("{} lacks the result", agent.node))?;
        ensure!(skein_proto::ids::Digest::of(&bytes).to_string() == state, "another checkpoint");
        let left: Vec<PathBuf> = files(&agent.data_dir)?;
        let half = left.iter().find(|path| path.to_string_lossy().contains("partial"));
        ensure!(half.is_none(), "{half:?} is left");
    }
    let result = network.folder.path().join("result");
    let to = result.display().to_string();
    let said = run(&["result", &job[..12], "--output", &to, "--data-dir", &network.agents[2].dir()])?;
    ensure!(said.code == 0 && result.join("model.safetensors").is_file(), "{said:?}");
    // Unmounted before the directory around it is removed.
    drop(disk);
    network.finish()
}

/// All files below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[test]
fn a_bad_job_file_is_named_with_its_field() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let folder = network.folder.path();
    let path = folder.join("job.toml");
    fs::write(folder.join("shakespeare.txt"), &TEXT[..5_000])?;
    let good = run(&["run", "--example"])?.out;
    let submit = || run(&["run", &path.display().to_string(), "--data-dir", &agent.dir()]);
    submit()?.refuses(&["job.toml", "cannot read", "--example"])?;
    for (key, value, words) in [
        ("kind", "\"mine\"", &["job.toml", "mine"][..]),
        ("batch", "\"eight\"", &["job.toml", "batch"]),
        ("batch", "8\nprice = 1", &["job.toml", "price"]),
        ("batch", "8\nbatch = 8", &["job.toml", "batch"]),
        ("batch", "", &["job.toml", "batch"]),
        ("batch", "0", &["batch = 0"]),
        ("rounds", "1000000", &["rounds = 1000000"]),
        ("rounds", "8\ntokens = 200000", &["both `rounds` and `tokens`"]),
        ("batch", "8\nrequires = { memory = \"much\" }", &["job.toml", "memory"]),
        ("batch", "8\nrequires = { price = 1 }", &["job.toml", "price"]),
        ("heads", "3", &["3 heads", "width of 128"]),
        ("width", "4", &["4 heads", "width of 4"]),
        ("layers", "0", &["[shape]", "layers"]),
        ("learning_rate", "-1.0", &["learning_rate", "-1"]),
        ("learning_rate", "2.0", &["learning_rate = 2"]),
        ("name", "\"../../etc\"", &["name = ../../etc"]),
        ("data", "\"hamlet.txt\"", &["hamlet.txt", "cannot read"]),
    ] {
        fs::write(&path, set(&good, key, value)?)?;
        submit()?.refuses(words).with_context(|| format!("{key} = {value}"))?;
    }
    // A field that is missing.
    fs::write(&path, set(&good, "batch", "8")?.replace("batch = 8\n", ""))?;
    submit()?.refuses(&["job.toml", "missing", "batch"])?;
    ensure!(agent.get("/api/jobs")? == json!([]), "a bad job was taken");
    // Texts from which nothing can be learnt.
    let text = folder.join("shakespeare.txt");
    fs::write(&path, &good)?;
    for (bytes, words) in [
        (&b"too short"[..], &["9 tokens", "a context of 128"][..]),
        (b"", &["shakespeare.txt is empty"]),
        (b"\x89PNG\r\n\x1a\n\0\0", &["shakespeare.txt is no text", "byte 0"]),
    ] {
        fs::write(&text, bytes)?;
        submit()?.refuses(words)?;
    }
    ensure!(agent.get("/api/jobs")? == json!([]), "a job without a text was taken");
    network.finish()
}
