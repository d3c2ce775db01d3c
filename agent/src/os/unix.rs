//! Linux and macOS: signals, file modes and clocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use async_signal::{Signal, Signals};
use smol::channel::{self, Receiver};
use smol::stream::StreamExt;

use super::Clocks;

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

/// Neither is moved when somebody sets the time of day.
#[cfg(target_os = "linux")]
pub(crate) fn clocks() -> Clocks {
    use rustix::time::{ClockId, clock_gettime};

    let read = |clock| {
        let time = clock_gettime(clock);
        let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
        std::time::Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
    };
    Clocks { awake: read(ClockId::Monotonic), always: read(ClockId::Boottime) }
}

/// The time of day has to do for a clock that goes on; where it is set, that looks like sleep.
#[cfg(not(target_os = "linux"))]
pub(crate) fn clocks() -> Clocks {
    use std::sync::LazyLock;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
    let always = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clocks { awake: STARTED.elapsed(), always }
}

/// Standard input. On Windows there is more to it.
///
/// # Errors
/// Never here.
pub(crate) fn take_input() -> std::io::Result<std::io::Stdin> {
    Ok(std::io::stdin())
}
