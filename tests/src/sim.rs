//! Many cores in one process: virtual time, a network and workers driven by one seed.
//!
//! Connections deliver in order while they last, and break at any moment: noticed at each end at its own
//! time, with everything under way lost. A crash takes an agent's memory and leaves its log and blobs. Must
//! never read the real clock or draw from anything but its seed.

mod orders;
mod rigs;

use std::collections::BTreeMap;

use skein_proto::genesis::Genesis;
use skein_proto::holdings::{Executed, Trouble};
use skein_proto::ids::{Digest, JobId, LeaseId, Millis, NodeId};
use skein_proto::job::{JobSpec, Shard, Work};
use skein_proto::lease::Pace;
use skein_proto::limits::TICK_MS;
use skein_proto::message::{JobStatus, Phase};
use skein_proto::node::{Execution, Input, Node, Output};
use skein_proto::signed::encode;

use self::rigs::few_enough;
use crate::machine::{Host, Labour, Wire};
use crate::model::{Broken, Model, Terms};
use crate::prng::Prng;

/// Virtual time between two looks at whether all is well.
const LOOK_MS: u64 = 250;
/// All must stay well for so long.
const CALM_MS: u64 = 5_000;
/// A worker looks so often for a blob that nobody has before it gives up.
const FETCHES_MAX: u32 = 20;

/// What goes wrong by itself.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Longest way of a frame.
    pub latency_ms_max: u64,
    /// Connections that break, of a thousand, at each beat of each agent.
    pub flaps_per_mille: u64,
    /// Steps of work that kill their worker, of a thousand.
    pub failures_per_mille: u64,
}

impl Faults {
    /// A good network and good workers.
    pub const NONE: Self = Self { latency_ms_max: 60, flaps_per_mille: 0, failures_per_mille: 0 };
}

enum Event {
    Beat { host: usize, life: u32 },
    Opened { host: usize, life: u32, peer: usize, wire: u64 },
    Closed { host: usize, peer: usize, wire: u64 },
    Frame { from: usize, to: usize, wire: u64, bytes: Vec<u8> },
    Work { host: usize, life: u32, lease: LeaseId },
    Stopped { host: usize, life: u32, lease: LeaseId },
}

/// The simulated world.
pub struct World {
    now: u64,
    order: u64,
    prng: Prng,
    genesis: Genesis,
    faults: Faults,
    hosts: Vec<Host>,
    by_id: BTreeMap<NodeId, usize>,
    /// Hosts in different groups do not reach each other.
    groups: Vec<u8>,
    wires: BTreeMap<u64, Wire>,
    queue: BTreeMap<(u64, u64), Event>,
    model: Model,
    jobs: BTreeMap<JobId, (usize, JobSpec)>,
    told: bool,
}

impl World {
    /// `count` machines, all started within a second. `told`: print the owner's log of each.
    pub fn new(seed: u64, count: usize, faults: Faults, told: bool) -> Self {
        let mut prng = Prng::new(seed);
        let genesis =
            Genesis { name: "simulation".into(), policy: "io".into(), started_at_ms: 0, epoch_ms: 3_600_000 };
        let hosts: Vec<Host> = (0..count).map(|_| Host::new(&mut prng)).collect();
        let by_id = hosts.iter().enumerate().map(|(place, host)| (host.id, place)).collect();
        let mut world = Self {
            now: 1_000_000,
            order: 0,
            prng,
            genesis,
            faults,
            hosts,
            by_id,
            groups: vec![0; count],
            wires: BTreeMap::new(),
            queue: BTreeMap::new(),
            model: Model::default(),
            jobs: BTreeMap::new(),
            told,
        };
        if faults.flaps_per_mille > 0 {
            world.model.views_differ();
        }
        for host in 0..count {
            world.start(host);
        }
        world
    }

    /// Another machine joins.
    pub fn join(&mut self) -> usize {
        let host = Host::new(&mut self.prng);
        let place = self.hosts.len();
        self.by_id.insert(host.id, place);
        self.hosts.push(host);
        self.groups.push(0);
        self.start(place);
        place
    }

    /// Starts a machine, with nothing in memory.
    pub fn start(&mut self, host: usize) {
        let delay = self.prng.between(0, 1_000);
        let place = &mut self.hosts[host];
        if place.life > 0 {
            self.model.views_differ();
        }
        place.life += 1;
        place.node = Some(Node::new(place.key.clone(), &self.genesis, false));
        place.terms = Terms::default();
        let life = place.life;
        self.after(delay, Event::Beat { host, life });
    }

