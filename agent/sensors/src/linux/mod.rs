//! Linux: every source on a thread of its own, and one reading made of their answers.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skein_policy::readings::{Gpu, Power, Reading, Readings};

use crate::gpu::nvml::{Library, Sleep};
use crate::gpu::sysfs::{Card, Cards, merged, text};
use crate::slow::Slow;
use crate::{Config, FRESH, PATIENCE, reading, traffic_unknown, wall};

mod bus;
mod desktop;
mod displays;
mod games;
mod logind;
mod power;
mod processes;
mod processor;
mod remote;
mod wayland;
mod x11;

use bus::{SessionBus, SystemBus};
use processes::{Lists, Processes, Scan};

/// The sources of this machine.
pub(crate) struct Platform {
    lists: Arc<Mutex<Arc<Lists>>>,
    x11: Slow<x11::Displays>,
    wayland: Slow<wayland::Answer>,
    system_bus: Slow<Result<SystemBus, String>>,
    session_bus: Slow<Result<SessionBus, String>>,
    processes: Slow<Result<Scan, String>>,
    cards: Slow<Result<Vec<Card>, String>>,
    nvml: Slow<Result<Vec<Gpu>, String>>,
    power: Slow<Result<Power, String>>,
    disk: Slow<Result<u64, String>>,
    consoles: desktop::Consoles,
}

impl Platform {
    pub(crate) fn new(config: Config) -> Self {
        let Config { data_dir, own_pids, games, not_games, places } = config;
        let root = places.root.clone();
        let lists = Arc::new(Mutex::new(Arc::new(Lists::new(&games, &not_games))));
        let hints = Arc::new(Mutex::new(displays::Hints::default()));

        let mut x11 = x11::Servers::new(places.clone(), Arc::clone(&hints));
        let mut wayland = wayland::Compositors::new(places.clone(), Arc::clone(&hints));
        let mut system = bus::System::new(places.system_bus.clone(), root.clone());
        let mut session = bus::Session::new(places.session_bus.clone(), root.clone());
        let mut scanner = Processes::new(&root, Arc::clone(&own_pids), Arc::clone(&lists), hints);
        let mut cards = Cards::new(&root);
        let mut library = Library::new(places.nvml, own_pids);
        let (sleep_root, name_root, power_root) = (root.clone(), root.clone(), root.clone());
        Self {
            lists,
            x11: Slow::start("the X server", FRESH, move || x11.read()),
            wayland: Slow::start("the Wayland compositor", FRESH, move || wayland.read()),
            system_bus: Slow::start("the system's D-Bus", FRESH, move || system.read()),
            session_bus: Slow::start("the session's D-Bus", FRESH, move || session.read()),
            processes: Slow::start("/proc", FRESH, move || scanner.scan()),
            cards: Slow::start("the GPU's driver", FRESH, move || cards.read()),
            nvml: Slow::start("NVIDIA's driver", FRESH, move || {
                let name = |pid: u32| processes::program_name(&name_root, pid);
                library.read(nvidia_sleep(&sleep_root), &name)
            }),
            power: Slow::start("the battery's driver", FRESH, move || power::read(&power_root)),
            disk: Slow::start("the file system", FRESH, move || disk_free(&data_dir)),
            consoles: desktop::Consoles::new(root),
        }
    }

    pub(crate) fn set_games(&mut self, games: Vec<String>, not_games: Vec<String>) {
        let mut lists = locked(&self.lists);
        *lists = Arc::new(lists.replaced(&games, &not_games));
    }

