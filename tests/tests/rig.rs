//! A rig: one agent with several devices, a worker for each. None of them stops another.
//!
//! There are no several GPUs here: the workers share the processor, and nothing but their speed differs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_ledger::entry::Entry;
use skein_tests::agents::{self, Agent, Network, PATIENCE, SOON, TEXT, Training, train, wait_for};
use skein_tests::command::{run, signal};

const LONG_EPOCH_MS: u64 = 600_000;

/// A network of one agent with so many workers.
fn rig(workers: usize, more: &[&str]) -> Result<Network> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    let mut arguments = more.to_vec();
    // One is every test agent's.
    for _ in 1..workers {
        arguments.extend(["--device", "cpu"]);
    }
    network.join(&arguments)?;
    network.met(1)?;
    wait_for("every worker to be measured", PATIENCE, || {
        let status = network.agents[0].status()?;
        let open = |worker: &Value| worker["open"] == true;
        let offered = status["offer"]["workers"].as_array().context("no workers")?;
        Ok((offered.len() == workers && offered.iter().all(open)).then_some(()))
    })?;
    Ok(network)
}

/// The shards of a kind that each worker executed to the end, by the log.
fn shards(agent: &Agent, kind: &str) -> Result<BTreeMap<u8, usize>> {
    let mut shards = BTreeMap::new();
    for entry in agent.log()?.entries() {
        if let Entry::Receipt(receipt) = entry {
            let lease = receipt.unverified().lease.unverified();
            if lease.shard.kind() == kind && receipt.unverified().result().is_some() {
                *shards.entry(lease.worker).or_default() += 1;
            }
        }
    }
    Ok(shards)
}

fn workers(agent: &Agent) -> Result<Vec<Value>> {
    Ok(agent.status()?["workers"].as_array().context("no workers")?.clone())
}

#[test]
fn every_worker_of_a_rig_takes_its_part_and_all_are_one_agent() -> Result<()> {
    let network = rig(3, &[])?;
    let agent = &network.agents[0];
    let told = run(&["status", "--data-dir", &agent.dir()])?;
    ensure!(told.out.contains("worker 0") && told.out.contains("worker 2"), "{}", told.out);
    let job = train(agent, &TEXT[..40_000], &Training::of(3, 20))?;
    let done = agent.job_done(&job)?;
    ensure!(done["digests_equal"] == true && done["agents"] == 1, "{done}");
    let trained = shards(agent, "train")?;
    ensure!(trained == BTreeMap::from([(0, 3), (1, 3), (2, 3)]), "{trained:?}");
    // The outer step is the agent's, not each worker's.
    let merged: usize = shards(agent, "merge")?.values().sum();
    ensure!(merged == 3, "{merged} outer steps");
    let pids: BTreeSet<String> = workers(agent)?.iter().map(|worker| worker["pid"].to_string()).collect();
    ensure!(pids.len() == 3, "they are processes of their own: {pids:?}");
    network.finish()
}

#[test]
fn a_worker_that_dies_stops_no_other() -> Result<()> {
    let network = rig(2, &[])?;
    let agent = &network.agents[0];
    // Its slices fail in the first round, the second, and the fourth, since it sits out the third.
    let job = train(agent, &TEXT[..40_000], &Training::of(5, 300))?;
    let mut others = BTreeSet::new();
    for deaths in 1..=3 {
        let victim = wait_for("both at work", PATIENCE, || {
            let workers = workers(agent)?;
            let busy = workers.iter().all(|worker| worker["working"] == true && worker["pid"].is_u64());
            if let Some(pid) = workers[0]["pid"].as_u64() {
                others.insert(pid);
            }
            Ok(workers[1]["pid"].as_u64().filter(|_| busy && workers[1]["deaths"] == deaths - 1))
        })?;
        signal("KILL", u32::try_from(victim)?)?;
        wait_for("its death to be noticed", SOON, || {
            Ok((workers(agent)?[1]["deaths"] == deaths).then_some(()))
        })?;
    }
    let done = agent.job_done(&job)?;
    ensure!(done["round"] == 5 && done["left_out"] == json!([]), "{done}");
    // Three deaths in a row are trouble, until it does some work.
    let next = train(agent, &TEXT[..40_000], &Training::of(3, 20))?;
    agent.job_done(&next)?;
    let workers = wait_for("the end of the trouble", SOON, || {
        Ok(Some(workers(agent)?).filter(|workers| workers.iter().all(|one| one["state"] != "trouble")))
    })?;
    ensure!(workers[0]["deaths"] == 0 && workers[1]["deaths"] == 3, "{workers:?}");
    ensure!(others.len() == 1, "the other's process went on: {others:?}");
    network.finish()
}

