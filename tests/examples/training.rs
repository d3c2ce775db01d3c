//! The same tokens trained by three agents that send each other the largest elements alone after every five steps, by three
//! that send four bits a weight after every 80, by three that send f32 as often, and by one alone: the loss of each, and what
//! is sent.
//!
//! `cargo run --release -p skein-tests --example training [SEEDS] [STEPS]` (3 seeds, 3,600 steps over all agents by default;
//! about 20 minutes a seed on two cores) prints one JSON object. Losses are held-out nats per byte of the demo's text;
//! traffic is counted from the end of the first outer step to the last, so without text and first weights, which are sent
//! once.

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skein_tests::agents::{Network, PATIENCE, TEXT};
use skein_tests::command::run;
use skein_tests::yardstick::median;

const AGENTS: u32 = 3;
const BATCH: u32 = 4;

/// How agents train together.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    bits: u8,
    inner_steps: u32,
}

const SPARSE: Way = Way { name: "sparse", bits: 2, inner_steps: 5 };
const FOUR: Way = Way { name: "four_bits", bits: 4, inner_steps: 80 };
const ALL: Way = Way { name: "f32", bits: 32, inner_steps: 80 };

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let seeds = arguments.next().unwrap_or(Ok(3))?;
    let steps = arguments.next().unwrap_or(Ok(3_600))?;
    let three = Network::of(AGENTS as usize, 3_600_000)?;
    let mut sharded = Vec::new();
    for seed in 1..=seeds {
        let together = |way: Way| train(&three, seed, way, steps / AGENTS / way.inner_steps);
        sharded.push((together(SPARSE)?, together(FOUR)?, together(ALL)?));
    }
    three.finish()?;
    let alone = Network::of(1, 3_600_000)?;
    let (mut of_one, mut of_f32, mut traffic, mut runs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (seed, (sparse, four, all)) in (1..=seeds).zip(&sharded) {
        // One agent takes the steps of all, which are fewer where some were slower.
        let way = Way { name: "one_agent", bits: 32, inner_steps: sparse.steps.div_ceil(24) };
        let one = train(&alone, seed, way, 24)?;
        of_one.push((sparse.loss / one.loss - 1.0) * 100.0);
        of_f32.push((four.loss / all.loss - 1.0) * 100.0);
        traffic.push(sparse.bytes_per_weight_and_step);
        let told = |trained: &Trained| {
            let Trained { loss, steps, bytes_per_weight_and_step } = trained;
            json!({ "loss": loss, "steps": steps, "bytes_per_weight_and_step": bytes_per_weight_and_step })
        };
        runs.push(json!({
            "seed": seed, "sparse": told(sparse), "four_bits": told(four), "f32": told(all), "one_agent": told(&one),
        }));
    }
    alone.finish()?;
    // A ring sends each gradient of four bytes 2 (n - 1) / n times.
    let ring = 4.0 * 2.0 * f64::from(AGENTS - 1) / f64::from(AGENTS);
    let sent = median(traffic)?;
    let report = json!({
        "agents": AGENTS, "runs": runs,
        "four_bits_against_f32_percent": median(of_f32)?, "sparse_against_one_agent_percent": median(of_one)?,
        "sparse_bytes_per_weight_and_step": sent, "less_than_all_reduce_each_step": ring / sent,
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

struct Trained {
    loss: f64,
    /// Sent by each agent.
    bytes_per_weight_and_step: f64,
    /// Of all agents.
    steps: u32,
}

fn train(network: &Network, seed: u32, way: Way, rounds: u32) -> Result<Trained> {
    let Way { name, bits, inner_steps } = way;
    let owner = &network.agents[0];
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("text.txt"), TEXT)?;
    let file = format!(
        "kind = \"train\"\nname = \"measured\"\ndata = \"text.txt\"\nrounds = {rounds}\ninner_steps = {inner_steps}\n\
         batch = {BATCH}\ncontext = 128\nlearning_rate = 0.003\nseed = {seed}\ndelta_bits = {bits}\ncheck = 0.0\n\
         [shape]\nlayers = 6\nwidth = 128\nheads = 4\ncontext = 128\n"
    );
    let path = folder.path().join("train.toml");
    std::fs::write(&path, file)?;
    let ran = run(&["run", &path.display().to_string(), "--detach", "--data-dir", &owner.dir()])?;
    let job = ran.out.trim().to_owned();
    owner.job_until(&job, "the first outer step", PATIENCE * 10, |job| job["round"].as_u64() >= Some(1))?;
    let before = sent(network)?;
    let done = owner.job_until(&job, "the last outer step", PATIENCE * 40, |job| job["phase"] == "done")?;
    let bytes = sent(network)? - before;
    eprintln!("seed {seed}, {name}: {}", done["held_out_micronats"]);
    let loss = done["held_out_micronats"].as_f64().with_context(|| format!("no loss in {done}"))? / 1e6;
    let weights = done["work"]["size"]["trained"].as_f64().context("no size")?;
    let steps = f64::from((rounds - 1) * inner_steps);
    let agents = f64::from(u32::try_from(network.agents.len())?);
    let all = u32::try_from(done["samples"].as_u64().context("no samples")?)? / BATCH;
    Ok(Trained { loss, bytes_per_weight_and_step: bytes / agents / weights / steps, steps: all })
}

/// Bytes that the agents sent since they started.
fn sent(network: &Network) -> Result<f64> {
    let counts = network.agents.iter().map(|agent| {
        let status: Value = agent.status()?;
        status["bytes_sent"].as_f64().with_context(|| format!("no count in {status}"))
    });
    counts.sum()
}
