// The joint between two parts of a layer. With every step optional, per row b:
//     s = y * gain_of(y)        POST:  s = y / rms(y) * post, the norm after a part
//     h += s                    ADD
//     h = rounded to the wire   ROUND: see crate::rows
//     x = h / rms(h) * next     NEXT:  the norm before the next part
// HEAD: the row of h is the one asked for, and only x is written, to the row of the answer.
//
// One workgroup a row. Constants: WIDTH, STRIDE, SPAN (of a row of x), EPSILON, ADD, POST, ROUND, NEXT, HEAD.
// Dispatch: y = rows.
// CPU twins: cpu::math, rows::round_in_place. Tolerance: relative L2 of 1e-6; ROUND is exact but for numbers below
// 2^-126.

struct Step { rows: u32, asked: u32, splits: u32, spare: u32 }
@group(0) @binding(0) var<uniform> step: Step;
// [batch, STRIDE] f32 each, columns beyond WIDTH are 0; x is turned as turn.wgsl says.
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> h: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;
// [2, WIDTH] f32: gains of the norm after, and of the norm before.
@group(0) @binding(4) var<storage, read> gains: array<f32>;
// [batch, 4 | … | asked]: the rows asked for begin at step.spare.
@group(0) @binding(5) var<storage, read> index: array<u32>;

const THREADS: u32 = 128u;
var<workgroup> squares: array<f32, THREADS>;
var<workgroup> largest: array<u32, THREADS>;
var<workgroup> squares_after: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn residual(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let answer = group.y * STRIDE;
    var row = answer;
    if (HEAD) { row = index[step.spare + group.y] * STRIDE; }
    var by = 1.0;
    if (POST) {
        var sum = 0.0;
        for (var i = thread; i < WIDTH; i += THREADS) { sum = fma(y[row + i], y[row + i], sum); }
        squares[thread] = sum;
        workgroupBarrier();
        sum = 0.0;
        for (var i = 0u; i < THREADS; i++) { sum += squares[i]; }
        by = 1.0 / sqrt(sum / f32(WIDTH) + EPSILON);
    }
    var most = 0u;
    if (ADD) {
        for (var i = thread; i < WIDTH; i += THREADS) {
            var add = y[row + i];
            if (POST) { add = add * by * gains[i]; }
            let made = h[row + i] + add;
            h[row + i] = made;
            most = max(most, bitcast<u32>(made) & 0x7fffffffu);
        }
    }
    if (ROUND) {
        largest[thread] = most;
        workgroupBarrier();
        for (var i = 0u; i < THREADS; i++) { most = max(most, largest[i]); }
        // As rows::exponent_of: from the largest value as f16 will round it. Rows that are not finite stay as they
        // are.
        let rounded = most + 0x1000u;
        if (rounded < 0x7f800000u && most != 0u) {
            let exponent = max(i32(rounded >> 23u) - 141, -126);
            let up = bitcast<f32>(u32(exponent + 127) << 23u);
            let down = bitcast<f32>(u32(127 - exponent) << 23u);
            for (var i = thread; i < WIDTH; i += THREADS) {
                h[row + i] = nearest_half(h[row + i] * down) * up;
            }
        }
    }
    if (NEXT) {
        var sum = 0.0;
        for (var i = thread; i < WIDTH; i += THREADS) { sum = fma(h[row + i], h[row + i], sum); }
        squares_after[thread] = sum;
        workgroupBarrier();
        sum = 0.0;
        for (var i = 0u; i < THREADS; i++) { sum += squares_after[i]; }
        by = 1.0 / sqrt(sum / f32(WIDTH) + EPSILON);
        for (var i = thread; i < WIDTH; i += THREADS) {
            x[answer + turned_element(STRIDE / 32u, SPAN, i)] = h[row + i] * by * gains[WIDTH + i];
        }
    }
}