#[test]
fn what_fits_no_device_of_a_rig_is_trained_by_all_of_them_together() -> Result<()> {
    let training = Training { layers: 6, more: "delta_bits = 32", ..Training::of(3, 6) };
    // What training it takes on one device is about 3.4 MB.
    let network = rig(2, &["--memory", "2600000"])?;
    let agent = &network.agents[0];
    let job = train(agent, &TEXT[..40_000], &training)?;
    let done = agent.job_done(&job)?;
    ensure!(done["round"] == 3 && done["digests_equal"] == true, "{done}");
    let loss = |key: &str| done[key].as_i64().with_context(|| format!("no {key}: {done}"));
    ensure!(
        loss("held_out_micronats")? < loss("start_loss_micronats")? - 100_000,
        "nothing was learnt: {done}"
    );
    let trained = shards(agent, "train")?;
    ensure!(trained == BTreeMap::from([(0, 3), (1, 3)]), "{trained:?}");
    // What its own workers told each other came from nobody else.
    ensure!(done["sent_bytes"] == 0, "{done}");
    network.finish()
}

#[test]
fn a_rig_serves_a_model_by_stages_on_its_devices() -> Result<()> {
    let network = rig(3, &[])?;
    let agent = &network.agents[0];
    let model = agents::model(agent, 3, 64)?;
    agents::serve(agent, &model, 3)?;
    let ask = json!({ "model": "tiny", "prompt": "To be", "max_tokens": 40, "temperature": 0 });
    let first = agent.order("/v1/completions", &ask)?;
    ensure!(first["usage"]["completion_tokens"] == 40, "{first}");
    let holding = wait_for("three stages", SOON, || {
        let leases = agent.status()?["leases"].as_array().context("no leases")?.clone();
        let stages = leases.iter().filter(|lease| lease["shard"] == "stage");
        let holding: BTreeSet<u64> = stages.filter_map(|lease| lease["worker"].as_u64()).collect();
        Ok((holding.len() == 3).then_some(holding))
    })?;
    ensure!(holding == BTreeSet::from([0, 1, 2]), "{holding:?}");
    // One stage dies in the middle of it, and the same tokens come.
    let victim = workers(agent)?[1]["pid"].as_u64().context("no worker")?;
    signal("KILL", u32::try_from(victim)?)?;
    let second = agent.order("/v1/completions", &ask)?;
    ensure!(second["choices"][0]["text"] == first["choices"][0]["text"], "{first}\n{second}");
    network.finish()
}

#[test]
fn a_pause_stops_every_worker_and_of_the_gpu_alone_none_on_the_processor() -> Result<()> {
    let network = rig(2, &[])?;
    let agent = &network.agents[0];
    let job = train(agent, &TEXT[..40_000], &Training::of(3, 60))?;
    wait_for("both at work", PATIENCE, || {
        Ok(workers(agent)?.iter().all(|worker| worker["working"] == true).then_some(()))
    })?;
    agent.order("/api/pause", &json!({}))?;
    wait_for("both workers' end", SOON, || {
        Ok(workers(agent)?.iter().all(|worker| worker["pid"].is_null()).then_some(()))
    })?;
    let status = agent.status()?;
    let closed = |worker: &Value| worker["open"] == false;
    ensure!(status["offer"]["workers"].as_array().context("no workers")?.iter().all(closed), "{status}");
    ensure!(status["workers"].as_array().context("no workers")?.iter().all(|one| one["state"] == "paused"));
    agent.order("/api/pause", &json!({ "gpu": true }))?;
    agent.job_done(&job)?;
    network.finish()
}
