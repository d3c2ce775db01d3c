//! When the owner's machine may work, and why not: a pure function of what was sensed and said.
//!
//! No I/O, no clock, no thread: time and readings come in, verdicts go out. Must never guess: a sensor that is missing
//! is told as missing, never as zero.
//!
//! ```text
//! sensors ── Readings ──> Policy::handle(now, event) ──> Allow, LimitRate, LookAgain ──> daemon
//! owner ── Pause, Resume, Finish, Settings ──^    └────> Policy::view(now) ──> status, tray, dashboard, metrics
//! ```

mod decide;
mod gpu_rules;
mod hours;
pub mod readings;
mod rules;
mod settings;
mod units;
mod view;

pub use decide::{
    AFTERGLOW_MS, Action, DOUBLINGS_MAX, Event, LOOK_EVERY_MS, Policy, RELAPSE_MS, SENSED_EVERY_MS,
    SILENCE_MS,
};
pub use hours::Hours;
pub use rules::{Rule, STALE_MS};
pub use settings::{Missing, Plain, SettingError, Settings};
pub use units::{Bytes, Celsius, Milliwatts, Names, Percent, Rate, Span, Value};
pub use view::{Allowance, Blocks, Pause, Reason, Sensor, State, View};
