//! How programs use AMD's and Intel's GPUs, from the kernel's `/proc/PID/fdinfo` (drm-usage-stats).
//!
//! A user may look at own programs only; root at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use skein_policy::readings::GpuProgram;

use super::{Share, counts};

/// More open files than a program that draws has.
const FILES_MAX: usize = 65_536;
/// More files on GPUs than one program keeps open.
const GPU_FILES_MAX: usize = 256;
/// More engines than a GPU has.
const ENGINES_MAX: usize = 32;

/// What one open file says of its client: a context of one program on one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Client {
    /// The GPU's PCI address.
    pub(crate) gpu: String,
    /// Tells files of the same context.
    pub(crate) id: u64,
    /// Busy nanoseconds of each engine since the context began.
    pub(crate) engines_ns: BTreeMap<String, u64>,
    /// Busy and all cycles of each engine, where the driver counts those.
    pub(crate) cycles: BTreeMap<String, (u64, u64)>,
    /// Bytes of the GPU's own memory.
    pub(crate) memory_bytes: u64,
}

/// Which of a process's open files are GPUs.
pub(crate) fn gpu_files(process: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(process.join("fd")) else { return Vec::new() };
    let on_gpu = entries
        .flatten()
        .take(FILES_MAX)
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.starts_with("/dev/dri")));
    on_gpu.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(GPU_FILES_MAX).collect()
}

/// Reads the clients of these files, each once.
pub(crate) fn clients(process: &Path, files: &[u32]) -> Vec<Client> {
    let mut seen = BTreeSet::new();
    let mut clients = Vec::new();
    for file in files {
        let text = crate::platform::bounded(&process.join("fdinfo").join(file.to_string()), 16 << 10);
        if let Some(client) = parsed(&String::from_utf8_lossy(&text))
            && seen.insert((client.gpu.clone(), client.id))
        {
            clients.push(client);
        }
    }
    clients
}

fn parsed(text: &str) -> Option<Client> {
    let mut client = Client::default();
    let mut total_cycles: BTreeMap<String, u64> = BTreeMap::new();
    let (mut resident, mut total) = (0, 0);
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if client.engines_ns.len() + client.cycles.len() + total_cycles.len() > ENGINES_MAX {
            break;
        }
        if key == "drm-pdev" {
            client.gpu = value.chars().take(32).collect();
        } else if key == "drm-client-id" {
            client.id = value.parse().ok()?;
        } else if let Some(engine) = key.strip_prefix("drm-engine-") {
            if let Some(ns) = value.strip_suffix("ns").and_then(|ns| ns.trim().parse().ok()) {
                client.engines_ns.insert(engine.to_owned(), ns);
            }
        } else if let Some(engine) = key.strip_prefix("drm-total-cycles-") {
            total_cycles.insert(engine.to_owned(), value.parse().unwrap_or(0));
        } else if let Some(engine) = key.strip_prefix("drm-cycles-") {
            client.cycles.insert(engine.to_owned(), (value.parse().unwrap_or(0), 0));
        } else if let Some(region) = key.strip_prefix("drm-resident-") {
            resident += own_memory(region, value);
        } else if let Some(region) =
            key.strip_prefix("drm-memory-").or_else(|| key.strip_prefix("drm-total-"))
        {
            // amdgpu has both keys with the same value; one of them is enough.
            total = own_memory(region, value).max(total);
        }
    }
    for (engine, (_, all)) in &mut client.cycles {
        *all = total_cycles.get(engine).copied().unwrap_or(0);
    }
    client.memory_bytes = if resident > 0 { resident } else { total };
    (!client.gpu.is_empty()).then_some(client)
}

/// Bytes, if the region is the GPU's own memory: `vram`, `vram0`, `local0`.
fn own_memory(region: &str, value: &str) -> u64 {
    if !(region.starts_with("vram") || region.starts_with("local")) {
        return 0;
    }
    let mut words = value.split_whitespace();
    let number: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let unit = match words.next() {
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some("GiB") => 1 << 30,
        Some(_) | None => 1,
    };
    number.saturating_mul(unit)
}

/// Remembers each client from one reading to the next: shares are differences.
#[derive(Default)]
pub(crate) struct Usage {
    before: BTreeMap<(u32, String, u64), Client>,
    before_at: Option<Instant>,
}

/// What all programs that may be looked at do on the GPUs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    /// By GPU: programs that count.
    pub(crate) programs: BTreeMap<String, Vec<GpuProgram>>,
    /// By GPU: the busiest engine's share of all programs together, in per cent.
    pub(crate) busy_percent: BTreeMap<String, u32>,
}

