//! The tray icon for the agent of a data directory, as `skein tray` shows it: `tray DATA_DIRECTORY`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use skein_tray::Agent;

#[derive(serde::Deserialize)]
struct Running {
    api: String,
    token: String,
}

fn find(data_dir: &Path) -> Result<Agent> {
    let hint = format!("hint: `skein up --data-dir {}` starts one", data_dir.display());
    let bytes = std::fs::read(data_dir.join("agent.json"))
        .map_err(|_| anyhow!("no agent runs in {}\n{hint}", data_dir.display()))?;
    let running: Running = serde_json::from_slice(&bytes).context("agent.json is damaged")?;
    Ok(Agent { api: running.api, token: running.token })
}

#[expect(clippy::print_stderr, reason = "an example has nothing else to say it by")]
fn main() -> Result<()> {
    let Some(data_dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        bail!("no data directory given\nhint: tray DATA_DIRECTORY")
    };
    let ended = skein_tray::run(move || find(&data_dir))?;
    eprintln!("{ended}");
    Ok(())
}
