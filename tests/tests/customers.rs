//! What customers of language models rely on beside the API: that a batch is answered whatever is killed, each request
//! once; and that they can check what they were given.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_ledger::entry::Entry;
use skein_proto::job::Shard;
use skein_tests::agents::{Agent, Network, PATIENCE, serve_file, wait_for};
use skein_tests::command::{Said, run, skein};
use skein_tests::language::{self, ask};

const LONG_EPOCH_MS: u64 = 600_000;
const REQUESTS: usize = 24;

/// A batch of short questions beside the agents; its job file and its output.
fn batch(agent: &Agent) -> Result<(PathBuf, PathBuf)> {
    let folder = agent.data_dir.with_extension("batch");
    fs::create_dir_all(&folder)?;
    let lines: Vec<String> = (0..REQUESTS)
        .map(|number| {
            let body = json!({ "prompt": format!("{number} and {number} is"), "max_tokens": 24, "temperature": 0 });
            json!({ "custom_id": format!("q{number}"), "method": "POST", "url": "/v1/completions", "body": body })
                .to_string()
        })
        .collect();
    fs::write(folder.join("in.jsonl"), lines.join("\n"))?;
    let job = folder.join("batch.toml");
    fs::write(
        &job,
        "kind = \"batch\"\nmodel = \"smol\"\ninput = \"in.jsonl\"\noutput = \"out.jsonl\"\nat_once = 4\n",
    )?;
    Ok((job, folder.join("out.jsonl")))
}

/// Whole lines of the output so far.
fn answers(output: &Path) -> Result<Vec<Value>> {
    let Ok(file) = fs::File::open(output) else { return Ok(Vec::new()) };
    let lines: Vec<String> = BufReader::new(file).lines().collect::<Result<_, _>>()?;
    Ok(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn wait_for_answers(output: &Path, count: usize) -> Result<()> {
    wait_for("answers of the batch", PATIENCE, || Ok((answers(output)?.len() >= count).then_some(())))
}

#[test]
fn a_batch_survives_every_crash_and_answers_each_request_once() -> Result<()> {
    let Some(file) = language::file() else { return Ok(()) };
    let mut network = Network::of(1, LONG_EPOCH_MS)?;
    language::add(&network.agents[0], &file, "smol")?;
    let (job, output) = batch(&network.agents[0])?;
    let (job, dir) = (job.display().to_string(), network.agents[0].dir());
    let arguments = ["run", job.as_str(), "--data-dir", dir.as_str()];

    // The command is killed, and a line of its output cut short, as by a power cut.
    let mut command = skein(&arguments)?.spawn()?;
    wait_for_answers(&output, 3)?;
    command.kill()?;
    command.wait()?;
    let cut = fs::read_to_string(&output)? + "{\"custom_id\": \"q2";
    fs::write(&output, cut)?;

    // The agent is killed under it, and comes back at another address.
    let had = answers(&output)?.len();
    let command = skein(&arguments)?.stdout(std::process::Stdio::piped()).spawn()?;
    wait_for_answers(&output, had + 4)?;
    network.agents[0].kill()?;
    network.agents[0].restart()?;
    let said = Said::of(command.wait_with_output()?)?;
    ensure!(said.code == 0, "{said:?}");
    ensure!(said.out.contains(&format!("{REQUESTS} answers")), "{said:?}");

    let all = answers(&output)?;
    let ids: BTreeSet<&str> = all.iter().filter_map(|answer| answer["custom_id"].as_str()).collect();
    ensure!(
        all.len() == REQUESTS && ids.len() == REQUESTS,
        "{} answers to {} requests",
        all.len(),
        ids.len()
    );
    for answer in &all {
        let response = &answer["response"];
        ensure!(response["status_code"] == 200 && answer["error"].is_null(), "{answer}");
        ensure!(response["body"]["usage"]["completion_tokens"].as_u64() > Some(0), "{answer}");
    }
    let before = fs::read(&output)?;
    ensure!(run(&arguments)?.code == 0 && fs::read(&output)? == before, "a batch that is done is left alone");
    network.finish()
}

/// The kept answers of an agent, as their files.
fn samples(agent: &Agent) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(agent.data_dir.join("samples")) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    Ok(files)
}

fn check(agent: &Agent) -> Result<(i32, Vec<Value>)> {
    let said = run(&["check", "--json", "--data-dir", &agent.dir()])?;
    let findings = said.json()?.as_array().context("no list")?.clone();
    Ok((said.code, findings))
}

#[test]
fn answers_are_checked_against_what_their_agents_committed_to() -> Result<()> {
    let Some(file) = language::file() else { return Ok(()) };
    let network = Network::of(3, LONG_EPOCH_MS)?;
    let door = &network.agents[0];
    let job = serve_file(door, &file, "smol", 3)?;
    // Greedy, sampled, and with drafts that are often right.
    for (prompt, more) in [
        ("The history of the lighthouse", json!({ "temperature": 0, "draft_tokens": 0 })),
        ("Once upon a time", json!({ "temperature": 0.9, "seed": 5 })),
        ("one two three four one two three four one two", json!({ "temperature": 0 })),
    ] {
        let mut body = json!({ "model": "smol", "prompt": prompt, "max_tokens": 80, "ignore_eos": true });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let answer = ask(door, "/v1/completions", &body)?;
        ensure!(answer.status == 200, "{}", answer.head);
    }
    let kept = wait_for("the answers to be kept", PATIENCE, || {
        Ok(Some(samples(door)?).filter(|files| files.len() == 3))
    })?;
    let sample: Value = serde_json::from_slice(&fs::read(&kept[0])?)?;
    let committed =
        sample["claims"][0]["commitment"].as_str().context("nothing was committed to")?.to_owned();
    // One more, in which somebody committed to other states than those behind the answer.
    let mut forged = sample;
    forged["claims"][0]["commitment"] = forged["claims"][1]["commitment"].clone();
    fs::write(door.data_dir.join("samples/forged.json"), forged.to_string())?;

    let (code, findings) = check(door)?;
    let verdicts: Vec<&str> = findings.iter().filter_map(|finding| finding["verdict"].as_str()).collect();
    ensure!(code == 1 && verdicts == ["accepted", "accepted", "accepted", "rejected"], "{findings:#?}");
    for finding in &findings[..3] {
        ensure!(finding["tokens_alike"] == 80 && finding["uncovered"] == 0, "{finding}");
    }
    ensure!(samples(door)?.is_empty(), "what was checked is done with");
    ensure!(door.data_dir.join("samples/forged.rejected").exists(), "what was rejected is evidence");
    ensure!(check(door)? == (0, Vec::new()), "nothing is left to check");

    // What the owner was given is what the last stage signed for.
    door.order(&format!("/api/jobs/{job}/cancel"), &json!({}))?;
    let committed = hex(&committed)?;
    wait_for("the last stage's receipt", PATIENCE, || {
        for agent in &network.agents {
            for entry in agent.log()?.entries() {
                let Entry::Receipt(receipt) = entry else { continue };
                let receipt = receipt.unverified();
                let Shard::Stage { .. } = receipt.lease.unverified().shard else { continue };
                let Some(file) = receipt.outputs.get(1) else { continue };
                let blob = agent.blob(&file.to_string())?.context("the commitments are not held")?;
                return Ok(blob.windows(committed.len()).any(|bytes| bytes == committed).then_some(()));
            }
        }
        Ok(None)
    })?;
    network.finish()
}

fn hex(text: &str) -> Result<Vec<u8>> {
    let pairs = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2).context("half a byte"));
    pairs.map(|pair| Ok(u8::from_str_radix(pair?, 16)?)).collect()
}
