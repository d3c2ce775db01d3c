//! Serving sessions: activations travel from stage to stage, and the last stage answers the owner.
//!
//! A session is a ring of one-way links: owner → first stage → … → last stage → owner. Tokens go in, chosen
//! tokens come out, and only f16 rows travel between stages. The owner keeps every token, so when a stage
//! dies it opens a new ring and sends them again in one pass; the engine's results do not depend on how rows
//! are batched or where layers are split, so the stream goes on with the same tokens. Nothing here decides
//! who serves what: routes come from the coordinator's placement.
//!
//! A break travels both ways around the ring: onward because a link ends, and back because whoever sends on a
//! link watches whether the other end still holds it. So the owner hears of it wherever it happened.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use borsh::{BorshDeserialize, BorshSerialize};
use skein_compute::protocol::{Reply, Task};
use skein_engine::step::{Chunk, Input, Output, Want};
use skein_engine::toploc::Span;
use skein_mesh::{BulkReceiver, BulkSender, BulkStream, Mesh, StreamKind};
use skein_proto::ids::{Digest, LeaseId, NodeId};
use skein_proto::message::StageAt;
use skein_proto::signed::{decode, encode};
use smol::channel;

use super::lock;
use super::worker::Worker;
use crate::limits::{
    LINK_FRAMES_QUEUED_MAX, REASON_WAIT, SESSIONS_MAX, SPANS_PER_ANSWER_MAX, STAGE_FRAME_BYTES_MAX,
    STAGE_HEAD_BYTES_MAX, STAGES_MAX, STEP_TIMEOUT,
};

/// The first frame of a link.
#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
enum Head {
    /// To a stage: serve place `at` of `route` in this session.
    Stage { session: u64, owner: NodeId, route: Vec<(NodeId, LeaseId)>, at: u16 },
    /// To the owner: here come the answers.
    Return { session: u64 },
}

/// What flows along the ring.
#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
enum Frame {
    /// Onward: tokens to the first stage, rows to the others.
    Step { position: u32, input: Input, want: Want },
    /// Onward: the session ends, and so many of its positions were right.
    End { length: u32 },
    /// To the owner, once for every step and for the end, with what the last stage commits to meanwhile.
    Answer { output: Output, spans: Vec<Span> },
    /// To the owner: a stage cannot go on.
    Failed { reason: String },
}

/// Why a session broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// A stage could not be reached or vanished.
    #[error("the pipeline broke: {0}")]
    Broken(String),
    /// No answer in time.
    #[error("no answer from the pipeline within {} s", STEP_TIMEOUT.as_secs())]
    Silent,
}

/// All sessions that run through this agent, as owner or as stage.
#[derive(Clone)]
pub(crate) struct Pipeline {
    shared: Arc<Shared>,
}

struct Shared {
    me: NodeId,
    mesh: Mesh,
    scratch: PathBuf,
    stages: Mutex<BTreeMap<LeaseId, Stage>>,
    returns: Mutex<BTreeMap<u64, channel::Sender<LinkReceiver>>>,
}

/// A stage held here, and the worker that has its layers.
#[derive(Clone)]
struct Stage {
    worker: Worker,
    tally: Arc<Mutex<Tally>>,
    passing: Arc<AtomicUsize>,
}

/// What a stage did under its lease: goes into the receipt.
#[derive(Debug)]
pub(crate) struct Tally {
    inputs: blake3::Hasher,
    outputs: blake3::Hasher,
    tokens: u64,
    width: usize,
    commitments: Option<Commitments>,
    /// The receipt is written.
    closed: bool,
}

/// The file of all that a last stage committed to under one lease: one span after the other, in borsh. Its digest is in
/// the receipt, so that what an owner was given can be found in what was signed.
#[derive(Debug)]
struct Commitments {
    path: PathBuf,
    file: BufWriter<File>,
}

/// What a receipt says of a stage.
#[derive(Debug)]
pub(crate) struct Totals {
    pub(crate) inputs: Digest,
    pub(crate) outputs: Digest,
    pub(crate) tokens: u64,
    /// All that it committed to, where it was the last stage and committed to anything.
    pub(crate) commitments: Option<PathBuf>,
}

