//! The stations: one for each device of this machine, with what works on it and what its owner allows there.
//!
//! The decision is `skein-policy`'s, one policy for each device, so that a hot card rests alone. Here a "no" becomes a dead
//! worker within milliseconds and a closed offer, a "yes" a device that is measured and offered. What happens on one
//! device must never stop another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use skein_compute::device::DeviceChoice;
use skein_compute::probe::{Chosen, Surveying};
use skein_policy::readings::Readings;
use skein_policy::{Action, Allowance, Blocks, Event as Told, Policy, Reason, Rule, Settings, View};
use skein_proto::limits::WORKERS_MAX;
use skein_proto::node::{self, Input};
use skein_proto::offer::{Offer, WorkerOffer};
use smol::channel;

use super::device::{self, Retry, Surveyed};
use super::history::gpus;
use super::owner::unix_ms;
use super::status::{self, WorkerStatus};
use super::{Daemon, Event, Means, Measured, forward};
use crate::limits::QUIET_RATE;

pub(super) use super::worker::Trial;

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
}

/// Why a worker ends that may start again at any time.
const ELSEWHERE: &str = "another device is worked on";

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
    /// What its policy was told of a process of ours on its device.
    occupied: bool,
    /// Why its device cannot be measured.
    unmeasured: Option<String>,
    /// When that is tried again.
    retry: Retry,
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
            occupied: false,
            unmeasured: None,
            retry: Retry::default(),
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

    /// The processes that work on its devices or measure them.
    fn pids(&self) -> impl Iterator<Item = u32> {
        let trial = self.measuring.as_ref().and_then(|(_, trial)| trial.pid());
        self.kits.values().filter_map(|kit| kit.means.worker.state().pid).chain(trial)
    }

    /// Gives up another device for this one.
    fn change_to(&mut self, chosen: Chosen) {
        if let Some(kit) = self.kits.remove(&Bench::Own) {
            kit.means.worker.bar(ELSEWHERE);
        }
        if let Some((Bench::Own, trial)) = &self.measuring {
            trial.bar(ELSEWHERE);
        }
        self.current = self.current.filter(|bench| *bench != Bench::Own);
        (self.chosen, self.unmeasured, self.retry) = (Some(chosen), None, Retry::default());
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
    /// The one under way, or the last.
    looking: Surveying,
    /// When it is made again: it failed, or found less than there may be.
    survey_retry: Retry,
    /// The cards that do not work, each with what is wrong.
    broken: Vec<String>,
    /// Since when that is known, in Unix milliseconds.
    surveyed_ms: u64,
    /// The owner's limit of the line, and the one that the mesh was told.
    rate: Option<u64>,
    told_rate: Option<Option<u64>>,
}

/// Whether it is known which devices there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Survey {
    Due,
    UnderWay,
    Done,
}

