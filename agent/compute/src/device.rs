//! Owns opening a compute device and reading results back from it.
//! Must never choose one: that is `probe`'s, from what was tried in child processes.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use burn::tensor::wgpu::WgpuSetup;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// Which device a worker uses. As text: `cpu`, or `wgpu:INDEX:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DeviceChoice {
    /// Burn's CPU backend; no driver is loaded.
    Cpu,
    /// An adapter of wgpu.
    Wgpu {
        /// Its place in the order in which wgpu lists adapters.
        index: u32,
        /// Its name; it wins over the index, which can shift when a driver comes or goes.
        name: String,
    },
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The text names no device.
    #[error("`{0}` names no device; write `cpu` or `wgpu:INDEX:NAME`")]
    Unreadable(String),
    /// No adapter has this name.
    #[error("there is no adapter named {name}; found: {found}")]
    Missing {
        /// The name that was wanted.
        name: String,
        /// The names that exist.
        found: String,
    },
    /// The driver or Burn refused.
    #[error("the adapter {name} was refused: {why}")]
    Refused {
        /// The adapter.
        name: String,
        /// What was said.
        why: String,
    },
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Wgpu { index, name } => write!(formatter, "wgpu:{index}:{name}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        if text == "cpu" {
            return Ok(Self::Cpu);
        }
        let parse = || {
            let (index, name) = text.strip_prefix("wgpu:")?.split_once(':')?;
            let index = index.parse().ok()?;
            (!name.is_empty()).then(|| Self::Wgpu { index, name: name.to_owned() })
        };
        parse().ok_or_else(|| DeviceError::Unreadable(text.to_owned()))
    }
}

/// What the engine calls this device.
#[must_use]
pub fn engine_device(device: &DeviceChoice, threads: usize) -> skein_engine::stage::Device {
    match device {
        DeviceChoice::Cpu => skein_engine::stage::Device::Cpu { threads },
        DeviceChoice::Wgpu { .. } => skein_engine::stage::Device::Gpu { name: device.to_string() },
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl DeviceChoice {
    /// Opens the device in this process. Only for child processes: a driver may take the process down.
    ///
    /// # Errors
    /// [`DeviceError`] when the adapter is gone or refuses.
    pub fn open(&self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Wgpu { index, name } => open_adapter(*index, name),
        }
    }
}

fn open_adapter(index: u32, name: &str) -> Result<Device, DeviceError> {
    let instance = instance();
    let mut adapters = adapters(&instance);
    let matches = |adapter: &wgpu::Adapter| adapter.get_info().name == name;
    let at = match adapters.get(index as usize) {
        Some(adapter) if matches(adapter) => Some(index as usize),
        Some(_) | None => adapters.iter().position(matches),
    };
    let Some(at) = at else {
        let found: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        return Err(DeviceError::Missing { name: name.to_owned(), found });
    };
    register(instance, adapters.swap_remove(at))
        .map_err(|why| DeviceError::Refused { name: name.to_owned(), why })
}

/// Creates the wgpu device and hands it to Burn.
pub(crate) fn register(instance: wgpu::Instance, adapter: wgpu::Adapter) -> Result<Device, String> {
    // Mappable primary buffers make every buffer host-visible on discrete cards; experimental features need a
    // promise that we do not make.
    let unwanted = wgpu::Features::MAPPABLE_PRIMARY_BUFFERS | wgpu::Features::all_experimental_mask();
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("skein"),
        required_features: adapter.features().difference(unwanted),
        required_limits: adapter.limits(),
        experimental_features: wgpu::ExperimentalFeatures::disabled(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        trace: wgpu::Trace::Off,
    });
    let (device, queue) = block_on(request).map_err(|error| error.to_string())?;
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup { instance, adapter, device, queue, backend };
    Device::wgpu_options().setup(setup).init().map_err(|error| error.to_string())
}

/// A wgpu instance over every graphics API that this platform has.
pub(crate) fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle())
}

/// Every adapter, in wgpu's order.
pub(crate) fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

/// Copies a tensor to the host, row-major. The error is what the device said.
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, String> {
    let data = tensor.try_into_data().map_err(|error| format!("{error:?}"))?;
    data.try_into_vec::<f32>().map_err(|error| format!("{error:?}"))
}

/// wgpu's requests are futures that are ready at once, or woken by a driver thread; this crate has no run time.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_survive_the_command_line() {
        for choice in [DeviceChoice::Cpu, DeviceChoice::Wgpu { index: 3, name: "A: b, (c)".into() }] {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        for text in ["", "gpu", "wgpu:", "wgpu:x:y", "wgpu:1", "wgpu:1:"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
