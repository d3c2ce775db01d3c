//! The demo's agents: real processes of this same binary, each with its own key, directory and ports.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::Client;
use crate::daemon::status::Status;

/// One started agent.
pub(super) struct Agent {
    pub(super) data_dir: PathBuf,
    pub(super) client: Client,
    process: Child,
}

impl Agent {
    /// Starts one, to meet `first` if there is one, and waits until its API answers.
    ///
    /// # Errors
    /// When it ends or does not answer; its own words are in its log file.
    pub(super) fn start(
        data_dir: PathBuf,
        genesis: &Path,
        threads: usize,
        first: Option<&Self>,
    ) -> Result<Self> {
        fs::create_dir_all(&data_dir).with_context(|| format!("cannot create {}", data_dir.display()))?;
        // It needs little room, for a few minutes.
        fs::write(data_dir.join("policy.toml"), "disk_free_min = \"off\"\n")?;
        // And it is not to change the program of this machine's agent.
        fs::write(data_dir.join("config.toml"), "update_channel = \"off\"\n")?;
        let story = data_dir.join("agent.log");
        let executable = std::env::current_exe().context("cannot find this binary's own path")?;
        let mut command = Command::new(executable);
        // The demo is the same whatever this machine's agent is told through its environment.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SKEIN_"))
        {
            command.env_remove(name);
        }
        command
            .args(["up", "--headless", "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(&data_dir)
            .arg("--network")
            .arg(genesis)
            .args(["--threads", &threads.to_string()]);
        if let Some(first) = first {
            let running = first.client.running();
            command.args(["--bootstrap", &format!("{}@{}", running.node, running.listen)]);
        }
        let said = File::create(&story).with_context(|| format!("cannot write {}", story.display()))?;
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn()?;
        let client = wait_for("the agent to start", Duration::from_secs(30), || {
            if let Some(status) = process.try_wait()? {
                let words = fs::read_to_string(&story).unwrap_or_default();
                bail!("an agent ended at once ({status}): {}", words.trim());
            }
            Ok(Client::of(&data_dir).ok())
        })?;
        Ok(Self { data_dir, client, process })
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn status(&self) -> Result<Status> {
        self.client.get("/api/status")
    }

    /// Tells it to leave, and waits until it has.
    ///
    /// # Errors
    /// When it does not end well.
    pub(super) fn leave(&mut self) -> Result<()> {
        let _: serde_json::Value = self.client.post("/api/down", &())?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("agent {} ended badly: {status}", self.client.running().node.short());
        }
        Ok(())
    }
}

impl Drop for Agent {
    /// No process outlives the demo, however it ends.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// When asking fails, or there is none in time.
pub(super) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > patience {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
