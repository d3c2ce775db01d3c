//! Fuzzes the decoder of manifests: what it accepts must encode to the same bytes and be of one mind about sizes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_engine::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    assert_eq!(manifest.encode().expect("it was just decoded"), bytes);
    let layers = manifest.config.layers;
    let all: u64 = (0..layers).map(|layer| manifest.layer_bytes(layer)).sum();
    let pieces: u64 = manifest.pieces_of(0..layers).iter().map(|(_, bytes)| bytes).sum();
    assert!(pieces <= all + manifest.embedding_bytes() + manifest.head_bytes());
});
