// Where four elements of a row of x lie, in vec4: those from 4k on of block `at`, of `blocks` in a row.
//
// The lanes of a matrix-vector product each read their own span of blocks, see matvec.wgsl. So that lanes read
// together what lies together, the rows that products read are written turned: first all lanes' first four elements,
// then their next four.
fn turned(blocks: u32, span: u32, at: u32, k: u32) -> u32 {
    let spans = (blocks + span - 1u) / span;
    let short = blocks - (spans - 1u) * span;
    let lane = at / span;
    let i = at % span;
    // The last span may be shorter; then the others go on without it.
    let wide = select(spans - 1u, spans, i < short);
    return 8u * (i * spans - max(i, short) + short) + k * wide + lane;
}

// Where element i of such a row lies, in f32.
fn turned_element(blocks: u32, span: u32, i: u32) -> u32 {
    return 4u * turned(blocks, span, i / 32u, i % 32u / 4u) + i % 4u;
}
