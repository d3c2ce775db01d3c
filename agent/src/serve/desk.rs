//! Finds who serves a model of a given name, and has it served if its owner added it here.
//!
//! A model that was put into service by a request is taken out again when nobody asks for it any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use skein_engine::graph::PAGE_POSITIONS;
use skein_proto::ids::JobId;
use skein_proto::job::{JobSpec, Requires, ServeSpec, Work};
use skein_proto::message::JobStatus;
use smol::channel;

use super::registry::{Entry, Registry};
use super::samples::Samples;
use super::served::{Library, Served};
use super::slots::Slots;
use crate::daemon::pipeline::Pipeline;
use crate::daemon::{Call, Event, lock};
use crate::limits::{
    LOAD_WAIT, PLACEMENT_POLL, REQUESTS_WAITING_MAX, SERVE_CONTEXT, SERVE_IDLE, SERVE_SESSIONS,
    SESSIONS_PER_MODEL,
};

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    #[error(
        "no model `{0}` is served or was added here\nhint: GET /v1/models lists them; `skein model add FILE` adds one"
    )]
    Missing(String),
    #[error("{0}")]
    Unavailable(String),
}

/// How a model that was added is to be served.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServeOrder {
    /// Its name.
    pub(crate) model: String,
    /// Exactly so many stages; as few as possible if absent.
    pub(crate) stages: Option<u16>,
    /// Longest sequence in tokens; the model's own if absent, up to [`SERVE_CONTEXT`].
    pub(crate) context: Option<u32>,
    /// So many sequences of that length fit the caches; [`SERVE_SESSIONS`] if absent.
    pub(crate) sessions: Option<u16>,
}

/// One per agent. Clones share it.
#[derive(Clone)]
pub(crate) struct Desk {
    feed: channel::Sender<Event>,
    models: Library,
    registry: Registry,
    samples: Samples,
    shared: Arc<Mutex<Shared>>,
    starting: Arc<smol::lock::Mutex<()>>,
}

#[derive(Default)]
struct Shared {
    slots: BTreeMap<JobId, Slots>,
    /// Jobs that requests put into service, and when they were last used.
    started: BTreeMap<JobId, Instant>,
}

impl Desk {
    pub(crate) fn new(
        feed: channel::Sender<Event>,
        models: Library,
        registry: Registry,
        samples: Samples,
    ) -> Self {
        Self { feed, models, registry, samples, shared: Arc::default(), starting: Arc::default() }
    }

    /// The models that were added here.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The model of this name, ready to answer; puts it into service if need be, which may take as long as
    /// its weights take to travel.
    ///
    /// # Errors
    /// [`FindError`].
    pub(crate) async fn find(&self, name: &str) -> Result<Arc<Served>, FindError> {
        let (jobs, pipeline) = self.serving(name).await?;
        let job = match self.least_busy(jobs) {
            Some(job) => job,
            None => self.start(name).await?,
        };
        let Work::Serve(spec) = &job.work else { return Err(FindError::Missing(name.to_owned())) };
        let model = self.models.load(spec.model).await.map_err(FindError::Unavailable)?;
        let slots = {
            let mut shared = lock(&self.shared);
            if let Some(used) = shared.started.get_mut(&job.id) {
                *used = Instant::now();
            }
            let context = (spec.context as usize).next_multiple_of(PAGE_POSITIONS);
            let tokens = context * usize::from(spec.sessions);
            let slots = || Slots::new(tokens, SESSIONS_PER_MODEL, REQUESTS_WAITING_MAX);
            shared.slots.entry(job.id).or_insert_with(slots).clone()
        };
        let context = spec.context.min(model.manifest.config.context);
        let feed = self.feed.clone();
        let (name, digest, samples) = (name.to_owned(), spec.model, self.samples.clone());
        let served = Served { name, job: job.id, digest, model, slots, context, pipeline, samples, feed };
        self.ready(&served).await?;
        Ok(Arc::new(served))
    }

