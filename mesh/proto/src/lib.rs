//! The pure core of Skein: what agents say to each other and how they decide.
//!
//! No input or output, no clock, no randomness, no thread, and no iteration over a hash map: every
//! call takes `now`, every effect is a value. So thousands of agents run in one process on one seed,
//! and a failing run is one number. Start reading at [`node::Node`].

pub mod cost;
pub mod election;
pub mod genesis;
pub mod group;
pub mod holdings;
pub mod ids;
pub mod job;
pub mod lease;
pub mod limits;
pub mod links;
pub mod membership;
pub mod message;
pub mod node;
pub mod offer;
pub mod office;
pub mod orders;
pub mod placement;
pub mod plan;
pub mod signed;
