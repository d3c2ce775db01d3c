//! Training a model that no machine of the network could hold: several hold it together and train it as one would.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skein_ledger::entry::Entry;
use skein_tests::agents::{self, Agent, Network, PATIENCE, SOON, TEXT, Training, wait_for};

const LONG_EPOCH_MS: u64 = 600_000;

/// Of six layers; f32 pseudo-gradients, so that runs can be compared.
const LARGE: &str = "delta_bits = 32";

/// What training it takes on one machine is about 3.4 MB.
const HALF: &str = "2600000";
const THIRD: &str = "1800000";

fn training(rounds: u32, inner_steps: u32) -> Training {
    Training { layers: 6, more: LARGE, ..Training::of(rounds, inner_steps) }
}

/// A network of so many agents of which each allows so much memory.
fn of(count: usize, memory: &str) -> Result<Network> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    for _ in 0..count {
        network.join(&["--memory", memory])?;
    }
    network.met(count)?;
    Ok(network)
}

fn held_out(job: &Value) -> Result<i64> {
    job["held_out_micronats"].as_i64().with_context(|| format!("no held-out loss: {job}"))
}

/// The layers that an agent had in each shard of a kind, by its log.
fn layers(agent: &Agent, kind: &str) -> Result<Vec<(u16, u16)>> {
    let log = agent.log()?;
    let layers = log.entries().iter().filter_map(|entry| match entry {
        Entry::Receipt(receipt) => {
            let shard = &receipt.unverified().lease.unverified().shard;
            let group = shard.group().filter(|_| shard.kind() == kind)?;
            Some((group.layers().start, group.layers().end))
        }
        Entry::Acceptance(_) => None,
    });
    Ok(layers.collect())
}

/// The kind of the shard that an agent began last, by its story.
fn last_shard(agent: &Agent) -> Option<String> {
    let story = agent.story();
    let line = story.lines().rfind(|line| line.contains("working shard="))?;
    line.split('"').nth(1).map(str::to_owned)
}

#[test]
fn three_that_hold_a_third_each_train_as_one_that_holds_all() -> Result<()> {
    let alone = {
        let network = of(1, "1000000000")?;
        let job = agents::train(&network.agents[0], &TEXT[..40_000], &training(3, 6))?;
        let done = network.agents[0].job_done(&job)?;
        network.finish()?;
        done
    };
    let network = of(3, THIRD)?;
    let job = agents::train(&network.agents[0], &TEXT[..40_000], &training(3, 6))?;
    let done = network.agents[0].job_done(&job)?;
    ensure!(done["round"] == 3 && done["digests_equal"] == true, "{done}");
    ensure!(done["samples"] == alone["samples"] && done["tokens"] == alone["tokens"], "{done}\n{alone}");
    let (first, one) = (&done["start_loss_micronats"], &alone["start_loss_micronats"]);
    ensure!(
        first.as_i64().context("no loss")?.abs_diff(one.as_i64().context("no loss")?) < 100,
        "{first} {one}"
    );
    let (together, one) = (held_out(&done)?, held_out(&alone)?);
    // In nats: 0.0005 between runs that round in different orders.
    ensure!(together.abs_diff(one) < 500, "held-out {together} together, {one} alone");
    ensure!(
        one < alone["start_loss_micronats"].as_i64().unwrap_or(0) - 100_000,
        "nothing was learnt: {alone}"
    );
    let mut held: Vec<(u16, u16)> = Vec::new();
    for agent in &network.agents {
        let trained = layers(agent, "train")?;
        ensure!(trained.len() == 3 && trained.windows(2).all(|pair| pair[0] == pair[1]), "{trained:?}");
        ensure!(layers(agent, "judge")?.len() == 2, "each judges its layers of the start and of the end");
        held.push(trained[0]);
    }
    held.sort_unstable();
    ensure!(held[0].0 == 0 && held[2].1 == 6 && held[0].1 == held[1].0 && held[1].1 == held[2].0, "{held:?}");
    network.finish()
}

#[test]
fn a_member_that_is_killed_is_replaced_and_the_job_ends() -> Result<()> {
    let mut network = of(3, HALF)?;
    let coordinator = network.coordinator()?;
    let job = agents::train(&network.agents[coordinator], &TEXT[..40_000], &training(3, 500))?;
    let owner = &network.agents[coordinator];
    owner.job_until(&job, "the first outer step", PATIENCE, |job| job["round"].as_u64() >= Some(1))?;
    // Two of three form a group; one of them is not the coordinator, and is in the midst of its slice.
    let victim = wait_for("a member at work", SOON, || {
        let job = network.agents[coordinator].job(&job)?;
        if !job["step"].as_u64().is_some_and(|step| (40..450).contains(&step)) {
            return Ok(None);
        }
        let trains = |at: &usize| last_shard(&network.agents[*at]).as_deref() == Some("train");
        Ok((0..3).filter(|at| *at != coordinator).find(trains))
    })?;
    network.agents[victim].kill()?;
    let done = network.agents[coordinator].job_done(&job)?;
    ensure!(done["round"] == 3 && done["digests_equal"] == true, "{done}");
    ensure!(done["regrants"].as_u64() >= Some(1), "nothing had to be granted again: {done}");
    // Three outer steps of 500 steps of four, none of them twice.
    ensure!(done["samples"] == 6_000 && done["left_out"] == serde_json::json!([]), "{done}");
    held_out(&done)?;
    network.finish()
}

#[test]
fn what_not_even_all_together_can_hold_says_how_much_is_missing() -> Result<()> {
    let network = of(2, "900000")?;
    let agent = &network.agents[0];
    let job = agents::train(agent, &TEXT[..40_000], &training(1, 1))?;
    let waiting = agent.job_until(&job, "a note", SOON, |job| job["note"].is_string())?;
    let note = waiting["note"].as_str().unwrap_or_default();
    ensure!(
        note.contains("MB on one device") && note.contains("2 agents together have too little"),
        "{note}"
    );
    network.finish()
}
