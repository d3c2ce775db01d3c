//! Owns each kernel but the products: its constants, its bindings, its dispatch.
//! Must never know in which order a layer calls them.

use super::buffers::{Buffers, PARTS_BYTES, TABLES, qkv_stride, stride};
use super::device::{Access, Device};
use super::kernels::Constant::{self, Real, Truth, Whole};
use super::kernels::{ATTEND, ELEMENTWISE, EMBED, HALVES, PLACE, PREPARE, RESIDUAL, TURN, source};
use super::matrix::{Matrix, span};
use super::product::{ACCESSES, Product, bind_parts};
use super::weights::Layer;
use crate::config::{Activation, ModelConfig, RopeStyle};

/// Positions of a chunk of attention, as in `attend.wgsl`.
pub(crate) const CHUNK: u32 = 256;
/// Workgroups of attention that keep a device busy; with fewer, one query's chunks go to several.
const ATTEND_GROUPS: u32 = 1_024;

/// What differs from step to step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) rows: u32,
    pub(crate) asked: u32,
    /// Chunks of the longest row.
    pub(crate) chunks: u32,
    /// Where the numbers of the rows asked for begin in `index`.
    pub(crate) asked_first: u32,
}

impl Step {
    /// The kernels' `Step`.
    pub(crate) fn words(self) -> [u32; 4] {
        [self.rows, self.asked, self.chunks, self.asked_first]
    }
}

/// Rows over which a kernel goes.
#[derive(Clone, Copy)]
pub(crate) enum Over {
    All,
    Asked,
}

/// One entry of a plan.
pub(crate) enum Operation {
    Product(Product, Over),
    Kernel(Kernel, Over),
    Attend(Attend),
}

/// A kernel that starts so many workgroups per row.
pub(crate) struct Kernel {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    groups: u32,
}

/// Attention, in one go or in chunks.
pub(crate) struct Attend {
    whole: wgpu::ComputePipeline,
    split: wgpu::ComputePipeline,
    combine: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    heads: u32,
    /// The most chunks that a window touches.
    chunks_max: u32,
    /// f32 that one chunk of one query leaves.
    part: u32,
    /// Workgroups below which chunks are split.
    pub(crate) split_below: u32,
}

impl Operation {
    /// Records it.
    ///
    /// # Errors
    /// When a kernel does not compile, in words.
    pub(crate) fn record(
        &self,
        device: &Device,
        pass: &mut wgpu::ComputePass<'_>,
        step: Step,
    ) -> Result<(), String> {
        let count = |over: &Over| match over {
            Over::All => step.rows,
            Over::Asked => step.asked,
        };
        match self {
            Self::Product(product, over) => product.record(device, pass, count(over))?,
            Self::Kernel(kernel, over) => {
                pass.set_pipeline(&kernel.pipeline);
                pass.set_bind_group(0, &kernel.bindings, &[]);
                pass.dispatch_workgroups(kernel.groups, count(over), 1);
            }
            Self::Attend(attend) => attend.record(pass, step),
        }
        Ok(())
    }
}

impl Attend {
    fn record(&self, pass: &mut wgpu::ComputePass<'_>, step: Step) {
        let chunks = step.chunks.min(self.chunks_max);
        let queries = u64::from(step.rows) * u64::from(self.heads);
        // The stride between queries is that of the longest row, whatever the window.
        let left = queries * u64::from(step.chunks) * u64::from(self.part) * 4;
        pass.set_bind_group(0, &self.bindings, &[]);
        if chunks > 1 && queries < u64::from(self.split_below) && left <= PARTS_BYTES {
            pass.set_pipeline(&self.split);
            pass.dispatch_workgroups(self.heads, step.rows, chunks);
            pass.set_pipeline(&self.combine);
        } else {
            pass.set_pipeline(&self.whole);
        }
        pass.dispatch_workgroups(self.heads, step.rows, 1);
    }
}

/// `hidden = rows of a matrix`, by token.
pub(crate) fn embedding(
    device: &Device,
    buffers: &Buffers,
    config: &ModelConfig,
    matrix: &Matrix,
) -> Result<Vec<Operation>, String> {
    let (weights, mut constants) = matrix.form.kernel();
    constants.push(("SCALE", Real(config.embedding_scale)));
    let pipeline = device.pipeline(&source(&constants, &[PLACE, weights, EMBED]), "embed", &ACCESSES)?;
    let groups = (4 * matrix.blocks).div_ceil(64);
    let y_stride = stride(config.width);
    let parts = bind_parts(device, matrix, &buffers.step, &buffers.index, &buffers.hidden, [0, y_stride, 0]);
    let kernel = |(_, bindings)| Kernel { pipeline: pipeline.clone(), bindings, groups };
    Ok(parts.into_iter().map(|part| Operation::Kernel(kernel(part), Over::All)).collect())
}

