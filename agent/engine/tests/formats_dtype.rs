//! Blocks of every type against numbers that ggml's own reference made of them (`golden/blocks.py`).

use proptest::prelude::*;
use skein_engine::dtype::{Dtype, dequantize, noise, quantize};

const GOLDEN: &str = include_str!("golden/blocks.txt");

fn dtype(name: &str) -> Dtype {
    Dtype::ALL.into_iter().find(|dtype| dtype.name() == name).unwrap_or_else(|| panic!("{name}"))
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16).map_or(0, |digit| digit as u8);
    hexadecimal.as_bytes().chunks(2).map(|pair| 16 * digit(&pair[0]) + digit(&pair[1])).collect()
}

fn numbers(hexadecimal: &str) -> Vec<f32> {
    bytes(hexadecimal).as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

#[test]
fn blocks_mean_what_the_reference_says() {
    let mut seen = 0;
    for line in GOLDEN.lines().filter_map(|line| line.strip_prefix("dequantize ")) {
        let [name, blocks, expected] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let expected = numbers(expected);
        let mut found = vec![f32::NAN; expected.len()];
        dequantize(dtype(name), &bytes(blocks), &mut found).unwrap();
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{name} {index}: {found} is not {expected}");
        }
        seen += 1;
    }
    assert_eq!(seen, Dtype::ALL.len());
}

#[test]
fn rounding_is_the_references() {
    let mut seen = 0;
    for line in GOLDEN.lines().filter_map(|line| line.strip_prefix("quantize ")) {
        let [name, values, expected] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(quantize(dtype(name), &numbers(values)).unwrap(), bytes(expected), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 8);
    assert_eq!(quantize(Dtype::Q4K, &[0.0; 256]), None);
    assert_eq!(quantize(Dtype::Q4_0, &[0.0; 31]), None);
}

#[test]
fn noise_is_finite_small_and_repeatable() {
    for dtype in Dtype::ALL {
        let blocks = noise(dtype, 2_048, 5).unwrap();
        let mut values = vec![0.0; 2_048];
        dequantize(dtype, &blocks, &mut values).unwrap();
        let largest = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        assert!((0.5..=2.0).contains(&largest), "{dtype:?} reaches {largest}");
        let mean = values.iter().sum::<f32>() / 2_048.0;
        assert!(mean.abs() < 0.4, "{dtype:?} has a mean of {mean}");
        assert_eq!(noise(dtype, 2_048, 5).unwrap(), blocks);
        assert_ne!(noise(dtype, 2_048, 6).unwrap(), blocks);
    }
    assert_eq!(noise(Dtype::Q6K, 255, 1), None);
}

#[test]
fn wrong_lengths_are_refused() {
    for dtype in Dtype::ALL {
        let bytes = vec![0; dtype.block_bytes()];
        let mut out = vec![0.0; dtype.block_len()];
        assert!(dequantize(dtype, &bytes, &mut out).is_ok());
        assert!(dequantize(dtype, &bytes[1..], &mut out).is_err(), "{dtype:?}");
        assert!(dequantize(dtype, &bytes, &mut out[1..]).is_err(), "{dtype:?}");
    }
}

proptest! {
    /// Every number comes back within half a step of the block.
    #[test]
    fn rounding_loses_less_than_a_step(values in prop::array::uniform32(-3.0..3.0_f32)) {
        for (dtype, steps) in [(Dtype::Q4_0, 8.0), (Dtype::Q4_1, 15.0), (Dtype::Q5_0, 16.0), (Dtype::Q5_1, 31.0), (Dtype::Q8_0, 127.0)] {
            let mut back = [0.0; 32];
            dequantize(dtype, &quantize(dtype, &values).unwrap(), &mut back).unwrap();
            let (least, most) = values.iter().fold((0.0_f32, 0.0_f32), |(l, m), v| (l.min(*v), m.max(*v)));
            // The offset types spend their last integer on one side only.
            let step = (most - least) / steps;
            for (value, back) in values.iter().zip(back) {
                prop_assert!((value - back).abs() <= step + 0.01, "{:?}: {} became {}", dtype, value, back);
            }
        }
    }
}
