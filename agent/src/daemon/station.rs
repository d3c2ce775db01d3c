//! The stations: one for each device of this machine, with what works on it and what its owner allows there.
//!
//! The decision is `skein-policy`'s, one policy for each device, so that a hot card rests alone. Here a "no" becomes a dead
//! worker within milliseconds and a closed offer, a "yes" a device that is measured and offered. What happens on one
//! device must never stop another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use skein_compute::device::DeviceChoice;
use skein_compute::probe::{self, Chosen};
use skein_policy::readings::{Gpu, Readings};
use skein_policy::{Action, Allowance, Event as Told, Policy, Settings, State, View};
use skein_proto::limits::WORKERS_MAX;
use skein_proto::node::{self, Input};
use skein_proto::offer::{Offer, WorkerOffer};
use smol::channel;

use super::history::gpus;
use super::owner::unix_ms;
use super::status::WorkerStatus;
use super::worker::Worker;
use super::{Daemon, Event, Means, Measured, forward, lock};
use crate::limits::PROBE_TIMEOUT;

/// What may be worked on at a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bench {
    /// Its own device.
    Own,
    /// The processor, while the GPU is needed otherwise.
    Processor,
}

/// A device that was measured, and what works on it.
struct Kit {
    means: Means,
    offer: WorkerOffer,
    reason: String,
    pci: Option<String>,
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

/// One device and its worker.
struct Station {
    policy: Policy,
    /// The device, once this machine was surveyed.
    chosen: Option<Chosen>,
    kits: BTreeMap<Bench, Kit>,
    current: Option<Bench>,
    measuring: Option<(Bench, Trial)>,
    allowed: Allowance,
    new_work: bool,
    worked: bool,
    /// Why its device cannot be measured.
    unmeasured: Option<String>,
    /// What its policy was told to be wrong.
    trouble: Option<String>,
}

impl Station {
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            chosen: None,
            kits: BTreeMap::new(),
            current: None,
            measuring: None,
            allowed: Allowance::Nothing,
            new_work: false,
            worked: false,
            unmeasured: None,
            trouble: None,
        }
    }

    /// What works now, or did until the owner needed his machine.
    fn kit(&self) -> Option<&Kit> {
        self.current.and_then(|bench| self.kits.get(&bench))
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

    fn view(&self) -> View {
        self.policy.view(unix_ms())
    }

    fn device(&self) -> String {
        match (&self.kit(), &self.chosen) {
            (Some(kit), _) => kit.offer.device.clone(),
            (None, Some(Chosen { device: DeviceChoice::Wgpu { name, .. }, .. })) => name.clone(),
            (None, Some(Chosen { device: DeviceChoice::Cpu, .. })) => "processor".to_owned(),
            (None, None) => String::new(),
        }
    }
}

/// All of them; there is always a first.
pub(super) struct Stations {
    all: Vec<Station>,
    survey: Survey,
}

/// Whether it is known which devices there are.
enum Survey {
    Due,
    UnderWay,
    /// The cards that do not work, each with what is wrong.
    Done(Vec<String>),
}

/// The devices to work on, and the cards that do not work.
pub(crate) struct Surveyed {
    chosen: Vec<Chosen>,
    broken: Vec<String>,
}

impl Stations {
    pub(super) fn new(settings: Settings) -> Self {
        Self { all: vec![Station::new(Policy::new(settings, unix_ms()))], survey: Survey::Due }
    }

    pub(super) fn settings(&self) -> &Settings {
        self.all[0].policy.settings()
    }

    /// The means of one worker, once its device is measured.
    pub(super) fn means(&self, worker: u8) -> Option<&Means> {
        self.all.get(usize::from(worker))?.kit().map(|kit| &kit.means)
    }

    /// All that ever worked.
    pub(super) fn all_means(&self) -> impl Iterator<Item = &Means> {
        self.all.iter().flat_map(|station| station.kits.values()).map(|kit| &kit.means)
    }

    /// Whether devices are looked for.
    pub(super) fn is_surveying(&self) -> bool {
        matches!(self.survey, Survey::UnderWay)
    }

    /// Whether a device is looked for or measured.
    pub(super) fn is_measuring(&self) -> bool {
        self.is_surveying() || self.all.iter().any(|station| station.measuring.is_some())
    }

