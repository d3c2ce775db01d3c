//! Owns the thread that serves the stages of language models: it opens, steps and closes them.
//! Must never wait for a training task, nor for one session while another could be computed.
//!
//! Steps that wait when a step ends are computed together, whoever's they are, up to [`STEP_ROWS_MAX`] rows: that is the
//! whole of continuous batching. They are taken in the order of their arrival, so no session starves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

use skein_engine::manifest::{Manifest, PieceSource};
use skein_engine::stage::{Options, Stage};
use skein_engine::step::Chunk;
use skein_engine::toploc::{Committer, Span};

use crate::device::{DeviceChoice, engine_device};
use crate::limits::{STAGES_MAX, STEP_ROWS_MAX};
use crate::protocol::{FrameError, Reply, Request, StageTask, Task};
use crate::worker::{Replies, panic_text};

/// Whether a task is for this thread.
pub(crate) fn concerns(task: &Task) -> bool {
    matches!(
        task,
        Task::StageOpen(_) | Task::StageStep { .. } | Task::SessionClose { .. } | Task::StageClose { .. }
    )
}

/// Serves until the queue ends.
///
/// # Errors
/// When the daemon cannot be reached.
pub(crate) fn serve<W: Write>(
    device: &DeviceChoice,
    threads: u32,
    tasks: &Receiver<Request>,
    replies: &Replies<W>,
) -> Result<(), FrameError> {
    let mut stages = Stages { device, threads, open: BTreeMap::new() };
    let mut waiting = VecDeque::new();
    while let Some(request) = waiting.pop_front().or_else(|| tasks.recv().ok()) {
        waiting.extend(tasks.try_iter());
        let Request { id, body } = request;
        if let Err(reason) = body.check() {
            replies.send(id, Reply::failed(reason))?;
            continue;
        }
        match body {
            Task::StageStep { stage, chunk } => {
                let width = stages.open.get(&stage).map_or(1, |open| open.stage.config().width as usize);
                let together = take_companions(&mut waiting, stage, (id, chunk), width);
                for (id, reply) in stages.step(stage, together) {
                    replies.send(id, reply)?;
                }
            }
            Task::StageOpen(task) => {
                let mut pipe = Ok(());
                let reply = stages.open(&task, &mut |done, of| {
                    let note = format!("loading layers {} to {}", task.start, task.end);
                    let (done, of) = (megabytes(done), megabytes(of));
                    let progress = Reply::Progress { done, of, loss_micronats: None, note };
                    pipe = replies.send(id, progress);
                });
                pipe?;
                replies.send(id, reply)?;
            }
            Task::SessionClose { stage, session, length } => {
                let spans =
                    stages.open.get_mut(&stage).map_or_else(Vec::new, |open| open.close(session, length));
                replies.send(id, Reply::SessionClosed { spans })?;
            }
            Task::StageClose { stage } => {
                replies.send(id, Reply::Closed { existed: stages.open.remove(&stage).is_some() })?;
            }
            Task::Describe
            | Task::Bench
            | Task::Init { .. }
            | Task::Train { .. }
            | Task::Merge { .. }
            | Task::GroupOpen(_)
            | Task::GroupForward { .. }
            | Task::GroupBackward { .. }
            | Task::GroupStep { .. }
            | Task::GroupClose { .. }
            | Task::Show { .. }
            | Task::Check { .. }
            | Task::Cancel { .. } => replies.send(id, Reply::failed("no task of a stage".to_owned()))?,
        }
    }
    Ok(())
}

/// Takes every waiting step of `stage` that fits beside `first`, one of each session; the others stay in their order,
/// and what a session sent later is never taken before what it sent earlier.
fn take_companions(
    waiting: &mut VecDeque<Request>,
    stage: u64,
    first: (u64, Chunk),
    width: usize,
) -> Vec<(u64, Chunk)> {
    let mut rows = first.1.input.rows(width);
    let mut seen = BTreeSet::from([first.1.session]);
    let mut together = vec![first];
    for request in std::mem::take(waiting) {
        if let Task::StageStep { stage: other, chunk } = &request.body
            && *other == stage
            && seen.insert(chunk.session)
            && rows + chunk.input.rows(width) <= STEP_ROWS_MAX
        {
            rows += chunk.input.rows(width);
            together.push((request.id, chunk.clone()));
        } else {
            waiting.push_back(request);
        }
    }
    together
}

struct Stages<'a> {
    device: &'a DeviceChoice,
    threads: u32,
    open: BTreeMap<u64, Open>,
}

/// A stage and, if it is the last, what its sessions are committed to.
struct Open {
    stage: Stage,
    committers: BTreeMap<u64, Committer>,
}

