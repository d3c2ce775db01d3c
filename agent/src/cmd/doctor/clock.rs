//! Whether this machine's clock can be believed: epochs are counted by it, and no peer tells its own.
//!
//! Must never call a clock good that nothing vouches for.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Finding;

/// 2026-01-01: this version is younger.
const BORN: Duration = Duration::from_secs(1_767_225_600);

pub(super) fn look() -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    judge(now, synchronised().as_deref())
}

/// `yes` or `no` as systemd has it from the kernel, whichever program keeps the clock; nothing where it is not there.
fn synchronised() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let arguments = ["show", "-p", "NTPSynchronized", "--value"];
    let said =
        Command::new("timedatectl").args(arguments).output().ok().filter(|said| said.status.success())?;
    Some(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

fn judge(now: Duration, synchronised: Option<&str>) -> Finding {
    let remedy = "switch the system's time synchronisation on (`timedatectl set-ntp true`): epochs are counted by the clock";
    if now < BORN {
        return Finding::bad("clock", "this machine's clock is years behind", remedy);
    }
    match synchronised {
        Some("yes") => Finding::good("clock", "synchronised, as the system says"),
        Some("no") => Finding::poor("clock", "the system says that it is not synchronised", remedy),
        Some(_) | None => Finding::unknown(
            "clock",
            "cannot be checked here",
            "compare it with another clock, to the second: epochs are counted by it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_clock_is_good_only_if_something_keeps_it() {
        let state = |now, synchronised| judge(now, synchronised).state;
        let now = BORN + Duration::from_secs(86_400);
        assert_eq!(state(now, Some("yes")), Health::Good);
        assert_eq!(state(now, Some("no")), Health::Poor);
        assert_eq!(state(now, Some("")), Health::Unknown);
        assert_eq!(state(now, None), Health::Unknown);
        assert_eq!(state(Duration::ZERO, Some("yes")), Health::Bad);
    }
}
