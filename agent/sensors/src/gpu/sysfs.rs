//! AMD and Intel GPUs by sysfs, and the place of NVIDIA's in case their library is missing.
//!
//! Reads only what any user may read, and nothing at all of a GPU that sleeps: to read is to wake it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use skein_policy::readings::{Gpu, GpuProgram, Reading};

use super::{missing, unknown};
use crate::shown;

const AMD: u32 = 0x1002;
const INTEL: u32 = 0x8086;
const NVIDIA: u32 = 0x10de;

/// More GPUs than any board holds.
const GPUS_MAX: usize = 64;

/// A GPU and who makes it.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) gpu: Gpu,
    /// It is NVIDIA's: NVML knows more, if it is there.
    pub(crate) nvidia: bool,
    /// It sleeps: nobody uses it.
    pub(crate) asleep: bool,
}

/// The GPUs on the PCI bus, with the names that were looked up before.
pub(crate) struct Cards {
    root: PathBuf,
    names: BTreeMap<(u32, u32, u32), String>,
}

impl Cards {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), names: BTreeMap::new() }
    }

    /// Every GPU in the order of its PCI address; the programs on it are filled in by others.
    pub(crate) fn read(&mut self) -> Result<Vec<Card>, String> {
        let devices = self.root.join("sys/bus/pci/devices");
        let entries =
            fs::read_dir(&devices).map_err(|_| "the system shows no PCI bus (/sys/bus/pci)".to_owned())?;
        let mut addresses: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        addresses.sort();
        let mut cards = Vec::new();
        for address in addresses {
            let device = devices.join(&address);
            // 0x0300 VGA, 0x0302 3D without a screen, 0x0380 other display.
            let display = text(&device.join("class")).is_some_and(|class| class.starts_with("0x03"));
            let vendor = hexadecimal(&device.join("vendor")).unwrap_or(0);
            if display && [AMD, INTEL, NVIDIA].contains(&vendor) && cards.len() < GPUS_MAX {
                cards.push(self.card(address, &device, vendor));
            }
        }
        Ok(cards)
    }

    fn card(&mut self, address: String, device: &Path, vendor: u32) -> Card {
        let name = self.name(device, vendor);
        let driver = fs::read_link(device.join("driver"))
            .ok()
            .and_then(|link| link.file_name().map(|name| name.to_string_lossy().into_owned()));
        let asleep = text(&device.join("power/runtime_status")).as_deref() == Some("suspended");
        let nvidia = vendor == NVIDIA && driver.as_deref() != Some("nouveau");
        let gpu = match driver {
            None => unknown(address, name, "no driver serves this GPU"),
            Some(_) if asleep => {
                let gpu = unknown(address, name, "it sleeps to save power");
                Gpu { others: Reading::Known(Vec::new()), ..gpu }
            }
            Some(_) if nvidia => unknown(address, name, "NVIDIA's driver tells this only by its library"),
            Some(driver) => sensed(address, name, device, &shown(&driver)),
        };
        Card { gpu, nvidia, asleep }
    }

    fn name(&mut self, device: &Path, vendor: u32) -> String {
        let model = hexadecimal(&device.join("device")).unwrap_or(0);
        let revision = hexadecimal(&device.join("revision")).unwrap_or(0);
        let key = (vendor, model, revision);
        if let Some(name) = self.names.get(&key) {
            return name.clone();
        }
        let told = text(&device.join("product_name")).filter(|name| !name.is_empty());
        let name = told
            .or_else(|| (vendor == AMD).then(|| amd_name(&self.root, model, revision)).flatten())
            .or_else(|| pci_name(&self.root, vendor, model))
            .unwrap_or_else(|| format!("{} GPU {model:04x}", maker(vendor)));
        let name = shown(&name);
        self.names.insert(key, name.clone());
        name
    }
}

