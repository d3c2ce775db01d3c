//! What is known of a device before anything works on it: which of the sensors' GPUs it is, how much memory may be
//! offered, at which station it works, and when a failed look is tried again.
//!
//! But for [`choose`], which tries them, pure functions: the stations decide with them.

use std::time::{Duration, Instant};

use anyhow::Result;
use skein_compute::device::DeviceChoice;
use skein_compute::probe::{self, Adapter, AdapterKind, Chosen, Surveying};
use skein_policy::Allowance;
use skein_policy::readings::{Gpu, Readings};

use super::history::gpus;
use super::station::Bench;
use super::updating::this_binary;
use crate::limits::{DEVICE_RETRY_MAX, DEVICE_RETRY_MIN, PROBE_TIMEOUT, UNKNOWN_CARD_BYTES};

/// The devices to work on, and the cards that do not work.
pub(crate) struct Surveyed {
    pub(super) chosen: Vec<Chosen>,
    pub(super) broken: Vec<String>,
}

/// The devices to work on and why, after every adapter was tried in a process of its own.
///
/// # Errors
/// When a requested device does not exist or does not work, or `surveying` was barred.
pub(super) fn choose(requested: &[String], surveying: &Surveying) -> Result<Surveyed> {
    if !requested.is_empty() && requested.iter().all(|name| name == "cpu") {
        let reason = "working on the CPU, as the owner wishes".to_owned();
        let cpu = Chosen { device: DeviceChoice::Cpu, reason, adapter: None };
        return Ok(Surveyed { chosen: vec![cpu; requested.len()], broken: Vec::new() });
    }
    let executable = this_binary()?;
    let survey = probe::survey_unless_barred(&executable, PROBE_TIMEOUT, surveying)?;
    let chosen = probe::choose_all(&survey, requested)?;
    let broken = if requested.is_empty() { probe::broken_cards(&survey) } else { Vec::new() };
    Ok(Surveyed { chosen, broken })
}

/// What is wanted at a station. `by_processor`: its own device is the processor; `look_first`: which devices there are
/// is still to be found out.
pub(super) fn wanted(allowed: Allowance, first: bool, by_processor: bool, look_first: bool) -> Option<Bench> {
    match allowed {
        Allowance::Nothing => None,
        Allowance::All => Some(Bench::Own),
        // A look costs a GPU next to nothing, and only then are rules about one card no rules about all.
        Allowance::CpuOnly if by_processor || look_first => Some(Bench::Own),
        // One stands in for all.
        Allowance::CpuOnly => first.then_some(Bench::Processor),
    }
}

/// The sensors' GPU that a chosen device is: by its address, or by its name if exactly one has it.
pub(super) fn sensed<'a>(chosen: &Chosen, readings: &'a Readings) -> Option<&'a Gpu> {
    let DeviceChoice::Wgpu { name, .. } = &chosen.device else { return None };
    let known = gpus(&readings.gpus);
    let pci = chosen.adapter.as_ref().map(|adapter| adapter.pci.as_str()).filter(|pci| !pci.is_empty());
    let same_place = |gpu: &&Gpu| pci.is_some_and(|pci| gpu.id.eq_ignore_ascii_case(pci));
    if let Some(gpu) = known.iter().find(same_place) {
        return Some(gpu);
    }
    let plain = |name: &str| name.to_lowercase().replace(['(', ')'], " ");
    let ours = plain(name);
    let mut same = known.iter().filter(|gpu| {
        let theirs = plain(&gpu.name);
        ours.contains(&theirs) || theirs.contains(&ours)
    });
    let only = same.next()?;
    same.next().is_none().then_some(only)
}

/// How many bytes a worker may take of a device: half of its own memory, as the operating system or a sensor tells it,
/// or half of its share of the computer's where it has no other. Of a card that nobody tells the size of: few, and `false`.
pub(super) fn memory(adapter: Option<&Adapter>, sensed_bytes: Option<u64>, host_bytes: u64) -> (u64, bool) {
    let Some(adapter) = adapter else { return (host_bytes / 2, true) };
    let own = match adapter.kind {
        AdapterKind::Integrated | AdapterKind::Cpu => Some(adapter.memory_bytes.unwrap_or(host_bytes)),
        AdapterKind::Discrete | AdapterKind::Virtual | AdapterKind::Other => {
            adapter.memory_bytes.or(sensed_bytes.filter(|bytes| *bytes > 0))
        }
    };
    match own {
        Some(bytes) => (bytes / 2, true),
        None => (UNKNOWN_CARD_BYTES.min(host_bytes / 2), false),
    }
}

