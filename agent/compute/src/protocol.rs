//! Owns the language between the daemon and its worker: tasks, replies, and their frames.
//! Must never do I/O beyond a reader or writer that it is given, nor trust a length.
//!
//! A frame is a little-endian u32 length and that many bytes of borsh. Floats that are not finite do not pass: borsh
//! refuses NaN, and the worker refuses to send any.

use std::io::{Read, Write};

use borsh::{BorshDeserialize, BorshSerialize};
use skein_engine::step::{Chunk, Output};
use skein_engine::toploc::Span;

use crate::bench::BenchResult;
use crate::checkpoint::Digest;
use crate::data::Part;
use crate::limits::{DELTAS_MAX, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, PATH_BYTES_MAX};
use crate::trainee::Method;

/// Why bytes are no message, or did not pass.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The pipe failed.
    #[error("the pipe failed: {0}")]
    Pipe(#[from] std::io::Error),
    /// The pipe ended inside a frame.
    #[error("the pipe ended inside a frame")]
    Torn,
    /// A frame exceeds the bound.
    #[error("a frame of {bytes} bytes exceeds {FRAME_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The bytes are no message.
    #[error("the frame is no message: {0}")]
    Garbage(std::io::Error),
    /// The message cannot be encoded.
    #[error("the message cannot be encoded: {0}")]
    Unencodable(std::io::Error),
}

/// A task with the number by which its replies are known.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Request {
    /// Chosen by the daemon, never reused.
    pub id: u64,
    /// What to do.
    pub body: Task,
}

/// What the daemon asks for. Paths are absolute. Every task ends in exactly one reply that is not
/// [`Reply::Progress`], except [`Task::Cancel`], which has none of its own.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub enum Task {
    /// Which device is this? Ends in [`Reply::Described`].
    Describe,
    /// Measure the device. Ends in [`Reply::Benched`].
    Bench,
    /// Write the first checkpoint of a job. Ends in [`Reply::Initialised`].
    Init {
        /// What is to be trained.
        model: ModelTask,
        /// Seed of what is drawn.
        seed: u64,
        /// The checkpoint to write.
        out: String,
        /// On what it is evaluated, if it is.
        evaluate: Option<Judge>,
    },
    /// Run one inner phase. Ends in [`Reply::Trained`] or, after a cancel, [`Reply::Cancelled`].
    Train {
        /// Which.
        phase: PhaseTask,
        /// The delta to write.
        out: String,
    },
    /// Take one outer step. Ends in [`Reply::Merged`].
    Merge {
        /// What is trained.
        model: ModelTask,
        /// The checkpoint to start from.
        state: String,
        /// The deltas of its round, each in one file or in the parts of a group in the order of their layers. The order of
        /// deltas decides the last bits of the result.
        deltas: Vec<Vec<String>>,
        /// η in millionths.
        outer_rate_millionths: u32,
        /// μ in millionths.
        momentum_millionths: u32,
        /// The checkpoint to write.
        out: String,
        /// On what the new checkpoint is evaluated, if it is.
        evaluate: Option<Judge>,
    },
    /// Load layers of a model to train or judge them with others. An open group is forgotten. Ends in
    /// [`Reply::GroupOpened`].
    GroupOpen(GroupTask),
    /// Compute a micro-batch's way forward through them. Ends in [`Reply::GroupRows`].
    GroupForward {
        /// The group's number.
        group: u64,
        /// Which micro-batch of the step, or of all where a model is judged.
        micro: u32,
        /// What the stage before gave: f32, little-endian, `[sequences · context, width]`. Empty at the first stage.
        rows: Vec<u8>,
    },
    /// Compute its way back. Ends in [`Reply::GroupRows`].
    GroupBackward {
        /// The group's number.
        group: u64,
        /// Which micro-batch of the step.
        micro: u32,
        /// The gradient of the rows that the stage gave, in the same form.
        rows: Vec<u8>,
    },
    /// Change the weights, once all micro-batches of a step are done. Ends in [`Reply::GroupStepped`].
    GroupStep {
        /// The group's number.
        group: u64,
        /// Sum of the squares of all members' gradients, as they told it.
        squares: f64,
    },
    /// Forget the group, its result first written. Ends in [`Reply::GroupClosed`].
    GroupClose {
        /// The group's number.
        group: u64,
        /// Where the result is to be written: the delta, or a note of the judgement. Without it there is none.
        out: Option<String>,
    },
    /// Write the moments with which one of the last inner phases began, for whoever checks it. Ends in [`Reply::Shown`].
    Show {
        /// What was trained.
        model: ModelTask,
        /// Their digest, as [`Reply::Trained`] told it.
        began: Digest,
        /// The file to write.
        out: String,
    },
    /// Run somebody's inner phase again, and compare. What the worker trains itself does not notice. Ends in
    /// [`Reply::Checked`] or, after a cancel, [`Reply::Cancelled`]. Before a claim is called false all steps are run and told
    /// once more; a failure is no verdict.
    Check {
        /// What somebody claims to have run.
        phase: PhaseTask,
        /// The file of moments with which it began.
        began: String,
        /// The delta that it is said to have given.
        delta: String,
    },
    /// Load layers of a language model under a number. Ends in [`Reply::StageOpened`].
    StageOpen(StageTask),
    /// Extend a session of a stage; steps that wait together are computed together. Ends in [`Reply::Stepped`].
    StageStep {
        /// The stage's number.
        stage: u64,
        /// What one session brings.
        chunk: Chunk,
    },
    /// Forget a session. Ends in [`Reply::SessionClosed`].
    SessionClose {
        /// The stage's number.
        stage: u64,
        /// The session's number.
        session: u64,
        /// So many positions of it are right; the last stage commits to them.
        length: u32,
    },
    /// Unload a stage. Ends in [`Reply::Closed`].
    StageClose {
        /// The stage's number.
        stage: u64,
    },
    /// Stop the training or checking task of this number at its next step, or before it starts.
    Cancel {
        /// The request to cancel.
        id: u64,
    },
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct ModelTask {
    /// The job; the optimiser's moments and the frozen weights stay in the worker as long as this does not change.
    pub job: [u8; 32],
    /// The model's manifest.
    pub manifest: String,
    /// The directory in which its pieces lie, each named by its digest in hex.
    pub pieces: String,
    /// Which weights learn.
    pub method: Method,
}

