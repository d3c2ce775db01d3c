//! NVIDIA's GPUs by their management library, loaded at run time.
//!
//! Who keeps the library open keeps a laptop's GPU awake. Where a GPU may sleep, the library is therefore closed while
//! nobody uses the GPU, and opened again only when the GPU is awake on somebody else's account. While a worker of ours
//! lives it stays open: whoever else begins to use a GPU must be seen at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use skein_policy::readings::{Gpu, GpuProgram, Reading};

use super::{Share, counts, works};
use crate::{OwnPids, shown};

/// A driver is installed now and then, but not every few seconds.
const RETRY: Duration = Duration::from_secs(60);

/// How long the library stays closed so that an unused GPU can fall asleep.
const REST: Duration = Duration::from_secs(20);

/// The driver samples programs' shares once in a second or more often. Between two samples the last one counts: a
/// reading that finds no new one did not see that nobody works.
const SAMPLE: Duration = Duration::from_millis(1500);

/// NVIDIA's library and what it said before.
pub(crate) struct Library {
    path: Option<PathBuf>,
    own_pids: OwnPids,
    open: Option<Nvml>,
    /// Why it is not open, and since when.
    failed: Option<(String, Instant)>,
    /// Since when it is closed so that the GPU can sleep.
    resting: Option<Instant>,
    last: Vec<Gpu>,
    /// By GPU: programs' shares of its time.
    sampled: BTreeMap<String, Sampled>,
}

/// Programs' shares of one GPU's time as they were last sampled.
#[derive(Default)]
struct Sampled {
    /// The newest sample that was seen, in the driver's microseconds.
    newest_us: u64,
    /// By process, in per cent. Who is not here did nothing.
    shares: BTreeMap<u32, u32>,
    /// When there were samples.
    at: Option<Instant>,
}

/// Whether the system lets NVIDIA's GPUs sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sleep {
    /// It may sleep when nobody uses it.
    pub(crate) allowed: bool,
    /// All of them do.
    pub(crate) asleep: bool,
}

impl Library {
    pub(crate) fn new(path: Option<PathBuf>, own_pids: OwnPids) -> Self {
        Self {
            path,
            own_pids,
            open: None,
            failed: None,
            resting: None,
            last: Vec::new(),
            sampled: BTreeMap::new(),
        }
    }

    /// Every GPU that the library knows, or why there is no library.
    pub(crate) fn read(&mut self, sleep: Sleep, name: &dyn Fn(u32) -> String) -> Result<Vec<Gpu>, String> {
        if sleep.asleep {
            self.open = None;
            self.resting = None;
            // The PCI bus knows their places.
            return Ok(Vec::new());
        }
        let own = (self.own_pids)();
        let works = works(&own);
        if !works && self.resting.is_some_and(|since| since.elapsed() < REST) {
            return Ok(self.last.clone());
        }
        self.resting = None;
        self.opened()?;
        let Some(nvml) = &self.open else { return Err("NVIDIA's management library is closed".to_owned()) };
        let gpus = match all(nvml, &own, &mut self.sampled, name) {
            Ok(gpus) => gpus,
            Err(error) => {
                // A driver that was replaced or a GPU that was lost: open it anew later.
                let why = format!("NVIDIA's management library says: {error}");
                self.open = None;
                self.failed = Some((why.clone(), Instant::now()));
                return Err(why);
            }
        };
        if sleep.allowed && !works && gpus.iter().all(|(_, programs)| *programs == 0) {
            self.open = None;
            self.resting = Some(Instant::now());
        }
        self.last = gpus.into_iter().map(|(gpu, _)| gpu).collect();
        Ok(self.last.clone())
    }

    fn opened(&mut self) -> Result<(), String> {
        if self.open.is_some() {
            return Ok(());
        }
        if let Some((why, at)) = &self.failed
            && at.elapsed() < RETRY
        {
            return Err(why.clone());
        }
        let opened = match &self.path {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            None => usual(),
        };
        match opened {
            Ok(nvml) => {
                self.open = Some(nvml);
                self.failed = None;
                Ok(())
            }
            Err(error) => {
                let why = cannot_open(&error, self.path.as_deref());
                self.failed = Some((why.clone(), Instant::now()));
                Err(why)
            }
        }
    }
}

