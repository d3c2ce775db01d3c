//! `skein doctor`: looks at all that an agent needs, and says for each thing that is wrong what to do about it.

use std::net::UdpSocket;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;
use skein_compute::probe::{self, AdapterKind, Survey};
use skein_policy::Settings;

use super::{bytes_text, print_json, say};
use crate::cli::{DataDir, UpArgs};
use crate::client::Client;
use crate::config::{Config, data_dir};
use crate::daemon::owner::{load, settings_file};
use crate::daemon::status::Status;
use crate::host::Host;
use crate::limits::PROBE_TIMEOUT;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    what: &'static str,
    state: Health,
    told: String,
    /// What to do about it.
    remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Good,
    /// The agent works, but not as well as it could.
    Poor,
    /// The agent cannot work.
    Bad,
}

impl Finding {
    fn good(what: &'static str, told: impl Into<String>) -> Self {
        Self { what, state: Health::Good, told: told.into(), remedy: None }
    }

    fn poor(what: &'static str, told: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, state: Health::Poor, told: told.into(), remedy: Some(remedy.into()) }
    }

    fn bad(what: &'static str, told: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, state: Health::Bad, told: told.into(), remedy: Some(remedy.into()) }
    }
}

/// Fails when something hinders the agent.
///
/// # Errors
/// When there is no home directory, or stdout is closed.
pub(crate) fn run(directory: DataDir, json: bool) -> Result<ExitCode> {
    let findings = look(&data_dir(directory.data_dir)?);
    if json {
        print_json(&findings)?;
    } else {
        for Finding { what, state, told, remedy } in &findings {
            let mark = match state {
                Health::Good => "good",
                Health::Poor => "poor",
                Health::Bad => "BAD ",
            };
            say(&format!("{mark}  {what:<14} {told}"))?;
            if let Some(remedy) = remedy {
                say(&format!("{:20} what to do: {remedy}", ""))?;
            }
        }
    }
    let bad = findings.iter().any(|finding| finding.state == Health::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Looks at everything; nothing is changed.
pub(crate) fn look(data_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![directory(data_dir), disk(data_dir), clock()];
    findings.extend(settings(data_dir));
    let survey =
        std::env::current_exe().map(|binary| probe::survey(&binary, PROBE_TIMEOUT)).unwrap_or_default();
    findings.push(gpu(&survey));
    findings.extend(permissions());
    match Client::of(data_dir).and_then(|client| client.get::<Status>("/api/status")) {
        Ok(status) => findings.extend(running(&status)),
        Err(_) => findings.extend(stopped(data_dir)),
    }
    findings
}

fn directory(data_dir: &Path) -> Finding {
    let what = "data directory";
    let nearest = data_dir.ancestors().find(|folder| folder.exists()).unwrap_or(data_dir);
    match tempfile_in(nearest) {
        Ok(()) => Finding::good(what, data_dir.display().to_string()),
        Err(error) => Finding::bad(
            what,
            format!("nothing can be written in {}: {error}", nearest.display()),
            "give the agent's user the right to write there, or choose another by --data-dir",
        ),
    }
}

fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".skein-doctor-{}", std::process::id()));
    std::fs::write(&path, b"x")?;
    std::fs::remove_file(&path)
}

fn disk(data_dir: &Path) -> Finding {
    let nearest = data_dir.ancestors().find(|folder| folder.exists()).unwrap_or(data_dir);
    let free = Host::look(nearest).disk_free_bytes;
    match free {
        Some(free) if free < 1 << 30 => Finding::bad(
            "disk",
            format!("{} free", bytes_text(free)),
            "free some space: models and checkpoints take gigabytes",
        ),
        Some(free) if free < 20 << 30 => Finding::poor(
            "disk",
            format!("{} free", bytes_text(free)),
            "free some space, or set `disk_free_min` lower: large models will not fit",
        ),
        Some(free) => Finding::good("disk", format!("{} free", bytes_text(free))),
        None => Finding::poor("disk", "the system does not tell how much is free", "look yourself"),
    }
}

/// 2026-01-01: this version is younger.
const BORN: u64 = 1_767_225_600;

fn clock() -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let remedy = "switch the system's time synchronisation on (`timedatectl set-ntp true`): epochs are counted by the clock";
    if now < Duration::from_secs(BORN) {
        return Finding::bad("clock", "this machine's clock is years behind", remedy);
    }
    if cfg!(target_os = "linux") && Path::new("/run/systemd/timesync").is_dir() {
        return if Path::new("/run/systemd/timesync/synchronized").exists() {
            Finding::good("clock", "kept by systemd-timesyncd")
        } else {
            Finding::poor("clock", "systemd-timesyncd has not reached a time server yet", remedy)
        };
    }
    Finding::good("clock", "plausible; what keeps it is not known here")
}

