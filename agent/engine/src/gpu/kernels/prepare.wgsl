// From the products of one row to queries, and to keys and values in the cache, one head at a time:
//     v += bias; q, k: v = v / rms(v) * gain (NORM), then rotated; q *= QUERY_SCALE; k, v: to f16, into the cache.
//
// One workgroup a head; heads are numbered queries, keys, values. Constants: HEADS, KV, HEAD, WORDS (u32 per head in
// the cache: half its width, rounded up), DIMS (rotated), ADJACENT (2i with 2i + 1, otherwise i with i + DIMS/2),
// BIAS, NORM, EPSILON, QUERY_SCALE, ANGLES (which of the row's tables). Dispatch: x = HEADS + 2 KV, y = rows.
// CPU twins: cpu::math, cpu::rope. Tolerance: relative L2 of 2e-6 for queries, of 5e-4 for what is f16.

// [batch, STRIDE] f32: HEADS queries, KV keys, KV values of HEAD each.
@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
// [4 per row of the batch | page tables]: position, first entry of the page table, and two more.
@group(0) @binding(1) var<storage, read> index: array<u32>;
// [batch, TABLES, DIMS / 2] pairs of cosine and sine.
@group(0) @binding(2) var<storage, read> angles: array<vec2<f32>>;
// [(HEADS + 2 KV) HEAD] biases, then [HEAD] gains of queries and [HEAD] of keys; f32.
@group(0) @binding(3) var<storage, read> extras: array<f32>;
// [pages, KV, WORDS, 16 positions] pairs of f16: neighbouring threads read neighbouring positions.
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
// [pages, KV, 16 positions, WORDS] pairs of f16: neighbouring threads read neighbouring elements.
@group(0) @binding(5) var<storage, read_write> values: array<u32>;

const THREADS: u32 = 64u;
var<workgroup> head: array<f32, 2u * WORDS>;

@compute @workgroup_size(THREADS)
fn prepare(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let b = group.y;
    let start = b * STRIDE + group.x * HEAD;
    let is_query = group.x < HEADS;
    let is_value = group.x >= HEADS + KV;
    for (var i = thread; i < 2u * WORDS; i += THREADS) {
        var v = 0.0;
        if (i < HEAD) {
            v = qkv[start + i];
            if (BIAS) { v += extras[group.x * HEAD + i]; }
        }
        head[i] = v;
    }
    workgroupBarrier();
    var by = 1.0;
    if (NORM && !is_value) {
        var sum = 0.0;
        for (var i = 0u; i < HEAD; i++) { sum = fma(head[i], head[i], sum); }
        by = 1.0 / sqrt(sum / f32(HEAD) + EPSILON);
    }
    let position = index[4u * b];
    let page = index[index[4u * b + 1u] + position / 16u];
    let slot = position % 16u;
    for (var word = thread; word < WORDS; word += THREADS) {
        let pair = vec2<f32>(element(group.x, b, 2u * word, by), element(group.x, b, 2u * word + 1u, by));
        if (is_query) {
            qkv[start + 2u * word] = pair.x * QUERY_SCALE;
            if (2u * word + 1u < HEAD) { qkv[start + 2u * word + 1u] = pair.y * QUERY_SCALE; }
        } else if (is_value) {
            values[((page * KV + group.x - HEADS - KV) * 16u + slot) * WORDS + word] = pack_halves(pair.x, pair.y);
        } else {
            keys[((page * KV + group.x - HEADS) * WORDS + word) * 16u + slot] = pack_halves(pair.x, pair.y);
        }
    }
}

// Element i of the head after norm and rotation; 0 beyond its width.
fn element(number: u32, b: u32, i: u32, by: f32) -> f32 {
    let own = normed(number, i, by);
    if (i >= DIMS || number >= HEADS + KV) { return own; }
    var pair = i / 2u;
    var second = (i & 1u) == 1u;
    var other = i ^ 1u;
    if (!ADJACENT) {
        second = i >= DIMS / 2u;
        pair = select(i, i - DIMS / 2u, second);
        other = select(i + DIMS / 2u, i - DIMS / 2u, second);
    }
    let angle = angles[(b * TABLES + ANGLES) * (DIMS / 2u) + pair];
    return own * angle.x + normed(number, other, by) * select(-angle.y, angle.y, second);
}

fn normed(number: u32, i: u32, by: f32) -> f32 {
    if (!NORM || number >= HEADS + KV || i >= HEAD) { return head[i]; }
    return head[i] * by * extras[(HEADS + 2u * KV) * HEAD + select(0u, HEAD, number >= HEADS) + i];
}
