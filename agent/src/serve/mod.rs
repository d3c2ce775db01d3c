//! The customer's side of language models: which there are, who answers, and answers under way.
//!
//! Everything above it (HTTP, batch jobs) speaks text; everything below it (pipeline) speaks tokens.

pub(crate) mod answer;
pub(crate) mod desk;
pub(crate) mod generation;
pub(crate) mod registry;
pub(crate) mod samples;
pub(crate) mod served;
pub(crate) mod slots;
pub(crate) mod text;
