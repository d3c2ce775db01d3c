//! Owns language models: their files, tokenizers, quantised weights, kernels, caches and sampling.
//! Must never know a network, a lease, money or how a model was trained: files and numbers in, numbers and text out.
//!
//! Why a crate: it keeps the training framework out of inference, so that what parses strangers' files can be fuzzed
//! and rebuilt in a minute.
//!
//! One rule shapes everything here: **a row's result never depends on which other rows it was computed with, on where
//! the layers were split, or on the instruction set**. The residual stream is rounded to the wire's format after every
//! layer, and kernels add in one fixed order per row. So a stream that moves to another machine's CPU goes on with the
//! same tokens, a batch answers as a single session does, and a checker can re-run what was claimed.

pub mod cache;
pub mod chat;
pub mod config;
pub mod cpu;
pub mod draft;
pub mod dtype;
pub mod evaluate;
pub mod export;
pub mod gguf;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod graph;
pub mod hf;
pub mod import;
pub mod limits;
pub mod manifest;
pub mod open;
pub mod recheck;
pub mod rows;
pub mod sample;
pub mod source;
pub mod stage;
pub mod step;
pub mod tensors;
pub mod tokenizer;
pub mod toploc;
