//! What an idle agent costs: resident memory and processor share of each of three daemons that have done a
//! job and have nothing more to do.
//!
//! `cargo run --release -p skein-tests --example idle [SECONDS]` prints one JSON object; it looks for a minute unless it is
//! told otherwise. The bars: each daemon below 60 MB resident and 0.5 % of a core over ten minutes. Linux only: reads `/proc`.
//!
//! Processor time is what the kernel counted for the process, with the threads that ended meanwhile: the scheduler's own
//! count, told in hundredths of a second.

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
    let before = pids.iter().map(|&pid| processor_ticks(pid)).collect::<Result<Vec<_>>>()?;
    let measured = Duration::from_secs(seconds);
    std::thread::sleep(measured);
    let mut daemons = Vec::new();
    for (&pid, before) in pids.iter().zip(before) {
        // Linux counts 100 ticks a second on every architecture that we build for.
        let share = f64::from(processor_ticks(pid)?.saturating_sub(before)) / measured.as_secs_f64();
        daemons.push(json!({ "resident_mb": resident_mb(pid)?, "percent_of_a_core": share }));
    }
    let report: Value = json!({ "seconds": seconds, "daemons": daemons });
    writeln!(std::io::stdout(), "{report:#}")?;
    network.finish()
}

fn processor_ticks(pid: u32) -> Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; the fields after it are counted from 3.
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("an unreadable stat")?.1.split_whitespace().collect();
    let field =
        |number: usize| -> Result<u32> { Ok(fields.get(number - 3).context("a short stat")?.parse()?) };
    Ok(field(14)? + field(15)?)
}

fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1_024.0 / 1e6)
}
