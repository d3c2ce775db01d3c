//! What sensors say: values in plain units, or why there is none.

use serde::{Deserialize, Serialize};

/// What one sensor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading<T> {
    /// It was read.
    Known(T),
    /// It cannot be read; says why, for people: `no NVIDIA management library (libnvidia-ml.so.1)`.
    Missing(String),
}

impl<T> Reading<T> {
    /// The value, if there is one.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Missing(_) => None,
        }
    }
}

/// Everything that was sensed at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// Milliseconds since the owner last moved a mouse or pressed a key.
    pub owner_idle_ms: Reading<u64>,
    /// The program whose window fills a screen, if one does.
    pub full_screen: Reading<Option<String>>,
    /// A game that runs, if one does: known by name, by its launcher, or because it asked the system for game mode.
    pub game: Reading<Option<String>>,
    /// Who looks at this machine's desktop from afar, if anybody does.
    pub remote_desktop: Reading<Option<String>>,
    /// What feeds the machine.
    pub power: Reading<Power>,
    /// Whether the way to the network is paid by the byte.
    pub metered: Reading<bool>,
    /// Bytes free where the agent's data lies.
    pub disk_free_bytes: Reading<u64>,
    /// The time on the owner's wall.
    pub wall: Reading<WallTime>,
    /// Every GPU, in the order of its PCI address.
    pub gpus: Reading<Vec<Gpu>>,
    /// Thousandths of all processor time that programs other than the agent and its workers took since the last reading.
    pub processor_others_permille: Reading<u32>,
    /// Bytes sent and received by the agent in this calendar month.
    pub traffic_month_bytes: Reading<u64>,
}

/// What feeds the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// The wall, or a battery that is being charged.
    Mains,
    /// A battery, so full.
    Battery {
        /// 0 to 100.
        percent: u8,
    },
}

/// The time on the owner's wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallTime {
    /// 0 is Monday.
    pub weekday: u8,
    /// Minutes since local midnight.
    pub minute: u16,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its PCI address, `0000:01:00.0`, or what the system has instead.
    pub id: String,
    /// `NVIDIA GeForce RTX 3060`.
    pub name: String,
    /// How busy, 0 to 100, whoever keeps it so.
    pub busy_percent: Reading<u8>,
    /// Degrees Celsius.
    pub temperature_c: Reading<u16>,
    /// What it draws, in milliwatts.
    pub power_mw: Reading<u64>,
    /// What it may draw, in milliwatts.
    pub power_limit_mw: Reading<u64>,
    /// Bytes in use of its memory, whoever uses them.
    pub memory_used_bytes: Reading<u64>,
    /// Bytes of its memory.
    pub memory_total_bytes: Reading<u64>,
    /// Per cent of full speed.
    pub fan_percent: Reading<u8>,
    /// Programs other than the agent's worker that use it to compute or to draw more than a desktop does.
    pub others: Reading<Vec<GpuProgram>>,
}

/// A program on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProgram {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Bytes of the GPU's memory that it holds, where the driver tells.
    pub memory_bytes: Option<u64>,
    /// Its share of the GPU's time, 0 to 100, where the driver tells.
    pub busy_percent: Option<u8>,
}
