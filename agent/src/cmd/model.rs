//! `skein model add | ls | rm`: the models that this agent's owner offers and uses.
//!
//! The file is read here, by the user who owns it, and handed to the agent piece by piece; the agent never
//! opens a path that somebody names to it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use skein_engine::import;
use skein_engine::manifest::Manifest;

use super::{bytes_text, count_text, print_json, say};
use crate::cli::ModelVerb;
use crate::client::Client;
use crate::serve::registry::Entry;

/// # Errors
/// When no agent runs, or the file is no model.
pub(crate) fn run(verb: ModelVerb) -> Result<ExitCode> {
    match verb {
        ModelVerb::Add { data_dir, path, name, json } => {
            let entry = add(&Client::find(data_dir)?, &path, name)?;
            if json {
                print_json(&entry)?;
            } else {
                say(&format!("added `{}`: {}", entry.name, summary(&entry)))?;
                say(&format!("try `skein chat {}`", entry.name))?;
            }
        }
        ModelVerb::Ls { data_dir, json } => list(&Client::find(data_dir)?, json)?,
        ModelVerb::Rm { data_dir, name } => {
            let entry: Entry =
                Client::find(data_dir)?.post(&format!("/api/models/{name}/remove"), &json!({}))?;
            say(&format!(
                "removed `{}`; its {} are freed when room is needed",
                entry.name,
                bytes_text(entry.bytes)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the model at `path` to the agent under `name`, or one made from the file's.
///
/// # Errors
/// When it is no model, or the agent does not take it.
pub(crate) fn add(client: &Client, path: &Path, name: Option<String>) -> Result<Entry> {
    let name = name.map_or_else(|| name_of(path), Ok)?;
    let model = import::open(path)?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("adding {bar:30} {bytes}/{total_bytes}, {eta} left")?);
    let mut put =
        |bytes: &[u8]| client.put_piece(bytes).map(|digest| digest.0).map_err(std::io::Error::other);
    let vocabulary = import::encode(&model.vocabulary)?;
    let manifest = Manifest::build(model.source.as_ref(), &vocabulary, &mut put, &mut |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let manifest = manifest.with_context(|| format!("cannot add {}", path.display()))?;
    let digest = client.put_piece(manifest.encode()?.as_slice())?;
    client.post("/api/models", &json!({ "name": name, "model": digest }))
}

/// A name from the file's own, less what no name may hold.
fn name_of(path: &Path) -> Result<String> {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let stem = if full.is_dir() { full.file_name() } else { full.file_stem() };
    let text = stem.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let good = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = text.chars().map(good).take(64).collect();
    let name = name.trim_start_matches(['.', '-']).to_ascii_lowercase();
    (!name.is_empty()).then_some(name).with_context(|| {
        format!("no name can be made from {}\nhint: choose one by --name", PathBuf::from(path).display())
    })
}

fn list(client: &Client, json: bool) -> Result<()> {
    let entries: Vec<Entry> = client.get("/api/models")?;
    if json {
        return print_json(&entries);
    }
    if entries.is_empty() {
        return say("no models were added here\nhint: `skein model add FILE.gguf` adds one");
    }
    let widest = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    for entry in &entries {
        say(&format!("{:widest$}  {}", entry.name, summary(entry)))?;
    }
    Ok(())
}

fn summary(entry: &Entry) -> String {
    format!(
        "{} of {} parameters in {}, {}, context {}",
        entry.architecture,
        count_text(entry.parameters),
        entry.weights,
        bytes_text(entry.bytes),
        entry.context
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_file_names() {
        assert_eq!(name_of(Path::new("/x/SmolLM2-135M.Q4_1.gguf")).unwrap(), "smollm2-135m.q4_1");
        assert_eq!(name_of(Path::new("/x/my model (1).gguf")).unwrap(), "my-model--1-");
        assert!(name_of(Path::new("/x/....gguf")).is_err());
    }
}
