//! Owns the tests of heads: biases, norms, rotation, the cache, and attention over it.
//! Must never assume where a page lies.

use half::f16;

use super::*;
use crate::dtype::Dtype;
use crate::gpu::angles::Angles;
use crate::gpu::matrix::Matrix;
use crate::gpu::operations::{Operation, attend, prepare};
use crate::gpu::weights::{Layer, page_bytes};
use crate::source::TensorInfo;

/// A layer of which only the heads matter.
fn layer(device: &Device, config: &ModelConfig, biases: Vec<f32>, gains: Vec<f32>) -> Layer {
    let nothing = || {
        let info = TensorInfo { dtype: Dtype::F32, rows: 1, columns: 1 };
        Matrix::load(device, "nothing", &info, &[0; 4]).unwrap()
    };
    Layer {
        attention_norm: Vec::new(),
        query: nothing(),
        key: nothing(),
        value: nothing(),
        biases,
        gains,
        output: nothing(),
        post_attention_norm: None,
        feed_norm: Vec::new(),
        gate: nothing(),
        up: nothing(),
        down: nothing(),
        post_feed_norm: None,
        keys: device.storage("keys", 200 * page_bytes(config)),
        values: device.storage("values", 200 * page_bytes(config)),
    }
}

/// Rows at these positions, with pages that lie crosswise.
fn index(device: &Device, config: &ModelConfig, buffers: &Buffers, positions: &[u32]) {
    let tables = 4 * positions.len() as u32;
    let mut words: Vec<u32> = positions.iter().flat_map(|position| [*position, tables, 0, 0]).collect();
    words.extend((0..100).map(page));
    device.write(&buffers.index, 0, bytemuck::cast_slice(&words));
    let angles = Angles::new(config);
    let mut pairs = Vec::new();
    positions.iter().for_each(|position| angles.extend(*position, &mut pairs));
    device.write(&buffers.angles, 0, bytemuck::cast_slice(&pairs));
}

/// Where page `number` of the one sequence lies.
fn page(number: u32) -> u32 {
    (number * 37 + 5) % 200
}

/// Where a pair of elements of a position lies in the caches, in words: keys, values.
fn cached(config: &ModelConfig, position: u32, head: u32, word: u32) -> (usize, usize) {
    let words = config.head_width.div_ceil(2);
    let start = (page(position / 16) * config.kv_heads + head) * 16 * words;
    ((start + word * 16 + position % 16) as usize, (start + position % 16 * words + word) as usize)
}

fn halves(word: f32) -> [f32; 2] {
    let bits = word.to_bits();
    [bits as u16, (bits >> 16) as u16].map(|half| f16::from_bits(half).to_f32())
}

/// What one head becomes.
fn reference(config: &ModelConfig, head: &[f32], gain: Option<&[f32]>, position: u32, base: f32) -> Vec<f64> {
    let mut head: Vec<f64> = head.iter().map(|v| f64::from(*v)).collect();
    if let Some(gain) = gain {
        let square = head.iter().map(|v| v * v).sum::<f64>() / head.len() as f64;
        let by = 1.0 / (square + f64::from(config.norm_epsilon)).sqrt();
        head.iter_mut().zip(gain).for_each(|(v, gain)| *v *= by * f64::from(*gain));
    }
    let Rope { style, dims, .. } = config.rope;
    for pair in 0..dims as usize / 2 {
        let (a, b) = match style {
            RopeStyle::Adjacent => (2 * pair, 2 * pair + 1),
            RopeStyle::Halves => (pair, pair + dims as usize / 2),
        };
        let frequency = f64::from(base).powf(-2.0 * pair as f64 / f64::from(dims)) as f32;
        let angle = f64::from(position) * f64::from(frequency);
        let (x, y) = (head[a], head[b]);
        head[a] = x * angle.cos() - y * angle.sin();
        head[b] = x * angle.sin() + y * angle.cos();
    }
    head
}

