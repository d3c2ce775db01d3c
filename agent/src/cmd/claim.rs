//! `skein claim`: claim the last epoch that closed. The agent does so by itself; this shows or hastens it.

use std::process::ExitCode;

use anyhow::Result;

use super::{print_json, say};
use crate::cli::DataDir;
use crate::client::Client;
use crate::daemon::status::ClaimState;

/// # Errors
/// When no agent runs there.
pub(crate) fn run(data_dir: DataDir, dry_run: bool, json: bool) -> Result<ExitCode> {
    let client = Client::find(data_dir)?;
    let state: ClaimState = client.post(&format!("/api/claim?dry_run={dry_run}"), &())?;
    if json {
        print_json(&state)?
    } else {
        say(&state.message)?
    }
    Ok(ExitCode::SUCCESS)
}
