//! One connection that is up: its control frames in both directions, its incoming bulk streams, and
//! the report of its beginning and end.
//!
//! Must never decide whether this connection is the one that counts (`table.rs` does), and never
//! report frames before `Up` or after `Down`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, ReadError, RecvStream, SendStream};
use skein_proto::ids::NodeId;
use smol::channel::{Receiver, Sender, TrySendError};
use smol::future::{FutureExt as _, pending};

use crate::error::SendError;
use crate::limits::{FRAME_BYTES_MAX, OUTGOING_BYTES_MAX, OUTGOING_FRAMES_MAX, STREAM_OPEN_TIMEOUT};
use crate::mesh::{Event, Shared, within};
use crate::pulse;
use crate::stream::{BulkStream, StreamKind};
use crate::table::Facts;
use crate::wire::{self, CloseCode, FrameError, StreamCode};

/// After the peer ended its control stream, time for its close and the reason in it.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// What the rest of the mesh holds of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) facts: Facts,
    pub(crate) connection: Connection,
    queue: Sender<Vec<u8>>,
    queued_bytes: AtomicUsize,
    /// When the last control frame came, or the link began.
    heard: Mutex<Instant>,
    /// Why this agent closed the connection, if it did.
    closed_here: OnceLock<String>,
    /// Closed once every queued frame is acknowledged, or never will be.
    flushed: Receiver<Infallible>,
    /// Closed once `Down` is reported.
    ended: Receiver<Infallible>,
}

/// What only the task that runs the link holds.
#[derive(Debug)]
pub(crate) struct LinkTask {
    link: Arc<Link>,
    queue: Receiver<Vec<u8>>,
    flushed: Sender<Infallible>,
    ended: Sender<Infallible>,
}

impl Link {
    pub(crate) fn new(node: NodeId, facts: Facts, connection: Connection) -> (Arc<Self>, LinkTask) {
        let (queue_in, queue_out) = smol::channel::bounded(OUTGOING_FRAMES_MAX);
        let (flushed_in, flushed_out) = smol::channel::bounded(1);
        let (ended_in, ended_out) = smol::channel::bounded(1);
        let link = Arc::new(Self {
            node,
            facts,
            connection,
            queue: queue_in,
            queued_bytes: AtomicUsize::new(0),
            heard: Mutex::new(Instant::now()),
            closed_here: OnceLock::new(),
            flushed: flushed_out,
            ended: ended_out,
        });
        let task = LinkTask { link: link.clone(), queue: queue_out, flushed: flushed_in, ended: ended_in };
        (link, task)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        crate::address::canonical(self.connection.remote_address())
    }

    /// When the last control frame came, or the link began.
    pub(crate) fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Queues a control frame behind those queued before.
    pub(crate) fn send(&self, frame: Vec<u8>) -> Result<(), SendError> {
        let node = self.node;
        if !self.is_open() {
            return Err(SendError::NotConnected { node });
        }
        let bytes = frame.len();
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > OUTGOING_BYTES_MAX {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SendError::QueueFull { node });
        }
        self.queue.try_send(frame).map_err(|error| {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => SendError::QueueFull { node },
                TrySendError::Closed(_) => SendError::NotConnected { node },
            }
        })
    }

    /// Sends the empty frame, which the peer ignores. If the peer has forgotten this connection, its
    /// answer to the packet ends it here within a round trip.
    pub(crate) fn nudge(&self) {
        // A full queue will be written anyway, which serves as well.
        let _ = self.queue.try_send(Vec::new());
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        // The first reason is the true one.
        let _ = self.closed_here.set(reason.to_owned());
        wire::close(&self.connection, code, reason);
    }

    /// Takes no further frames; those taken are still sent.
    pub(crate) fn stop_queue(&self) {
        self.queue.close();
    }

    /// Waits until those frames are acknowledged or lost.
    pub(crate) async fn flushed(&self) {
        // The channel carries nothing: it ends.
        let _ = self.flushed.recv().await;
    }

    /// Waits until the link's `Down` is reported.
    pub(crate) async fn ended(&self) {
        // The channel carries nothing: it ends.
        let _ = self.ended.recv().await;
    }
}

