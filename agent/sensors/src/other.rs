//! macOS and other systems: what is known without calls of our own. Untested: no machine of the kind was at hand.

use std::path::PathBuf;
#[cfg(target_os = "macos")]
use std::time::{Duration, Instant};

#[cfg(target_os = "macos")]
use skein_policy::readings::Power;
use skein_policy::readings::{Reading, Readings};

use crate::gpu::missing;
use crate::processes::{Lists, Processes};
#[cfg(target_os = "macos")]
use crate::slow::Slow;
use crate::{Config, OwnPids, reading, traffic_unknown, wall};

const NOT_YET: &str = "not read on this system yet";

/// The sources of this machine; none of them hangs.
pub(crate) struct Platform {
    data_dir: PathBuf,
    own_pids: OwnPids,
    lists: Lists,
    processes: Processes,
    #[cfg(target_os = "macos")]
    supply: Supply,
}

impl Platform {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            lists: Lists::new(&config.games, &config.not_games),
            data_dir: config.data_dir,
            own_pids: config.own_pids,
            processes: Processes::new(),
            #[cfg(target_os = "macos")]
            supply: Supply::new(),
        }
    }

    pub(crate) fn set_games(&mut self, games: Vec<String>, not_games: Vec<String>) {
        self.lists.replace(&games, &not_games);
    }

    pub(crate) fn read(&mut self) -> Readings {
        let scan = self.processes.scan(&(self.own_pids)(), &self.lists);
        Readings {
            owner_idle_ms: idle_ms(),
            full_screen: missing(NOT_YET),
            game: Reading::Known(scan.game),
            remote_desktop: missing(NOT_YET),
            #[cfg(target_os = "macos")]
            power: self.supply.read(),
            #[cfg(not(target_os = "macos"))]
            power: missing(NOT_YET),
            metered: missing(NOT_YET),
            disk_free_bytes: reading(disk_free(&self.data_dir)),
            wall: wall::now(),
            gpus: missing(NOT_YET),
            processor_others_permille: reading(scan.processor_others_permille),
            traffic_month_bytes: traffic_unknown(),
        }
    }
}

/// The power supply, asked by a command every so often.
#[cfg(target_os = "macos")]
struct Supply {
    slow: Slow<Result<Power, String>>,
    asked: Option<Instant>,
}

#[cfg(target_os = "macos")]
impl Supply {
    const EVERY: Duration = Duration::from_secs(10);
    const FRESH: Duration = Duration::from_secs(60);
    const PATIENCE: Duration = Duration::from_millis(500);

    fn new() -> Self {
        Self { slow: Slow::start("pmset", Self::FRESH, crate::pmset::ask), asked: None }
    }

    fn read(&mut self) -> Reading<Power> {
        if self.asked.is_none_or(|asked| asked.elapsed() >= Self::EVERY) {
            self.asked = Some(Instant::now());
            self.slow.ask();
        }
        reading(self.slow.answer(Self::PATIENCE).and_then(|said| said))
    }
}

#[cfg(target_os = "macos")]
fn idle_ms() -> Reading<u64> {
    use objc2_core_graphics::{CGEventSource, CGEventSourceStateID, CGEventType};
    // kCGAnyInputEventType
    let any = CGEventType(u32::MAX);
    let seconds =
        CGEventSource::seconds_since_last_event_type(CGEventSourceStateID::CombinedSessionState, any);
    Reading::Known((seconds.max(0.0) * 1000.0) as u64)
}

#[cfg(not(target_os = "macos"))]
fn idle_ms() -> Reading<u64> {
    missing(NOT_YET)
}

/// Bytes free where the directory is, or will be.
#[expect(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
pub(crate) fn disk_free(dir: &std::path::Path) -> Result<u64, String> {
    let place = dir.ancestors().find(|place| place.exists());
    let place = place.ok_or_else(|| format!("{} does not exist", dir.display()))?;
    let stat = rustix::fs::statvfs(place).map_err(|error| format!("{}: {error}", place.display()))?;
    Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}
