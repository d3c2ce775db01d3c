//! This same binary as a child process, in which drivers may crash.

use std::path::Path;
use std::process::Command;

/// A command that starts `exe` without a window of its own, even where the agent itself has none.
pub(crate) fn command(exe: &Path) -> Command {
    #[cfg_attr(not(windows), expect(unused_mut, reason = "only Windows wants more said"))]
    let mut command = Command::new(exe);
    // CREATE_NO_WINDOW: otherwise each probe and worker of a service or a tray icon opens a black window.
    #[cfg(windows)]
    std::os::windows::process::CommandExt::creation_flags(&mut command, 0x0800_0000);
    command
}
