//! Owns the shape of a model: its validated dimensions, and what follows from them (parameters, work, tensor names).
//! Must never touch a device or a file.
//!
//! The model is a byte-level GPT: 256 tokens, learned positions and ALiBi, pre-norm blocks, an untied head. The order of
//! [`ModelShape::tensors`] is the canonical order in which every part of this crate walks the weights.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::limits::{CONTEXT_MAX, LAYERS_MAX, PARAMETERS_MAX, WIDTH_MAX};

/// Tokens are bytes.
pub const VOCABULARY: usize = 256;

/// How many times wider than the residual stream the feed-forward layer is.
pub const FEED_FORWARD_RATIO: usize = 4;

/// Validated dimensions of a model. Decoding one (borsh or serde) validates it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, Serialize, Deserialize)]
#[serde(try_from = "UncheckedShape")]
pub struct ModelShape {
    layers: u16,
    width: u16,
    heads: u16,
    context: u16,
}

/// Why four numbers are no model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A dimension is outside its bounds.
    #[error("{what} is {value}, allowed are {least} to {most}")]
    OutOfRange {
        /// Which dimension.
        what: &'static str,
        /// Its value.
        value: u16,
        /// Smallest allowed.
        least: u16,
        /// Largest allowed.
        most: u16,
    },
    /// The heads do not share the width evenly.
    #[error("{heads} heads do not divide a width of {width}")]
    UnevenHeads {
        /// Attention heads.
        heads: u16,
        /// Residual width.
        width: u16,
    },
    /// The model would exceed what a checkpoint may hold.
    #[error("{parameters} parameters, at most {PARAMETERS_MAX} fit a checkpoint")]
    TooLarge {
        /// Parameters of the shape.
        parameters: u64,
    },
}

/// One tensor of the model: its name in files and its dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the safetensors file.
    pub name: String,
    /// Dimensions, row-major. Vectors have one.
    pub dimensions: Vec<usize>,
    /// What the tensor is, which decides its initial values and whether it decays.
    pub role: Role,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A gain of a norm: starts at one, never decays.
    Gain,
    /// An embedding table: small normal values, never decays.
    Table,
    /// A matrix that reads the residual stream.
    Matrix,
    /// A matrix that writes into the residual stream: starts smaller, so that depth does not add up.
    ResidualMatrix,
}

impl TensorSpec {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.dimensions.iter().product()
    }
}

impl ModelShape {
    /// Validates the dimensions: `layers` blocks over a residual stream `width` elements wide, `heads` attention
    /// heads, sequences of at most `context` tokens.
    ///
    /// # Errors
    /// [`ShapeError`] names the dimension at fault.
    pub fn new(layers: u16, width: u16, heads: u16, context: u16) -> Result<Self, ShapeError> {
        let bounds = [
            ("layers", layers, LAYERS_MAX),
            ("width", width, WIDTH_MAX),
            ("heads", heads, WIDTH_MAX),
            ("context", context, CONTEXT_MAX),
        ];
        for (what, value, most) in bounds {
            if value == 0 || value > most {
                return Err(ShapeError::OutOfRange { what, value, least: 1, most });
            }
        }
        if !width.is_multiple_of(heads) {
            return Err(ShapeError::UnevenHeads { heads, width });
        }
        let shape = Self { layers, width, heads, context };
        let parameters = shape.parameters();
        if parameters > PARAMETERS_MAX {
            return Err(ShapeError::TooLarge { parameters });
        }
        Ok(shape)
    }

    /// Transformer blocks.
    #[must_use]
    pub fn layers(&self) -> usize {
        usize::from(self.layers)
    }

    /// Elements of the residual stream, per token.
    #[must_use]
    pub fn width(&self) -> usize {
        usize::from(self.width)
    }

    /// Attention heads.
    #[must_use]
    pub fn heads(&self) -> usize {
        usize::from(self.heads)
    }