/// By what a checkpoint is judged.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Judge {
    /// The file of tokens, of which the held-out ones are used.
    pub data: String,
    /// Tokens per sequence.
    pub context: u32,
    /// Which of the held-out sequences.
    pub part: Part,
}

/// One inner phase of one shard, by one agent.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct PhaseTask {
    /// What is trained.
    pub model: ModelTask,
    /// The checkpoint to start from.
    pub state: String,
    /// The file of tokens.
    pub data: String,
    /// Tokens per sequence.
    pub context: u32,
    /// Sequences whose activations are in memory at once, here.
    pub at_once: u32,
    /// Whether every layer is computed again for its gradients, here, which takes a third more time and little memory.
    pub recompute: bool,
    /// How to train.
    pub inner: InnerTask,
}

/// How an inner phase trains, whoever does it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct InnerTask {
    /// Optimiser steps.
    pub inner_steps: u32,
    /// Sequences per step.
    pub batch: u32,
    /// Learning rate in millionths.
    pub learning_rate_millionths: u32,
    /// An agent's steps during which the learning rate rises linearly.
    pub warmup_steps: u32,
    /// Outer round; must be the checkpoint's.
    pub round: u32,
    /// Outer rounds of the job.
    pub rounds: u32,
    /// Number of the first window of the data, in the job's order.
    pub first: u64,
    /// Seed of the job's data.
    pub seed: u64,
    /// Of an element of the delta: 2, 4, 8 or 32.
    pub delta_bits: u8,
}

/// A member's part of what a group does together.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct GroupTask {
    /// The group's number, chosen by the daemon.
    pub group: u64,
    /// What is trained or judged.
    pub model: ModelTask,
    /// The checkpoint of the whole model.
    pub state: String,
    /// The file of tokens.
    pub data: String,
    /// Tokens per sequence.
    pub context: u32,
    /// First layer of this member.
    pub start: u32,
    /// One past its last layer.
    pub end: u32,
    /// Sequences per micro-batch; the last one of a step may have fewer.
    pub sequences: u32,
    /// Whether every layer is computed again for its gradients.
    pub recompute: bool,
    /// What the group does.
    pub purpose: GroupPurpose,
}