    /// Ends a machine at once; its log and blobs stay.
    pub fn crash(&mut self, host: usize) {
        self.tell(host, "crashes");
        for wire in self.end(host) {
            // Others hear the reset at once, or only their own silence.
            let slow = if self.prng.chance(500) { 100 } else { 4_000 };
            self.cut(wire, 0, slow);
        }
    }

    /// Kills an agent on a machine that lives on and says so: others miss it as soon as they ask.
    pub fn kill(&mut self, host: usize) {
        self.tell(host, "is killed");
        for wire in self.end(host) {
            self.cut(wire, 100, 950);
        }
    }

    /// Ends a machine without a word: others miss it by its silence alone.
    pub fn darken(&mut self, host: usize) {
        self.tell(host, "goes dark");
        for wire in self.end(host) {
            self.cut(wire, 60_000, 60_000);
        }
    }

    fn end(&mut self, host: usize) -> Vec<u64> {
        self.model.ended(host);
        let place = &mut self.hosts[host];
        place.node = None;
        place.work.clear();
        for worker in &mut place.workers {
            worker.queue.clear();
        }
        std::mem::take(&mut place.wires).into_values().collect()
    }

    /// Splits the network: the hosts in `minority` reach only each other.
    pub fn split(&mut self, minority: &[usize]) {
        self.model.views_differ();
        for &host in minority {
            self.groups[host] = 1;
        }
        let apart = |wire: &Wire| self.groups[wire.ends[0]] != self.groups[wire.ends[1]];
        let cut: Vec<u64> = self.wires.iter().filter(|(_, wire)| apart(wire)).map(|(id, _)| *id).collect();
        for wire in cut {
            self.cut(wire, 0, 4_000);
        }
    }

    /// Everybody reaches everybody again, and nothing breaks by itself any more.
    pub fn heal(&mut self) {
        self.groups.fill(0);
        self.faults = Faults { latency_ms_max: self.faults.latency_ms_max, ..Faults::NONE };
    }

    /// The owner of `job` ends it.
    pub fn cancel(&mut self, job: JobId) -> Result<(), Broken> {
        let Some((owner, _)) = self.jobs.get(&job) else { return Ok(()) };
        self.input(*owner, Input::Cancel(job))
    }

    /// Runs for `ms` of virtual time.
    pub fn run_for(&mut self, ms: u64) -> Result<(), Broken> {
        let end = self.now + ms;
        while let Some((&(time, order), _)) = self.queue.first_key_value() {
            if time > end {
                break;
            }
            self.now = time;
            if let Some(event) = self.queue.remove(&(time, order)) {
                self.happen(event)?;
            }
        }
        self.now = end;
        Ok(())
    }

    /// Runs until `reached`, at most for `ms` of virtual time.
    pub fn run_until(
        &mut self,
        ms: u64,
        what: &str,
        mut reached: impl FnMut(&Self) -> bool,
    ) -> Result<(), Broken> {
        let end = self.now + ms;
        while !reached(self) {
            if self.now >= end {
                return Err(format!("after {ms} ms still not: {what}\n{}", self.picture()));
            }
            self.run_for(LOOK_MS)?;
        }
        Ok(())
    }

    /// Runs until all is well, and stays so for a while: one coordinator, trained jobs done and right,
    /// serving jobs running on full pipelines.
    pub fn settle(&mut self, ms: u64) -> Result<(), Broken> {
        let end = self.now + ms;
        let mut well_since = None;
        loop {
            self.run_for(LOOK_MS)?;
            match self.unsettled() {
                None => {
                    let since = *well_since.get_or_insert(self.now);
                    if self.now - since >= CALM_MS {
                        return self.check_ends();
                    }
                }
                Some(why) if self.now >= end => {
                    return Err(format!("never settled: {why}\n{}", self.picture()));
                }
                Some(_) => well_since = None,
            }
        }
    }

    /// Now, in virtual time.
    pub fn now_ms(&self) -> u64 {
        self.now
    }

