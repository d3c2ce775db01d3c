//! The processes of this machine: games, servers of desktops, displays, use of GPUs and processors.
//!
//! Each process is looked at when it is new, a few times while it is young (it becomes another by exec), and then once
//! a minute. Between looks nothing is read of it but its counters on AMD's and Intel's GPUs, and, while a worker of ours
//! lives, which of its open files are GPUs: a program may open one long after it was started.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::displays::Hints;
use super::games::{game, program, variables};
use super::processor::Processor;
use super::remote::{Server, server, visitors};
use super::{bounded, locked};
use crate::OwnPids;
use crate::gpu::fdinfo::{self, Usage, Used};
use crate::gpu::sysfs::text;
use crate::gpu::works;

/// A process is young for so long and looked at in each scan.
const YOUNG: Duration = Duration::from_secs(12);
/// Older ones are looked at so often.
const AGAIN: Duration = Duration::from_secs(60);
/// While a worker lives, their open files are listed so often.
const LISTED: Duration = Duration::from_secs(3);
/// More processes than a machine of an owner has.
const PROCESSES_MAX: usize = 100_000;
const COMMAND_BYTES_MAX: u64 = 8 << 10;
const ENVIRONMENT_BYTES_MAX: u64 = 128 << 10;

/// The owner's names.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    games: BTreeSet<String>,
    not_games: BTreeSet<String>,
    /// Rises with each change, so that all processes are looked at again.
    version: u64,
}

impl Lists {
    pub(crate) fn new(games: &[String], not_games: &[String]) -> Self {
        Self::default().replaced(games, not_games)
    }

    pub(crate) fn replaced(&self, games: &[String], not_games: &[String]) -> Self {
        let lower = |names: &[String]| names.iter().map(|name| name.trim().to_lowercase()).collect();
        Self { games: lower(games), not_games: lower(not_games), version: self.version + 1 }
    }

    pub(crate) fn named(&self, name: &str) -> bool {
        has(&self.games, name)
    }

    pub(crate) fn excluded(&self, name: &str) -> bool {
        has(&self.not_games, name)
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
    pub(crate) visitors: Vec<String>,
    pub(crate) gpu_use: Result<Used, String>,
    pub(crate) processor_others_permille: Result<u32, String>,
}

/// Every process that was seen.
pub(crate) struct Processes {
    root: PathBuf,
    own_pids: OwnPids,
    lists: Arc<Mutex<Arc<Lists>>>,
    lists_version: u64,
    hints: Arc<Mutex<Hints>>,
    known: BTreeMap<u32, Process>,
    usage: Usage,
    processor: Processor,
    /// Whether there is a GPU whose programs are told here, and when that was looked up.
    gpus: Option<(bool, Instant)>,
}

struct Process {
    first: Instant,
    looked: Instant,
    name: String,
    game: Option<String>,
    server: Option<Server>,
    gpu_files: Vec<u32>,
    /// When its open files were last listed.
    listed: Instant,
    /// We may list them.
    mine: bool,
    /// Of another person than the one who runs us.
    others: bool,
}

impl Processes {
    pub(crate) fn new(
        root: &Path,
        own_pids: OwnPids,
        lists: Arc<Mutex<Arc<Lists>>>,
        hints: Arc<Mutex<Hints>>,
    ) -> Self {
        Self {
            root: root.to_owned(),
            own_pids,
            lists,
            lists_version: 0,
            hints,
            known: BTreeMap::new(),
            usage: Usage::default(),
            processor: Processor::default(),
            gpus: None,
        }
    }

