//! Tests of stages: tiny models of every architecture against a slow reference, and a real model against llama.cpp.
//!
//! What needs the real model reads the path of `SmolLM2-135M-Instruct.Q4_1.gguf` from `SKEIN_TEST_MODEL`, and is skipped
//! without it.

#![expect(
    clippy::unwrap_used,
    clippy::type_complexity,
    reason = "clippy takes helpers of tests for the product"
)]

mod architectures;
mod commitments;
mod goldens;
mod greedy;
mod hostile;
mod real;
mod reference;
mod speculation;
mod splits;
mod tiny;
