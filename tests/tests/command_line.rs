//! The command line as operators script against it: verbs, flags, keys, exit codes, and a stdout that holds
//! the answer and nothing else.
//!
//! What is asserted here is promised; words for people may change. Must never start what it does not end.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skein_tests::agents::{self, Network, TEXT, Training};
use skein_tests::command::{explains, run, set};

const LONG_EPOCH_MS: u64 = 600_000;
/// What clap exits with when the command line makes no sense.
const USAGE: i32 = 2;

#[test]
fn every_verb_explains_itself_and_its_flags() -> Result<()> {
    let up = [
        "--headless",
        "--data-dir",
        "--listen",
        "--api",
        "--bootstrap",
        "--network",
        "--memory",
        "--device",
        "--owner",
        "--name",
    ];
    let verbs: [(&[&str], &[&str]); 30] = [
        (&["up"], &up),
        (&["down"], &["--data-dir"]),
        (&["status"], &["--data-dir", "--json"]),
        (&["bench"], &["--data-dir", "--json", "--device"]),
        (&["run"], &["--data-dir", "--example", "--detach", "--output"]),
        (&["jobs"], &["--data-dir", "--json"]),
        (&["logs"], &["--data-dir", "--json", "--follow", "<ID>"]),
        (&["cancel"], &["--data-dir", "<ID>"]),
        (&["resume"], &["--data-dir", "[ID]"]),
        (&["result"], &["--data-dir", "--output", "<ID>"]),
        (&["claim"], &["--data-dir", "--json", "--dry-run"]),
        (&["log", "verify"], &["--data-dir", "--json"]),
        (&["pause"], &["--data-dir", "--gpu", "[TIME]"]),
        (&["finish"], &["--data-dir"]),
        (&["set"], &["--data-dir", "<KEY>", "<VALUE>"]),
        (&["get"], &["--data-dir", "--json", "[KEY]"]),
        (&["update"], &["--data-dir", "--dry-run", "--version"]),
        (&["fleet"], &["--data-dir", "--json", "key", "pause", "resume", "finish", "update", "forget"]),
        (&["fleet", "key"], &["--data-dir"]),
        (&["fleet", "pause"], &["--data-dir", "--gpu", "[TIME]", "[RIG]..."]),
        (&["fleet", "resume"], &["--data-dir", "[RIG]..."]),
        (&["fleet", "finish"], &["--data-dir", "[RIG]..."]),
        (&["fleet", "update"], &["--data-dir", "--version", "[RIG]..."]),
        (&["fleet", "forget"], &["--data-dir", "--undo", "<RIG>"]),
        (&["tray"], &["--data-dir"]),
        (&["dashboard"], &["--data-dir"]),
        (&["doctor"], &["--data-dir", "--json"]),
        (&["bugreport"], &["--data-dir", "--output"]),
        (&["service", "install"], &["--data-dir", "--system", "--headless"]),
        (&["demo"], &["--agents", "--json"]),
    ];
    let overview = run(&["--help"])?;
    for (verb, flags) in verbs {
        ensure!(overview.out.contains(verb[0]), "{verb:?} is not in the overview");
        let said = run(&[verb, &["--help"]].concat())?;
        ensure!(said.code == 0 && said.err.is_empty(), "{verb:?}: {said:?}");
        for flag in flags {
            // As a word of its own: `--listen` is not found in `--listening`.
            let found = said.out.split([' ', '\n', ',']).any(|word| word == *flag);
            ensure!(found, "skein {} has no {flag}:\n{}", verb.join(" "), said.out);
        }
    }
    for hidden in ["worker", "probe"] {
        let listed = overview.out.lines().any(|line| line.trim_start().starts_with(hidden));
        ensure!(!listed, "`{hidden}` is not for people");
    }
    Ok(())
}

#[test]
fn nonsense_is_refused_with_the_way_out() -> Result<()> {
    let cases: [(&[&str], &str); 12] = [
        (&["up", "--colour", "green"], "--colour"),
        (&["fly"], "fly"),
        (&[], "Usage"),
        (&["up", "--listen", "nowhere"], "nowhere"),
        (&["up", "--bootstrap", "example.org"], "example.org"),
        (&["up", "--memory", "much"], "much"),
        (&["demo", "--agents", "0"], "0"),
        (&["demo", "--agents", "9"], "9"),
        (&["run"], "JOB"),
        (&["up", "--owner", "me"], "skein fleet key"),
        (&["up", "--name", ""], "name"),
        (&["fleet", "forget"], "RIG"),
    ];
    for (arguments, word) in cases {
        let said = run(arguments)?;
        ensure!(said.code == USAGE, "{arguments:?} exits with {}: {said:?}", said.code);
        ensure!(said.out.is_empty() && said.err.contains(word), "{arguments:?}: {said:?}");
        ensure!(said.err.contains("--help") || said.err.contains("Usage"), "no way out: {said:?}");
    }
    Ok(())
}

