//! What an idle agent costs: resident memory and processor share of each of three daemons that have done a
//! job and have nothing more to do.
//!
//! `cargo run --release -p skein-tests --example idle` prints one JSON object. The bars: each daemon below 60 MB
//! resident and 1 % of a core. Linux only: reads `/proc`.

use std::fs;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skein_tests::agents::{Network, model, wait_for};

const MEASURED: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
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
    let before = pids.iter().map(|&pid| ticks(pid)).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(MEASURED);
    let mut daemons = Vec::new();
    for (&pid, before) in pids.iter().zip(before) {
        let ticks = ticks(pid)?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "for display")]
        // Linux counts 100 ticks a second on every architecture that we build for.
        let share = ticks as f64 / MEASURED.as_secs_f64();
        daemons.push(json!({ "resident_mb": resident_mb(pid)?, "percent_of_a_core": share }));
    }
    let report: Value = json!({ "seconds": MEASURED.as_secs(), "daemons": daemons });
    writeln!(std::io::stdout(), "{report:#}")?;
    network.finish()
}

fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; the fields after it are counted from 3.
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("an unreadable stat")?.1.split_whitespace().collect();
    let field =
        |number: usize| -> Result<u64> { Ok(fields.get(number - 3).context("a short stat")?.parse()?) };
    Ok(field(14)? + field(15)?)
}

fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1_024.0 / 1e6)
}