    /// Looks at what is new and sums up.
    pub(crate) fn scan(&mut self) -> Result<Scan, String> {
        let own = (self.own_pids)();
        let processor_others_permille = self.processor.others_permille(&self.root, &own);
        let entries = fs::read_dir(self.root.join("proc"))
            .map_err(|error| format!("the system does not show its processes (/proc): {error}"))?;
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let present: BTreeSet<u32> = numbers.take(PROCESSES_MAX).collect();
        self.known.retain(|pid, _| present.contains(pid));
        let now = Instant::now();
        let on_gpus = self.on_gpus(now);
        self.look(&present, now, on_gpus);
        if on_gpus && works(&own) {
            self.list(now, &own);
        }

        let others = self.known.iter().filter(|(pid, _)| !own.contains(pid));
        let game = others.filter_map(|(_, process)| process.game.as_ref()).max_by_key(|name| {
            // A launcher lives beside its game; Windows programs are the game more often than their wrappers.
            name.to_lowercase().ends_with(".exe")
        });
        let displays = ["Xorg", "X", "Xwayland", "Xvfb", "Xephyr", "Xvnc", "Xtigervnc"];
        locked(&self.hints).x_server =
            self.known.values().any(|process| displays.contains(&process.name.as_str()));
        let servers = self.known.values().filter_map(|process| process.server).collect();
        Ok(Scan {
            game: game.cloned(),
            visitors: visitors(&self.root, &servers),
            gpu_use: self.gpu_use(now, on_gpus, &own),
            processor_others_permille,
        })
    }

    fn look(&mut self, present: &BTreeSet<u32>, now: Instant, on_gpus: bool) {
        let lists = Arc::clone(&locked(&self.lists));
        if lists.version != self.lists_version {
            self.lists_version = lists.version;
            self.known.clear();
        }
        let me = rustix::process::geteuid().as_raw();
        for pid in present {
            let first = match self.known.get(pid) {
                Some(known) if now.duration_since(known.first) < YOUNG => known.first,
                // The number spreads the looks over the minute.
                Some(known)
                    if now.duration_since(known.looked)
                        > AGAIN + Duration::from_secs(u64::from(pid % 16)) =>
                {
                    known.first
                }
                Some(_) => continue,
                None => now,
            };
            let process = look_at(&self.root, *pid, me, (first, now), &lists, &self.hints, on_gpus);
            self.known.insert(*pid, process);
        }
    }

    /// Lists the open files of others again.
    fn list(&mut self, now: Instant, own: &BTreeSet<u32>) {
        let proc = self.root.join("proc");
        for (pid, process) in &mut self.known {
            // The number spreads the lists over the scans.
            let every = LISTED + Duration::from_millis(u64::from(pid % 16) * 100);
            if process.mine && !own.contains(pid) && now.duration_since(process.listed) > every {
                process.listed = now;
                process.gpu_files = fdinfo::gpu_files(&proc.join(pid.to_string()));
            }
        }
    }

    fn on_gpus(&mut self, now: Instant) -> bool {
        if let Some((on, at)) = self.gpus
            && now.duration_since(at) < AGAIN
        {
            return on;
        }
        let cards = fs::read_dir(self.root.join("sys/class/drm")).into_iter().flatten().flatten().take(256);
        let on = cards
            .map(|card| card.path().join("device/vendor"))
            .any(|vendor| text(&vendor).is_some_and(|vendor| vendor == "0x1002" || vendor == "0x8086"));
        self.gpus = Some((on, now));
        on
    }