#[test]
fn heads_are_biased_normed_turned_and_cached() {
    let Some(device) = device() else { return };
    let mut noise = Noise(8);
    let rope = |style, dims| Rope { style, dims, ..config().rope };
    let cases = [
        (20, rope(RopeStyle::Halves, 12), true, false, None),
        (20, rope(RopeStyle::Adjacent, 20), false, true, Some(5)),
        (13, rope(RopeStyle::Halves, 12), true, true, None),
        (150, rope(RopeStyle::Halves, 150), false, false, Some(9)),
        (7, rope(RopeStyle::Adjacent, 6), false, true, None),
    ];
    for (head_width, rope, bias, norm, window) in cases {
        let config = ModelConfig { head_width, rope, window, window_pattern: 2, ..config() };
        let all_heads = (config.heads + 2 * config.kv_heads) as usize;
        let width = head_width as usize;
        let biases = if bias { noise.reals(all_heads * width) } else { Vec::new() };
        let gains = if norm { noise.reals(2 * width) } else { Vec::new() };
        let layer = layer(&device, &config, biases.clone(), gains.clone());
        let buffers = buffers(&device, &config, 3);
        let places = [3, 16, 1_234];
        index(&device, &config, &buffers, &places);
        let qkv = noise.reals(3 * all_heads * width);
        fill(&device, &buffers.qkv, &qkv);
        let operations = [prepare(&device, &buffers, &config, 0, &layer).unwrap()];
        let made = run(&device, &buffers, &operations, all(3), &buffers.qkv);
        let keys = read(&device, device.encoder(), &layer.keys);
        let values = read(&device, device.encoder(), &layer.values);
        let base = if window.is_some() { 500.0 } else { 10_000.0 };
        for (row, position) in places.into_iter().enumerate() {
            for head in 0..all_heads {
                let at = (row * all_heads + head) * width;
                let mut own = qkv[at..at + width].to_vec();
                if bias {
                    own.iter_mut().zip(&biases[head * width..]).for_each(|(v, bias)| *v += bias);
                }
                let (query, value) = (head < 6, head >= 8);
                let gain = if query { gains.get(..width) } else { gains.get(width..) };
                let expected: Vec<f32> = if value {
                    own
                } else {
                    let gain = gain.filter(|_| norm);
                    let scale = if query { f64::from(config.query_scale) } else { 1.0 };
                    reference(&config, &own, gain, position, base)
                        .iter()
                        .map(|v| (v * scale) as f32)
                        .collect()
                };
                let kv = (head as u32).saturating_sub(if value { 8 } else { 6 });
                let from_cache: Vec<f32> = (0..head_width.div_ceil(2))
                    .flat_map(|word| {
                        let (key, of_value) = cached(&config, position, kv, word);
                        halves(if value { values[of_value] } else { keys[key] })
                    })
                    .take(width)
                    .collect();
                let (found, bound) =
                    if query { (&made[at..at + width], 2e-6) } else { (&from_cache[..], 5e-4) };
                let error = relative_l2(found, &expected);
                assert!(error < bound, "width {head_width}, row {row}, head {head}: {error:e}");
            }
        }
    }
}

#[test]
fn attention_is_a_softmax_over_the_window_in_one_go_or_in_chunks() {
    let Some(device) = device() else { return };
    let mut noise = Noise(9);
    let places = [0, 15, 16, 255, 256, 700];
    let cases = [
        (20, None, None),
        (64, Some(300), None),
        (2, None, Some(2.0)),
        (150, Some(1), None),
        (128, None, None),
        (33, Some(17), Some(0.5)),
    ];
    for (head_width, window, score_cap) in cases {
        let rope = Rope { dims: head_width.min(12), ..config().rope };
        let config = ModelConfig { head_width, rope, window, window_pattern: 2, score_cap, ..config() };
        let layer = layer(&device, &config, Vec::new(), Vec::new());
        let buffers = buffers(&device, &config, places.len() as u32);
        index(&device, &config, &buffers, &places);
        let width = head_width as usize;
        let row = (config.heads + 2 * config.kv_heads) as usize * width;
        let qkv: Vec<f32> = noise.reals(places.len() * row).iter().map(|v| 3.0 * v).collect();
        fill(&device, &buffers.qkv, &qkv);
        // What lies beyond the last position is not finite, and must not be looked at.
        let words = (200 * page_bytes(&config) / 4) as usize;
        let (mut keys, mut values) = (vec![f32::NAN; words], vec![f32::NAN; words]);
        for position in 0..=700 {
            for head in 0..2 {
                for word in 0..head_width.div_ceil(2) {
                    let (key, value) = cached(&config, position, head, word);
                    let mut pair =
                        || [noise.real(), noise.real()].map(|v| u32::from(f16::from_f32(v).to_bits()));
                    let ([a, b], [c, d]) = (pair(), pair());
                    // Past an odd width nothing is stored.
                    let odd = 2 * word + 1 == head_width;
                    keys[key] = f32::from_bits(if odd { a } else { a | b << 16 });
                    values[value] = f32::from_bits(if odd { c } else { c | d << 16 });
                }
            }
        }
        fill(&device, &layer.keys, &keys);
        fill(&device, &layer.values, &values);

        let results = [0, u32::MAX].map(|split_below| {
            let mut attention = attend(&device, &buffers, &config, 0, &layer).unwrap();
            attention.split_below = split_below;
            let step = Step { rows: places.len() as u32, asked: 0, chunks: 3, asked_first: 0 };
            let made = run(&device, &buffers, &[Operation::Attend(attention)], step, &buffers.attended);
            unturn(&made, 6 * head_width)
        });
        assert_eq!(results[0], results[1], "width {head_width}: in one go and in chunks");

        for (number, position) in places.into_iter().enumerate() {
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..6 {
                let query = &qkv[number * row + head * width..][..width];
                let element = |all: &[f32], value: bool, position, i: usize| {
                    let (key, of_value) = cached(&config, position, head as u32 / 3, i as u32 / 2);
                    f64::from(halves(all[if value { of_value } else { key }])[i % 2])
                };
                let scores: Vec<f64> = (first..=position)
                    .map(|p| {
                        let score: f64 =
                            (0..width).map(|i| f64::from(query[i]) * element(&keys, false, p, i)).sum();
                        score_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                let expected: Vec<f32> = (0..width)
                    .map(|i| {
                        let weighted = (first..=position)
                            .zip(&scores)
                            .map(|(p, score)| (score - most).exp() / total * element(&values, true, p, i));
                        weighted.sum::<f64>() as f32
                    })
                    .collect();
                let found = &results[0][(number * 6 + head) * width..][..width];
                let error = relative_l2(found, &expected);
                assert!(error < 1e-5, "width {head_width}, position {position}, head {head}: {error:e}");
            }
        }
    }
}