/// At which station each found device works: where it is already, else at one that has no device or only the processor,
/// else at a new one.
pub(super) fn places(known: &[Option<Chosen>], found: &[Chosen]) -> Vec<usize> {
    let same = |one: &Chosen, other: &Chosen| {
        let pci = |chosen: &Chosen| chosen.adapter.as_ref().map(|adapter| adapter.pci.clone());
        match (pci(one).filter(|pci| !pci.is_empty()), pci(other).filter(|pci| !pci.is_empty())) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => one.device == other.device,
        }
    };
    let mut taken = vec![false; known.len()];
    let mut take = |fits: &dyn Fn(Option<&Chosen>) -> bool| {
        let at = (0..known.len()).find(|at| !taken[*at] && fits(known[*at].as_ref()))?;
        taken[at] = true;
        Some(at)
    };
    let kept: Vec<Option<usize>> =
        found.iter().map(|found| take(&|known| known.is_some_and(|known| same(known, found)))).collect();
    let free = |known: Option<&Chosen>| known.is_none_or(|known| known.device == DeviceChoice::Cpu);
    let placed: Vec<Option<usize>> = kept.into_iter().map(|at| at.or_else(|| take(&free))).collect();
    let mut next = known.len();
    let mut new = || {
        next += 1;
        next - 1
    };
    placed.into_iter().map(|at| at.unwrap_or_else(&mut new)).collect()
}

/// When something that failed is tried again: soon, and later each time.
#[derive(Default)]
pub(super) struct Retry {
    wait: Option<Duration>,
    at: Option<Instant>,
}

impl Retry {
    /// It failed once more.
    pub(super) fn failed(&mut self, now: Instant) {
        let wait = self.wait.map_or(DEVICE_RETRY_MIN, |wait| (wait * 2).min(DEVICE_RETRY_MAX));
        (self.wait, self.at) = (Some(wait), Some(now + wait));
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    pub(super) fn is_waiting(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at > now)
    }

