//! Owns the buffers between a stage's kernels: their shapes, and room for so many rows.
//! Must never hold a weight or the cache.

use super::device::Device;
use super::matrix::BLOCK;
use crate::config::ModelConfig;
use crate::limits::ASKED_ROWS_MAX;

/// Bytes for what chunks of attention leave to be merged.
pub(crate) const PARTS_BYTES: u64 = 16 << 20;

/// Tables of angles per row: for layers that see the whole context, and for those that slide.
pub(crate) const TABLES: u32 = 2;

/// How much buffers are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Rows of a batch.
    pub(crate) rows: u32,
    /// Rows asked for at once.
    pub(crate) asked: u32,
    /// Pages of the cache.
    pub(crate) pages: u32,
}

/// The buffers, each f32 unless it says otherwise. Columns that a stride adds stay 0. Rows that products read are
/// turned, see `turn.wgsl`.
pub(crate) struct Buffers {
    /// The kernels' `Step`.
    pub(crate) step: wgpu::Buffer,
    /// u32: 4 per row (position, first entry of the page table, token, spare), page tables, rows asked for.
    pub(crate) index: wgpu::Buffer,
    /// `[rows, TABLES, dims / 2]` pairs of cosine and sine.
    pub(crate) angles: wgpu::Buffer,
    /// `[rows, stride(width)]`: the residual stream.
    pub(crate) hidden: wgpu::Buffer,
    /// `[rows, stride(width)]`, turned: what comes out of a norm.
    pub(crate) normed: wgpu::Buffer,
    /// `[rows, stride(width)]`: what a part of a layer adds.
    pub(crate) added: wgpu::Buffer,
    /// `[rows, qkv_stride]`: queries, keys, values.
    pub(crate) qkv: wgpu::Buffer,
    /// `[rows, stride(heads · head_width)]`, turned.
    pub(crate) attended: wgpu::Buffer,
    /// `[rows, stride(feed_width)]`
    pub(crate) gate: wgpu::Buffer,
    /// `[rows, stride(feed_width)]`
    pub(crate) up: wgpu::Buffer,
    /// `[rows, stride(feed_width)]`, turned: what the activation makes of both.
    pub(crate) fed: wgpu::Buffer,
    /// What chunks of attention leave, see `attend.wgsl`.
    pub(crate) parts: wgpu::Buffer,
    /// `[asked, stride(width)]`, turned: what the head is multiplied with.
    pub(crate) answer: wgpu::Buffer,
    /// `[asked, vocabulary]`
    pub(crate) logits: wgpu::Buffer,
}

impl Buffers {
    /// Room for `capacity`. An error is the device's to keep.
    pub(crate) fn new(device: &Device, config: &ModelConfig, capacity: Capacity) -> Self {
        let Capacity { rows, asked, pages } = capacity;
        let floats =
            |label, rows: u32, columns: u32| device.storage(label, 4 * u64::from(rows) * u64::from(columns));
        let heads = config.heads * config.head_width;
        Self {
            step: device.buffer("step", 16, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST),
            index: floats("index", 4 * rows + pages + ASKED_ROWS_MAX as u32, 1),
            angles: floats("angles", rows, TABLES * config.head_width),
            hidden: floats("hidden", rows, stride(config.width)),
            normed: floats("normed", rows, stride(config.width)),
            added: floats("added", rows, stride(config.width)),
            qkv: floats("qkv", rows, qkv_stride(config)),
            attended: floats("attended", rows, stride(heads)),
            gate: floats("gate", rows, stride(config.feed_width)),
            up: floats("up", rows, stride(config.feed_width)),
            fed: floats("fed", rows, stride(config.feed_width)),
            parts: device.storage("parts", PARTS_BYTES.min(device.binding_bytes_max())),
            answer: floats("answer", asked, stride(config.width)),
            logits: floats("logits", asked, config.vocabulary),
        }
    }
}

/// f32 from one row of so many columns to the next, in every buffer that a product reads.
pub(crate) const fn stride(columns: u32) -> u32 {
    columns.next_multiple_of(BLOCK as u32)
}

/// f32 from one row of queries, keys and values to the next.
pub(crate) const fn qkv_stride(config: &ModelConfig) -> u32 {
    (config.heads + 2 * config.kv_heads) * config.head_width
}