    fn gpu_use(&mut self, now: Instant, on_gpus: bool, own: &BTreeSet<u32>) -> Result<Used, String> {
        if !on_gpus {
            return Ok(Used::default());
        }
        let me = rustix::process::geteuid().as_raw();
        let proc = self.root.join("proc");
        let on = self.known.iter().filter(|(_, process)| !process.gpu_files.is_empty());
        let programs = on.map(|(pid, process)| {
            let clients = fdinfo::clients(&proc.join(pid.to_string()), &process.gpu_files);
            (*pid, process.name.clone(), clients)
        });
        let used = self.usage.update(now, programs.collect(), own);
        if me != 0 && self.known.values().any(|process| process.others) {
            return Err(
                "other users' programs run, and only root may see whether they use this GPU".to_owned()
            );
        }
        Ok(used)
    }
}

fn look_at(
    root: &Path,
    pid: u32,
    me: u32,
    (first, looked): (Instant, Instant),
    lists: &Lists,
    hints: &Mutex<Hints>,
    on_gpus: bool,
) -> Process {
    let place = root.join("proc").join(pid.to_string());
    let uid = fs::metadata(&place).map_or(0, |metadata| metadata.uid());
    let mut process = Process {
        first,
        looked,
        name: String::new(),
        game: None,
        server: None,
        gpu_files: Vec::new(),
        listed: looked,
        mine: false,
        // Services have numbers below 1000, programs in containers above 60000.
        others: uid != me && (1000..60_000).contains(&uid),
    };
    let command = bounded(&place.join("cmdline"), COMMAND_BYTES_MAX);
    if command.is_empty() {
        // The kernel's own.
        process.others = false;
        return process;
    }
    let arguments: Vec<String> =
        command.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    let comm = text(&place.join("comm")).unwrap_or_default();
    process.name = program(&comm, arguments.first().map_or("", String::as_str));
    let mine = uid == me || me == 0;
    process.mine = mine;
    let environment = if mine { bounded(&place.join("environ"), ENVIRONMENT_BYTES_MAX) } else { Vec::new() };
    process.game = game(&process.name, &arguments, &environment, lists);
    process.server = server(&process.name, &arguments);
    if mine {
        let runtime_dir = variables(&environment).find(|(name, _)| *name == "XDG_RUNTIME_DIR");
        let mut hints = locked(hints);
        for (name, value) in variables(&environment) {
            hints.learn(name, value, runtime_dir.map(|(_, value)| value));
        }
    }
    if mine && on_gpus {
        process.gpu_files = fdinfo::gpu_files(&place);
    }
    process
}

/// The name of a process; empty if there is none of this number, or it is the kernel's own.
pub(crate) fn program_name(root: &Path, pid: u32) -> String {
    let place = root.join("proc").join(pid.to_string());
    let command = bounded(&place.join("cmdline"), COMMAND_BYTES_MAX);
    if command.is_empty() {
        return String::new();
    }
    let first = command.split(|byte| *byte == 0).next().unwrap_or_default();
    program(&text(&place.join("comm")).unwrap_or_default(), &String::from_utf8_lossy(first))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::{Hints, Lists, Processes, locked};

    #[test]
    fn a_gpu_that_an_old_program_opens_is_seen_within_seconds_while_a_worker_lives() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/class/drm/renderD128/device/vendor", "0x1002\n");
        write("proc/100/cmdline", "/opt/ollama\0serve\0");
        write("proc/100/comm", "ollama\n");
        let own = Arc::new(Mutex::new(BTreeSet::from([1_u32])));
        let told = Arc::clone(&own);
        let lists = Arc::new(Mutex::new(Arc::new(Lists::new(&[], &[]))));
        let hints = Arc::new(Mutex::new(Hints::default()));
        let own_pids = Arc::new(move || locked(&told).clone());
        let mut processes = Processes::new(root.path(), own_pids, lists, hints);
        let programs = |processes: &mut Processes| {
            let used = processes.scan().unwrap().gpu_use.unwrap();
            used.programs.into_values().flatten().map(|program| program.name).collect::<Vec<String>>()
        };
        assert!(programs(&mut processes).is_empty());

        // It was started long ago, and looked at a while ago.
        let process = processes.known.get_mut(&100).unwrap();
        process.first = process.first.checked_sub(Duration::from_secs(30)).unwrap();
        process.listed = process.listed.checked_sub(Duration::from_secs(10)).unwrap();
        fs::create_dir_all(root.path().join("proc/100/fd")).unwrap();
        symlink("/dev/dri/renderD128", root.path().join("proc/100/fd/5")).unwrap();
        write(
            "proc/100/fdinfo/5",
            "drm-driver:\tamdgpu\ndrm-client-id:\t1\ndrm-pdev:\t0000:0b:00.0\ndrm-memory-vram:\t6 GiB\n",
        );
        assert!(programs(&mut processes).is_empty(), "while we do not work, a look a minute is enough");
        locked(&own).insert(2);
        assert_eq!(programs(&mut processes), ["ollama"]);
        fs::remove_file(root.path().join("proc/100/fd/5")).unwrap();
        assert_eq!(programs(&mut processes), ["ollama"], "its files were listed just now");
    }
}
