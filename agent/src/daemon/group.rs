//! Training and judging in a group: sequences go forward through its members' layers and their gradients come back.
//!
//! Each member drives its own worker in the order of 1F1B (Narayanan et al. 2019): it starts as many micro-batches as there
//! are members from it to the end, then goes one forward for every one that comes back. Nothing is decided here: who
//! does what comes with the lease. A member that dies ends the streams to its neighbours, these end theirs, and the
//! coordinator, who noticed too, gives the slice to another group.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use borsh::{BorshDeserialize, BorshSerialize};
use skein_compute::protocol::{GroupPurpose, GroupTask, Reply, Task};
use skein_mesh::{BulkReceiver, BulkSender, BulkStream, Mesh, StreamKind};
use skein_proto::group::Group;
use skein_proto::ids::{JobId, NodeId};
use skein_proto::limits::GROUP_ROWS_BYTES_MAX;
use skein_proto::signed::{decode, encode};
use smol::channel;

use super::lock;
use super::worker::Worker;
use crate::limits::{GROUP_GATHER_MAX, GROUP_GRIEF, GROUP_HELLO_WAIT, GROUP_REDIAL, STAGE_HEAD_BYTES_MAX};

/// A worker of another version, or a bug in this one.
const OUT_OF_TURN: &str = "the worker answered out of turn";

/// For which member a stream is meant; its first frame, sent by the member before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
struct Hello {
    job: JobId,
    group: u64,
    stage: u16,
}

/// What flows between two members.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
enum Frame {
    /// Onward: what the layers before gave.
    Forward { micro: u32, rows: Vec<u8> },
    /// Back: the gradient of that, and after the last micro-batch of a step the squares of all gradients from there on.
    Backward { micro: u32, rows: Vec<u8>, squares: Option<f64> },
    /// Onward: change the weights by gradients whose squares sum up to this.
    Step { squares: f64 },
}

/// The groups in which this agent's workers are expected.
#[derive(Clone)]
pub(crate) struct Groups {
    me: NodeId,
    mesh: Mesh,
    expected: Arc<Mutex<BTreeMap<Hello, Expected>>>,
}

struct Expected {
    from: NodeId,
    members: usize,
    arrived: channel::Sender<Link>,
}

/// A place in a group, held from the grant on so that the member before finds it.
pub(crate) struct Place {
    groups: Groups,
    worker: Worker,
    hello: Hello,
    group: Group,
    arrives: channel::Receiver<Link>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.groups.expected).remove(&self.hello);
    }
}

impl Groups {
    pub(crate) fn new(me: NodeId, mesh: Mesh) -> Self {
        Self { me, mesh, expected: Arc::default() }
    }

    /// Takes a place for `worker`.
    pub(crate) fn take(&self, worker: Worker, job: JobId, group: Group) -> Place {
        let hello = Hello { job, group: group.number, stage: group.stage };
        let (arrived, arrives) = channel::bounded(1);
        let members = group.members.len();
        if let Some(before) = group.stage.checked_sub(1).and_then(|at| group.members.get(usize::from(at))) {
            lock(&self.expected).insert(hello, Expected { from: before.node, members, arrived });
        }
        Place { groups: self.clone(), worker, hello, group, arrives }
    }

    /// Who is expected at this place by `from`, once only.
    fn claim(&self, hello: &Hello, from: NodeId) -> Option<Expected> {
        let mut expected = lock(&self.expected);
        let awaited = expected.get(hello).is_some_and(|awaited| awaited.from == from);
        awaited.then(|| expected.remove(hello)).flatten()
    }

