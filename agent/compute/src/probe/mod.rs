//! Owns finding the adapters of this machine and trying each one, in child processes.
//! Must never load a driver in the process that calls [`survey`]: a driver that crashes or hangs takes only a child.
//!
//! The child's side is [`list`] and [`exercise`] (`skein probe --list`, `skein probe --adapter N`), which print JSON, and
//! [`watch`], by which a child ends with its parent.

mod surveying;

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::child;
use crate::device::{DeviceChoice, adapters, instance, read, register};
use crate::limits::MESSAGE_BYTES_MAX;

pub use self::surveying::{Barred, Surveying};

/// What wgpu says about an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// Place in wgpu's order.
    pub index: u32,
    /// Name, as the driver gives it.
    pub name: String,
    /// PCI vendor number.
    pub vendor: u32,
    /// PCI device number.
    pub device: u32,
    /// Bus address, by which one card behind two graphics APIs is known; empty when the API does not say.
    pub pci: String,
    /// Graphics API: `vulkan`, `dx12`, `metal` or `gl`.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// What kind of device it is.
    pub kind: AdapterKind,
    /// Largest buffer that one shader binding may see, in bytes.
    pub binding_bytes_max: u64,
    /// Largest buffer, in bytes.
    pub buffer_bytes_max: u64,
    /// Memory of the device in bytes, where the operating system tells.
    pub memory_bytes: Option<u64>,
}

/// Kinds of adapters, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// A card of its own.
    Discrete,
    /// Part of the processor, sharing its memory.
    Integrated,
    /// A part of a card, given to a virtual machine.
    Virtual,
    /// Unknown.
    Other,
    /// Software on the processor.
    Cpu,
}

/// How trying an adapter ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Created a device and multiplied matrices correctly.
    Works {
        /// Wall time from the start of the child, in milliseconds.
        took_ms: u64,
    },
    /// Not tried: it is software on the processor, for which the CPU backend stands in.
    Software,
    /// The driver took the child down.
    Crashed {
        /// The signal, or the exit code where there are no signals.
        signal: i32,
    },
    /// The child had to be ended.
    Hung {
        /// After this long, in milliseconds.
        after_ms: u64,
    },
    /// The driver or Burn said no, or computed wrongly.
    Refused {
        /// What was said.
        why: String,
    },
}

/// An adapter and how trying it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterReport {
    /// What it is.
    pub adapter: Adapter,
    /// Whether it works.
    pub verdict: Verdict,
}

/// What one survey found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// Why the adapters could not be listed, when they could not: every driver is then left alone.
    pub trouble: Option<Verdict>,
    /// Every adapter, in wgpu's order.
    pub adapters: Vec<AdapterReport>,
}

/// The device to use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// For the worker's command line.
    pub device: DeviceChoice,
    /// One sentence for the owner.
    pub reason: String,
    /// What wgpu says about it, unless it is the processor.
    pub adapter: Option<Adapter>,
}

/// Why no device was chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// Nothing has this name.
    #[error(
        "no device matches `{wanted}`; there is: {found}\nhint: pass `cpu` or part of one of these names"
    )]
    NoMatch {
        /// What was asked for.
        wanted: String,
        /// What exists.
        found: String,
    },
    /// The device that was asked for does not work.
    #[error("{name} matches, but {why}")]
    Broken {
        /// The device.
        name: String,
        /// How trying it ended.
        why: String,
    },
}

/// Child's side: prints the adapters as JSON.
///
/// # Errors
/// When `output` fails.
pub fn list(output: &mut impl Write) -> std::io::Result<()> {
    let instance = instance();
    let found: Vec<Adapter> =
        adapters(&instance).iter().zip(0..).map(|(adapter, index)| describe(adapter, index)).collect();
    serde_json::to_writer(&mut *output, &found)?;
    output.flush()
}

/// Child's side: tries one adapter and prints `null`, or why it is refused, as JSON.
///
/// # Errors
/// When `output` fails.
pub fn exercise(index: u32, output: &mut impl Write) -> std::io::Result<()> {
    let refused = multiply_on(index).err();
    serde_json::to_writer(&mut *output, &refused)?;
    output.flush()
}