impl Tally {
    /// Rolling digests of inputs and outputs, tokens served, and the file of commitments, complete.
    pub(crate) fn totals(&mut self) -> std::io::Result<Totals> {
        self.closed = true;
        let commitments = match self.commitments.take() {
            Some(mut commitments) => {
                commitments.file.flush()?;
                Some(commitments.path)
            }
            None => None,
        };
        Ok(Totals {
            inputs: Digest(*self.inputs.finalize().as_bytes()),
            outputs: Digest(*self.outputs.finalize().as_bytes()),
            tokens: self.tokens,
            commitments,
        })
    }

    /// Counts a frame that came and the one that it led to.
    fn add(&mut self, tokens: usize, received: &[u8], sent: &[u8], spans: &[Span], file: PathBuf) {
        self.inputs.update(received);
        self.outputs.update(sent);
        self.tokens = self.tokens.saturating_add(tokens as u64);
        if spans.is_empty() || self.closed {
            return;
        }
        if self.commitments.is_none() {
            match File::create(&file) {
                Ok(created) => {
                    self.commitments = Some(Commitments { path: file, file: BufWriter::new(created) });
                }
                Err(error) => tracing::warn!(%error, "cannot keep commitments"),
            }
        }
        if let Some(commitments) = &mut self.commitments {
            let bytes: Vec<u8> = spans.iter().flat_map(encode).collect();
            if let Err(error) = commitments.file.write_all(&bytes) {
                tracing::warn!(%error, "cannot keep commitments");
            }
        }
    }
}

