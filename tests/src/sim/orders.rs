//! What the owners of simulated hosts submit. Must never look into a host.

use skein_proto::ids::{Digest, JobId};
use skein_proto::job::{JobSpec, Method, Requires, ServeSpec, TrainSize, TrainSpec, Work};
use skein_proto::node::{Allowance, Input};

use super::World;
use crate::machine::{LARGE, SIZE, TRAINED};
use crate::model::Broken;

impl World {
    /// `owner` submits a training job of `rounds` outer steps.
    pub fn train(&mut self, owner: usize, rounds: u32) -> Result<JobId, Broken> {
        self.train_sized(owner, rounds, TRAINED, 200_000)
    }

    /// Likewise, of a model that takes the memory of two hosts.
    pub fn train_large(&mut self, owner: usize, rounds: u32) -> Result<JobId, Broken> {
        self.train_sized(owner, rounds, LARGE, 200_000)
    }

    /// As the first, with every slice checked.
    pub fn train_checked(&mut self, owner: usize, rounds: u32) -> Result<JobId, Broken> {
        self.train_sized(owner, rounds, TRAINED, 1_000_000)
    }

    fn train_sized(
        &mut self,
        owner: usize,
        rounds: u32,
        size: TrainSize,
        check_millionths: u32,
    ) -> Result<JobId, Broken> {
        let data = Digest::of(&self.prng.bits().to_le_bytes());
        let model = Digest::of(&self.prng.bits().to_le_bytes());
        self.hosts[owner].blobs.extend([data, model]);
        let spec = TrainSpec {
            model,
            size,
            method: Method::Full,
            data,
            context: 16,
            rounds,
            inner_steps: 4,
            batch: 2,
            learning_rate_millionths: 3_000,
            outer_rate_millionths: 700_000,
            outer_momentum_millionths: 900_000,
            delta_bits: 4,
            check_millionths,
            seed: self.prng.bits(),
        };
        self.submit(owner, Work::Train(spec))
    }

    /// `owner` submits a serving job of `stages` stages.
    pub fn serve(&mut self, owner: usize, stages: u16) -> Result<JobId, Broken> {
        let model = Digest::of(&self.prng.bits().to_le_bytes());
        self.hosts[owner].blobs.insert(model);
        let spec = ServeSpec { model, size: SIZE, context: 512, sessions: 4, stages: Some(stages) };
        self.submit(owner, Work::Serve(spec))
    }

    /// The owner of `host` needs it, wants it to finish, or lets it work; nothing happens while it is off.
    pub fn allow(&mut self, host: usize, allowance: Allowance) -> Result<(), Broken> {
        (0..self.workers(host)).try_for_each(|worker| self.allow_worker(host, worker, allowance))
    }

    /// Likewise, one of its workers.
    pub fn allow_worker(&mut self, host: usize, worker: u8, allowance: Allowance) -> Result<(), Broken> {
        if self.hosts[host].node.is_none() {
            return Ok(());
        }
        self.tell(host, &format!("allows worker {worker}: {allowance:?}"));
        self.input(host, Input::Allow { worker, allowance })
    }

    fn submit(&mut self, owner: usize, work: Work) -> Result<JobId, Broken> {
        let spec =
            JobSpec { name: "job".into(), nonce: self.prng.bits(), work, requires: Requires::default() };
        let Some(node) = &self.hosts[owner].node else { return Err("the owner is not running".into()) };
        let job = node.sign_job(spec.clone());
        let id = JobId(job.digest().0);
        self.jobs.insert(id, (owner, spec));
        self.input(owner, Input::Submit(Box::new(job), None))?;
        Ok(id)
    }
}