    /// Machines that run.
    pub fn alive(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|&host| self.hosts[host].node.is_some()).collect()
    }

    /// The coordinator that all running machines obey, if they obey one and the same.
    pub fn coordinator(&self) -> Option<usize> {
        let mut reigns = self.nodes().map(|(_, node)| node.reign());
        let first = reigns.next()??;
        let host = *self.by_id.get(&first.coordinator)?;
        let in_office = self.hosts[host].node.as_ref()?.reign() == Some(first);
        (in_office && reigns.all(|reign| reign == Some(first))).then_some(host)
    }

    /// A running machine other than `others`, by lot.
    pub fn bystander(&mut self, others: &[usize]) -> Option<usize> {
        let free: Vec<usize> = self.alive().into_iter().filter(|host| !others.contains(host)).collect();
        let last = u64::try_from(free.len()).ok()?.checked_sub(1)?;
        let place = self.prng.between(0, last);
        free.get(usize::try_from(place).ok()?).copied()
    }

    /// What the owner of `job` knows of it.
    pub fn status(&self, job: JobId) -> Option<&JobStatus> {
        let (owner, _) = self.jobs.get(&job)?;
        self.hosts[*owner].node.as_ref()?.jobs().get(&job)
    }

    /// Whether the owner of `job` sees a pipeline of agents that run and hold its stages.
    pub fn is_served(&self, job: JobId) -> bool {
        self.status(job).is_some_and(|status| status.phase == Phase::Running && self.serves(job, status))
    }

    /// The machine of agent `id`.
    pub fn host_of(&self, id: NodeId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    fn nodes(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.hosts.iter().enumerate().filter_map(|(place, host)| Some((place, host.node.as_ref()?)))
    }

    /// Why not all is well yet.
    fn unsettled(&self) -> Option<String> {
        if self.coordinator().is_none() {
            return Some("not everybody obeys one coordinator".into());
        }
        for (job, (owner, spec)) in &self.jobs {
            for (host, node) in self.nodes() {
                let name = job.short();
                let Some(status) = node.jobs().get(job) else {
                    if host == *owner {
                        return Some(format!("owner {host} knows nothing of job {name}"));
                    }
                    continue;
                };
                let well = match (&spec.work, &status.phase) {
                    (_, Phase::Done | Phase::Cancelled | Phase::Failed { .. }) => true,
                    (Work::Serve(_), Phase::Running) => self.serves(*job, status),
                    (_, Phase::Waiting | Phase::Running) => false,
                };
                if !well {
                    return Some(format!("host {host} sees job {name} as {:?}", status.phase));
                }
            }
        }
        None
    }

    /// Whether every stage that is told is held where it is told to be.
    fn serves(&self, job: JobId, status: &JobStatus) -> bool {
        !status.stages.is_empty()
            && status.stages.iter().all(|stage| {
                let host = self.host_of(stage.node).and_then(|host| self.hosts[host].node.as_ref());
                host.is_some_and(|node| {
                    node.held().iter().any(|held| held.id == stage.lease && held.job == job)
                })
            })
    }

    /// Once all is well: the results are right, and every lease that is not held any more has its receipt.
    fn check_ends(&self) -> Result<(), Broken> {
        for (job, (owner, spec)) in &self.jobs {
            let Work::Train(train) = &spec.work else { continue };
            let Some(status) = self.hosts[*owner].node.as_ref().and_then(|node| node.jobs().get(job)) else {
                continue;
            };
            if status.phase != Phase::Done {
                continue;
            }
            let Some(state) = status.state else { return Err("done without a result".into()) };
            self.model.check_training(train, state)?;
            if !status.digests_equal {
                return Err("equal workers, yet their digests are told to differ".into());
            }
            if status.start_loss_micronats.is_none() {
                return Err("the loss before training was forgotten".into());
            }
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Beat { host, life } if self.lives(host, life) => self.beat(host, life),
            Event::Opened { host, life, peer, wire } if self.lives(host, life) => {
                self.opened(host, peer, wire)
            }
            Event::Closed { host, peer, wire } => {
                if self.hosts[host].wires.get(&peer) != Some(&wire) {
                    return Ok(());
                }
                self.hosts[host].wires.remove(&peer);
                let id = self.hosts[peer].id;
                self.input(host, Input::Down(id))
            }
            Event::Frame { from, to, wire, bytes } => {
                let carried = self.wires.get(&wire).is_some_and(|wire| !wire.broken)
                    && self.hosts[to].wires.get(&from) == Some(&wire);
                if !carried {
                    return Ok(());
                }
                let from = self.hosts[from].id;
                self.input(to, Input::Frame { from, bytes })
            }
            Event::Work { host, life, lease } if self.lives(host, life) => self.step(host, lease),
            Event::Stopped { host, life, lease } if self.lives(host, life) => {
                let Some(labour) = self.hosts[host].work.get(&lease) else { return Ok(()) };
                let result = if labour.execution.shard.is_standing() && labour.done == labour.of {
                    Ok(Executed {
                        inputs: Vec::new(),
                        outputs: Vec::new(),
                        tokens: 7,
                        received_bytes: 0,
                        loss_micronats: None,
                    })
                } else {
                    Err("stopped".into())
                };
                self.finish(host, lease, result)
            }
            Event::Beat { .. } | Event::Opened { .. } | Event::Work { .. } | Event::Stopped { .. } => Ok(()),
        }
    }

    fn lives(&self, host: usize, life: u32) -> bool {
        self.hosts[host].life == life && self.hosts[host].node.is_some()
    }

    fn beat(&mut self, host: usize, life: u32) -> Result<(), Broken> {
        let measured = self.hosts[host].node.as_ref().is_some_and(|node| node.offer().is_some());
        if !measured {
            let offer = self.hosts[host].offer(self.now);
            self.input(host, Input::Offer(offer))?;
        }
        if self.hosts[host].wires.is_empty() {
            // What a shell does: it dials the peers that its owner named until it has company.
            for peer in (0..self.hosts.len()).filter(|&peer| peer != host).take(3) {
                self.dial(host, peer);
            }
        }
        let peers: Vec<usize> = self.hosts[host].wires.keys().copied().collect();
        let far = |latency_ms: u64| u32::try_from(2_000 * latency_ms).unwrap_or(u32::MAX);
        let links = peers.into_iter().map(|peer| (self.hosts[peer].id, far(self.latency()))).collect();
        self.input(host, Input::Links(links))?;
        let flaps: Vec<u64> = self.hosts[host].wires.values().copied().collect();
        for wire in flaps {
            if self.prng.chance(self.faults.flaps_per_mille) {
                self.cut(wire, 0, 1_500);
            }
        }
        self.after(TICK_MS, Event::Beat { host, life });
        self.input(host, Input::Tick)
    }

    /// Opens a connection, unless there is one already.
    fn dial(&mut self, from: usize, to: usize) {
        let reachable = from != to
            && self.groups[from] == self.groups[to]
            && self.hosts[from].node.is_some()
            && self.hosts[to].node.is_some();
        let under_way = self.wires.values().any(|wire| !wire.broken && wire.ends == ends(from, to));
        if !reachable || under_way {
            return;
        }
        let wire = self.order;
        let opened = [self.latency(), self.latency()];
        let ends = ends(from, to);
        let last = [self.now + opened[0], self.now + opened[1]];
        self.wires.insert(wire, Wire { ends, broken: false, last });
        for (place, delay) in opened.into_iter().enumerate() {
            let (host, peer) = (ends[place], ends[1 - place]);
            let life = self.hosts[host].life;
            self.after(delay, Event::Opened { host, life, peer, wire });
        }
    }

    fn opened(&mut self, host: usize, peer: usize, wire: u64) -> Result<(), Broken> {
        if self.wires.get(&wire).is_none_or(|wire| wire.broken) {
            return Ok(());
        }
        let id = self.hosts[peer].id;
        if self.hosts[host].wires.insert(peer, wire).is_some() && self.prng.chance(500) {
            // A shell may report the end of the old connection, or let the new one speak for itself.
            self.input(host, Input::Down(id))?;
        }
        self.input(host, Input::Up(id))
    }

    /// Breaks a connection; each end notices in its own time.
    fn cut(&mut self, wire: u64, notice_ms_min: u64, notice_ms_max: u64) {
        let Some(broken) = self.wires.get_mut(&wire).filter(|wire| !wire.broken) else { return };
        broken.broken = true;
        let ends = broken.ends;
        for (host, peer) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let delay = self.prng.between(notice_ms_min, notice_ms_max);
            self.after(delay, Event::Closed { host, peer, wire });
        }
    }

    /// Feeds one event to a core, performs what comes out, and holds it against the model.
    fn input(&mut self, host: usize, input: Input) -> Result<(), Broken> {
        let mut outputs = Vec::new();
        let place = &mut self.hosts[host];
        let Some(node) = &mut place.node else { return Ok(()) };
        node.handle(Millis(self.now + place.ahead_ms), input, &mut outputs);
        let told = place.terms.saw(node.reign()).and_then(|()| few_enough(node));
        self.explain(host, told)?;
        for output in outputs {
            self.perform(host, output)?;
        }
        Ok(())
    }

    fn perform(&mut self, host: usize, output: Output) -> Result<(), Broken> {
        let place = &mut self.hosts[host];
        if let Output::Append(record) = &output {
            place.log.push(record.clone());
        }
        let reign = place.node.as_ref().and_then(Node::reign);
        let seen = self.model.saw(host, place.id, reign, &output, &place.log);
        self.explain(host, seen)?;
        match output {
            Output::Send(to, message) => self.send(host, to, encode(&message)),
            Output::Disconnect(peer, why) => {
                self.tell(host, &format!("disconnects {}: {why}", peer.short()));
                let peer = self.host_of(peer);
                if let Some(wire) = peer.and_then(|peer| self.hosts[host].wires.get(&peer)) {
                    self.cut(*wire, 0, 1_000);
                }
            }
            Output::Dial(peer, _) => {
                if let Some(peer) = self.host_of(peer) {
                    self.dial(host, peer);
                }
            }
            Output::Execute(execution) => self.execute(host, execution),
            Output::Stop(lease) => {
                let life = self.hosts[host].life;
                let delay = self.prng.between(0, 300);
                self.after(delay, Event::Stopped { host, life, lease });
            }
            Output::Note(line) => self.tell(host, &line),
            Output::CoordinatorChanged(reign) => self.tell(host, &format!("obeys {reign:?}")),
            Output::JobChanged(job) => {
                if let Some(status) = self.hosts[host].node.as_ref().and_then(|node| node.jobs().get(&job)) {
                    let line = format!("sees {} {:?} in round {}", job.short(), status.phase, status.round);
                    self.tell(host, &line);
                }
            }
            Output::Append(_) => {}
        }
        Ok(())
    }

    fn send(&mut self, host: usize, to: NodeId, bytes: Vec<u8>) {
        let latency = self.latency();
        let Some(to) = self.host_of(to) else { return };
        let Some(id) = self.hosts[host].wires.get(&to).copied() else { return };
        let Some(wire) = self.wires.get_mut(&id).filter(|wire| !wire.broken) else { return };
        let towards = usize::from(wire.ends[1] == to);
        let arrives = (self.now + latency).max(wire.last[towards]);
        wire.last[towards] = arrives;
        let delay = arrives - self.now;
        self.after(delay, Event::Frame { from: host, to, wire: id, bytes });
    }

    fn execute(&mut self, host: usize, execution: Execution) {
        let (lease, standing) = (execution.lease, execution.shard.is_standing());
        let worker = usize::from(execution.worker);
        let of = if standing { 1 } else { u32::try_from(self.prng.between(1, 4)).unwrap_or(1) };
        self.hosts[host].work.insert(lease, Labour { execution, done: 0, of, fetches: 0 });
        if standing {
            self.schedule(host, lease);
        } else {
            let queue = &mut self.hosts[host].workers[worker].queue;
            queue.push_back(lease);
            if queue.len() == 1 {
                self.schedule(host, lease);
            }
        }
    }

    fn schedule(&mut self, host: usize, lease: LeaseId) {
        let (life, delay) = (self.hosts[host].life, self.prng.between(20, 900));
        self.after(delay, Event::Work { host, life, lease });
    }

    /// One step of a worker.
    fn step(&mut self, host: usize, lease: LeaseId) -> Result<(), Broken> {
        let fails = self.prng.chance(self.faults.failures_per_mille);
        let place = &mut self.hosts[host];
        let Some(labour) = place.work.get_mut(&lease) else { return Ok(()) };
        let fails = fails || place.workers[usize::from(labour.execution.worker)].broken;
        let shard = labour.execution.shard.clone();
        if labour.done == 0 {
            labour.fetches += 1;
            let patient = labour.fetches < FETCHES_MAX;
            if let Some(missing) = shard.inputs().into_iter().find(|blob| !self.fetch(host, *blob)) {
                if patient {
                    self.schedule(host, lease);
                    return Ok(());
                }
                return self.finish(
                    host,
                    lease,
                    Err(Trouble {
                        reason: format!("nobody has blob {}", missing.short()),
                        missing: Some(missing),
                    }),
                );
            }
        }
        if fails {
            return self.finish(host, lease, Err("the worker died".into()));
        }
        let Some(labour) = self.hosts[host].work.get_mut(&lease) else { return Ok(()) };
        labour.done += 1;
        let (done, of) = (labour.done, labour.of);
        self.input(host, Input::Progress(lease, Pace { done, of, loss_micronats: Some(i64::from(done)) }))?;
        if done < of {
            self.schedule(host, lease);
            return Ok(());
        }
        if shard.is_standing() {
            return Ok(());
        }
        let shown = if let Shard::Show { began, .. } = &shard { Some(*began) } else { None };
        let mut outputs = vec![shown.unwrap_or_else(|| self.model.make(&shard))];
        self.hosts[host].blobs.extend(&outputs);
        if let Shard::Train { .. } = shard {
            outputs.push(Digest::of(&outputs[0].0));
        }
        let loss_micronats = match &shard {
            Shard::Init { judge, .. } => judge.then_some(1_000),
            Shard::Merge { part, .. } => part.map(|_| 1_000),
            Shard::Train { .. } => Some(1_000),
            Shard::Show { .. } => None,
            Shard::Check { .. } => Some(0),
            Shard::Judge { group, .. } => group.is_last().then_some(1_000),
            Shard::Stage { .. } => None,
        };
        let inputs = shard.inputs();
        let executed = Executed { inputs, outputs, tokens: 10, received_bytes: 0, loss_micronats };
        self.finish(host, lease, Ok(executed))
    }

    fn finish(
        &mut self,
        host: usize,
        lease: LeaseId,
        result: Result<Executed, Trouble>,
    ) -> Result<(), Broken> {
        if let Some(labour) = self.hosts[host].work.remove(&lease) {
            let queue = &mut self.hosts[host].workers[usize::from(labour.execution.worker)].queue;
            let first = queue.front() == Some(&lease);
            queue.retain(|queued| *queued != lease);
            if first && let Some(next) = queue.front().copied() {
                self.schedule(host, next);
            }
        }
        self.input(host, Input::Finished(lease, result))?;
        let recorded = self.model.finished(lease);
        self.explain(host, recorded)
    }

    /// Copies a blob from a connected machine that has it.
    fn fetch(&mut self, host: usize, blob: Digest) -> bool {
        let place = &self.hosts[host];
        let carries = |(peer, wire): (&usize, &u64)| {
            self.wires.get(wire).is_some_and(|wire| !wire.broken) && self.hosts[*peer].blobs.contains(&blob)
        };
        let found = place.blobs.contains(&blob) || place.wires.iter().any(carries);
        if found {
            self.hosts[host].blobs.insert(blob);
        }
        found
    }

    fn latency(&mut self) -> u64 {
        self.prng.between(1, self.faults.latency_ms_max)
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.order += 1;
        self.queue.insert((self.now + ms, self.order), event);
    }

    fn explain(&self, host: usize, held: Result<(), Broken>) -> Result<(), Broken> {
        held.map_err(|broken| format!("at {} ms, host {host}: {broken}\n{}", self.now, self.picture()))
    }

    fn tell(&self, host: usize, line: &str) {
        if self.told {
            eprintln!("{:>9} host {host} ({}) {line}", self.now, self.hosts[host].id.short());
        }
    }

    /// What everybody believes, for the report of a failure.
    fn picture(&self) -> String {
        let mut lines = Vec::new();
        for (host, node) in self.nodes() {
            let reign = node.reign().map(|reign| (reign.term.0, self.host_of(reign.coordinator)));
            lines.push(format!("host {host}: obeys (term, host) {reign:?}, holds {}", node.held().len()));
            for (job, status) in node.jobs() {
                lines.push(format!("    job {} round {}: {:?}", job.short(), status.round, status.phase));
            }
        }
        lines.join("\n")
    }
}

fn ends(one: usize, other: usize) -> [usize; 2] {
    [one.min(other), one.max(other)]
}
