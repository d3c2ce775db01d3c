//! Owns every bound of this crate, in one place, each with its reason.
//! Must never hold anything but constants: a limit that is computed belongs to the code that computes it.

/// Largest frame on a worker's pipes, header excluded, in bytes. A prefill of 4,096 rows of width 4,096 is 64 MiB.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// What a frame holds beside rows, at most, in bytes: numbers and lengths.
pub const FRAME_OVERHEAD_BYTES_MAX: usize = 256;

/// Largest checkpoint or delta that is read, in bytes. Where a whole model is trained its weights pass through memory, so the
/// bound is what a gaming PC can spare.
pub const CHECKPOINT_BYTES_MAX: u64 = 8 << 30;

/// Largest file of moments that is read, in bytes: it holds three numbers for every weight, a checkpoint two.
pub const MOMENTS_BYTES_MAX: u64 = CHECKPOINT_BYTES_MAX / 2 * 3;

/// Most optimiser steps that moments may have seen: Burn raises the decay to their number in an i32.
pub const MOMENTS_STEPS_MAX: u32 = 1 << 30;

/// Farthest that a claim to have run an inner phase may be from what its check finds, in millionths of the norm. Where
/// training is stable, honest ones are within 2 on the CPU and on an adapter in software; one step in twenty that was
/// skipped, or a tenth of noise, is 60,000 and more away (`tests/check.rs`). What is left below is for real GPUs.
pub const CHECK_DISTANCE_MAX_MILLIONTHS: u64 = 20_000;

/// Inner phases of which a worker keeps the moments with which they began. A phase is checked while the next one runs; more
/// would cost twelve bytes for every weight each.
pub const BEGINNINGS_MAX: usize = 2;

/// Largest file of tokens that is read, in bytes.
pub const DATA_BYTES_MAX: u64 = 4 << 30;

/// Most weights that learn; more would not fit a checkpoint of `CHECKPOINT_BYTES_MAX` with their momentum.
pub const TRAINED_PARAMETERS_MAX: u64 = CHECKPOINT_BYTES_MAX / 8 - (1 << 20);

/// Highest rank of an adapter: beyond it, training all weights is cheaper.
pub const LORA_RANK_MAX: u32 = 1_024;

/// Most sequences in one training batch.
pub const BATCH_MAX: u32 = 4_096;

/// Most tokens in one training batch: its activations must stay within a few gigabytes.
pub const BATCH_TOKENS_MAX: u64 = 1 << 20;

/// Most inner steps of one training task.
pub const INNER_STEPS_MAX: u32 = 100_000;

/// Most deltas merged in one outer step.
pub const DELTAS_MAX: usize = 4_096;

/// A delta whose L2 norm exceeds this many times the norm of the weights it belongs to is refused: one such delta would
/// ruin the mean. Tiny models at high learning rates honestly move by three times their initial norm.
pub const DELTA_NORM_RATIO_MAX: f64 = 16.0;
/// Of three deltas and more, one whose norm exceeds the median's so many times is refused too. Honest shards of one round
/// take as many steps at the same rate from the same weights.
pub const DELTA_MEDIAN_RATIO_MAX: f64 = 10.0;

/// A step whose mean loss is so many times that of a uniform guess over the vocabulary has left what more steps mend. Weights
/// that were just drawn guess; those of others, on a text of another language, come to about twice that at worst.
pub const LOSS_GUESSES_MAX: f64 = 3.0;

/// Held-out tokens per evaluation: enough that the mean moves by about 0.03 nats at most between text samples.
pub const HELD_OUT_TOKENS: usize = 8_192;

/// Tokens evaluated at once, so that evaluation needs no more memory than training does.
pub const EVALUATE_TOKENS_AT_ONCE: usize = 1_024;

/// Most stages open in one worker.
pub const STAGES_MAX: usize = 64;

/// Rows that one step of a stage computes together at most, over all sessions: what fills the processor, and no more, so
/// that nobody waits long for another's prompt.
pub const STEP_ROWS_MAX: usize = 256;

/// Longest path in a task, in bytes.
pub const PATH_BYTES_MAX: usize = 4_096;

/// Longest free text (failure, note, adapter name) in a reply, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4_096;

/// Most tasks waiting in a worker; a daemon that sends more is at fault.
pub const TASKS_QUEUED_MAX: usize = 256;

/// Cancels that a worker remembers; older ones are for tasks that are long finished.
pub const CANCELS_MAX: usize = 256;

/// Most bytes taken from a probing child, which prints a few hundred per adapter.
pub const PROBE_BYTES_MAX: u64 = 1 << 20;
