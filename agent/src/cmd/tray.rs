//! `skein tray`: the icon, as a client of the local API like any other.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use skein_tray::Agent;

use crate::cli::DataDir;
use crate::client::Client;
use crate::config::data_dir;

/// Shows the icon until its owner removes it; a second one for the same agent leaves at once.
///
/// # Errors
/// When the data directory cannot be written.
pub(crate) fn run(directory: DataDir) -> Result<ExitCode> {
    let directory = data_dir(directory.data_dir)?;
    std::fs::create_dir_all(&directory)?;
    let path = directory.join("tray.lock");
    let lock = File::create(&path).with_context(|| {
        format!("cannot write {}\nhint: run it as the user who runs the agent", path.display())
    })?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("the icon of this agent is there already");
            return Ok(ExitCode::SUCCESS);
        }
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock tray.lock"),
    }
    #[cfg(windows)]
    crate::os::leave_own_console();
    let ended = skein_tray::run(move || {
        let client = Client::of(&directory)?;
        let running = client.running();
        Ok(Agent { api: running.api.to_string(), token: running.token.clone() })
    })?;
    eprintln!("{ended}");
    Ok(ExitCode::SUCCESS)
}

/// The icon of an agent that was started by hand, which goes with the agent.
pub(crate) struct Icon(Child);

impl Icon {
    /// Starts one; where there is no desktop it ends by itself.
    pub(crate) fn start(data_dir: &Path) -> Option<Self> {
        let mut command = Command::new(std::env::current_exe().ok()?);
        // CREATE_NO_WINDOW: an agent that let go of its console would open a new one for the icon.
        #[cfg(windows)]
        std::os::windows::process::CommandExt::creation_flags(&mut command, 0x0800_0000);
        command.arg("tray").arg("--data-dir").arg(data_dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().ok().map(Self)
    }
}

impl Drop for Icon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
