//! Owns the products of matrices with rows: which kernel for how many rows, and its dispatch.
//! Must never change a row's result by that choice: all kernels add in one order, see `matvec.wgsl`.

use std::sync::{Arc, OnceLock};

use super::device::{Access, Device};
use super::kernels::{Constant, MATMUL, MATVEC, PLACE, TURN, source};
use super::matrix::{BLOCK, Form, LANES, Matrix, Part, span};

/// Lanes' sets and outputs of a lane, per workgroup of matrix-vector products.
const SETS: u32 = 4;
const OUTPUTS: u32 = 2;
/// Rows that a matrix-vector kernel takes at once, least first. Weights are read once for each such group of rows.
const BATCHES: [u32; 4] = [1, 2, 4, 8];
/// Above this, tiles of weights are worth sharing between threads.
pub(crate) const MATVEC_ROWS_MAX: u32 = 16;
/// Rows of a tile, least first.
const TILES: [u32; 2] = [32, 64];

/// Bindings of a product: step, matrix, three planes, x, y.
pub(crate) const ACCESSES: [Access; 7] =
    [Access::Uniform, Access::Uniform, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write];

/// The kernels for one form of matrices, each compiled when it is first needed.
#[derive(Clone)]
pub(crate) struct Kernels {
    form: Form,
    head: bool,
    made: Arc<[OnceLock<wgpu::ComputePipeline>; BATCHES.len() + TILES.len()]>,
}

impl Kernels {
    /// `head`: for the rows asked for rather than for all.
    pub(crate) fn new(form: Form, head: bool) -> Self {
        Self { form, head, made: Arc::default() }
    }

    /// The kernel for `rows` rows, how many rows it takes at once, and how many outputs it makes.
    fn choose(&self, device: &Device, rows: u32) -> Result<(&wgpu::ComputePipeline, u32, u32), String> {
        let first = |sizes: &[u32]| sizes.iter().position(|size| rows <= *size).unwrap_or(sizes.len() - 1);
        let (place, entry, taken, outputs) = if rows <= MATVEC_ROWS_MAX {
            let at = first(&BATCHES);
            (at, "matvec", BATCHES[at], SETS * OUTPUTS)
        } else {
            let at = first(&TILES);
            (BATCHES.len() + at, "matmul", TILES[at], 64)
        };
        if let Some(made) = self.made[place].get() {
            return Ok((made, taken, outputs));
        }
        let (weights, mut constants) = self.form.kernel();
        constants.push(("HEAD", Constant::Truth(self.head)));
        let kernel = if entry == "matvec" {
            constants.extend([
                ("LANES", Constant::Whole(LANES)),
                ("SETS", Constant::Whole(SETS)),
                ("OUTPUTS", Constant::Whole(OUTPUTS)),
                ("BATCH", Constant::Whole(taken)),
            ]);
            MATVEC
        } else {
            constants.push(("TILE", Constant::Whole(taken)));
            MATMUL
        };
        let made = device.pipeline(&source(&constants, &[PLACE, TURN, weights, kernel]), entry, &ACCESSES)?;
        Ok((self.made[place].get_or_init(|| made), taken, outputs))
    }
}

/// One matrix bound to its inputs and outputs.
pub(crate) struct Product {
    kernels: Kernels,
    /// Rows and bindings of each part.
    parts: Vec<(u32, wgpu::BindGroup)>,
}

/// Rows in a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// f32 from one row to the next.
    pub(crate) stride: u32,
}

impl Product {
    /// Binds `y[.., first..] = matrix · x`. The rows of `x` are turned, as `turn.wgsl` says.
    pub(crate) fn new(
        device: &Device,
        kernels: Kernels,
        matrix: &Matrix,
        step: &wgpu::Buffer,
        x: Rows<'_>,
        y: Rows<'_>,
        first: u32,
    ) -> Self {
        let parts = bind_parts(device, matrix, step, x.buffer, y.buffer, [x.stride / 4, y.stride, first]);
        Self { kernels, parts }
    }

    /// Records the product for `rows` rows.
    ///
    /// # Errors
    /// When a kernel does not compile, in words.
    pub(crate) fn record(
        &self,
        device: &Device,
        pass: &mut wgpu::ComputePass<'_>,
        rows: u32,
    ) -> Result<(), String> {
        let (pipeline, taken, outputs) = self.kernels.choose(device, rows)?;
        pass.set_pipeline(pipeline);
        for (part_rows, bindings) in &self.parts {
            pass.set_bind_group(0, bindings, &[]);
            pass.dispatch_workgroups(part_rows.div_ceil(outputs), rows.div_ceil(taken), 1);
        }
        Ok(())
    }
}

/// Binds every part of a matrix between a buffer that is read and one that is written. Strides of x, in vec4, and of
/// y, and where the outputs begin, are the kernel's.
pub(crate) fn bind_parts(
    device: &Device,
    matrix: &Matrix,
    step: &wgpu::Buffer,
    x: &wgpu::Buffer,
    y: &wgpu::Buffer,
    [x_stride, y_stride, y_first]: [u32; 3],
) -> Vec<(u32, wgpu::BindGroup)> {
    let bind = |part: &Part| {
        let (blocks, span) = (matrix.blocks, span(matrix.blocks * BLOCK as u32));
        let unshift = part.unshift.to_bits();
        let op = [part.rows, part.first, blocks, span, x_stride, y_stride, y_first, unshift];
        let op = device.uniform_of("matrix", &op);
        let [codes, high, factors] = part.bindings();
        let whole = wgpu::Buffer::as_entire_buffer_binding;
        let bindings = [whole(step), whole(&op), codes, high, factors, whole(x), whole(y)];
        (part.rows, device.bind(&ACCESSES, &bindings))
    };
    matrix.parts.iter().map(bind).collect()
}