impl Usage {
    /// From the clients of all programs at this moment; `own` programs are not told, but keep the GPU busy.
    pub(crate) fn update(
        &mut self,
        now: Instant,
        programs: Vec<(u32, String, Vec<Client>)>,
        own: &BTreeSet<u32>,
    ) -> Used {
        let elapsed_ns = self.before_at.map(|at| now.saturating_duration_since(at).as_nanos().max(1));
        let mut used = Used::default();
        let mut busy: BTreeMap<String, BTreeMap<String, u128>> = BTreeMap::new();
        let mut after = BTreeMap::new();
        for (pid, name, clients) in programs {
            let mut shares: BTreeMap<String, (BTreeMap<String, u128>, u64)> = BTreeMap::new();
            for client in clients {
                let key = (pid, client.gpu.clone(), client.id);
                let (engines, memory) = shares.entry(client.gpu.clone()).or_default();
                *memory = memory.saturating_add(client.memory_bytes);
                if let (Some(elapsed), Some(before)) = (elapsed_ns, self.before.get(&key)) {
                    for (engine, permille) in busy_permille(before, &client, elapsed) {
                        *engines.entry(engine.clone()).or_default() += permille;
                        *busy.entry(client.gpu.clone()).or_default().entry(engine).or_default() += permille;
                    }
                }
                after.insert(key, client);
            }
            for (gpu, (engines, memory)) in shares {
                // Of a context that was not there before nothing is known, nor of one without engines: what ROCm
                // computes is not told here.
                let percent = engines.values().max().map(|permille| percent(*permille));
                // A context that only ever ran on compute engines would still show as drawing: the kernel does not
                // tell them apart, so its share and its memory decide.
                let share = Share { computes: false, busy_percent: percent, memory_bytes: Some(memory) };
                if !own.contains(&pid) && counts(&name, &share) {
                    let program = GpuProgram {
                        pid,
                        name: name.clone(),
                        memory_bytes: Some(memory),
                        busy_percent: percent.map(|percent| u8::try_from(percent).unwrap_or(100)),
                    };
                    used.programs.entry(gpu).or_default().push(program);
                }
            }
        }
        for (gpu, engines) in busy {
            used.busy_percent.insert(gpu, engines.values().max().map_or(0, |permille| percent(*permille)));
        }
        self.before = after;
        self.before_at = Some(now);
        used
    }
}

fn percent(permille: u128) -> u32 {
    u32::try_from(permille / 10).unwrap_or(100).min(100)
}

fn busy_permille(before: &Client, after: &Client, elapsed_ns: u128) -> Vec<(String, u128)> {
    let mut shares = Vec::new();
    for (engine, ns) in &after.engines_ns {
        let spent = ns.saturating_sub(*before.engines_ns.get(engine).unwrap_or(&0));
        shares.push((engine.clone(), (u128::from(spent) * 1000 / elapsed_ns).min(1000)));
    }
    for (engine, (busy, all)) in &after.cycles {
        let (busy_before, all_before) = before.cycles.get(engine).copied().unwrap_or((0, 0));
        let all = u128::from(all.saturating_sub(all_before));
        if let Some(share) = (u128::from(busy.saturating_sub(busy_before)) * 1000).checked_div(all) {
            shares.push((engine.clone(), share.min(1000)));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use super::{Usage, parsed};

    fn amd(gfx_ns: u64, vram_kib: u64) -> String {
        format!(
            "pos:\t0\nflags:\t02400002\ndrm-driver:\tamdgpu\ndrm-client-id:\t37\ndrm-pdev:\t0000:0b:00.0\n\
             drm-memory-vram:\t{vram_kib} KiB\ndrm-memory-gtt: \t1024 KiB\ndrm-engine-gfx:\t{gfx_ns} ns\n\
             drm-engine-compute:\t0 ns\ndrm-engine-capacity-gfx:\t1\n"
        )
    }

    #[test]
    fn a_game_on_amd_is_seen_by_its_share_and_own_workers_are_not_told() {
        let mut usage = Usage::default();
        let began = Instant::now();
        let look = |ns| vec![parsed(&amd(ns, 200 << 10)).unwrap()];
        let all = |ns| vec![(7, "vkcube".to_owned(), look(ns)), (8, "skein".to_owned(), look(ns))];
        let own = BTreeSet::from([8]);
        assert!(usage.update(began, all(1_000_000_000), &own).programs.is_empty(), "no difference yet");
        let used = usage.update(began + Duration::from_secs(5), all(3_500_000_000), &own);
        let programs = &used.programs["0000:0b:00.0"];
        assert_eq!(programs.len(), 1, "{programs:?}");
        assert_eq!((programs[0].pid, programs[0].memory_bytes), (7, Some(200 << 20)));
        assert_eq!(programs[0].busy_percent, Some(50));
        assert_eq!(used.busy_percent["0000:0b:00.0"], 100, "own and others together");
        let used = usage.update(began + Duration::from_secs(10), all(3_600_000_000), &own);
        assert!(used.programs.is_empty(), "2 % is a window");
    }

    #[test]
    fn xe_counts_cycles_and_i915_names_its_memory_local() {
        let xe = |busy, all| {
            parsed(&format!(
                "drm-driver:\txe\ndrm-client-id:\t5\ndrm-pdev:\t0000:03:00.0\ndrm-resident-vram0:\t2 GiB\n\
                 drm-cycles-rcs:\t{busy}\ndrm-total-cycles-rcs:\t{all}\n"
            ))
            .unwrap()
        };
        let mut usage = Usage::default();
        let now = Instant::now();
        let one = |client| vec![(9, "game".to_owned(), vec![client])];
        usage.update(now, one(xe(100, 1000)), &BTreeSet::new());
        let used = usage.update(now + Duration::from_secs(1), one(xe(600, 2000)), &BTreeSet::new());
        assert_eq!(used.busy_percent["0000:03:00.0"], 50);
        let i915 = parsed(
            "drm-pdev:\t0000:00:02.0\ndrm-client-id:\t1\ndrm-resident-local0:\t64 MiB\ndrm-resident-system0:\t1 MiB\n",
        );
        assert_eq!(i915.unwrap().memory_bytes, 64 << 20);
        assert!(parsed("pos:\t0\nflags:\t02\n").is_none(), "not a GPU's file");
    }
}
