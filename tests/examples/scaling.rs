//! What share of its time an agent trains when the others are far and the line is narrow: two agents, each on a core of its
//! own and behind a line of 100 Mbit/s and 50 ms (`skein_tests::relay`), a Llama of 10.8 M weights, 100 inner steps.
//!
//! `cargo run --release -p skein-tests --example scaling` prints one JSON object, after about ten minutes. What a step
//! takes is seen between the tenth and the ninetieth of each outer step; the rest of an outer step is fetching, merging,
//! judging and waiting. The job is a long one of which the first outer steps are seen, so that its loss is measured as
//! often as a long job's: with some of them and not with the others, all of which count.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skein_tests::agents::TEXT;
use skein_tests::command::run;
use skein_tests::relay::{Line, network};
use skein_tests::yardstick::median;

const LINE: Line = Line { one_way: Duration::from_millis(50), bytes_per_s: 12.5e6 };
const STEPS: u32 = 100;
const ROUNDS: u64 = 1_000;
/// Outer steps that are waited for. The first one is not counted: the agents fetch the model in it.
const SEEN: u64 = 9;

fn main() -> Result<()> {
    let (network, _relays) = network(2, LINE)?;
    let agent = &network.agents[0];
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("text.txt"), TEXT)?;
    let file = format!(
        "kind = \"train\"\nname = \"far\"\ndata = \"text.txt\"\nrounds = {ROUNDS}\ninner_steps = {STEPS}\nbatch = 4\n\
         context = 128\n[shape]\nlayers = 6\nwidth = 384\nheads = 6\ncontext = 128\n"
    );
    let path = folder.path().join("train.toml");
    std::fs::write(&path, file)?;
    let ran = run(&["run", &path.display().to_string(), "--detach", "--data-dir", &agent.dir()])?;
    let job = ran.out.trim().to_owned();
    let (mut steps, mut ends) = (Vec::new(), Vec::new());
    let (mut tenth, mut last, mut round) = (None, 0, 0);
    let weights = loop {
        std::thread::sleep(Duration::from_millis(20));
        let told = agent.job(&job)?;
        if told["round"].as_u64() > Some(round) {
            round = told["round"].as_u64().unwrap_or(0);
            ends.push(Instant::now());
        }
        if round >= SEEN {
            break told["work"]["size"]["trained"].clone();
        }
        ensure!(told["phase"] != "failed", "{told}");
        let status = agent.status()?;
        let leases = status["leases"].as_array().into_iter().flatten();
        let done = leases.filter(|lease| lease["shard"] == "train").find_map(|lease| lease["done"].as_u64());
        let Some(done) = done else { continue };
        if done >= 10 && last < 10 {
            tenth = Some((Instant::now(), done));
        }
        if let Some((at, from)) = tenth.take_if(|_| done >= 90) {
            #[expect(clippy::cast_precision_loss, reason = "at most a hundred")]
            steps.push(at.elapsed().as_secs_f64() / (done - from) as f64);
        }
        last = done;
    };
    run(&["cancel", &job, "--data-dir", &agent.dir()])?;
    let rounds: Vec<f64> = ends.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let round = rounds.iter().sum::<f64>() / rounds.len() as f64;
    let step = median(steps)?;
    let share = step * f64::from(STEPS) / round;
    let point: Value = json!({
        "weights": weights, "step_s": step, "outer_step_s": round, "share_training": share,
        "beside_training_s": round - step * f64::from(STEPS), "outer_steps_s": rounds,
    });
    writeln!(std::io::stdout(), "{point:#}")?;
    network.finish()
}
