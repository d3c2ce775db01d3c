//! Owns GPUs and the worker process: finds and tries devices, measures them, trains, merges, and runs the stages of
//! `skein-engine` beside it.
//! Must never know a network, a lease, money or an async run time: paths and numbers in, files and numbers out.

pub mod bench;
pub mod checkpoint;
pub mod data;
mod decoder;
pub mod device;
pub mod drawn;
#[cfg(test)]
mod gradient_tests;
pub mod limits;
pub mod outer;
pub mod packing;
pub mod probe;
pub mod protocol;
mod random;
mod stages;
pub mod train;
pub mod trained;
pub mod trainee;
pub mod worker;
