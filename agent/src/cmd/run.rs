//! `skein run`: submit a job described by a TOML file, and follow it to its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use skein_proto::ids::{Digest, JobId};
use skein_proto::job::{JobSpec, ServeSpec, Shape, TrainSpec, Work};
use skein_proto::message::{JobStatus, Phase};

use super::jobs::{nats_text, phase_text};
use super::say;
use crate::cli::DataDir;
use crate::client::Client;

const EXAMPLE: &str = r#"# A training job. `skein run train.toml`
kind = "train"
name = "shakespeare"            # also the model's name when it is served
data = "shakespeare.txt"        # any text; the last tenth is held out
output = "shakespeare.safetensors"
rounds = 8                      # outer steps (DiLoCo)
inner_steps = 50                # steps of each agent per outer step
batch = 4                       # sequences per step
learning_rate = 0.003           # AdamW, inside; falls to a fifth over the rounds
outer_rate = 0.7                # Nesterov, outside
outer_momentum = 0.7
seed = 1
[shape]                         # a byte-level GPT
layers = 6
width = 128
heads = 4
context = 128

# A serving job looks so. It answers at http://API/v1/completions until `skein jobs --cancel ID`.
# kind = "serve"
# name = "shakespeare"
# model = "shakespeare.safetensors"
# stages = 3                    # split over at most so many agents
# [shape] as above
"#;

/// A job file.
enum JobFile {
    Train(TrainFile),
    Serve(ServeFile),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Train,
    Serve,
}

/// What is read first. The rest is read by its kind and from the text, not by a tagged enum, whose errors
/// name neither line nor field.
#[derive(Deserialize)]
struct Head {
    kind: Kind,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainFile {
    #[serde(rename = "kind")]
    _kind: Kind,
    name: String,
    data: PathBuf,
    output: Option<PathBuf>,
    rounds: u32,
    inner_steps: u32,
    batch: u32,
    learning_rate: f64,
    outer_rate: f64,
    outer_momentum: f64,
    seed: u64,
    shape: Shape,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServeFile {
    #[serde(rename = "kind")]
    _kind: Kind,
    name: String,
    model: PathBuf,
    stages: u16,
    shape: Shape,
}

impl JobFile {
    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        match toml::from_str::<Head>(text)?.kind {
            Kind::Train => toml::from_str(text).map(Self::Train),
            Kind::Serve => toml::from_str(text).map(Self::Serve),
        }
    }
}

/// # Errors
/// When the file is wrong, no agent runs, or the job fails.
pub(crate) fn run(
    data_dir: DataDir,
    job: Option<PathBuf>,
    example: bool,
    detach: bool,
    output: Option<PathBuf>,
) -> Result<ExitCode> {
    let Some(path) = job.filter(|_| !example) else {
        say(EXAMPLE.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    };
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read the job {}\nhint: `skein run --example` prints one", path.display())
    })?;
    let file = JobFile::parse(&text).with_context(|| {
        format!("{} is not a job file\nhint: `skein run --example` prints one", path.display())
    })?;
    let client = Client::find(data_dir)?;
    let beside = path.parent().unwrap_or(Path::new("."));
    let (spec, wanted) = prepare(&client, file, beside)?;
    let id = client.submit(&spec)?;
    if detach {
        say(&id.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = follow(&client, id)?;
    finish(&client, &ended, output.or(wanted))
}

fn prepare(client: &Client, file: JobFile, beside: &Path) -> Result<(JobSpec, Option<PathBuf>)> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let nonce = u64::from_le_bytes(nonce);
    Ok(match file {
        JobFile::Train(file) => {
            let work = Work::Train(TrainSpec {
                shape: file.shape,
                data: put(client, &beside.join(file.data))?,
                rounds: file.rounds,
                inner_steps: file.inner_steps,
                batch: file.batch,
                learning_rate_millionths: millionths("learning_rate", file.learning_rate)?,
                outer_rate_millionths: millionths("outer_rate", file.outer_rate)?,
                outer_momentum_millionths: millionths("outer_momentum", file.outer_momentum)?,
                seed: file.seed,
            });
            (JobSpec { name: file.name, nonce, work }, file.output.map(|output| beside.join(output)))
        }
        JobFile::Serve(file) => {
            let work = Work::Serve(ServeSpec {
                model: put(client, &beside.join(file.model))?,
                shape: file.shape,
                stages_max: file.stages,
            });
            (JobSpec { name: file.name, nonce, work }, None)
        }
    })
}

fn put(client: &Client, path: &Path) -> Result<Digest> {
    let file = File::open(path).with_context(|| {
        format!("cannot read {}\nhint: paths in a job file are relative to that file", path.display())
    })?;
    client.put_blob(file)
}

fn millionths(field: &str, value: f64) -> Result<u32> {
    let scaled = (value * 1e6).round();
    if !(0.0..=f64::from(u32::MAX)).contains(&scaled) {
        bail!("{field} = {value} is out of range\nhint: from 0 to {}", f64::from(u32::MAX) / 1e6);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    let scaled = scaled as u32;
    Ok(scaled)
}

/// Shows a job's progress until it ends, or until a serving job is ready.
///
/// # Errors
/// When the agent goes away.
fn follow(client: &Client, id: JobId) -> Result<JobStatus> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{bar:30} {msg}")?);
    loop {
        let jobs: Vec<JobStatus> = client.get("/api/jobs")?;
        if let Some(job) = jobs.into_iter().find(|job| job.id == id) {
            show(&bar, &job);
            let ready = matches!(job.work, Work::Serve(_)) && job.phase == Phase::Running;
            if job.phase.is_final() || ready {
                bar.finish_and_clear();
                return Ok(job);
            }
        } else {
            bar.set_message("waiting for the coordinator");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Puts a job's status on a progress bar.
pub(crate) fn show(bar: &ProgressBar, job: &JobStatus) {
    match &job.work {
        Work::Train(train) => {
            let within = u64::from(job.step) * 1_000 / u64::from(job.steps.max(1));
            bar.set_length(u64::from(train.rounds) * 1_000);
            bar.set_position(u64::from(job.round) * 1_000 + within);
            let loss = job.loss_micronats.map_or_else(|| "-".into(), nats_text);
            let held_out = job.held_out_micronats.map_or_else(|| "-".into(), nats_text);
            bar.set_message(format!(
                "outer step {}/{}, {} agents, loss {loss}, held out {held_out} nats per byte",
                job.round, train.rounds, job.agents
            ));
        }
        Work::Serve(_) => {
            bar.set_message(format!("{}: {} stages ready", phase_text(&job.phase), job.stages.len()))
        }
    }
}

fn finish(client: &Client, job: &JobStatus, output: Option<PathBuf>) -> Result<ExitCode> {
    if let (Work::Serve(_), Phase::Running) = (&job.work, &job.phase) {
        say(&format!(
            "serving `{}` over {} stages at {}\nend it with `skein jobs --cancel {}`",
            job.name,
            job.stages.len(),
            client.url("/v1/completions"),
            job.id.short()
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    match (&job.phase, job.state) {
        (Phase::Done, Some(state)) => {
            let loss = job.held_out_micronats.map_or_else(|| "unknown".into(), nats_text);
            say(&format!("done: held-out loss {loss} nats per byte, checkpoint {state}"))?;
            if let Some(path) = output {
                let bytes = client.get_blob(state, &path)?;
                say(&format!("wrote {} ({})", path.display(), super::bytes_text(bytes)))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        (phase, _) => bail!("the job ended: {}", phase_text(phase)),
    }
}
