//! `skein jobs`: list the jobs that this agent knows, or end one.

use std::process::ExitCode;

use anyhow::{Result, bail};
use skein_proto::job::Work;
use skein_proto::message::{JobStatus, Phase};

use super::{nats, print_json, say};
use crate::cli::DataDir;
use crate::client::Client;

/// # Errors
/// When no agent runs there, or the id names no job or several.
pub(crate) fn run(data_dir: DataDir, cancel: Option<String>, json: bool) -> Result<ExitCode> {
    let client = Client::find(data_dir)?;
    let jobs: Vec<JobStatus> = client.get("/api/jobs")?;
    if let Some(prefix) = cancel {
        let matching: Vec<&JobStatus> =
            jobs.iter().filter(|job| job.id.to_string().starts_with(&prefix)).collect();
        let [job] = matching.as_slice() else {
            bail!(
                "{} jobs have an id that begins with `{prefix}`\nhint: `skein jobs` lists them",
                matching.len()
            );
        };
        let _: serde_json::Value = client.post(&format!("/api/jobs/{}/cancel", job.id), &())?;
        say(&format!("ending {} ({})", job.name, job.id.short()))?;
    } else if json {
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
    format!("{}  {:<5} {:<20} {:<10} {progress}", job.id.short(), kind, job.name, phase_text(&job.phase))
}

/// A phase in words.
pub(crate) fn phase_text(phase: &Phase) -> String {
    match phase {
        Phase::Waiting => "waiting".into(),
        Phase::Running => "running".into(),
        Phase::Done => "done".into(),
        Phase::Cancelled => "cancelled".into(),
        Phase::Failed { reason } => format!("failed: {reason}"),
    }
}

/// A loss in nats per byte, as text.
pub(crate) fn nats_text(micronats: i64) -> String {
    format!("{:.3}", nats(micronats))
}
