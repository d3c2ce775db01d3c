// Weights of 8 bits: block p holds 32 in a row of the matrix. A weight is scale * (code - 128), times 2^shift.

// [blocks, 2]: byte i of component c of half h is the code of weight 16h + 4c + i.
@group(0) @binding(2) var<storage, read> codes: array<vec4<u32>>;
// [blocks / 2] f16 pairs: the scales of two blocks, low half first.
@group(0) @binding(4) var<storage, read> scales: array<u32>;

struct Block { at: u32, scale: f32 }
struct Eight { a: vec4<f32>, b: vec4<f32> }

fn block(p: u32) -> Block {
    let pair = unpack2x16float(scales[p / 2u]);
    return Block(p, select(pair.x, pair.y, (p & 1u) == 1u));
}

// Weights 8 * part to 8 * part + 7.
fn eight(start: Block, part: u32) -> Eight {
    let half = codes[2u * start.at + part / 2u];
    let words = select(half.xy, half.zw, (part & 1u) == 1u);
    let shifts = vec4<u32>(0u, 8u, 16u, 24u);
    let a = (vec4<u32>(words.x) >> shifts) & vec4<u32>(255u);
    let b = (vec4<u32>(words.y) >> shifts) & vec4<u32>(255u);
    let d = vec4<f32>(start.scale);
    let m = vec4<f32>(-128.0 * start.scale);
    return Eight(fma(vec4<f32>(a), d, m), fma(vec4<f32>(b), d, m));
}
