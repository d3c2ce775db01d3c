//! Owns the calibration of TOPLOC on the real model: what an honest agent's commitments look like, and others'.
//! Must never accept what it should reject to stay green: the thresholds are `toploc`'s.

use std::collections::BTreeMap;

use skein_engine::config::ModelConfig;
use skein_engine::dtype::{Dtype, dequantize, quantize};
use skein_engine::recheck::{Recheck, recheck};
use skein_engine::source::{SourceError, TensorInfo, TensorSource};
use skein_engine::stage::Stage;
use skein_engine::step::{Chunk, Input, Output, Sampling, Want};
use skein_engine::tensors::layer_of;
use skein_engine::tokenizer::{Tokenizer, Vocabulary};
use skein_engine::toploc::{Committer, Comparison, Span, TOKENS};

use crate::real;
use crate::tiny::{GREEDY, open};

/// Tokens generated of each prompt: two commitments, and a short one.
const COUNT: usize = 2 * TOKENS + 5;

/// The model with its matrices stored otherwise, and perhaps without its last layers.
struct Altered<'a> {
    model: &'a dyn TensorSource,
    config: ModelConfig,
    infos: BTreeMap<String, TensorInfo>,
}

impl<'a> Altered<'a> {
    fn new(model: &'a dyn TensorSource, dtype: Option<Dtype>, layers: u32) -> Self {
        let config = ModelConfig { layers, ..model.config().clone() };
        let kept = |name: &String| layer_of(name).is_none_or(|layer| layer < layers);
        let mut infos = model.tensors().clone();
        infos.retain(|name, _| kept(name));
        for info in infos.values_mut().filter(|info| info.rows > 1) {
            info.dtype = dtype.unwrap_or(info.dtype);
        }
        Self { model, config, infos }
    }
}

impl TensorSource for Altered<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let (info, wanted) = (self.model.tensors()[name], self.infos[name]);
        let bytes = self.model.read(name)?;
        if info == wanted {
            return Ok(bytes);
        }
        let mut values = vec![0.0; (info.rows * info.columns) as usize];
        dequantize(info.dtype, &bytes, &mut values).unwrap();
        Ok(quantize(wanted.dtype, &values).unwrap())
    }
}

/// What an agent hands in: an answer to a prompt, and its commitments.
fn claim(stage: &mut Stage, prompt: &[u32], sampling: Sampling) -> (Vec<u32>, Vec<Span>) {
    let (mut tokens, mut spans, mut committer) = (prompt.to_vec(), Vec::new(), Committer::default());
    let mut position = 0;
    while tokens.len() < prompt.len() + COUNT {
        let input = Input::Tokens(tokens[position..].to_vec());
        let want = Want::Picks { from: (tokens.len() - position - 1) as u32, sampling };
        let chunk = Chunk { session: 1, position: position as u32, input, want };
        committer.settle(chunk.position, &mut spans);
        let mut observe = |_, position, state: &[f32]| committer.observe(position, state);
        let Output::Picks(picks) = stage.step_observed(&[chunk], &mut observe).pop().unwrap().unwrap() else {
            panic!("not what was asked for")
        };
        position = tokens.len();
        tokens.extend(picks.iter().map(|pick| pick.token));
    }
    stage.close(1);
    committer.end(position as u32, &mut spans);
    (tokens.split_off(prompt.len()), spans)
}

/// Least agreeing elements, largest mean, largest median.
fn show(name: &str, all: &[Recheck]) {
    let picks = all.iter().map(|found| found.picks_equal);
    eprintln!("{name}: {} to {} of {COUNT} tokens alike", picks.clone().min().unwrap(), picks.max().unwrap());
    let all: Vec<Comparison> =
        all.iter().flat_map(|found| found.spans.iter().map(|span| span.unwrap())).collect();
    let agreeing = all.iter().map(|found| found.agreeing);
    let mean = all.iter().map(|found| found.mean);
    let median = all.iter().map(|found| found.median);
    let passed = all.iter().filter(|found| found.passes()).count();
    eprintln!(
        "{name}: agreeing {} to {} of 128, mean {:.2} to {:.2}, median {:.1} to {:.1}; {passed} of {} pass",
        agreeing.clone().min().unwrap(),
        agreeing.max().unwrap(),
        mean.clone().fold(f32::INFINITY, f32::min),
        mean.fold(0.0, f32::max),
        median.clone().fold(f32::INFINITY, f32::min),
        median.fold(0.0, f32::max),
        all.len(),
    );
}

