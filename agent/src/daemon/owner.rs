//! The owner in the daemon: what sensors say of his machine, what he said himself, and what he set.
//!
//! What follows from it for each device is the stations' to do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use skein_policy::readings::{Reading, Readings};
use skein_policy::{Event as Told, Names, Pause, Plain, Settings};
use skein_sensors::Sensors;
use smol::channel;

use super::history::{GpuPoint, History, Point, gpus};
use super::traffic::Traffic;
use super::{Daemon, Event, lock};
use crate::identity::write_private;
use crate::limits::{SENSE_AT_REST, SENSE_AT_WORK, SLEPT_MIN};
use crate::os::{Clocks, clocks};

/// What the owner's machine tells, and where his settings are kept.
pub(crate) struct Owner {
    path: PathBuf,
    /// The present reading of every sensor.
    readings: Option<Readings>,
    pub(super) history: History,
    pub(super) traffic: Traffic,
    own_pids: Arc<Mutex<BTreeSet<u32>>>,
    sensing: Sensing,
}

/// The thread that reads the sensors, and how often it does.
struct Sensing {
    every_ms: Arc<AtomicU64>,
    /// New lists of what is a game and what is none, until the thread takes them.
    games: Arc<Mutex<Option<[Vec<String>; 2]>>>,
    thread: Thread,
}

impl Sensing {
    fn start(mut sensors: Sensors, feed: channel::Sender<Event>) -> Result<Self> {
        let every_ms = Arc::new(AtomicU64::new(millis(SENSE_AT_REST)));
        let pace = Arc::clone(&every_ms);
        let games = Arc::new(Mutex::new(None::<[Vec<String>; 2]>));
        let told = Arc::clone(&games);
        let sense = move || {
            let mut last = clocks();
            loop {
                let now = clocks();
                let woke = has_slept(last, now);
                last = now;
                if let Some([games, not_games]) = lock(&told).take() {
                    sensors.set_games(games, not_games);
                }
                let readings = Box::new(sensors.read());
                if feed.send_blocking(Event::Sensed { readings, woke }).is_err() {
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(pace.load(Ordering::Relaxed)));
            }
        };
        let thread = std::thread::Builder::new().name("sensors".into()).spawn(sense);
        let thread = thread.context("cannot start the thread of the sensors")?.thread().clone();
        Ok(Self { every_ms, games, thread })
    }

    fn pace(&self, every: Duration) {
        if self.every_ms.swap(millis(every), Ordering::Relaxed) > millis(every) {
            self.thread.unpark();
        }
    }

    fn set_games(&self, lists: [Vec<String>; 2]) {
        *lock(&self.games) = Some(lists);
        self.thread.unpark();
    }
}

/// Whether the machine slept between two readings of its clocks.
fn has_slept(before: Clocks, now: Clocks) -> bool {
    let always = now.always.saturating_sub(before.always);
    let awake = now.awake.saturating_sub(before.awake);
    always.saturating_sub(awake) >= SLEPT_MIN
}

/// What the owner calls games, and what none.
fn games(settings: &Settings) -> [Vec<String>; 2] {
    let names = |names: &Option<Names>| names.as_ref().map_or_else(Vec::new, |names| names.0.clone());
    [names(&settings.games), names(&settings.not_games)]
}

/// What the owner said that outlives the agent's process.
#[derive(Default, Serialize, Deserialize)]
struct Said {
    pause: Option<Pause>,
    finishing: bool,
}

impl Said {
    /// As it was kept; earlier versions kept the pause alone.
    fn read(bytes: &[u8]) -> Option<Self> {
        let alone = serde_json::from_slice::<Pause>(bytes);
        let said = alone.map(|pause| Self { pause: Some(pause), finishing: false });
        said.or_else(|_| serde_json::from_slice(bytes)).ok()
    }
}