impl Pipeline {
    pub(crate) fn new(me: NodeId, mesh: Mesh, scratch: PathBuf) -> Self {
        let (stages, returns) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { me, mesh, scratch, stages, returns }) }
    }

    /// The stage held under `lease` is loaded in `worker`.
    pub(crate) fn stage_opened(&self, lease: LeaseId, worker: Worker, width: usize) -> Arc<Mutex<Tally>> {
        let tally = Arc::new(Mutex::new(Tally {
            inputs: blake3::Hasher::new(),
            outputs: blake3::Hasher::new(),
            tokens: 0,
            width,
            commitments: None,
            closed: false,
        }));
        let stage = Stage { worker, tally: Arc::clone(&tally), passing: Arc::default() };
        lock(&self.shared.stages).insert(lease, stage);
        tally
    }

    /// The stage is gone; its sessions break at their next step.
    pub(crate) fn stage_closed(&self, lease: LeaseId) {
        lock(&self.shared.stages).remove(&lease);
    }

    /// Opens a session through `stages`, in order.
    pub(crate) async fn open(&self, stages: &[StageAt]) -> Result<Session, SessionError> {
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(|error| SessionError::Broken(error.to_string()))?;
        let session = u64::from_le_bytes(number);
        let route: Vec<_> = stages.iter().map(|stage| (stage.node, stage.lease)).collect();
        let (Some(&(first, _)), Some(&last)) = (route.first(), route.last()) else {
            return Err(SessionError::Broken("it has no stages".into()));
        };
        let (sender, receiver) = channel::bounded(1);
        lock(&self.shared.returns).insert(session, sender);
        let waiting = Waiting { pipeline: self.clone(), session };
        let head = Head::Stage { session, owner: self.shared.me, route, at: 0 };
        let mut to_first = self.link(first, &head).await?;
        let returned = async {
            receiver.recv().await.map_err(|_| SessionError::Broken("the return link was refused".into()))
        };
        let from_last = in_time(unless_broken(returned, &mut to_first)).await?;
        Ok(Session { to_first, from_last, stages: stages.len(), last, length: 0, _waiting: waiting })
    }

    /// Serves one incoming link until it ends.
    pub(crate) async fn accept(self, from: NodeId, stream: BulkStream) {
        let (back, receiver) = stream.split();
        self.serve(from, LinkReceiver::Remote { receiver, _back: back }).await;
    }

    /// Boxed, because serving a link may open another one on this same agent.
    fn serve_boxed(self, from: NodeId, link: LinkReceiver) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.serve(from, link))
    }

    async fn serve(self, from: NodeId, mut link: LinkReceiver) {
        let head = match link.receive(STAGE_HEAD_BYTES_MAX).await {
            Ok(Some(bytes)) => decode::<Head>(&bytes),
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(from = %from.short(), %error, "a session's link broke before it began");
                return;
            }
        };
        match head {
            Ok(Head::Return { session }) => {
                let waiting = lock(&self.shared.returns).remove(&session);
                if let Some(waiting) = waiting {
                    let _ = waiting.try_send(link);
                }
            }
            Ok(Head::Stage { session, owner, route, at }) => {
                if let Err(error) = self.pass_through(link, session, owner, route, at).await {
                    tracing::debug!(owner = %owner.short(), %error, "a session through this agent ended early");
                }
            }
            Err(error) => tracing::debug!(from = %from.short(), %error, "a link began with nonsense"),
        }
    }

    async fn pass_through(
        &self,
        mut upstream: LinkReceiver,
        session: u64,
        owner: NodeId,
        route: Vec<(NodeId, LeaseId)>,
        at: u16,
    ) -> Result<(), SessionError> {
        let broken = |reason: &str| SessionError::Broken(reason.to_owned());
        let place = usize::from(at);
        let lease = match route.get(place) {
            Some(&(node, lease)) if node == self.shared.me && route.len() <= STAGES_MAX => lease,
            _ => return Err(broken("the route does not lead through this agent")),
        };
        let stage = lock(&self.shared.stages).get(&lease).cloned();
        let next = route.get(place + 1).map(|hop| hop.0);
        let head = match next {
            Some(_) => Head::Stage { session, owner, route, at: at + 1 },
            None => Head::Return { session },
        };
        let mut downstream = self.link(next.unwrap_or(owner), &head).await?;
        let me = self.shared.me.short();
        let entered = match &stage {
            None => Err(format!("agent {me} no longer holds lease {}", lease.short())),
            Some(stage) => Passing::enter(&stage.passing)
                .map(|passing| (stage, passing))
                .ok_or_else(|| format!("agent {me} serves {SESSIONS_MAX} sessions of this stage already")),
        };
        let (stage, _passing) = match entered {
            Ok(entered) => entered,
            Err(reason) => {
                downstream.send(&Frame::Failed { reason }).await?;
                return downstream.finish().await;
            }
        };
        let key = session_key(owner, session);
        let result = self.relay(&mut upstream, &mut downstream, lease, key, stage).await;
        // Tells those before at once.
        drop(upstream);
        let length = result.as_ref().map_or(0, |length| *length);
        let close = Task::SessionClose { stage: stage_number(lease), session: key, length };
        let closed = stage.worker.call(close, |_| {}).await;
        let farewell = match (result, closed) {
            (Err(SessionError::Broken(reason)), _) => Frame::Failed { reason },
            (Err(error @ SessionError::Silent), _) => Frame::Failed { reason: error.to_string() },
            (Ok(_), Ok(Reply::SessionClosed { spans })) if next.is_none() => {
                let frame = Frame::Answer { output: Output::Picks(Vec::new()), spans: spans.clone() };
                lock(&stage.tally).add(0, &[], &encode(&frame), &spans, self.commitments_file(lease));
                frame
            }
            (Ok(length), _) => Frame::End { length },
        };
        // Whoever is gone need not hear it.
        let _ = downstream.send(&farewell).await;
        downstream.finish().await
    }

    fn commitments_file(&self, lease: LeaseId) -> PathBuf {
        self.shared.scratch.join(format!("{lease}.commitments"))
    }

    /// Serves the steps of a session until it ends; how many of its positions were right.
    async fn relay(
        &self,
        upstream: &mut LinkReceiver,
        downstream: &mut LinkSender,
        lease: LeaseId,
        session: u64,
        Stage { worker, tally, .. }: &Stage,
    ) -> Result<u32, SessionError> {
        let broken = |reason: String| SessionError::Broken(reason);
        let width = lock(tally).width;
        loop {
            let received = upstream.receive(STAGE_FRAME_BYTES_MAX);
            let Some(bytes) = smol::future::or(received, downstream.broken()).await? else { return Ok(0) };
            let (position, input, want) = match decode(&bytes).map_err(|error| broken(error.to_string()))? {
                Frame::Step { position, input, want } => (position, input, want),
                Frame::End { length } => return Ok(length),
                // The stage before gave up: the owner is to hear why.
                Frame::Failed { reason } => return Err(broken(reason)),
                Frame::Answer { .. } => return Err(broken("a stage answered out of turn".to_owned())),
            };
            let tokens = input.rows(width);
            if !lock(&self.shared.stages).contains_key(&lease) {
                return Err(broken(format!("agent {} no longer holds the lease", self.shared.me.short())));
            }
            let stage = stage_number(lease);
            let chunk = Chunk { session, position, input, want: want.clone() };
            let reply = worker.call(Task::StageStep { stage, chunk }, |_| {}).await;
            let Reply::Stepped { output, spans } = reply.map_err(|error| broken(error.to_string()))? else {
                return Err(broken("the worker answered out of turn".to_owned()));
            };
            let frame = match output {
                Output::Rows(rows) => Frame::Step { position, input: Input::Rows(rows), want },
                output @ (Output::Picks(_) | Output::Scores(_)) => {
                    Frame::Answer { output, spans: spans.clone() }
                }
            };
            let sent = encode(&frame);
            lock(tally).add(tokens, &bytes, &sent, &spans, self.commitments_file(lease));
            downstream.send_bytes(sent).await?;
        }
    }

    /// Opens a one-way link to `to`, which may be this agent itself.
    async fn link(&self, to: NodeId, head: &Head) -> Result<LinkSender, SessionError> {
        let mut link = if to == self.shared.me {
            let (sender, receiver) = channel::bounded(LINK_FRAMES_QUEUED_MAX);
            let (this, me) = (self.clone(), self.shared.me);
            skein_mesh::spawn(this.serve_boxed(me, LinkReceiver::Local(receiver))).detach();
            LinkSender::Local(sender)
        } else {
            let stream = in_time(async {
                let opened = self.shared.mesh.open(to, StreamKind::Stage).await;
                opened.map_err(|error| SessionError::Broken(error.to_string()))
            })
            .await?;
            let (sender, back) = stream.split();
            LinkSender::Remote { sender, back }
        };
        link.send_bytes(encode(head)).await?;
        Ok(link)
    }
}