#[test]
fn honest_runs_pass_and_others_do_not() {
    let Some(model) = real::model() else { return };
    let tokenizer = Tokenizer::new(Vocabulary::from_gguf(model.metadata()).unwrap()).unwrap();
    let prompts = ["Once upon a time", "def main():\n", "The history of Rome begins"];
    let sampling = Sampling { temperature: 0.8, top_p: 1.0, seed: 9, top_logprobs: 0 };
    // The checker holds the weights as f16 and so multiplies with activations that were not rounded to bytes, as a GPU
    // does: another backend with the same weights.
    let same = Altered::new(&model, None, 30);
    let other_backend = Altered::new(&model, Some(Dtype::F16), 30);
    let finer = Altered::new(&model, Some(Dtype::Q8_0), 30);
    let coarser = Altered::new(&model, Some(Dtype::Q4_0), 30);
    let truncated = Altered::new(&model, None, 29);
    let much_truncated = Altered::new(&model, None, 20);
    let mut checker = open(&other_backend, 0..30);
    let mut twin = open(&same, 0..30);
    let agents: [(&str, &Altered<'_>, Option<bool>); 6] = [
        ("same weights, other backend", &same, Some(true)),
        ("same weights, same backend", &other_backend, Some(true)),
        ("weights re-quantised to Q8_0", &finer, None),
        ("weights re-quantised to Q4_0", &coarser, Some(false)),
        ("without the last layer", &truncated, Some(false)),
        ("without the last ten layers", &much_truncated, Some(false)),
    ];
    for (name, source, passes) in agents {
        let mut agent = open(source, 0..source.config().layers);
        let (mut all, mut twins) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let prompt = tokenizer.prompt(prompt);
            let (answer, spans) = claim(&mut agent, &prompt, sampling);
            let counts: Vec<u8> = spans.iter().map(|span| span.count).collect();
            assert_eq!(counts, [32, 32, 5]);
            all.push(recheck(&mut checker, &prompt, &answer, sampling, &spans).unwrap());
            twins.push(recheck(&mut twin, &prompt, &answer, sampling, &spans).unwrap());
        }
        show(&format!("{name}, checked in f16"), &all);
        show(&format!("{name}, checked as stored"), &twins);
        if let Some(passes) = passes {
            for found in all.iter().chain(&twins) {
                assert_eq!(found.passes(0), passes, "{name}: {found:?}");
            }
        }
    }
}

#[test]
fn what_an_agent_leaves_out_or_changes_is_noticed() {
    let Some(model) = real::model() else { return };
    let tokenizer = Tokenizer::new(Vocabulary::from_gguf(model.metadata()).unwrap()).unwrap();
    let mut stage = open(&model, 0..30);
    let prompt = tokenizer.prompt("The lighthouse stood");
    let (answer, spans) = claim(&mut stage, &prompt, GREEDY);
    let mut find =
        |answer: &[u32], spans: &[Span]| recheck(&mut stage, &prompt, answer, GREEDY, spans).unwrap();
    let honest = find(&answer, &spans);
    assert!(honest.passes(0), "{honest:?}");
    assert_eq!((honest.picks_equal, honest.uncovered), (COUNT, 0));
    let without = find(&answer, &spans[1..]);
    assert_eq!(without.uncovered, 32);
    assert!(!without.passes(0) && without.passes(1));
    // Committed to honestly, but other tokens were handed out.
    let mut other = answer.clone();
    for token in other.iter_mut().take(2 * TOKENS) {
        *token = (*token + 1) % 1_000;
    }
    assert!(!find(&other, &spans).passes(0));
    let mut elsewhere = spans.clone();
    elsewhere[2].first = 10_000;
    assert!(!find(&answer, &elsewhere).passes(1));
    let swapped = [
        Span { first: spans[1].first, ..spans[0].clone() },
        Span { first: spans[0].first, ..spans[1].clone() },
    ];
    assert!(!find(&answer, &[&swapped[..], &spans[2..]].concat()).passes(0));
}
