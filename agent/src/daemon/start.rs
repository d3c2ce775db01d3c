//! From a configuration to a running daemon: open what is on disk, bind the ports, measure the device.
//!
//! Whatever cannot be opened or bound ends the start with an error that says what to do.

use std::fs::{self, File, TryLockError};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use skein_compute::bench::BenchResult;
use skein_compute::device::DeviceChoice;
use skein_compute::probe::Chosen;
use skein_compute::protocol::{Reply, Task};
use skein_mesh::{BlobStore, Mesh, MeshConfig};
use skein_proto::ids::NodeId;
use skein_proto::node::Node;
use skein_proto::offer::WorkerOffer;
use smol::channel;

use super::book::Book;
use super::curve::Curves;
use super::executor::{Common, Executor, Kept};
use super::group::Groups;
use super::journal::Journal;
use super::owner::{self, Owner};
use super::pipeline::Pipeline;
use super::station::{Stations, Trial};
use super::treasury::Treasury;
use super::updating::{self, Updating};
use super::worker::{Launch, Worker};
use super::{Call, Clock, Daemon, Event, Means, Measured, device, forward, tick_for_ever};
use crate::cmd::tray::Icon;
use crate::config::Config;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::identity;
use crate::limits::{EVENTS_QUEUED_MAX, TIDY_EVERY};
use crate::os;
use crate::serve::desk::Desk;
use crate::serve::registry::Registry;
use crate::serve::samples::Samples;
use crate::serve::served::Library;

/// `agent.json` in the data directory: how the other verbs find the running agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) node: NodeId,
    pub(crate) listen: SocketAddr,
    pub(crate) api: SocketAddr,
    /// Whoever can read this file may give orders.
    pub(crate) token: String,
}

/// Name of the file that holds [`Running`].
pub(crate) const RUNNING_FILE: &str = "agent.json";

/// Runs an agent until it is told to leave.
///
/// # Errors
/// What hinders the start, or a disk that no longer takes the log.
pub(crate) async fn run(config: Config) -> Result<()> {
    let data_dir = config.data_dir.clone();
    fs::create_dir_all(&data_dir).with_context(|| {
        format!("cannot create the data directory {}\nhint: choose another by --data-dir", data_dir.display())
    })?;
    let _lock = lock(&data_dir)?;
    let key = identity::load_or_create(&data_dir)?;
    updating::recover(&config)?;
    // A version on trial ends with the process that tries it.
    skein_update::end_with_updater(|| std::process::exit(1));
    let clock = Clock::new();
    let journal = Journal::open(&data_dir, &config.genesis, key.clone())?;
    let treasury = Treasury::open(&data_dir, &config.genesis, key.clone())?;
    let store = BlobStore::open(data_dir.join("blobs"))
        .context("cannot open the blob store\nhint: `blobs` in the data directory must be a directory that can be written")?;
    let (api_socket, api) = bind_api(config.api)?;
    let (mesh, mesh_events) = Mesh::bind(MeshConfig {
        key: key.clone(),
        network: config.genesis.network_id(),
        listen: config.listen,
        bootstrap: config.bootstrap.clone(),
    })?;
    let node = Node::new(key, &config.genesis, config.bootstrap.is_empty());
    let token = new_token()?;
    let running =
        Running { pid: std::process::id(), node: node.id(), listen: mesh.local_address(), api, token };
    let running_file = RunningFile::write(&data_dir, &Running { api: from_here(api), ..running.clone() })?;
    tracing::info!(node = %node.id(), listen = %running.listen, api = %api, "agent started");

    let (feed, events) = channel::bounded(EVENTS_QUEUED_MAX);
    forward(mesh_events, feed.clone(), Event::Mesh);
    tick_for_ever(feed.clone());
    forward(os::leave_requests()?, feed.clone(), |()| Event::Signal);
    let scratch = scratch(&data_dir)?;
    let registry = Registry::open(&data_dir, store.clone())
        .map_err(|error| super::journal::disk_trouble(&data_dir.join("models"), &error))?;
    let samples = Samples::new(&data_dir);
    let desk = Desk::new(feed.clone(), Library::new(mesh.clone(), store.clone()), registry, samples);
    tidy_up(desk.clone(), store.clone(), config.disk_bytes);
    let curves = Curves::new(&data_dir);
    let fleet = Fleet::new(&config, mesh.clone(), feed.clone());
    let door = crate::api::Door::new(
        &running,
        feed.clone(),
        store.clone(),
        fleet.clone(),
        &data_dir,
        desk,
        curves.clone(),
    );
    let crowd = door.crowd();
    skein_mesh::spawn(crate::api::serve(api_socket, door)).detach();
    let settings = owner::load(&owner::settings_file(&data_dir), owner::preset(config.headless))?;
    let owner = Owner::start(&data_dir, &settings, feed.clone())?;
    let common = Common {
        pipeline: Pipeline::new(node.id(), mesh.clone(), scratch.clone()),
        groups: Groups::new(node.id(), mesh.clone()),
        mesh: mesh.clone(),
        store: store.clone(),
        scratch,
        kept: Kept::default(),
    };
    let host = Host::look(&data_dir);
    let headless = config.headless;
    if config.payout.is_some() {
        tracing::warn!("`payout` is kept for later: this version's ledger pays the agent's own account");
    }
    let mut daemon = Daemon {
        config,
        api: api.to_string(),
        clock,
        node,
        mesh,
        store,
        journal,
        treasury,
        curves: curves.clone(),
        book: Book::new(&data_dir),
        owner,
        updating: Updating::default(),
        crowd,
        fleet,
        stations: Stations::new(settings),
        common,
        host,
        leases_taken: 0,
        leaving: None,
    };
    daemon.recall()?;
    daemon.recall_said(&feed)?;
    let icon = (!headless && !skein_update::is_trial() && on_a_desktop()).then(|| Icon::start(&data_dir));
    let ended = daemon.serve(&events, &feed).await;
    drop(icon);
    drop(running_file);
    if ended.is_ok() {
        daemon.updating.left(&data_dir);
    }
    // Whoever is told to leave while it leaves for a new version stays away too.
    let told = |event: Event| matches!(event, Event::Signal | Event::Call(Call::Down(_)));
    let stays_away = std::iter::from_fn(|| events.try_recv().ok()).any(told);
    match daemon.updating.version().filter(|_| !stays_away) {
        // Everything of this process ends with it, locks and sockets included.
        Some(version) => match updating::apply(version, &data_dir)? {},
        None => ended,
    }
}