    pub(crate) fn read(&mut self) -> Readings {
        self.x11.ask();
        self.wayland.ask();
        self.system_bus.ask();
        self.session_bus.ask();
        self.processes.ask();
        self.cards.ask();
        self.nvml.ask();
        self.power.ask();
        self.disk.ask();

        let scan = flat(self.processes.answer(PATIENCE));
        let system = flat(self.system_bus.answer(PATIENCE));
        let session = flat(self.session_bus.answer(PATIENCE));
        let seen = desktop::Seen {
            x11: self.x11.answer(PATIENCE),
            wayland: self.wayland.answer(PATIENCE),
            mutter_idle_ms: session.as_ref().ok().and_then(|session| session.mutter_idle_ms),
            sessions: system
                .as_ref()
                .map(|system| system.sessions.clone())
                .unwrap_or_else(|why| Err(why.clone())),
            console_idle_ms: self.consoles.idle_ms(),
            uid: rustix::process::geteuid().as_raw(),
        };
        let used = scan.as_ref().map(|scan| scan.gpu_use.clone()).map_err(Clone::clone);
        let programs = |gpu: &str| match &used {
            Ok(Ok(used)) => Reading::Known(used.programs.get(gpu).cloned().unwrap_or_default()),
            Ok(Err(why)) | Err(why) => Reading::Missing(why.clone()),
        };
        let mut gpus = merged(flat(self.cards.answer(PATIENCE)), flat(self.nvml.answer(PATIENCE)), programs);
        if seen.uid == 0
            && let (Reading::Known(gpus), Ok(Ok(used))) = (&mut gpus, &used)
        {
            busy_by_programs(gpus, used);
        }
        Readings {
            owner_idle_ms: seen.idle(),
            full_screen: seen.full_screen(),
            game: games::reading(&session, &scan, &locked(&self.lists)),
            remote_desktop: remote::reading(&seen.sessions, &scan),
            power: reading(flat(self.power.answer(PATIENCE))),
            metered: reading(system.and_then(|system| system.metered)),
            disk_free_bytes: reading(flat(self.disk.answer(PATIENCE))),
            wall: wall::now(),
            gpus,
            processor_others_permille: reading(scan.and_then(|scan| scan.processor_others_permille)),
            traffic_month_bytes: traffic_unknown(),
        }
    }
}

/// Intel's drivers tell how busy a GPU is only by its programs, of which root alone sees all.
fn busy_by_programs(gpus: &mut [Gpu], used: &crate::gpu::fdinfo::Used) {
    for gpu in gpus {
        if let (Reading::Missing(_), Some(percent)) = (&gpu.busy_percent, used.busy_percent.get(&gpu.id)) {
            gpu.busy_percent = Reading::Known(u8::try_from(*percent).unwrap_or(100));
        }
    }
}

/// Whether NVIDIA's GPUs may sleep, and whether all of them do; costs a few small files and wakes nothing.
fn nvidia_sleep(root: &Path) -> Sleep {
    let Ok(devices) = std::fs::read_dir(root.join("sys/bus/pci/devices")) else { return Sleep::default() };
    let (mut gpus, mut asleep, mut allowed) = (0, 0, false);
    for device in devices.flatten().map(|entry| entry.path()) {
        let is =
            |file: &str, start: &str| text(&device.join(file)).is_some_and(|text| text.starts_with(start));
        if is("class", "0x03") && is("vendor", "0x10de") {
            gpus += 1;
            asleep += u32::from(is("power/runtime_status", "suspended"));
            allowed |= is("power/control", "auto");
        }
    }
    Sleep { allowed, asleep: gpus > 0 && asleep == gpus }
}

/// Bytes that the agent may still write where `dir` is, or will be.
pub(crate) fn disk_free(dir: &Path) -> Result<u64, String> {
    let mut place: &Path = dir;
    loop {
        match rustix::fs::statvfs(place) {
            Ok(stat) => return Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(format!("{}: {error}", place.display())),
        }
        place = match place.parent() {
            Some(parent) if parent.as_os_str().is_empty() && place != Path::new(".") => Path::new("."),
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => return Err(format!("{} does not exist", dir.display())),
        };
    }
}

/// At most so many bytes of a file that may be long or endless; empty if it cannot be read.
pub(crate) fn bounded(path: &Path, bytes_max: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What was read before an error is kept.
        let _ = file.take(bytes_max).read_to_end(&mut bytes);
    }
    bytes
}

fn flat<T>(answer: Result<Result<T, String>, String>) -> Result<T, String> {
    answer.and_then(|inner| inner)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user's run-time directory, or everybody's for root.
fn runtime_dirs(root: &Path) -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let all = root.join("run/user");
    if uid != 0 {
        return vec![all.join(uid.to_string())];
    }
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(all)
        .map(|entries| entries.flatten().map(|entry| entry.path()).take(64).collect())
        .unwrap_or_default();
    dirs.sort();
    dirs
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn a_directory_that_is_not_there_yet_has_the_space_of_where_it_will_be() {
        let dir = tempfile::tempdir().unwrap();
        let here = super::disk_free(dir.path()).unwrap();
        let there = super::disk_free(&dir.path().join("a/b/c")).unwrap();
        assert!(here > 0 && here.abs_diff(there) < 1 << 30, "{here} {there}");
        assert!(super::disk_free(Path::new("not-here")).is_ok(), "a relative path");
    }
}