/// Child's side: calls `gone` when `input` has ended, which the parent holds open and says nothing on, so that no probe
/// outlives whoever wants its answer, even in a driver that hangs.
///
/// # Errors
/// When the system gives no thread.
pub fn watch(
    mut input: impl Read + Send + 'static,
    gone: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let watch = move || {
        // An input that cannot be read any more has no parent either.
        let _ = std::io::copy(&mut input, &mut std::io::sink());
        gone();
    };
    std::thread::Builder::new().name("parent".to_owned()).spawn(watch).map(drop)
}

/// A command's side: [`survey_unless_barred`], which nobody bars.
#[must_use]
pub fn survey(exe: &Path, timeout: Duration) -> Survey {
    survey_unless_barred(exe, timeout, &Surveying::default()).unwrap_or_default()
}

/// Daemon's side: lists and tries every hardware adapter, each in its own child of `exe` for at most `timeout`. A
/// healthy driver answers within a few seconds; compiling shaders on a busy machine may take twenty.
///
/// # Errors
/// [`Barred`] when it was ended by its handle.
pub fn survey_unless_barred(exe: &Path, timeout: Duration, surveying: &Surveying) -> Result<Survey, Barred> {
    let mut command = child::command(exe);
    let listed = match surveying.run(command.args(["probe", "--list"]), timeout)? {
        Ok((output, _)) => serde_json::from_slice::<Vec<Adapter>>(&output).map_err(|error| {
            Verdict::Refused { why: format!("the list of adapters is unreadable: {error}") }
        }),
        Err(verdict) => Err(verdict),
    };
    match listed {
        Ok(adapters) => {
            let reports = adapters.into_iter().map(|adapter| -> Result<AdapterReport, Barred> {
                // Software adapters are never worked on, and compiling for them takes many seconds.
                let verdict = match adapter.kind {
                    AdapterKind::Cpu => Verdict::Software,
                    AdapterKind::Discrete
                    | AdapterKind::Integrated
                    | AdapterKind::Virtual
                    | AdapterKind::Other => try_adapter(exe, adapter.index, timeout, surveying)?,
                };
                Ok(AdapterReport { adapter, verdict })
            });
            Ok(Survey { trouble: None, adapters: reports.collect::<Result<_, _>>()? })
        }
        Err(trouble) => Ok(Survey { trouble: Some(trouble), adapters: Vec::new() }),
    }
}

/// Chooses one device: the best adapter that works, or the first whose name contains `requested` (or `cpu`).
///
/// Software adapters stand for the CPU backend, which does the same work several times faster.
///
/// # Errors
/// [`ChooseError`] when a device was asked for by a name that matches nothing, or nothing that works.
pub fn choose(survey: &Survey, requested: Option<&str>) -> Result<Chosen, ChooseError> {
    match requested {
        Some(wanted) => Ok(choose_named(survey, wanted)?.0),
        None => Ok(choose_best(survey)),
    }
}

/// Chooses the devices of one agent, a worker for each: for every name of `requested` all adapters that it matches and
/// that work (`cpu`, or the number of a single adapter, is one), or without names every card that works, and where there
/// is none what [`choose`] takes. One card behind two graphics APIs is one device.
///
/// # Errors
/// [`ChooseError`], as [`choose`].
pub fn choose_all(survey: &Survey, requested: &[String]) -> Result<Vec<Chosen>, ChooseError> {
    if requested.is_empty() {
        let best = choose_best(survey);
        return Ok(match &best.adapter {
            Some(Adapter { kind: AdapterKind::Discrete, backend, .. }) => {
                let cards = survey.adapters.iter().filter(|report| {
                    report.adapter.kind == AdapterKind::Discrete && report.adapter.backend == *backend
                });
                cards.filter(|report| report.works()).map(AdapterReport::chosen).collect()
            }
            Some(_) | None => vec![best],
        });
    }
    let mut all = Vec::new();
    for wanted in requested {
        let (first, others) = choose_named(survey, wanted)?;
        all.push(first);
        all.extend(others);
    }
    Ok(all)
}

