//! Every bound on what an orderer holds or sends, and every pace of its protocol.
//!
//! Must never hold behaviour.

/// Longest message, in bytes: a control frame carries 1 MiB, header included.
pub const MESSAGE_BYTES_MAX: usize = 960 << 10;
/// Blocks in one answer, and bytes that they may have together.
pub const BLOCKS_SENT_MAX: usize = 32;
/// Bytes of blocks or claims in one answer; a single block or claim may be longer and then goes alone.
pub const SENT_BYTES_MAX: usize = 512 << 10;
/// Digests of claims in one question.
pub const CLAIMS_ASKED_MAX: usize = 256;
/// Places in a question for blocks: enough, at doubling distances, for any height.
pub const PLACES_MAX: usize = 80;
/// Longest text in a refusal, in bytes.
pub const WHY_BYTES_MAX: usize = 300;
/// Members that one coordinator hears.
pub const MEMBERS_MAX: usize = 1_024;
/// Closed epochs that may still be claimed; what was not settled after so many is not paid.
pub const OPEN_EPOCHS_MAX: u64 = 24;
/// Settlements kept for display.
pub const SETTLEMENTS_KEPT_MAX: usize = 64;
/// Members' forks that a coordinator remembers having refused.
pub const REFUSED_TIPS_MAX: usize = 256;
/// Questions to one peer without an answer before it is given up.
pub const QUESTIONS_MAX: u32 = 6;

/// After the end of an epoch, wait so long for acceptances that are still under way.
pub const CLOSING_MS: u64 = 750;
/// How far another's clock may be ahead of ours.
pub const CLOCK_SKEW_MS: u64 = 2_000;
/// A coordinator waits a quarter of an epoch for claims, but never less than this…
pub const GRACE_MS_MIN: u64 = 1_000;
/// …nor more than this.
pub const GRACE_MS_MAX: u64 = 60_000;
/// What was not answered is said again after a sixteenth of an epoch, but never sooner than this…
pub const REPEAT_MS_MIN: u64 = 250;
/// …nor later than this.
pub const REPEAT_MS_MAX: u64 = 4_000;
