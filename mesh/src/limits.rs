//! Every bound on what a peer can make this agent hold, wait for or repeat, in one place.
//!
//! Must never hold a number that changes what a message means: those belong to `wire.rs`.

use std::time::Duration;

pub use skein_proto::limits::FRAME_BYTES_MAX;

/// Authenticated connections that one agent keeps. In the worst case each of them holds
/// [`CONNECTION_WINDOW_BYTES`] of unread bulk data; an idle one holds a few tens of kilobytes.
pub const CONNECTIONS_MAX: usize = 512;
/// Incoming connections whose peer has not proved its key and said hello yet.
pub const GREETINGS_MAX: usize = 64;
/// Greetings in progress above which a stranger must first prove that it owns its source address.
pub const GREETINGS_UNVALIDATED_MAX: usize = 16;
/// Handshakes that this agent starts at the same time; further ones wait for their turn.
pub const DIALS_MAX: usize = 16;
/// Time for a handshake, from the first packet to proven keys.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the control stream's greeting after the handshake.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses that the daemon asked to keep a connection to.
pub const KEPT_MAX: usize = 512;
/// Addresses learnt from others that are tried until they fail too often.
pub const HINTS_MAX: usize = 1024;
/// Failures in a row after which a hint is forgotten.
pub const HINT_FAILURES_MAX: u32 = 8;
/// First pause between two attempts to reach an address; doubles with every failure.
pub const REDIAL_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two attempts to reach an address.
pub const REDIAL_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A connection that lasted this long lets the next attempt start without a pause.
pub const STABLE_CONNECTION: Duration = Duration::from_secs(10);

/// Events that wait for the daemon. Each holds at most one control frame, so this times
/// [`FRAME_BYTES_MAX`] bounds the memory; a full queue pushes back on every peer in turn.
pub const EVENTS_MAX: usize = 64;
/// Control frames that wait to be written to one peer.
pub const OUTGOING_FRAMES_MAX: usize = 1024;
/// Bytes of control frames that wait to be written to one peer.
pub const OUTGOING_BYTES_MAX: usize = 8 * FRAME_BYTES_MAX;

/// Bulk streams that one peer may have open towards this agent.
pub const BULK_STREAMS_MAX: u32 = 64;
/// Time for the first byte of a bulk stream, and for a free stream when opening one.
pub const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one read from a stream; a frame's buffer grows by at most this before they arrived.
pub const READ_BYTES: usize = 64 << 10;

/// Flow-control window of one stream.
pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Flow-control window of one connection, and what it may have sent without an acknowledgement.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Kernel buffers of the socket; the system may grant less.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// A connection without any packet for this long is dead. The daemon's own pings notice earlier.
pub const IDLE_TIMEOUT_MS: u32 = 30_000;
/// The dialler sends a packet after this much silence, so that NAT mappings live.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// After this long without a control frame the peer's machine is asked whether anybody listens there. Longer
/// than the pause between two heartbeats, so that peers in good health are not asked.
pub const PULSE_QUIET: Duration = Duration::from_millis(600);
/// Time for its answer.
pub const PULSE_ANSWER_TIMEOUT: Duration = Duration::from_millis(200);
/// Time that `close` gives to queued control frames.
pub const CLOSE_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Time that `close` gives to the close packets.
pub const CLOSE_DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes of a reason that travel with a close.
pub const REASON_BYTES_MAX: usize = 200;

/// Bytes of a blob that are read, sent, hashed and written at a time.
pub const BLOB_CHUNK_BYTES: usize = 256 << 10;
/// A holder that sends nothing for this long is given up.
pub const BLOB_STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A fetcher that takes nothing for this long is given up. Its own line may be limited, and QUIC tells of new room by the
/// eighth of [`STREAM_WINDOW_BYTES`]: that takes three and a half minutes for one of two streams at [`LIMIT_BYTES_MIN`].
pub const BLOB_TAKE_TIMEOUT: Duration = Duration::from_secs(300);
/// Length of the window over which a holder must reach [`BLOB_RATE_BYTES_MIN`].
pub const BLOB_RATE_WINDOW: Duration = Duration::from_secs(30);
/// Bytes that a holder must deliver per [`BLOB_RATE_WINDOW`]: 4 KiB a second, less than half of [`LIMIT_BYTES_MIN`].
pub const BLOB_RATE_BYTES_MIN: u64 = 30 * (4 << 10);
/// The slowest limit in bytes a second, set for the line by its owner, over which all this still works.
pub const LIMIT_BYTES_MIN: u64 = 10_000;
/// Over a limited line so many blobs are sent at once that each has so many bytes a second; one always is.
pub const BLOB_SERVE_SHARE_BYTES: u64 = 16 << 10;
/// And so many are fetched: few, since what came and is not read yet fills [`CONNECTION_WINDOW_BYTES`], and with it the
/// way of the control frames.
pub const BLOB_FETCH_SHARE_BYTES: u64 = 256 << 10;
/// But so many are fetched at once on any line, lest a holder that is silent stop all others.
pub const BLOB_FETCHES_LIMITED_MIN: usize = 2;
/// How often a fetcher hears that its turn has not come, well within [`BLOB_STALL_TIMEOUT`].
pub const BLOB_TURN_WORD_EVERY: Duration = Duration::from_secs(4);
/// After so many such words, half an hour of them, both sides give up.
pub const BLOB_TURN_WORDS_MAX: u32 = 450;
/// Holders that one fetch asks.
pub const BLOB_HOLDERS_MAX: usize = 16;
/// Blobs that one fetch asks for at the same time.
pub const BLOB_FETCHES_MAX: usize = 8;
/// A holder that had none of so many blobs in a row is asked after the others.
pub const BLOB_MISSES_MAX: u32 = 3;
/// A blob that takes so many times as long as those before is asked of a second holder.
pub const BLOB_LATE_FACTOR: u32 = 4;
/// And at least so long.
pub const BLOB_LATE_MIN: Duration = Duration::from_millis(500);
/// Larger blobs are not asked of a second holder while the first still sends.
pub const BLOB_TWICE_BYTES_MAX: u64 = 8 << 20;