/// An open session, at its owner.
pub(crate) struct Session {
    to_first: LinkSender,
    from_last: LinkReceiver,
    stages: usize,
    last: (NodeId, LeaseId),
    /// Positions sent so far.
    length: u32,
    _waiting: Waiting,
}

/// What came around the ring.
pub(crate) struct Answered {
    pub(crate) output: Output,
    /// What the last stage commits to.
    pub(crate) spans: Vec<Span>,
}

impl Session {
    /// Stages that a step passes through.
    pub(crate) fn stages(&self) -> usize {
        self.stages
    }

    /// Who chooses the tokens and commits to the states behind them, and under which lease.
    pub(crate) fn last(&self) -> (NodeId, LeaseId) {
        self.last
    }

    /// Ends the session, of which the first `length` positions were right, and hears what is left to commit to.
    pub(crate) async fn end(mut self, length: u32) -> Result<Vec<Span>, SessionError> {
        in_time(async {
            self.to_first.send(&Frame::End { length }).await?;
            // The stages leave one after the other, the first of them first.
            let bytes = self.from_last.receive(STAGE_FRAME_BYTES_MAX).await?;
            Ok(self.read(bytes)?.spans)
        })
        .await
    }

    /// Sends `tokens`, the first of them at `position`; each step is answered once, in order.
    pub(crate) async fn send(
        &mut self,
        position: u32,
        tokens: &[u32],
        want: Want,
    ) -> Result<(), SessionError> {
        let length = position.saturating_add(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
        self.length = self.length.max(length);
        let frame = Frame::Step { position, input: Input::Tokens(tokens.to_vec()), want };
        in_time(self.to_first.send(&frame)).await
    }

    /// The answer to the oldest step that has none yet.
    pub(crate) async fn answer(&mut self) -> Result<Answered, SessionError> {
        let received = self.from_last.receive(STAGE_FRAME_BYTES_MAX);
        let bytes = in_time(unless_broken(received, &mut self.to_first)).await?;
        self.read(bytes)
    }

    fn read(&self, bytes: Option<Vec<u8>>) -> Result<Answered, SessionError> {
        let broken = |reason: &str| Err(SessionError::Broken(reason.to_owned()));
        let Some(bytes) = bytes else { return broken("a stage is gone") };
        match decode(&bytes) {
            Ok(Frame::Answer { output, spans }) => {
                let few = spans.len() <= SPANS_PER_ANSWER_MAX;
                if few && spans.iter().all(|span| span.is_bounded(self.length)) {
                    Ok(Answered { output, spans })
                } else {
                    broken("the last stage commits to what was not asked for")
                }
            }
            Ok(Frame::Failed { reason }) => broken(&reason),
            Ok(Frame::Step { .. } | Frame::End { .. }) => broken("the last stage answered out of turn"),
            Err(error) => broken(&error.to_string()),
        }
    }
}

/// Forgets the awaited return link, however the session ends.
struct Waiting {
    pipeline: Pipeline,
    session: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock(&self.pipeline.shared.returns).remove(&self.session);
    }
}

