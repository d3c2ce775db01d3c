//! `skein run`: submit a job described by a TOML file, and follow it to its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use skein_proto::ids::{Digest, JobId};
use skein_proto::job::{JobSpec, Shape, TrainSpec, Work};
use skein_proto::message::{JobStatus, Phase};

use super::batch::Batch;
use super::jobs::{nats_text, phase_text};
use super::say;
use crate::cli::DataDir;
use crate::client::Client;
use crate::daemon::curve::Point;
use crate::limits::{BATCH_AT_ONCE, BATCH_AT_ONCE_MAX};
use crate::serve::desk::ServeOrder;

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
delta_bits = 4                  # of what agents send each other per weight and round: 4, 8 or 32
seed = 1
[shape]                         # a byte-level GPT
layers = 6
width = 128
heads = 4
context = 128

# A serving job looks so. It answers at http://API/v1/completions until `skein jobs --cancel ID`.
# kind = "serve"
# name = "shakespeare"
# model = "shakespeare.safetensors" # also a .gguf file, or a folder as Hugging Face has them
# stages = 3                    # split over so many agents; without it, over as few as can hold it
# context = 8192                # longest conversation in tokens; without it the model's own, up to 8192
# sessions = 4                  # room for so many of that length at once; shorter ones share it

# A batch answers every line of a file in OpenAI's batch format. The same command resumes it after a crash.
# kind = "batch"
# model = "shakespeare"         # the name of a model that was added, or a file as above
# input = "requests.jsonl"      # {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
# output = "answers.jsonl"
# at_once = 16                  # requests under way at once
# replicas = 2                  # serve the model by so many pipelines on different agents, if there are
"#;

/// A job file.
enum JobFile {
    Train(TrainFile),
    Serve(ServeFile),
    Batch(BatchFile),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Train,
    Serve,
    Batch,
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
    #[serde(default = "delta_bits")]
    delta_bits: u8,
    seed: u64,
    shape: Shape,
}

fn delta_bits() -> u8 {
    4
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServeFile {
    #[serde(rename = "kind")]
    _kind: Kind,
    name: String,
    model: PathBuf,
    stages: Option<u16>,
    context: Option<u32>,
    sessions: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchFile {
    #[serde(rename = "kind")]
    _kind: Kind,
    /// The name of a model that was added, or a path.
    model: String,
    input: PathBuf,
    output: PathBuf,
    at_once: Option<usize>,
    replicas: Option<u16>,
}

impl JobFile {
    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        match toml::from_str::<Head>(text)?.kind {
            Kind::Train => toml::from_str(text).map(Self::Train),
            Kind::Serve => toml::from_str(text).map(Self::Serve),
            Kind::Batch => toml::from_str(text).map(Self::Batch),
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
    let (id, wanted) = match file {
        JobFile::Train(file) => train(&client, file, beside)?,
        JobFile::Serve(file) => {
            let entry = super::model::add(&client, &beside.join(file.model), Some(file.name))?;
            let ServeFile { stages, context, sessions, .. } = file;
            (client.serve(&ServeOrder { model: entry.name, stages, context, sessions })?, None)
        }
        JobFile::Batch(file) => return answer_batch(&client, file, beside, output),
    };
    if detach {
        say(&id.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = follow(&client, id)?;
    finish(&client, &ended, output.or(wanted))
}

fn train(client: &Client, file: TrainFile, beside: &Path) -> Result<(JobId, Option<PathBuf>)> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
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
        delta_bits: file.delta_bits,
    });
    let id = client.submit(&JobSpec { name: file.name, nonce: u64::from_le_bytes(nonce), work })?;
    Ok((id, file.output.map(|output| beside.join(output))))
}

/// Serves the model by as many pipelines as asked for, answers the batch, and ends them again.
fn answer_batch(
    client: &Client,
    file: BatchFile,
    beside: &Path,
    output: Option<PathBuf>,
) -> Result<ExitCode> {
    let path = beside.join(&file.model);
    let model = if path.exists() { super::model::add(client, &path, None)?.name } else { file.model };
    let replicas = file.replicas.unwrap_or(0);
    let order = ServeOrder { model, ..ServeOrder::default() };
    let jobs = (0..replicas).map(|_| client.serve(&order)).collect::<Result<Vec<JobId>>>()?;
    let batch = Batch {
        model: order.model,
        input: beside.join(file.input),
        output: output.unwrap_or_else(|| beside.join(file.output)),
        at_once: file.at_once.unwrap_or(BATCH_AT_ONCE).clamp(1, BATCH_AT_ONCE_MAX),
    };
    let answered = super::batch::run(client, &batch);
    for job in jobs {
        let _: serde_json::Value = client.post(&format!("/api/jobs/{job}/cancel"), &())?;
    }
    let (answers, refused) = answered?;
    say(&format!("{answers} answers in {}, {refused} of them refusals", batch.output.display()))?;
    Ok(ExitCode::SUCCESS)
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
                let points: Vec<Point> = client.get(&format!("/api/jobs/{}/metrics", job.id))?;
                let curve = super::curve::write(&path, &job.name, &points)?;
                say(&format!("wrote {}, the loss over tokens", curve.display()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        (phase, _) => bail!("the job ended: {}", phase_text(phase)),
    }
}
