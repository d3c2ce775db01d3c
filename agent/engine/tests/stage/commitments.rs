//! Owns the calibration of TOPLOC on the real model: what an honest agent's commitments look like, and others'.
//! Must never accept what it should reject to stay green: the thresholds are `toploc`'s.

use std::collections::BTreeMap;

use skein_engine::config::ModelConfig;
use skein_engine::dtype::{Dtype, dequantize, quantize};
use skein_engine::source::{SourceError, TensorInfo, TensorSource};
use skein_engine::stage::Stage;
use skein_engine::step::{Chunk, Input, Output, Sampling, Want};
use skein_engine::tensors::layer_of;
use skein_engine::tokenizer::{Tokenizer, Vocabulary};
use skein_engine::toploc::{Commitment, Comparison, TOKENS, commit, compare};

use crate::real;
use crate::tiny::{GREEDY, open};

/// Tokens generated of each prompt: two commitments.
const COUNT: usize = 2 * TOKENS;

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

/// What an agent hands in: the tokens after a prompt and a commitment to every 32 of them.
fn claim(stage: &mut Stage, prompt: &[u32], sampling: Sampling) -> (Vec<u32>, Vec<Commitment>) {
    let (mut tokens, mut states) = (prompt.to_vec(), Vec::new());
    let mut position = 0;
    while tokens.len() < prompt.len() + COUNT + 1 {
        let input = Input::Tokens(tokens[position..].to_vec());
        let want = Want::Picks { from: (tokens.len() - position - 1) as u32, sampling };
        let chunk = Chunk { session: 1, position: position as u32, input, want };
        let mut observe = |_, _, state: &[f32]| states.push(state.to_vec());
        let Output::Picks(picks) = stage.step_observed(&[chunk], &mut observe).pop().unwrap().unwrap() else {
            panic!("not what was asked for")
        };
        position = tokens.len();
        tokens.extend(picks.iter().map(|pick| pick.token));
    }
    stage.close(1);
    let commitments =
        states[1..].chunks_exact(TOKENS).map(|states| commit(&states.concat()).unwrap()).collect();
    (tokens, commitments)
}

/// What a checker finds who runs the claimed tokens through its own stage at once.
fn check(stage: &mut Stage, prompt: usize, tokens: &[u32], commitments: &[Commitment]) -> Vec<Comparison> {
    let sent = &tokens[..prompt + COUNT];
    let want = Want::Picks { from: prompt as u32, sampling: GREEDY };
    let chunk = Chunk { session: 2, position: 0, input: Input::Tokens(sent.to_vec()), want };
    let mut states = Vec::new();
    let answer = stage.step_observed(&[chunk], &mut |_, _, state| states.push(state.to_vec())).pop().unwrap();
    assert!(answer.is_ok(), "{answer:?}");
    stage.close(2);
    let own = states.chunks_exact(TOKENS).map(|states| states.concat());
    commitments.iter().zip(own).map(|(commitment, own)| compare(commitment, &own).unwrap()).collect()
}

/// Least agreeing elements, largest mean, largest median.
fn show(name: &str, all: &[Comparison]) {
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
            let (tokens, commitments) = claim(&mut agent, &prompt, sampling);
            all.extend(check(&mut checker, prompt.len(), &tokens, &commitments));
            twins.extend(check(&mut twin, prompt.len(), &tokens, &commitments));
        }
        show(&format!("{name}, checked in f16"), &all);
        show(&format!("{name}, checked as stored"), &twins);
        if let Some(passes) = passes {
            for found in all.iter().chain(&twins) {
                assert_eq!(found.passes(), passes, "{name}: {found:?}");
            }
        }
    }
}
