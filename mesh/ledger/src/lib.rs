//! The pure ledger of Skein: log, checkpoints, claims, blocks and settlement. Bytes in, bytes out.
//!
//! No file, no network, no clock, no randomness, no thread: a call that depends on time takes `now`,
//! what must become durable is returned as bytes, and the shell writes it before it lets anyone know.
//! So whoever holds the published bytes can recompute everything that was paid. Start reading at
//! [`log::Log`] for what an agent keeps, and at [`chain`] for what the committee agrees on.

mod audit;
pub mod block;
pub mod chain;
pub mod claim;
pub mod emission;
pub mod entry;
mod fault;
pub mod limits;
pub mod log;
pub mod note;
pub mod orderer;
pub mod record;
mod replay;
pub mod settlement;
pub mod tree;