    /// How long it still waits.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(now))
    }

    pub(super) fn has_failed(&self) -> bool {
        self.wait.is_some()
    }

    /// It is tried: its end tells more.
    pub(super) fn begin(&mut self) {
        self.at = None;
    }

    /// It was ended before it told anything, which is no failure: it is due at once.
    pub(super) fn given_up(&mut self, now: Instant) {
        self.at = Some(now);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use skein_policy::readings::{Reading, WallTime};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn adapter(name: &str, pci: &str, kind: AdapterKind) -> Adapter {
        Adapter {
            index: 0,
            name: name.to_owned(),
            vendor: 0x10de,
            device: 1,
            pci: pci.to_owned(),
            backend: "vulkan".to_owned(),
            driver: String::new(),
            kind,
            binding_bytes_max: GIB,
            buffer_bytes_max: GIB,
            memory_bytes: None,
        }
    }

    fn card(index: u32, name: &str, pci: &str) -> Chosen {
        let adapter = Adapter { index, ..adapter(name, pci, AdapterKind::Discrete) };
        let device = DeviceChoice::Wgpu { index, name: name.to_owned() };
        Chosen { device, reason: String::new(), adapter: Some(adapter) }
    }

    fn processor() -> Chosen {
        Chosen { device: DeviceChoice::Cpu, reason: String::new(), adapter: None }
    }

    fn missing<T>() -> Reading<T> {
        Reading::Missing("a test".to_owned())
    }

    pub(in crate::daemon) fn gpu(id: &str, name: &str) -> Gpu {
        Gpu {
            id: id.to_owned(),
            name: name.to_owned(),
            busy_percent: missing(),
            temperature_c: missing(),
            power_mw: missing(),
            power_limit_mw: missing(),
            memory_used_bytes: missing(),
            memory_total_bytes: missing(),
            fan_percent: missing(),
            others: missing(),
        }
    }

    pub(in crate::daemon) fn readings(gpus: Vec<Gpu>) -> Readings {
        Readings {
            owner_idle_ms: missing(),
            full_screen: missing(),
            game: missing(),
            remote_desktop: missing(),
            power: missing(),
            metered: missing(),
            disk_free_bytes: missing(),
            wall: Reading::Known(WallTime { weekday: 0, minute: 0 }),
            gpus: Reading::Known(gpus),
            processor_others_permille: missing(),
            traffic_month_bytes: missing(),
        }
    }

    #[test]
    fn one_blocked_card_does_not_keep_the_others_from_being_found() {
        use Allowance::{All, CpuOnly, Nothing};
        for (allowed, first, by_processor, look_first, want) in [
            (Nothing, true, true, true, None),
            (All, false, false, false, Some(Bench::Own)),
            (CpuOnly, true, false, true, Some(Bench::Own)),
            (CpuOnly, true, true, false, Some(Bench::Own)),
            (CpuOnly, true, false, false, Some(Bench::Processor)),
            (CpuOnly, false, false, false, None),
        ] {
            assert_eq!(wanted(allowed, first, by_processor, look_first), want, "{allowed:?} {first}");
        }
    }

    #[test]
    fn a_card_is_known_by_its_address_before_it_is_measured() {
        let name = "NVIDIA GeForce RTX 3060";
        let two = readings(vec![gpu("0000:01:00.0", name), gpu("0000:0A:00.0", name)]);
        let id = |chosen: &Chosen, readings| sensed(chosen, readings).map(|gpu| gpu.id.clone());
        assert_eq!(id(&card(1, name, "0000:0a:00.0"), &two).as_deref(), Some("0000:0A:00.0"));
        assert_eq!(id(&card(1, name, ""), &two), None, "two have that name");
        let one = readings(vec![gpu("0000:01:00.0", "GeForce RTX 3060")]);
        assert_eq!(id(&card(0, name, ""), &one).as_deref(), Some("0000:01:00.0"));
        assert_eq!(id(&processor(), &one), None);
    }

    #[test]
    fn half_of_a_devices_own_memory_is_offered_and_never_of_the_computers_for_a_card() {
        let kind = |kind| adapter("A", "", kind);
        let card = kind(AdapterKind::Discrete);
        let tells = Adapter { memory_bytes: Some(12 * GIB), ..card.clone() };
        let own = Adapter { memory_bytes: Some(2 * GIB), ..kind(AdapterKind::Integrated) };
        for (adapter, sensed, host, want) in [
            (None, None, 64, (32 * GIB, true)),
            (Some(&card), Some(8 * GIB), 64, (4 * GIB, true)),
            (Some(&card), Some(12 * GIB), 8, (6 * GIB, true)),
            (Some(&tells), Some(8 * GIB), 64, (6 * GIB, true)),
            (Some(&card), None, 64, (4 * GIB, false)),
            (Some(&card), Some(0), 4, (2 * GIB, false)),
            (Some(&kind(AdapterKind::Integrated)), Some(GIB), 16, (8 * GIB, true)),
            (Some(&own), None, 16, (GIB, true)),
        ] {
            assert_eq!(memory(adapter, sensed, host * GIB), want, "{adapter:?}, {sensed:?}, {host}");
        }
    }

    #[test]
    fn devices_that_are_found_later_join_those_that_work() {
        let [a, b, c] = [card(0, "A", "1"), card(1, "A", "2"), card(2, "C", "")];
        assert_eq!(places(&[None], &[a.clone(), b.clone()]), [0, 1], "the first survey");
        assert_eq!(places(&[None], &[processor(), processor()]), [0, 1], "as the owner wishes");
        assert_eq!(places(&[Some(processor())], &[a.clone(), b.clone()]), [0, 1], "the driver came up late");
        assert_eq!(places(&[Some(processor())], &[processor()]), [0]);
        let known = [Some(b.clone()), Some(c.clone())];
        let shifted = card(1, "C", "");
        assert_eq!(places(&known, &[a.clone(), b, c]), [2, 0, 1], "what works stays where it is");
        assert_eq!(places(&[Some(shifted.clone())], &[a, shifted]), [1, 0]);
    }

    #[test]
    fn what_failed_is_tried_again_and_less_and_less_often() {
        let start = Instant::now();
        let mut retry = Retry::default();
        assert!(!retry.is_due(start) && !retry.is_waiting(start) && !retry.has_failed());
        for wait in [30, 60, 120, 240, 480, 600, 600].map(Duration::from_secs) {
            retry.failed(start);
            assert!(retry.is_waiting(start + wait - Duration::from_millis(1)), "{wait:?}");
            assert!(retry.is_due(start + wait) && !retry.is_waiting(start + wait), "{wait:?}");
            retry.begin();
            assert!(!retry.is_due(start + wait * 2) && retry.has_failed(), "it is under way");
        }
    }

    #[test]
    fn what_was_given_up_is_due_at_once_and_has_not_failed() {
        let start = Instant::now();
        let mut retry = Retry::default();
        retry.begin();
        retry.given_up(start);
        assert!(retry.is_due(start) && !retry.is_waiting(start) && !retry.has_failed());
        retry.failed(start);
        retry.begin();
        retry.given_up(start);
        assert!(retry.is_due(start) && !retry.is_waiting(start), "not after the wait of a failure");
        retry.failed(start);
        assert_eq!(retry.left(start), Some(DEVICE_RETRY_MIN * 2), "what failed before still counts");
    }
}
