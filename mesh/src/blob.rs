//! Content-addressed transfer over bulk streams.
//!
//! ```text
//! fetcher: digest (32 bytes)                  holder: status (1), length (8, little-endian), content
//! ```
//! A holder whose owner limits its line sends few at once; whose turn has not come hears so, in the same nine bytes, from
//! time to time before the answer.
//!
//! Must never trust a holder: what does not hash to the digest is dropped; and never hold more than a few
//! chunks in memory. Whom to ask for what is `fetch.rs`'s to decide.

use std::fmt;
use std::io::Read;
use std::pin::pin;
use std::time::{Duration, Instant};

use skein_proto::ids::{Digest, NodeId};

use crate::error::OpenError;
use crate::limits::{
    BLOB_CHUNK_BYTES, BLOB_RATE_BYTES_MIN, BLOB_RATE_WINDOW, BLOB_STALL_TIMEOUT, BLOB_TAKE_TIMEOUT,
    BLOB_TURN_WORD_EVERY, BLOB_TURN_WORDS_MAX,
};
use crate::mesh::{Mesh, within};
use crate::store::{BlobStore, Incoming, StoreError};
use crate::stream::{BulkStream, StreamError, StreamKind};
use crate::traffic::Traffic;
use crate::turns::Turn;

const STATUS_HELD: u8 = 1;
const STATUS_NOT_HELD: u8 = 2;
const STATUS_FAILED: u8 = 3;
const STATUS_WAIT: u8 = 4;
const ANSWER_BYTES: usize = 9;

/// What a served request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The content was sent whole.
    Sent {
        /// What was asked for.
        digest: Digest,
        /// Its length.
        bytes: u64,
    },
    /// The store does not hold it, and the peer was told.
    NotHeld {
        /// What was asked for.
        digest: Digest,
    },
}

/// Why a request was not served. The peer sees its stream reset and asks another holder.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The stream broke.
    #[error("cannot serve a blob: {0}")]
    Stream(#[from] StreamError),
    /// The own store failed.
    #[error("cannot serve a blob: {0}")]
    Store(#[from] StoreError),
    /// The peer neither asks nor reads.
    #[error("cannot serve a blob: the peer was silent for {timeout_ms} ms")]
    Stalled {
        /// How long this agent waited.
        timeout_ms: u128,
    },
    /// The line is limited, and others had it all the time.
    #[error("cannot serve a blob: its turn on the limited line did not come")]
    Busy,
}

/// Why one holder did not give the blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HolderFailure {
    /// No stream to it.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The stream broke.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// It says that it does not hold the blob.
    #[error("it does not hold the blob")]
    NotHeld,
    /// It says that its store failed.
    #[error("its own store failed")]
    Failed,
    /// Its answer is not part of the protocol.
    #[error("it answered with the unknown status {status}")]
    Garbage {
        /// The byte.
        status: u8,
    },
    /// It announces more than the caller takes.
    #[error("it announced {bytes} bytes, more than the {bytes_max} allowed")]
    TooLarge {
        /// What it announced.
        bytes: u64,
        /// The caller's bound.
        bytes_max: u64,
    },
    /// What it sent is something else.
    #[error("it lied: what it sent is blob {actual}")]
    Lied {
        /// The digest of what it sent.
        actual: Digest,
    },
    /// It sent nothing for too long.
    #[error("it stalled for {timeout_ms} ms after {received} bytes")]
    Stalled {
        /// How long this agent waited.
        timeout_ms: u128,
        /// What had come.
        received: u64,
    },
    /// It sends, but too slowly to ever end.
    #[error("it was too slow: {received} bytes so far")]
    TooSlow {
        /// What had come.
        received: u64,
    },
}

/// Why a blob was not fetched. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There was nobody to ask.
    #[error("cannot fetch blob {digest}: no holder is known")]
    NoHolders {
        /// What was asked for.
        digest: Digest,
    },
    /// Every holder failed.
    #[error("cannot fetch blob {digest}: {}", Listed(failures))]
    Holders {
        /// What was asked for.
        digest: Digest,
        /// Each holder that was asked, in that order, and what came of it.
        failures: Vec<(NodeId, HolderFailure)>,
    },
    /// The own store failed, so that no holder can help.
    #[error("cannot fetch a blob: {0}")]
    Store(#[from] StoreError),
}