impl Open {
    /// One chunk of each session.
    fn step(&mut self, chunks: &[Chunk]) -> Vec<Reply> {
        let Self { stage, committers } = self;
        let settled: Vec<Vec<Span>> = chunks
            .iter()
            .map(|chunk| {
                let mut spans = Vec::new();
                if let Some(committer) = committers.get_mut(&chunk.session) {
                    committer.settle(chunk.position, &mut spans);
                }
                spans
            })
            .collect();
        let outputs = stage.step_observed(chunks, &mut |number, position, state| {
            committers.entry(chunks[number].session).or_default().observe(position, state);
        });
        let replies = outputs.into_iter().zip(settled).map(|(output, spans)| match output {
            Ok(output) => Reply::Stepped { output, spans },
            Err(error) => Reply::failed(error.to_string()),
        });
        replies.collect()
    }

    fn close(&mut self, session: u64, length: u32) -> Vec<Span> {
        let mut spans = Vec::new();
        if let Some(mut committer) = self.committers.remove(&session) {
            committer.end(length, &mut spans);
        }
        self.stage.close(session);
        spans
    }
}

impl Stages<'_> {
    fn open(&mut self, task: &StageTask, progress: &mut dyn FnMut(u64, u64)) -> Reply {
        self.open.remove(&task.stage);
        if self.open.len() >= STAGES_MAX {
            return Reply::failed(format!("all {STAGES_MAX} stages of this worker are open"));
        }
        let opened = catch_unwind(AssertUnwindSafe(|| load(self.device, self.threads, task, progress)));
        match opened {
            Ok(Ok(stage)) => {
                let resident_bytes = stage.resident_bytes();
                self.open.insert(task.stage, Open { stage, committers: BTreeMap::new() });
                Reply::StageOpened { resident_bytes }
            }
            Ok(Err(reason)) => Reply::failed(reason),
            Err(panic) => Reply::failed(format!("loading the stage panicked: {}", panic_text(&*panic))),
        }
    }

    fn step(&mut self, stage: u64, together: Vec<(u64, Chunk)>) -> Vec<(u64, Reply)> {
        let (ids, chunks): (Vec<u64>, Vec<Chunk>) = together.into_iter().unzip();
        let Some(open) = self.open.get_mut(&stage) else {
            return ids
                .into_iter()
                .map(|id| (id, Reply::failed("this stage is not open".to_owned())))
                .collect();
        };
        match catch_unwind(AssertUnwindSafe(|| open.step(&chunks))) {
            Ok(replies) => ids.into_iter().zip(replies).collect(),
            Err(panic) => {
                // Its caches may be half changed.
                self.open.remove(&stage);
                let message = format!("the step panicked: {}", panic_text(&*panic));
                ids.into_iter().map(|id| (id, Reply::failed(message.clone()))).collect()
            }
        }
    }
}

fn load(
    device: &DeviceChoice,
    threads: u32,
    task: &StageTask,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Stage, String> {
    let bytes = std::fs::read(&task.manifest)
        .map_err(|error| format!("cannot read the manifest {}: {error}", task.manifest))?;
    let manifest = Manifest::decode(&bytes).map_err(|error| error.to_string())?;
    let directory = PathBuf::from(&task.pieces);
    let name = |digest: &[u8; 32]| blake3::Hash::from_bytes(*digest).to_hex();
    let source = PieceSource::new(manifest, Box::new(move |digest| directory.join(name(digest).as_str())));
    let options = Options {
        layers: task.start..task.end,
        device: engine_device(device, threads as usize),
        cache_bytes: task.cache_bytes,
        context: task.context,
    };
    Stage::open(&source, &options, progress).map_err(|error| error.to_string())
}

fn megabytes(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use skein_engine::step::{Input, Want};

    use super::*;

    fn step(id: u64, session: u64, rows: usize) -> Request {
        let chunk = Chunk { session, position: 0, input: Input::Tokens(vec![0; rows]), want: Want::Nothing };
        Request { id, body: Task::StageStep { stage: 1, chunk } }
    }

    #[test]
    fn a_session_is_never_overtaken_by_itself() {
        let first =
            Chunk { session: 1, position: 0, input: Input::Tokens(vec![0; 128]), want: Want::Nothing };
        let long = STEP_ROWS_MAX - 100;
        let mut waiting = VecDeque::from([step(2, 2, long), step(3, 2, 1), step(4, 1, 1), step(5, 3, 1)]);
        let together = take_companions(&mut waiting, 1, (1, first), 1);
        assert_eq!(together.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 5]);
        assert_eq!(waiting.iter().map(|request| request.id).collect::<Vec<_>>(), [2, 3, 4]);
    }
}
