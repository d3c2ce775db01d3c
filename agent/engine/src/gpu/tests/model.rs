//! Owns the comparison with the CPU on a real model, where one is given.
//! Must never need the network.

use std::path::Path;
use std::time::Instant;

use super::*;
use crate::cpu::graph::CpuGraph;
use crate::gguf::Gguf;
use crate::gpu::GpuGraph;
use crate::graph::{Batch, Computed, Graph, Hidden, PAGE_POSITIONS, Sequence};
use crate::source::TensorSource;
use crate::tokenizer::{Tokenizer, Vocabulary};

const PAGES: u32 = 20;

/// The logits after the last of these tokens.
fn logits(graph: &mut dyn Graph, position: u32, tokens: &[u32]) -> Vec<f32> {
    let pages: Vec<u32> = (0..PAGES).collect();
    let sequences = [Sequence { pages: &pages, position, rows: tokens.len() as u32, asked: 1 }];
    match graph.run(&Batch { sequences: &sequences, input: Hidden::Tokens(tokens) }).unwrap() {
        Computed::Asked { logits, .. } => logits.to_vec(),
        Computed::Rows(_) => panic!("the last stage gives logits"),
    }
}

fn greatest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

#[test]
fn a_real_model_says_what_it_says_on_the_cpu() {
    let Some(path) = std::env::var_os("SKEIN_TEST_MODEL") else {
        eprintln!("SKIPPED: set SKEIN_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let Some(device) = device() else { return };
    let model = Gguf::open(Path::new(&path)).unwrap();
    let tokenizer = Tokenizer::new(Vocabulary::from_gguf(model.metadata()).unwrap()).unwrap();
    let layers = 0..model.config().layers;
    let mut gpu = GpuGraph::open(device, &model, layers.clone(), PAGES, &mut |_, _| {}).unwrap();
    let mut cpu = CpuGraph::open(&model, layers, PAGES, 1, &mut |_, _| {}).unwrap();
    // What follows is beyond doubt, so that the CPU's rounding of activations decides nothing.
    let prompt =
        tokenizer.prompt("one, two, three, four, five, six, seven, eight, one, two, three, four, five,");
    assert!(prompt.len() + 16 < PAGES as usize * PAGE_POSITIONS);

    let (mut token, mut position, mut worst) = (0, 0, 0.0_f64);
    let mut seconds = [0.0; 2];
    for step in 0..16 {
        let tokens = if step == 0 { prompt.clone() } else { vec![token] };
        let start = Instant::now();
        let on_gpu = logits(&mut gpu, position, &tokens);
        let between = Instant::now();
        let on_cpu = logits(&mut cpu, position, &tokens);
        // The first two steps compile kernels.
        if step > 1 {
            seconds[0] += (between - start).as_secs_f64();
            seconds[1] += between.elapsed().as_secs_f64();
        }
        worst = worst.max(relative_l2(&on_gpu, &on_cpu));
        token = greatest(&on_gpu);
        assert_eq!(token, greatest(&on_cpu), "step {step}, {:e}", relative_l2(&on_gpu, &on_cpu));
        position += tokens.len() as u32;
    }
    eprintln!(
        "{}: decode {:.3} s, CPU {:.3} s, worst {worst:.2e}",
        gpu.device().name(),
        seconds[0],
        seconds[1]
    );
    // The CPU quantises activations to eight bits, the GPU does not: tests/gpu.rs has it at 2e-3 from f64.
    assert!(worst < 0.2, "{worst:e}");
    assert!(gpu.resident_bytes() > 80_000_000);
}