impl Owner {
    /// Begins to look.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(data_dir: &Path, settings: &Settings, feed: channel::Sender<Event>) -> Result<Self> {
        let own_pids = Arc::new(Mutex::new(BTreeSet::from([std::process::id()])));
        let told = Arc::clone(&own_pids);
        let own = Arc::new(move || lock(&told).clone());
        let [games, not_games] = games(settings);
        let config = skein_sensors::Config::new(data_dir.to_owned(), own);
        let sensors = Sensors::new(skein_sensors::Config { games, not_games, ..config });
        Ok(Self {
            path: settings_file(data_dir),
            readings: None,
            history: History::default(),
            traffic: Traffic::open(data_dir),
            own_pids,
            sensing: Sensing::start(sensors, feed)?,
        })
    }

    /// The processes that are no other program's.
    pub(super) fn own_processes(&self, pids: BTreeSet<u32>) {
        *lock(&self.own_pids) = pids;
    }

    /// Looks more often while something is at work.
    pub(super) fn pace(&self, works: bool) {
        self.sensing.pace(if works { SENSE_AT_WORK } else { SENSE_AT_REST });
    }

    /// The last reading of every sensor.
    pub(super) fn readings(&self) -> Option<&Readings> {
        self.readings.as_ref()
    }

    /// When the owner's present day began, in Unix milliseconds.
    pub(super) fn midnight_ms(&self) -> u64 {
        let now_ms = unix_ms();
        let wall = self.readings.as_ref().and_then(|readings| readings.wall.known());
        match wall {
            Some(wall) => (now_ms - now_ms % 60_000).saturating_sub(u64::from(wall.minute) * 60_000),
            None => now_ms - now_ms % 86_400_000,
        }
    }
}

impl Daemon {
    /// Sensors were read.
    pub(super) fn sensed(
        &mut self,
        mut readings: Readings,
        woke: bool,
        feed: &channel::Sender<Event>,
    ) -> Result<()> {
        let now_ms = unix_ms();
        // The agent's own clock stood still while the machine slept, or began before the wall clock was told the time.
        if now_ms.saturating_sub(self.clock.now().0) >= millis(SLEPT_MIN) {
            self.clock.catch_up();
        }
        if woke {
            tracing::info!("the machine slept");
            self.owner_event(&Told::Woke, feed)?;
        }
        let (sent, received) = (self.mesh.bytes_sent(), self.mesh.bytes_received());
        readings.traffic_month_bytes =
            Reading::Known(self.owner.traffic.count(now_ms, self.mesh.line_bytes()));
        self.tell_stations(&readings, feed)?;
        self.owner.readings = Some(readings);
        if self.owner.history.is_due(now_ms) {
            let state = self.stations.view().state;
            let known = self.owner.readings.as_ref().map_or(&[][..], |readings| gpus(&readings.gpus));
            let gpus = known.iter().map(GpuPoint::of).collect();
            self.owner.history.add(Point {
                at_ms: now_ms,
                gpus,
                state,
                sent_bytes: sent,
                received_bytes: received,
            });
        }
        Ok(())
    }

    /// Goes on with what the owner said before the agent was started again.
    pub(super) fn recall_said(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        let kept = std::fs::read(said_file(&self.config.data_dir)).ok();
        let Said { pause, finishing } = kept.and_then(|bytes| Said::read(&bytes)).unwrap_or_default();
        if let Some(pause) = pause {
            self.owner_event(&Told::Pause(pause), feed)?;
        }
        if finishing { self.owner_event(&Told::Finish, feed) } else { Ok(()) }
    }

    /// The owner's word, which outlives the agent's process.
    pub(super) fn owner_said(&mut self, told: &Told, feed: &channel::Sender<Event>) -> Result<()> {
        self.owner_event(told, feed)?;
        let path = said_file(&self.config.data_dir);
        let view = self.stations.view();
        let said = Said { pause: view.pause, finishing: view.finishing };
        let kept = match said {
            Said { pause: None, finishing: false } if path.exists() => std::fs::remove_file(&path),
            Said { pause: None, finishing: false } => Ok(()),
            Said { .. } => write_private(&path, &serde_json::to_vec(&said)?),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "what you said will not outlive this process");
        }
        Ok(())
    }

    /// Changes one setting, and keeps it.
    pub(super) fn change_setting(
        &mut self,
        key: &str,
        value: &str,
        feed: &channel::Sender<Event>,
    ) -> Result<Result<(), String>> {
        let mut settings = self.stations.settings().clone();
        if let Err(error) = settings.set(key, value) {
            return Ok(Err(error.to_string()));
        }
        if let Err(error) = keep(&self.owner.path, &settings, key) {
            return Ok(Err(format!("{error:#}")));
        }
        let games = games(&settings);
        self.owner_event(&Told::Settings(Box::new(settings)), feed)?;
        if key == "games" || key == "not_games" {
            self.owner.sensing.set_games(games);
        }
        Ok(Ok(()))
    }
}