/// What a joint does, see `residual.wgsl`.
#[derive(Clone, Copy)]
pub(crate) struct Joint<'a> {
    pub(crate) add: bool,
    /// The gain of the norm after a part.
    pub(crate) post: Option<&'a [f32]>,
    pub(crate) round: bool,
    /// The gain of the norm before the next part.
    pub(crate) next: Option<&'a [f32]>,
    /// For the rows asked for.
    pub(crate) head: bool,
}

impl Joint<'_> {
    pub(crate) const NONE: Self = Self { add: false, post: None, round: false, next: None, head: false };
}

/// `hidden += added`, `normed = norm(hidden)` and the like.
pub(crate) fn joint(
    device: &Device,
    buffers: &Buffers,
    config: &ModelConfig,
    joint: Joint<'_>,
) -> Result<Operation, String> {
    let constants = [
        ("WIDTH", Whole(config.width)),
        ("STRIDE", Whole(stride(config.width))),
        ("SPAN", Whole(span(config.width))),
        ("EPSILON", Real(config.norm_epsilon)),
        ("ADD", Truth(joint.add)),
        ("POST", Truth(joint.post.is_some())),
        ("ROUND", Truth(joint.round)),
        ("NEXT", Truth(joint.next.is_some())),
        ("HEAD", Truth(joint.head)),
    ];
    let width = config.width as usize;
    let mut gains = vec![0.0; 2 * width];
    for (to, gain) in gains.chunks_exact_mut(width).zip([joint.post, joint.next]) {
        if let Some(gain) = gain {
            if gain.len() != width {
                return Err(format!("a norm of {} elements does not fit a width of {width}", gain.len()));
            }
            to.copy_from_slice(gain);
        }
    }
    let gains = device.storage_of("gains", &gains)?;
    let (to, over) = if joint.head { (&buffers.answer, Over::Asked) } else { (&buffers.normed, Over::All) };
    let bound = [
        (&buffers.step, Access::Uniform),
        (&buffers.added, Access::Read),
        (&buffers.hidden, Access::Write),
        (to, Access::Write),
        (&gains, Access::Read),
        (&buffers.index, Access::Read),
    ];
    let kernel = kernel(device, &source(&constants, &[HALVES, TURN, RESIDUAL]), "residual", &bound, 1)?;
    Ok(Operation::Kernel(kernel, over))
}

/// Biases, norms and rotation of the heads; keys and values into the cache.
pub(crate) fn prepare(
    device: &Device,
    buffers: &Buffers,
    config: &ModelConfig,
    number: u32,
    layer: &Layer,
) -> Result<Operation, String> {
    let mut constants = heads(config);
    constants.extend([
        ("STRIDE", Whole(qkv_stride(config))),
        ("DIMS", Whole(config.rope.dims)),
        ("ADJACENT", Truth(config.rope.style == RopeStyle::Adjacent)),
        ("TABLES", Whole(TABLES)),
        ("ANGLES", Whole(u32::from(config.window_of(number).is_some()))),
        ("BIAS", Truth(!layer.biases.is_empty())),
        ("NORM", Truth(!layer.gains.is_empty())),
        ("EPSILON", Real(config.norm_epsilon)),
        ("QUERY_SCALE", Real(config.query_scale)),
    ]);
    let mut extras = layer.biases.clone();
    extras.resize(qkv_stride(config) as usize, 0.0);
    extras.extend(&layer.gains);
    extras.resize((qkv_stride(config) + 2 * config.head_width) as usize, 0.0);
    let extras = device.storage_of("extras", &extras)?;
    let bound = [
        (&buffers.qkv, Access::Write),
        (&buffers.index, Access::Read),
        (&buffers.angles, Access::Read),
        (&extras, Access::Read),
        (&layer.keys, Access::Write),
        (&layer.values, Access::Write),
    ];
    let groups = config.heads + 2 * config.kv_heads;
    let kernel = kernel(device, &source(&constants, &[HALVES, PREPARE]), "prepare", &bound, groups)?;
    Ok(Operation::Kernel(kernel, Over::All))
}

