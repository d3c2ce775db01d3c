//! Every bound and pace of the agent that is not the core's, in one place.

use std::time::Duration;

/// Longest wait for one step of a session, the way around the ring and other sessions' steps included. A dead stage is
/// noticed much sooner by its connection, and a stuck one by its own agent.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// A stage that gives up says why around the ring; the owner, who may hear of the break first, waits so long for it.
pub(crate) const REASON_WAIT: Duration = Duration::from_millis(100);
/// Rows of a prompt that travel as one step: enough to fill a processor, few enough that other sessions' tokens do not
/// wait long behind them.
pub(crate) const PREFILL_ROWS: usize = 128;
/// First frame of a session's link.
pub(crate) const STAGE_HEAD_BYTES_MAX: usize = 16 << 10;
/// Activations of one step.
pub(crate) const STAGE_FRAME_BYTES_MAX: usize = 32 << 20;
/// Commitments that come with one answer; an honest stage has three at most, after a long draft.
pub(crate) const SPANS_PER_ANSWER_MAX: usize = 4;
/// Stages of one pipeline.
pub(crate) const STAGES_MAX: usize = 128;
/// Sessions that pass through one stage at once.
pub(crate) const SESSIONS_MAX: usize = 64;
/// The first frame of a stream between members of a group comes within this.
pub(crate) const GROUP_HELLO_WAIT: Duration = Duration::from_secs(10);
/// How often a member tries to reach the next one, and shows life while it waits for another.
pub(crate) const GROUP_REDIAL: Duration = Duration::from_millis(500);
/// The members of a group wait so long for each other: each fetches its weights first.
pub(crate) const GROUP_GATHER_MAX: Duration = Duration::from_secs(1_800);
/// A member whose neighbour is gone waits so long for the coordinator to notice before it complains.
pub(crate) const GROUP_GRIEF: Duration = Duration::from_secs(4);
/// Frames queued between two stages on one agent.
pub(crate) const LINK_FRAMES_QUEUED_MAX: usize = 4;
/// Room in the caches for an answer's tokens is taken so many at a time.
pub(crate) const ROOM_STEP: usize = 512;
/// Times in a row that an answer goes through a new pipeline before it gives up.
pub(crate) const REPLAYS_MAX: usize = 20;
/// How long an answer under way waits for its pipeline to be complete again.
pub(crate) const REROUTE_WAIT: Duration = Duration::from_secs(120);
/// How long a first request waits for a model to be placed and its weights to travel.
pub(crate) const LOAD_WAIT: Duration = Duration::from_secs(1_800);
/// How often placement is looked at meanwhile.
pub(crate) const PLACEMENT_POLL: Duration = Duration::from_millis(50);
/// Answers under way at once for one model at one agent.
pub(crate) const SESSIONS_PER_MODEL: usize = 32;
/// Requests that wait for a place beside them; more are told to come back later.
pub(crate) const REQUESTS_WAITING_MAX: usize = 64;
/// Choices that one request may ask for, over all its prompts.
pub(crate) const CHOICES_MAX: usize = 128;
/// Choices of one prompt; OpenAI takes more.
pub(crate) const CHOICES_PER_PROMPT_MAX: u64 = 16;
/// Longest stop string in bytes.
pub(crate) const STOP_BYTES_MAX: usize = 1_024;
/// Pieces of an answer that wait for whoever reads it.
pub(crate) const PIECES_QUEUED_MAX: usize = 256;
/// A reader that takes none of them for so long has gone away.
pub(crate) const READER_STALLED_MAX: Duration = Duration::from_secs(60);
/// A stream that has nothing to say says so after so long, lest somebody on the way takes it for dead.
pub(crate) const STREAM_SILENCE_MAX: Duration = Duration::from_secs(10);
/// What a client is told to wait for when the queue is full, in seconds.
pub(crate) const RETRY_AFTER_S: u32 = 2;
/// Longest sequence in tokens that a model is put into service for, unless its own context is shorter.
pub(crate) const SERVE_CONTEXT: u32 = 8_192;
/// So many sequences of that length fit the caches of a model that a request put into service; shorter ones share
/// the room.
pub(crate) const SERVE_SESSIONS: u16 = 4;
/// A model that a request put into service is taken out when nobody asked for it for so long.
pub(crate) const SERVE_IDLE: Duration = Duration::from_secs(900);
/// Answers kept to be checked.
pub(crate) const SAMPLES_MAX: usize = 256;
/// So many answers of an agent are kept for sure, and of n about so many again each time n doubles.
pub(crate) const SAMPLES_SURE: u64 = 10;
/// How often that, and the room on the disk, is looked at.
pub(crate) const TIDY_EVERY: Duration = Duration::from_secs(30);
/// Largest manifest of a model, in bytes.
pub(crate) const MANIFEST_BYTES_MAX: u64 = skein_engine::limits::MANIFEST_BYTES_MAX as u64;
/// Models of which tokenizer and manifest are kept in memory.
pub(crate) const MODELS_LOADED_MAX: usize = 8;

