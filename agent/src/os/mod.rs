//! What every operating system does in its own way: how it asks the agent to leave, and how a file is kept private.
//!
//! The rest of the agent calls these names and does not ask where it runs. Must never decide what leaving means:
//! that is the daemon's.

#[cfg(not(windows))]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(not(windows))]
pub(crate) use self::unix::{create_private, leave_requests, step_back};
#[cfg(windows)]
pub(crate) use self::windows::{ask_to_leave, create_private, leave_own_console, leave_requests, step_back};