    /// Elements per attention head.
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.width() / self.heads()
    }

    /// Longest sequence, in tokens.
    #[must_use]
    pub fn context(&self) -> usize {
        usize::from(self.context)
    }

    /// Number of weights.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let (layers, width, context) =
            (u64::from(self.layers), u64::from(self.width), u64::from(self.context));
        let vocabulary = VOCABULARY as u64;
        let block = (4 + 2 * FEED_FORWARD_RATIO as u64) * width * width + 2 * width;
        (2 * vocabulary + context + 1) * width + layers * block
    }

    /// Floating-point operations to train on one token of a full context: forward and backward.
    #[must_use]
    pub fn train_flops_per_token(&self) -> u64 {
        3 * self.forward_flops(self.context() as u64 / 2)
    }

    /// Floating-point operations to decode one token after `cached` tokens.
    #[must_use]
    pub fn decode_flops_per_token(&self, cached: u32) -> u64 {
        self.forward_flops(u64::from(cached) + 1)
    }

    /// Two operations per multiply-add: every matrix once, and scores and values for each attended position.
    fn forward_flops(&self, attended: u64) -> u64 {
        let (layers, width) = (u64::from(self.layers), u64::from(self.width));
        let matrices =
            layers * (4 + 2 * FEED_FORWARD_RATIO as u64) * width * width + VOCABULARY as u64 * width;
        2 * matrices + 4 * layers * width * attended
    }

    /// Every tensor in canonical order.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let width = self.width();
        let inner = FEED_FORWARD_RATIO * width;
        let mut specs = Vec::new();
        let mut push =
            |name: String, dimensions: Vec<usize>, role| specs.push(TensorSpec { name, dimensions, role });
        push("embedding".into(), vec![VOCABULARY, width], Role::Table);
        push("positions".into(), vec![self.context(), width], Role::Table);
        for layer in 0..self.layers() {
            let name = |part: &str| format!("layers.{layer}.{part}");
            push(name("attention_norm"), vec![width], Role::Gain);
            push(name("query_key_value"), vec![width, 3 * width], Role::Matrix);
            push(name("attention_out"), vec![width, width], Role::ResidualMatrix);
            push(name("feed_norm"), vec![width], Role::Gain);
            push(name("feed_in"), vec![width, inner], Role::Matrix);
            push(name("feed_out"), vec![inner, width], Role::ResidualMatrix);
        }
        push("final_norm".into(), vec![width], Role::Gain);
        push("head".into(), vec![width, VOCABULARY], Role::Matrix);
        specs
    }
}

/// What arrives before it is checked.
#[derive(BorshDeserialize, Deserialize)]
struct UncheckedShape {
    layers: u16,
    width: u16,
    heads: u16,
    context: u16,
}

impl TryFrom<UncheckedShape> for ModelShape {
    type Error = ShapeError;

    fn try_from(raw: UncheckedShape) -> Result<Self, ShapeError> {
        Self::new(raw.layers, raw.width, raw.heads, raw.context)
    }
}

impl BorshDeserialize for ModelShape {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        let raw = UncheckedShape::deserialize_reader(reader)?;
        Self::try_from(raw).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_agree_with_the_tensors() {
        for (layers, width, heads, context) in [(1, 8, 2, 4), (6, 192, 6, 128), (8, 128, 4, 64)] {
            let shape = ModelShape::new(layers, width, heads, context).unwrap();
            let counted: usize = shape.tensors().iter().map(TensorSpec::elements).sum();
            assert_eq!(shape.parameters(), counted as u64);
        }
    }

    #[test]
    fn impossible_shapes_are_refused_however_they_arrive() {
        assert!(matches!(ModelShape::new(0, 8, 2, 4), Err(ShapeError::OutOfRange { what: "layers", .. })));
        assert_eq!(ModelShape::new(1, 8, 3, 4), Err(ShapeError::UnevenHeads { heads: 3, width: 8 }));
        assert!(matches!(ModelShape::new(256, 8192, 8, 4), Err(ShapeError::TooLarge { .. })));
        assert!(
            serde_json::from_str::<ModelShape>(r#"{"layers":1,"width":8,"heads":3,"context":4}"#).is_err()
        );
        assert!(borsh::from_slice::<ModelShape>(&[1, 0, 8, 0, 3, 0, 4, 0]).is_err());
        let shape = ModelShape::new(1, 8, 2, 4).unwrap();
        assert_eq!(borsh::from_slice::<ModelShape>(&borsh::to_vec(&shape).unwrap()).unwrap(), shape);
    }
}
