//! The network shell of Skein: bytes between authenticated agents over QUIC.
//!
//! ```text
//! address ──> keeper ──> greeting ──> table ──> link ──> Event
//!                (dial)   (keys, hello)  (which   (frames, streams)
//! packet  ─────────────────────^         one counts)
//! ```
//! A node id is an ed25519 key; the handshake proves it on both sides. Between two agents there is at
//! most one connection, with one control stream for frames and any number of bulk streams.
//!
//! Must never know leases, jobs or money, and never hold a policy: the daemon decides, this carries.

mod address;
mod blob;
mod counted;
mod error;
mod fetch;
mod greeting;
mod identity;
mod keeper;
pub mod limits;
mod link;
mod mesh;
mod plain;
mod pulse;
mod rename;
mod retention;
mod socket;
mod store;
mod stream;
mod table;
mod tasks;
mod traffic;
mod turns;
mod wire;

#[cfg(test)]
mod hostile_tests;

pub use address::{BadPeerAddress, PeerAddress};
pub use blob::{FetchError, HolderFailure, ServeError, Served, serve_blob};
pub use error::{BindError, OpenError, SendError};
pub use fetch::{Fetched, fetch_blob, fetch_blobs};
pub use mesh::{Event, Mesh, MeshConfig};
pub use rename::rename;
pub use retention::{Held, Trimmed};
pub use store::{BlobStore, StoreError};
pub use stream::{BulkReceiver, BulkSender, BulkStream, StreamError, StreamKind};
pub use tasks::spawn;
