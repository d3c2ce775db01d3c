//! What an idle agent costs: resident memory and processor share of each of three daemons that have done a
//! job and have nothing more to do.
//!
//! `cargo run --release -p skein-tests --example idle [SECONDS]` prints one JSON object; it looks for a minute unless it is
//! told otherwise. The bars: each daemon below 60 MB resident and 0.5 % of a core over ten minutes. Linux only: reads `/proc`.
//!
//! Processor time is the scheduler's count in nanoseconds. The older count in ticks is a guess by samples, which errs
//! for programs that timers wake, since timers and samples come at the same moments.

use std::fs;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skein_tests::agents::{Network, model, wait_for};

fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(60), |seconds| seconds.parse())?;
    let network = Network::of(3, 20_000)?;
    model(&network.agents[0], 4, 64)?;
    // An idle worker is ended after half a minute; what is left is the daemon.
    wait_for("the workers to be ended", Duration::from_secs(120), || {
        for agent in &network.agents {
            if !agent.status()?["worker"]["pid"].is_null() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    let pids = network.agents.iter().map(|agent| agent.pid()).collect::<Result<Vec<_>>>()?;
    let before = pids.iter().map(|&pid| processor_ns(pid)).collect::<Result<Vec<_>>>()?;
    let measured = Duration::from_secs(seconds);
    std::thread::sleep(measured);
    let mut daemons = Vec::new();
    for (&pid, before) in pids.iter().zip(before) {
        let spent = Duration::from_nanos(processor_ns(pid)?.saturating_sub(before));
        let share = 100.0 * spent.as_secs_f64() / measured.as_secs_f64();
        daemons.push(json!({ "resident_mb": resident_mb(pid)?, "percent_of_a_core": share }));
    }
    let report: Value = json!({ "seconds": seconds, "daemons": daemons });
    writeln!(std::io::stdout(), "{report:#}")?;
    network.finish()
}

/// What all threads of a process ran so far.
fn processor_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that ended meanwhile is the blocking pool's, which rests.
        let Ok(stat) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += stat.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(sum)
}

fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1_024.0 / 1e6)
}
