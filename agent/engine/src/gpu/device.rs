//! Owns one adapter of wgpu: opening it, buffers, pipelines, and what went wrong on it.
//! Must never choose whether a GPU is used, and never panic on what a driver says.
//!
//! wgpu reports errors of a device to a handler, often long after the call that caused them. The handler keeps the
//! first; [`Device::check`] gives it to whoever asks next, and every run asks before it trusts a result. Opening an
//! adapter may take the process down: do it in a process that may die, as `skein worker` does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use pollster::block_on;

/// Bytes that are handed to the driver at once: it keeps a copy until they are on the device.
const UPLOAD_BYTES: usize = 16 << 20;

/// Why an adapter could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Nothing has this name or index.
    #[error(
        "no adapter matches `{wanted}`; there is: {found}\nhint: pass an index or part of one of these names"
    )]
    NoMatch {
        /// What was asked for.
        wanted: String,
        /// What exists.
        found: String,
    },
    /// The driver said no.
    #[error("the adapter {name} was refused: {why}")]
    Refused {
        /// The adapter.
        name: String,
        /// What was said.
        why: String,
    },
}

/// How a shader sees a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// A few constants.
    Uniform,
    /// Only read.
    Read,
    /// Read and written.
    Write,
}

/// An opened adapter.
pub struct Device {
    name: String,
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    trouble: Arc<Mutex<Option<String>>>,
    layouts: Mutex<BTreeMap<Vec<Access>, wgpu::BindGroupLayout>>,
    pipelines: Mutex<BTreeMap<String, wgpu::ComputePipeline>>,
    allocated_bytes: Mutex<u64>,
}

impl Device {
    /// The names of all adapters, in wgpu's order.
    #[must_use]
    pub fn names() -> Vec<String> {
        adapters().iter().map(|adapter| adapter.get_info().name).collect()
    }

