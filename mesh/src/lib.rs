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
mod error;
mod greeting;
mod identity;
mod keeper;
pub mod limits;
mod link;
mod mesh;
mod socket;
mod store;
mod stream;
mod table;
mod wire;

#[cfg(test)]
mod hostile_tests;

pub use address::{BadPeerAddress, PeerAddress};
pub use blob::{FetchError, HolderFailure, ServeError, Served, fetch_blob, serve_blob};
pub use error::{BindError, OpenError, SendError};
pub use mesh::{Event, Mesh, MeshConfig};
pub use store::{BlobStore, StoreError};
pub use stream::{BulkReceiver, BulkSender, BulkStream, StreamError, StreamKind};
