// What is done to every element of rows on its own: `activate` between the products of the feed-forward layer, `cap`
// on logits.
//
// Constants: FUNCTION (0 silu(gate) * up, 1 gelu_tanh(gate) * up), CAP, COLUMNS, STRIDE, SPAN (of a row of fed).
// Dispatch: x = ceil(COLUMNS / 64), y = rows. CPU twin: cpu::math. Tolerance: 1e-5, relative above 1.

// [batch, STRIDE] f32: gates, or logits, which are capped in place: cap * tanh(logit / cap).
@group(0) @binding(0) var<storage, read_write> gate: array<f32>;
// [batch, STRIDE] f32.
@group(0) @binding(1) var<storage, read> up: array<f32>;
// [batch, STRIDE] f32, turned as turn.wgsl says.
@group(0) @binding(2) var<storage, read_write> fed: array<f32>;

@compute @workgroup_size(64)
fn activate(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    if (column >= COLUMNS) { return; }
    let at = group.y * STRIDE + column;
    var made: f32;
    if (FUNCTION == 0u) {
        // Bounded, because not every device has an infinity to divide by.
        made = gate[at] / (1.0 + exp(min(-gate[at], 80.0))) * up[at];
    } else {
        let v = gate[at];
        made = 0.5 * v * (1.0 + bounded_tanh(0.7978845608 * v * (1.0 + 0.044715 * v * v))) * up[at];
    }
    fed[group.y * STRIDE + turned_element(STRIDE / 32u, SPAN, column)] = made;
}

@compute @workgroup_size(64)
fn cap(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    if (column >= COLUMNS) { return; }
    let at = group.y * STRIDE + column;
    gate[at] = CAP * bounded_tanh(gate[at] / CAP);
}

// Some devices compute tanh by exponentials that overflow.
fn bounded_tanh(v: f32) -> f32 {
    return tanh(clamp(v, -15.0, 15.0));
}