/// The library in its usual places.
fn usual() -> Result<Nvml, NvmlError> {
    let first = Nvml::init();
    if cfg!(target_os = "linux") && matches!(first, Err(NvmlError::LibloadingError(_))) {
        // Windows' subsystem for Linux keeps it where the loader does not look.
        let there = Path::new("/usr/lib/wsl/lib/libnvidia-ml.so.1");
        if there.exists() {
            return Nvml::builder().lib_path(there.as_os_str()).init();
        }
    }
    first
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library has thirty errors, of which two mean something to an owner"
)]
fn cannot_open(error: &NvmlError, path: Option<&Path>) -> String {
    let usual = if cfg!(windows) { "nvml.dll" } else { "libnvidia-ml.so.1" };
    let name = path.map_or_else(|| usual.to_owned(), |path| path.display().to_string());
    match error {
        NvmlError::LibloadingError(_) => format!("no NVIDIA management library ({name})"),
        NvmlError::DriverNotLoaded => "NVIDIA's driver is installed but not loaded".to_owned(),
        NvmlError::LibRmVersionMismatch => {
            "NVIDIA's driver was updated and needs a restart of the machine".to_owned()
        }
        other => format!("NVIDIA's management library ({name}) does not start: {other}"),
    }
}

/// Every GPU, and how many programs are on it, ours included.
fn all(
    nvml: &Nvml,
    own: &BTreeSet<u32>,
    sampled: &mut BTreeMap<String, Sampled>,
    name: &dyn Fn(u32) -> String,
) -> Result<Vec<(Gpu, usize)>, NvmlError> {
    let mut gpus = Vec::new();
    for index in 0..nvml.device_count()?.min(64) {
        let device = match nvml.device_by_index(index) {
            Ok(device) => device,
            // One GPU that fell off the bus does not hide the others.
            Err(error) => {
                let why = format!("NVIDIA's driver says: {error}");
                let id = format!("nvidia {index}");
                gpus.push((super::unknown(id, "NVIDIA GPU".to_owned(), &why), 0));
                continue;
            }
        };
        let id = device.pci_info().map_or_else(|_| format!("nvidia {index}"), |pci| address(&pci.bus_id));
        let memory = device.memory_info();
        let sampled = sampled.entry(id.clone()).or_default();
        let (others, programs) = programs(&device, own, sampled, name);
        let gpu = Gpu {
            name: device.name().map_or_else(|_| "NVIDIA GPU".to_owned(), |name| shown(&name)),
            busy_percent: said(device.utilization_rates().map(|rates| narrow(rates.gpu.min(100)))),
            temperature_c: said(device.temperature(TemperatureSensor::Gpu).map(narrow)),
            power_mw: said(device.power_usage().map(u64::from)),
            power_limit_mw: said(device.enforced_power_limit().map(u64::from)),
            memory_used_bytes: said(memory.as_ref().map(|memory| memory.used).map_err(copied)),
            memory_total_bytes: said(memory.as_ref().map(|memory| memory.total).map_err(copied)),
            fan_percent: said(device.fan_speed(0).map(|percent| narrow(percent.min(100)))),
            others,
            id,
        };
        gpus.push((gpu, programs));
    }
    Ok(gpus)
}

