//! The machine around the agent: processor, memory, disk.
//!
//! Must never guess: what the system does not say is left out.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What the operating system says of the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Host {
    /// `Linux 6.1 (Debian 12)`, or what the system calls itself.
    pub(crate) system: String,
    /// The processor's name.
    pub(crate) processor: String,
    /// Logical cores.
    pub(crate) cores: usize,
    /// Memory, in bytes.
    pub(crate) memory_bytes: u64,
    /// Free space where the data is, in bytes.
    pub(crate) disk_free_bytes: Option<u64>,
}

impl Host {
    /// Looks at this machine.
    pub(crate) fn look(data_dir: &Path) -> Self {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
        let processor = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned());
        Self {
            system: sysinfo::System::long_os_version().unwrap_or_else(|| std::env::consts::OS.to_owned()),
            processor: processor
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "unknown processor".into()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: system.total_memory(),
            disk_free_bytes: skein_sensors::disk_free(data_dir).ok(),
        }
    }
}