/// Counts a session that passes through, up to the limit.
struct Passing<'a>(&'a AtomicUsize);

impl<'a> Passing<'a> {
    fn enter(count: &'a AtomicUsize) -> Option<Self> {
        let within = |now: usize| (now < SESSIONS_MAX).then_some(now + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).ok().map(|_| Self(count))
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The end of a link that sends. The other direction of its stream carries nothing: it ends when the receiver does.
enum LinkSender {
    Remote { sender: BulkSender, back: BulkReceiver },
    Local(channel::Sender<Vec<u8>>),
}

/// The end of a link that receives. Dropped, it tells the sender.
enum LinkReceiver {
    Remote { receiver: BulkReceiver, _back: BulkSender },
    Local(channel::Receiver<Vec<u8>>),
}

impl LinkSender {
    async fn send(&mut self, frame: &Frame) -> Result<(), SessionError> {
        self.send_bytes(encode(frame)).await
    }

    async fn send_bytes(&mut self, bytes: Vec<u8>) -> Result<(), SessionError> {
        match self {
            Self::Remote { sender, .. } => {
                sender.send_frame(&bytes).await.map_err(|error| SessionError::Broken(error.to_string()))
            }
            Self::Local(sender) => sender.send(bytes).await.map_err(|_| next_is_gone()),
        }
    }

    /// Returns, always with an error, once nobody receives any more.
    async fn broken<T>(&mut self) -> Result<T, SessionError> {
        match self {
            Self::Remote { back, .. } => match back.recv_frame(0).await {
                Err(error) => Err(SessionError::Broken(format!("the next stage is gone: {error}"))),
                Ok(_) => Err(next_is_gone()),
            },
            Self::Local(sender) => {
                sender.closed().await;
                Err(next_is_gone())
            }
        }
    }

    async fn finish(self) -> Result<(), SessionError> {
        match self {
            Self::Remote { mut sender, .. } => {
                sender.finish().map_err(|error| SessionError::Broken(error.to_string()))
            }
            Self::Local(_) => Ok(()),
        }
    }
}

impl LinkReceiver {
    async fn receive(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, SessionError> {
        match self {
            Self::Remote { receiver, .. } => {
                receiver.recv_frame(bytes_max).await.map_err(|error| SessionError::Broken(error.to_string()))
            }
            Self::Local(receiver) => Ok(receiver.recv().await.ok()),
        }
    }
}

fn next_is_gone() -> SessionError {
    SessionError::Broken("the next stage is gone".to_owned())
}

/// What comes around the ring, unless the ring breaks behind its first link. The reason for that comes around the
/// other way, and is waited for a moment.
async fn unless_broken<T>(
    around: impl Future<Output = Result<T, SessionError>>,
    to_first: &mut LinkSender,
) -> Result<T, SessionError> {
    smol::future::or(around, async {
        let broken = to_first.broken().await;
        smol::Timer::after(REASON_WAIT).await;
        broken
    })
    .await
}

/// The number by which the worker knows the stage of `lease`.
pub(crate) fn stage_number(lease: LeaseId) -> u64 {
    first_eight(&lease.0)
}

/// Sessions of different owners never meet in a worker's cache.
fn session_key(owner: NodeId, session: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&owner.0).update(&session.to_le_bytes());
    first_eight(hasher.finalize().as_bytes())
}

fn first_eight(bytes: &[u8; 32]) -> u64 {
    bytes[..8].iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

async fn in_time<T>(future: impl Future<Output = Result<T, SessionError>>) -> Result<T, SessionError> {
    smol::future::or(future, async {
        smol::Timer::after(STEP_TIMEOUT).await;
        Err(SessionError::Silent)
    })
    .await
}
