//! Bulk streams: ordered bytes or frames between two agents, beside the control stream.
//!
//! Must never end a half that its owner did not finish as if it were complete: what is dropped
//! without `finish` is reset, and the reader sees an error, not an end.

use std::sync::Arc;

use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

use crate::limits::READ_BYTES;
use crate::traffic::Traffic;
use crate::wire::{self, FrameError, StreamCode};

/// What a bulk stream carries; its first byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    /// Content-addressed transfer; see `serve_blob` and `fetch_blob`.
    Blob,
    /// Activations and tokens between the stages that serve a model.
    Stage,
    /// Activations and gradients between the members of a group that trains one.
    Group,
    /// An order of an owner to one of his rigs, and its answer.
    Fleet,
}

impl StreamKind {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Blob => 1,
            Self::Stage => 2,
            Self::Group => 3,
            Self::Fleet => 4,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Blob),
            2 => Some(Self::Stage),
            3 => Some(Self::Group),
            4 => Some(Self::Fleet),
            _ => None,
        }
    }
}

/// Why a bulk stream cannot go on. The stream is then of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The connection ended.
    #[error("the stream's connection ended: {reason}")]
    Disconnected {
        /// Who ended the connection and why.
        reason: String,
    },
    /// The peer dropped its half, or wants no more.
    #[error("the peer abandoned the stream (code {code})")]
    Abandoned {
        /// The peer's code.
        code: u64,
    },
    /// The stream ended inside a frame or before the bytes that were expected.
    #[error("the stream ended in the middle of a frame")]
    Truncated,
    /// A frame is larger than the reader takes, or than a frame can be.
    #[error("a frame of {bytes} bytes is larger than the {bytes_max} allowed")]
    TooLarge {
        /// The frame's announced length.
        bytes: usize,
        /// The reader's bound.
        bytes_max: usize,
    },
    /// This half was finished or reset before.
    #[error("this half of the stream was finished before")]
    Finished,
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Abandoned { code: code.into_inner() },
            ReadError::ConnectionLost(error) => Self::Disconnected { reason: wire::describe(&error) },
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Finished
            }
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Abandoned { code: code.into_inner() },
            WriteError::ConnectionLost(error) => Self::Disconnected { reason: wire::describe(&error) },
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Finished,
        }
    }
}

impl From<FrameError> for StreamError {
    fn from(error: FrameError) -> Self {
        match error {
            // `recv_frame` fills in its bound.
            FrameError::TooLarge(bytes) => Self::TooLarge { bytes, bytes_max: 0 },
            FrameError::Truncated => Self::Truncated,
            FrameError::Stream(error) => error.into(),
        }
    }
}

/// A bidirectional bulk stream.
#[derive(Debug)]
pub struct BulkStream {
    sender: BulkSender,
    receiver: BulkReceiver,
}

impl BulkStream {
    pub(crate) fn new(sender: SendStream, receiver: RecvStream, traffic: Arc<Traffic>) -> Self {
        Self {
            sender: BulkSender { stream: sender, finished: false, traffic: traffic.clone() },
            receiver: BulkReceiver { stream: receiver, traffic },
        }
    }

    /// What the stream is counted in, and held back by.
    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.sender.traffic
    }

    /// See [`BulkSender::write_now`].
    pub(crate) async fn write_now(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.sender.write_now(bytes).await
    }

    /// The two halves, to be used from two tasks.
    pub fn split(self) -> (BulkSender, BulkReceiver) {
        (self.sender, self.receiver)
    }

    /// See [`BulkSender::send_frame`].
    pub async fn send_frame(&mut self, frame: &[u8]) -> Result<(), StreamError> {
        self.sender.send_frame(frame).await
    }

    /// See [`BulkReceiver::recv_frame`].
    pub async fn recv_frame(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, StreamError> {
        self.receiver.recv_frame(bytes_max).await
    }

    /// See [`BulkSender::write_all`].
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.sender.write_all(bytes).await
    }

    /// See [`BulkReceiver::read`].
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, StreamError> {
        self.receiver.read(buffer).await
    }

    /// See [`BulkReceiver::read_exact`].
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), StreamError> {
        self.receiver.read_exact(buffer).await
    }

    /// See [`BulkSender::finish`].
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.sender.finish()
    }
}

