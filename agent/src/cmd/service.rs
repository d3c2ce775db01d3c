//! `skein service`: the agent in the care of the platform's service manager.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::ServiceVerb;

/// # Errors
/// When the service manager refuses, or this platform's is not supported.
#[cfg(windows)]
pub(crate) fn run(verb: ServiceVerb) -> Result<ExitCode> {
    use super::service_windows;
    match verb {
        ServiceVerb::Install(data_dir) => service_windows::install(data_dir),
        ServiceVerb::Uninstall => service_windows::uninstall(),
        ServiceVerb::Status => service_windows::status(),
        ServiceVerb::Run(args) => service_windows::run(args),
    }
}

/// # Errors
/// Always, so far.
#[cfg(not(windows))]
pub(crate) fn run(_verb: ServiceVerb) -> Result<ExitCode> {
    anyhow::bail!(
        "`skein service` does not know this system's service manager\nhint: let it start `skein up --headless`, \
         which logs to standard error and leaves within seconds of SIGTERM"
    )
}