/// The programs that count, and the number of all.
fn programs(
    device: &nvml_wrapper::Device<'_>,
    own: &BTreeSet<u32>,
    sampled: &mut Sampled,
    name: &dyn Fn(u32) -> String,
) -> (Reading<Vec<GpuProgram>>, usize) {
    let (compute, graphics) = match (device.running_compute_processes(), device.running_graphics_processes())
    {
        (Ok(compute), Ok(graphics)) => (compute, graphics),
        (Ok(compute), Err(_)) => (compute, Vec::new()),
        (Err(_), Ok(graphics)) => (Vec::new(), graphics),
        (Err(error), Err(_)) => return (said(Err(error)), 0),
    };
    let busy = busy(device, sampled);
    let mut shares: BTreeMap<u32, Share> = BTreeMap::new();
    for (list, computes) in [(&compute, true), (&graphics, false)] {
        for process in list.iter().take(10_000) {
            let share = shares.entry(process.pid).or_default();
            // Windows lists every program as both.
            share.computes = computes;
            if let UsedGpuMemory::Used(bytes) = process.used_gpu_memory {
                share.memory_bytes = Some(bytes);
            }
            share.busy_percent = busy.map(|busy| busy.get(&process.pid).copied().unwrap_or(0));
        }
    }
    let all = shares.len();
    let untold =
        |share: &Share| !share.computes && share.busy_percent.is_none() && share.memory_bytes.is_none();
    let (mut others, mut silent) = (Vec::new(), 0);
    for (pid, share) in shares {
        if own.contains(&pid) {
            continue;
        }
        silent += usize::from(untold(&share));
        let name = name(pid);
        if counts(&name, &share) {
            let busy_percent = share.busy_percent.map(narrow);
            others.push(GpuProgram { pid, name, memory_bytes: share.memory_bytes, busy_percent });
        }
    }
    if others.is_empty() && silent > 0 {
        let why = format!("{silent} programs draw on it, and the driver does not tell how much");
        return (Reading::Missing(why), all);
    }
    (Reading::Known(others), all)
}

/// Each program's share of the GPU's time, if the driver tells them: the mean over what was sampled since the last
/// reading.
fn busy<'a>(device: &nvml_wrapper::Device<'_>, sampled: &'a mut Sampled) -> Option<&'a BTreeMap<u32, u32>> {
    let samples = match device.process_utilization_stats(sampled.newest_us) {
        Ok(samples) => samples,
        // The driver tells of those who worked only.
        Err(NvmlError::NotFound) => Vec::new(),
        Err(_) => return None,
    };
    let mut sums: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for sample in samples.iter().take(10_000).filter(|sample| sample.sm_util <= 100) {
        sampled.newest_us = sample.timestamp.max(sampled.newest_us);
        let (sum, count) = sums.entry(sample.pid).or_default();
        (*sum, *count) = (*sum + sample.sm_util, *count + 1);
    }
    if !sums.is_empty() {
        sampled.at = Some(Instant::now());
        sampled.shares = sums.into_iter().map(|(pid, (sum, count))| (pid, sum / count.max(1))).collect();
    } else if sampled.at.is_none_or(|at| at.elapsed() > SAMPLE) {
        sampled.shares.clear();
    }
    Some(&sampled.shares)
}

/// `00000000:01:00.0` as the system writes it: `0000:01:00.0`.
fn address(bus_id: &str) -> String {
    let id = shown(bus_id).to_lowercase();
    match id.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 => format!("{}:{rest}", domain.get(4..).unwrap_or(domain)),
        Some(_) | None => id,
    }
}

fn said<T>(result: Result<T, NvmlError>) -> Reading<T> {
    match result {
        Ok(value) => Reading::Known(value),
        Err(NvmlError::NotSupported) => Reading::Missing("this GPU does not tell".to_owned()),
        Err(error) => Reading::Missing(format!("NVIDIA's driver says: {error}")),
    }
}

/// The same error again, as far as it matters: the library's errors cannot be cloned.
fn copied(error: &NvmlError) -> NvmlError {
    if matches!(error, NvmlError::NotSupported) { NvmlError::NotSupported } else { NvmlError::Unknown }
}

fn narrow<T: TryFrom<u32> + Default>(value: u32) -> T {
    T::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::{Library, Sleep, address};

    #[test]
    fn addresses_are_the_systems() {
        assert_eq!(address("00000000:0B:00.0"), "0000:0b:00.0");
        assert_eq!(address("0000:01:00.0"), "0000:01:00.0");
        assert_eq!(address("é0000000:01:00.0").len(), "é0000000:01:00.0".len());
    }

    #[test]
    fn a_machine_without_the_library_says_so() {
        let path = PathBuf::from("/nonexistent/libnvidia-ml.so.1");
        let mut library = Library::new(Some(path), Arc::new(BTreeSet::new));
        let why = library.read(Sleep::default(), &|_| String::new()).unwrap_err();
        assert_eq!(why, "no NVIDIA management library (/nonexistent/libnvidia-ml.so.1)");
        let sleep = Sleep { allowed: true, asleep: true };
        assert_eq!(library.read(sleep, &|_| String::new()), Ok(Vec::new()), "nobody wakes it");
    }
}
