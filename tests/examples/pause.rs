//! How long a worker lives on after its owner wants the machine: trials while an agent trains, from the owner's order to
//! pause, and from the start of a game, to the end of the worker's process, which frees all its memory.
//!
//! `cargo run --release -p skein-tests --example pause [TRIALS]` prints one JSON object; a hundred trials of each take
//! a few minutes. The game is a process that does nothing and says of itself, as Steam's games do, that it is one; that
//! the sensors see others is their tests' matter.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skein_tests::agents::{Agent, Network, PATIENCE, TEXT, Training, train, wait_for};

fn main() -> Result<()> {
    let trials: usize = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    train(agent, &TEXT[..100_000], &Training::of(10_000, 100))?;
    let (mut paused, mut played) = (Vec::new(), Vec::new());
    for _ in 0..trials {
        let process = worker(agent)?;
        let asked = Instant::now();
        agent.order("/api/pause", &json!({}))?;
        gone(&process);
        paused.push(asked.elapsed());
        agent.order("/api/resume", &json!({}))?;
    }
    for _ in 0..trials {
        // The rule is off from one game's end to the next one's start: it would wait longer and longer for the end of a
        // game that comes back so often.
        wait_for("the sensors to see no game", PATIENCE, || {
            let status = agent.status()?;
            let mut sensors = status["policy"]["sensors"].as_array().into_iter().flatten();
            let none = |sensor: &Value| sensor["sensor"] == "game" && sensor["value"] == "none";
            Ok(sensors.any(none).then_some(()))
        })?;
        let process = worker(agent)?;
        agent.order("/api/settings", &json!({ "key": "game", "value": "on" }))?;
        let begun = Instant::now();
        let mut game =
            Command::new("sleep").arg("60").env("SteamAppId", "480").stdin(Stdio::null()).spawn()?;
        gone(&process);
        played.push(begun.elapsed());
        game.kill()?;
        game.wait()?;
        agent.order("/api/settings", &json!({ "key": "game", "value": "off" }))?;
    }
    let told = json!({ "trials": trials, "pause": shares(paused)?, "game": shares(played)? });
    writeln!(std::io::stdout(), "{told:#}")?;
    network.finish()
}

/// The worker's process, in the midst of its work; at another moment each time, because a step takes milliseconds.
fn worker(agent: &Agent) -> Result<PathBuf> {
    let pid = wait_for("work", PATIENCE, || {
        let status = agent.status()?;
        let done = status["leases"][0]["done"].as_u64().is_some_and(|done| done > 0);
        Ok(status["worker"]["pid"].as_u64().filter(|_| done))
    })?;
    Ok(PathBuf::from(format!("/proc/{pid}")))
}

fn gone(process: &std::path::Path) {
    while process.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn shares(mut took: Vec<Duration>) -> Result<Value> {
    took.sort_unstable();
    let at = |share: usize| took.get((took.len() * share).div_ceil(100).saturating_sub(1)).copied();
    let ms = |share| at(share).map(|time| time.as_secs_f64() * 1e3).context("no trials");
    Ok(json!({ "median_ms": ms(50)?, "p99_ms": ms(99)?, "worst_ms": ms(100)? }))
}
