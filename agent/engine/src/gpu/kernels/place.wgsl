// What every kernel that reads a matrix knows of it, and where a block of it lies.

struct Step { rows: u32, asked: u32, splits: u32, spare: u32 }
struct Matrix {
    rows: u32,        // of this part of the matrix
    first: u32,       // the part's first row, and where its outputs start in a row of y
    blocks: u32,      // of 32 columns, in a row
    span: u32,        // blocks that are added in one go: see matvec.wgsl
    x_stride: u32,    // in vec4 of f32
    y_stride: u32,    // in f32
    y_first: u32,     // where this matrix's outputs start in a row of y
    unshift: f32,     // 2^-shift
}

// Batch: rows that are computed, rows whose logits are asked for.
@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(1) var<uniform> op: Matrix;

// Where block `at` of a row lies among the row's. Lane l of a matrix-vector product adds blocks l * span to l * span
// + span - 1, and the lanes' i-th blocks lie side by side, so that lanes read together what lies together. The last
// span may be shorter.
fn place(at: u32) -> u32 {
    let spans = (op.blocks + op.span - 1u) / op.span;
    let short = op.blocks - (spans - 1u) * op.span;
    let lane = at / op.span;
    let i = at % op.span;
    return i * spans + lane - max(i, short) + short;
}
