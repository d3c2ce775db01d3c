//! Signed releases, and a change of binaries that always leaves one that works.
//!
//! ```text
//!  CHANNEL.json + .sig ──> Release ──> Staged ──> Proven ──> promoted
//!   (keys, manifest, fetch)   (archive, swap)  (trial)   (swap)
//! ```
//!
//! A release is believed when a trusted key signed its manifest (`keys`, `manifest`); its archive is fetched in
//! bounded size and time, and checked against the manifest and by zipsign (`fetch`, `archive`); the binary is
//! staged beside the installed one (`swap`), proves itself as a child process (`trial`), and only then gets the
//! installed name. Where it then ends again and again, `recover` puts the version before back (`updater`). `state`
//! remembers what happened, `schedule` says when to look again, `sign` is the publisher's side.
//!
//! ```no_run
//! # fn answers(_: &skein_update::Version) -> bool { true }
//! # fn main() -> skein_update::Result<()> {
//! use skein_update::{Health, TRIAL_LIMIT, TRIAL_STEADY, TrustedKeys, Updater};
//! let keys = TrustedKeys::built_in()?;
//! let data = std::path::Path::new("/home/me/.local/share/skein");
//! let updater = Updater::new("https://releases.example.org", "stable", keys, "0.1.0", data)?;
//! updater.recover()?; // when the agent starts
//! if let Some(release) = updater.check()? {
//!     let staged = updater.stage(&release, &mut |_done, _all| {})?;
//!     // Finish the work at hand and leave the network; then:
//!     let mut command = staged.command();
//!     command.args(std::env::args_os().skip(1));
//!     let wanted = staged.version().clone();
//!     let missing = || Health::Missing("its API does not answer".to_owned());
//!     let mut health = || if answers(&wanted) { Health::Good } else { missing() };
//!     staged.trial(command, &mut health, TRIAL_LIMIT, TRIAL_STEADY)?.promote()?;
//!     // Execute the installed path. After any error: go on as before; the error says why.
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Knows no other crate of ours, and no async run time: everything here blocks. Must never put an unproven
//! binary under the installed name.

mod archive;
mod error;
mod fetch;
pub mod keys;
pub mod manifest;
pub mod schedule;
pub mod sign;
mod state;
mod swap;
mod trial;
mod updater;

pub use error::{Result, UpdateError};
pub use fetch::NetworkLimits;
pub use keys::TrustedKeys;
pub use semver::Version;
pub use state::{FailedVersion, InTrial, LastResult, Outcome, Probation, State};
pub use swap::mend;
pub use trial::{
    Health, PROBATION, Proven, Staged, TRIAL_LEFT, TRIAL_LIMIT, TRIAL_NOT_NOW, TRIAL_STEADY, TRIAL_VARIABLE,
    end_with_updater, is_trial,
};
pub use updater::{Recovery, Release, Step, StepHook, Updater, this_binary};
