//! Owns the tests of what is done to rows between products.
//! Must never use a product.

use super::*;
use crate::gpu::operations::{Joint, activate, cap, joint};
use crate::rows::round_in_place;

/// A function of gate and up.
type Reference = fn(f64, f64) -> f64;

const WIDTH: usize = 72;
const STRIDE: usize = 96;

fn padded(rows: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for row in rows.chunks_exact(WIDTH) {
        out.extend(row);
        out.resize(out.len().next_multiple_of(STRIDE), 0.0);
    }
    out
}

fn unpadded(rows: &[f32]) -> Vec<f32> {
    rows.chunks_exact(STRIDE).flat_map(|row| row[..WIDTH].to_vec()).collect()
}

fn norm(row: &[f32], gain: &[f32]) -> Vec<f32> {
    let square: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / WIDTH as f64;
    let by = 1.0 / (square + 1e-5).sqrt();
    row.iter().zip(gain).map(|(v, gain)| (f64::from(*v) * by * f64::from(*gain)) as f32).collect()
}

#[test]
fn joints_do_what_their_flags_say() {
    let Some(device) = device() else { return };
    let mut noise = Noise(4);
    let config = config();
    let (added, hidden) = (noise.reals(3 * WIDTH), noise.reals(3 * WIDTH));
    let (post, next) = (noise.reals(WIDTH), noise.reals(WIDTH));
    for flags in 0..16 {
        let [add, with_post, round, with_next] = [1, 2, 4, 8].map(|bit| flags & bit != 0);
        if !add && (with_post || round) {
            continue;
        }
        let wanted = Joint {
            add,
            post: with_post.then_some(&post[..]),
            round,
            next: with_next.then_some(&next[..]),
            head: false,
        };
        let buffers = buffers(&device, &config, 3);
        fill(&device, &buffers.added, &padded(&added));
        fill(&device, &buffers.hidden, &padded(&hidden));
        let operations = [joint(&device, &buffers, &config, wanted).unwrap()];
        let made = unpadded(&run(&device, &buffers, &operations, all(3), &buffers.hidden));
        let mut expected = hidden.clone();
        for (h, y) in expected.chunks_exact_mut(WIDTH).zip(added.chunks_exact(WIDTH)) {
            let y = if with_post { norm(y, &post) } else { y.to_vec() };
            if add {
                h.iter_mut().zip(y).for_each(|(h, y)| *h += y);
            }
            if round {
                round_in_place(h);
            }
        }
        let error = relative_l2(&made, &expected);
        // A sum that differs in its last bit may round to the other neighbour of eleven bits.
        assert!(error < if with_post && round { 2e-4 } else { 1e-6 }, "{flags}: {error:e}");
        if with_next {
            let normed = unturn(&read(&device, device.encoder(), &buffers.normed), WIDTH as u32);
            let expected: Vec<f32> = made.chunks_exact(WIDTH).flat_map(|h| norm(h, &next)).collect();
            let error = relative_l2(&normed, &expected);
            assert!(error < 1e-6, "{flags}: {error:e}");
        }
    }
}

#[test]
fn rows_are_rounded_exactly_as_the_wire_rounds_them() {
    let Some(device) = device() else { return };
    let mut noise = Noise(5);
    let config = config();
    let rows = 64;
    let buffers = buffers(&device, &config, rows);
    let mut values = Vec::new();
    for row in 0..rows {
        // Of every magnitude, and within a row over many.
        let scale = 2.0_f32.powi(row as i32 * 3 - 100);
        values.extend((0..WIDTH).map(|_| noise.real() * scale * 2.0_f32.powi(-((noise.bits() % 40) as i32))));
    }
    // The largest just below a power of two, ties, zeros, what is not finite.
    values[..4].copy_from_slice(&[1.999_999_9, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -0.0]);
    values[4..WIDTH].fill(0.25 + 1.0 / 8192.0);
    values[WIDTH..2 * WIDTH].fill(0.0);
    values[2 * WIDTH] = f32::INFINITY;
    fill(&device, &buffers.hidden, &padded(&values));
    let round = Joint { add: true, round: true, ..Joint::NONE };
    let operations = [joint(&device, &buffers, &config, round).unwrap()];
    let made = unpadded(&run(&device, &buffers, &operations, all(rows), &buffers.hidden));
    for (number, (made, row)) in made.chunks_exact(WIDTH).zip(values.chunks_exact_mut(WIDTH)).enumerate() {
        round_in_place(row);
        for (made, expected) in made.iter().zip(row) {
            // Numbers that f32 holds only as subnormals may be flushed to zero.
            let same = made == expected || expected.abs() < f32::MIN_POSITIVE && *made == 0.0;
            assert!(same, "row {number}: {made:e} is not {expected:e}");
        }
    }
}

