//! Owns what is trained: a model's hyperparameters, which of its tensors learn, and their canonical order.
//! Must never touch a device or a file.
//!
//! Tensors have GGUF's names and are `[outputs, inputs]`, row-major, as everywhere in `skein-engine`. An adapter's two
//! parts are named after the matrix that they change, as llama.cpp names them: `NAME.lora_a` is `[rank, inputs]` and
//! `NAME.lora_b` is `[outputs, rank]`.

use std::ops::Range;

use borsh::{BorshDeserialize, BorshSerialize};
use skein_engine::config::ModelConfig;
use skein_engine::tensors::{EMBEDDING, Expected, HEAD, expected, is_needed, layer_of};

use crate::limits::{LORA_RANK_MAX, TRAINED_PARAMETERS_MAX};

/// What follows the name of a matrix in that of its adapter's first part.
pub const LORA_A: &str = ".lora_a";
/// Likewise, second part.
pub const LORA_B: &str = ".lora_b";

/// Which weights learn.
#[derive(Clone, Copy, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub enum Method {
    /// All of them.
    Full,
    /// A low-rank addition to every matrix of every layer (LoRA): `y = Wx + alpha / rank · B(Ax)`. The rest is frozen.
    Lora {
        /// Rows of A, columns of B.
        rank: u32,
        /// Scale of the addition, times the rank.
        alpha: f32,
    },
}

/// Why nothing can be trained so.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TraineeError {
    /// The weights that learn would not fit a checkpoint.
    #[error(
        "{parameters} weights to train, at most {TRAINED_PARAMETERS_MAX} fit a checkpoint\nhint: train an adapter instead (method = \"lora\")"
    )]
    TooLarge {
        /// So many.
        parameters: u64,
    },
    /// The rank is out of range.
    #[error("an adapter of rank {rank}, allowed are 1 to {LORA_RANK_MAX}")]
    Rank {
        /// As it was given.
        rank: u32,
    },
    /// The scale is no number above 0.
    #[error("an adapter's alpha of {alpha}, allowed are finite numbers above 0")]
    Alpha {
        /// As it was given.
        alpha: f32,
    },
    /// There are no such layers.
    #[error("layers {start} to {end} of a model that has {layers}")]
    Layers {
        /// First layer.
        start: u32,
        /// One past the last layer.
        end: u32,
        /// Layers there are.
        layers: u32,
    },
    /// The head is the embedding once more, learns, and would be split from it.
    #[error(
        "layers {start} to {end} alone cannot be trained: the head is the embedding once more, and both would learn apart\nhint: train an adapter instead (method = \"lora\"), or every layer on one agent"
    )]
    Tied {
        /// First layer.
        start: u32,
        /// One past the last layer.
        end: u32,
    },
}

/// A tensor that learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// GGUF's name.
    pub name: String,
    /// Outputs of a matrix; 1 for a vector.
    pub rows: usize,
    /// Inputs of a matrix; elements of a vector.
    pub columns: usize,
    /// What it is for.
    pub role: Role,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A gain or a bias: never decays.
    Vector,
    /// An embedding: its rows are looked up; never decays.
    Table,
    /// Rows are multiplied by it.
    Matrix,
}

impl Role {
    /// By the name of a tensor.
    #[must_use]
    pub(crate) fn of(name: &str, rows: u64) -> Self {
        match name {
            EMBEDDING => Self::Table,
            _ if rows == 1 => Self::Vector,
            _ => Self::Matrix,
        }
    }
}

impl TensorSpec {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }
}

/// A model to be trained, or some of its layers. Sound by construction.
#[derive(Clone, Debug, PartialEq)]
pub struct Trainee {
    config: ModelConfig,
    tied: bool,
    method: Method,
    layers: Range<u32>,
    tensors: Vec<TensorSpec>,
}

