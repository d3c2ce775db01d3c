//! Times a model on an adapter: `gpu MODEL.gguf [ADAPTER]`, the adapter by index or part of its name.
//! Must never be more than a measurement of what was built; the product's own is `skein bench`.
//!
//! Prints tokens per second of prompts and of decoding, for one and for many sequences, and how many bytes of
//! weights a second one sequence reads: that, against what the adapter's memory can do, says how good the kernels
//! are.

#![expect(clippy::print_stdout, reason = "the figures are the answer")]

use std::path::Path;
use std::time::Instant;

use skein_engine::gguf::Gguf;
use skein_engine::gpu::{Device, GpuGraph};
use skein_engine::graph::{Batch, Graph, Hidden, PAGE_POSITIONS, Sequence};
use skein_engine::source::TensorSource;

type Failure = Box<dyn std::error::Error>;

/// Sequences at once, rows of each, and what precedes them.
const CASES: [(usize, usize, usize); 9] = [
    (1, 1, 128),
    (1, 1, 1_000),
    (2, 1, 128),
    (4, 1, 128),
    (8, 1, 128),
    (16, 1, 128),
    (64, 1, 128),
    (1, 128, 0),
    (1, 512, 0),
];
/// Runs of each case, of which the median counts.
const RUNS: usize = 3;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(path) = arguments.first() else { return Err("usage: gpu MODEL.gguf [ADAPTER]".into()) };
    let model = Gguf::open(Path::new(path))?;
    let device = Device::open(arguments.get(1).map(String::as_str))?;
    let pages_each = 1_024 / PAGE_POSITIONS as u32;
    let start = Instant::now();
    let layers = 0..model.config().layers;
    let mut graph = GpuGraph::open(device, &model, layers, 64 * pages_each, &mut |_, _| {})?;
    let name = graph.device().name().to_owned();
    println!(
        "{name}: loaded in {:.2} s, {} MiB",
        start.elapsed().as_secs_f64(),
        graph.resident_bytes() >> 20
    );
    let weights: u64 = model.tensors().values().filter_map(|info| info.bytes()).sum();
    println!("sequences  rows  context   ms/run  tokens/s  weights GB/s");
    for (count, rows, context) in CASES {
        let seconds = time(&mut graph, count, rows, context, pages_each)?;
        println!(
            "{count:9} {rows:5} {context:8} {:8.2} {:9.1} {:13.2}",
            seconds * 1e3,
            (count * rows) as f64 / seconds,
            weights as f64 / seconds / 1e9,
        );
    }
    Ok(())
}

/// Median seconds of a run. The cache holds zeros, which take as long as anything else.
fn time(
    graph: &mut GpuGraph,
    count: usize,
    rows: usize,
    context: usize,
    pages_each: u32,
) -> Result<f64, Failure> {
    let pages: Vec<u32> = (0..count as u32 * pages_each).collect();
    let sequences: Vec<Sequence<'_>> = pages
        .chunks_exact(pages_each as usize)
        .map(|pages| Sequence { pages, position: context as u32, rows: rows as u32, asked: 1 })
        .collect();
    let tokens: Vec<u32> = (0..(count * rows) as u32).map(|token| 100 + token).collect();
    let batch = Batch { sequences: &sequences, input: Hidden::Tokens(&tokens) };
    // The first run compiles kernels and makes buffers.
    graph.run(&batch)?;
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        graph.run(&batch)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[RUNS / 2])
}