    /// Takes in a stream, if it comes from whom it should.
    pub(crate) async fn accept(self, from: NodeId, mut stream: BulkStream) {
        let hello = smol::future::or(stream.recv_frame(STAGE_HEAD_BYTES_MAX), async {
            smol::Timer::after(GROUP_HELLO_WAIT).await;
            Ok(None)
        });
        let hello = hello.await.ok().flatten().and_then(|bytes| decode::<Hello>(&bytes).ok());
        match hello.and_then(|hello| self.claim(&hello, from)) {
            // So the other side knows that this one is there.
            Some(expected) if stream.send_frame(&[]).await.is_ok() => {
                let _ = expected.arrived.send(Link::new(stream, expected.members)).await;
            }
            Some(_) | None => tracing::debug!(from = %from.short(), "a stream for no group"),
        }
    }
}

/// What a member did.
pub(crate) struct Done {
    pub(crate) loss_micronats: i64,
    pub(crate) tokens: u64,
    /// Bytes that its neighbours sent.
    pub(crate) received_bytes: u64,
}

impl Place {
    /// Does this member's part. `beat(steps, of, loss)` is called with every sign of progress, and while others are
    /// awaited. The result is written to `out`.
    pub(crate) async fn work(
        self,
        task: GroupTask,
        out: &str,
        beat: impl Fn(u32, u32, Option<i64>) + Sync,
    ) -> Result<Done, String> {
        let (number, purpose) = (task.group, task.purpose.clone());
        let Reply::GroupOpened { micros } = self.call(Task::GroupOpen(task)).await? else {
            return Err(OUT_OF_TURN.to_owned());
        };
        let links = self.gather(&beat).await?;
        let member = Member { place: &self, links, number, micros, beat: &beat };
        match purpose {
            GroupPurpose::Train(inner) => {
                for step in 0..inner.inner_steps {
                    let loss = member.step().await?;
                    beat(step + 1, inner.inner_steps, loss);
                }
            }
            GroupPurpose::Judge { .. } => member.judge().await?,
        }
        let close = Task::GroupClose { group: number, out: Some(out.to_owned()) };
        let Reply::GroupClosed { loss_micronats, tokens, .. } = self.call(close).await? else {
            return Err(OUT_OF_TURN.to_owned());
        };
        let received_bytes = member.links.received_bytes();
        Ok(Done { loss_micronats, tokens, received_bytes })
    }

    async fn call(&self, task: Task) -> Result<Reply, String> {
        self.worker.call(task, |_| {}).await.map_err(|error| error.to_string())
    }

    /// Waits for the member before, and finds the one after.
    async fn gather(&self, beat: &(impl Fn(u32, u32, Option<i64>) + Sync)) -> Result<Links, String> {
        let before = async {
            if self.group.stage == 0 {
                return Ok(None);
            }
            let link = self.arrives.recv().await.map_err(|_| "the group was given up".to_owned())?;
            Ok::<_, String>(Some(link))
        };
        let after = async {
            let next = self.group.members.get(usize::from(self.group.stage) + 1)?;
            Some(self.find(next.node).await)
        };
        let both = async {
            let (before, after) = smol::future::zip(before, after).await;
            Ok(Links { before: before?, after })
        };
        let patience = async {
            let since = Instant::now();
            while since.elapsed() < GROUP_GATHER_MAX {
                // The others may have more weights to fetch.
                beat(0, 0, None);
                smol::Timer::after(GROUP_REDIAL).await;
            }
            Err("the other members of the group did not come".to_owned())
        };
        smol::future::or(both, patience).await
    }

    /// Tries until the member after is there; the coordinator notices if it never is.
    async fn find(&self, node: NodeId) -> Link {
        let members = self.group.members.len();
        let hello = Hello { stage: self.hello.stage + 1, ..self.hello };
        let greeting = encode(&hello);
        loop {
            if node == self.groups.me {
                // Another worker of this same agent.
                if let Some(expected) = self.groups.claim(&hello, node) {
                    let (here, there) = Link::pair(members);
                    if expected.arrived.send(there).await.is_ok() {
                        return here;
                    }
                }
            } else if let Ok(mut stream) = self.groups.mesh.open(node, StreamKind::Group).await
                && stream.send_frame(&greeting).await.is_ok()
                && let Ok(Some(_)) = stream.recv_frame(0).await
            {
                return Link::new(stream, members);
            }
            smol::Timer::after(GROUP_REDIAL).await;
        }
    }
}