impl Trainee {
    /// `config` was validated; `tied` says whether the head is the embedding once more.
    ///
    /// # Errors
    /// [`TraineeError`].
    pub fn new(config: ModelConfig, tied: bool, method: Method) -> Result<Self, TraineeError> {
        let whole = expected(&config).into_iter().filter(|tensor| tensor.name != HEAD || !tied);
        let tensors: Vec<Expected> = match method {
            Method::Full => whole.collect(),
            Method::Lora { rank, alpha } => {
                if rank == 0 || rank > LORA_RANK_MAX {
                    return Err(TraineeError::Rank { rank });
                }
                if !alpha.is_finite() || alpha <= 0.0 {
                    return Err(TraineeError::Alpha { alpha });
                }
                whole.filter(adapts).flat_map(|tensor| adapter(&tensor, rank)).collect()
            }
        };
        let parameters = tensors
            .iter()
            .try_fold(0u64, |sum, tensor| sum.checked_add(tensor.rows.checked_mul(tensor.columns)?))
            .unwrap_or(u64::MAX);
        if parameters > TRAINED_PARAMETERS_MAX {
            return Err(TraineeError::TooLarge { parameters });
        }
        let spec = |tensor: Expected| TensorSpec {
            role: Role::of(&tensor.name, tensor.rows),
            rows: tensor.rows as usize,
            columns: tensor.columns as usize,
            name: tensor.name,
        };
        let layers = 0..config.layers;
        Ok(Self { config, tied, method, layers, tensors: tensors.into_iter().map(spec).collect() })
    }

    /// Some layers alone: the embedding goes with the first, the last norm and the head with the last.
    ///
    /// # Errors
    /// [`TraineeError::Layers`] for layers that this does not have, [`TraineeError::Tied`] where embedding and head are
    /// one tensor that learns and are not both there.
    pub fn stage(&self, layers: Range<u32>) -> Result<Self, TraineeError> {
        let Range { start, end } = layers;
        if start >= end || start < self.layers.start || end > self.layers.end {
            return Err(TraineeError::Layers { start, end, layers: self.config.layers });
        }
        if self.tied && self.method == Method::Full && end - start < self.config.layers {
            return Err(TraineeError::Tied { start, end });
        }
        let tensors = self.tensors.iter().filter(|spec| self.needs(&spec.name, &layers)).cloned().collect();
        Ok(Self { config: self.config.clone(), layers, tensors, ..*self })
    }

    /// The layers, of those of the model.
    #[must_use]
    pub fn layers(&self) -> Range<u32> {
        self.layers.clone()
    }

    /// Whether the model's first layer is here, and with it the embedding.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether the model's last layer is here, and with it the head.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.layers.end == self.config.layers
    }

    /// Whether these layers of the model compute with a tensor, be it an adapter's.
    #[must_use]
    pub(crate) fn needs(&self, name: &str, layers: &Range<u32>) -> bool {
        is_needed(name, layers, &self.config, self.tied)
    }

    /// Hyperparameters.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether the head is the embedding once more.
    #[must_use]
    pub fn tied(&self) -> bool {
        self.tied
    }

    /// Which weights learn.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// Every tensor that learns here, in canonical order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The model's own tensors that these layers need and that do not learn.
    #[must_use]
    pub(crate) fn frozen(&self) -> Vec<Expected> {
        match self.method {
            Method::Full => Vec::new(),
            Method::Lora { .. } => expected(&self.config)
                .into_iter()
                .filter(|tensor| tensor.name != HEAD || !self.tied)
                .filter(|tensor| self.needs(&tensor.name, &self.layers))
                .collect(),
        }
    }

    /// Weights that learn.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|spec| spec.elements() as u64).sum()
    }
}

/// Whether LoRA adds to a tensor: to the matrices of the layers.
fn adapts(tensor: &Expected) -> bool {
    layer_of(&tensor.name).is_some() && tensor.rows > 1
}

