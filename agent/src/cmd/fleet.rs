//! `skein fleet`: all rigs of one owner in one table, and orders to them.

mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{print_json, say};
use crate::cli::{DataDir, FleetVerb, PauseTime, Rigs};
use crate::client::Client;
use crate::config::data_dir;
use crate::fleet::{NO_KEY, Obeyed, Overview};
use crate::identity;

/// # Errors
/// When no agent runs there, or no owner's key is there.
pub(crate) fn show(data_dir: DataDir, json: bool) -> Result<ExitCode> {
    let overview: Overview = Client::find(data_dir)?.get_own("/api/fleet")?;
    let Some(key) = overview.key else { bail!("{NO_KEY}") };
    if json {
        print_json(&overview)?
    } else {
        say(table::of(&overview, key).trim_end())?
    }
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// When no agent runs there, or a name is no rig's.
pub(crate) fn run(verb: FleetVerb) -> Result<ExitCode> {
    match verb {
        FleetVerb::Key(data_dir) => key(data_dir),
        FleetVerb::Pause { data_dir, time, gpu, rigs } => {
            let mut rigs = rigs;
            // The first word may be a time or a rig; a rig that is called like a time is named by its node id.
            let time: Option<PauseTime> = time.and_then(|text| {
                let time = text.parse().ok();
                if time.is_none() {
                    rigs.rigs.insert(0, text);
                }
                time
            });
            let mut order = json!({ "gpu": gpu });
            match time {
                Some(PauseTime::For(seconds)) => order["for_s"] = seconds.into(),
                Some(PauseTime::Tomorrow) => order["until"] = "tomorrow".into(),
                None => {}
            }
            tell(data_dir, "pause", order, rigs)
        }
        FleetVerb::Resume { data_dir, rigs } => tell(data_dir, "resume", json!({}), rigs),
        FleetVerb::Finish { data_dir, rigs } => tell(data_dir, "finish", json!({}), rigs),
        FleetVerb::Update { data_dir, version, rigs } => {
            tell(data_dir, "update", json!({ "version": version }), rigs)
        }
        FleetVerb::Forget { data_dir, undo, rig } => forget(data_dir, &rig, undo),
    }
}

/// The key is the answer; what to do with it is the story.
fn key(given: DataDir) -> Result<ExitCode> {
    let directory = data_dir(given.data_dir)?;
    std::fs::create_dir_all(&directory)?;
    let key = hex::encode(identity::owner_or_create(&directory)?.verifying_key().to_bytes());
    say(&key)?;
    eprintln!("Tell each rig once, by this line in its config.toml:");
    eprintln!("  owner = \"{key}\"");
    eprintln!("or by `skein up --owner {key}`.");
    eprintln!(
        "Whoever has {} commands them all: keep it, and a copy of it in a safe place.",
        identity::owner_file(&directory).display()
    );
    Ok(ExitCode::SUCCESS)
}

fn tell(data_dir: DataDir, order: &str, mut body: Value, rigs: Rigs) -> Result<ExitCode> {
    #[derive(Deserialize)]
    struct Told {
        rigs: Vec<Obeyed>,
    }
    if !rigs.rigs.is_empty() {
        body["rigs"] = rigs.rigs.into();
    }
    let told: Told = Client::find(data_dir)?.post(&format!("/api/fleet/{order}"), &body)?;
    let width = told.rigs.iter().map(|rig| rig.name.chars().count()).max().unwrap_or(0);
    let mut failed = 0;
    for rig in &told.rigs {
        match (&rig.error, order) {
            (Some(error), _) => {
                failed += 1;
                eprintln!(
                    "{:<width$}  error: {}",
                    rig.name,
                    error.replace('\n', &format!("\n{:width$}  ", ""))
                );
            }
            (None, "update") => {
                say(&format!("{:<width$}  looks for the version, and changes when it is good", rig.name))?
            }
            (None, _) => {
                say(&format!("{:<width$}  {}", rig.name, rig.headline.as_deref().unwrap_or("done")))?
            }
        }
    }
    if failed > 0 {
        eprintln!(
            "error: {failed} of {} rigs did not obey\nhint: `skein fleet` shows how each of them is",
            told.rigs.len()
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn forget(data_dir: DataDir, rig: &str, undo: bool) -> Result<ExitCode> {
    let answer: Value =
        Client::find(data_dir)?.post("/api/fleet/forget", &json!({ "rig": rig, "undo": undo }))?;
    let node = answer["node"].as_str().and_then(|node| node.get(..12)).unwrap_or_default();
    say(&if undo {
        format!("{node} is shown again once it answers")
    } else {
        format!("{node} is forgotten; `skein fleet forget --undo {node}` shows it again")
    })?;
    Ok(ExitCode::SUCCESS)
}
