//! Every bound and pace of the agent that is not the core's, in one place.

use std::time::Duration;

/// Longest wait for one step of a session, the way around the ring included.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// First frame of a session's link.
pub(crate) const STAGE_HEAD_BYTES_MAX: usize = 16 << 10;
/// Activations of one step.
pub(crate) const STAGE_FRAME_BYTES_MAX: usize = 32 << 20;
/// Stages of one pipeline.
pub(crate) const STAGES_MAX: usize = 128;
/// Sessions that pass through one agent at once.
pub(crate) const SESSIONS_MAX: usize = 64;
/// Frames queued between two stages on one agent.
pub(crate) const LINK_FRAMES_QUEUED_MAX: usize = 4;
/// Times that one completion goes through a new pipeline before it gives up.
pub(crate) const REPLAYS_MAX: usize = 20;
/// How long a completion waits for a pipeline to be complete.
pub(crate) const PLACEMENT_WAIT: Duration = Duration::from_secs(30);
/// Completions under way at one agent; more are told to come back later.
pub(crate) const COMPLETIONS_MAX: usize = 32;

/// Largest blob taken from a peer or a customer, in bytes.
pub(crate) const BLOB_BYTES_MAX: u64 = 4 << 30;
/// Largest body of an API request other than a blob, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
/// Connections that the local API serves at once.
pub(crate) const API_CONNECTIONS_MAX: usize = 128;
/// A client that has not sent its request by then is cut off.
pub(crate) const API_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that has not sent the body of its request by then is told so; a blob may pause so long.
pub(crate) const API_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Events queued for the daemon's loop.
pub(crate) const EVENTS_QUEUED_MAX: usize = 4_096;

/// A worker that was told to stop is killed after so long.
pub(crate) const WORKER_STOP_WAIT: Duration = Duration::from_secs(2);
/// A worker that holds a stage on the CPU and leaves callers without a word for so long is stuck.
pub(crate) const STAGE_SILENCE_MAX: Duration = Duration::from_secs(15);
/// A worker without work is ended after so long, which frees its memory.
pub(crate) const WORKER_IDLE: Duration = Duration::from_secs(30);
/// First wait before a worker that died is started again; doubles up to the maximum.
pub(crate) const WORKER_BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest such wait.
pub(crate) const WORKER_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A worker that lived so long is forgiven its earlier deaths.
pub(crate) const WORKER_FORGIVEN: Duration = Duration::from_secs(60);
/// Longest that a probe of an adapter may take.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// A GPU's first task compiles and tunes kernels; its lease is kept alive meanwhile, at most so long.
pub(crate) const TUNING_MAX: Duration = Duration::from_secs(600);
/// How often a lease is kept alive meanwhile.
pub(crate) const TUNING_BEAT: Duration = Duration::from_secs(2);