#[test]
fn the_final_norm_takes_the_rows_asked_for() {
    let Some(device) = device() else { return };
    let mut noise = Noise(6);
    let config = config();
    let buffers = buffers(&device, &config, 4);
    let (hidden, gain) = (noise.reals(4 * WIDTH), noise.reals(WIDTH));
    fill(&device, &buffers.hidden, &padded(&hidden));
    device.write(&buffers.index, 4 * 20, bytemuck::cast_slice(&[3_u32, 1]));
    let head = Joint { next: Some(&gain), head: true, ..Joint::NONE };
    let operations = [joint(&device, &buffers, &config, head).unwrap()];
    let step = Step { rows: 4, asked: 2, chunks: 1, asked_first: 20 };
    let made = unturn(&run(&device, &buffers, &operations, step, &buffers.answer), WIDTH as u32);
    let expected = [norm(&hidden[3 * WIDTH..], &gain), norm(&hidden[WIDTH..2 * WIDTH], &gain)].concat();
    assert!(relative_l2(&made[..2 * WIDTH], &expected) < 1e-6);
    let wrong = Joint { next: Some(&gain[1..]), ..Joint::NONE };
    assert!(joint(&device, &buffers, &config, wrong).is_err());
}

#[test]
fn activations_are_what_they_are_called() {
    let Some(device) = device() else { return };
    let mut noise = Noise(7);
    let functions: [(Activation, Reference); 2] = [
        (Activation::SiluGated, |gate, up| gate / (1.0 + (-gate).exp()) * up),
        (Activation::GeluGated, |gate, up| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh()) * up
        }),
    ];
    for (activation, reference) in functions {
        let config = ModelConfig { activation, ..config() };
        let buffers = buffers(&device, &config, 2);
        let stride = stride(config.feed_width) as usize;
        let mut gate: Vec<f32> = noise.reals(2 * stride).iter().map(|gate| 20.0 * gate).collect();
        (gate[0], gate[1], gate[2], gate[3]) = (1e4, -1e4, 0.0, 90.0);
        let up = noise.reals(2 * stride);
        fill(&device, &buffers.gate, &gate);
        fill(&device, &buffers.up, &up);
        let operations = [activate(&device, &buffers, &config).unwrap()];
        let fed = run(&device, &buffers, &operations, all(2), &buffers.fed);
        let made = unturn(&fed, config.feed_width);
        for (at, made) in made.into_iter().enumerate() {
            let from = at / 100 * stride + at % 100;
            close(made, reference(f64::from(gate[from]), f64::from(up[from])));
        }
    }
}

#[test]
fn logits_are_capped_in_place() {
    let Some(device) = device() else { return };
    let mut noise = Noise(10);
    let config = config();
    let buffers = buffers(&device, &config, 3);
    let mut logits: Vec<f32> = noise.reals(3 * 50).iter().map(|logit| 100.0 * logit).collect();
    logits[0] = 1e6;
    fill(&device, &buffers.logits, &logits);
    let operations = [cap(&device, &buffers, &config, 30.0).unwrap()];
    let step = Step { rows: 3, asked: 2, chunks: 1, asked_first: 0 };
    let made = run(&device, &buffers, &operations, step, &buffers.logits);
    for (at, (made, logit)) in made.into_iter().zip(logits).enumerate() {
        let logit = f64::from(logit);
        close(made, if at < 100 { 30.0 * (logit / 30.0).tanh() } else { logit });
    }
}

fn close(made: f32, expected: f64) {
    let error = (f64::from(made) - expected).abs();
    assert!(error <= 1e-5 + 1e-5 * expected.abs(), "{made} is not {expected}");
}