#[test]
fn without_an_agent_every_verb_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().display().to_string();
    let job = folder.path().join("job.toml");
    fs::write(&job, run(&["run", "--example"])?.out)?;
    let job = job.display().to_string();
    let verbs: [&[&str]; 9] = [
        &["fleet"],
        &["fleet", "pause", "2h"],
        &["status"],
        &["status", "--json"],
        &["down"],
        &["jobs"],
        &["jobs", "--json"],
        &["claim", "--dry-run"],
        &["run", &job],
    ];
    for verb in verbs {
        let said = run(&[verb, &["--data-dir", &dir]].concat())?;
        said.refuses(&["no agent runs", &dir, "skein up"]).with_context(|| format!("{verb:?}"))?;
        ensure!(said.code == 1, "{verb:?} exits with {}", said.code);
    }
    Ok(())
}

#[test]
fn one_agent_answers_every_verb_in_json_and_in_words() -> Result<()> {
    let mut network = Network::of(1, 2_000)?;
    let agent = &network.agents[0];
    let dir = agent.dir();
    let of = |verb: &[&str]| run(&[verb, &["--data-dir", &dir]].concat());

    let status = of(&["status", "--json"])?;
    ensure!(status.code == 0 && status.err.is_empty(), "{status:?}");
    let status = status.json()?;
    ensure!(status["node"] == agent.node.as_str(), "{status}");
    ensure!(status["listen"] == agent.listen.to_string() && agent.listen.port() != 0, "{status}");
    ensure!(status["api"] == agent.api.to_string() && agent.api.port() != 0, "{status}");
    ensure!(status["peers"].is_array() && status["reasons"].is_array(), "{status}");
    ensure!(status["coordinator"] == agent.node.as_str(), "{status}");
    ensure!(status["visible"] == true && status["working"] == false, "{status}");
    ensure!(status["reasons"][0].is_string(), "idle, and does not say why: {status}");
    let words = of(&["status"])?;
    ensure!(words.code == 0 && words.out.contains(&agent.node), "{words:?}");

    ensure!(of(&["jobs", "--json"])?.json()? == Value::Array(Vec::new()), "jobs before any was submitted");
    ensure!(of(&["jobs"])?.out.contains("skein run"), "no jobs, and no word of how to submit one");
    let id = agents::train(agent, &TEXT[..20_000], &Training::of(1, 2))?;
    agent.job_done(&id)?;
    let jobs = of(&["jobs", "--json"])?.json()?;
    ensure!(jobs[0]["id"] == id.as_str() && jobs[0]["phase"] == "done", "{jobs}");
    let words = of(&["jobs"])?;
    ensure!(words.out.contains("train") && words.out.contains("done"), "{words:?}");
    let nobody = of(&["cancel", "ffffffffffff"])?;
    nobody.refuses(&["ffffffffffff", "skein jobs"])?;

    let claim = of(&["claim", "--dry-run", "--json"])?;
    ensure!(claim.code == 0 && claim.err.is_empty(), "{claim:?}");
    ensure!(claim.json()?["sent"] == false, "a dry run sent a claim: {claim:?}");
    ensure!(!of(&["claim", "--dry-run"])?.out.trim().is_empty(), "a claim has a message");

    let log = agent.data_dir.join("log");
    let verify = |path: &str, json: bool| {
        let arguments = ["log", "verify", path, "--json"];
        run(if json { &arguments } else { &arguments[..3] })
    };
    let good = verify(&log.display().to_string(), true)?;
    let report = good.json()?;
    ensure!(good.code == 0 && report["ok"] == true && report["node"] == agent.node.as_str(), "{report}");
    ensure!(report["receipts"] == 3, "{report}");
    // By its directory, by its file, by the data directory.
    ensure!(verify(&log.join("entries").display().to_string(), true)?.json()? == report, "by its file");
    ensure!(of(&["log", "verify", "--json"])?.json()? == report, "by --data-dir");
    ensure!(verify(&log.display().to_string(), false)?.out.starts_with("good"), "in words");

    let down = of(&["down"])?;
    ensure!(down.code == 0 && down.err.is_empty(), "{down:?}");
    ensure!(network.agents[0].ended(agents::SOON)?.success(), "it ended badly");

    let missing = log.with_file_name("nowhere").display().to_string();
    verify(&missing, false)?.refuses(&[&missing, "cannot read"])?;
    let entries = log.join("entries");
    let mut bytes = fs::read(&entries)?;
    *bytes.get_mut(100).context("a short log")? ^= 1;
    fs::write(&entries, &bytes)?;
    let bad = verify(&log.display().to_string(), true)?;
    ensure!(bad.code == 1 && bad.json()?["first_bad_entry"] == 0 && bad.json()?["ok"] == false, "{bad:?}");
    let bad = verify(&log.display().to_string(), false)?;
    bad.refuses(&["entry 0", "byte 78"])?;
    fs::remove_file(log.join("checkpoint"))?;
    verify(&log.display().to_string(), false)?.refuses(&["checkpoint"])?;
    network.finish()
}

