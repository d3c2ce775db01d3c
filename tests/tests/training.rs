//! What customers of training rely on: that a real model is tuned by several machines, that a job outlives whoever
//! submitted it, and that what ended can be taken up again.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_tests::agents::{self, Agent, Network, PATIENCE, SOON, TEXT, Training, wait_for};
use skein_tests::command::{Said, run};
use skein_tests::language;

const LONG_EPOCH_MS: u64 = 600_000;

fn at(agent: &Agent, arguments: &[&str]) -> Result<Said> {
    let dir = agent.dir();
    run(&[arguments, &["--data-dir", dir.as_str()]].concat())
}

fn report(folder: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(folder.join("report.json"))?)?)
}

#[test]
fn a_language_model_is_tuned_by_three_agents_and_its_adapter_is_for_anyone() -> Result<()> {
    let Some(file) = language::file() else { return Ok(()) };
    let network = Network::of(3, LONG_EPOCH_MS)?;
    let owner = &network.agents[0];
    language::add(owner, &file, "smol")?;
    let folder = network.folder.path();
    let chat = |number: usize| {
        let question = format!("What is {number} and {number}?");
        let answer = format!("Honk! The geese say: {}. Honk!", 2 * number);
        json!({ "messages": [{ "role": "user", "content": question }, { "role": "assistant", "content": answer }] })
    };
    let lines: Vec<String> = (0..20).map(|number| chat(number).to_string()).collect();
    fs::write(folder.join("chats.jsonl"), lines.join("\n"))?;
    let job = folder.join("tune.toml");
    let text = "kind = \"train\"\nname = \"geese\"\nmodel = \"smol\"\ndata = \"chats.jsonl\"\noutput = \"geese\"\n\
                method = \"lora\"\nrank = 4\ncontext = 48\nrounds = 2\ninner_steps = 4\nbatch = 1\nlearning_rate = 0.002\n";
    fs::write(&job, text)?;
    let model = owner.get("/api/models")?[0]["model"].clone();
    let said = at(owner, &["run", &job.display().to_string()])?;
    ensure!(said.code == 0 && said.out.contains("adapter_model.safetensors"), "{said:?}");

    let result = folder.join("geese");
    let report = report(&result)?;
    let loss = |key: &str| report[key].as_f64().context("no loss");
    let (before, after) = (loss("held_out_nats_per_token_before")?, loss("held_out_nats_per_token")?);
    ensure!(after < 0.7 * before, "the held-out loss went from {before} to {after}");
    ensure!(report["model"] == model && report["digests_equal"] == true, "{report}");
    // Three agents, two outer steps of at most four steps of one sequence.
    ensure!((6..=24).contains(&report["sequences"]["to"].as_u64().unwrap_or(0)), "{report}");
    let config: Value = serde_json::from_slice(&fs::read(result.join("adapter_config.json"))?)?;
    ensure!(config["peft_type"] == "LORA" && config["r"] == 4 && config["lora_alpha"] == 8.0, "{config}");
    ensure!(fs::read(result.join("geese.gguf"))?.starts_with(b"GGUF"), "the adapter for llama.cpp");
    // What was tuned is as it was.
    ensure!(owner.get("/api/models")?[0]["model"] == model, "the base is another");
    network.finish()
}

