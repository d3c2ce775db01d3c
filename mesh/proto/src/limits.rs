//! Every bound on what a stranger can make an agent hold or do, and every pace of the core, in one place.

/// Longest name in an offer, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Workers of one agent: the largest mining rigs have about twenty GPUs.
pub const WORKERS_MAX: usize = 32;
/// Addresses in an offer.
pub const ADDRESSES_MAX: usize = 8;
/// Outer steps of a training job.
pub const ROUNDS_MAX: u32 = 100_000;
/// Largest control frame between agents, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Members that one agent keeps track of.
pub const MEMBERS_MAX: usize = 512;
/// Offers passed on to a newcomer in one message.
pub const OFFERS_SENT_MAX: usize = 64;
/// Jobs that an agent keeps at once, finished ones included.
pub const JOBS_MAX: usize = 256;
/// Own jobs that an agent has under way at once; fewer, so that others' jobs can be seen beside them.
pub const ORDERS_MAX: usize = JOBS_MAX / 2;
/// Leases that one worker holds at once.
pub const LEASES_HELD_MAX: usize = 64;
/// Receipts of one worker waiting for the coordinator's answer.
pub const RECEIPTS_PENDING_MAX: usize = 256;
/// Acceptances that a coordinator keeps, to answer a receipt that is sent again.
pub const ACCEPTANCES_KEPT_MAX: usize = 4_096;
/// Agents named in a grant as holders of the inputs: every member, the coordinator and the owner.
pub const HOLDERS_MAX: usize = MEMBERS_MAX + 2;
/// Slices of one training round, and so pseudo-gradients of one outer step: a worker of every member and of
/// the coordinator. Where agents have several, the rest of them wait.
pub const SLICES_MAX: usize = MEMBERS_MAX + 1;
/// Layers of a language model; the deepest known has 126.
pub const LAYERS_MAX: u16 = 512;
/// Width of a language model; the widest known has 16,384.
pub const WIDTH_MAX: u32 = 32_768;
/// Bytes of a layer, an embedding or a head.
pub const PART_BYTES_MAX: u64 = 64 << 30;
/// Tokens of a session for which memory is planned.
pub const CONTEXT_MAX: u32 = 1 << 20;
/// Longest sequence of a training job, in tokens.
pub const TRAIN_CONTEXT_MAX: u32 = 1 << 16;
/// Most weights of a model that is trained.
pub const TRAINED_WEIGHTS_MAX: u64 = 1 << 40;
/// An agent whose pace is within this ratio of the fastest's counts as equally fast.
pub const PACE_NOISE: (u64, u64) = (3, 4);
/// Sessions at once for which memory is planned.
pub const SESSIONS_MAX: u16 = 256;
/// Stages of a pipeline.
pub const STAGES_MAX: u16 = 128;
/// Rows that travel between two members of a group at once, in bytes.
pub const GROUP_ROWS_BYTES_MAX: u64 = (32 << 20) - (1 << 10);
/// Held-out tokens by which a checkpoint is judged.
pub const JUDGED_TOKENS: u64 = 8_192;
/// A slice that was trained again is as its agent said if the two differ by no more than this, in millionths, by
/// `skein-compute`'s measure.
pub const CHECK_DISTANCE_MAX: i64 = 20_000;
/// An agent that was found honest so often is checked less and less from there on.
pub const CHECKS_TRUSTED: u32 = 10;
/// An agent that cannot show the beginning of a slice so often gets no more of them.
pub const UNSHOWN_MAX: u8 = 2;
/// The loss is measured at most once in so many inner steps of an agent, and after the last outer step.
pub const JUDGE_STEPS: u64 = 50;
/// Of a job that is long enough for [`JUDGED_TIMES`] it is measured so seldom that an agent alone takes one part in so many
/// of its time for it.
pub const JUDGED_PART: u64 = 50;
/// So often it is measured in any case, if there are so many outer steps.
pub const JUDGED_TIMES: u64 = 20;
/// Links of which one agent tells: the shortest of them.
pub const LINKS_MAX: usize = 64;
/// Blobs that one agent may name as results of one shard.
pub const OUTPUTS_MAX: usize = 16;
/// Longest time to live of a lease; more would let a coordinator block a worker for days.
pub const LEASE_TTL_MS_MAX: u32 = 600_000;
/// Longest failure text that travels, in bytes.
pub const REASON_BYTES_MAX: usize = 400;
/// A term may exceed the highest seen by so much; a greater one is approached by steps of this size and
/// not believed before, so that no stranger ends all elections with the greatest of all numbers.
pub const TERM_JUMP_MAX: u64 = 1 << 20;

/// Workers of which placement tries every order.
pub const EXACT_WORKERS_MAX: usize = 8;
/// What a layer costs on any device besides reading and multiplying: starting its kernels.
pub const LAYER_OVERHEAD_NS: u64 = 20_000;
/// The way to an agent, one way, of whose link neither end told.
pub const LINK_UNKNOWN_NS: u64 = 50_000_000;

/// Pace of the core's own clockwork.
pub const TICK_MS: u64 = 250;
/// Pace of heartbeats.
pub const BEAT_MS: u64 = 500;
/// A member silent for so long is gone.
pub const SILENCE_MS: u64 = 2_000;
/// The office must be vacant for so long before the first in line takes it.
pub const VACANCY_MS: u64 = 500;
/// Each further in line waits so much longer, in case those before do not see the vacancy.
pub const SUCCESSION_MS: u64 = 1_500;
/// A newcomer to whom others name a coordinator waits so much longer, to hear from him himself.
pub const NEWCOMER_MS: u64 = 3_000;
/// An agent that was told of others waits so long for the first of them before it elects itself.
pub const LONELY_MS: u64 = 5_000;
/// A lease expires so long after its grant or last renewal.
pub const LEASE_TTL_MS: u32 = 15_000;
/// A holder asks for renewal so often while it makes progress.
pub const RENEW_MS: u64 = 2_000;
/// Agents that a job tells of as refused.
pub const REFUSED_MAX: usize = 64;
/// Who failed again and again trains nothing for at most so many rounds at a time.
pub const ROUNDS_SAT_OUT_MAX: u32 = 16;
/// A shard that failed so often fails its job.
pub const ATTEMPTS_MAX: u8 = 5;
/// What the coordinator has not answered about an own job is said again so often.
pub const RESUBMIT_MS: u64 = 2_000;
/// An agent that is known but not connected is dialled so often.
pub const REDIAL_MS: u64 = 5_000;
/// Tries to reach an agent that was a member before it is forgotten: an hour.
pub const REDIALS_MAX: u16 = 720;
/// Tries to reach an agent of which others only told; more would turn hearsay into a flood.
pub const INTRODUCTIONS_MAX: u16 = 3;
/// After its last try an agent is not tried again for so long, whoever tells of it.
pub const INTRODUCTION_REST_MS: u64 = 60_000;
/// An agent tells of its links at most so often.
pub const LINKS_MS: u64 = 5_000;
/// A fresh coordinator waits so long for everybody's links before it places a pipeline.
pub const LINKS_WAIT_MS: u64 = 500;
/// One member in turn is told of all others so often, since the first introduction may have failed.
pub const INTRODUCE_MS: u64 = 5_000;
/// A job's status is told to the members at most so often while nothing but its progress changes.
pub const STATUS_MS: u64 = 400;