struct Listed<'a>(&'a [(NodeId, HolderFailure)]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (node, failure)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {failure}", node.short())?;
        }
        Ok(())
    }
}

/// Answers the one request of an incoming blob stream.
pub async fn serve_blob(mut stream: BulkStream, store: &BlobStore) -> Result<Served, ServeError> {
    let mut digest = Digest([0; 32]);
    in_time(BLOB_STALL_TIMEOUT, stream.read_exact(&mut digest.0)).await?;
    let reader = store.clone();
    let (mut file, bytes) = match smol::unblock(move || reader.read(&digest)).await {
        Ok(opened) => opened,
        Err(error) => {
            let held = !matches!(error, StoreError::NotHeld { .. });
            let status = if held { STATUS_FAILED } else { STATUS_NOT_HELD };
            in_time(BLOB_STALL_TIMEOUT, stream.write_all(&answer(status, 0))).await?;
            stream.finish()?;
            return if held { Err(error.into()) } else { Ok(Served::NotHeld { digest }) };
        }
    };
    let traffic = stream.traffic().clone();
    let _turn = turn(&traffic, &mut stream).await?;
    in_time(BLOB_STALL_TIMEOUT, stream.write_all(&answer(STATUS_HELD, bytes))).await?;
    let mut chunk = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let length = left.min(BLOB_CHUNK_BYTES as u64);
        let path = store.path(&digest);
        // One chunk per trip, so that a slow peer holds no blocking thread.
        (file, chunk) = smol::unblock(move || {
            chunk.resize(length as usize, 0);
            file.read_exact(&mut chunk).map(|()| (file, chunk)).map_err(|source| StoreError::Io {
                action: "read",
                path,
                source,
            })
        })
        .await?;
        for piece in chunk.chunks(traffic.piece()) {
            // Not part of the peer's time: the limit is this agent's own.
            traffic.before_sending(piece.len()).await;
            in_time(BLOB_TAKE_TIMEOUT, stream.write_now(piece)).await?;
        }
        left -= length;
    }
    stream.finish()?;
    Ok(Served::Sent { digest, bytes })
}

/// Waits for a turn on the line. The peer hears of it, lest it take the wait for silence.
async fn turn(traffic: &Traffic, stream: &mut BulkStream) -> Result<Turn, ServeError> {
    // One wait all along, which keeps its place in the queue.
    let mut taking = pin!(traffic.serving.take());
    for _ in 0..BLOB_TURN_WORDS_MAX {
        if let Some(turn) = within(BLOB_TURN_WORD_EVERY, taking.as_mut()).await {
            return Ok(turn);
        }
        in_time(BLOB_STALL_TIMEOUT, stream.write_all(&answer(STATUS_WAIT, 0))).await?;
    }
    Err(ServeError::Busy)
}

async fn in_time(
    limit: Duration,
    part: impl Future<Output = Result<(), StreamError>>,
) -> Result<(), ServeError> {
    match within(limit, part).await {
        Some(result) => Ok(result?),
        None => Err(ServeError::Stalled { timeout_ms: limit.as_millis() }),
    }
}

fn answer(status: u8, bytes: u64) -> [u8; ANSWER_BYTES] {
    let mut answer = [status; ANSWER_BYTES];
    answer[1..].copy_from_slice(&bytes.to_le_bytes());
    answer
}

/// What a holder's failure is, or the own store's.
pub(crate) enum Failure {
    Holder(HolderFailure),
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Self::Holder(error.into())
    }
}

