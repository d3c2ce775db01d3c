//! The owner's policy in the daemon: sensors in, workers and offer out.
//!
//! The decision is `skein-policy`'s. Here a "no" becomes a dead worker within milliseconds and a closed offer, a "yes" a
//! device that is measured and offered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use skein_policy::readings::{Gpu, Reading, Readings};
use skein_policy::{Action, Allowance, Event as Told, Pause, Policy, Settings, View};
use skein_proto::node::{self, Input};
use skein_sensors::Sensors;
use smol::channel;

use super::history::{GpuPoint, History, Point, gpus};
use super::traffic::Traffic;
use super::worker::Worker;
use super::{Daemon, Event, Means, Measured, forward, lock};
use crate::identity::write_private;
use crate::limits::{SENSE_AT_REST, SENSE_AT_WORK, SLEPT_MIN};

/// What the owner was asked, told and given.
pub(crate) struct Owner {
    policy: Policy,
    path: PathBuf,
    /// The present reading of every sensor.
    readings: Option<Readings>,
    pub(super) history: History,
    pub(super) traffic: Traffic,
    own_pids: Arc<Mutex<BTreeSet<u32>>>,
    sensing: Sensing,
    allowed: Allowance,
    new_work: bool,
    worked: bool,
    trouble: Option<String>,
}

/// What may be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bench {
    /// The best device of this machine, or the one that the owner named.
    Best,
    /// The processor, while the GPU is needed otherwise.
    Processor,
}

/// A device that was measured, and what works on it.
pub(super) struct Kit {
    pub(super) means: Means,
    offer: skein_proto::offer::Offer,
    pub(super) device_reason: String,
    pci: Option<String>,
}

/// The devices that were measured so far.
#[derive(Default)]
pub(super) struct Kits {
    kits: BTreeMap<Bench, Kit>,
    current: Option<Bench>,
    measuring: Option<(Bench, Trial)>,
}

/// The worker of a measurement under way, which the owner may end like any other.
#[derive(Clone, Default)]
pub(super) struct Trial {
    inner: Arc<Mutex<(Option<String>, Option<Worker>)>>,
}

impl Trial {
    /// Notes the worker.
    ///
    /// # Errors
    /// When it may not start any more.
    pub(super) fn begin(&self, worker: &Worker) -> Result<()> {
        let mut inner = lock(&self.inner);
        if let Some(why) = &inner.0 {
            anyhow::bail!("{why}");
        }
        inner.1 = Some(worker.clone());
        Ok(())
    }

    fn bar(&self, why: &str) {
        let mut inner = lock(&self.inner);
        inner.0 = Some(why.to_owned());
        if let Some(worker) = &inner.1 {
            worker.bar(why);
        }
    }

    fn is_barred(&self) -> bool {
        lock(&self.inner).0.is_some()
    }
}

impl Kits {
    /// What works now, or did until the owner needed his machine.
    pub(super) fn current(&self) -> Option<&Kit> {
        self.current.and_then(|bench| self.kits.get(&bench))
    }

    /// All that was ever measured.
    pub(super) fn all(&self) -> impl Iterator<Item = &Kit> {
        self.kits.values()
    }

    /// Whether a device is being measured.
    pub(super) fn is_measuring(&self) -> bool {
        self.measuring.is_some()
    }

    /// Ends every worker, at once, and lets none start.
    fn bar(&self, why: &str) {
        for kit in self.kits.values() {
            kit.means.worker.bar(why);
        }
        if let Some((_, trial)) = &self.measuring {
            trial.bar(why);
        }
    }
}

/// The thread that reads the sensors, and how often it does.
struct Sensing {
    every_ms: Arc<AtomicU64>,
    thread: Thread,
}

impl Sensing {
    fn start(mut sensors: Sensors, feed: channel::Sender<Event>) -> Result<Self> {
        let every_ms = Arc::new(AtomicU64::new(millis(SENSE_AT_REST)));
        let pace = Arc::clone(&every_ms);
        let sense = move || {
            let mut last = (Instant::now(), SystemTime::now());
            loop {
                let slept = last.1.elapsed().unwrap_or_default().saturating_sub(last.0.elapsed());
                last = (Instant::now(), SystemTime::now());
                let readings = Box::new(sensors.read());
                let woke = slept >= SLEPT_MIN;
                if feed.send_blocking(Event::Sensed { readings, woke }).is_err() {
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(pace.load(Ordering::Relaxed)));
            }
        };
        let thread = std::thread::Builder::new().name("sensors".into()).spawn(sense);
        let thread = thread.context("cannot start the thread of the sensors")?.thread().clone();
        Ok(Self { every_ms, thread })
    }