    /// Opens an adapter: by index, by part of its name, or as `wgpu:INDEX:NAME`, where the name wins over an index
    /// that has shifted. Without a selection the best one: cards of their own before shared ones, software last.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(selection: Option<&str>) -> Result<Self, DeviceError> {
        let mut adapters = adapters();
        let infos: Vec<wgpu::AdapterInfo> = adapters.iter().map(wgpu::Adapter::get_info).collect();
        let Some(at) = choose(&infos, selection) else {
            let found: Vec<&str> = infos.iter().map(|info| info.name.as_str()).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            return Err(DeviceError::NoMatch { wanted: selection.unwrap_or("any").to_owned(), found });
        };
        let name = infos[at].name.clone();
        Self::from_adapter(&adapters.swap_remove(at)).map_err(|why| DeviceError::Refused { name, why })
    }

    fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self, String> {
        let limits = adapter.limits();
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("skein engine"),
            required_features: wgpu::Features::empty(),
            required_limits: limits.clone(),
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        });
        let (device, queue) = block_on(request).map_err(|error| error.to_string())?;
        let trouble = Arc::new(Mutex::new(None));
        let first = Arc::clone(&trouble);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| record(&first, error.to_string())));
        let first = Arc::clone(&trouble);
        device.set_device_lost_callback(move |reason, message| {
            // Dropping the device is how every one ends.
            if reason != wgpu::DeviceLostReason::Destroyed {
                record(&first, format!("the device was lost: {message}"));
            }
        });
        Ok(Self {
            name: adapter.get_info().name,
            device,
            queue,
            limits,
            trouble,
            layouts: Mutex::default(),
            pipelines: Mutex::default(),
            allocated_bytes: Mutex::default(),
        })
    }

    /// Its name, as the driver gives it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Largest part of a buffer that a shader may see at once, in bytes: a whole number of f32.
    pub(crate) fn binding_bytes_max(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size) / 4 * 4
    }

    /// Makes the device as small as the smallest, for tests.
    #[cfg(test)]
    pub(crate) fn limit_bindings(&mut self, bytes: u64) {
        self.limits.max_storage_buffer_binding_size = bytes;
    }

    /// What a driver's crash or an unplugged card does, for tests.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.device.destroy();
    }

    /// Where a bound part of a buffer may start: at multiples of this, in bytes.
    pub(crate) fn alignment(&self) -> u64 {
        u64::from(self.limits.min_storage_buffer_offset_alignment).max(16)
    }

    /// Bytes of all buffers made so far; what was dropped counts on, so ask when loading is done.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        *self.allocated_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first thing that went wrong on the device; it stays wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone().map_or(Ok(()), Err)
    }

    /// A buffer of zeros. An error is kept for [`Self::check`], and the buffer then refuses all use.
    pub(crate) fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        *self.allocated_bytes.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        let descriptor = wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.max(16),
            usage,
            mapped_at_creation: false,
        };
        self.device.create_buffer(&descriptor)
    }

    /// A buffer for shaders that the host fills and reads through copies.
    pub(crate) fn storage(&self, label: &str, bytes: u64) -> wgpu::Buffer {
        use wgpu::BufferUsages as Usage;
        self.buffer(label, bytes, Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC)
    }

    /// A buffer that holds these values.
    pub(crate) fn storage_of(&self, label: &str, values: &[f32]) -> Result<wgpu::Buffer, String> {
        let buffer = self.storage(label, 4 * values.len() as u64);
        self.upload(&buffer, 0, bytemuck::cast_slice(values))?;
        Ok(buffer)
    }

    /// Constants of one operation.
    pub(crate) fn uniform_of(&self, label: &str, words: &[u32; 8]) -> wgpu::Buffer {
        let buffer = self.buffer(label, 32, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
        self.write(&buffer, 0, bytemuck::cast_slice(words));
        buffer
    }

    /// Queues bytes to be copied before the next submission, a multiple of 4.
    pub(crate) fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        self.queue.write_buffer(buffer, offset, bytes);
    }

    /// Copies many bytes, a multiple of 4, waiting now and then, so that the driver's own copies stay few.
    pub(crate) fn upload(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<(), String> {
        for (number, part) in bytes.chunks(UPLOAD_BYTES).enumerate() {
            self.write(buffer, offset + (number * UPLOAD_BYTES) as u64, part);
            if part.len() == UPLOAD_BYTES {
                self.queue.submit([]);
                self.wait()?;
            }
        }
        Ok(())
    }

    /// Hands recorded work to the device.
    pub(crate) fn submit(&self, encoder: wgpu::CommandEncoder) {
        self.queue.submit([encoder.finish()]);
    }

    /// Starts recording.
    pub(crate) fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("skein step") })
    }

    fn wait(&self) -> Result<(), String> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|error| error.to_string())?;
        self.check()
    }

    /// Waits for everything submitted, and gives the first `words` f32 of a buffer made with `MAP_READ`.
    pub(crate) fn read_back(
        &self,
        buffer: &wgpu::Buffer,
        words: usize,
        out: &mut Vec<f32>,
    ) -> Result<(), String> {
        // A buffer that failed to be made must not be mapped.
        self.check()?;
        if words == 0 {
            return self.wait();
        }
        let slice = buffer.slice(..4 * words as u64);
        let (sender, receiver) = std::sync::mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |result| drop(sender.send(result)));
        self.wait()?;
        match receiver.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("the result could not be mapped: {error}")),
            Err(error) => return Err(format!("the device did not answer: {error}")),
        }
        let view = slice.get_mapped_range().map_err(|error| error.to_string())?;
        out.extend(view.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])));
        drop(view);
        buffer.unmap();
        self.check()
    }

    /// The layout of bind groups with these bindings, numbered from 0.
    fn layout(&self, accesses: &[Access]) -> wgpu::BindGroupLayout {
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        let made = layouts.entry(accesses.to_vec()).or_insert_with(|| {
            let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
                .zip(accesses)
                .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
                    binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty: match access {
                            Access::Uniform => wgpu::BufferBindingType::Uniform,
                            Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                            Access::Write => wgpu::BufferBindingType::Storage { read_only: false },
                        },
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
                    count: None,
                })
                .collect();
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            self.device.create_bind_group_layout(&descriptor)
        });
        made.clone()
    }

    /// Binds parts of buffers in order.
    pub(crate) fn bind(&self, accesses: &[Access], parts: &[wgpu::BufferBinding<'_>]) -> wgpu::BindGroup {
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(parts)
            .map(|(binding, part)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(part.clone()),
            })
            .collect();
        let layout = self.layout(accesses);
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &layout,
            entries: &entries,
        })
    }

    /// A compiled kernel; the same source and entry is compiled once.
    ///
    /// # Errors
    /// What the compiler said.
    pub(crate) fn pipeline(
        &self,
        source: &str,
        entry: &str,
        accesses: &[Access],
    ) -> Result<wgpu::ComputePipeline, String> {
        let key = format!("{entry} {source}");
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = pipelines.get(&key) {
            return Ok(made.clone());
        }
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(entry),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let bindings = self.layout(accesses);
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        let made = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(entry),
            // Every kernel writes its shared memory before it reads it.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        let errors = [block_on(internal.pop()), block_on(validation.pop())];
        if let Some(error) = errors.into_iter().flatten().next() {
            return Err(format!("the kernel `{entry}` was refused: {error}"));
        }
        pipelines.insert(key, made.clone());
        Ok(made)
    }
}

fn record(first: &Mutex<Option<String>>, message: String) {
    first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
}

fn adapters() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

/// Which of the adapters is meant.
fn choose(infos: &[wgpu::AdapterInfo], selection: Option<&str>) -> Option<usize> {
    let Some(text) = selection else {
        return (0..infos.len()).min_by_key(|at| rank(&infos[*at]));
    };
    if let Some((index, name)) = text.strip_prefix("wgpu:").and_then(|rest| rest.split_once(':')) {
        let named = |at: &usize| infos.get(*at).is_some_and(|info| info.name == name);
        return index.parse().ok().filter(named).or_else(|| (0..infos.len()).find(named));
    }
    if let Ok(index) = text.parse::<usize>() {
        return (index < infos.len()).then_some(index);
    }
    let text = text.to_lowercase();
    let matches = |at: &usize| infos[*at].name.to_lowercase().contains(&text);
    (0..infos.len()).filter(matches).min_by_key(|at| rank(&infos[*at]))
}

/// Lower is better.
fn rank(info: &wgpu::AdapterInfo) -> (u8, bool) {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    (kind, info.backend == wgpu::Backend::Gl)
}
