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
        ServiceVerb::Install { data_dir, headless, .. } => service_windows::install(data_dir, headless),
        ServiceVerb::Uninstall { .. } => service_windows::uninstall(),
        ServiceVerb::Status { .. } => service_windows::status(),
        ServiceVerb::Run(args) => service_windows::run(args),
    }
}

/// # Errors
/// When systemd refuses, or there is none.
#[cfg(target_os = "linux")]
pub(crate) fn run(verb: ServiceVerb) -> Result<ExitCode> {
    use super::service_linux;
    match verb {
        ServiceVerb::Install { data_dir, system, headless } => {
            service_linux::install(data_dir, system, headless)
        }
        ServiceVerb::Uninstall { system } => service_linux::uninstall(system),
        ServiceVerb::Status { system } => service_linux::status(system),
        ServiceVerb::Run(_) => anyhow::bail!("this is Windows' verb\nhint: systemd starts `skein up`"),
    }
}

/// # Errors
/// Always, so far.
#[cfg(not(any(windows, target_os = "linux")))]
pub(crate) fn run(_verb: ServiceVerb) -> Result<ExitCode> {
    anyhow::bail!(
        "`skein service` does not know this system's service manager\nhint: install.sh registers the agent with launchd; \
         or let another start `skein up`, which leaves within seconds of SIGTERM"
    )
}