    fn pace(&self, every: Duration) {
        if self.every_ms.swap(millis(every), Ordering::Relaxed) > millis(every) {
            self.thread.unpark();
        }
    }
}

impl Owner {
    /// Reads the owner's settings and begins to look.
    ///
    /// # Errors
    /// When the settings are none.
    pub(super) fn start(data_dir: &Path, headless: bool, feed: channel::Sender<Event>) -> Result<Self> {
        let path = settings_file(data_dir);
        let settings = load(&path, preset(headless))?;
        let own_pids = Arc::new(Mutex::new(BTreeSet::from([std::process::id()])));
        let told = Arc::clone(&own_pids);
        let own = Arc::new(move || lock(&told).clone());
        let sensors = Sensors::new(skein_sensors::Config::new(data_dir.to_owned(), own));
        Ok(Self {
            policy: Policy::new(settings, unix_ms()),
            path,
            readings: None,
            history: History::default(),
            traffic: Traffic::open(data_dir),
            own_pids,
            sensing: Sensing::start(sensors, feed)?,
            allowed: Allowance::Nothing,
            new_work: false,
            worked: false,
            trouble: None,
        })
    }

    /// How things stand, in words.
    pub(super) fn view(&self) -> View {
        self.policy.view(unix_ms())
    }

    /// The last reading of every sensor.
    pub(super) fn readings(&self) -> Option<&Readings> {
        self.readings.as_ref()
    }

