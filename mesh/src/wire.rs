//! The bytes on the streams: the greeting, length-prefixed frames, and the codes of a close.
//!
//! Must never interpret a frame, and never allocate for bytes that have not arrived.

use quinn::{ConnectionError, ReadError, ReadExactError, RecvStream, VarInt, WriteError};

use crate::limits::{READ_BYTES, REASON_BYTES_MAX};

/// First bytes of the control stream in both directions; the incarnation follows.
const GREETING_MAGIC: [u8; 8] = *b"skeinctl";
/// Bytes of a greeting.
pub(crate) const GREETING_BYTES: usize = 16;

/// Why an agent closes a connection; the number travels, the reason text goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseCode {
    /// The agent stops.
    Stopping = 0,
    /// Another connection between the same two agents is kept.
    Duplicate = 1,
    /// A newer connection from the same agent takes over.
    Replaced = 2,
    /// The peer broke the protocol.
    Violation = 3,
    /// The agent serves as many peers as it can.
    Full = 4,
    /// The daemon asked for it.
    Disconnected = 5,
    /// The greeting did not arrive in time.
    Silent = 6,
    /// The agent reached itself.
    Oneself = 7,
    /// Nobody listens at the peer's address any more.
    Gone = 8,
}

impl CloseCode {
    pub(crate) fn number(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Why one direction of a bulk stream ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamCode {
    /// Dropped before it was finished.
    Abandoned = 1,
    /// The first byte names no kind of stream.
    UnknownKind = 2,
}

impl StreamCode {
    pub(crate) fn number(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

pub(crate) fn close(connection: &quinn::Connection, code: CloseCode, reason: &str) {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    connection.close(code.number(), &reason.as_bytes()[..end]);
}

pub(crate) fn greeting(incarnation: u64) -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&GREETING_MAGIC);
    bytes[8..].copy_from_slice(&incarnation.to_le_bytes());
    bytes
}

/// The incarnation in a greeting, unless this is no greeting.
pub(crate) fn parse_greeting(bytes: [u8; GREETING_BYTES]) -> Option<u64> {
    let incarnation = bytes.strip_prefix(&GREETING_MAGIC)?;
    Some(u64::from_le_bytes(incarnation.try_into().ok()?))
}

/// Why no frame could be read.
#[derive(Debug)]
pub(crate) enum FrameError {
    /// The frame announces more bytes than the reader takes.
    TooLarge(usize),
    /// The stream ended inside a frame.
    Truncated,
    /// The stream or its connection is gone.
    Stream(ReadError),
}

/// Reads one frame; `None` if the stream ended before it.
pub(crate) async fn read_frame(
    stream: &mut RecvStream,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, FrameError> {
    let mut header = [0; 4];
    match stream.read_exact(&mut header).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(ReadExactError::FinishedEarly(_)) => return Err(FrameError::Truncated),
        Err(ReadExactError::ReadError(error)) => return Err(FrameError::Stream(error)),
    }
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > bytes_max {
        return Err(FrameError::TooLarge(length));
    }
    let mut frame = Vec::with_capacity(length.min(READ_BYTES));
    while frame.len() < length {
        match stream.read_chunk(length - frame.len(), true).await {
            Ok(Some(chunk)) => frame.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(FrameError::Truncated),
            Err(error) => return Err(FrameError::Stream(error)),
        }
    }
    Ok(Some(frame))
}

/// Writes one frame. The caller has checked that its length fits 32 bits.
pub(crate) async fn write_frame(stream: &mut quinn::SendStream, frame: Vec<u8>) -> Result<(), WriteError> {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_chunk(frame.into()).await
}

/// The end of a connection in words that name who ended it.
pub(crate) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            format!("the peer closed it: {}", String::from_utf8_lossy(&close.reason))
        }
        ConnectionError::ConnectionClosed(close) => format!("the peer's QUIC closed it: {close}"),
        ConnectionError::TransportError(error) => format!("the peer broke QUIC: {error}"),
        ConnectionError::Reset => "the peer no longer knows the connection: it has restarted".to_owned(),
        ConnectionError::TimedOut => "nothing heard from the peer for too long".to_owned(),
        ConnectionError::VersionMismatch => "the peer speaks another version of QUIC".to_owned(),
        ConnectionError::LocallyClosed => "closed by this agent".to_owned(),
        ConnectionError::CidsExhausted => "no connection ids left".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_survive_and_garbage_does_not() {
        assert_eq!(parse_greeting(greeting(0x0123_4567_89ab_cdef)), Some(0x0123_4567_89ab_cdef));
        assert_eq!(parse_greeting([0; GREETING_BYTES]), None);
        assert_eq!(&greeting(1), b"skeinctl\x01\0\0\0\0\0\0\0");
    }
}
