//! Owns every bound on what a file or a peer can make this crate hold or do, in one place, each with its reason.
//! Must never hold anything but constants.

/// Layers of a model; the deepest known has 126.
pub const LAYERS_MAX: u32 = 512;
/// Width of the residual stream; the widest known has 16,384.
pub const WIDTH_MAX: u32 = 32_768;
/// Query heads.
pub const HEADS_MAX: u32 = 512;
/// Tokens of a vocabulary; the largest known has 262,208.
pub const VOCABULARY_MAX: u32 = 1 << 20;
/// Longest context in tokens.
pub const CONTEXT_MAX: u32 = 1 << 20;
/// Tensors of a model.
pub const TENSORS_MAX: usize = 16_384;
/// Bytes of a piece of a tensor, the unit in which weights travel and are verified. Small enough that a lost holder
/// costs little, large enough that the list of a 70 B model stays below a megabyte.
pub const PIECE_BYTES: usize = 4 << 20;
/// Rows that one session may bring to one step.
pub const CHUNK_ROWS_MAX: usize = 512;
/// Sessions that a stage keeps at once.
pub const SESSIONS_MAX: usize = 256;
/// Alternatives reported with each token.
pub const TOP_LOGPROBS_MAX: usize = 20;
