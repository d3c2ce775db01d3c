//! `skein up`: start the agent and stay.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Error, Result};
use skein_mesh::BindError;
use skein_update::{TRIAL_LEFT, TRIAL_NOT_NOW, is_trial};
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
    #[cfg(windows)]
    if !is_trial() {
        if !daemon::updating::is_kept() {
            return super::keeper::run(&args);
        }
        crate::os::leave_when_input_ends();
    }
    let config = Config::load(args)?;
    tell(&config.data_dir);
    match smol::future::block_on(daemon::run(config)) {
        Ok(()) if is_trial() => Ok(ExitCode::from(TRIAL_LEFT)),
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if is_trial() && is_in_use(&error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(TRIAL_NOT_NOW))
        }
        Err(error) => Err(error),
    }
}

/// Whether a port was in use: no version could have started.
fn is_in_use(error: &Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref::<BindError>(), Some(BindError::InUse { .. }))
            || cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::AddrInUse)
    })
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

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use anyhow::Context;

    use super::*;

    #[test]
    fn a_port_in_use_is_told_from_what_a_version_does_wrong() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind(taken.local_addr().unwrap()).context("cannot serve the local API");
        assert!(is_in_use(&tcp.unwrap_err()));
        let udp = BindError::InUse { address: SocketAddr::from(([127, 0, 0, 1], 1)) };
        assert!(is_in_use(&Error::from(udp).context("cannot start")));
        assert!(!is_in_use(&Error::from(io::Error::from(io::ErrorKind::NotFound))));
    }
}
