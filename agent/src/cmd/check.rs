//! `skein check`: runs kept answers again and compares with what their agents committed to.
//!
//! Needs no running agent, only the model that was added here. An answer that passes is done with and removed; one that
//! does not is set aside under another name, as evidence.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use skein_engine::recheck::recheck;
use skein_engine::stage::Stage;
use skein_engine::toploc::Comparison;
use skein_mesh::BlobStore;
use skein_proto::ids::{Digest, NodeId};

use super::eval::{device, pieces, threads, whole};
use super::{print_json, say};
use crate::cli::CheckArgs;
use crate::serve::samples::{Sample, Samples};

/// An answer that cannot be told is neither accepted nor rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Accepted,
    Rejected,
    Unknown,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding {
    file: PathBuf,
    verdict: Verdict,
    agents: Vec<NodeId>,
    model: String,
    /// Tokens of the answer.
    tokens: usize,
    /// Those that the re-run chose too.
    tokens_alike: usize,
    /// Tokens whose states nobody committed to.
    uncovered: usize,
    /// Fewest of the 128 elements of a commitment whose sign and exponent agree.
    agreeing_min: usize,
    /// Largest mean and median difference of their fractions, in units of the last of 7 bits.
    mean_max: f32,
    median_max: f32,
    /// Why it cannot be told.
    reason: Option<String>,
}

/// # Errors
/// When there is nothing to check, or nothing to check it with.
pub(crate) fn run(args: CheckArgs) -> Result<ExitCode> {
    let data_dir = crate::config::data_dir(args.data_dir.data_dir)?;
    let samples = Samples::new(&data_dir);
    let mut models: BTreeMap<Digest, Vec<(PathBuf, Sample)>> = BTreeMap::new();
    for file in samples.files().with_context(|| format!("cannot look into {}", data_dir.display()))? {
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        match serde_json::from_slice::<Sample>(&text) {
            Ok(sample) => models.entry(sample.model).or_default().push((file, sample)),
            Err(error) => tracing::warn!(file = %file.display(), %error, "a kept answer is left out"),
        }
    }
    if models.is_empty() && !args.json {
        say("no answers wait to be checked\nhint: ask a model something through this agent first")?;
        return Ok(ExitCode::SUCCESS);
    }
    let device = device(&args.processor.device)?;
    let store = BlobStore::open(data_dir.join("blobs"))?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("checking {bar:30} {pos}/{len} answers, {eta} left")?);
    bar.set_length(models.values().map(Vec::len).sum::<usize>() as u64);
    let mut findings = Vec::new();
    for (model, samples) in models {
        let longest = samples.iter().map(|(_, sample)| sample.prompt.len() + sample.answer.len()).max();
        let context = longest.and_then(|longest| u32::try_from(longest).ok()).unwrap_or(1);
        let mut stage = pieces(&store, model)
            .and_then(|source| whole(&source, &device, threads(args.processor.threads), context, 1))
            .map_err(|error| format!("{error:#}"));
        for (file, sample) in samples {
            let finding = match &mut stage {
                Ok(stage) => check(stage, file, &sample),
                Err(reason) => Finding::unknown(file, &sample, reason.clone()),
            };
            finding.settle()?;
            findings.push(finding);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if args.json {
        print_json(&findings)?;
    } else {
        for finding in &findings {
            say(&finding.text())?;
        }
    }
    let rejected = findings.iter().filter(|finding| finding.verdict == Verdict::Rejected).count();
    if !args.json {
        say(&format!("{rejected} of {} answers rejected", findings.len()))?;
    }
    let unknown = findings.iter().any(|finding| finding.verdict == Verdict::Unknown);
    Ok(if rejected > 0 || unknown { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn check(stage: &mut Stage, file: PathBuf, sample: &Sample) -> Finding {
    let spans: Vec<_> = sample.claims.iter().map(crate::serve::samples::Claim::span).collect();
    let found = match recheck(stage, &sample.prompt, &sample.answer, sample.sampling.into(), &spans) {
        Ok(found) => found,
        Err(error) => return Finding::unknown(file, sample, error.to_string()),
    };
    let passes = found.passes(sample.breaks);
    let compared = || found.spans.iter().flatten();
    let largest = |of: fn(&Comparison) -> f32| compared().map(of).fold(0.0, f32::max);
    Finding {
        verdict: if passes { Verdict::Accepted } else { Verdict::Rejected },
        tokens_alike: found.picks_equal,
        uncovered: found.uncovered,
        agreeing_min: compared().map(|comparison| comparison.agreeing).min().unwrap_or(0),
        mean_max: largest(|comparison| comparison.mean),
        median_max: largest(|comparison| comparison.median),
        reason: None,
        ..Finding::unknown(file, sample, String::new())
    }
}

impl Finding {
    fn unknown(file: PathBuf, sample: &Sample, reason: String) -> Self {
        let mut agents: Vec<NodeId> = sample.claims.iter().map(|claim| claim.agent).collect();
        agents.push(sample.agent);
        agents.sort_unstable();
        agents.dedup();
        Self {
            file,
            verdict: Verdict::Unknown,
            agents,
            model: sample.name.clone(),
            tokens: sample.answer.len(),
            tokens_alike: 0,
            uncovered: 0,
            agreeing_min: 0,
            mean_max: 0.0,
            median_max: 0.0,
            reason: Some(reason),
        }
    }

    /// Removes what is done with, and sets aside what is evidence.
    fn settle(&self) -> Result<()> {
        let done = |path: &Path| match self.verdict {
            Verdict::Accepted => fs::remove_file(path),
            Verdict::Rejected => fs::rename(path, path.with_extension("rejected")),
            Verdict::Unknown => Ok(()),
        };
        done(&self.file).with_context(|| format!("cannot move {}", self.file.display()))
    }

    fn text(&self) -> String {
        let agents: Vec<String> = self.agents.iter().map(|agent| agent.short().to_string()).collect();
        let head = format!("`{}` by {}, {} tokens", self.model, agents.join(", "), self.tokens);
        if let Some(reason) = &self.reason {
            return format!("unknown   {head}: {reason}");
        }
        let verdict = if self.verdict == Verdict::Accepted { "accepted" } else { "rejected" };
        format!(
            "{verdict}  {head}: {} alike, {} uncovered, {} of 128 agree, mean {:.2}, median {:.1}",
            self.tokens_alike, self.uncovered, self.agreeing_min, self.mean_max, self.median_max
        )
    }
}