/// What a group does.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum GroupPurpose {
    /// One inner phase.
    Train(InnerTask),
    /// The evaluation of a checkpoint.
    Judge {
        /// Which of the held-out sequences.
        part: Part,
    },
}

/// A stage to load.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StageTask {
    /// The stage's number, chosen by the daemon; an open stage of that number is replaced.
    pub stage: u64,
    /// The model's manifest.
    pub manifest: String,
    /// The directory in which its pieces lie, each named by its digest in hex.
    pub pieces: String,
    /// First layer.
    pub start: u32,
    /// One past the last layer.
    pub end: u32,
    /// Longest sequence in tokens; at most the model's own.
    pub context: u32,
    /// Bytes that the sessions' caches may take together.
    pub cache_bytes: u64,
}

/// A reply with the number of its request.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Response {
    /// The request's number.
    pub id: u64,
    /// What happened.
    pub body: Reply,
}

/// What the worker says.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub enum Reply {
    /// The task is alive; more replies follow.
    Progress {
        /// Steps finished.
        done: u32,
        /// Steps in all.
        of: u32,
        /// Training loss of the last step, in millionths of a nat per token.
        loss_micronats: Option<i64>,
        /// What a person might like to know, else empty.
        note: String,
    },
    /// The worker and its device.
    Described {
        /// The device as text: `cpu` or `wgpu:INDEX:NAME`.
        device: String,
        /// Version of this crate.
        version: String,
        /// Threads that the CPU backend may use.
        threads: u32,
    },
    /// The device was measured.
    Benched(BenchResult),
    /// The first checkpoint is on disk.
    Initialised {
        /// BLAKE3 of the file.
        digest: Digest,
        /// Held-out loss in millionths of a nat per token, where it was asked for.
        held_out_micronats: Option<i64>,
    },
    /// The delta is on disk.
    Trained {
        /// BLAKE3 of the file.
        digest: Digest,
        /// Mean training loss over the steps, in millionths of a nat per token.
        loss_micronats: i64,
        /// Tokens trained on.
        tokens: u64,
        /// BLAKE3 of the moments with which it began, as [`Task::Show`] would write them.
        began: Digest,
    },
    /// The next checkpoint is on disk.
    Merged {
        /// BLAKE3 of the file.
        digest: Digest,
        /// Its round.
        round: u32,
        /// Loss on the part that was asked for, in millionths of a nat per token; 0 where none was.
        held_out_micronats: i64,
        /// Tokens in that part.
        tokens: u64,
        /// Deltas that were left out, by their places in the task and that of the part at fault, and why.
        refused: Vec<(u32, u32, String)>,
    },
    /// The layers are loaded.
    GroupOpened {
        /// Micro-batches of a step; where a model is judged, of all, and there may be none.
        micros: u32,
    },
    /// A micro-batch passed.
    GroupRows {
        /// Forward: rows for the next stage; at the last one their gradient for the stage before, and nothing where a model
        /// is judged. Back: the gradient for the stage before. What would go before the first stage is empty.
        rows: Vec<u8>,
        /// After the last of a step's micro-batches: sum of the squares of this member's gradients.
        squares: Option<f64>,
    },
    /// The weights changed, unless no token of the step counted.
    GroupStepped {
        /// The step's mean loss in millionths of a nat per token, at the last stage, if any token counted.
        loss_micronats: Option<i64>,
    },
    /// The group is forgotten.
    GroupClosed {
        /// BLAKE3 of the result, if one was written.
        digest: Option<Digest>,
        /// In millionths of a nat per token: mean over the steps, or over the held-out tokens; at the last stage, 0 elsewhere.
        loss_micronats: i64,
        /// Tokens trained on; or judged by, at the last stage, 0 elsewhere.
        tokens: u64,
    },
    /// The moments are on disk.
    Shown {
        /// BLAKE3 of the file.
        digest: Digest,
    },
    /// The phase was run again.
    Checked {
        /// How far the claimed delta is from what was found, as [`crate::check::check_phase`] measures it, in millionths; at
        /// most [`crate::limits::CHECK_DISTANCE_MAX_MILLIONTHS`] for an honest one.
        distance_millionths: u64,
    },
    /// The stage is loaded.
    StageOpened {
        /// Bytes that its weights take.
        resident_bytes: u64,
    },
    /// What the stage gave.
    Stepped {
        /// To the next stage, or to the owner.
        output: Output,
        /// What the last stage commits to, now that the step showed which of its earlier rows stand.
        spans: Vec<Span>,
    },
    /// The session is gone.
    SessionClosed {
        /// What the last stage still had to commit to.
        spans: Vec<Span>,
    },
    /// The stage is gone.
    Closed {
        /// Whether it was there.
        existed: bool,
    },
    /// The task was stopped by a cancel; nothing was written.
    Cancelled,
    /// The task failed; nothing was written under the final name.
    Failed {
        /// Why, for people.
        message: String,
    },
}

