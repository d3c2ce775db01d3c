//! What the worker is told about shards of training, and whether they fit what the owner allows.
//!
//! Must never talk to the worker or the mesh: shards in, tasks out.

use std::ops::Range;

use skein_compute::data;
use skein_compute::limits::CHECK_DISTANCE_MAX_MILLIONTHS;
use skein_compute::protocol::{GroupPurpose, GroupTask, InnerTask, Judge, ModelTask, PhaseTask, Task};
use skein_compute::trainee::Trainee;
use skein_engine::manifest::Manifest;
use skein_mesh::BlobStore;
use skein_proto::cost::Fit;
use skein_proto::ids::Digest;
use skein_proto::job::{Method, Part, Shard, TrainSize, TrainSpec};
use skein_proto::limits::CHECK_DISTANCE_MAX;
use skein_proto::node::Execution;

/// The learning rate rises over at most so many of an agent's first steps.
const WARMUP_STEPS_MAX: u32 = 30;

// Who measures a distance and who judges by it mean the same.
const _: () = assert!(CHECK_DISTANCE_MAX.unsigned_abs() == CHECK_DISTANCE_MAX_MILLIONTHS);

/// Makes tasks of shards whose inputs are at hand.
pub(crate) struct Tasks<'a> {
    pub(crate) store: &'a BlobStore,
    /// What jobs may use of the device's memory.
    pub(crate) memory_bytes: u64,
}

impl Tasks<'_> {
    /// A shard that one agent executes by one task.
    pub(crate) fn task(&self, execution: &Execution, out: &str) -> Result<Task, String> {
        let out = out.to_owned();
        let model = |spec| self.model(execution, spec);
        Ok(match &execution.shard {
            Shard::Init { spec, judge } => {
                let evaluate = judge.then(|| self.judge(spec, Part { index: 0, of: 1 })).transpose()?;
                Task::Init { model: model(spec), seed: spec.seed, out, evaluate }
            }
            Shard::Train { state, spec, round, first, steps, group: None, .. } => {
                let inner = inner(spec, *round, *first, *steps);
                Task::Train { phase: self.phase(execution, spec, state, inner)?, out }
            }
            Shard::Show { spec, began, .. } => Task::Show { model: model(spec), began: began.0, out },
            Shard::Check { state, spec, round, first, steps, began, delta } => {
                let inner = inner(spec, *round, *first, *steps);
                let phase = self.phase(execution, spec, state, inner)?;
                Task::Check { phase, began: self.path(began), delta: self.path(delta) }
            }
            Shard::Merge { state, deltas, spec, part, .. } => Task::Merge {
                model: model(spec),
                state: self.path(state),
                deltas: deltas
                    .iter()
                    .map(|parts| parts.iter().map(|part| self.path(part)).collect())
                    .collect(),
                outer_rate_millionths: spec.outer_rate_millionths,
                momentum_millionths: spec.outer_momentum_millionths,
                out,
                evaluate: part.map(|part| self.judge(spec, part)).transpose()?,
            },
            Shard::Train { group: Some(_), .. } | Shard::Judge { .. } | Shard::Stage { .. } => {
                return Err("this takes more than one task".into());
            }
        })
    }

    /// An inner phase of the whole model, from this checkpoint.
    fn phase(
        &self,
        execution: &Execution,
        spec: &TrainSpec,
        state: &Digest,
        inner: InnerTask,
    ) -> Result<PhaseTask, String> {
        let Fit { at_once, recompute } = self.fit(spec, &spec.layers(), spec.batch, 1)?;
        Ok(PhaseTask {
            model: self.model(execution, spec),
            state: self.path(state),
            data: self.path(&spec.data),
            context: spec.context,
            at_once,
            recompute,
            inner,
        })
    }

    /// What one member of a group is told to open.
    pub(crate) fn group(&self, execution: &Execution) -> Result<GroupTask, String> {
        let (state, spec, group, purpose) = match &execution.shard {
            Shard::Train { state, spec, round, first, steps, group: Some(group), .. } => {
                (state, spec, group, GroupPurpose::Train(inner(spec, *round, *first, *steps)))
            }
            Shard::Judge { state, spec, part, group, .. } => {
                (state, spec, group, GroupPurpose::Judge { part: part_of(*part) })
            }
            Shard::Init { .. }
            | Shard::Train { group: None, .. }
            | Shard::Show { .. }
            | Shard::Check { .. }
            | Shard::Merge { .. }
            | Shard::Stage { .. } => {
                return Err("this is no shard of a group".into());
            }
        };
        let layers = group.layers();
        let Fit { at_once, recompute } = self.fit(spec, &layers, group.sequences, group.in_flight())?;
        if at_once < group.sequences {
            return Err(self.too_little(spec, &layers, group.in_flight()));
        }
        Ok(GroupTask {
            group: group.number,
            model: self.model(execution, spec),
            state: self.path(state),
            data: self.path(&spec.data),
            context: spec.context,
            start: layers.start.into(),
            end: layers.end.into(),
            sequences: group.sequences,
            recompute,
            purpose,
        })
    }

    fn path(&self, digest: &Digest) -> String {
        self.store.path(digest).to_string_lossy().into_owned()
    }

    fn model(&self, execution: &Execution, spec: &TrainSpec) -> ModelTask {
        ModelTask {
            job: execution.job.0,
            manifest: self.path(&spec.model),
            pieces: self.store.directory().to_string_lossy().into_owned(),
            method: method(spec.method),
        }
    }

    fn judge(&self, spec: &TrainSpec, part: Part) -> Result<Judge, String> {
        self.fit(spec, &spec.layers(), 1, 1)?;
        Ok(Judge { data: self.path(&spec.data), context: spec.context, part: part_of(part) })
    }

    fn fit(
        &self,
        spec: &TrainSpec,
        layers: &Range<u16>,
        sequences: u32,
        in_flight: u16,
    ) -> Result<Fit, String> {
        let fit = spec.fit(layers, sequences, in_flight, self.memory_bytes);
        fit.ok_or_else(|| self.too_little(spec, layers, in_flight))
    }

    fn too_little(&self, spec: &TrainSpec, layers: &Range<u16>, in_flight: u16) -> String {
        format!(
            "training layers {} to {} needs {} of memory, the owner allows {}",
            layers.start,
            layers.end,
            crate::cmd::bytes_text(spec.stage_bytes(layers, in_flight)),
            crate::cmd::bytes_text(self.memory_bytes)
        )
    }
}