/// Largest blob taken from a peer or a customer, in bytes.
pub(crate) const BLOB_BYTES_MAX: u64 = 4 << 30;
/// Largest body of an API request other than a blob, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
/// Connections that the local API serves at once.
pub(crate) const API_CONNECTIONS_MAX: usize = 128;
/// So many of them may carry customers' requests; the rest are for the owner.
pub(crate) const API_CUSTOMERS_MAX: usize = 96;
/// A client that has not sent its request by then is cut off.
pub(crate) const API_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that has not sent the body of its request by then is told so; a blob may pause so long.
pub(crate) const API_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A ticket that `skein dashboard` or the tray hands to a browser is good for so long.
pub(crate) const TICKET_LIFE: Duration = Duration::from_secs(30);
/// So many may be good at once, and so many browsers may bring one at once.
pub(crate) const TICKETS_MAX: usize = 16;
/// What a browser sends with one.
pub(crate) const TICKET_BODY_BYTES_MAX: usize = 1_024;
/// And how long it may take.
pub(crate) const TICKET_BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// Events queued for the daemon's loop.
pub(crate) const EVENTS_QUEUED_MAX: usize = 4_096;

/// A service that was told to start must run by then.
#[cfg(windows)]
pub(crate) const SERVICE_START_WAIT: Duration = Duration::from_secs(30);
/// A service that was told to stop must have ended by then.
#[cfg(windows)]
pub(crate) const SERVICE_STOP_WAIT: Duration = Duration::from_secs(10);

/// A worker that was told to stop is killed after so long.
pub(crate) const WORKER_STOP_WAIT: Duration = Duration::from_secs(2);
/// The next worker waits so long for one that was told to end.
pub(crate) const WORKER_END_MAX: Duration = Duration::from_secs(10);
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
/// A device that could not be found or measured is tried again after so long; doubles up to the maximum.
pub(crate) const DEVICE_RETRY_MIN: Duration = Duration::from_secs(30);
/// Longest such wait.
pub(crate) const DEVICE_RETRY_MAX: Duration = Duration::from_secs(600);
/// What is offered of a card whose size nobody tells, in bytes.
pub(crate) const UNKNOWN_CARD_BYTES: u64 = 4 << 30;
/// A GPU's first task compiles and tunes kernels; its lease is kept alive meanwhile, at most so long.
pub(crate) const TUNING_MAX: Duration = Duration::from_secs(600);
/// How often a lease is kept alive meanwhile.
pub(crate) const TUNING_BEAT: Duration = Duration::from_secs(2);

/// Longest line of a batch, in bytes.
pub(crate) const BATCH_LINE_BYTES_MAX: u64 = 1 << 20;
/// A request of a batch is sent again to a busy or absent agent for so long.
pub(crate) const BATCH_PATIENCE: Duration = Duration::from_secs(900);
/// First wait before that; doubles up to the maximum.
pub(crate) const BATCH_RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest such wait.
pub(crate) const BATCH_RETRY_MAX: Duration = Duration::from_secs(10);
/// Requests of a batch under way at once, unless its file says otherwise.
pub(crate) const BATCH_AT_ONCE: usize = 16;
/// Most that it may say.
pub(crate) const BATCH_AT_ONCE_MAX: usize = 256;

