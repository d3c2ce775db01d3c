//! Hosts with several workers, as a rig with several GPUs has them. Must never decide what the workers do.

use skein_proto::ids::{JobId, NodeId};
use skein_proto::limits::LEASES_HELD_MAX;
use skein_proto::message::StageAt;
use skein_proto::node::{Input, Node};

use super::{Faults, World};
use crate::machine::Worker;
use crate::model::{Broken, Deeds};

impl World {
    /// As many machines as there are numbers, each with so many workers.
    pub fn with_workers(seed: u64, workers: &[u8], faults: Faults, told: bool) -> Self {
        let mut world = Self::new(seed, workers.len(), faults, told);
        for (host, count) in workers.iter().enumerate() {
            // Nobody has measured anything yet.
            world.hosts[host].workers = (0..*count).map(|_| Worker::new(1 << 30)).collect();
        }
        world
    }

    /// A machine measures itself anew and finds so many workers, each with so much memory.
    pub fn refit(&mut self, host: usize, workers: u8, memory_bytes: u64) -> Result<(), Broken> {
        let place = &mut self.hosts[host];
        place.workers.resize_with(usize::from(workers), || Worker::new(memory_bytes));
        for worker in &mut place.workers {
            worker.memory_bytes = memory_bytes;
        }
        let offer = place.offer(self.now);
        self.input(host, Input::Offer(offer))
    }

    /// From now on this worker fails whatever it is given.
    pub fn break_worker(&mut self, host: usize, worker: u8) {
        self.hosts[host].workers[usize::from(worker)].broken = true;
    }

    /// How many workers a machine has.
    pub fn workers(&self, host: usize) -> u8 {
        u8::try_from(self.hosts[host].workers.len()).unwrap_or(u8::MAX)
    }

    /// What a worker did so far.
    pub fn deeds(&self, host: usize, worker: u8) -> Deeds {
        self.model.deeds(host, worker)
    }

    /// The agent of a machine.
    pub fn agent(&self, host: usize) -> NodeId {
        self.hosts[host].id
    }

    /// The pipeline of `job`, as its owner knows it.
    pub fn stages(&self, job: JobId) -> Vec<StageAt> {
        self.status(job).map(|status| status.stages.clone()).unwrap_or_default()
    }
}

/// No worker holds more leases than it may, and none that is not there holds any.
pub(super) fn few_enough(node: &Node) -> Result<(), Broken> {
    let workers = node.offer().map_or(0, |offer| offer.statement().workers.len());
    let mut held = vec![0; workers];
    for lease in node.held() {
        let Some(count) = held.get_mut(usize::from(lease.worker)) else {
            return Err(format!("worker {} of {workers} holds a lease", lease.worker));
        };
        *count += 1;
    }
    match held.iter().max() {
        Some(most) if *most > LEASES_HELD_MAX => Err(format!("a worker holds {most} leases")),
        Some(_) | None => Ok(()),
    }
}
