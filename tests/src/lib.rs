//! What the tests share: a simulated network of cores on virtual time, and the model it is held against.
//!
//! Must never be part of the product.

pub mod agents;
pub mod command;
pub mod http;
pub mod language;
mod machine;
pub mod model;
pub mod prng;
pub mod relay;
pub mod rogue;
pub mod sim;
pub mod yardstick;
