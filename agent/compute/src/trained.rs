//! Owns a checkpoint's weights as a model, for whoever serves or writes it.
//! Must never keep what only training needs.

use std::collections::BTreeMap;

use skein_engine::config::ModelConfig;
use skein_engine::dtype::Dtype;
use skein_engine::source::{SourceError, TensorInfo, TensorSource};

use crate::checkpoint::Checkpoint;
use crate::trainee::Trainee;

/// A model all of whose weights were trained.
pub struct Trained {
    config: ModelConfig,
    tensors: BTreeMap<String, TensorInfo>,
    values: BTreeMap<String, Vec<f32>>,
}

impl Trained {
    /// The checkpoint of `trainee`, of whose weights all learn.
    #[must_use]
    pub fn new(trainee: &Trainee, checkpoint: Checkpoint) -> Self {
        let specs = trainee.tensors();
        let info = |rows, columns| TensorInfo { dtype: Dtype::F32, rows, columns };
        let tensors = specs
            .iter()
            .map(|spec| (spec.name.clone(), info(spec.rows as u64, spec.columns as u64)))
            .collect();
        let values = specs.iter().map(|spec| spec.name.clone()).zip(checkpoint.weights).collect();
        Self { config: trainee.config().clone(), tensors, values }
    }
}

impl TensorSource for Trained {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let values = self.values.get(name).ok_or_else(|| SourceError::Missing(name.to_owned()))?;
        Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}