/// The cards that do not work, each with what is wrong; not those that work behind another graphics API.
#[must_use]
pub fn broken_cards(survey: &Survey) -> Vec<String> {
    let cards = || survey.adapters.iter().filter(|report| report.adapter.kind == AdapterKind::Discrete);
    let works = |adapter: &Adapter| {
        let same = |other: &Adapter| match (adapter.pci.as_str(), other.pci.as_str()) {
            ("", _) | (_, "") => other.name == adapter.name && other.backend != adapter.backend,
            (pci, other) => pci == other,
        };
        cards().any(|report| report.works() && same(&report.adapter))
    };
    cards().filter(|report| !report.works() && !works(&report.adapter)).map(AdapterReport::sentence).collect()
}

fn choose_best(survey: &Survey) -> Chosen {
    let hardware = |report: &&AdapterReport| report.adapter.kind != AdapterKind::Cpu;
    let working = survey.adapters.iter().filter(hardware).filter(|report| report.works());
    let best = working
        .min_by_key(|report| (report.adapter.kind, report.adapter.backend_rank(), report.adapter.index));
    if let Some(report) = best {
        return report.chosen();
    }
    let broken: Vec<String> = survey.adapters.iter().filter(hardware).map(AdapterReport::sentence).collect();
    let reason = match (&survey.trouble, broken.is_empty()) {
        (Some(trouble), _) => format!("CPU: listing the adapters failed: {trouble}"),
        (None, true) => "CPU: this machine has no GPU that wgpu finds".to_owned(),
        (None, false) => format!("CPU: no GPU works: {}", broken.join("; ")),
    };
    Chosen { device: DeviceChoice::Cpu, reason, adapter: None }
}

/// The best device of this name, and the others of the same graphics API.
fn choose_named(survey: &Survey, wanted: &str) -> Result<(Chosen, Vec<Chosen>), ChooseError> {
    if wanted.eq_ignore_ascii_case("cpu") {
        let reason = "CPU: asked for".to_owned();
        return Ok((Chosen { device: DeviceChoice::Cpu, reason, adapter: None }, Vec::new()));
    }
    let lower = wanted.to_lowercase();
    let matches = |report: &&AdapterReport| {
        let adapter = &report.adapter;
        adapter.name.to_lowercase().contains(&lower) || adapter.choice().to_string() == wanted
    };
    let mut matching: Vec<&AdapterReport> = survey.adapters.iter().filter(matches).collect();
    matching.sort_by_key(|report| (!report.works(), report.adapter.backend_rank(), report.adapter.index));
    let Some((report, others)) = matching.split_first() else {
        let names: Vec<String> = survey.adapters.iter().map(AdapterReport::sentence).collect();
        let found = ["cpu".to_owned()].into_iter().chain(names).collect::<Vec<_>>().join("; ");
        return Err(ChooseError::NoMatch { wanted: wanted.to_owned(), found });
    };
    let adapter = &report.adapter;
    if adapter.kind == AdapterKind::Cpu {
        let reason =
            format!("{} is software on the processor; the CPU backend is used instead of it", adapter.name);
        return Ok((Chosen { device: DeviceChoice::Cpu, reason, adapter: None }, Vec::new()));
    }
    if !report.works() {
        return Err(ChooseError::Broken { name: adapter.name.clone(), why: report.verdict.to_string() });
    }
    let asked = |report: &AdapterReport| Chosen {
        reason: format!("{}: asked for, and works", report.adapter.name),
        ..report.chosen()
    };
    let others = others.iter().filter(|other| other.works() && other.adapter.backend == adapter.backend);
    Ok((asked(report), others.map(|other| asked(other)).collect()))
}

impl Adapter {
    fn choice(&self) -> DeviceChoice {
        DeviceChoice::Wgpu { index: self.index, name: self.name.clone() }
    }

    /// Native APIs first: GL on the same card is slower and knows fewer shaders.
    fn backend_rank(&self) -> u8 {
        u8::from(self.backend == "gl")
    }
}

impl AdapterReport {
    /// Whether it may be used.
    #[must_use]
    pub fn works(&self) -> bool {
        matches!(self.verdict, Verdict::Works { .. })
    }