/// Where a program on this machine reaches what listens there: not every system takes "any address" for itself.
pub(crate) fn from_here(api: SocketAddr) -> SocketAddr {
    let ip = match api.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => api.ip(),
    };
    SocketAddr::new(ip, api.port())
}

/// Whether an icon of this process could open anything. A service of systemd starts before the session and has its limits:
/// a browser that its icon opened would be without a display or a sandbox, and would die with the service. There the
/// session's autostart has the icon.
fn on_a_desktop() -> bool {
    let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let has_display = value("DISPLAY").or_else(|| value("WAYLAND_DISPLAY")).is_some();
    // Of whatever systemd started; its children, a terminal's shell among them, inherit the number and are others.
    let is_service = value("SYSTEMD_EXEC_PID").is_some_and(|pid| pid == std::process::id().to_string());
    !cfg!(target_os = "linux") || has_display && !is_service
}

/// Now and then takes models out of service that nobody asks for, and makes room on the disk.
fn tidy_up(desk: Desk, store: BlobStore, disk_bytes: u64) {
    skein_mesh::spawn(async move {
        loop {
            smol::Timer::after(TIDY_EVERY).await;
            desk.retire_idle().await;
            let store = store.clone();
            match smol::unblock(move || store.trim(disk_bytes)).await {
                Ok(trimmed) if trimmed.bytes_removed > 0 => {
                    let removed = crate::cmd::bytes_text(trimmed.bytes_removed);
                    tracing::info!(removed, "made room on the disk");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "cannot make room on the disk"),
            }
        }
    })
    .detach();
}

impl Daemon {
    /// Measures a device in a worker of its own; `sharing` workers have the processor.
    pub(super) fn measurement(
        &self,
        index: u8,
        chosen: Chosen,
        sharing: usize,
        trial: Trial,
    ) -> impl Future<Output = Result<Measured>> + Send + 'static {
        let (config, common, host) = (self.config.clone(), self.common.clone(), self.host.clone());
        let gpu = self.owner.readings().and_then(|readings| device::sensed(&chosen, readings));
        let sensed_bytes = gpu.and_then(|gpu| gpu.memory_total_bytes.known().copied());
        async move {
            let Chosen { device, reason, adapter } = chosen;
            let worker = new_worker(&config, index, &device, sharing)?;
            trial.begin(&worker)?;
            let bench = benchmark(&worker, &device).await?;
            let (name, backend) = match &device {
                DeviceChoice::Cpu => (host.processor.clone(), "cpu"),
                DeviceChoice::Wgpu { name, .. } => (name.clone(), "wgpu"),
            };
            let shared_bytes = host.memory_bytes / sharing as u64;
            let (memory_bytes, known) = device::memory(adapter.as_ref(), sensed_bytes, shared_bytes);
            if !known && config.memory_bytes.is_none() {
                let offered = crate::cmd::bytes_text(memory_bytes);
                tracing::info!(offered, "nobody tells the memory of {name}; `--memory` does");
            }
            let offer = WorkerOffer {
                device: name,
                backend: backend.to_owned(),
                matrix_mflops: bench.matmul_mflops,
                memory_mbps: bench.memory_mb_s,
                transfer_mbps: bench.upload_mb_s.min(bench.download_mb_s),
                memory_bytes: config.memory_bytes.unwrap_or(memory_bytes),
                open: true,
            };
            let on_gpu = matches!(device, DeviceChoice::Wgpu { .. });
            let (executor, reports) = Executor::new(worker.clone(), common, on_gpu, offer.memory_bytes);
            Ok(Measured { offer, reports, means: Means { worker, executor }, device, reason })
        }
    }

    /// The addresses at which this agent says it listens.
    pub(super) fn addresses(&self) -> Vec<String> {
        advertised(self.config.advertise, self.mesh.local_address())
    }
}

