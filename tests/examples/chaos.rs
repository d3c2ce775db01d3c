//! Training while processes are killed: every 20 s one of three agents, drawn at random, gets SIGKILL and is started again
//! three seconds later. The job is then run once more undisturbed.
//!
//! `cargo run --release -p skein-tests --example chaos [SECONDS]` (600 by default, and as long again for the undisturbed
//! run) prints one JSON object: both losses, how many processes were killed (coordinators among them), and whether the
//! last checkpoint was held by a survivor each time.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skein_tests::agents::{Network, TEXT, wait_for};
use skein_tests::command::run;
use skein_tests::prng::Prng;

const EVERY: Duration = Duration::from_secs(20);
const AWAY: Duration = Duration::from_secs(3);
const HOURS: Duration = Duration::from_secs(7_200);

fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(600), |text| text.parse::<u64>())?;
    // An outer step takes about four seconds on two cores.
    let rounds = (seconds / 4).max(4);
    let mut network = Network::of(3, 3_600_000)?;
    let mut prng = Prng::new(0x6e65_7374);
    let job = submit(&network, rounds)?;
    let (started, mut kills) = (Instant::now(), Kills::default());
    while Duration::from_secs(seconds) > started.elapsed() {
        std::thread::sleep(EVERY.saturating_sub(AWAY));
        let done =
            network.agents.iter().filter_map(|agent| agent.job(&job).ok()).any(|job| job["phase"] == "done");
        if done {
            break;
        }
        kill_one(&mut network, &job, &mut prng, &mut kills)?;
        std::thread::sleep(AWAY);
        network.agents[kills.last].restart()?;
    }
    let disturbed = finish(&network, &job)?;
    let took = started.elapsed();
    network.finish()?;
    let network = Network::of(3, 3_600_000)?;
    let started = Instant::now();
    let job = submit(&network, rounds)?;
    let undisturbed = finish(&network, &job)?;
    let quiet = started.elapsed();
    network.finish()?;
    let loss = |job: &Value| job["held_out_micronats"].as_f64().map(|loss| loss / 1e6).context("no loss");
    let (with, without) = (loss(&disturbed)?, loss(&undisturbed)?);
    let report = json!({
        "killed": kills.count, "coordinators_killed": kills.coordinators, "checkpoints_lost": kills.lost,
        "outer_steps": disturbed["round"], "regrants": disturbed["regrants"], "digests_equal": disturbed["digests_equal"],
        "samples": disturbed["samples"], "samples_undisturbed": undisturbed["samples"],
        "seconds": took.as_secs_f64(), "seconds_undisturbed": quiet.as_secs_f64(),
        "loss": with, "loss_undisturbed": without, "difference_percent": (with / without - 1.0) * 100.0,
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

#[derive(Default)]
struct Kills {
    count: u32,
    coordinators: u32,
    /// Times that no survivor held the checkpoint that the job had reached.
    lost: u32,
    last: usize,
}

/// Kills an agent, and looks whether the survivors have what the job came to.
fn kill_one(network: &mut Network, job: &str, prng: &mut Prng, kills: &mut Kills) -> Result<()> {
    let coordinator = network.coordinator().ok();
    kills.last = usize::try_from(prng.bits() % 3)?;
    network.agents[kills.last].kill()?;
    kills.count += 1;
    kills.coordinators += u32::from(coordinator == Some(kills.last));
    let mut held = false;
    for (place, agent) in network.agents.iter().enumerate() {
        if place == kills.last {
            continue;
        }
        let told = agent.job(job)?;
        held |= match told["state"].as_str() {
            Some(state) => agent.blob(state)?.is_some(),
            // The first checkpoint is not made yet.
            None => true,
        };
        eprintln!("killed agent {}; the other is at outer step {}", kills.last, told["round"]);
    }
    kills.lost += u32::from(!held);
    Ok(())
}

fn submit(network: &Network, rounds: u64) -> Result<String> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("text.txt"), TEXT)?;
    let file = format!(
        "kind = \"train\"\nname = \"chaos\"\ndata = \"text.txt\"\nrounds = {rounds}\ninner_steps = 20\nbatch = 4\n\
         context = 128\nlearning_rate = 0.003\nseed = 1\n[shape]\nlayers = 4\nwidth = 96\nheads = 4\ncontext = 128\n"
    );
    let path = folder.path().join("train.toml");
    std::fs::write(&path, file)?;
    let agent = &network.agents[0];
    let ran = run(&["run", &path.display().to_string(), "--detach", "--data-dir", &agent.dir()])?;
    Ok(ran.out.trim().to_owned())
}

/// Waits for the end, whoever knows of it.
fn finish(network: &Network, job: &str) -> Result<Value> {
    wait_for("the end of the job", HOURS, || {
        let told = network.agents.iter().filter_map(|agent| agent.job(job).ok());
        let ended = told.into_iter().find(|job| job["phase"] == "done" || job["phase"] == "failed");
        if let Some(job) = &ended {
            anyhow::ensure!(job["phase"] == "done", "the job failed: {job}");
        }
        std::thread::sleep(Duration::from_millis(500));
        Ok(ended)
    })
}