/// What amdgpu, radeon, i915, xe and nouveau show.
fn sensed(id: String, name: String, device: &Path, driver: &str) -> Gpu {
    let hwmon = fs::read_dir(device.join("hwmon"))
        .ok()
        .and_then(|entries| entries.flatten().map(|entry| entry.path()).min())
        .unwrap_or_else(|| device.join("hwmon/hwmon0"));
    let lacks = |what: &str| format!("the driver {driver} does not tell {what}");
    let first = |names: &[&str], what: &str| {
        let found = names.iter().find_map(|name| number(&hwmon.join(name)));
        found.ok_or_else(|| lacks(what))
    };
    let of_device = |name: &str, what: &str| number(&device.join(name)).ok_or_else(|| lacks(what));
    let fan = number(&hwmon.join("pwm1")).map(|pwm| (pwm, number(&hwmon.join("pwm1_max")).unwrap_or(255)));
    let fan = fan.or_else(|| number(&hwmon.join("fan1_input")).zip(number(&hwmon.join("fan1_max"))));
    let fan = fan.filter(|(_, full)| *full > 0).map(|(now, full)| narrow::<u8>((now * 100 / full).min(100)));
    Gpu {
        id,
        name,
        busy_percent: crate::reading(
            of_device("gpu_busy_percent", "how busy it is").map(|percent| narrow(percent.min(100))),
        ),
        temperature_c: crate::reading(
            // Edge; millidegrees.
            first(&["temp1_input", "temp2_input"], "the temperature").map(|milli| narrow(milli / 1000)),
        ),
        // Microwatts. RDNA3 and APUs have the momentary value instead of the mean.
        power_mw: crate::reading(
            first(&["power1_average", "power1_input"], "the power").map(|micro| micro / 1000),
        ),
        power_limit_mw: crate::reading(
            first(&["power1_cap", "power1_max"], "the power limit").map(|micro| micro / 1000),
        ),
        memory_used_bytes: crate::reading(of_device("mem_info_vram_used", "the memory in use")),
        memory_total_bytes: crate::reading(of_device("mem_info_vram_total", "the memory's size")),
        fan_percent: crate::reading(fan.ok_or_else(|| lacks("the fan's speed"))),
        others: missing("not looked at yet"),
    }
}

/// Joins the GPUs of the PCI bus, the programs on them, and what NVIDIA's library says.
pub(crate) fn merged(
    cards: Result<Vec<Card>, String>,
    nvml: Result<Vec<Gpu>, String>,
    programs: impl Fn(&str) -> Reading<Vec<GpuProgram>>,
) -> Reading<Vec<Gpu>> {
    let (cards, nvml) = match (cards, nvml) {
        (Ok(cards), nvml) => (cards, nvml),
        (Err(_), Ok(gpus)) => (Vec::new(), Ok(gpus)),
        (Err(why), Err(other)) => return Reading::Missing(format!("{why}; {other}")),
    };
    let mut gpus: BTreeMap<String, Gpu> = BTreeMap::new();
    for card in cards {
        let gpu = match &nvml {
            Err(why) if card.nvidia && !card.asleep => unknown(card.gpu.id, card.gpu.name, why),
            Ok(_) | Err(_) if card.nvidia || card.asleep => card.gpu,
            Ok(_) | Err(_) => Gpu { others: programs(&card.gpu.id), ..card.gpu },
        };
        gpus.insert(gpu.id.clone(), gpu);
    }
    for gpu in nvml.unwrap_or_default() {
        gpus.insert(gpu.id.clone(), gpu);
    }
    Reading::Known(gpus.into_values().collect())
}

fn maker(vendor: u32) -> &'static str {
    match vendor {
        AMD => "AMD",
        INTEL => "Intel",
        NVIDIA => "NVIDIA",
        _ => "PCI",
    }
}

/// The name that AMD sells it by, from libdrm's table: `744C, C8, AMD Radeon RX 7900 XTX`.
fn amd_name(root: &Path, model: u32, revision: u32) -> Option<String> {
    let table = fs::File::open(root.join("usr/share/libdrm/amdgpu.ids")).ok()?;
    BufReader::new(table).lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.splitn(3, ',').map(str::trim);
        let is = |field: Option<&str>, number| {
            field.and_then(|text| u32::from_str_radix(text, 16).ok()).is_some_and(|found| found == number)
        };
        let found = is(fields.next(), model) && is(fields.next(), revision);
        if found { fields.next().map(str::to_owned) } else { None }
    })
}

/// The chip's name from the table of PCI ids: `Navi 31 [Radeon RX 7900 XT/7900 XTX]`.
fn pci_name(root: &Path, vendor: u32, model: u32) -> Option<String> {
    let places = ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"];
    let table = places.iter().find_map(|place| fs::File::open(root.join(place)).ok())?;
    let vendor_line = format!("{vendor:04x}  ");
    let model_line = format!("\t{model:04x}  ");
    let mut inside = false;
    for line in BufReader::new(table).lines().map_while(Result::ok) {
        if !line.starts_with(['\t', '#']) {
            if inside {
                return None;
            }
            inside = line.starts_with(&vendor_line);
        } else if inside && let Some(name) = line.strip_prefix(&model_line) {
            return Some(format!("{} {name}", maker(vendor)));
        }
    }
    None
}

/// The trimmed text of a small file.
pub(crate) fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// The number in a small file; none if it is negative or none at all.
pub(crate) fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

fn hexadecimal(path: &Path) -> Option<u32> {
    u32::from_str_radix(text(path)?.strip_prefix("0x")?, 16).ok()
}

fn narrow<T: TryFrom<u64> + Default>(value: u64) -> T {
    T::try_from(value).unwrap_or_default()
}
