//! Windows' and macOS's processes: games by their place and by the owner's names, and the processors' time.

use std::collections::{BTreeMap, BTreeSet};

use sysinfo::{CpuRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System, UpdateKind};

use crate::{installed_to_play, shown};

/// More processes than a machine of an owner has.
const PROCESSES_MAX: usize = 100_000;

/// The owner's names.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    games: BTreeSet<String>,
    not_games: BTreeSet<String>,
}

impl Lists {
    pub(crate) fn new(games: &[String], not_games: &[String]) -> Self {
        let mut lists = Self::default();
        lists.replace(games, not_games);
        lists
    }

    pub(crate) fn replace(&mut self, games: &[String], not_games: &[String]) {
        let lower = |names: &[String]| names.iter().map(|name| name.trim().to_lowercase()).collect();
        self.games = lower(games);
        self.not_games = lower(not_games);
    }
}

/// Owners write `factorio` and `eldenring` as well as `eldenring.exe`.
fn has(names: &BTreeSet<String>, name: &str) -> bool {
    let name = name.to_lowercase();
    names.contains(&name) || name.strip_suffix(".exe").is_some_and(|stem| names.contains(stem))
}

/// What one scan says.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    pub(crate) game: Option<String>,
    pub(crate) names: BTreeMap<u32, String>,
    pub(crate) processor_others_permille: Result<u32, String>,
}

/// The processes as they were last seen.
pub(crate) struct Processes {
    system: System,
    scans: u64,
}

impl Processes {
    pub(crate) fn new() -> Self {
        let cpu = CpuRefreshKind::nothing().with_cpu_usage();
        Self { system: System::new_with_specifics(RefreshKind::nothing().with_cpu(cpu)), scans: 0 }
    }

    /// Looks at all processes.
    pub(crate) fn scan(&mut self, own: &BTreeSet<u32>, lists: &Lists) -> Scan {
        let what = ProcessRefreshKind::nothing().with_cpu().with_exe(UpdateKind::OnlyIfNotSet);
        self.system.refresh_cpu_usage();
        self.system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        self.scans += 1;
        let mut names = BTreeMap::new();
        let (mut game, mut own_percent) = (None, 0.0);
        for (pid, process) in self.system.processes().iter().take(PROCESSES_MAX) {
            let pid = pid.as_u32();
            let name = shown(&process.name().to_string_lossy());
            if own.contains(&pid) {
                own_percent += process.cpu_usage();
            } else if !has(&lists.not_games, &name) {
                let path = process.exe().map(|path| path.to_string_lossy().replace('\\', "/").to_lowercase());
                let installed = path.is_some_and(|path| installed_to_play(&path));
                if installed || has(&lists.games, &name) {
                    game = Some(name.clone());
                }
            }
            names.insert(pid, name);
        }
        let processors = self.system.cpus().len().max(1) as f32;
        let others = (self.system.global_cpu_usage() - own_percent / processors).clamp(0.0, 100.0);
        let processor_others_permille = if self.scans < 2 {
            Err("measured from one reading to the next; this is the first".to_owned())
        } else {
            Ok((others * 10.0) as u32)
        };
        Scan { game, names, processor_others_permille }
    }

    /// The name of a process that was seen.
    #[cfg(windows)]
    pub(crate) fn name(&self, pid: u32) -> String {
        let process = self.system.process(sysinfo::Pid::from_u32(pid));
        process.map(|process| shown(&process.name().to_string_lossy())).unwrap_or_default()
    }
}