fn said_file(data_dir: &Path) -> PathBuf {
    data_dir.join("pause.json")
}

/// What is allowed unless the owner says otherwise.
pub(crate) fn preset(headless: bool) -> Settings {
    if headless { Settings::headless() } else { Settings::default() }
}

/// Where the owner's changes are kept.
pub(crate) fn settings_file(data_dir: &Path) -> PathBuf {
    data_dir.join("policy.toml")
}

/// The preset with the owner's changes.
///
/// # Errors
/// When the file cannot be read, or names what is no setting.
pub(crate) fn load(path: &Path, preset: Settings) -> Result<Settings> {
    let mut settings = preset;
    for (key, value) in changes(path)? {
        settings.set(&key, &value).with_context(|| bad(path))?;
    }
    Ok(settings)
}

/// Keeps a change, which `settings` has taken already.
///
/// # Errors
/// When the file is damaged, or the disk does not take it.
pub(crate) fn keep(path: &Path, settings: &Settings, key: &str) -> Result<()> {
    let mut changes = changes(path)?;
    changes.insert(key.to_owned(), settings.get(key)?);
    let text = format!("# What the owner changed with `skein set`.\n{}", toml::to_string(&changes)?);
    write_private(path, text.as_bytes()).map_err(|error| super::journal::disk_trouble(path, &error))
}

fn changes(path: &Path) -> Result<BTreeMap<String, String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let written: BTreeMap<String, Plain> = toml::from_str(&text).with_context(|| bad(path))?;
            Ok(written.into_iter().map(|(key, value)| (key, value.text())).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn bad(path: &Path) -> String {
    format!("{} holds no settings\nhint: mend it, or remove it to have the defaults", path.display())
}

/// The wall clock, which owners think in.
pub(crate) fn unix_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Clocks = Clocks { awake: Duration::from_secs(1_000), always: Duration::from_secs(5_000) };

    fn later(awake: Duration, asleep: Duration) -> Clocks {
        Clocks { awake: BEFORE.awake + awake, always: BEFORE.always + awake + asleep }
    }

    #[test]
    fn a_machine_that_slept_has_woken() {
        for awake in [Duration::ZERO, SENSE_AT_WORK, SENSE_AT_REST, Duration::from_secs(86_400)] {
            assert!(has_slept(BEFORE, later(awake, SLEPT_MIN)));
            assert!(has_slept(BEFORE, later(awake, Duration::from_secs(8 * 3_600))));
            assert!(!has_slept(BEFORE, later(awake, SLEPT_MIN - Duration::from_millis(1))), "a nap");
            assert!(
                !has_slept(BEFORE, later(awake, Duration::ZERO)),
                "a thread that waited long is no sleep"
            );
        }
    }

    #[test]
    fn a_clock_that_was_stepped_wakes_nobody() {
        // Where the system has a clock of its own for sleep, none that is set comes into it.
        if cfg!(any(target_os = "linux", windows)) {
            let now = clocks();
            let ten_years = Duration::from_secs(10 * 365 * 86_400);
            assert!(now.awake < ten_years && now.always < ten_years, "{now:?} is the time of day");
            assert!(!has_slept(now, clocks()));
        }
        // Elsewhere one that is set back is no sleep at least.
        let back = Clocks { always: Duration::from_secs(10), ..later(SENSE_AT_REST, Duration::ZERO) };
        assert!(!has_slept(BEFORE, back));
    }
}
