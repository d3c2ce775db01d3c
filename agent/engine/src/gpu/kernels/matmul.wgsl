// y[b, o] = sum over k of w[o, k] * x[b, k], for many rows b: prompts.
//
// A workgroup makes 64 outputs of TILE rows; a thread makes 4 of 4: outputs t, t + 16, t + 32, t + 48 of rows r, r +
// TILE/4, … Tiles of 32 columns of w (turned into f32) and of x lie in workgroup memory, 8 vec4 a row, turned by the
// row's number so that neighbouring rows lie in different banks. Sums are added in matvec.wgsl's order: a span of
// blocks, element by element, then the spans' sums in order.
//
// Constants: TILE (rows of x, a multiple of 4), HEAD. Dispatch: x = ceil(rows / 64), y = ceil(batch / TILE).
// CPU twin: cpu::multiply. Tolerance: none to matvec's results, which it equals bit by bit.

// [batch, x_stride] vec4 of f32, turned as turn.wgsl says; what lies beyond a row's columns is 0.
@group(0) @binding(5) var<storage, read> x: array<vec4<f32>>;
// [batch, y_stride] f32.
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// [64 outputs, 8] and [TILE rows, 8].
var<workgroup> ws: array<vec4<f32>, 512>;
var<workgroup> xs: array<vec4<f32>, TILE * 8u>;

const THREADS: u32 = TILE * 4u;

@compute @workgroup_size(THREADS)
fn matmul(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let count = batch_rows();
    let t = thread % 16u;
    let r = thread / 16u;
    //:for i 4
    var sum$i = vec4<f32>(0.0);
    var total$i = vec4<f32>(0.0);
    //:end
    for (var at = 0u; at < op.blocks; at++) {
        for (var load = thread; load < 256u; load += THREADS) {
            let output = load / 4u;
            let part = load % 4u;
            let w = min(group.x * 64u + output, op.rows - 1u) * op.blocks + place(at);
            let weights = eight(block(w), part);
            ws[output * 8u + ((2u * part + output) & 7u)] = weights.a;
            ws[output * 8u + ((2u * part + 1u + output) & 7u)] = weights.b;
        }
        for (var load = thread; load < TILE * 8u; load += THREADS) {
            let b = load / 8u;
            let k = load % 8u;
            let row = min(group.y * TILE + b, count - 1u) * op.x_stride;
            xs[b * 8u + ((k + b) & 7u)] = x[row + turned(op.blocks, op.span, at, k)];
        }
        workgroupBarrier();
        for (var k = 0u; k < 8u; k++) {
            //:for i 4
            let w$i = ws[(t + 16u * $iu) * 8u + ((k + t) & 7u)];
            let x$i = xs[(r + TILE / 4u * $iu) * 8u + ((k + r + TILE / 4u * $iu) & 7u)];
            //:end
            let wx = vec4<f32>(w0.x, w1.x, w2.x, w3.x);
            let wy = vec4<f32>(w0.y, w1.y, w2.y, w3.y);
            let wz = vec4<f32>(w0.z, w1.z, w2.z, w3.z);
            let ww = vec4<f32>(w0.w, w1.w, w2.w, w3.w);
            //:for i 4
            sum$i = fma(wx, vec4<f32>(x$i.x), sum$i);
            sum$i = fma(wy, vec4<f32>(x$i.y), sum$i);
            sum$i = fma(wz, vec4<f32>(x$i.z), sum$i);
            sum$i = fma(ww, vec4<f32>(x$i.w), sum$i);
            //:end
        }
        if ((at + 1u) % op.span == 0u || at + 1u == op.blocks) {
            //:for i 4
            total$i += sum$i;
            sum$i = vec4<f32>(0.0);
            //:end
        }
        workgroupBarrier();
    }
    //:for i 4
    {
        let b = group.y * TILE + r + TILE / 4u * $iu;
        if (b < count) {
            let to = b * op.y_stride + op.y_first + op.first;
            //:for j 4
            {
                let output = group.x * 64u + t + 16u * $ju;
                if (output < op.rows) { y[to + output] = total$i[$j] * op.unshift; }
            }
            //:end
        }
    }
    //:end
}

// The head multiplies the rows asked for, everything else all rows.
fn batch_rows() -> u32 {
    if (HEAD) { return step.asked; }
    return step.rows;
}