/// The sending half of a bulk stream. Dropped before `finish`, it tells the peer that what came is
/// incomplete.
#[derive(Debug)]
pub struct BulkSender {
    stream: SendStream,
    finished: bool,
    traffic: Arc<Traffic>,
}

impl BulkSender {
    /// Sends one frame. Returns when QUIC has taken it, which waits while the reader is slow.
    /// Cancelling it half-way leaves the stream unusable for frames: drop the stream then.
    pub async fn send_frame(&mut self, frame: &[u8]) -> Result<(), StreamError> {
        let length = u32::try_from(frame.len())
            .map_err(|_| StreamError::TooLarge { bytes: frame.len(), bytes_max: u32::MAX as usize })?;
        // Head and frame in one piece, so that a small one leaves in one packet.
        let mut bytes = Vec::with_capacity(4 + frame.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(frame);
        let piece_bytes = self.traffic.piece();
        if bytes.len() <= piece_bytes {
            self.traffic.before_sending(bytes.len()).await;
            self.stream.write_chunk(bytes.into()).await?;
        } else {
            for piece in bytes.chunks(piece_bytes) {
                self.traffic.before_sending(piece.len()).await;
                self.stream.write_all(piece).await?;
            }
        }
        self.traffic.add_sent(frame.len());
        Ok(())
    }

    /// Sends raw bytes, without a length before them.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        for piece in bytes.chunks(self.traffic.piece()) {
            self.traffic.before_sending(piece.len()).await;
            self.write_now(piece).await?;
        }
        Ok(())
    }

    /// The same without a wait for the owner's limit: whoever calls it has waited.
    pub(crate) async fn write_now(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.stream.write_all(bytes).await?;
        self.traffic.add_sent(bytes.len());
        Ok(())
    }

    /// Says that nothing follows; what was sent is still delivered while the connection lives.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.finished = true;
        self.stream.finish().map_err(|_| StreamError::Finished)
    }
}

impl Drop for BulkSender {
    fn drop(&mut self) {
        if !self.finished {
            // An error means that the stream is closed already.
            let _ = self.stream.reset(StreamCode::Abandoned.number());
        }
    }
}

/// The receiving half of a bulk stream. Dropped early, it tells the peer to stop sending.
#[derive(Debug)]
pub struct BulkReceiver {
    stream: RecvStream,
    traffic: Arc<Traffic>,
}

impl BulkReceiver {
    /// Receives one frame of at most `bytes_max`; `None` once the peer finished. Memory grows with
    /// what arrives, not with what a header announces.
    pub async fn recv_frame(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, StreamError> {
        match wire::read_frame(&mut self.stream, bytes_max).await {
            Ok(frame) => {
                self.received(frame.as_ref().map_or(0, Vec::len)).await;
                Ok(frame)
            }
            Err(FrameError::TooLarge(bytes)) => Err(StreamError::TooLarge { bytes, bytes_max }),
            Err(error) => Err(error.into()),
        }
    }

    /// Receives raw bytes; `None` once the peer finished.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, StreamError> {
        let count = self.stream.read(buffer).await?;
        self.received(count.unwrap_or(0)).await;
        Ok(count)
    }

    /// Receives exactly as many raw bytes as the buffer holds.
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), StreamError> {
        self.stream.read_exact(buffer).await.map_err(|error| match error {
            ReadExactError::FinishedEarly(_) => StreamError::Truncated,
            ReadExactError::ReadError(error) => error.into(),
        })?;
        self.received(buffer.len()).await;
        Ok(())
    }

    /// Counts, and waits for the owner's limit.
    async fn received(&self, bytes: usize) {
        self.traffic.add_received(bytes);
        self.traffic.after_receiving(bytes).await;
    }

    /// Receives the next bytes as QUIC holds them, appended to `buffer`; how many, or `None` once
    /// the peer finished. Does not wait for the owner's limit: the caller does, where it costs no peer its time.
    pub(crate) async fn read_into(
        &mut self,
        buffer: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<Option<usize>, StreamError> {
        let bytes_max = bytes_max.min(READ_BYTES).min(self.traffic.piece());
        let Some(chunk) = self.stream.read_chunk(bytes_max, true).await? else {
            return Ok(None);
        };
        buffer.extend_from_slice(&chunk.bytes);
        self.traffic.add_received(chunk.bytes.len());
        Ok(Some(chunk.bytes.len()))
    }
}