    /// How things stand, in words. Of several workers the one that stands best leads, and the others add their reasons.
    pub(super) fn view(&self) -> View {
        let views: Vec<View> = self.all.iter().map(Station::view).collect();
        let best = |view: &View| match view.state {
            State::Working => 0,
            State::Waiting => 1,
            State::Paused => 2,
            State::Trouble => 3,
        };
        let lead = (0..views.len()).min_by_key(|at| best(&views[*at])).unwrap_or(0);
        let mut view = views[lead].clone();
        let alike = views.iter().filter(|other| other.state == view.state).count();
        if alike < views.len() {
            view.headline = format!("{} ({alike} of {} workers)", view.headline, views.len());
        }
        for (at, other) in views.into_iter().enumerate().filter(|(at, _)| *at != lead) {
            for mut reason in other.reasons {
                if view.reasons.iter().all(|known| known.rule != reason.rule || known.text != reason.text) {
                    reason.text = format!("worker {at}: {}", reason.text);
                    view.reasons.push(reason);
                }
            }
        }
        view
    }

    /// What is wrong, worker by worker.
    pub(super) fn troubles(&self) -> Vec<String> {
        let several = self.all.len() > 1;
        let told = self.all.iter().enumerate().filter_map(|(at, station)| {
            let trouble = station.unmeasured.as_ref()?;
            Some(if several { format!("worker {at}: {trouble}") } else { trouble.clone() })
        });
        let broken = match &self.survey {
            Survey::Done(broken) => broken.as_slice(),
            Survey::Due | Survey::UnderWay => &[],
        };
        told.chain(broken.iter().cloned()).collect()
    }

    /// Why the first worker's device was chosen.
    pub(super) fn device_reason(&self) -> String {
        self.all[0].kit().map_or_else(String::new, |kit| kit.reason.clone())
    }

    /// Each worker for `status`; `works` tells whether one has a lease, `gpu` which of the sensors' GPUs it is.
    pub(super) fn told(
        &self,
        works: impl Fn(u8) -> bool,
        gpu: impl Fn(usize) -> Option<String>,
    ) -> Vec<WorkerStatus> {
        let told = |(index, station): (u8, &Station)| {
            let view = station.view();
            let kit = station.kit();
            let worker = kit.map(|kit| kit.means.worker.state());
            WorkerStatus {
                index,
                device: station.device(),
                backend: kit.map(|kit| kit.offer.backend.clone()),
                gpu: gpu(usize::from(index)),
                pid: worker.as_ref().and_then(|worker| worker.pid),
                deaths: worker.as_ref().map_or(0, |worker| worker.deaths),
                working: works(index),
                state: view.state,
                headline: view.headline,
                reasons: view.reasons.into_iter().map(|reason| reason.text).collect(),
            }
        };
        (0..).zip(&self.all).map(told).collect()
    }
}

impl Daemon {
    /// Something happened that concerns the owner's policy for every device: what follows from it is done at once.
    pub(super) fn owner_event(&mut self, event: &Told, feed: &channel::Sender<Event>) -> Result<()> {
        for at in 0..self.stations.all.len() {
            self.station_event(at, event.clone(), feed)?;
        }
        Ok(())
    }

    fn station_event(&mut self, at: usize, event: Told, feed: &channel::Sender<Event>) -> Result<()> {
        let station = &mut self.stations.all[at];
        let before = (station.allowed, station.new_work);
        for action in station.policy.handle(unix_ms(), event) {
            match action {
                Action::Allow { allowed, new_work } => {
                    (station.allowed, station.new_work) = (allowed, new_work);
                }
                // The same for every device.
                Action::LimitRate(rate) if at == 0 => self.mesh.limit_rate(rate),
                // The sensors' thread is quicker than any rule.
                Action::LimitRate(_) | Action::LookAgain(_) => {}
            }
        }
        if (station.allowed, station.new_work) != before { self.obey(at, feed) } else { Ok(()) }
    }

    /// Each device's policy hears which GPU it is about, what works there, and what is wrong.
    pub(super) fn tell_stations(&mut self, readings: &Readings, feed: &channel::Sender<Event>) -> Result<()> {
        for at in 0..self.stations.all.len() {
            if let Some(gpu) = self.gpu_id(at, readings) {
                self.station_event(at, Told::Device(Some(gpu)), feed)?;
            }
            self.station_event(at, Told::Readings(Box::new(readings.clone())), feed)?;
            let station = &self.stations.all[at];
            let failing = || station.kit().and_then(|kit| kit.means.worker.trouble());
            let trouble = station.unmeasured.clone().or_else(failing);
            if trouble != station.trouble {
                self.stations.all[at].trouble.clone_from(&trouble);
                self.station_event(at, Told::Trouble(trouble), feed)?;
            }
        }
        Ok(())
    }

