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
/// Bytes of an encoded vocabulary; the largest known (262,144 tokens and 514,906 merges) takes 9 MB.
pub const VOCABULARY_BYTES_MAX: u64 = 64 << 20;
/// Pairs that a byte-pair vocabulary joins; the most known are 514,906.
pub const MERGES_MAX: usize = 1 << 21;
/// Bytes of one token; the longest known are runs of 256 blanks.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Bytes of a token that is looked for at every position of a text, hence shorter.
pub const SPECIAL_TOKEN_BYTES_MAX: usize = 256;
/// Bytes of a chat template; the longest known has 30 KB.
pub const CHAT_TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// Fuel of one rendering of a chat template: so many instructions, or 64 times as many bytes; conversations take some
/// ten thousand.
pub const CHAT_TEMPLATE_FUEL: u64 = 1_000_000;
/// Stack on which a chat template is rendered: its fuel buys lists nested some hundred thousand deep, and each level of
/// writing one out takes below a kilobyte. Only what is used is ever backed by memory.
pub const CHAT_STACK_BYTES: usize = 512 << 20;
/// Bytes of a prompt; a million tokens of text take some 4 MB.
pub const CHAT_PROMPT_BYTES_MAX: usize = 8 << 20;
/// Bytes of a file of a tokenizer; the largest known `tokenizer.json` has 33 MB.
pub const TOKENIZER_FILE_BYTES_MAX: u64 = 128 << 20;
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
/// Rows that a graph computes at once, over all sessions: what its buffers are made for.
pub const RUN_ROWS_MAX: usize = 512;
/// Rows of one run whose logits are asked for: at the largest vocabulary they take 64 MiB per 64 rows and 2^18 tokens.
pub const ASKED_ROWS_MAX: usize = 64;
/// Entries of a file's metadata; usual are below a hundred.
pub const METADATA_KEYS_MAX: usize = 4_096;
/// Elements of all arrays in a file's metadata together; the largest vocabularies need about a million and a half.
pub const METADATA_ELEMENTS_MAX: usize = 1 << 23;
/// Bytes of the name of a tensor or of a metadata entry.
pub const NAME_BYTES_MAX: usize = 256;
/// Bytes of the header of a safetensors file, and of the index of a folder of them; usual are below a megabyte.
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a folder's `config.json`.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Safetensors files of one model; the largest known has 191.
pub const SHARDS_MAX: usize = 1_024;
/// Bytes of an encoded manifest: enough for a terabyte of weights.
pub const MANIFEST_BYTES_MAX: usize = 8 << 20;
