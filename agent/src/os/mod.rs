//! What every operating system does in its own way: how it asks the agent to leave, how a file is kept private, and which
//! clocks tell that the machine slept.
//!
//! The rest of the agent calls these names and does not ask where it runs. Must never decide what leaving means:
//! that is the daemon's.

use std::time::Duration;

#[cfg(not(windows))]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(not(windows))]
pub(crate) use self::unix::{clocks, create_private, leave_requests, step_back, take_input};
#[cfg(windows)]
pub(crate) use self::windows::{
    ask_to_leave, clocks, create_private, leave_own_console, leave_requests, leave_when_input_ends,
    step_back, take_input,
};

/// Two clocks of this machine, read together. Each tells only how much later it is than when it was read before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    /// Stands still while the machine sleeps.
    pub(crate) awake: Duration,
    /// Goes on meanwhile.
    pub(crate) always: Duration,
}