    /// Tells each device's policy whether something is at work there, if that changed.
    pub(super) fn note_work(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        let workers = self.stations.all_means().filter_map(|means| means.worker.state().pid);
        self.owner.own_processes(workers.chain([std::process::id()]).collect::<BTreeSet<u32>>());
        self.owner.pace(self.node.works());
        for (at, worker) in (0..self.stations.all.len()).zip(0..) {
            let works = self.node.works_on(worker);
            if works != self.stations.all[at].worked {
                self.stations.all[at].worked = works;
                self.station_event(at, Told::Working(works), feed)?;
            }
        }
        Ok(())
    }

    /// Brings a device's worker and offer in line with what is allowed.
    fn obey(&mut self, at: usize, feed: &channel::Sender<Event>) -> Result<()> {
        let worker = index(at);
        let station = &self.stations.all[at];
        let wanted = match station.allowed {
            Allowance::Nothing => None,
            Allowance::All => Some(Bench::Own),
            Allowance::CpuOnly if self.is_processor(at) => Some(Bench::Own),
            // One stands in for all.
            Allowance::CpuOnly => (at == 0).then_some(Bench::Processor),
        };
        let Some(wanted) = wanted else {
            let headline = station.view().headline;
            match self.stations.all.len() {
                1 => tracing::info!("{headline}"),
                _ => tracing::info!(worker, "{headline}"),
            }
            // The worker first: the owner waits for it.
            station.bar(&headline);
            return self.core(Input::Allow { worker, allowance: node::Allowance::Nothing });
        };
        if station.current != Some(wanted) {
            if station.current.is_some() {
                station.bar("another device is worked on");
                self.core(Input::Allow { worker, allowance: node::Allowance::Nothing })?;
            }
            let station = &mut self.stations.all[at];
            let Some(kit) = station.kits.get(&wanted) else { return self.measure(at, wanted, feed) };
            tracing::info!(worker, "{}", kit.reason);
            station.current = Some(wanted);
            let offer = self.offer();
            self.core(Input::Offer(offer))?;
        }
        let station = &self.stations.all[at];
        if let Some(kit) = station.kit() {
            kit.means.worker.unbar();
        }
        let open = station.new_work && !self.updating.holds_work() && !skein_update::is_trial();
        let allowance = if open { node::Allowance::Work } else { node::Allowance::Finish };
        self.core(Input::Allow { worker, allowance })
    }

    /// No worker takes anything new: an update waits for the work at hand.
    pub(super) fn hold_work(&mut self) -> Result<()> {
        for at in 0..self.stations.all.len() {
            if self.stations.all[at].allowed != Allowance::Nothing {
                self.core(Input::Allow { worker: index(at), allowance: node::Allowance::Finish })?;
            }
        }
        Ok(())
    }

    /// What this agent offers: every worker at its place, those that were not measured yet with nothing.
    fn offer(&self) -> Offer {
        let workers = self.stations.all.iter().map(|station| match station.kit() {
            Some(kit) => kit.offer.clone(),
            None => WorkerOffer {
                device: station.device(),
                backend: "none".to_owned(),
                matrix_mflops: 0,
                memory_mbps: 0,
                transfer_mbps: 0,
                memory_bytes: 0,
                open: false,
            },
        });
        Offer { workers: workers.collect(), addresses: self.addresses(), issued_at: self.clock.now() }
    }

    fn is_processor(&self, at: usize) -> bool {
        match &self.stations.all[at].chosen {
            Some(chosen) => chosen.device == DeviceChoice::Cpu,
            None => self.config.devices.first().is_some_and(|name| name == "cpu"),
        }
    }

    fn measure(&mut self, at: usize, bench: Bench, feed: &channel::Sender<Event>) -> Result<()> {
        let station = &self.stations.all[at];
        if station.measuring.is_some() {
            // Its end asks again what is wanted.
            return Ok(());
        }
        let on_cpu = || {
            self.stations
                .all
                .iter()
                .filter(|one| one.chosen.as_ref().is_some_and(|chosen| chosen.device == DeviceChoice::Cpu))
        };
        let (chosen, sharing) = match (bench, &station.chosen) {
            (Bench::Processor, _) => {
                let reason = "working on the CPU, as the owner wishes".to_owned();
                (Chosen { device: DeviceChoice::Cpu, reason, adapter: None }, 1)
            }
            (Bench::Own, Some(chosen)) => (chosen.clone(), on_cpu().count().max(1)),
            (Bench::Own, None) => return self.look_for_devices(feed),
        };
        let trial = Trial::default();
        let worker = index(at);
        let measuring = self.measurement(worker, chosen, sharing, trial.clone());
        self.stations.all[at].measuring = Some((bench, trial));
        let feed = feed.clone();
        skein_mesh::spawn(async move {
            let measured = measuring.await.map(Box::new);
            let _ = feed.send(Event::Measured { worker, bench, measured }).await;
        })
        .detach();
        Ok(())
    }