    fn chosen(&self) -> Chosen {
        let Adapter { name, backend, driver, .. } = &self.adapter;
        Chosen {
            device: self.adapter.choice(),
            reason: format!("{name} works over {backend} ({driver})"),
            adapter: Some(self.adapter.clone()),
        }
    }

    fn sentence(&self) -> String {
        format!("{} ({}) {}", self.adapter.name, self.adapter.backend, self.verdict)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Works { .. } => formatter.write_str("works"),
            Self::Software => formatter.write_str("is software, for which `cpu` stands in"),
            // Windows' exceptions are known by their digits.
            Self::Crashed { signal: code @ ..0 } => {
                write!(formatter, "its driver crashed (exception {code:#010X})")
            }
            Self::Crashed { signal } => write!(formatter, "its driver crashed (signal {signal})"),
            Self::Hung { after_ms } => write!(formatter, "its driver hung for {after_ms} ms"),
            Self::Refused { why } => write!(formatter, "it was refused: {why}"),
        }
    }
}

fn describe(adapter: &wgpu::Adapter, index: u32) -> Adapter {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Other => AdapterKind::Other,
        wgpu::DeviceType::Cpu => AdapterKind::Cpu,
    };
    Adapter {
        index,
        vendor: info.vendor,
        device: info.device,
        backend: info.backend.to_str().to_owned(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        kind,
        binding_bytes_max: limits.max_storage_buffer_binding_size,
        buffer_bytes_max: limits.max_buffer_size,
        memory_bytes: memory_bytes(&info.device_pci_bus_id),
        pci: info.device_pci_bus_id,
        name: info.name,
    }
}

/// Video memory as the Linux kernel tells it (amdgpu does); other drivers and systems keep it to themselves.
fn memory_bytes(pci: &str) -> Option<u64> {
    let plausible =
        !pci.is_empty() && pci.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
    let path = plausible.then(|| format!("/sys/bus/pci/devices/{pci}/mem_info_vram_total"))?;
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Multiplies small matrices on the adapter and compares with the CPU.
fn multiply_on(index: u32) -> Result<(), String> {
    const SIDE: usize = 33;
    /// Relative L2; f32 sums of 33 products in any order stay far below.
    const TOLERANCE: f64 = 1e-5;
    let instance = instance();
    let mut adapters = adapters(&instance);
    if index as usize >= adapters.len() {
        return Err(format!("there is no adapter {index}; there are {}", adapters.len()));
    }
    let device = register(instance, adapters.swap_remove(index as usize))?;
    let product = |device: &Device| {
        let values =
            |step: usize| (0..SIDE * SIDE).map(|i| ((i * step) % 29) as f32 / 29.0 - 0.5).collect::<Vec<_>>();
        let matrix = |step| Tensor::<2>::from_data(TensorData::new(values(step), [SIDE, SIDE]), device);
        read(matrix(7).matmul(matrix(11)))
    };
    let (got, want) = (product(&device)?, product(&Device::flex())?);
    let difference: f64 = got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = want.iter().map(|value| f64::from(*value).powi(2)).sum();
    let error = (difference / size).sqrt();
    if error < TOLERANCE { Ok(()) } else { Err(format!("it multiplies wrongly: relative error {error:.1e}")) }
}

fn try_adapter(exe: &Path, index: u32, timeout: Duration, surveying: &Surveying) -> Result<Verdict, Barred> {
    let mut command = child::command(exe);
    command.arg("probe").arg("--adapter").arg(index.to_string()).env("CUBECL_AUTOTUNE_LEVEL", "minimal");
    let verdict = match surveying.run(&mut command, timeout)? {
        Ok((output, took)) => match serde_json::from_slice::<Option<String>>(&output) {
            Ok(None) => Verdict::Works { took_ms: took.as_millis() as u64 },
            Ok(Some(why)) => Verdict::Refused { why: cut(why) },
            Err(error) => Verdict::Refused { why: format!("the answer of the probe is unreadable: {error}") },
        },
        Err(verdict) => verdict,
    };
    Ok(verdict)
}

fn cut(mut text: String) -> String {
    let end = (0..=text.len().min(MESSAGE_BYTES_MAX)).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

#[cfg(test)]
mod tests;