fn adapter(tensor: &Expected, rank: u32) -> [Expected; 2] {
    let part = |suffix: &str, rows, columns| Expected {
        name: format!("{}{suffix}", tensor.name),
        rows,
        columns,
        optional: false,
    };
    [part(LORA_A, u64::from(rank), tensor.columns), part(LORA_B, tensor.rows, u64::from(rank))]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use skein_engine::config::{Activation, Architecture, Rope, RopeStyle};

    /// A model so small that a test can count on it.
    pub(crate) fn config() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            layers: 2,
            width: 8,
            feed_width: 12,
            heads: 4,
            kv_heads: 2,
            head_width: 2,
            vocabulary: 16,
            context: 8,
            norm_epsilon: 1e-5,
            rope: Rope {
                style: RopeStyle::Adjacent,
                base: 1e4,
                window_base: 1e4,
                dims: 2,
                scale: 1.0,
                factors: Vec::new(),
            },
            activation: Activation::SiluGated,
            embedding_scale: 1.0,
            query_scale: 0.5f32.sqrt(),
            score_cap: None,
            logit_cap: None,
            window: None,
            window_pattern: 1,
        }
    }

    #[test]
    fn an_adapter_has_two_parts_for_every_matrix_of_every_layer() {
        let lora = Method::Lora { rank: 3, alpha: 6.0 };
        let trainee = Trainee::new(config(), true, lora).unwrap();
        assert_eq!(trainee.tensors().len(), 2 * 7 * 2);
        let find = |name: &str| trainee.tensors().iter().find(|spec| spec.name == name).unwrap();
        let (a, b) = (find("blk.1.ffn_down.weight.lora_a"), find("blk.1.ffn_down.weight.lora_b"));
        assert_eq!((a.rows, a.columns, b.rows, b.columns), (3, 12, 8, 3));
        assert!(trainee.frozen().iter().all(|tensor| tensor.name != HEAD), "it is tied");
        let full = Trainee::new(config(), false, Method::Full).unwrap();
        assert!(full.frozen().is_empty());
        let counted: usize = full.tensors().iter().map(TensorSpec::elements).sum();
        assert_eq!(full.parameters(), counted as u64);
    }

    #[test]
    fn stages_share_out_the_tensors_in_their_order() {
        let lora = Method::Lora { rank: 3, alpha: 6.0 };
        let names = |trainee: &Trainee| -> Vec<String> {
            let learning = trainee.tensors().iter().map(|spec| spec.name.clone());
            learning.chain(trainee.frozen().into_iter().map(|tensor| tensor.name)).collect()
        };
        for (tied, method) in [(false, Method::Full), (false, lora), (true, lora)] {
            let whole = Trainee::new(config(), tied, method).unwrap();
            let stages = [whole.stage(0..1).unwrap(), whole.stage(1..2).unwrap()];
            let learning: Vec<TensorSpec> =
                stages.iter().flat_map(|stage| stage.tensors().iter().cloned()).collect();
            assert_eq!(learning, whole.tensors(), "each once");
            let [first, last] = &stages;
            assert!(
                (first.is_first(), first.is_last(), last.is_first(), last.is_last())
                    == (true, false, false, true)
            );
            assert!(names(first).iter().any(|name| name == EMBEDDING));
            assert_eq!(names(last).iter().any(|name| name == EMBEDDING), tied, "as its head");
            assert!(names(first).iter().all(|name| name != HEAD && name != "output_norm.weight"));
            assert!(names(last).iter().any(|name| name == "output_norm.weight"));
            assert_eq!(names(last).iter().any(|name| name == HEAD), !tied);
            assert_eq!(whole.stage(0..2).unwrap(), whole);
        }
        let whole = Trainee::new(config(), true, Method::Full).unwrap();
        assert!(whole.stage(0..1).unwrap_err().to_string().contains("hint: train an adapter"));
        assert_eq!(whole.stage(0..2).unwrap(), whole);
        for (start, end) in [(1, 1), (0, 3), (2, 1)] {
            let error = TraineeError::Layers { start, end, layers: 2 };
            assert_eq!(whole.stage(start..end).unwrap_err(), error);
        }
    }

    #[test]
    fn what_cannot_be_trained_is_refused() {
        let refused = |config, method| Trainee::new(config, false, method).unwrap_err();
        let rank = refused(config(), Method::Lora { rank: 0, alpha: 1.0 });
        assert_eq!(rank, TraineeError::Rank { rank: 0 });
        assert!(matches!(
            refused(config(), Method::Lora { rank: 1, alpha: f32::NAN }),
            TraineeError::Alpha { .. }
        ));
        let huge = ModelConfig { vocabulary: 1 << 20, width: 1 << 14, ..config() };
        assert!(refused(huge, Method::Full).to_string().contains("method = \"lora\""));
    }
}
