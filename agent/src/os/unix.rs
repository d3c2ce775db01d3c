//! Linux and macOS: signals and file modes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use async_signal::{Signal, Signals};
use smol::channel::{self, Receiver};
use smol::stream::StreamExt;

/// Tells each time the system asks this process to end: SIGTERM, Ctrl-C, a terminal that closes.
///
/// # Errors
/// When signals cannot be listened for.
pub(crate) fn leave_requests() -> Result<Receiver<()>> {
    let (ask, requests) = channel::bounded(1);
    let mut signals =
        Signals::new([Signal::Term, Signal::Int, Signal::Hup]).context("cannot listen for signals")?;
    skein_mesh::spawn(async move {
        while signals.next().await.is_some() {
            // One request that waits is as good as many.
            let _ = ask.try_send(());
        }
    })
    .detach();
    Ok(requests)
}

/// Creates or empties a file that nobody but its owner can open.
///
/// # Errors
/// As the file system says.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Lets every other program have the processor first; what this process starts does the same.
pub(crate) fn step_back() {
    // Nobody may be hindered by it, so whether it was allowed does not matter.
    let _ = rustix::process::nice(19);
}