#[test]
fn the_example_of_a_job_is_a_job_that_runs() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let example = run(&["run", "--example"])?;
    ensure!(example.code == 0 && example.err.is_empty(), "{example:?}");
    // The same file, but small enough for a test.
    let mut text = example.out;
    for (key, value) in [
        ("rounds", "2"),
        ("inner_steps", "3"),
        ("batch", "2"),
        ("layers", "2"),
        ("width", "32"),
        ("heads", "2"),
        ("context", "32"),
    ] {
        text = set(&text, key, value)?;
    }
    let folder = network.folder.path();
    let job = folder.join("job.toml");
    fs::write(&job, &text)?;
    fs::write(folder.join("shakespeare.txt"), &TEXT[..20_000])?;
    let job = job.display().to_string();
    let said = run(&["run", &job, "--data-dir", &agent.dir()])?;
    ensure!(said.code == 0 && said.out.starts_with("done") && said.out.contains("wrote"), "{said:?}");
    let result = folder.join("shakespeare");
    for name in ["model.safetensors", "shakespeare.gguf"] {
        let length = fs::metadata(result.join(name)).with_context(|| name.to_owned())?.len();
        ensure!(length > 10_000, "{name} has {length} bytes");
    }
    let report: Value = serde_json::from_slice(&fs::read(result.join("report.json"))?)?;
    // Two outer steps of three inner ones of two sequences.
    ensure!(
        report["sequences"]["to"] == 12
            && report["sequences"]["left_out"].as_array().is_some_and(Vec::is_empty),
        "{report}"
    );
    let drawn = fs::read_to_string(result.join("curve.svg"))?;
    ensure!(drawn.starts_with("<svg") && drawn.contains("held out"), "{drawn}");
    let curve = fs::read_to_string(result.join("curve.jsonl"))?;
    let points: Vec<Value> = curve.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let rounds: Vec<Option<u64>> = points.iter().map(|point| point["round"].as_u64()).collect();
    // So small a job may be done before the coordinator told of every step.
    ensure!(rounds.is_sorted() && rounds.last() == Some(&Some(2)), "{curve}");
    ensure!(points.iter().all(|point| point["held_out_micronats"].as_i64() > Some(0)), "{curve}");

    // The comment below it is a job as well: serve what was trained.
    let serving = text.split("# A serving job").nth(1).and_then(|rest| rest.split("\n\n").next());
    let serve: String = serving
        .context("no serving job in the example")?
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.contains(" = "))
        .map(|line| format!("{line}\n"))
        .collect();
    let path = folder.join("serve.toml");
    // The model is too small for three stages, and for long conversations.
    fs::write(&path, set(&set(&serve, "stages", "2")?, "context", "32")?)?;
    let path = path.display().to_string();
    let said = run(&["run", &path, "--data-dir", &agent.dir()])?;
    ensure!(said.code == 0 && said.out.contains("/v1/completions"), "{said:?}");
    let id = agent.get("/api/jobs")?;
    let serving = id.as_array().into_iter().flatten().find(|job| job["phase"] == "running");
    let id = serving.and_then(|job| job["id"].as_str()).context("it does not serve")?.to_owned();
    let said = run(&["cancel", &id[..12], "--data-dir", &agent.dir()])?;
    ensure!(said.code == 0, "{said:?}");
    agent.job_until(&id, "the end of serving", agents::SOON, |job| job["phase"] == "done")?;

    // Detached, only the id is printed.
    let said = run(&["run", &job, "--detach", "--data-dir", &agent.dir()])?;
    ensure!(said.code == 0 && said.err.is_empty(), "{said:?}");
    agent.job_done(said.out.trim())?;
    network.finish()
}

#[test]
fn bench_prints_numbers_and_knows_what_is_not_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().display().to_string();
    let said = run(&["bench", "--json", "--device", "cpu", "--data-dir", &dir])?;
    ensure!(said.code == 0, "{said:?}");
    let bench = said.json()?;
    ensure!(bench["device"] == "cpu" && bench["reason"].is_string(), "{bench}");
    for key in ["matmul_mflops", "memory_mb_s", "upload_mb_s", "download_mb_s"] {
        ensure!(bench["bench"][key].as_u64() > Some(0), "{key}: {bench}");
    }
    let said = run(&["bench", "--device", "Voodoo2", "--data-dir", &dir])?;
    ensure!(said.code == 1 && said.out.is_empty(), "{said:?}");
    explains(&said.err, &["Voodoo2"])
}
