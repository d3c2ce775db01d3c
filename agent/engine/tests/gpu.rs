//! Tests of a stage on a GPU: tiny models of every architecture against the slow reference and the CPU's stage, on
//! whatever adapter is there, be it software. Without any they say so and pass.

#![cfg(feature = "gpu")]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "stage/reference.rs"]
mod reference;
#[path = "stage/tiny.rs"]
#[expect(dead_code, reason = "only some of what the tests of stages share is needed here")]
mod tiny;

use skein_engine::dtype::Dtype;
use skein_engine::gguf::Gguf;
use skein_engine::gpu::{Device, GpuGraph};
use skein_engine::graph::{Batch, Computed, Graph, Hidden, Sequence};
use skein_engine::source::TensorSource;

use crate::tiny::{ALL, Tiny, VOCABULARY, config, in_chunks, open, tokens};

const PAGES: u32 = 40;

fn device() -> Option<Device> {
    match Device::open(None) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

/// All layers, or some of them.
fn stage(model: &Tiny, layers: std::ops::Range<u32>) -> Option<GpuGraph> {
    device().map(|device| GpuGraph::open(device, model, layers, PAGES, &mut |_, _| {}).unwrap())
}

/// Runs one sequence, every row asked for.
fn run<'a>(
    graph: &'a mut GpuGraph,
    pages: &[u32],
    position: u32,
    rows: u32,
    input: Hidden<'_>,
    last: bool,
) -> Result<Computed<'a>, String> {
    let sequences = [Sequence { pages, position, rows, asked: if last { rows } else { 0 } }];
    graph.run(&Batch { sequences: &sequences, input })
}

/// Logits after every token of a text that is sent in chunks of these sizes, over and over.
fn logits(graph: &mut GpuGraph, text: &[u32], sizes: &[usize]) -> Vec<f32> {
    let pages: Vec<u32> = (0..8).map(|page| page * 5 % PAGES).collect();
    let (mut all, mut position) = (Vec::new(), 0);
    for size in sizes.iter().cycle() {
        let end = (position + size).min(text.len());
        let rows = (end - position) as u32;
        let input = Hidden::Tokens(&text[position..end]);
        match run(graph, &pages, position as u32, rows, input, true).unwrap() {
            Computed::Asked { logits, .. } => all.extend(logits),
            Computed::Rows(_) => panic!("the last stage gives logits"),
        }
        position = end;
        if position == text.len() {
            break;
        }
    }
    all
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().fold(f64::MIN, |most, logit| most.max(f64::from(*logit)));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
    logits.iter().map(|logit| f64::from(*logit) - most - sum.ln()).collect()
}

/// |a - b| / |b - the mean of b|, row by row together.
fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let (mut squares, mut spread) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let mean = b.iter().sum::<f64>() / b.len() as f64;
        squares += a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        spread += b.iter().map(|b| (b - mean).powi(2)).sum::<f64>();
    }
    (squares / spread).sqrt()
}

#[test]
fn every_architecture_agrees_with_the_reference_and_the_cpu() {
    for architecture in ALL {
        for (dtype, tied) in [(Dtype::F32, false), (Dtype::Q8_0, true), (Dtype::Q4_1, false)] {
            let model = Tiny::new(config(architecture), dtype, tied);
            let layers = 0..model.config().layers;
            let Some(mut graph) = stage(&model, layers.clone()) else { return };
            let text = tokens(50, VOCABULARY, 3);
            let made = logits(&mut graph, &text, &[50]);
            let made: Vec<Vec<f64>> = made.chunks_exact(VOCABULARY as usize).map(log_softmax).collect();
            let exact = difference(&made, &reference::logprobs(&model, &text));
            // What is left is f16: in the cache, and between layers.
            assert!(exact < 2e-3, "{architecture:?} {dtype:?}: {exact:e}");

            let picks = in_chunks(&mut [open(&model, layers)], 1, &text, &[50]);
            let cpu: Vec<Vec<f64>> = picks
                .iter()
                .map(|pick| {
                    let mut row = vec![0.0; VOCABULARY as usize];
                    pick.top.iter().for_each(|(token, logprob)| row[*token as usize] = f64::from(*logprob));
                    row
                })
                .collect();
            let from_cpu = difference(&made, &cpu);
            eprintln!(
                "{architecture:?} {dtype:?}: {exact:.1e} from the reference, {from_cpu:.1e} from the CPU"
            );
            // The CPU quantises activations to eight bits where weights are quantised.
            let bound = if dtype == Dtype::F32 { 2e-3 } else { 8e-2 };
            assert!(from_cpu < bound, "{architecture:?} {dtype:?}: {from_cpu:e}");
        }
    }
}

