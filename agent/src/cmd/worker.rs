//! `skein worker` and `skein probe`: what the agent starts as child processes.

use std::process::ExitCode;

use anyhow::Result;
use skein_compute::device::DeviceChoice;
use skein_compute::{probe, worker};

/// Executes tasks from standard input until it ends.
///
/// # Errors
/// When the device cannot be opened or the daemon breaks the protocol.
pub(crate) fn run(device: &str) -> Result<ExitCode> {
    let device: DeviceChoice = device.parse()?;
    crate::os::step_back();
    worker::run(&device, crate::os::take_input()?, std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// Lists the adapters, or tries one, unless standard input ends before.
///
/// # Errors
/// When stdout is closed, or the system gives no thread.
pub(crate) fn probe(adapter: Option<u32>) -> Result<ExitCode> {
    crate::os::step_back();
    // Before any driver is loaded, which may hang.
    probe::watch(crate::os::take_input()?, || std::process::exit(1))?;
    let mut out = std::io::stdout().lock();
    match adapter {
        Some(index) => probe::exercise(index, &mut out)?,
        None => probe::list(&mut out)?,
    }
    Ok(ExitCode::SUCCESS)
}