impl Task {
    /// Every path and count of the task, checked against the bounds.
    ///
    /// # Errors
    /// Says which bound is exceeded.
    pub fn check(&self) -> Result<(), String> {
        let paths: Vec<&String> = match self {
            Self::Init { model, out, evaluate, .. } => {
                let own = [&model.manifest, &model.pieces, out];
                own.into_iter().chain(evaluate.as_ref().map(|judge| &judge.data)).collect()
            }
            Self::Train { phase, out } => phase.paths().chain([out]).collect(),
            Self::Merge { model, state, deltas, out, evaluate, .. } => {
                let files: usize = deltas.iter().map(Vec::len).sum();
                if files > DELTAS_MAX {
                    return Err(format!("{files} files of deltas, at most {DELTAS_MAX}"));
                }
                let own = [&model.manifest, &model.pieces, state, out];
                let judged = evaluate.as_ref().map(|judge| &judge.data);
                own.into_iter().chain(deltas.iter().flatten()).chain(judged).collect()
            }
            Self::GroupOpen(task) => {
                vec![&task.model.manifest, &task.model.pieces, &task.state, &task.data]
            }
            Self::GroupClose { out, .. } => out.iter().collect(),
            Self::Show { model, out, .. } => vec![&model.manifest, &model.pieces, out],
            Self::Check { phase, began, delta } => phase.paths().chain([began, delta]).collect(),
            Self::StageOpen(task) => vec![&task.manifest, &task.pieces],
            Self::Describe
            | Self::Bench
            | Self::GroupForward { .. }
            | Self::GroupBackward { .. }
            | Self::GroupStep { .. }
            | Self::StageStep { .. }
            | Self::SessionClose { .. }
            | Self::StageClose { .. }
            | Self::Cancel { .. } => Vec::new(),
        };
        match paths.iter().find(|path| path.is_empty() || path.len() > PATH_BYTES_MAX) {
            Some(path) => Err(format!("a path of {} bytes, allowed are 1 to {PATH_BYTES_MAX}", path.len())),
            None => Ok(()),
        }
    }
}

impl PhaseTask {
    fn paths(&self) -> impl Iterator<Item = &String> {
        [&self.model.manifest, &self.model.pieces, &self.state, &self.data].into_iter()
    }
}

impl Reply {
    /// A failure, cut to what a reply may carry.
    #[must_use]
    pub fn failed(mut message: String) -> Self {
        let mut end = message.len().min(MESSAGE_BYTES_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        Self::Failed { message }
    }
}

/// A whole frame, length included.
///
/// # Errors
/// [`FrameError::TooLong`], or [`FrameError::Unencodable`] for floats that are NaN.
pub fn encode<T: BorshSerialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    message.serialize(&mut frame).map_err(FrameError::Unencodable)?;
    let bytes = frame.len() - 4;
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
    let length = length.ok_or(FrameError::TooLong { bytes })?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The length that a frame's first four bytes announce.
///
/// # Errors
/// [`FrameError::TooLong`], before anything is allocated.
pub fn frame_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(header) as usize;
    if bytes > FRAME_BYTES_MAX { Err(FrameError::TooLong { bytes }) } else { Ok(bytes) }
}

/// The message in a frame, given without its length. Memory used is proportional to the bytes given.
///
/// # Errors
/// [`FrameError::Garbage`], also for bytes that are left over.
pub fn decode<T: BorshDeserialize>(payload: &[u8]) -> Result<T, FrameError> {
    borsh::from_slice(payload).map_err(FrameError::Garbage)
}

