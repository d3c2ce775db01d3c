//! Owns the proof that attention is right, and equal to the bit wherever and with whomever it is computed.
//! Must never take a tolerance where equality is promised.

use half::f16;
use proptest::prelude::*;

use super::super::lanes::InstructionSet;
use super::*;

/// A case: queries of one session at some of its positions.
#[derive(Clone, Debug)]
struct Case {
    kv_heads: usize,
    group: usize,
    width: usize,
    length: usize,
    attention: Attention,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let widths = prop::sample::select(vec![8, 16, 24, 64, 72, 80, 128, 256]);
    let sizes = (1..4_usize, 1..10_usize, widths, 1..70_usize);
    let cap = prop::option::of(5.0..50.0_f32);
    let window = prop::option::of(1..40_u32);
    (sizes, cap, window, any::<u64>()).prop_map(|(sizes, cap, window, seed)| {
        let (kv_heads, group, width, length) = sizes;
        let attention = Attention { scale: 1.0 / (width as f32).sqrt(), cap, window };
        Case { kv_heads, group, width, length, attention, seed }
    })
}

/// Numbers from −2 to 2.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

/// What one query must give, in f64.
fn reference(case: &Case, keys: &[f32], values: &[f32], position: usize, queries: &[f32]) -> Vec<f64> {
    let half = |value: f32| f16::from_f32(value).to_f64();
    let row = case.kv_heads * case.width;
    let first = (position + 1).saturating_sub(case.attention.window.unwrap_or(u32::MAX) as usize);
    let mut out = Vec::new();
    for head in 0..case.kv_heads * case.group {
        let offset = head / case.group * case.width;
        let query = &queries[head * case.width..][..case.width];
        let score = |at: usize| {
            let key = &keys[at * row + offset..][..case.width];
            let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * half(*k)).sum();
            let score = dot * f64::from(case.attention.scale);
            let cap = |cap: f32| f64::from(cap) * (score / f64::from(cap)).tanh();
            case.attention.cap.map_or(score, cap).exp()
        };
        let weights: Vec<f64> = (first..=position).map(score).collect();
        let total: f64 = weights.iter().sum();
        for element in 0..case.width {
            let value = |at: usize| half(values[at * row + offset + element]);
            out.push((first..=position).map(|at| weights[at - first] / total * value(at)).sum());
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn attention_is_right_and_the_same_everywhere(case in cases()) {
        let (row, width) = (case.kv_heads * case.width, case.kv_heads * case.group * case.width);
        let keys = numbers(case.seed, case.length * row);
        let values = numbers(case.seed ^ 1, case.length * row);
        let positions = [0, case.length / 2, case.length - 1];
        let queries = numbers(case.seed ^ 2, positions.len() * width);
        let mut first: Option<Vec<f32>> = None;
        for set in InstructionSet::available() {
            let mut pages = Pages::new(2, case.kv_heads, case.width, case.length.div_ceil(PAGE) + 1);
            // Pages that lie in another order than the positions, after one that is not used.
            let taken: Vec<u32> = (0..=case.length.div_ceil(PAGE) as u32).rev().collect();
            for position in 0..case.length {
                let (key, value) = (&keys[position * row..][..row], &values[position * row..][..row]);
                pages.write(set, 1, taken[position / PAGE], position % PAGE, key, value);
            }
            // What lies beyond the session's end must not matter.
            if !case.length.is_multiple_of(PAGE) {
                let bad = vec![f32::NAN; row];
                pages.write(set, 1, taken[case.length / PAGE], PAGE - 1, &bad, &bad);
            }
            let rows = positions.map(|position| Row { pages: &taken, position: position as u32 });
            for threads in [1, 2] {
                let pool = Pool::with(threads, set).unwrap();
                let mut out = vec![f32::NAN; queries.len()];
                attend(&pool, &pages, 1, &case.attention, &rows, &queries, &mut out);
                for (index, position) in positions.into_iter().enumerate() {
                    let queries = &queries[index * width..][..width];
                    let got = &out[index * width..][..width];
                    let want = reference(&case, &keys, &values, position, queries);
                    for (got, want) in got.iter().zip(want) {
                        prop_assert!((f64::from(*got) - want).abs() < 2e-5, "{got} {want}");
                    }
                    let mut alone = vec![f32::NAN; width];
                    attend(&pool, &pages, 1, &case.attention, &rows[index..=index], queries, &mut alone);
                    prop_assert_eq!(&alone[..], got);
                }
                match &first {
                    None => first = Some(out),
                    Some(first) => prop_assert_eq!(first, &out, "{}", set.name()),
                }
            }
        }
    }
}
