// Weights that are floats: block p holds 32 in a row of the matrix.
//
// Constants: WORDS (vec4 of words per 8 weights: 1 for f16 and bf16, 2 for f32), BRAIN (bf16 rather than f16).
// f16 is stored times 2^shift, so that a device that flushes subnormal numbers to zero loses none.

// [blocks, 4 * WORDS]: weights in order, low half of a word first.
@group(0) @binding(2) var<storage, read> codes: array<vec4<u32>>;

struct Block { at: u32 }
struct Eight { a: vec4<f32>, b: vec4<f32> }

fn block(p: u32) -> Block {
    return Block(4u * WORDS * p);
}

// Weights 8 * part to 8 * part + 7.
fn eight(start: Block, part: u32) -> Eight {
    let words = codes[start.at + WORDS * part];
    if (WORDS == 2u) {
        return Eight(bitcast<vec4<f32>>(words), bitcast<vec4<f32>>(codes[start.at + WORDS * part + 1u]));
    }
    if (BRAIN) {
        let low = bitcast<vec4<f32>>(words << vec4<u32>(16u));
        let top = bitcast<vec4<f32>>(words & vec4<u32>(0xffff0000u));
        return Eight(vec4<f32>(low.x, top.x, low.y, top.y), vec4<f32>(low.z, top.z, low.w, top.w));
    }
    return Eight(
        vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}