/// `attended = attention of the queries over the cache`.
pub(crate) fn attend(
    device: &Device,
    buffers: &Buffers,
    config: &ModelConfig,
    number: u32,
    layer: &Layer,
) -> Result<Attend, String> {
    let words = config.head_width.div_ceil(2);
    let per = words.div_ceil(64);
    let window = config.window_of(number);
    let mut constants = heads(config);
    constants.extend([
        ("STRIDE", Whole(qkv_stride(config))),
        ("OUT_STRIDE", Whole(stride(config.heads * config.head_width))),
        ("SPAN", Whole(span(config.heads * config.head_width))),
        ("SLICES", Whole((64 / words).max(1))),
        ("PER", Whole(per)),
        ("WINDOW", Whole(window.unwrap_or(0))),
        ("CAP", Real(config.score_cap.unwrap_or(0.0))),
    ]);
    let text = source(&constants, &[TURN, ATTEND]);
    let bound = [
        (&buffers.step, Access::Uniform),
        (&buffers.qkv, Access::Read),
        (&buffers.index, Access::Read),
        (&layer.keys, Access::Read),
        (&layer.values, Access::Read),
        (&buffers.attended, Access::Write),
        (&buffers.parts, Access::Write),
    ];
    let made = |entry| kernel(device, &text, entry, &bound, config.heads);
    let Kernel { pipeline: whole, bindings, .. } = made("whole")?;
    Ok(Attend {
        whole,
        split: made("split")?.pipeline,
        combine: made("combine")?.pipeline,
        bindings,
        heads: config.heads,
        chunks_max: window.map_or(u32::MAX, |window| window.div_ceil(CHUNK) + 1),
        part: 2 + 2 * per * 64,
        split_below: ATTEND_GROUPS,
    })
}

/// What is done in the middle of the feed-forward layer: `fed = activation(gate, up)`.
pub(crate) fn activate(
    device: &Device,
    buffers: &Buffers,
    config: &ModelConfig,
) -> Result<Operation, String> {
    let function = match config.activation {
        Activation::SiluGated => 0,
        Activation::GeluGated => 1,
    };
    let bound = [(&buffers.gate, Access::Write), (&buffers.up, Access::Read), (&buffers.fed, Access::Write)];
    let text = elementwise(function, 1.0, config.feed_width, stride(config.feed_width));
    let kernel = kernel(device, &text, "activate", &bound, config.feed_width.div_ceil(64))?;
    Ok(Operation::Kernel(kernel, Over::All))
}

/// `logits = cap · tanh(logits / cap)` of the rows asked for.
pub(crate) fn cap(
    device: &Device,
    buffers: &Buffers,
    config: &ModelConfig,
    cap: f32,
) -> Result<Operation, String> {
    let text = elementwise(0, cap, config.vocabulary, config.vocabulary);
    let bound = [(&buffers.logits, Access::Write)];
    let kernel = kernel(device, &text, "cap", &bound, config.vocabulary.div_ceil(64))?;
    Ok(Operation::Kernel(kernel, Over::Asked))
}

fn elementwise(function: u32, cap: f32, columns: u32, stride: u32) -> String {
    let constants = [
        ("FUNCTION", Whole(function)),
        ("CAP", Real(cap)),
        ("COLUMNS", Whole(columns)),
        ("STRIDE", Whole(stride)),
        ("SPAN", Whole(span(columns))),
    ];
    source(&constants, &[TURN, ELEMENTWISE])
}

fn kernel(
    device: &Device,
    text: &str,
    entry: &str,
    bound: &[(&wgpu::Buffer, Access)],
    groups: u32,
) -> Result<Kernel, String> {
    let accesses: Vec<Access> = bound.iter().map(|(_, access)| *access).collect();
    let parts: Vec<_> = bound.iter().map(|(buffer, _)| buffer.as_entire_buffer_binding()).collect();
    let pipeline = device.pipeline(text, entry, &accesses)?;
    Ok(Kernel { pipeline, bindings: device.bind(&accesses, &parts), groups })
}

fn heads(config: &ModelConfig) -> Vec<(&'static str, Constant)> {
    vec![
        ("HEADS", Whole(config.heads)),
        ("KV", Whole(config.kv_heads)),
        ("HEAD", Whole(config.head_width)),
        ("WORDS", Whole(config.head_width.div_ceil(2))),
    ]
}
