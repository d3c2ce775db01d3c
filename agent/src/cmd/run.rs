//! `skein run`: submit a job described by a TOML file, and follow it to its end.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use skein_proto::ids::JobId;
use skein_proto::job::Work;
use skein_proto::message::{JobStatus, Phase};

use super::batch::Batch;
use super::jobs::{nats_text, phase_text};
use super::train::{self, TrainFile};
use super::{bytes_text, count_text, say};
use crate::cli::DataDir;
use crate::client::Client;
use crate::limits::{BATCH_AT_ONCE, BATCH_AT_ONCE_MAX};
use crate::serve::desk::ServeOrder;

const EXAMPLE: &str = r#"# A training job. `skein run train.toml`
kind = "train"
name = "shakespeare"
data = "shakespeare.txt"        # text; or .jsonl, a line being {"text": "..."} or {"messages": [{"role": "user",
                                # "content": "..."}, {"role": "assistant", "content": "..."}]}; the last tenth is held out
output = "shakespeare"          # a folder: Hugging Face's layout, a GGUF file, the loss curve, a report
rounds = 8                      # outer steps (DiLoCo); or instead `tokens = 200000`: so many outer steps as one agent
                                # alone takes for that
inner_steps = 50                # steps of each agent per outer step; slower agents take fewer
batch = 4                       # sequences per step
context = 128                   # tokens per sequence
learning_rate = 0.003           # AdamW, inside; falls to a fifth over the rounds
outer_rate = 0.7                # Nesterov, outside
outer_momentum = 0.7
delta_bits = 4                  # of what agents send each other per weight and round: 4, 8 or 32; or 2, of the largest
                                # alone, which is so little that they can do it every five steps
check = 0.02                    # the chance that a slice is trained again by another agent and compared
seed = 1
[shape]                         # a new Llama; or, instead of [shape], `model` as below
layers = 6
width = 128
heads = 4
context = 128
# vocabulary = "smollm2"        # the tokens of a model that was added, or of a file; without it, bytes
# [requires]                    # who may work on it; without it, whoever has the memory that it takes
# memory = 8000000000           # that an agent offers at least, in bytes
# gpu = true                    # that it is a GPU's

# Tuning a model that others trained looks so.
# kind = "train"
# name = "answers-like-us"
# model = "smollm2"             # the name of a model that was added, a .gguf file, or a folder as Hugging Face has them
# data = "chats.jsonl"
# output = "answers-like-us"    # of an adapter: PEFT's layout, and a file for llama.cpp's --lora
# method = "lora"               # or "full", to train all weights
# rank = 16
# alpha = 32
# context = 512
# rounds = 4
# inner_steps = 20
# batch = 8
# learning_rate = 0.0003

# A serving job looks so. It answers at http://API/v1/completions until `skein cancel ID`.
# kind = "serve"
# name = "shakespeare"
# model = "shakespeare"         # a folder or a .gguf file
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
    Train(Box<TrainFile>),
    Serve(ServeFile),
    Batch(BatchFile),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
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
            Kind::Train => toml::from_str(text).map(|file| Self::Train(Box::new(file))),
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
        JobFile::Train(file) => {
            let wanted = file.output.as_ref().map(|output| beside.join(output));
            (client.submit(&file.job(&client, beside)?)?, wanted)
        }
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