impl Stations {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            all: vec![Station::new(Policy::new(settings, unix_ms()))],
            survey: Survey::Due,
            looking: Surveying::default(),
            survey_retry: Retry::default(),
            broken: Vec::new(),
            surveyed_ms: 0,
            rate: None,
            told_rate: None,
        }
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
        self.survey == Survey::UnderWay
    }

    /// Ends a look for devices that nothing may follow, or that the owner wants his GPU spared.
    fn end_vain_look(&self) {
        let view = self.all[0].view();
        if gpu_is_paused(&view) || self.all.iter().all(|station| station.allowed == Allowance::Nothing) {
            self.looking.bar(&view.headline);
        }
    }

    /// Ends all that runs on any device, at once and for good.
    pub(super) fn end(&self, why: &str) {
        self.looking.bar(why);
        self.all.iter().for_each(|station| station.bar(why));
    }

    /// Whether a device is looked for or measured.
    pub(super) fn is_measuring(&self) -> bool {
        self.is_surveying() || self.all.iter().any(|station| station.measuring.is_some())
    }

    /// How things stand, in words.
    pub(super) fn view(&self) -> View {
        let mut view = status::together(self.all.iter().map(Station::view).collect());
        // Of no station, since nothing can work there: told all the same, whatever the others do.
        view.reasons.extend(self.broken.iter().map(|card| {
            let again_ms = self.survey_retry.left(Instant::now()).unwrap_or_default().as_millis();
            Reason {
                rule: Rule::Trouble,
                blocks: Blocks::Gpu,
                text: card.clone(),
                value: "it does not work".to_owned(),
                threshold: "a card that works".to_owned(),
                since_ms: self.surveyed_ms,
                look_again_ms: unix_ms().saturating_add(u64::try_from(again_ms).unwrap_or(u64::MAX)),
                line: card.clone(),
            }
        }));
        view
    }

    /// Whether the owner pays for what is sent and fetched.
    pub(super) fn spare_the_line(&self) -> bool {
        self.any_reason(&[Rule::Metered, Rule::TrafficMonth])
    }

    /// Whether nothing may be fetched that can wait.
    pub(super) fn fetch_later(&self) -> bool {
        self.spare_the_line() || self.any_reason(&[Rule::Game, Rule::FullScreen])
    }

    fn any_reason(&self, rules: &[Rule]) -> bool {
        self.all[0].view().reasons.iter().any(|reason| rules.contains(&reason.rule))
    }

    /// Whether the owner is at something that a busy line would disturb.
    fn be_quiet_on_the_line(&self) -> bool {
        let view = self.all[0].view();
        let paused = |reason: &Reason| reason.rule == Rule::Manual && reason.blocks == Blocks::All;
        view.reasons.iter().any(|reason| {
            matches!(reason.rule, Rule::Game | Rule::FullScreen | Rule::RemoteDesktop | Rule::UserActive)
                || paused(reason)
        })
    }

    /// How many bytes a second may pass.
    fn rate(&self, has_orders: bool) -> Option<u64> {
        if !has_orders && self.be_quiet_on_the_line() {
            Some(self.rate.map_or(QUIET_RATE, |rate| rate.min(QUIET_RATE)))
        } else {
            self.rate
        }
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
                // The processor that stands in for a GPU is none.
                gpu: kit.filter(|kit| kit.offer.backend != "cpu").and_then(|_| gpu(usize::from(index))),
                pid: worker.as_ref().and_then(|worker| worker.pid),
                deaths: worker.as_ref().map_or(0, |worker| worker.deaths),
                working: works(index),
                state: view.state,
                headline: view.headline,
                reasons: view.reasons.into_iter().map(|reason| reason.line).collect(),
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
        self.limit_rate();
        Ok(())
    }

    /// Others may fetch what this agent holds while its owner plays, but not so that he feels it.
    fn limit_rate(&mut self) {
        let rate = self.stations.rate(self.has_orders());
        if self.stations.told_rate.replace(rate) != Some(rate) {
            self.mesh.limit_rate(rate);
        }
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
                Action::LimitRate(rate) if at == 0 => self.stations.rate = rate,
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
        self.limit_rate();
        self.try_again(readings, feed)
    }

    /// Finds or measures once more what could not be found or measured.
    fn try_again(&mut self, readings: &Readings, feed: &channel::Sender<Event>) -> Result<()> {
        let now = Instant::now();
        let survey_due = self.stations.survey_retry.is_due(now);
        for at in 0..self.stations.all.len() {
            let station = &self.stations.all[at];
            if station.retry.is_due(now) && station.allowed != Allowance::Nothing {
                self.obey(at, feed)?;
            }
        }
        let first = &self.stations.all[0];
        let more = match self.stations.survey {
            Survey::Due => true,
            Survey::UnderWay => false,
            Survey::Done => !gpus(&readings.gpus).is_empty(),
        };
        if survey_due && more && first.allowed != Allowance::Nothing && !gpu_is_paused(&first.view()) {
            self.look_for_devices(feed);
        }
        Ok(())
    }

    /// Tells each device's policy whether something is at work there, if that changed.
    pub(super) fn note_work(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        let mut pids: BTreeSet<u32> = self.stations.all.iter().flat_map(Station::pids).collect();
        pids.extend(self.stations.looking.pid());
        self.owner.pace(self.node.works() || !pids.is_empty() || self.stations.is_measuring());
        pids.insert(std::process::id());
        self.owner.own_processes(pids);
        let looking = self.stations.survey == Survey::UnderWay;
        for (at, worker) in (0..self.stations.all.len()).zip(0..) {
            let works = self.node.works_on(worker);
            if works != self.stations.all[at].worked {
                self.stations.all[at].worked = works;
                self.station_event(at, Told::Working(works), feed)?;
            }
            let station = &mut self.stations.all[at];
            let occupied = looking || station.measuring.is_some() || station.pids().next().is_some();
            if occupied != station.occupied {
                station.occupied = occupied;
                self.station_event(at, Told::Occupied(occupied), feed)?;
            }
        }
        Ok(())
    }

    /// Brings a device's worker and offer in line with what is allowed.
    fn obey(&mut self, at: usize, feed: &channel::Sender<Event>) -> Result<()> {
        self.stations.end_vain_look();
        let worker = index(at);
        let station = &self.stations.all[at];
        let look_first = station.chosen.is_none()
            && !self.stations.survey_retry.has_failed()
            && !gpu_is_paused(&station.view());
        let wanted = device::wanted(station.allowed, at == 0, self.is_processor(at), look_first);
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
        if let Some((bench, trial)) = &station.measuring
            && *bench != wanted
        {
            // Its end asks again what is wanted.
            trial.bar(ELSEWHERE);
        }
        if station.current != Some(wanted) {
            if station.current.is_some() {
                station.bar(ELSEWHERE);
                self.core(Input::Allow { worker, allowance: node::Allowance::Nothing })?;
            }
            let station = &mut self.stations.all[at];
            let Some(kit) = station.kits.get(&wanted) else { return self.measure(at, wanted, feed) };
            tracing::info!(worker, "{}", kit.reason);
            station.current = Some(wanted);
            let offer = self.offer();
            self.core(Input::Offer(offer))?;
        }
        let station = &mut self.stations.all[at];
        (station.unmeasured, station.retry) = (None, Retry::default());
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
            (Bench::Own, None) => {
                if !self.stations.survey_retry.is_waiting(Instant::now()) {
                    self.look_for_devices(feed);
                }
                return Ok(());
            }
        };
        let trial = Trial::default();
        let worker = index(at);
        let measuring = self.measurement(worker, chosen, sharing, trial.clone());
        let station = &mut self.stations.all[at];
        station.retry.begin();
        station.measuring = Some((bench, trial));
        let feed = feed.clone();
        skein_mesh::spawn(async move {
            let measured = measuring.await.map(Box::new);
            let _ = feed.send(Event::Measured { worker, bench, measured }).await;
        })
        .detach();
        Ok(())
    }

    /// Finds out, in child processes, which devices there are.
    fn look_for_devices(&mut self, feed: &channel::Sender<Event>) {
        if self.stations.survey == Survey::UnderWay {
            return;
        }
        self.stations.survey = Survey::UnderWay;
        self.stations.survey_retry.begin();
        let looking = Surveying::default();
        self.stations.looking = looking.clone();
        let (requested, feed) = (self.config.devices.clone(), feed.clone());
        skein_mesh::spawn(async move {
            let surveyed = smol::unblock(move || device::choose(&requested, &looking)).await;
            let _ = feed.send(Event::Surveyed(surveyed)).await;
        })
        .detach();
    }

    /// The devices are known: each gets its station.
    pub(super) fn surveyed(
        &mut self,
        surveyed: Result<Surveyed>,
        feed: &channel::Sender<Event>,
    ) -> Result<()> {
        let stations = &mut self.stations;
        let Surveyed { chosen, broken } = match surveyed {
            Ok(surveyed) => surveyed,
            Err(error) if stations.looking.is_barred() => {
                tracing::debug!("{error:#}");
                stations.survey = Survey::Due;
                stations.survey_retry.given_up(Instant::now());
                // By now work may be allowed again; as long as it is not, nothing is to be obeyed.
                let idle = stations.all[0].allowed == Allowance::Nothing;
                return if idle { Ok(()) } else { self.obey(0, feed) };
            }
            Err(error) => {
                tracing::error!("this machine cannot work: {error:#}");
                stations.survey = Survey::Due;
                stations.survey_retry.failed(Instant::now());
                stations.all[0].unmeasured = Some(format!("{error:#}"));
                // The processor may stand in.
                return self.obey(0, feed);
            }
        };
        for card in broken.iter().filter(|card| !stations.broken.contains(card)) {
            tracing::warn!("not used: {card}");
        }
        // A driver may come up later.
        let by_processor = chosen.iter().all(|chosen| chosen.device == DeviceChoice::Cpu);
        if self.config.devices.is_empty() && (by_processor || !broken.is_empty()) {
            stations.survey_retry.failed(Instant::now());
        } else {
            stations.survey_retry = Retry::default();
        }
        if stations.broken != broken {
            stations.surveyed_ms = unix_ms();
        }
        (stations.survey, stations.broken) = (Survey::Done, broken);
        let known: Vec<Option<Chosen>> = stations.all.iter().map(|station| station.chosen.clone()).collect();
        let mut placed: Vec<(usize, Chosen)> = device::places(&known, &chosen)
            .into_iter()
            .zip(chosen)
            .filter(|(at, _)| *at < WORKERS_MAX)
            .collect();
        placed.sort_by_key(|(at, _)| *at);
        for (at, chosen) in placed {
            self.place(at, chosen, feed)?;
        }
        for at in 0..self.stations.all.len() {
            self.obey(at, feed)?;
        }
        Ok(())
    }

    /// A device gets its station, which is there or the next.
    fn place(&mut self, at: usize, chosen: Chosen, feed: &channel::Sender<Event>) -> Result<()> {
        if at >= self.stations.all.len() {
            let first = &self.stations.all[0];
            let (allowed, new_work) = (first.allowed, first.new_work);
            // What it was told so far holds for every device but for what is at work on the first.
            let policy = first.policy.clone();
            self.stations.all.push(Station { allowed, new_work, ..Station::new(policy) });
            self.station_event(at, Told::Device(None), feed)?;
            self.station_event(at, Told::Working(false), feed)?;
            self.station_event(at, Told::Occupied(false), feed)?;
            self.station_event(at, Told::Trouble(None), feed)?;
        }
        let station = &mut self.stations.all[at];
        if station.chosen.as_ref().is_some_and(|known| known.device == chosen.device) {
            return Ok(());
        }
        if station.current != Some(Bench::Processor) {
            station.bar(ELSEWHERE);
            // Until it is measured.
            self.core(Input::Allow { worker: index(at), allowance: node::Allowance::Nothing })?;
        }
        self.stations.all[at].change_to(chosen);
        // The rules look at this one from now on, and a block of another's is none of its.
        let gpu = self.owner.readings().and_then(|readings| self.gpu_id(at, readings));
        self.station_event(at, Told::Device(gpu), feed)
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
        let is_its = |measured: &Measured| match &station.chosen {
            Some(chosen) if bench == Bench::Own => chosen.device == measured.device,
            Some(_) | None => bench == Bench::Processor,
        };
        match measured {
            Ok(measured) if !is_its(&measured) => tracing::debug!("the device is another by now"),
            Ok(measured) => {
                let Measured { offer, reports, means, device: _, reason } = *measured;
                forward(reports, feed.clone(), Event::Report);
                station.kits.insert(bench, Kit { means, offer, reason });
                (station.unmeasured, station.retry) = (None, Retry::default());
            }
            Err(error) if barred => tracing::debug!("a measurement was given up: {error:#}"),
            Err(error) => {
                tracing::error!(worker, "{} cannot be worked on: {error:#}", station.device());
                station.unmeasured = Some(format!("{error:#}"));
                station.retry.failed(Instant::now());
                return Ok(());
            }
        }
        self.obey(at, feed)
    }

    /// The id that sensors give to the GPU of a station, measured or not.
    pub(super) fn gpu_id(&self, at: usize, readings: &Readings) -> Option<String> {
        let chosen = self.stations.all[at].chosen.as_ref()?;
        device::sensed(chosen, readings).map(|gpu| gpu.id.clone())
    }
}

/// Whether the owner wants his GPU left alone.
fn gpu_is_paused(view: &View) -> bool {
    view.pause.is_some_and(|pause| pause.blocks == Blocks::Gpu)
}

/// There are never more than [`WORKERS_MAX`].
fn index(at: usize) -> u8 {
    u8::try_from(at).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests;
