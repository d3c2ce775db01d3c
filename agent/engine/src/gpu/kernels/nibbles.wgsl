// Weights of 4, 5 or 6 bits: block p holds 32 in a row of the matrix.
//
// Constants: HIGH (bits of a code beyond four: 0, 1, 2), GROUPS (scales per block: 1, 2), AFFINE (with minimum),
// ZERO (the code that means 0 where there is no minimum). A weight is scale * code + minimum, all times 2^shift
// (`op.unshift` undoes it).

// [blocks]: nibble i of component c is the low part of weight 8c + i.
@group(0) @binding(2) var<storage, read> codes: array<vec4<u32>>;
// [blocks * HIGH]: bits HIGH * i.. of the block's words are the high part of weight i. Not read where HIGH is 0.
@group(0) @binding(3) var<storage, read> high: array<u32>;
// f16 pairs, low half first. AFFINE: [blocks * GROUPS] of scale and minimum; otherwise [blocks * GROUPS / 2] of two
// scales.
@group(0) @binding(4) var<storage, read> scales: array<u32>;

struct Block { codes: vec4<u32>, high: vec2<u32>, scales: vec4<f32> }
struct Eight { a: vec4<f32>, b: vec4<f32> }

// What is needed of a block: codes, high bits, and scale and minimum of its first and second half.
fn block(p: u32) -> Block {
    var made: Block;
    made.codes = codes[p];
    if (HIGH == 1u) {
        made.high.x = high[p];
    } else if (HIGH == 2u) {
        made.high = vec2<u32>(high[2u * p], high[2u * p + 1u]);
    }
    if (AFFINE) {
        let first = unpack2x16float(scales[p * GROUPS]);
        made.scales = vec4<f32>(first, first);
        if (GROUPS == 2u) { made.scales = vec4<f32>(first, unpack2x16float(scales[p * GROUPS + 1u])); }
    } else {
        let pair = unpack2x16float(scales[select(p / 2u, p, GROUPS == 2u)]);
        if (GROUPS == 2u) {
            made.scales = vec4<f32>(pair.x, -ZERO * pair.x, pair.y, -ZERO * pair.y);
        } else {
            let one = select(pair.x, pair.y, (p & 1u) == 1u);
            made.scales = vec4<f32>(one, -ZERO * one, one, -ZERO * one);
        }
    }
    return made;
}

// Weights 8 * part to 8 * part + 7.
fn eight(start: Block, part: u32) -> Eight {
    let word = start.codes[part];
    var a = (vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    var b = (vec4<u32>(word) >> vec4<u32>(16u, 20u, 24u, 28u)) & vec4<u32>(15u);
    if (HIGH == 1u) {
        let bits = start.high.x >> (8u * part);
        a |= ((vec4<u32>(bits) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u)) << vec4<u32>(4u);
        b |= ((vec4<u32>(bits) >> vec4<u32>(4u, 5u, 6u, 7u)) & vec4<u32>(1u)) << vec4<u32>(4u);
    } else if (HIGH == 2u) {
        let bits = select(start.high.x, start.high.y, part > 1u) >> (16u * (part & 1u));
        a |= ((vec4<u32>(bits) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u)) << vec4<u32>(4u);
        b |= ((vec4<u32>(bits) >> vec4<u32>(8u, 10u, 12u, 14u)) & vec4<u32>(3u)) << vec4<u32>(4u);
    }
    let scale = select(start.scales.xy, start.scales.zw, part > 1u);
    let d = vec4<f32>(scale.x);
    let m = vec4<f32>(scale.y);
    return Eight(fma(vec4<f32>(a), d, m), fma(vec4<f32>(b), d, m));
}