/// Writes one frame and flushes.
///
/// # Errors
/// [`FrameError`]; after a failure of the pipe the stream is unusable.
pub fn write_frame<T: BorshSerialize>(output: &mut impl Write, message: &T) -> Result<(), FrameError> {
    output.write_all(&encode(message)?)?;
    output.flush()?;
    Ok(())
}

/// Reads one frame; `None` when the pipe ended between frames.
///
/// # Errors
/// [`FrameError`]; after a failure the stream is unusable.
pub fn read_frame<T: BorshDeserialize>(input: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut header = [0; 4];
    let mut have = 0;
    while have < header.len() {
        match input.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Torn),
            Ok(count) => have += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Pipe(error)),
        }
    }
    let length = frame_length(header)?;
    let mut payload = Vec::new();
    // Grows as bytes arrive: a length alone, sent by a liar, costs no memory.
    if input.take(length as u64).read_to_end(&mut payload)? < length {
        return Err(FrameError::Torn);
    }
    decode(&payload).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skein_engine::step::{Input, Want};

    fn request() -> Request {
        let want = Want::Scores { from: 0, targets: vec![5] };
        let chunk = Chunk { session: 2, position: 3, input: Input::Rows(vec![1, 2, 3]), want };
        Request { id: 7, body: Task::StageStep { stage: 1, chunk } }
    }

    #[test]
    fn frames_pass_a_pipe() {
        let mut pipe = Vec::new();
        write_frame(&mut pipe, &request()).unwrap();
        write_frame(&mut pipe, &Request { id: 8, body: Task::Cancel { id: 7 } }).unwrap();
        let mut reader = pipe.as_slice();
        assert_eq!(read_frame::<Request>(&mut reader).unwrap(), Some(request()));
        assert_eq!(read_frame::<Request>(&mut reader).unwrap().unwrap().id, 8);
        assert_eq!(read_frame::<Request>(&mut reader).unwrap(), None);
    }

    #[test]
    fn the_encoding_is_pinned() {
        let frame = encode(&Request { id: 7, body: Task::Cancel { id: 3 } }).unwrap();
        assert_eq!(frame, [17, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 16, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn lies_about_length_cost_nothing() {
        assert!(matches!(read_frame::<Request>(&mut [0xff; 9].as_slice()), Err(FrameError::TooLong { .. })));
        let mut frame = encode(&request()).unwrap();
        frame.pop();
        assert!(matches!(read_frame::<Request>(&mut frame.as_slice()), Err(FrameError::Torn)));
        assert!(matches!(read_frame::<Request>(&mut [1, 0].as_slice()), Err(FrameError::Torn)));
        // A list that claims four billion tokens in a frame of a few bytes.
        let mut payload = encode(&request()).unwrap().split_off(4);
        let at = payload.len() - 8;
        payload[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decode::<Request>(&payload), Err(FrameError::Garbage(_))));
    }

    #[test]
    fn no_nan_passes() {
        let reply = Response {
            id: 1,
            body: Reply::Stepped { output: Output::Scores(vec![f32::NAN]), spans: Vec::new() },
        };
        assert!(matches!(encode(&reply), Err(FrameError::Unencodable(_))));
    }

    #[test]
    fn long_failures_are_cut_between_characters() {
        let Reply::Failed { message } = Reply::failed("ä".repeat(MESSAGE_BYTES_MAX) + "x") else { panic!() };
        assert_eq!(message.len(), MESSAGE_BYTES_MAX);
        let Reply::Failed { message } = Reply::failed("x".to_owned() + &"ä".repeat(MESSAGE_BYTES_MAX))
        else {
            panic!()
        };
        assert_eq!(message.len(), MESSAGE_BYTES_MAX - 1);
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_a_message_that_encodes_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = decode::<Request>(&bytes) {
                prop_assert_eq!(&encode(&request).unwrap()[4..], bytes.as_slice());
            }
        }

        #[test]
        fn a_changed_byte_never_panics(at in 0usize..40, value: u8) {
            let mut frame = encode(&request()).unwrap();
            let at = at % frame.len();
            frame[at] = value;
            let _ = read_frame::<Request>(&mut frame.as_slice());
        }
    }
}