    pub(super) fn settings(&self) -> &Settings {
        self.policy.settings()
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
        if woke {
            tracing::info!("the machine slept");
            self.clock.catch_up();
            self.owner_event(Told::Woke, feed)?;
        }
        let now_ms = unix_ms();
        let (sent, received) = (self.mesh.bytes_sent(), self.mesh.bytes_received());
        readings.traffic_month_bytes = Reading::Known(self.owner.traffic.count(now_ms, sent + received));
        if let Some(device) = self.gpu_id(&readings) {
            self.owner_event(Told::Device(Some(device)), feed)?;
        }
        self.owner.readings = Some(readings.clone());
        self.owner_event(Told::Readings(Box::new(readings)), feed)?;
        self.tell_trouble(feed)?;
        if self.owner.history.is_due(now_ms) {
            let state = self.owner.view().state;
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

    /// Something happened to the owner's policy: what follows from it is done at once.
    pub(super) fn owner_event(&mut self, event: Told, feed: &channel::Sender<Event>) -> Result<()> {
        let before = (self.owner.allowed, self.owner.new_work);
        for action in self.owner.policy.handle(unix_ms(), event) {
            match action {
                Action::Allow { allowed, new_work } => {
                    (self.owner.allowed, self.owner.new_work) = (allowed, new_work);
                }
                Action::LimitRate(rate) => self.mesh.limit_rate(rate),
                // The sensors' thread is quicker than any rule.
                Action::LookAgain(_) => {}
            }
        }
        if (self.owner.allowed, self.owner.new_work) != before {
            self.obey(feed)?;
        }
        Ok(())
    }

    /// Tells the policy whether something is at work, if that changed.
    pub(super) fn note_work(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        let workers = self.kits.all().filter_map(|kit| kit.means.worker.state().pid);
        *lock(&self.owner.own_pids) = workers.chain([std::process::id()]).collect();
        let works = self.node.works();
        if works == self.owner.worked {
            return Ok(());
        }
        self.owner.worked = works;
        self.owner.sensing.pace(if works { SENSE_AT_WORK } else { SENSE_AT_REST });
        self.owner_event(Told::Working(works), feed)
    }

    /// Brings workers and offer in line with what is allowed.
    fn obey(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        let wanted = match self.owner.allowed {
            Allowance::Nothing => None,
            Allowance::CpuOnly if !self.best_is_processor() => Some(Bench::Processor),
            Allowance::CpuOnly | Allowance::All => Some(Bench::Best),
        };
        let Some(wanted) = wanted else {
            let headline = self.owner.view().headline;
            tracing::info!("{headline}");
            // The worker first: the owner waits for it.
            self.kits.bar(&headline);
            return self.core(Input::Allow(node::Allowance::Nothing));
        };
        if self.kits.current != Some(wanted) {
            if self.kits.current.is_some() {
                self.kits.bar("another device is worked on");
                self.core(Input::Allow(node::Allowance::Nothing))?;
            }
            let Some(kit) = self.kits.kits.get(&wanted) else { return self.measure(wanted, feed) };
            self.kits.current = Some(wanted);
            let (offer, reason) = (kit.offer.clone(), kit.device_reason.clone());
            tracing::info!("{reason}");
            self.core(Input::Offer(offer))?;
        }
        if let Some(kit) = self.kits.current() {
            kit.means.worker.unbar();
        }
        let open = self.owner.new_work && !self.updating.holds_work() && !skein_update::is_trial();
        let allowance = if open { node::Allowance::Work } else { node::Allowance::Finish };
        self.core(Input::Allow(allowance))
    }

    fn best_is_processor(&self) -> bool {
        let cpu_named = self.config.device.as_deref() == Some("cpu");
        cpu_named || self.kits.kits.get(&Bench::Best).is_some_and(|kit| kit.offer.backend == "cpu")
    }

    fn measure(&mut self, bench: Bench, feed: &channel::Sender<Event>) -> Result<()> {
        if self.kits.measuring.is_some() {
            // Its end asks again what is wanted.
            return Ok(());
        }
        let trial = Trial::default();
        self.kits.measuring = Some((bench, trial.clone()));
        let measuring = self.measurement(bench, trial);
        let feed = feed.clone();
        smol::spawn(async move {
            let _ = feed.send(Event::Measured(bench, measuring.await.map(Box::new))).await;
        })
        .detach();
        Ok(())
    }

    /// A measurement ended.
    pub(super) fn measured(
        &mut self,
        bench: Bench,
        measured: Result<Box<Measured>>,
        feed: &channel::Sender<Event>,
    ) -> Result<()> {
        let barred = self.kits.measuring.take().is_some_and(|(_, trial)| trial.is_barred());
        match measured {
            Ok(measured) => {
                let Measured { offer, reports, means, device_reason, pci } = *measured;
                forward(reports, feed.clone(), Event::Report);
                self.kits.kits.insert(bench, Kit { means, offer, device_reason, pci });
                self.trouble = None;
            }
            Err(error) if barred => tracing::debug!("a measurement was given up: {error:#}"),
            Err(error) => {
                tracing::error!("this machine cannot work: {error:#}");
                self.trouble = Some(format!("{error:#}"));
                return Ok(());
            }
        }
        self.obey(feed)
    }

    /// A worker that dies again and again, or a device that cannot be measured, is trouble.
    fn tell_trouble(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        let failing = || self.kits.current().and_then(|kit| kit.means.worker.trouble());
        let trouble = self.trouble.clone().or_else(failing);
        if trouble == self.owner.trouble {
            return Ok(());
        }
        self.owner.trouble.clone_from(&trouble);
        self.owner_event(Told::Trouble(trouble), feed)
    }

    /// The id that sensors give to the GPU that is worked on: its address, or its name if exactly one has it.
    fn gpu_id(&self, readings: &Readings) -> Option<String> {
        let kit = self.kits.current().filter(|kit| kit.offer.backend != "cpu")?;
        let known = gpus(&readings.gpus);
        let same_place = |gpu: &&Gpu| kit.pci.as_ref().is_some_and(|pci| gpu.id.eq_ignore_ascii_case(pci));
        if let Some(gpu) = known.iter().find(same_place) {
            return Some(gpu.id.clone());
        }
        let plain = |name: &str| name.to_lowercase().replace(['(', ')'], " ");
        let ours = plain(&kit.offer.device);
        let mut same = known.iter().filter(|gpu| {
            let theirs = plain(&gpu.name);
            ours.contains(&theirs) || theirs.contains(&ours)
        });
        let only = same.next()?;
        same.next().is_none().then(|| only.id.clone())
    }

    /// Goes on with a pause that the owner asked for before the agent was started again.
    pub(super) fn recall_pause(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        let kept = std::fs::read(pause_file(&self.config.data_dir)).ok();
        let pause = kept.and_then(|bytes| serde_json::from_slice::<Pause>(&bytes).ok());
        pause.map_or(Ok(()), |pause| self.owner_event(Told::Pause(pause), feed))
    }

    /// The owner's word, which outlives the agent's process.
    pub(super) fn owner_said(&mut self, told: Told, feed: &channel::Sender<Event>) -> Result<()> {
        self.owner_event(told, feed)?;
        let path = pause_file(&self.config.data_dir);
        let kept = match self.owner.view().pause {
            Some(pause) => write_private(&path, &serde_json::to_vec(&pause)?),
            None if path.exists() => std::fs::remove_file(&path),
            None => Ok(()),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "the pause will not outlive this process");
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
        let mut settings = self.owner.settings().clone();
        if let Err(error) = settings.set(key, value) {
            return Ok(Err(error.to_string()));
        }
        if let Err(error) = keep(&self.owner.path, &settings, key) {
            return Ok(Err(format!("{error:#}")));
        }
        self.owner_event(Told::Settings(Box::new(settings)), feed)?;
        Ok(Ok(()))
    }
}

fn pause_file(data_dir: &Path) -> PathBuf {
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
        Ok(text) => toml::from_str(&text).with_context(|| bad(path)),
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
