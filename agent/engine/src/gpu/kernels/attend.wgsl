// Attention of one query over the paged cache: out = sum of softmax(cap?(q · k)) * v, over the window.
//
// Positions go in chunks of 256, counted from position 0. Each chunk has its own maximum, and chunks are merged in
// order: by one workgroup (`whole`), or, where few queries would leave the device idle, a chunk by each workgroup
// (`split`) and a merge afterwards (`combine`). Both compute the same numbers in the same order, so a row's result
// depends on neither.
//
// Constants: HEADS, KV, HEAD, WORDS (u32 per head in the cache), SLICES (threads that share a word of the head, 64 /
// WORDS or 1), PER (words per thread), SPAN (of a row of out), WINDOW (0 for none), CAP (0 for none).
// Dispatch: x = HEADS, y = rows, z = chunks or 1.
// CPU twin: cpu::attention. Tolerance: relative L2 of 1e-5 to an f64 softmax over the same cache.

struct Step { rows: u32, asked: u32, splits: u32, spare: u32 }
@group(0) @binding(0) var<uniform> step: Step;
// [batch, STRIDE] f32, queries first.
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
// [4 per row of the batch | page tables]: position, first entry of the page table, and two more.
@group(0) @binding(2) var<storage, read> index: array<u32>;
// [pages, KV, WORDS, 16 positions] and [pages, KV, 16 positions, WORDS] pairs of f16.
@group(0) @binding(3) var<storage, read> keys: array<u32>;
@group(0) @binding(4) var<storage, read> values: array<u32>;
// [batch, OUT_STRIDE] f32, turned as turn.wgsl says.
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
// [batch, HEADS, splits, 2 + 2 PER 64] f32: maximum, sum of weights, and each thread's sums of values.
@group(0) @binding(6) var<storage, read_write> parts: array<f32>;

const THREADS: u32 = 64u;
const CHUNK: u32 = 256u;
const PART: u32 = 2u + 2u * PER * THREADS;

var<workgroup> query: array<f32, 2u * WORDS>;
var<workgroup> maxima: array<f32, THREADS>;
var<workgroup> weights: array<f32, CHUNK>;
var<workgroup> totals: array<f32, THREADS>;
var<workgroup> gathered: array<vec2<f32>, THREADS * PER>;

struct State { maximum: f32, total: f32, sums: array<vec2<f32>, PER> }

@compute @workgroup_size(THREADS)
fn whole(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    load_query(group, thread);
    var state: State;
    let last = last_chunk(group.y);
    for (var chunk = first_chunk(group.y); chunk <= last; chunk++) {
        let next = attend(group, thread, chunk);
        if (chunk == first_chunk(group.y)) { state = next; } else { state = merge(state, next); }
    }
    finish(group, thread, state);
}

@compute @workgroup_size(THREADS)
fn split(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let chunk = first_chunk(group.y) + group.z;
    if (chunk > last_chunk(group.y)) { return; }
    load_query(group, thread);
    let state = attend(group, thread, chunk);
    let to = ((group.y * HEADS + group.x) * step.splits + group.z) * PART;
    if (thread == 0u) {
        parts[to] = state.maximum;
        parts[to + 1u] = state.total;
    }
    for (var i = 0u; i < PER; i++) {
        parts[to + 2u + 2u * (i * THREADS + thread)] = state.sums[i].x;
        parts[to + 3u + 2u * (i * THREADS + thread)] = state.sums[i].y;
    }
}

@compute @workgroup_size(THREADS)
fn combine(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let chunks = last_chunk(group.y) - first_chunk(group.y) + 1u;
    var state: State;
    for (var chunk = 0u; chunk < chunks; chunk++) {
        let start = ((group.y * HEADS + group.x) * step.splits + chunk) * PART;
        var next: State;
        next.maximum = parts[start];
        next.total = parts[start + 1u];
        for (var i = 0u; i < PER; i++) {
            let at = start + 2u + 2u * (i * THREADS + thread);
            next.sums[i] = vec2<f32>(parts[at], parts[at + 1u]);
        }
        if (chunk == 0u) { state = next; } else { state = merge(state, next); }
    }
    finish(group, thread, state);
}

fn first_position(b: u32) -> u32 {
    let position = index[4u * b];
    if (WINDOW == 0u || position < WINDOW) { return 0u; }
    return position + 1u - WINDOW;
}

fn first_chunk(b: u32) -> u32 { return first_position(b) / CHUNK; }

