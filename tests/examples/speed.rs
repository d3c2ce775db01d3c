//! Tokens that one agent trains on per second of processor time, on one core, against JAX on the same model and batch.
//!
//! `cargo run --release -p skein-tests --example speed [RUNS]` (3 by default, about a minute each) prints one JSON object.
//! The model is a Llama of 3.3 M weights over bytes, a step 8 sequences of 128 (`tests/yardsticks/llama_jax.py`). What a
//! step costs is the difference between a job of 60 steps and one of 20, so that what surrounds the steps does not count.

use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_tests::agents::{Network, PATIENCE, TEXT};
use skein_tests::command::run;
use skein_tests::yardstick::{jax, median, processor_seconds};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/yardsticks/llama_jax.py");
const TOKENS_PER_STEP: f64 = 8.0 * 128.0;

fn main() -> Result<()> {
    let runs = std::env::args().nth(1).map_or(Ok(3), |text| text.parse::<u32>())?;
    let python = jax()?;
    let network = Network::of(1, 3_600_000)?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let step = (job(&network, 60)? - job(&network, 20)?) / 40.0;
        let yardstick = yardstick(&python)?;
        eprintln!("{step:.3} s a step, JAX {yardstick:.3} s");
        ratios.push(yardstick / step);
        ours.push(TOKENS_PER_STEP / step);
        theirs.push(TOKENS_PER_STEP / yardstick);
    }
    let report = json!({
        "runs": runs, "tokens_per_cpu_second": median(ours)?, "tokens_per_cpu_second_jax": median(theirs)?,
        "ratio": median(ratios)?,
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    network.finish()
}

/// Processor time of the agent and its worker over a job of so many steps.
fn job(network: &Network, steps: u32) -> Result<f64> {
    let agent = &network.agents[0];
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("text.txt"), TEXT)?;
    let file = format!(
        "kind = \"train\"\nname = \"measured\"\ndata = \"text.txt\"\nrounds = 1\ninner_steps = {steps}\nbatch = 8\n\
         context = 128\n[shape]\nlayers = 4\nwidth = 256\nfeed_width = 688\nheads = 4\ncontext = 128\n"
    );
    let path = folder.path().join("train.toml");
    std::fs::write(&path, file)?;
    let before = processor_seconds(agent.pid()?)?;
    let ran = run(&["run", &path.display().to_string(), "--detach", "--data-dir", &agent.dir()])?;
    agent.job_until(ran.out.trim(), "the job's end", PATIENCE * 4, |job| job["phase"] == "done")?;
    Ok(processor_seconds(agent.pid()?)? - before)
}

/// Processor time of a step in JAX, on one core.
fn yardstick(python: &std::path::Path) -> Result<f64> {
    let ran = Command::new("taskset").args(["-c", "0"]).arg(python).arg(SCRIPT).output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let said: Value = serde_json::from_slice(&ran.stdout)?;
    said["cpu_seconds_per_step"].as_f64().with_context(|| format!("no figure in {said}"))
}
