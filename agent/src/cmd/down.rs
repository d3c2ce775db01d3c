//! `skein down`: ask the agent to leave, and wait until it has.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::DataDir;
use crate::client::Client;

/// # Errors
/// When no agent runs there.
pub(crate) fn run(data_dir: DataDir) -> Result<ExitCode> {
    let client = Client::find(data_dir)?;
    let _: serde_json::Value = client.post("/api/down", &())?;
    super::say("the agent has left")?;
    Ok(ExitCode::SUCCESS)
}