/// What is trained, if the shard belongs to training.
pub(crate) fn trained(shard: &Shard) -> Option<&TrainSpec> {
    match shard {
        Shard::Init { spec, .. }
        | Shard::Train { spec, .. }
        | Shard::Show { spec, .. }
        | Shard::Check { spec, .. }
        | Shard::Judge { spec, .. }
        | Shard::Merge { spec, .. } => Some(spec),
        Shard::Stage { .. } => None,
    }
}

fn inner(spec: &TrainSpec, round: u32, first: u64, steps: u32) -> InnerTask {
    InnerTask {
        inner_steps: steps,
        batch: spec.batch,
        learning_rate_millionths: spec.learning_rate_millionths,
        warmup_steps: spec.inner_steps.saturating_mul(spec.rounds).min(WARMUP_STEPS_MAX),
        round,
        rounds: spec.rounds,
        first,
        seed: spec.seed,
        delta_bits: spec.delta_bits,
    }
}

fn part_of(part: Part) -> data::Part {
    data::Part { index: part.index.into(), of: part.of.into() }
}

/// As the worker has it.
pub(crate) fn method(method: Method) -> skein_compute::trainee::Method {
    match method {
        Method::Full => skein_compute::trainee::Method::Full,
        Method::Lora { rank, alpha_millionths } => skein_compute::trainee::Method::Lora {
            rank: u32::from(rank),
            #[expect(clippy::cast_possible_truncation, reason = "the nearest f32 is meant")]
            alpha: (f64::from(alpha_millionths) / 1e6) as f32,
        },
    }
}

/// What training a model asks of an agent.
///
/// # Errors
/// When it cannot be trained so.
pub(crate) fn train_size(manifest: &Manifest, by: Method) -> Result<TrainSize, String> {
    let config = &manifest.config;
    let trainee =
        Trainee::new(config.clone(), manifest.tied(), method(by)).map_err(|error| error.to_string())?;
    let resident: u64 = manifest.tensors.values().map(|tensor| tensor.info.rows * tensor.info.columns).sum();
    let looked_up = if manifest.tied() { 0 } else { u64::from(config.vocabulary) * u64::from(config.width) };
    Ok(TrainSize {
        layers: u16::try_from(config.layers).unwrap_or(u16::MAX),
        width: config.width,
        feed_width: config.feed_width,
        heads: config.heads,
        vocabulary: config.vocabulary,
        weights: resident - looked_up,
        resident,
        trained: trainee.parameters(),
    })
}