fn last_chunk(b: u32) -> u32 { return index[4u * b] / CHUNK; }

fn load_query(group: vec3<u32>, thread: u32) {
    for (var i = thread; i < 2u * WORDS; i += THREADS) {
        query[i] = 0.0;
        if (i < HEAD) { query[i] = qkv[group.y * STRIDE + group.x * HEAD + i]; }
    }
    workgroupBarrier();
}

fn merge(a: State, b: State) -> State {
    let maximum = max(a.maximum, b.maximum);
    let by_a = exp(a.maximum - maximum);
    let by_b = exp(b.maximum - maximum);
    var made: State;
    made.maximum = maximum;
    made.total = a.total * by_a + b.total * by_b;
    for (var i = 0u; i < PER; i++) { made.sums[i] = a.sums[i] * by_a + b.sums[i] * by_b; }
    return made;
}

// One chunk: scores, a position a thread, then sums of values, a word of the head a thread.
fn attend(group: vec3<u32>, thread: u32, chunk: u32) -> State {
    let b = group.y;
    let position = index[4u * b];
    let table = index[4u * b + 1u] + chunk * (CHUNK / 16u);
    let kv = group.x / (HEADS / KV);
    let begin = max(first_position(b), chunk * CHUNK) - chunk * CHUNK;
    let end = min(position + 1u - chunk * CHUNK, CHUNK);
    var scores: array<f32, 4>;
    var most = -3.0e38;
    for (var i = 0u; i < 4u; i++) {
        let at = thread + THREADS * i;
        scores[i] = -3.0e38;
        if (at >= begin && at < end) {
            let start = (index[table + at / 16u] * KV + kv) * WORDS * 16u + at % 16u;
            var score = 0.0;
            for (var word = 0u; word < WORDS; word++) {
                let pair = unpack2x16float(keys[start + word * 16u]);
                score = fma(query[2u * word], pair.x, score);
                score = fma(query[2u * word + 1u], pair.y, score);
            }
            if (CAP > 0.0) { score = CAP * tanh(clamp(score / CAP, -15.0, 15.0)); }
            scores[i] = score;
            most = max(most, score);
        }
    }
    maxima[thread] = most;
    workgroupBarrier();
    var state: State;
    state.maximum = -3.0e38;
    for (var i = 0u; i < THREADS; i++) { state.maximum = max(state.maximum, maxima[i]); }
    var total = 0.0;
    for (var i = 0u; i < 4u; i++) {
        let at = thread + THREADS * i;
        var weight = 0.0;
        if (at >= begin && at < end) { weight = exp(scores[i] - state.maximum); }
        weights[at] = weight;
        total += weight;
    }
    totals[thread] = total;
    workgroupBarrier();
    for (var i = 0u; i < THREADS; i++) { state.total += totals[i]; }
    let slice = thread / WORDS;
    for (var i = 0u; i < PER; i++) {
        let word = thread % WORDS + i * THREADS;
        var sum = vec2<f32>(0.0);
        if (slice < SLICES && word < WORDS) {
            for (var page = begin / 16u + slice; page * 16u < end; page += SLICES) {
                let start = (index[table + page] * KV + kv) * 16u * WORDS + word;
                let stop = min(end, page * 16u + 16u);
                for (var at = max(begin, page * 16u); at < stop; at++) {
                    let pair = unpack2x16float(values[start + (at % 16u) * WORDS]);
                    sum = fma(vec2<f32>(weights[at]), pair, sum);
                }
            }
        }
        state.sums[i] = sum;
    }
    return state;
}

// Adds the slices and writes the head. The next chunk's first barrier, or the end, comes after every read.
fn finish(group: vec3<u32>, thread: u32, state: State) {
    for (var i = 0u; i < PER; i++) { gathered[i * THREADS + thread] = state.sums[i]; }
    workgroupBarrier();
    for (var word = thread; word < WORDS; word += THREADS) {
        var sum = gathered[word];
        for (var slice = 1u; slice < SLICES; slice++) { sum += gathered[slice * WORDS + word]; }
        sum /= state.total;
        let row = group.y * OUT_STRIDE;
        let i = group.x * HEAD + 2u * word;
        out[row + turned_element(OUT_STRIDE / 32u, SPAN, i)] = sum.x;
        if (2u * word + 1u < HEAD) { out[row + turned_element(OUT_STRIDE / 32u, SPAN, i + 1u)] = sum.y; }
    }
}