#[test]
fn a_real_model_agrees_with_the_reference() {
    let Some(path) = std::env::var_os("SKEIN_TEST_MODEL") else {
        eprintln!("SKIPPED: set SKEIN_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let Some(device) = device() else { return };
    let model = Gguf::open(std::path::Path::new(&path)).unwrap();
    let vocabulary = model.config().vocabulary;
    let layers = 0..model.config().layers;
    let mut graph = GpuGraph::open(device, &model, layers, PAGES, &mut |_, _| {}).unwrap();
    let text = tokens(10, vocabulary, 8);
    let made = logits(&mut graph, &text, &[1, 4]);
    let made: Vec<Vec<f64>> = made.chunks_exact(vocabulary as usize).map(log_softmax).collect();
    let exact = difference(&made, &reference::logprobs(&model, &text));
    eprintln!("{exact:.1e} from the reference");
    assert!(exact < 1e-2, "{exact:e}");
}

#[test]
fn rows_do_not_depend_on_chunks_or_on_other_rows() {
    for architecture in ALL {
        let model = Tiny::new(config(architecture), Dtype::Q8_0, true);
        let Some(mut graph) = stage(&model, 0..model.config().layers) else { return };
        let text = tokens(50, VOCABULARY, 4);
        let whole = logits(&mut graph, &text, &[50]);
        for sizes in [&[1_usize][..], &[7, 18]] {
            assert_eq!(whole, logits(&mut graph, &text, sizes), "{architecture:?} in chunks of {sizes:?}");
        }
        // After a chunk of which nothing is asked.
        let pages: Vec<u32> = (0..8).collect();
        let first = [Sequence { pages: &pages, position: 0, rows: 30, asked: 0 }];
        let input = Hidden::Tokens(&text[..30]);
        let Computed::Asked { logits, hidden } = graph.run(&Batch { sequences: &first, input }).unwrap()
        else {
            panic!("the last stage answers")
        };
        assert!(logits.is_empty() && hidden.is_empty());
        let rest = Hidden::Tokens(&text[30..]);
        let Computed::Asked { logits, .. } = run(&mut graph, &pages, 30, 20, rest, true).unwrap() else {
            panic!("the last stage answers")
        };
        assert_eq!(*logits, whole[30 * VOCABULARY as usize..], "{architecture:?} after silence");
        // Beside two other sequences, on other pages.
        let pages: Vec<u32> = (0..PAGES).rev().collect();
        let sequence = |number: usize, rows, asked| Sequence {
            pages: &pages[8 * number..8 * number + 8],
            position: 0,
            rows,
            asked,
        };
        let sequences = [sequence(0, 5, 5), sequence(1, 50, 50), sequence(2, 23, 0)];
        let input = [tokens(5, VOCABULARY, 5), text, tokens(23, VOCABULARY, 6)].concat();
        let batch = Batch { sequences: &sequences, input: Hidden::Tokens(&input) };
        let Computed::Asked { logits, hidden } = graph.run(&batch).unwrap() else { panic!() };
        assert_eq!(hidden.len(), 55 * 64);
        assert_eq!(logits[5 * VOCABULARY as usize..], whole, "{architecture:?} in a batch");
    }
}

#[test]
fn layers_may_be_split_anywhere() {
    for architecture in ALL {
        let model = Tiny::new(config(architecture), Dtype::Q4_0, true);
        let layers = model.config().layers;
        let Some(mut whole) = stage(&model, 0..layers) else { return };
        let text = tokens(20, VOCABULARY, 7);
        let expected = logits(&mut whole, &text, &[20]);
        let pages = [3, 4];
        let mut rows: Vec<f32> = Vec::new();
        for (number, range) in [0..1, 1..2, 2..layers].into_iter().enumerate() {
            let last = range.end == layers;
            let Some(mut graph) = stage(&model, range) else { return };
            let input = if number == 0 { Hidden::Tokens(&text) } else { Hidden::Rows(&rows) };
            match run(&mut graph, &pages, 0, 20, input, last).unwrap() {
                Computed::Rows(computed) => {
                    assert!(!last && computed.len() == 20 * 64);
                    rows = computed.to_vec();
                }
                Computed::Asked { logits, .. } => assert_eq!(logits, expected, "{architecture:?}"),
            }
        }
    }
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let model = Tiny::new(config(tiny::ALL[0]), Dtype::F32, false);
    let Some(mut graph) = stage(&model, 0..3) else { return };
    let text = [1, 2, 3];
    let expected = logits(&mut graph, &text, &[3]);
    let refused = |graph: &mut GpuGraph, pages: &[u32], position, rows, input: Hidden<'_>| {
        run(graph, pages, position, rows, input, true).unwrap_err()
    };
    let tokens = Hidden::Tokens(&text);
    assert!(refused(&mut graph, &[0], 0, 1, Hidden::Tokens(&[VOCABULARY])).contains("vocabulary"));
    assert!(refused(&mut graph, &[PAGES], 0, 3, tokens).contains("beyond the cache"));
    assert!(refused(&mut graph, &[0], 14, 3, tokens).contains("no sequence"));
    assert!(refused(&mut graph, &[0; 9], 126, 3, tokens).contains("context"));
    assert!(refused(&mut graph, &[0], 0, 2, tokens).contains("no batch"));
    assert!(refused(&mut graph, &[0], 0, 3, Hidden::Rows(&[0.0; 192])).contains("takes"));
    assert_eq!(logits(&mut graph, &text, &[3]), expected);

    let Some(device) = device() else { return };
    let most = GpuGraph::pages_max(&device, model.config());
    let error = GpuGraph::open(device, &model, 0..3, most + 1, &mut |_, _| {}).err().unwrap();
    assert!(error.to_string().contains("pages is more than"), "{error}");
}

#[test]
fn an_adapter_that_is_not_there_is_named_with_those_that_are() {
    let error = Device::open(Some("no such adapter")).err().unwrap().to_string();
    assert!(error.contains("no such adapter") && error.contains("there is:"), "{error}");
    for (index, name) in Device::names().iter().enumerate() {
        eprintln!("{index}: {name}");
        let by_name = Device::open(Some(&format!("wgpu:99:{name}"))).unwrap();
        assert_eq!(by_name.name(), name);
    }
    assert!(Device::open(Some("99")).is_err());
}
