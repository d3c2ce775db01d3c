//! `skein up`: start the agent and stay.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::UpArgs;
use crate::config::Config;
use crate::daemon;
use crate::story::Story;

/// Runs the agent until it is told to leave.
///
/// # Errors
/// What hinders the start, or a disk that no longer takes the log.
pub(crate) fn run(args: UpArgs) -> Result<ExitCode> {
    let config = Config::load(args)?;
    #[cfg(windows)]
    crate::os::leave_own_console();
    tell(&config.data_dir);
    smol::future::block_on(daemon::run(config))?;
    Ok(ExitCode::SUCCESS)
}

/// From here on what the agent says goes to standard error, and to files that are kept small.
pub(crate) fn tell(data_dir: &Path) {
    let story = Story::open(data_dir);
    let to_file = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(move || story.clone());
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    tracing_subscriber::registry().with(chosen_lines()).with(to_stderr).with(to_file).init();
}

/// Which lines of the log the owner wants: `SKEIN_LOG`, or what is of use to everybody.
fn chosen_lines() -> EnvFilter {
    EnvFilter::try_from_env("SKEIN_LOG").unwrap_or_else(|_| EnvFilter::new("info,quinn=warn,sled=warn"))
}