/// A way to a neighbour. Frames are sent and received while the worker computes.
struct Link {
    to: channel::Sender<Frame>,
    from: channel::Receiver<Frame>,
    received_bytes: Arc<AtomicU64>,
    /// None between two workers of one agent.
    _receiving: Option<smol::Task<()>>,
}

impl Link {
    /// Both ends of a way between two workers of this agent; what goes over it comes from no other agent.
    fn pair(members: usize) -> (Self, Self) {
        let (forth, from_before) = channel::bounded(members);
        let (back, from_after) = channel::bounded(members);
        let end = |to, from| Self { to, from, received_bytes: Arc::default(), _receiving: None };
        (end(forth, from_after), end(back, from_before))
    }

    /// Of a group of `members`, so that neither end ever waits to be heard while the other does: no more micro-batches
    /// than that are between their way forward and their way back.
    fn new(stream: BulkStream, members: usize) -> Self {
        let (sender, receiver) = stream.split();
        let (to, outgoing) = channel::bounded(members);
        let (incoming, from) = channel::bounded(members);
        // What was sent last is still delivered when this end is done.
        skein_mesh::spawn(Self::send(sender, outgoing)).detach();
        let received_bytes = Arc::<AtomicU64>::default();
        let receiving = Self::receive(receiver, incoming, Arc::clone(&received_bytes));
        Self { to, from, received_bytes, _receiving: Some(skein_mesh::spawn(receiving)) }
    }

    async fn send(mut sender: BulkSender, frames: channel::Receiver<Frame>) {
        while let Ok(frame) = frames.recv().await {
            if let Err(error) = sender.send_frame(&encode(&frame)).await {
                tracing::debug!(%error, "a member of the group is gone");
                return;
            }
        }
        let _ = sender.finish();
    }

    async fn receive(mut receiver: BulkReceiver, frames: channel::Sender<Frame>, tally: Arc<AtomicU64>) {
        let bytes_max = usize::try_from(GROUP_ROWS_BYTES_MAX).unwrap_or(usize::MAX).saturating_add(64);
        while let Ok(Some(bytes)) = receiver.recv_frame(bytes_max).await {
            let Ok(frame) = decode::<Frame>(&bytes) else { return };
            tally.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    }
}

struct Links {
    before: Option<Link>,
    after: Option<Link>,
}

impl Links {
    fn received_bytes(&self) -> u64 {
        let both = self.before.iter().chain(&self.after);
        both.map(|link| link.received_bytes.load(Ordering::Relaxed)).sum()
    }
}

/// A member at work.
struct Member<'a, B> {
    place: &'a Place,
    links: Links,
    number: u64,
    micros: u32,
    beat: &'a B,
}

