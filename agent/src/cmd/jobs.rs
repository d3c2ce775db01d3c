//! `skein jobs | logs | cancel | resume | result`: the jobs that an agent knows, and what can be done with one.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use skein_proto::job::Work;
use skein_proto::message::{JobStatus, Phase};

use super::{bytes_text, count_text, harmless, nats, print_json, say, train};
use crate::cli::{DataDir, JobChoice};
use crate::client::Client;
use crate::daemon::curve::Point;
use crate::fleet::plain;
use crate::limits::RIG_TEXT_CHARS_MAX;

/// # Errors
/// When no agent runs there.
pub(crate) fn list(data_dir: DataDir, json: bool) -> Result<ExitCode> {
    let jobs: Vec<JobStatus> = Client::find(data_dir)?.get("/api/jobs")?;
    if json {
        print_json(&jobs)?;
    } else if jobs.is_empty() {
        say("no jobs; `skein run JOB.toml` submits one")?;
    } else {
        for job in &jobs {
            say(&line(job))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// When no agent runs there, the id names no job or several, or the job does not train.
pub(crate) fn logs(choice: JobChoice, follow: bool, json: bool) -> Result<ExitCode> {
    let (client, mut job) = find(choice)?;
    if !matches!(job.work, Work::Train(_)) {
        bail!("job {} does not train, so it has no outer steps to tell of", job.id.short());
    }
    let mut told = 0;
    loop {
        let points: Vec<Point> = client.get(&format!("/api/jobs/{}/metrics", job.id))?;
        for (number, point) in points.iter().enumerate().skip(told) {
            let before = number.checked_sub(1).and_then(|before| points.get(before));
            say(&if json { serde_json::to_string(point)? } else { point_text(point, before) })?;
        }
        told = points.len();
        if !follow || job.phase.is_final() {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
        job = client.get(&format!("/api/jobs/{}", job.id))?;
    }
    if !json {
        say(&line(&job))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An outer step in one line; `before` is the point before it, since which its tokens came.
fn point_text(point: &Point, before: Option<&Point>) -> String {
    let rate = before.and_then(|before| {
        let tokens = point.tokens.checked_sub(before.tokens)?;
        tokens.saturating_mul(1_000).checked_div(point.at_ms.since(before.at_ms))
    });
    let loss = |loss: Option<i64>| loss.map_or_else(|| "-".to_owned(), nats_text);
    format!(
        "outer step {:>4}  {:>8} tokens  {:>6}/s  {:>10} sent  {:>2} agents  loss {}  held out {}",
        point.round,
        count_text(point.tokens),
        rate.map_or_else(|| "-".to_owned(), count_text),
        bytes_text(point.sent_bytes),
        point.agents,
        loss(point.loss_micronats),
        loss(point.held_out_micronats)
    )
}

/// # Errors
/// When the id names no job or several, or the job is another owner's.
pub(crate) fn cancel(choice: JobChoice) -> Result<ExitCode> {
    let (client, job) = find(choice)?;
    let _: Value = client.post(&format!("/api/jobs/{}/cancel", job.id), &())?;
    say(&format!("ending {} ({})", job.name, job.id.short()))?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// When the id names no job or several, or the job was not ordered here or is not to be resumed.
pub(crate) fn resume(choice: JobChoice) -> Result<ExitCode> {
    let (client, job) = find(choice)?;
    let answer: Value = client.post(&format!("/api/jobs/{}/resume", job.id), &json!({}))?;
    say(answer["id"].as_str().unwrap_or_default())?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// When the id names no job or several, or its checkpoint is nowhere to be had.
pub(crate) fn result(choice: JobChoice, output: &std::path::Path) -> Result<ExitCode> {
    let (client, job) = find(choice)?;
    train::result::write(&client, &job, output)?;
    Ok(ExitCode::SUCCESS)
}

/// The one job whose id begins so.
fn find(choice: JobChoice) -> Result<(Client, JobStatus)> {
    let client = Client::find(choice.data_dir)?;
    let jobs: Vec<JobStatus> = client.get("/api/jobs")?;
    let prefix = choice.id;
    let mut matching: Vec<JobStatus> =
        jobs.into_iter().filter(|job| job.id.to_string().starts_with(&prefix)).collect();
    match (matching.pop(), matching.len()) {
        (Some(job), 0) => Ok((client, job)),
        (None, _) => bail!("no job has an id that begins with `{prefix}`\nhint: `skein jobs` lists them"),
        (Some(_), more) => {
            bail!("{} jobs have an id that begins with `{prefix}`\nhint: give more digits", more + 1)
        }
    }
}

/// One job in one line.
fn line(job: &JobStatus) -> String {
    let (kind, progress) = match &job.work {
        Work::Train(train) => {
            let loss = job
                .held_out_micronats
                .map_or_else(String::new, |loss| format!(", held-out loss {}", nats_text(loss)));
            let refused = match job.refused.len() {
                0 => String::new(),
                count => format!(", work of {count} agents refused"),
            };
            ("train", format!("outer step {} of {}{loss}{refused}", job.round, train.rounds))
        }
        Work::Serve(_) => ("serve", format!("{} stages ready", job.stages.len())),
    };
    // In one line, whatever its owner called it.
    let name = plain(&job.name, RIG_TEXT_CHARS_MAX);
    format!("{}  {:<5} {:<20} {:<10} {progress}", job.id.short(), kind, name, phase_text(&job.phase))
}

/// A phase in words.
pub(crate) fn phase_text(phase: &Phase) -> String {
    match phase {
        Phase::Waiting => "waiting".into(),
        Phase::Running => "running".into(),
        Phase::Done => "done".into(),
        Phase::Cancelled => "cancelled".into(),
        Phase::Failed { reason } => format!("failed: {}", harmless(reason)),
    }
}

/// A loss in nats per token, as text.
pub(crate) fn nats_text(micronats: i64) -> String {
    format!("{:.3}", nats(micronats))
}
