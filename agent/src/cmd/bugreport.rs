//! `skein bugreport`: one text file with what helps to find a fault, and nothing that is secret.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{doctor, say};
use crate::cli::DataDir;
use crate::client::Client;
use crate::config::data_dir;
use crate::daemon::status::Status;
use crate::host::Host;
use crate::story;

/// Bytes of the agent's story that go into a report.
const STORY_BYTES: usize = 200_000;

/// Writes the report and says where it is.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn run(directory: DataDir, output: Option<PathBuf>) -> Result<ExitCode> {
    let directory = data_dir(directory.data_dir)?;
    let path = output.unwrap_or_else(|| PathBuf::from("skein-bugreport.txt"));
    let text = hide(&report(&directory), &secrets(&directory));
    std::fs::write(&path, text).with_context(|| {
        format!("cannot write {}\nhint: choose another place by --output", path.display())
    })?;
    say(&format!(
        "{}\nread it before you send it: it names this machine's devices and addresses",
        path.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn report(directory: &Path) -> String {
    let mut text = format!("skein {}\n", crate::version());
    let mut part = |name: &str, value: String| {
        let _ = write!(text, "\n== {name}\n{value}\n");
    };
    let json = |value: serde_json::Result<String>| value.unwrap_or_else(|error| error.to_string());
    part("machine", json(serde_json::to_string_pretty(&Host::look(directory))));
    part("doctor", json(serde_json::to_string_pretty(&doctor::look(directory))));
    let status = Client::of(directory).and_then(|client| client.get::<Status>("/api/status"));
    part(
        "status",
        status
            .map_or_else(|error| format!("{error:#}"), |status| json(serde_json::to_string_pretty(&status))),
    );
    for name in ["config.toml", "policy.toml"] {
        part(name, std::fs::read_to_string(directory.join(name)).unwrap_or_else(|error| error.to_string()));
    }
    for path in story::files(directory).iter().rev() {
        let bytes = std::fs::read(path).unwrap_or_default();
        let last = bytes.get(bytes.len().saturating_sub(STORY_BYTES)..).unwrap_or_default();
        part(&path.display().to_string(), String::from_utf8_lossy(last).into_owned());
    }
    text
}

/// What must never leave this machine, wherever it may have got into the text.
fn secrets(directory: &Path) -> Vec<String> {
    let mut secrets = Vec::new();
    if let Ok(client) = Client::of(directory) {
        secrets.push(client.running().token.clone());
    }
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap_or_default();
    for key in [read("identity.key"), read("owner.key")] {
        secrets.extend(key.split_whitespace().filter(|word| word.len() >= 32).map(str::to_owned));
    }
    secrets.extend(owner_keys(&read("config.toml")));
    let home = std::env::home_dir().map(|home| home.display().to_string());
    secrets.extend(home.filter(|home| home.len() > 1));
    secrets
}

/// The owner's public key, by which his rigs are known to be his, however it is written; also where the file as a whole
/// cannot be read, or names another one in a comment.
fn owner_keys(config: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Known {
        owner: Option<String>,
    }
    let parsed = toml::from_str::<Known>(config).ok().and_then(|known| known.owner);
    let lines = config.lines().filter(|line| line.to_lowercase().contains("owner"));
    let words = lines.flat_map(|line| line.split(|c: char| !c.is_ascii_hexdigit())).map(str::to_owned);
    let keys = parsed.into_iter().chain(words).filter(|key| key.len() >= 32);
    // Elsewhere it is written in small letters.
    keys.flat_map(|key| [key.to_lowercase(), key]).collect()
}

/// Each secret also as JSON writes it, with every backslash doubled.
fn hide(text: &str, secrets: &[String]) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| {
        text.replace(secret.as_str(), "[hidden]").replace(&secret.replace('\\', "\\\\"), "[hidden]")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_nowhere_in_a_report() {
        let folder = tempfile::tempdir().unwrap();
        let key = crate::identity::load_or_create(folder.path()).unwrap();
        let secret = hex::encode(key.to_bytes());
        let owners = hex::encode(crate::identity::owner_or_create(folder.path()).unwrap().to_bytes());
        let told = "ab".repeat(32);
        let story = format!("somebody logged {secret}\nand {owners}\n");
        std::fs::write(folder.path().join("story.log"), story).unwrap();
        std::fs::write(folder.path().join("config.toml"), format!("owner = \"{told}\"\nthreads = 2\n"))
            .unwrap();
        let text = hide(&report(folder.path()), &secrets(folder.path()));
        assert!(
            text.contains("somebody logged [hidden]") && text.contains("owner = \"[hidden]\"\nthreads = 2")
        );
        assert!(![secret, owners, told].iter().any(|secret| text.contains(secret)));
    }

    #[test]
    fn the_owners_key_is_hidden_however_it_is_written() {
        let key = "AB".repeat(32);
        for config in [
            format!("owner = '{key}'\n"),
            format!("owner = \"\"\"{key}\"\"\"\nthreads = 2\n"),
            format!("\"owner\" = \"{key}\" # mine\n"),
            // No valid TOML.
            format!("threads =\nowner = {key}\n"),
            format!("owner: '{key}'\n"),
        ] {
            let text = hide(&format!("{config}seen: {}", key.to_lowercase()), &owner_keys(&config));
            assert!(!text.to_uppercase().contains(&key), "{text}");
            assert!(text.contains("owner"), "{text}");
        }
        assert!(owner_keys("name = 'owner'\nthreads = 2\n").is_empty());
    }

    #[test]
    fn a_home_directory_is_hidden_as_json_writes_it_too() {
        let home = [r"C:\Users\ada".to_owned()];
        let text = hide(r#"C:\Users\ada\skein and {"path": "C:\\Users\\ada\\skein"}"#, &home);
        assert_eq!(text, r#"[hidden]\skein and {"path": "[hidden]\\skein"}"#);
    }
}
