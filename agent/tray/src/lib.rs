//! The tray icon: an unprivileged client of the agent's local API.
//!
//! It shows what the agent says and passes on what the owner chooses. It decides nothing, keeps nothing on disk and
//! knows none of our crates. Must never hold the desktop up: whatever waits for the agent does so in another thread
//! than the one that answers the desktop.

mod client;
#[cfg(any(windows, target_os = "macos"))]
mod desktop;
mod follow;
pub mod icon;
#[cfg(target_os = "linux")]
mod linux;
pub mod menu;
pub mod status;

use std::fmt;

/// How to reach the agent that runs now.
#[derive(Clone)]
pub struct Agent {
    /// Host and port of its local API, as `127.0.0.1:7311`.
    pub api: String,
    /// What allows to give orders; never shown or logged.
    pub token: String,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("api", &self.api).finish_non_exhaustive()
    }
}

/// Why the icon is gone. None of these is a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The owner removed the icon; the agent goes on.
    QuitTray,
    /// The owner stopped the agent, and the icon with it.
    QuitSkein,
    /// The desktop session is over.
    SessionOver,
    /// There is no desktop session to show an icon in, and why.
    NoHost(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QuitTray => f.write_str("the tray icon is removed; the agent goes on"),
            Self::QuitSkein => f.write_str("the agent was told to leave, and the tray icon is removed"),
            Self::SessionOver => f.write_str("the desktop session is over"),
            Self::NoHost(why) => write!(
                f,
                "no tray here: {why}\nhint: the agent needs none; `skein status` and the dashboard tell the same"
            ),
        }
    }
}

/// Shows the icon until the owner removes it or the desktop session ends. Blocks; call it from the main thread.
///
/// `find` is asked before every request, because an agent that was started again has another token; its error's text
/// is shown while no agent runs, so its line `hint: …` should say how to start one.
///
/// # Errors
/// When the system gives no thread, or, on Windows and macOS, no event loop.
pub fn run(find: impl Fn() -> anyhow::Result<Agent> + Send + 'static) -> anyhow::Result<Ended> {
    #[cfg(target_os = "linux")]
    return linux::run(find);
    #[cfg(any(windows, target_os = "macos"))]
    return desktop::run(find);
    #[cfg(not(any(target_os = "linux", windows, target_os = "macos")))]
    {
        drop(find);
        Ok(Ended::NoHost("this system's trays are not supported".to_owned()))
    }
}