/// Whether a holder delivers what it must in each [`BLOB_RATE_WINDOW`].
#[derive(Debug)]
struct Pace {
    since: Instant,
    received: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, received: 0 }
    }

    /// More came. False if a window is over and too little came in it.
    fn came(&mut self, now: Instant, bytes: u64) -> bool {
        self.received += bytes;
        if now.saturating_duration_since(self.since) < BLOB_RATE_WINDOW {
            return true;
        }
        let enough = self.received >= BLOB_RATE_BYTES_MIN;
        *self = Self::new(now);
        enough
    }

    /// This agent itself waited, which makes no holder slow.
    fn waited(&mut self, time: Duration) {
        self.since += time;
    }
}

/// Fetches one blob from one holder, verified and durable; its length.
pub(crate) async fn fetch_from(
    mesh: &Mesh,
    holder: NodeId,
    store: &BlobStore,
    digest: Digest,
    bytes_max: u64,
    stall_timeout: Duration,
) -> Result<u64, Failure> {
    let _turn = mesh.traffic().fetching.take().await;
    let opened = mesh.open(holder, StreamKind::Blob).await;
    let stream = opened.map_err(|error| Failure::Holder(error.into()))?;
    let (mut asking, mut answering) = stream.split();
    asking.write_all(&digest.0).await?;
    asking.finish()?;
    let stalled = |received| {
        Failure::Holder(HolderFailure::Stalled { timeout_ms: stall_timeout.as_millis(), received })
    };

    let mut words = 0;
    let length = loop {
        let mut answer = [0; ANSWER_BYTES];
        within(stall_timeout, answering.read_exact(&mut answer)).await.ok_or_else(|| stalled(0))??;
        let [status, length @ ..] = answer;
        let length = u64::from_le_bytes(length);
        match status {
            STATUS_WAIT if words < BLOB_TURN_WORDS_MAX => words += 1,
            STATUS_WAIT => return Err(Failure::Holder(HolderFailure::TooSlow { received: 0 })),
            STATUS_HELD if length <= bytes_max => break length,
            STATUS_HELD => return Err(Failure::Holder(HolderFailure::TooLarge { bytes: length, bytes_max })),
            STATUS_NOT_HELD => return Err(Failure::Holder(HolderFailure::NotHeld)),
            STATUS_FAILED => return Err(Failure::Holder(HolderFailure::Failed)),
            status => return Err(Failure::Holder(HolderFailure::Garbage { status })),
        }
    };

    // One chunk is hashed and written on a blocking thread while the next one arrives.
    let beginning = store.clone();
    let mut writing = smol::unblock(move || Incoming::begin(&beginning));
    let mut received = 0;
    let mut pace = Pace::new(Instant::now());
    while received < length {
        let goal = (length - received).min(BLOB_CHUNK_BYTES as u64) as usize;
        let mut chunk = Vec::with_capacity(goal);
        while chunk.len() < goal {
            let left = goal - chunk.len();
            let count = within(stall_timeout, answering.read_into(&mut chunk, left))
                .await
                .ok_or_else(|| stalled(received))??
                .ok_or(StreamError::Truncated)?;
            received += count as u64;
            let came = Instant::now();
            if !pace.came(came, count as u64) {
                return Err(Failure::Holder(HolderFailure::TooSlow { received }));
            }
            mesh.traffic().after_receiving(count).await;
            pace.waited(came.elapsed());
        }
        let mut incoming = writing.await?;
        writing = smol::unblock(move || incoming.write(&chunk).map(|()| incoming));
    }
    let incoming = writing.await?;
    match smol::unblock(move || incoming.commit(Some(digest))).await {
        Ok(_) => Ok(length),
        Err(StoreError::Mismatch { actual, .. }) => Err(Failure::Holder(HolderFailure::Lied { actual })),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_own_limit_holds_back_makes_no_holder_slow() {
        let second = Duration::from_secs(1);
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        // A kilobyte a second for ten minutes, because this agent reads no faster.
        for _ in 0..600 {
            assert!(pace.came(now, 1_000));
            now += second;
            pace.waited(second);
        }
        // From a holder that sends no faster.
        let given_up = (0..2 * BLOB_RATE_WINDOW.as_secs()).any(|_| {
            now += second;
            !pace.came(now, 1_000)
        });
        assert!(given_up);
    }
}
