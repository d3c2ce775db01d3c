//! The tests of the pure core, in one program: a shared fixture, and one file per question.
//!
//! Must never hold a test itself. (`cfg(test)` tells clippy that the helpers are tests too.)

#[cfg(test)]
mod checks;
#[cfg(test)]
mod desk;
#[cfg(test)]
mod election;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod groups;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod leases;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod orders;
#[cfg(test)]
mod placement;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod requires;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod workers;
