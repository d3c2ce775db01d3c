//! The owner's policy, driven as a daemon drives it, on one made-up clock: a shared desk, and one file per question.
//!
//! Must never hold a test itself. (`cfg(test)` tells clippy that the helpers are tests too.)

#[cfg(test)]
mod desk;
#[cfg(test)]
mod owner;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod settings;