/// How often sensors are read while something is at work: a game is to have the machine within a second.
pub(crate) const SENSE_AT_WORK: Duration = Duration::from_millis(300);
/// And while nothing is.
pub(crate) const SENSE_AT_REST: Duration = Duration::from_secs(5);
/// A machine that slept so long has woken up, and all that was known of it is old. A wall clock that is so far ahead of the
/// agent's own is followed.
pub(crate) const SLEPT_MIN: Duration = Duration::from_secs(10);
/// One point of the history in so many milliseconds.
pub(crate) const HISTORY_EVERY_MS: u64 = 10_000;
/// A day of them.
pub(crate) const HISTORY_POINTS_MAX: usize = 8_640;
/// GPUs times points that one answer tells: with the page's own files it stays below 200 KB.
pub(crate) const HISTORY_SAMPLES_MAX: usize = 720;
/// How often the month's traffic is written to disk at most.
pub(crate) const TRAFFIC_SAVED_EVERY_MS: u64 = 60_000;
/// So many bytes are worth that; they are what is lost when the power fails.
pub(crate) const TRAFFIC_UNSAVED_BYTES_MAX: u64 = 4 << 20;
/// Fewer are written after so long.
pub(crate) const TRAFFIC_UNSAVED_MS_MAX: u64 = 3_600_000;
/// Months beside the present one of which the traffic is known.
pub(crate) const TRAFFIC_MONTHS_MAX: usize = 12;
/// Longest pause that can be asked for, in seconds: a month.
pub(crate) const PAUSE_S_MAX: u64 = 31 * 86_400;
/// A worker that died so often in a row is trouble that the owner should hear of.
pub(crate) const WORKER_FAILURES_TOLD: u32 = 3;
/// How often the log's own verification is done anew at most, when somebody asks.
pub(crate) const LOG_VERIFIED_EVERY: Duration = Duration::from_secs(60);
/// The agent's own story on disk: the present file and one before it have at most so many bytes each.
pub(crate) const STORY_BYTES_MAX: u64 = 8 << 20;

/// How often the daemon looks whether an update is due; it is, once a day, and until somebody could be asked.
pub(crate) const UPDATE_LOOK_EVERY: Duration = Duration::from_secs(600);
/// An agent leaves for a new version after so long, whatever it is working on.
pub(crate) const UPDATE_DRAIN_MAX: Duration = Duration::from_secs(1_800);
/// A version on trial ends within this after whoever tried it, or is not waited for.
#[cfg(windows)]
pub(crate) const TRIAL_END_WAIT: Duration = Duration::from_secs(10);
/// A version on trial that has not answered by then is asked again.
pub(crate) const TRIAL_ANSWER_MAX: Duration = Duration::from_secs(2);
/// A new version on trial should have looked for its devices, since drivers are what ends programs; where one hangs, the
/// version before hangs as well, and so it is not waited for longer than this.
pub(crate) const TRIAL_SURVEY_MAX: Duration = Duration::from_secs(45);

/// Longest name of a rig, in characters.
pub(crate) const RIG_NAME_CHARS_MAX: usize = 64;
/// Longest other text that is taken from a rig, in characters.
pub(crate) const RIG_TEXT_CHARS_MAX: usize = 500;
/// Reasons that are taken from a rig.
pub(crate) const RIG_REASONS_MAX: usize = 32;
/// Workers that are taken from a rig.
pub(crate) const RIG_WORKERS_MAX: usize = 64;
/// Rigs that an owner's agent remembers.
pub(crate) const RIGS_MAX: usize = 1_024;
/// An order to a rig, with its signature.
pub(crate) const FLEET_ORDER_BYTES_MAX: usize = 1_024;
/// What a rig answers.
pub(crate) const FLEET_REPLY_BYTES_MAX: usize = 64 << 10;
/// A rig waits so long for an order on a stream that was opened for one.
pub(crate) const FLEET_ORDER_WAIT: Duration = Duration::from_secs(5);
/// A peer that said that it is no rig of this owner's is not asked again for so long.
pub(crate) const FLEET_STRANGER_REST: Duration = Duration::from_secs(60);
/// Every rig tells how it is within this, or is shown as it was last seen.
pub(crate) const FLEET_REPORT_WAIT: Duration = Duration::from_secs(3);
/// Every rig says within this whether it obeyed.
pub(crate) const FLEET_OBEY_WAIT: Duration = Duration::from_secs(10);

/// Bytes a second, in each direction, that pass at most while the owner plays, works, watches or has paused: what others
/// hold of a job only here still reaches them, and his own line stays his.
pub(crate) const QUIET_RATE: u64 = 500_000;
