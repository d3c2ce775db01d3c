//! Fuzzes the GGUF reader: header, hyperparameters, tensors, elements. Whatever the file says, it must end in a model
//! whose tensors can be read, or in an error; never in a panic or in more memory than a few times the file.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use skein_engine::dtype::dequantize;
use skein_engine::gguf::Gguf;
use skein_engine::source::TensorSource;

/// Larger tensors only cost time.
const ELEMENTS_MAX: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::from_reader(Cursor::new(bytes), bytes.len() as u64) else { return };
    gguf.config().validate().expect("only sound hyperparameters are given out");
    for (name, info) in gguf.tensors().iter().filter(|(_, info)| info.rows * info.columns <= ELEMENTS_MAX) {
        let elements = gguf.read(name).expect("checked to lie inside the file");
        let mut values = vec![0.0; (info.rows * info.columns) as usize];
        dequantize(info.dtype, &elements, &mut values).expect("checked to be whole blocks");
    }
});
