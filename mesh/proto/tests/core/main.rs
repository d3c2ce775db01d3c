//! The tests of the pure core, in one program: a shared fixture, and one file per question.

mod election;
mod fixture;
mod golden;
mod hostile;
mod leases;
mod plan;
