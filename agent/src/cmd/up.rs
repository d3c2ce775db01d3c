//! `skein up`: start the agent and stay.

use std::process::ExitCode;

use anyhow::Result;
use tracing_subscriber::EnvFilter;

use crate::cli::UpArgs;
use crate::config::Config;
use crate::daemon;

/// Runs the agent until it is told to leave.
///
/// # Errors
/// What hinders the start, or a disk that no longer takes the log.
pub(crate) fn run(args: UpArgs) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(chosen_lines())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    let config = Config::load(args)?;
    smol::block_on(daemon::run(config))?;
    Ok(ExitCode::SUCCESS)
}

/// Which lines of the log the owner wants: `SKEIN_LOG`, or what is of use to everybody.
pub(crate) fn chosen_lines() -> EnvFilter {
    EnvFilter::try_from_env("SKEIN_LOG").unwrap_or_else(|_| EnvFilter::new("info,quinn=warn,sled=warn"))
}
