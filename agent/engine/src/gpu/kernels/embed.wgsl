// h[b, :] = embedding[token of b, :] * SCALE.
//
// A thread makes 8 elements. Constants: SCALE. Dispatch: x = ceil(4 * blocks / 64), y = batch.
// CPU twin: cpu::matrix. Tolerance: as matvec.wgsl's.

// [4 per row of the batch | …]: position, first entry of the page table, token, and one spare.
@group(0) @binding(5) var<storage, read> index: array<u32>;
// [batch, y_stride] f32.
@group(0) @binding(6) var<storage, read_write> h: array<f32>;

@compute @workgroup_size(64)
fn embed(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let b = group.y;
    let at = (group.x * 64u + thread) / 4u;
    let part = thread % 4u;
    let wanted = index[4u * b + 2u];
    if (at < op.blocks && wanted >= op.first && wanted - op.first < op.rows) {
        let made = eight(block((wanted - op.first) * op.blocks + place(at)), part);
        let to = b * op.y_stride + 32u * at + 8u * part;
        for (var i = 0u; i < 4u; i++) {
            h[to + i] = made.a[i] * op.unshift * SCALE;
            h[to + 4u + i] = made.b[i] * op.unshift * SCALE;
        }
    }
}
