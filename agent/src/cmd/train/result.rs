//! The result of a training job as files that other programs load: a Hugging Face folder with a GGUF file in it, or an
//! adapter in PEFT's layout and llama.cpp's; beside them the loss curve and a report.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use skein_compute::checkpoint::Checkpoint;
use skein_compute::trained::Trained;
use skein_compute::trainee::{TensorSpec, Trainee};
use skein_engine::export::{self, Adapter, ExportError, Part};
use skein_proto::job::{Method, TrainSpec, Work};
use skein_proto::message::JobStatus;

use super::describe;
use crate::client::Client;
use crate::cmd::curve;
use crate::cmd::{nats, say};
use crate::daemon::curve::Point;
use crate::daemon::training::method;

/// Writes the result of `job` into `folder`, which is made if need be, and says what was written.
///
/// # Errors
/// When the agent does not hold it, or a file cannot be written.
pub(crate) fn write(client: &Client, job: &JobStatus, folder: &Path) -> Result<()> {
    for line in save(client, job, folder)? {
        say(&line)?;
    }
    Ok(())
}

/// As [`write`]; the lines to be said.
///
/// # Errors
/// As [`write`].
pub(crate) fn save(client: &Client, job: &JobStatus, folder: &Path) -> Result<Vec<String>> {
    let (Work::Train(spec), Some(state)) = (&job.work, job.state) else {
        bail!("job {} has no checkpoint yet", job.id.short());
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (manifest, vocabulary) = describe(client, spec.model)?;
    let trainee = Trainee::new(manifest.config.clone(), manifest.tied(), method(spec.method))?;
    let path = folder.join(".checkpoint.partial");
    client.get_blob(state, &path)?;
    let read = Checkpoint::read(&path, trainee.tensors());
    let removed = fs::remove_file(&path);
    let checkpoint = read?;
    removed.with_context(|| format!("cannot remove {}", path.display()))?;
    let mut lines = Vec::new();
    match spec.method {
        Method::Full => {
            let weights = Trained::new(&trainee, checkpoint);
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template("writing {bar:30} {bytes}/{total_bytes}")?);
            let mut progress = |done, of| {
                bar.set_length(of);
                bar.set_position(done);
            };
            export::hf(&weights, &vocabulary, folder, &mut progress)?;
            lines.push(format!(
                "wrote {}, in Hugging Face's layout",
                folder.join("model.safetensors").display()
            ));
            // Weights without a tokenizer are worth more than neither.
            lines.extend(told(export::hf_tokenizer(&vocabulary, folder), &folder.join("tokenizer.json"))?);
            let gguf = folder.join(format!("{}.gguf", job.name));
            let written = export::gguf(&job.name, &weights, &vocabulary, &gguf, &mut progress);
            lines.extend(told(written, &gguf)?);
            bar.finish_and_clear();
        }
        Method::Lora { .. } => {
            let base = spec.model.to_string();
            let part = |spec: &TensorSpec, values| Part {
                rows: spec.rows as u64,
                columns: spec.columns as u64,
                values,
            };
            let skein_compute::trainee::Method::Lora { rank, alpha } = trainee.method() else {
                bail!("an adapter without a rank");
            };
            let adapter = Adapter {
                config: &manifest.config,
                base: &base,
                rank,
                alpha,
                tensors: trainee
                    .tensors()
                    .iter()
                    .zip(checkpoint.weights)
                    .map(|(spec, values)| (spec.name.clone(), part(spec, values)))
                    .collect(),
            };
            export::peft_adapter(&adapter, folder)?;
            lines.push(format!(
                "wrote {}, in PEFT's layout",
                folder.join("adapter_model.safetensors").display()
            ));
            let gguf = folder.join(format!("{}.gguf", job.name));
            export::gguf_adapter(&adapter, &gguf)?;
            lines.push(format!("wrote {}, for llama.cpp's --lora", gguf.display()));
        }
    }
    let points: Vec<Point> = client.get(&format!("/api/jobs/{}/metrics", job.id))?;
    let curve = curve::write(folder, &job.name, &points)?;
    lines.push(format!("wrote {}, the loss over tokens", curve.display()));
    let report = folder.join("report.json");
    write_report(&report, job, spec)?;
    lines.push(format!("wrote {}, what was trained on what", report.display()));
    Ok(lines)
}

/// What a format cannot say is told, not fatal.
fn told(written: Result<(), ExportError>, path: &Path) -> Result<Option<String>> {
    match written {
        Ok(()) => Ok(Some(format!("wrote {}", path.display()))),
        Err(error @ ExportError::Unsayable { .. }) => {
            Ok(Some(format!("not written: {}: {error}", path.display())))
        }
        Err(error) => Err(error.into()),
    }
}

fn write_report(path: &PathBuf, job: &JobStatus, spec: &TrainSpec) -> Result<()> {
    let report = json!({
        "job": job.id, "name": job.name, "model": spec.model, "data": spec.data, "checkpoint": job.state,
        "outer_steps": job.round, "tokens": job.tokens, "sent_bytes": job.sent_bytes,
        "held_out_nats_per_token": job.held_out_micronats.map(nats),
        "held_out_nats_per_token_before": job.start_loss_micronats.map(nats),
        // Sequences are numbered in the job's own order, which `seed` fixes.
        "sequences": { "from": 0, "to": job.samples, "left_out": job.left_out, "tokens_each": spec.context, "seed": spec.seed },
        "slices_checked": { "confirmed": job.confirmed, "rejected": job.rejected },
        "agents_refused": job.refused, "shards_granted_again": job.regrants, "digests_equal": job.digests_equal,
        "settings": spec,
    });
    fs::write(path, format!("{report:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}