fn settings(data_dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let args = UpArgs { data_dir: Some(data_dir.to_owned()), ..UpArgs::default() };
    match Config::load(args) {
        Ok(_) => findings.push(Finding::good("config.toml", "can be read, or is not there")),
        Err(error) => findings.push(Finding::bad(
            "config.toml",
            format!("{error:#}").replace('\n', "; "),
            "mend it as said",
        )),
    }
    match load(&settings_file(data_dir), Settings::default()) {
        Ok(_) => findings.push(Finding::good("policy.toml", "can be read, or is not there")),
        Err(error) => findings.push(Finding::bad(
            "policy.toml",
            format!("{error:#}").replace('\n', "; "),
            "mend it as said",
        )),
    }
    findings
}

fn gpu(survey: &Survey) -> Finding {
    let install = if cfg!(target_os = "linux") {
        "install the card's driver with Vulkan: NVIDIA's own (`nvidia-driver`), or `mesa-vulkan-drivers` for AMD and Intel"
    } else {
        "install the newest driver of the card's maker"
    };
    if let Some(trouble) = &survey.trouble {
        return Finding::bad("GPU", format!("adapters cannot be listed: {trouble}"), install);
    }
    let cards: Vec<_> =
        survey.adapters.iter().filter(|report| report.adapter.kind != AdapterKind::Cpu).collect();
    let told = |report: &&probe::AdapterReport| {
        let adapter = &report.adapter;
        format!("{} over {} ({}): {}", adapter.name, adapter.backend, adapter.driver, report.verdict)
    };
    let all = cards.iter().map(told).collect::<Vec<_>>().join("; ");
    if cards.iter().any(|report| report.works()) {
        Finding::good("GPU", all)
    } else if cards.is_empty() {
        Finding::poor("GPU", "none that wgpu finds; the agent works on the processor", install)
    } else {
        Finding::bad("GPU", all, install)
    }
}

/// Whether this user may use the cards that the kernel shows.
#[cfg(target_os = "linux")]
fn permissions() -> Vec<Finding> {
    let nodes = std::fs::read_dir("/dev/dri").into_iter().flatten().filter_map(Result::ok);
    let render = nodes.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("renderD"));
    render
        .map(|path| match std::fs::File::options().read(true).write(true).open(&path) {
            Ok(_) => Finding::good("permissions", format!("{} may be used", path.display())),
            Err(error) => Finding::bad(
                "permissions",
                format!("{} may not be used: {error}", path.display()),
                "add the agent's user to the group `render`: `sudo usermod -aG render $USER`, then log in again",
            ),
        })
        .collect()
}

#[cfg(not(target_os = "linux"))]
fn permissions() -> Vec<Finding> {
    Vec::new()
}

fn running(status: &Status) -> Vec<Finding> {
    let mut findings =
        vec![Finding::good("agent", format!("runs, version {}: {}", status.version, status.policy.headline))];
    if status.version != crate::version() {
        let told = format!("this command is version {}", crate::version());
        findings.push(Finding::poor("version", told, "restart the agent, so that both are the same"));
    }
    findings.push(if status.peers.is_empty() {
        Finding::poor(
            "reachability",
            format!("no other agent is connected; this one listens on {}", status.listen),
            "name one by --bootstrap, and let UDP out of this machine; to be reached from outside, forward the port \
             in your router and name it by --advertise",
        )
    } else {
        Finding::good("reachability", format!("{} agents are connected", status.peers.len()))
    });
    findings.push(if status.visible {
        Finding::good("scheduler", "sees this agent")
    } else {
        Finding::poor(
            "scheduler",
            "does not see this agent yet",
            "wait a minute; `skein status` says what is missing",
        )
    });
    for sensor in status.policy.sensors.iter().filter(|sensor| sensor.missing.is_some()) {
        let told = format!("{}: {}", sensor.sensor, sensor.missing.as_deref().unwrap_or_default());
        findings.push(Finding::good("sensor", told));
    }
    findings
}

fn stopped(data_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![Finding::poor(
        "agent",
        "does not run",
        format!("`skein up --data-dir {}` starts it", data_dir.display()),
    )];
    let args = UpArgs { data_dir: Some(data_dir.to_owned()), ..UpArgs::default() };
    let Ok(config) = Config::load(args) else { return findings };
    let taken = "end the program that has it (`ss -lnup`), or choose another in config.toml";
    findings.push(match UdpSocket::bind(config.listen) {
        Ok(_) => Finding::good("port", format!("UDP {} is free", config.listen)),
        Err(error) => Finding::bad("port", format!("UDP {}: {error}", config.listen), taken),
    });
    findings.push(match std::net::TcpListener::bind(config.api) {
        Ok(_) => Finding::good("port", format!("TCP {} is free", config.api)),
        Err(error) => Finding::bad("port", format!("TCP {}: {error}", config.api), taken),
    });
    findings
}
