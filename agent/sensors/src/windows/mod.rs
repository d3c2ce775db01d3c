//! Windows: what its own interfaces tell, NVIDIA's GPUs by NVML, games by their place and by the owner's names.
//!
//! A service in session 0 sees neither input nor windows, and says so: the agent must run in the owner's session.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skein_policy::readings::{Gpu, Power, Reading, Readings};

use crate::gpu::nvml::{Library, Sleep};
use crate::processes::{Lists, Processes, Scan};
use crate::slow::Slow;
use crate::{Config, FRESH, PATIENCE, reading, traffic_unknown, wall};

mod system;

/// The sources of this machine.
pub(crate) struct Platform {
    lists: Arc<Mutex<Lists>>,
    desktop: Slow<Desktop>,
    processes: Slow<Scan>,
    nvml: Slow<Result<Vec<Gpu>, String>>,
    metered: Slow<Result<bool, String>>,
    disk: Slow<Result<u64, String>>,
}

/// What the owner's session tells.
#[derive(Clone)]
struct Desktop {
    idle_ms: Result<u64, String>,
    full_screen: Result<Option<u32>, String>,
    remote: Result<bool, String>,
    power: Result<Power, String>,
}

impl Platform {
    pub(crate) fn new(config: Config) -> Self {
        let Config { data_dir, own_pids, games, not_games, places } = config;
        let lists = Arc::new(Mutex::new(Lists::new(&games, &not_games)));
        let scanner = Arc::new(Mutex::new(Processes::new()));
        let names = Arc::clone(&scanner);
        let theirs = Arc::clone(&lists);
        let own = Arc::clone(&own_pids);
        let mut library = Library::new(places.nvml, own_pids);
        Self {
            lists,
            desktop: Slow::start("the desktop", FRESH, || {
                let seen = system::in_a_session();
                Desktop {
                    idle_ms: seen.clone().and_then(|()| system::idle_ms()),
                    full_screen: seen.clone().and_then(|()| system::full_screen()),
                    remote: seen.map(|()| system::remote()),
                    power: system::power(),
                }
            }),
            processes: Slow::start("the list of processes", FRESH, move || {
                let own: BTreeSet<u32> = own();
                locked(&scanner).scan(&own, &locked(&theirs))
            }),
            nvml: Slow::start("NVIDIA's driver", FRESH, move || {
                let name = |pid: u32| locked(&names).name(pid);
                library.read(Sleep::default(), &name)
            }),
            metered: Slow::start("the network's status", FRESH, system::metered),
            disk: Slow::start("the file system", FRESH, move || disk_free(&data_dir)),
        }
    }

    pub(crate) fn set_games(&mut self, games: Vec<String>, not_games: Vec<String>) {
        locked(&self.lists).replace(&games, &not_games);
    }

    pub(crate) fn read(&mut self) -> Readings {
        self.desktop.ask();
        self.processes.ask();
        self.nvml.ask();
        self.metered.ask();
        self.disk.ask();
        let desktop = self.desktop.answer(PATIENCE);
        let scan = self.processes.answer(PATIENCE);
        let named = |pid: u32| {
            let name = scan.as_ref().ok().and_then(|scan| scan.names.get(&pid)).cloned();
            name.unwrap_or_else(|| "a program in full screen".to_owned())
        };
        Readings {
            owner_idle_ms: reading(desktop.clone().and_then(|desktop| desktop.idle_ms)),
            full_screen: reading(
                desktop.clone().and_then(|desktop| desktop.full_screen).map(|window| window.map(named)),
            ),
            game: reading(scan.clone().map(|scan| scan.game)),
            remote_desktop: reading(
                desktop
                    .clone()
                    .and_then(|desktop| desktop.remote)
                    .map(|remote| remote.then(|| "Windows' remote desktop".to_owned())),
            ),
            power: reading(desktop.and_then(|desktop| desktop.power)),
            metered: reading(self.metered.answer(PATIENCE).and_then(|metered| metered)),
            disk_free_bytes: reading(self.disk.answer(PATIENCE).and_then(|free| free)),
            wall: wall::now(),
            gpus: reading(self.nvml.answer(PATIENCE).and_then(|gpus| gpus)),
            processor_others_permille: match scan {
                Ok(scan) => reading(scan.processor_others_permille),
                Err(why) => Reading::Missing(why),
            },
            traffic_month_bytes: traffic_unknown(),
        }
    }
}

/// Bytes free where the directory is, or will be.
pub(crate) fn disk_free(dir: &Path) -> Result<u64, String> {
    let place = dir.ancestors().find(|place| place.exists());
    place.ok_or_else(|| format!("{} does not exist", dir.display())).and_then(system::disk_free)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
