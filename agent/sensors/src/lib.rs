//! What the machine and its owner are doing: input, screen, games, GPUs, power, network.
//!
//! [`Sensors::read`] blocks for a second at most. What may hang (a driver, D-Bus, a display server, a file system) is
//! read on a thread of its own, which sleeps between readings and publishes its last answer; see `slow`. A sensor
//! that cannot be read is [`Reading::Missing`] with words for the owner, never zero. Nothing here decides anything,
//! sends anything over a network, changes a setting, wakes a GPU that sleeps, or starts a service that does not run.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use skein_policy::readings::{Gpu, GpuProgram, Power, Reading, Readings, WallTime};

mod gpu;
#[cfg(any(target_os = "macos", test))]
mod pmset;
mod slow;
mod wall;

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod platform;
#[cfg(windows)]
#[path = "windows/mod.rs"]
mod platform;
#[cfg(not(any(target_os = "linux", windows)))]
#[path = "other.rs"]
mod platform;
#[cfg(not(target_os = "linux"))]
mod processes;

/// How long [`Sensors::read`] waits for all sensors together.
const PATIENCE: Duration = Duration::from_secs(1);

/// How old the last answer of a slow sensor may be and still be told.
const FRESH: Duration = Duration::from_secs(10);

/// Tells the process ids of the agent and its workers, at any time and from any thread.
pub type OwnPids = Arc<dyn Fn() -> BTreeSet<u32> + Send + Sync>;

/// What the sensors need to know.
#[derive(Clone)]
pub struct Config {
    /// Where the agent's data lies; its disk is measured.
    pub data_dir: PathBuf,
    /// Whose use of processor and GPU is not "others".
    pub own_pids: OwnPids,
    /// Names of programs that the owner calls games (`factorio`, `eldenring.exe`), in any case.
    pub games: Vec<String>,
    /// Names of programs that look like games and are none to the owner.
    pub not_games: Vec<String>,
    /// Where things are found.
    pub places: Places,
}

impl Config {
    /// The sensors of this machine.
    pub fn new(data_dir: PathBuf, own_pids: OwnPids) -> Self {
        Self { data_dir, own_pids, games: Vec::new(), not_games: Vec::new(), places: Places::default() }
    }
}

/// Where the sensors look. The default is this machine; tests lay out others.
#[derive(Clone, Debug)]
pub struct Places {
    /// Holds `proc`, `sys`, `dev`, `run`, `tmp` and `usr`.
    pub root: PathBuf,
    /// D-Bus address of the system bus; none is the usual one.
    pub system_bus: Option<String>,
    /// D-Bus address of the owner's session bus; none is the usual one.
    pub session_bus: Option<String>,
    /// Numbers of the X11 displays to ask; none is all that are found.
    pub x11_displays: Option<Vec<u32>>,
    /// Sockets of the Wayland compositors to ask; none is all that are found.
    pub wayland_sockets: Option<Vec<PathBuf>>,
    /// NVIDIA's management library; none is the usual name.
    pub nvml: Option<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            system_bus: None,
            session_bus: None,
            x11_displays: None,
            wayland_sockets: None,
            nvml: None,
        }
    }
}

/// All sensors of this machine.
pub struct Sensors {
    platform: platform::Platform,
}

impl Sensors {
    /// Starts the threads of the slow sensors; opens nothing yet.
    pub fn new(config: Config) -> Self {
        Self { platform: platform::Platform::new(config) }
    }

    /// Reads all sensors; blocks for a second at most. Call it every few seconds, on a thread of its own: shares of
    /// processors and GPUs are measured from one call to the next.
    pub fn read(&mut self) -> Readings {
        self.platform.read()
    }

    /// Replaces the owner's names of games, and of programs that are none.
    pub fn set_games(&mut self, games: Vec<String>, not_games: Vec<String>) {
        self.platform.set_games(games, not_games);
    }
}

/// Bytes that the agent may still write where `dir` is, or will be.
///
/// # Errors
/// What the system says instead.
pub fn disk_free(dir: &std::path::Path) -> Result<u64, String> {
    platform::disk_free(dir)
}

/// The reading of the traffic, which the shell knows and fills in.
fn traffic_unknown() -> Reading<u64> {
    Reading::Missing("not counted yet".to_owned())
}

/// A reading from what a fallible source says.
fn reading<T>(result: Result<T, String>) -> Reading<T> {
    match result {
        Ok(value) => Reading::Known(value),
        Err(why) => Reading::Missing(why),
    }
}

/// Whether Steam installed the program at this path, in small letters and with `/`, as something to play: not what games
/// need to run, nor what runs beside them for days.
fn installed_to_play(path: &str) -> bool {
    const NO_GAMES: [&str; 5] = [
        "/steamlinuxruntime",
        "/steamapps/common/proton",
        "/common/steamworks shared/",
        "/common/steamvr/",
        "/common/wallpaper_engine/",
    ];
    path.contains("/steamapps/common/") && !NO_GAMES.iter().any(|part| path.contains(part))
}

/// A name from outside (a window, a process, a host) as it may be shown: no control characters, 64 characters at most.
fn shown(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(64).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{installed_to_play, shown};

    #[test]
    fn what_runs_for_days_beside_games_is_none() {
        let common = "c:/program files (x86)/steam/steamapps/common";
        for (place, plays) in [
            ("hades/x64/hades.exe", true),
            ("wallpaper_engine/wallpaper64.exe", false),
            ("steamvr/bin/win64/vrserver.exe", false),
            ("steamworks shared/_commonredist/setup.exe", false),
            ("proton 9.0/files/bin/wineserver", false),
            ("steamlinuxruntime_sniper/run", false),
        ] {
            assert_eq!(installed_to_play(&format!("{common}/{place}")), plays, "{place}");
        }
        assert!(!installed_to_play("c:/windows/explorer.exe"));
    }

    #[test]
    fn names_from_outside_are_harmless() {
        assert_eq!(shown(" game\u{1b}[2J\n "), "game[2J");
        assert_eq!(shown(&"x".repeat(1000)).len(), 64);
    }
}
