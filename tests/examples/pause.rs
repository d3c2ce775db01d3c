//! How long a worker lives on after its owner wants the machine: trials of `pause` while an agent trains, from the request
//! to the end of the worker's process, which frees all its memory.
//!
//! `cargo run --release -p skein-tests --example pause [TRIALS]` prints one JSON object; a hundred trials take a few
//! minutes.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use skein_tests::agents::{Network, PATIENCE, TEXT, Training, train, wait_for};

fn main() -> Result<()> {
    let trials: usize = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    train(agent, &TEXT[..100_000], &Training::of(10_000, 100))?;
    let mut took = Vec::new();
    for _ in 0..trials {
        // In the midst of its work, at another moment each time: a step takes milliseconds.
        let pid = wait_for("work", PATIENCE, || {
            let status = agent.status()?;
            let done = status["leases"][0]["done"].as_u64().is_some_and(|done| done > 0);
            Ok(status["worker"]["pid"].as_u64().filter(|_| done))
        })?;
        let process = std::path::PathBuf::from(format!("/proc/{pid}"));
        let asked = Instant::now();
        agent.order("/api/pause", &json!({}))?;
        while process.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        took.push(asked.elapsed());
        agent.order("/api/resume", &json!({}))?;
    }
    took.sort_unstable();
    let at = |share: usize| took.get((took.len() * share).div_ceil(100).saturating_sub(1)).copied();
    let ms = |share| at(share).map(|time| time.as_secs_f64() * 1e3).context("no trials");
    let told = json!({
        "trials": trials, "median_ms": ms(50)?, "p99_ms": ms(99)?, "worst_ms": ms(100)?,
    });
    writeln!(std::io::stdout(), "{told:#}")?;
    network.finish()
}
