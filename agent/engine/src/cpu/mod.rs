//! Owns a stage's arithmetic on the processor: packed weights, products, attention and the functions between them.
//! Must never know a session, a file or a model's name.

pub mod attention;
pub(crate) mod elementary;
pub(crate) mod graph;
pub mod lanes;
pub(crate) mod layout;
pub mod math;
pub mod matrix;
pub mod multiply;
pub(crate) mod pack;
pub mod pages;
pub mod pool;
pub mod quantised;
pub mod rope;