    /// Waits for the first complete pipeline.
    async fn ready(&self, served: &Served) -> Result<(), FindError> {
        let started = Instant::now();
        while served.stages().await.map_err(FindError::Unavailable)?.is_empty() {
            if started.elapsed() > LOAD_WAIT {
                let message = format!(
                    "no complete pipeline for `{}` within {} s\nhint: `skein jobs` tells what it waits for",
                    served.name,
                    LOAD_WAIT.as_secs()
                );
                return Err(FindError::Unavailable(message));
            }
            smol::Timer::after(PLACEMENT_POLL).await;
        }
        Ok(())
    }

    /// Of several jobs that serve one name, the one that is ready and has the fewest answers under way.
    fn least_busy(&self, jobs: Vec<JobStatus>) -> Option<JobStatus> {
        let shared = lock(&self.shared);
        let busy = |job: &JobStatus| shared.slots.get(&job.id).map_or(0, Slots::busy);
        jobs.into_iter().min_by_key(|job| (job.stages.is_empty(), busy(job), job.id))
    }

    /// Puts a model of the registry into service.
    async fn start(&self, name: &str) -> Result<JobStatus, FindError> {
        let entry = self.registry.get(name).map_err(|_| FindError::Missing(name.to_owned()))?;
        // One request starts it, those that come meanwhile wait for the same.
        let _turn = self.starting.lock().await;
        if let Some(job) = self.serving(name).await?.0.into_iter().next() {
            return Ok(job);
        }
        let spec = self.job(&entry, &ServeOrder::default())?;
        let submitted = self.ask(|answer| Call::Submit(spec, answer)).await?;
        let id = submitted.map_err(FindError::Unavailable)?;
        tracing::info!(model = name, job = %id.short(), "put into service");
        lock(&self.shared).started.insert(id, Instant::now());
        let started = Instant::now();
        loop {
            if let Some(job) = self.serving(name).await?.0.into_iter().find(|job| job.id == id) {
                return Ok(job);
            }
            if started.elapsed() > LOAD_WAIT {
                return Err(FindError::Unavailable(format!("no coordinator took `{name}`")));
            }
            smol::Timer::after(PLACEMENT_POLL).await;
        }
    }

    /// The job that serves a model that was added here.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(crate) fn job(&self, entry: &Entry, order: &ServeOrder) -> Result<JobSpec, FindError> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| FindError::Unavailable(error.to_string()))?;
        let serve = ServeSpec {
            model: entry.model,
            size: entry.size,
            context: order.context.unwrap_or_else(|| entry.context.min(SERVE_CONTEXT)),
            sessions: order.sessions.unwrap_or(SERVE_SESSIONS),
            stages: order.stages,
        };
        Ok(JobSpec {
            name: entry.name.clone(),
            nonce: u64::from_le_bytes(nonce),
            work: Work::Serve(serve),
            requires: Requires::default(),
        })
    }

    /// Takes out of service what requests put there and nobody used for a while.
    pub(crate) async fn retire_idle(&self) {
        let idle: Vec<JobId> = {
            let mut shared = lock(&self.shared);
            let busy: Vec<JobId> =
                shared.slots.iter().filter(|(_, slots)| slots.busy() > 0).map(|(job, _)| *job).collect();
            for job in busy {
                if let Some(used) = shared.started.get_mut(&job) {
                    *used = Instant::now();
                }
            }
            let idle: Vec<JobId> = shared
                .started
                .iter()
                .filter(|(_, used)| used.elapsed() > SERVE_IDLE)
                .map(|(job, _)| *job)
                .collect();
            for job in &idle {
                shared.started.remove(job);
                shared.slots.remove(job);
            }
            idle
        };
        for job in idle {
            tracing::info!(job = %job.short(), "taken out of service: nobody asks for it");
            let _ = self.ask(|answer| Call::Cancel(job, answer)).await;
        }
    }

    async fn serving(&self, name: &str) -> Result<(Vec<JobStatus>, Pipeline), FindError> {
        let name = name.to_owned();
        self.ask(|answer| Call::Serving { name, answer }).await
    }

    async fn ask<T>(&self, call: impl FnOnce(channel::Sender<T>) -> Call) -> Result<T, FindError> {
        let leaving = || FindError::Unavailable("the agent is leaving".to_owned());
        let (answer, heard) = channel::bounded(1);
        self.feed.send(Event::Call(call(answer))).await.map_err(|_| leaving())?;
        heard.recv().await.map_err(|_| leaving())
    }
}