impl<B: Fn(u32, u32, Option<i64>) + Sync> Member<'_, B> {
    /// One step of the optimiser; its loss, at the last member.
    async fn step(&self) -> Result<Option<i64>, String> {
        let (mut forth, mut back) = (0, 0);
        let in_flight = u32::from(self.place.group.in_flight());
        let mut squares = 0.0;
        while back < self.micros {
            if forth < self.micros && forth - back < in_flight {
                let rows = self.rows_for(forth).await?;
                let (rows, own) = self.forward(forth, rows).await?;
                match &self.links.after {
                    Some(after) => send(after, Frame::Forward { micro: forth, rows }).await?,
                    None => {
                        squares = own.unwrap_or(0.0);
                        self.send_back(forth, rows, own).await?;
                        back += 1;
                    }
                }
                forth += 1;
            } else {
                let (rows, of_others) = self.gradient_for(back).await?;
                let backward = Task::GroupBackward { group: self.number, micro: back, rows };
                let (rows, own) = self.passed(self.place.call(backward).await?)?;
                let all = own.zip(of_others).map(|(own, others)| own + others);
                squares = all.unwrap_or(0.0);
                self.send_back(back, rows, all).await?;
                back += 1;
            }
        }
        let squares = match &self.links.before {
            None => squares,
            Some(before) => match self.receive(before).await? {
                Frame::Step { squares } => squares,
                Frame::Forward { .. } | Frame::Backward { .. } => return Err(confused()),
            },
        };
        if let Some(after) = &self.links.after {
            send(after, Frame::Step { squares }).await?;
        }
        let step = Task::GroupStep { group: self.number, squares };
        let Reply::GroupStepped { loss_micronats } = self.place.call(step).await? else {
            return Err(OUT_OF_TURN.to_owned());
        };
        Ok(loss_micronats)
    }

    async fn judge(&self) -> Result<(), String> {
        for micro in 0..self.micros {
            let rows = self.rows_for(micro).await?;
            let (rows, _) = self.forward(micro, rows).await?;
            if let Some(after) = &self.links.after {
                send(after, Frame::Forward { micro, rows }).await?;
            }
            (self.beat)(micro + 1, self.micros, None);
        }
        Ok(())
    }

    async fn forward(&self, micro: u32, rows: Vec<u8>) -> Result<(Vec<u8>, Option<f64>), String> {
        let task = Task::GroupForward { group: self.number, micro, rows };
        self.passed(self.place.call(task).await?)
    }

    fn passed(&self, reply: Reply) -> Result<(Vec<u8>, Option<f64>), String> {
        (self.beat)(0, 0, None);
        let Reply::GroupRows { rows, squares } = reply else { return Err(OUT_OF_TURN.to_owned()) };
        Ok((rows, squares))
    }

    /// What the layers before gave for a micro-batch; nothing at the first member, which has the tokens.
    async fn rows_for(&self, wanted: u32) -> Result<Vec<u8>, String> {
        let Some(before) = &self.links.before else { return Ok(Vec::new()) };
        match self.receive(before).await? {
            Frame::Forward { micro, rows } if micro == wanted => Ok(rows),
            Frame::Forward { .. } | Frame::Backward { .. } | Frame::Step { .. } => Err(confused()),
        }
    }

    async fn gradient_for(&self, wanted: u32) -> Result<(Vec<u8>, Option<f64>), String> {
        let Some(after) = &self.links.after else { return Err(confused()) };
        match self.receive(after).await? {
            Frame::Backward { micro, rows, squares } if micro == wanted => Ok((rows, squares)),
            Frame::Forward { .. } | Frame::Backward { .. } | Frame::Step { .. } => Err(confused()),
        }
    }

    async fn send_back(&self, micro: u32, rows: Vec<u8>, squares: Option<f64>) -> Result<(), String> {
        match &self.links.before {
            Some(before) => send(before, Frame::Backward { micro, rows, squares }).await,
            None => Ok(()),
        }
    }

    async fn receive(&self, link: &Link) -> Result<Frame, String> {
        let awaited = async { link.from.recv().await.ok() };
        let beats = async {
            loop {
                smol::Timer::after(GROUP_REDIAL).await;
                (self.beat)(0, 0, None);
            }
        };
        match smol::future::or(awaited, beats).await {
            Some(frame) => Ok(frame),
            None => Err(gone().await),
        }
    }
}

async fn send(link: &Link, frame: Frame) -> Result<(), String> {
    match link.to.send(frame).await {
        Ok(()) => Ok(()),
        Err(_) => Err(gone().await),
    }
}

/// The coordinator releases the members of a broken group. Who told it of the break first would be taken for its cause,
/// so this waits a while for that.
async fn gone() -> String {
    smol::Timer::after(GROUP_GRIEF).await;
    "a member of the group is gone".to_owned()
}

fn confused() -> String {
    "a member of the group spoke out of turn".to_owned()
}
