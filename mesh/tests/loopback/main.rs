//! Real meshes over real QUIC on loopback, in one process except where a process must die.
//!
//! Must never sleep or fix a port: every wait is for an event, and every socket binds port 0.

#![expect(clippy::unwrap_used, reason = "the lint spares only functions that are marked as tests")]
#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not expect fails it")]

mod blobs;
mod connections;
mod limited;
mod node;
mod pieces;
mod restart;
