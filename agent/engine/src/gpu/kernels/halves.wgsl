// Rounding to f16 without f16: what a driver's own conversion rounds to is its own affair.

// The f16 nearest to v, ties to even, as f32. |v| must be below 65,520.
fn nearest_half(v: f32) -> f32 {
    let bits = bitcast<u32>(v);
    let kept = (bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u;
    // Below 2^-14 f16 has a fixed step of 2^-24.
    return select(bitcast<f32>(kept), round(v * 16777216.0) / 16777216.0, abs(v) < 0.00006103515625);
}

// Two values as f16, low half first; what is too large becomes the largest.
fn pack_halves(low: f32, top: f32) -> u32 {
    return pack2x16float(vec2<f32>(nearest_half(clamp(low, -65504.0, 65504.0)), nearest_half(clamp(top, -65504.0, 65504.0))));
}