/// Shows a job's progress until it ends, or until a serving job is ready.
///
/// # Errors
/// When the agent goes away.
fn follow(client: &Client, id: JobId) -> Result<JobStatus> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{bar:30} {msg}")?);
    let mut pace = Pace::default();
    loop {
        let jobs: Vec<JobStatus> = client.get("/api/jobs")?;
        if let Some(job) = jobs.into_iter().find(|job| job.id == id) {
            show(&bar, &job, &mut pace);
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

/// How fast a job trains, over the last looks at it.
#[derive(Default)]
pub(crate) struct Pace {
    looks: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// Looks that count: at three a second, those of the last minute.
    const LOOKS: usize = 180;

    /// Tokens a second, once that can be told; `tokens` are those trained on by `now`.
    fn tokens_per_s(&mut self, now: Instant, tokens: u64) -> Option<u64> {
        // After a slice was lost there are fewer than before.
        self.looks.retain(|(_, before)| *before <= tokens);
        if self.looks.len() >= Self::LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back((now, tokens));
        let (since, before) = self.looks.front()?;
        let ms = u64::try_from(now.duration_since(*since).as_millis()).ok()?;
        (tokens - before).saturating_mul(1_000).checked_div(ms).filter(|rate| *rate > 0)
    }
}

/// Puts a job's status on a progress bar.
pub(crate) fn show(bar: &ProgressBar, job: &JobStatus, pace: &mut Pace) {
    match &job.work {
        Work::Train(train) => {
            let within = u64::from(job.step) * 1_000 / u64::from(job.steps.max(1));
            bar.set_length(u64::from(train.rounds) * 1_000);
            bar.set_position(u64::from(job.round) * 1_000 + within);
            let loss = job.loss_micronats.map_or_else(|| "-".into(), nats_text);
            let held_out = job.held_out_micronats.map_or_else(|| "-".into(), nats_text);
            // With the steps of slices that are not done; whose tokens are not in the status yet.
            let step = u64::from(train.batch) * u64::from(train.context);
            let trained = job.tokens.saturating_add(u64::from(job.step).saturating_mul(step));
            let rate = pace.tokens_per_s(Instant::now(), trained).map_or_else(|| "-".into(), count_text);
            let text = match &job.note {
                Some(note) => format!("{}: {note}", phase_text(&job.phase)),
                None => format!(
                    "outer step {}/{}, {} agents, loss {loss}, held out {held_out} nats per token, {} tokens, {rate}/s, {} sent, {} left",
                    job.round,
                    train.rounds,
                    job.agents,
                    count_text(trained),
                    bytes_text(job.sent_bytes),
                    HumanDuration(bar.eta())
                ),
            };
            bar.set_message(text);
        }
        Work::Serve(_) => {
            bar.set_message(format!("{}: {} stages ready", phase_text(&job.phase), job.stages.len()))
        }
    }
}

fn finish(client: &Client, job: &JobStatus, output: Option<PathBuf>) -> Result<ExitCode> {
    if let (Work::Serve(_), Phase::Running) = (&job.work, &job.phase) {
        say(&format!(
            "serving `{}` over {} stages at {}\nend it with `skein cancel {}`",
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
            say(&format!("done: held-out loss {loss} nats per token, checkpoint {state}"))?;
            if let Some(folder) = output {
                train::result::write(client, job, &folder)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        (phase, state) => {
            let text = phase_text(phase);
            // What failed may say itself what to do.
            let hint = match state.filter(|_| !text.contains("\nhint: ")) {
                Some(_) => format!(
                    "\nhint: the last checkpoint, of outer step {}, is kept: `skein result {id} --output FOLDER` fetches it, `skein resume {id}` goes on from there",
                    job.round,
                    id = job.id.short()
                ),
                None => String::new(),
            };
            bail!("the job ended: {text}{hint}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_job_and_so_is_what_it_has_in_comments() {
        let parsed = JobFile::parse(EXAMPLE).unwrap();
        assert!(matches!(parsed, JobFile::Train(_)));
        // The comments up to the next job are settings of this one.
        let first = EXAMPLE.split("\n\n").next().unwrap();
        let all = first.replace("\n# ", "\n").replace("# A training job. `skein run train.toml`", "");
        let Ok(JobFile::Train(file)) = JobFile::parse(&all) else { panic!("{all}") };
        assert_eq!(file.requires().memory_bytes, 8_000_000_000);
    }

    #[test]
    fn the_pace_is_that_of_the_last_minute_and_never_negative() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(pace.tokens_per_s(at(0), 1_000), None);
        assert_eq!(pace.tokens_per_s(at(10), 6_000), Some(500));
        // Ten thousand tokens less, since a slice was lost.
        assert_eq!(pace.tokens_per_s(at(11), 500), None);
        assert_eq!(pace.tokens_per_s(at(12), 700), Some(200));
        for second in 13..500 {
            pace.tokens_per_s(at(second), 700 + 10 * second);
        }
        assert_eq!(pace.tokens_per_s(at(500), 5_700), Some(10));
    }
}