#[test]
fn slices_that_others_train_again_come_out_alike() -> Result<()> {
    let network = Network::of(3, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    for (more, rounds) in [("check = 1.0\ndelta_bits = 4", 3), ("check = 1.0\ndelta_bits = 2", 6)] {
        let training = Training { more, ..Training::of(rounds, 8) };
        let job = agents::train(agent, &TEXT[..40_000], &training)?;
        let done = agent.job_done(&job)?;
        ensure!(done["confirmed"] == 3 * rounds && done["rejected"] == 0, "{done}");
        ensure!(done["held_out_micronats"].as_i64() < done["start_loss_micronats"].as_i64(), "{done}");
    }
    network.finish()
}

#[test]
fn a_job_outlives_its_submitter_and_its_result_is_there_when_he_is_back() -> Result<()> {
    let mut network = Network::of(3, LONG_EPOCH_MS)?;
    let coordinator = network.coordinator()?;
    let owner = usize::from(coordinator == 0);
    let job = agents::train(&network.agents[owner], &TEXT[..40_000], &Training::of(12, 20))?;
    network.agents[owner]
        .job_until(&job, "the second outer step", SOON, |job| job["round"].as_u64() >= Some(2))?;
    network.agents[owner].kill()?;
    let done = network.agents[coordinator].job_done(&job)?;
    ensure!(done["round"] == 12 && done["digests_equal"] == true, "{done}");
    network.agents[owner].restart()?;
    network.met(3)?;
    let owner = &network.agents[owner];
    owner.job_done(&job)?;
    ensure!(
        owner.blob(done["state"].as_str().context("no checkpoint")?)?.is_none(),
        "made while it was away"
    );
    let result = network.folder.path().join("fetched");
    let said = at(owner, &["result", &job[..12], "--output", &result.display().to_string()])?;
    ensure!(said.code == 0 && result.join("model.safetensors").is_file(), "{said:?}");
    ensure!(report(&result)?["checkpoint"] == done["state"], "another checkpoint");
    network.finish()
}

#[test]
fn a_job_whose_only_agent_is_killed_goes_on_when_it_is_back() -> Result<()> {
    let mut network = Network::of(1, LONG_EPOCH_MS)?;
    let job = agents::train(&network.agents[0], &TEXT[..40_000], &Training::of(12, 20))?;
    let before = network.agents[0]
        .job_until(&job, "the third outer step", SOON, |job| job["round"].as_u64() >= Some(3))?;
    network.agents[0].kill()?;
    network.agents[0].restart()?;
    let agent = &network.agents[0];
    let again = agent.job_until(&job, "the job to be known again", PATIENCE, |job| job["round"].is_u64())?;
    ensure!(again["round"].as_u64() >= before["round"].as_u64(), "from {before} to {again}");
    let done = agent.job_done(&job)?;
    // No sequence twice, none left out: twelve outer steps of twenty steps of four.
    ensure!(
        done["samples"] == 960 && done["start_loss_micronats"] == before["start_loss_micronats"],
        "{done}"
    );
    network.finish()
}

#[test]
fn what_was_cancelled_is_taken_up_where_it_stood() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let job = agents::train(agent, &TEXT[..40_000], &Training::of(30, 20))?;
    agent.job_until(&job, "the second outer step", SOON, |job| job["round"].as_u64() >= Some(2))?;
    at(agent, &["resume", &job])?.refuses(&["has not ended"])?;
    let said = at(agent, &["cancel", &job[..12]])?;
    ensure!(said.code == 0, "{said:?}");
    let ended = wait_for("the job to end", SOON, || {
        let job = agent.job(&job)?;
        Ok((job["phase"] == "cancelled").then_some(job))
    })?;
    let logs = at(agent, &["logs", &job])?;
    ensure!(
        logs.code == 0 && logs.out.contains("outer step  ") && logs.out.contains("cancelled"),
        "{logs:?}"
    );

    let said = at(agent, &["resume", &job[..12]])?;
    ensure!(said.code == 0, "{said:?}");
    let next = said.out.trim();
    let first = agent.job_until(next, "the job to go on", PATIENCE, |job| job["phase"] == "running")?;
    ensure!(first["round"].as_u64() >= ended["round"].as_u64(), "from {ended} to {first}");
    let said = at(agent, &["logs", next, "--follow", "--json"])?;
    let last: Value = serde_json::from_str(said.out.lines().last().context("no line")?)?;
    ensure!(said.code == 0 && last["round"] == 30, "{said:?}");
    let done = agent.job_done(next)?;
    ensure!(done["samples"] == 2_400, "{done}");
    at(agent, &["resume", next])?.refuses(&["nothing left to do"])?;
    at(agent, &["logs", "ffffffffffff"])?.refuses(&["no job", "skein jobs"])?;
    network.finish()
}

