//! `skein dashboard`: the agent's page in the owner's browser.

use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;

use super::say;
use crate::cli::DataDir;
use crate::client::Client;

/// Opens the page; where there is no browser, prints its address.
///
/// # Errors
/// When no agent runs there.
pub(crate) fn run(data_dir: DataDir) -> Result<ExitCode> {
    let client = Client::find(data_dir)?;
    // Others on this machine may read the browser's command line.
    let address = client.dashboard()?;
    let (program, first): (&str, &[&str]) = match std::env::consts::OS {
        "windows" => ("rundll32", &["url.dll,FileProtocolHandler"]),
        "macos" => ("open", &[]),
        _ => ("xdg-open", &[]),
    };
    let mut command = Command::new(program);
    command.args(first).arg(&address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) {
        say(&client.url("/"))?;
    } else {
        eprintln!(
            "no browser could be started here; who opens this address may also give orders; it works once, within 30 s:"
        );
        say(&address)?;
    }
    Ok(ExitCode::SUCCESS)
}
