//! Fuzzes the decoders of what stages send each other: what they accept must encode to the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_engine::step::{Chunk, Output};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    if kind % 2 == 0 {
        let Ok(chunk) = borsh::from_slice::<Chunk>(bytes) else { return };
        assert_eq!(borsh::to_vec(&chunk).expect("it was just decoded"), bytes);
    } else {
        let Ok(output) = borsh::from_slice::<Output>(bytes) else { return };
        assert_eq!(borsh::to_vec(&output).expect("it was just decoded"), bytes);
    }
});