    /// Finds out, in child processes, which devices there are.
    fn look_for_devices(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        if matches!(self.stations.survey, Survey::UnderWay) {
            return Ok(());
        }
        self.stations.survey = Survey::UnderWay;
        let (requested, feed) = (self.config.devices.clone(), feed.clone());
        skein_mesh::spawn(async move {
            let surveyed = smol::unblock(move || choose_devices(&requested)).await;
            let _ = feed.send(Event::Surveyed(surveyed)).await;
        })
        .detach();
        Ok(())
    }

    /// The devices are known: each gets its station.
    pub(super) fn surveyed(
        &mut self,
        surveyed: Result<Surveyed>,
        feed: &channel::Sender<Event>,
    ) -> Result<()> {
        let Surveyed { chosen, broken } = match surveyed {
            Ok(surveyed) => surveyed,
            Err(error) => {
                tracing::error!("this machine cannot work: {error:#}");
                self.stations.survey = Survey::Due;
                self.stations.all[0].unmeasured = Some(format!("{error:#}"));
                return Ok(());
            }
        };
        for card in &broken {
            tracing::warn!("not used: {card}");
        }
        self.stations.survey = Survey::Done(broken);
        for (at, chosen) in chosen.into_iter().take(WORKERS_MAX).enumerate() {
            if at >= self.stations.all.len() {
                let first = &self.stations.all[0];
                let (allowed, new_work) = (first.allowed, first.new_work);
                // What it was told so far holds for every device but for what is at work on the first.
                let policy = first.policy.clone();
                self.stations.all.push(Station { allowed, new_work, ..Station::new(policy) });
                self.station_event(at, Told::Device(None), feed)?;
                self.station_event(at, Told::Working(false), feed)?;
                self.station_event(at, Told::Trouble(None), feed)?;
            }
            self.stations.all[at].chosen = Some(chosen);
            // Until it is measured.
            self.core(Input::Allow { worker: index(at), allowance: node::Allowance::Nothing })?;
        }
        for at in 0..self.stations.all.len() {
            self.obey(at, feed)?;
        }
        Ok(())
    }

    /// A measurement ended.
    pub(super) fn measured(
        &mut self,
        worker: u8,
        bench: Bench,
        measured: Result<Box<Measured>>,
        feed: &channel::Sender<Event>,
    ) -> Result<()> {
        let at = usize::from(worker);
        let station = &mut self.stations.all[at];
        let barred = station.measuring.take().is_some_and(|(_, trial)| trial.is_barred());
        match measured {
            Ok(measured) => {
                let Measured { offer, reports, means, reason, pci } = *measured;
                forward(reports, feed.clone(), Event::Report);
                station.kits.insert(bench, Kit { means, offer, reason, pci });
                station.unmeasured = None;
            }
            Err(error) if barred => tracing::debug!("a measurement was given up: {error:#}"),
            Err(error) => {
                tracing::error!(worker, "{} cannot be worked on: {error:#}", station.device());
                station.unmeasured = Some(format!("{error:#}"));
                return Ok(());
            }
        }
        self.obey(at, feed)
    }

    /// The id that sensors give to the GPU of a station: its address, or its name if exactly one has it.
    pub(super) fn gpu_id(&self, at: usize, readings: &Readings) -> Option<String> {
        let kit = self.stations.all[at].kit().filter(|kit| kit.offer.backend != "cpu")?;
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
}

/// There are never more than [`WORKERS_MAX`].
fn index(at: usize) -> u8 {
    u8::try_from(at).unwrap_or(u8::MAX)
}

/// The devices to work on and why, after every adapter was tried in a process of its own.
///
/// # Errors
/// When a requested device does not exist or does not work.
fn choose_devices(requested: &[String]) -> Result<Surveyed> {
    if !requested.is_empty() && requested.iter().all(|name| name == "cpu") {
        let reason = "working on the CPU, as the owner wishes".to_owned();
        let cpu = Chosen { device: DeviceChoice::Cpu, reason, adapter: None };
        return Ok(Surveyed { chosen: vec![cpu; requested.len()], broken: Vec::new() });
    }
    let executable = std::env::current_exe().context("cannot find this binary's own path")?;
    let survey = probe::survey(&executable, PROBE_TIMEOUT);
    let chosen = probe::choose_all(&survey, requested)?;
    let broken = if requested.is_empty() { probe::broken_cards(&survey) } else { Vec::new() };
    Ok(Surveyed { chosen, broken })
}