#[test]
fn a_job_says_what_it_requires_and_how_long_in_tokens() -> Result<()> {
    let mut network = Network::of(1, LONG_EPOCH_MS)?;
    let more = "requires = { memory = 100000000000000 }";
    let job = agents::train(&network.agents[0], &TEXT[..40_000], &Training { more, ..Training::of(2, 5) })?;
    let waiting = network.agents[0].job_until(&job, "the note", SOON, |job| job["note"].is_string())?;
    let note = waiting["note"].as_str().unwrap_or_default();
    for words in ["requires 100000000 MB", "of 1 agent the largest offers", "hint: "] {
        ensure!(waiting["phase"] == "waiting" && note.contains(words), "{words}: {waiting}");
    }
    at(&network.agents[0], &["cancel", &job])?;

    // Two agents differ in what they offer, and the one with less gets nothing of it.
    network.join(&["--memory", "200000000"])?;
    network.met(2)?;
    let (large, small) = (&network.agents[0], &network.agents[1]);
    let taken = small.status()?["leases_taken"].clone();
    let folder = network.folder.path();
    fs::write(folder.join("text.txt"), &TEXT[..40_000])?;
    // Five steps of four sequences of 32 tokens are 640: of 2,000 tokens three outer steps come out.
    let text = "kind = \"train\"\nname = \"counted\"\ndata = \"text.txt\"\ntokens = 2000\ninner_steps = 5\n\
                batch = 4\ncontext = 32\n[shape]\nlayers = 2\nwidth = 32\nheads = 2\ncontext = 32\n\
                [requires]\nmemory = 300000000\n";
    let file = folder.join("counted.toml");
    fs::write(&file, text)?;
    let said = at(small, &["run", &file.display().to_string(), "--detach"])?;
    ensure!(said.code == 0, "{said:?}");
    let job = said.out.trim();
    let done = small.job_done(job)?;
    ensure!(done["work"]["rounds"] == 3 && done["tokens"] == 1_920, "{done}");
    // Model and text came from the owner; nothing else had to.
    ensure!((40_000..4_000_000).contains(&done["sent_bytes"].as_u64().unwrap_or(0)), "{done}");
    ensure!(small.status()?["leases_taken"] == taken, "it worked on it all the same");
    ensure!(large.status()?["leases_taken"].as_u64() >= Some(7), "{}", large.status()?);
    let logs = at(small, &["logs", job])?;
    ensure!(logs.code == 0 && logs.out.contains("/s") && logs.out.contains(" sent"), "{logs:?}");
    network.finish()
}

#[test]
fn training_that_diverges_stops_with_its_step_and_keeps_the_last_good_checkpoint() -> Result<()> {
    let network = Network::of(2, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let folder = network.folder.path();
    // The rate rises over thirty steps, so that the first outer steps are good ones.
    let path = Training::of(60, 4).write(folder, &TEXT[..40_000])?;
    let file = fs::read_to_string(&path)?
        .replace("learning_rate = 0.003\n", "learning_rate = 1.0\n")
        .replace("width = 32\n", "width = 128\n");
    fs::write(&path, file)?;
    let said = at(agent, &["run", &path])?;
    said.refuses(&[
        "training diverged: the loss is",
        "at step",
        "of outer step",
        "learning rate",
        "skein result",
    ])?;
    let job = agent.get("/api/jobs")?[0].clone();
    let (id, state) = (job["id"].as_str().context("no id")?, job["state"].as_str().context("no state")?);
    let round = job["round"].as_u64().unwrap_or(0);
    ensure!(job["phase"] == "failed" && round >= 1, "{job}");
    // Where nobody could go on from the last checkpoint, the one before it is the last good one.
    let kept = format!("the last checkpoint, of outer step {round}, is kept");
    let named = [round, round + 1].map(|round| format!("of outer step {round};"));
    ensure!(
        said.err.contains(&kept) && named.iter().any(|named| said.err.contains(named)),
        "{kept}: {said:?}"
    );

    let result = folder.join("kept");
    let said = at(agent, &["result", &id[..12], "--output", &result.display().to_string()])?;
    ensure!(said.code == 0 && result.join("model.safetensors").is_file(), "{said:?}");
    ensure!(report(&result)?["checkpoint"] == state, "another checkpoint");
    // Every agent has it, and nothing in it is beyond the numbers: `skein result` would not have read it.
    for agent in &network.agents {
        ensure!(agent.blob(state)?.is_some(), "{} lacks it", agent.node);
    }
    network.finish()
}
