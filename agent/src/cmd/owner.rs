//! `skein pause`, `resume`, `finish`, `set` and `get`: the owner's word.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use serde_json::{Map, Value, json};
use skein_policy::{Settings, View};

use super::{print_json, say};
use crate::cli::{DataDir, PauseTime};
use crate::client::Client;
use crate::daemon::RUNNING_FILE;
use crate::daemon::owner::{keep, load, preset, settings_file};

/// # Errors
/// When no agent runs there.
pub(crate) fn pause(data_dir: DataDir, time: Option<PauseTime>, gpu: bool) -> Result<ExitCode> {
    let mut order = json!({ "gpu": gpu });
    match time {
        Some(PauseTime::For(seconds)) => order["for_s"] = seconds.into(),
        Some(PauseTime::Tomorrow) => order["until"] = "tomorrow".into(),
        None => {}
    }
    tell(data_dir, "/api/pause", &order)
}

/// # Errors
/// When no agent runs there.
pub(crate) fn resume(data_dir: DataDir) -> Result<ExitCode> {
    tell(data_dir, "/api/resume", &json!({}))
}

/// # Errors
/// When no agent runs there.
pub(crate) fn finish(data_dir: DataDir) -> Result<ExitCode> {
    tell(data_dir, "/api/finish", &json!({}))
}

fn tell(data_dir: DataDir, path: &str, order: &Value) -> Result<ExitCode> {
    let view: View = Client::find(data_dir)?.post(path, order)?;
    say(&describe(&view))?;
    Ok(ExitCode::SUCCESS)
}

/// The state, and every reason why it is not another.
pub(crate) fn describe(view: &View) -> String {
    let reasons = view.reasons.iter().map(|reason| format!("\n  {}", reason.line));
    std::iter::once(view.headline.clone()).chain(reasons).collect()
}

/// Changes a setting of the running agent, or of one that does not run.
///
/// # Errors
/// When there is no such setting, or it cannot have that value.
pub(crate) fn set(data_dir: DataDir, key: &str, value: &str) -> Result<ExitCode> {
    let directory = crate::config::data_dir(data_dir.data_dir)?;
    let text = match running(&directory)? {
        Some((client, _)) => {
            let settings: Map<String, Value> =
                client.post("/api/settings", &json!({ "key": key, "value": value }))?;
            settings.get(key).and_then(Value::as_str).unwrap_or(value).to_owned()
        }
        None => {
            let path = settings_file(&directory);
            let mut settings = load(&path, Settings::default())?;
            settings.set(key, value)?;
            std::fs::create_dir_all(&directory)?;
            keep(&path, &settings, key)?;
            settings.get(key)?
        }
    };
    say(&format!("{key} = {text}"))?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// When there is no such setting.
pub(crate) fn get(data_dir: DataDir, key: Option<&str>, json: bool) -> Result<ExitCode> {
    let directory = crate::config::data_dir(data_dir.data_dir)?;
    let settings = match running(&directory)? {
        Some((_, told)) => {
            let mut settings = Settings::default();
            for (key, value) in &told {
                let value = value.as_str().ok_or_else(|| anyhow!("the agent's settings are no texts"))?;
                settings.set(key, value)?;
            }
            settings
        }
        None => load(&settings_file(&directory), preset(false))?,
    };
    match (key, json) {
        (Some(key), false) => say(&settings.get(key)?)?,
        (Some(key), true) => print_json(&json!({ key: settings.get(key)? }))?,
        (None, true) => {
            let all: Map<String, Value> =
                settings.all().into_iter().map(|(key, value, _)| (key.to_owned(), value.into())).collect();
            print_json(&all)?;
        }
        (None, false) => {
            for (key, value, meaning) in settings.all() {
                say(&format!("{key:<22} {value:<12} {meaning}"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The agent that runs there and its settings; nothing if none runs.
///
/// # Errors
/// When one runs and does not answer: what is written to its file then, it would not read.
fn running(directory: &Path) -> Result<Option<(Client, Map<String, Value>)>> {
    if !directory.join(RUNNING_FILE).exists() {
        return Ok(None);
    }
    let asked = Client::of(directory).and_then(|client| {
        let settings = client.get("/api/settings")?;
        Ok(Some((client, settings)))
    });
    // One that was killed leaves its file, but not its lock.
    if asked.is_err() && crate::daemon::runs_nowhere(directory) { Ok(None) } else { asked }
}