impl LinkTask {
    /// Runs the link from `Up` to `Down`.
    pub(crate) async fn run(self, shared: Arc<Shared>, sender: SendStream, receiver: RecvStream) {
        let Self { link, queue, flushed, ended } = self;
        let node = link.node;
        tracing::debug!(node = %node.short(), address = %link.address(), dialled = link.facts.dialled, "peer is up");
        shared.report(Event::Up { node, address: link.address(), dialled: link.facts.dialled }).await;

        // The reader ends the link: it delivers what had arrived before it sees the end. Except when there is
        // nobody any more of whom it could see anything.
        let end = read_control(&shared, &link, receiver)
            .or(write_control(&shared, &link, queue, sender, flushed))
            .or(accept_streams(&shared, &link))
            .or(notice_end(&link))
            .await;
        if let End::Here(code, reason) = &end {
            link.close(*code, reason);
        }
        link.queue.close();
        shared.table().end(node, link.facts.number);
        let reason = match (link.closed_here.get(), end) {
            (Some(reason), End::Here(..) | End::Peer(_)) => format!("closed here: {reason}"),
            (None, End::Peer(reason)) | (None, End::Here(_, reason)) => reason,
        };
        tracing::debug!(node = %node.short(), reason, "peer is down");
        shared.report(Event::Down { node, reason }).await;
        shared.table().remove(node, link.facts.number);
        shared.keepers().wake(node);
        drop(ended);
    }
}

/// How a link ended.
enum End {
    /// This agent closes it.
    Here(CloseCode, String),
    /// The peer closed it, or it was closed already.
    Peer(String),
}

async fn read_control(shared: &Shared, link: &Link, mut stream: RecvStream) -> End {
    loop {
        let read = wire::read_frame(&mut stream, FRAME_BYTES_MAX).await;
        *link.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let violation = match read {
            Ok(Some(frame)) if frame.is_empty() => continue,
            Ok(Some(frame)) => {
                shared.traffic.add_received(frame.len());
                shared.report(Event::Control { from: link.node, frame }).await;
                continue;
            }
            Ok(None) => return farewell(link).await,
            Err(FrameError::Stream(ReadError::ConnectionLost(error))) => {
                return End::Peer(wire::describe(&error));
            }
            Err(FrameError::TooLarge(bytes)) => {
                format!("it sent a control frame of {bytes} bytes; at most {FRAME_BYTES_MAX} are allowed")
            }
            Err(FrameError::Truncated) => "its control stream ended inside a frame".to_owned(),
            Err(FrameError::Stream(error)) => format!("its control stream broke: {error}"),
        };
        tracing::warn!(node = %link.node.short(), address = %link.address(), violation, "closing a peer that broke the protocol");
        return End::Here(CloseCode::Violation, violation);
    }
}

/// The peer sends no further frames: it is closing, and its reason is about to arrive.
async fn farewell(link: &Link) -> End {
    match within(FAREWELL_TIMEOUT, link.connection.closed()).await {
        Some(error) => End::Peer(wire::describe(&error)),
        None => End::Here(CloseCode::Violation, "it ended its control stream".to_owned()),
    }
}

async fn write_control(
    shared: &Shared,
    link: &Link,
    queue: Receiver<Vec<u8>>,
    mut stream: SendStream,
    flushed: Sender<Infallible>,
) -> End {
    while let Ok(frame) = queue.recv().await {
        let bytes = frame.len();
        let written = wire::write_frame(&mut stream, frame).await;
        link.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if written.is_err() {
            break;
        }
        shared.traffic.add_sent(bytes);
    }
    // After an error there is nothing to flush; the reader finds out why.
    if stream.finish().is_ok() {
        let _ = stream.stopped().await;
    }
    drop(flushed);
    pending().await
}

async fn notice_end(link: &Link) -> End {
    pulse::ended(link).await;
    End::Here(CloseCode::Gone, "nobody listens at its address any more: the agent was killed".to_owned())
}

async fn accept_streams(shared: &Arc<Shared>, link: &Arc<Link>) -> End {
    // QUIC itself bounds how many streams the peer may have open, and so these tasks.
    while let Ok((sender, receiver)) = link.connection.accept_bi().await {
        crate::tasks::spawn(announce_stream(shared.clone(), link.node, sender, receiver)).detach();
    }
    pending().await
}

async fn announce_stream(
    shared: Arc<Shared>,
    from: NodeId,
    mut sender: SendStream,
    mut receiver: RecvStream,
) {
    let mut byte = [0];
    let read = within(STREAM_OPEN_TIMEOUT, receiver.read_exact(&mut byte)).await;
    let kind = match read {
        Some(Ok(())) => StreamKind::from_byte(byte[0]),
        Some(Err(_)) | None => None,
    };
    let Some(kind) = kind else {
        tracing::debug!(from = %from.short(), byte = byte[0], "refusing a stream of unknown kind");
        // Errors mean that the stream is gone, which is what was wanted.
        let _ = sender.reset(StreamCode::UnknownKind.number());
        let _ = receiver.stop(StreamCode::UnknownKind.number());
        return;
    };
    let stream = BulkStream::new(sender, receiver, shared.traffic.clone());
    shared.report(Event::Stream { from, kind, stream }).await;
}