/// The worker of a device, which starts with its first task.
fn new_worker(config: &Config, index: u8, device: &DeviceChoice, sharing: usize) -> Result<Worker> {
    let executable = updating::this_binary()?;
    // An optimiser's moments lie there, which are the next slice's of the same worker.
    let name = if index == 0 { "worker".to_owned() } else { format!("worker-{index}") };
    let directory = config.data_dir.join(name);
    fs::create_dir_all(&directory).map_err(|error| super::journal::disk_trouble(&directory, &error))?;
    let threads = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get) / sharing,
        threads => threads,
    };
    let threads = u32::try_from(threads.max(1)).unwrap_or(u32::MAX);
    Ok(Worker::new(Launch { executable, device: device.clone(), directory, threads }))
}

async fn benchmark(worker: &Worker, device: &DeviceChoice) -> Result<BenchResult> {
    let note = |reply| {
        if let Reply::Progress { note, .. } = reply
            && !note.is_empty()
        {
            tracing::info!("{note}");
        }
    };
    match worker.call(Task::Bench, note).await {
        Ok(Reply::Benched(bench)) => Ok(bench),
        Ok(other) => bail!("the worker answered out of turn: {other:?}"),
        Err(error) => bail!("cannot measure {device}: {error}\nhint: `skein bench` tries every device"),
    }
}

/// An empty directory for files in the making, on the file system of the blobs, so that they can be moved.
fn scratch(data_dir: &Path) -> Result<PathBuf> {
    let scratch = data_dir.join("scratch");
    // What a killed agent left half-written is of no use.
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).map_err(|error| super::journal::disk_trouble(&scratch, &error))?;
    Ok(scratch)
}

/// Whether no agent runs in this data directory.
pub(crate) fn runs_nowhere(data_dir: &Path) -> bool {
    lock(data_dir).is_ok()
}

fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write to the data directory {}\nhint: check its owner and that the disk is not full or read-only", data_dir.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another agent runs in {}\nhint: `skein status --data-dir {0}` shows it, `skein down --data-dir {0}` ends it; \
             a second agent needs its own --data-dir",
            data_dir.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn bind_api(address: SocketAddr) -> Result<(smol::net::TcpListener, SocketAddr)> {
    let bound = TcpListener::bind(address).and_then(|socket| {
        let address = socket.local_addr()?;
        Ok((smol::Async::new(socket)?.into(), address))
    });
    bound.with_context(|| {
        format!("cannot serve the local API on {address}\nhint: another program may use the port; choose another by --api, or `--api 127.0.0.1:0` for any")
    })
}

fn new_token() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("no randomness from the operating system: {error}"))?;
    Ok(hex::encode(bytes))
}

/// Removes `agent.json` when the agent ends.
struct RunningFile(PathBuf);

impl RunningFile {
    fn write(data_dir: &Path, running: &Running) -> Result<Self> {
        let path = data_dir.join(RUNNING_FILE);
        identity::write_private(&path, &serde_json::to_vec_pretty(running)?)
            .map_err(|error| super::journal::disk_trouble(&path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for RunningFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir_all(self.0.with_file_name("run"));
    }
}

/// The addresses that others may try: what the owner says, or the one bound, or the machine's own if every interface is.
fn advertised(told: Option<SocketAddr>, listen: SocketAddr) -> Vec<String> {
    if let Some(told) = told {
        return vec![told.to_string()];
    }
    let address = if listen.ip().is_unspecified() { own_address(listen.ip()) } else { Some(listen.ip()) };
    address.map(|ip| SocketAddr::new(ip, listen.port()).to_string()).into_iter().collect()
}

/// The address from which this machine would reach the internet; nothing is sent.
fn own_address(unspecified: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0)).ok()?;
    // A documentation address: connecting a UDP socket only asks the routing table.
    let far = if unspecified.is_ipv4() { "192.0.2.1:9" } else { "[2001:db8::1]:9" };
    socket.connect(far).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_here_are_told_an_address_that_every_system_takes() {
        let told = |bound: &str| from_here(bound.parse().unwrap()).to_string();
        assert_eq!(told("0.0.0.0:7311"), "127.0.0.1:7311");
        assert_eq!(told("[::]:7311"), "[::1]:7311");
        assert_eq!(told("192.0.2.7:7311"), "192.0.2.7:7311");
    }
}
