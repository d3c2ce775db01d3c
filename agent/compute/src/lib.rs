//! Owns GPUs and the worker process: finds and tries devices, measures them, trains, merges, and runs the stages of
//! `skein-engine` beside it.
//! Must never know a network, a lease, money or an async run time: paths and numbers in, files and numbers out.

pub mod bench;
pub mod check;
pub mod checkpoint;
mod child;
pub mod data;
mod decoder;
pub mod device;
pub mod drawn;
#[cfg(test)]
mod gradient_tests;
mod group;
pub mod limits;
mod moments;
pub mod optimiser;
pub mod outer;
pub mod packing;
pub mod passes;
pub mod probe;
pub mod protocol;
mod random;
mod stages;
mod tensor_file;
pub mod train;
pub mod trained;
pub mod trainee;
pub mod worker;
