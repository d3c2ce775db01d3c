//! Giving files their final names, on systems where that can fail for a moment.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Tries after the first, and the wait before each.
const TRIES: u32 = if cfg!(windows) { 20 } else { 0 };
const WAIT: Duration = Duration::from_millis(50);
/// Windows' `ERROR_SHARING_VIOLATION`: somebody has the file open and shares it with nobody.
const SHARED_WITH_NOBODY: i32 = 32;

/// Gives a file another name, in place of any file that has it. Blocks, on Windows for up to a second: there, whoever
/// has a file open may forbid it, and virus scanners open every new file.
///
/// # Errors
/// As the file system says.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let mut left = TRIES;
    loop {
        match fs::rename(from, to) {
            Err(error) if left > 0 && passes(&error) => {
                left -= 1;
                std::thread::sleep(WAIT);
            }
            ended => return ended,
        }
    }
}

fn passes(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(SHARED_WITH_NOBODY)
}
