// y[b, o] = sum over k of w[o, k] * x[b, k], for up to BATCH rows b at once: decoding.
//
// A workgroup makes SETS * OUTPUTS outputs of BATCH rows. LANES lanes share an output; lane l adds the l-th span of
// blocks, element by element, and the lanes' sums are added in order. matmul.wgsl adds in the same order, so a row's
// result is the same in either and does not depend on which rows it is computed with.
//
// Constants: LANES, SETS, OUTPUTS, BATCH. Dispatch: x = ceil(rows / (SETS * OUTPUTS)), y = ceil(batch / BATCH).
// CPU twin: cpu::multiply. Tolerance: relative L2 of 2e-6 to an f64 sum of the same weights, of 5e-4 where a K type's
// nested factors were rounded to eleven bits.

// [batch, x_stride] vec4 of f32, turned as turn.wgsl says; what lies beyond a row's columns is 0.
@group(0) @binding(5) var<storage, read> x: array<vec4<f32>>;
// [batch, y_stride] f32.
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

var<workgroup> sums: array<f32, LANES * SETS * OUTPUTS * BATCH>;

@compute @workgroup_size(LANES * SETS)
fn matvec(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let lane = thread % LANES;
    let band = thread / LANES;
    let output = (group.x * SETS + band) * OUTPUTS;
    let row = group.y * BATCH;
    let count = batch_rows();
    let begin = min(lane * op.span, op.blocks);
    let end = min(begin + op.span, op.blocks);
    //:for o OUTPUTS
    let w$o = min(output + $ou, op.rows - 1u) * op.blocks;
    //:for b BATCH
    var sum_$o_$b = 0.0;
    //:end
    //:end
    //:for b BATCH
    let x$b = min(row + $bu, count - 1u) * op.x_stride;
    //:end
    for (var at = begin; at < end; at++) {
        let p = place(at);
        let first = turned(op.blocks, op.span, at, 0u);
        let next = turned(op.blocks, op.span, at, 1u) - first;
        //:for o OUTPUTS
        let block$o = block(w$o + p);
        //:end
        //:for part 4
        {
            let k = first + 2u * $partu * next;
            //:for o OUTPUTS
            let eight$o = eight(block$o, $partu);
            //:end
            //:for b BATCH
            {
                let a = x[x$b + k];
                let b = x[x$b + k + next];
                //:for o OUTPUTS
                sum_$o_$b = fma(eight$o.a.x, a.x, sum_$o_$b);
                sum_$o_$b = fma(eight$o.a.y, a.y, sum_$o_$b);
                sum_$o_$b = fma(eight$o.a.z, a.z, sum_$o_$b);
                sum_$o_$b = fma(eight$o.a.w, a.w, sum_$o_$b);
                sum_$o_$b = fma(eight$o.b.x, b.x, sum_$o_$b);
                sum_$o_$b = fma(eight$o.b.y, b.y, sum_$o_$b);
                sum_$o_$b = fma(eight$o.b.z, b.z, sum_$o_$b);
                sum_$o_$b = fma(eight$o.b.w, b.w, sum_$o_$b);
                //:end
            }
            //:end
        }
        //:end
    }
    //:for o OUTPUTS
    //:for b BATCH
    sums[((band * OUTPUTS + $ou) * BATCH + $bu) * LANES + lane] = sum_$o_$b;
    //:end
    //:end
    workgroupBarrier();
    for (var done = thread; done < SETS * OUTPUTS * BATCH; done += LANES * SETS) {
        let made = group.x * SETS * OUTPUTS + done / BATCH;
        let b = row + done % BATCH;
        if (made < op.rows && b < count) {
            var total = 0.0;
            for (var l = 0u; l < LANES; l++) {
                total += sums[done * LANES + l];
            }
            y[b * op.y_stride + op.y_first + op.first + made] = total * op.unshift;
        }
    }
}

// The head multiplies the rows asked for, everything else all rows.
fn batch_rows() -> u32 {
    if (HEAD) { return step.asked; }
    return step.rows;
}
