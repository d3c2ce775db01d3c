//! Owns the promises of training on the CPU: it learns, it repeats to the bit, and it stops where it should.
//! Must never need a GPU.

#![expect(clippy::unwrap_used, reason = "a broken assumption should stop the test")]

mod place;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use skein_compute::checkpoint::{Checkpoint, Delta};
use skein_compute::data::Part;
use skein_compute::drawn::Drawn;
use skein_compute::optimiser::Moments;
use skein_compute::outer::{OuterRate, merge};
use skein_compute::packing::Bits;
use skein_compute::passes::Model;
use skein_compute::train::{Inner, TrainError, evaluate, inner_phase};
use skein_compute::trainee::{Method, TensorSpec, Trainee};

struct Place {
    directory: tempfile::TempDir,
    text: PathBuf,
    model: Model,
    drawn: Drawn,
    state: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("text");
        place::write_data(&text, &"the geese fly south. ".repeat(60));
        let (trainee, drawn, state) = place::begin(place::config(2, 16, 8), 11, directory.path().join("0"));
        let model = Model::load(trainee, &drawn, &Device::flex()).unwrap();
        Self { directory, text, model, drawn, state }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn specs(&self) -> &[TensorSpec] {
        self.model.trainee.tensors()
    }

    fn train(&self, state: &Path, inner: &Inner, moments: &mut Moments) -> Result<Delta, TrainError> {
        let data = place::data(&self.text);
        inner_phase(&self.model, state, &data, inner, moments, |_, _| true).map(|result| result.delta)
    }

    fn held_out(&self, state: &Path) -> f64 {
        evaluate(&self.model, state, &place::data(&self.text), 8, Part::WHOLE).unwrap().0
    }
}

fn inner(steps: u32) -> Inner {
    Inner {
        seed: 5,
        round: 0,
        rounds: 1_000,
        first: 0,
        steps,
        batch: 4,
        context: 8,
        at_once: 4,
        recompute: false,
        learning_rate: 0.01,
        warmup_steps: 5,
        bits: Bits::All,
    }
}

#[test]
fn two_shards_and_outer_steps_learn_a_repetitive_text() {
    let place = Place::new();
    let mut state = place.state.clone();
    let start = place.held_out(&state);
    assert!((start - 256f64.ln()).abs() < 0.6, "an untrained model guesses: {start}");
    let mut moments = [Moments::default(), Moments::default()];
    for round in 0..3 {
        let deltas: Vec<Vec<PathBuf>> = (0..2)
            .map(|index| {
                let path = place.path(&format!("delta{index}"));
                let first = u64::from(round * 2 + index) * 160;
                let inner = Inner { round, first, ..inner(40) };
                let delta = place.train(&state, &inner, &mut moments[index as usize]).unwrap();
                delta.write(&path, place.specs()).unwrap();
                vec![path]
            })
            .collect();
        let rate = OuterRate { rate: 0.7, momentum: 0.6 };
        let next = place.path(&format!("{}", round + 1));
        merge(place.specs(), &state, &deltas, rate, &next).unwrap().publish().unwrap();
        state = next;
    }
    let end = place.held_out(&state);
    assert!(end < 1.5, "from {start} to {end}");
}

#[test]
fn an_adapter_learns_and_its_first_state_changes_nothing() {
    let place = Place::new();
    let before = place.held_out(&place.state);
    let method = Method::Lora { rank: 4, alpha: 8.0 };
    let trainee = Trainee::new(place::config(2, 16, 8), false, method).unwrap();
    let model = Model::load(trainee, &place.drawn, &Device::flex()).unwrap();
    let specs = model.trainee.tensors();
    let state = place.path("adapter");
    Checkpoint::initial(&model.trainee, &place.drawn, 1).unwrap().write(&state, specs).unwrap();
    let data = place::data(&place.text);
    let same = evaluate(&model, &state, &data, 8, Part::WHOLE).unwrap().0;
    assert!((same - before).abs() < 1e-6, "{same} is not {before}");
    let steps = Inner { learning_rate: 0.02, ..inner(60) };
    let result = inner_phase(&model, &state, &data, &steps, &mut Moments::default(), |_, _| true);
    result.unwrap().delta.write(&place.path("delta"), specs).unwrap();
    let plain = OuterRate { rate: 1.0, momentum: 0.0 };
    let next = place.path("next");
    merge(specs, &state, &[vec![place.path("delta")]], plain, &next).unwrap().publish().unwrap();
    let after = evaluate(&model, &next, &data, 8, Part::WHOLE).unwrap().0;
    assert!(after < before - 0.5, "from {before} to {after}");
}

#[test]
fn parts_of_a_batch_and_layers_computed_again_add_up_to_the_batch() {
    let place = Place::new();
    let run = |at_once, recompute| {
        let inner = Inner { at_once, recompute, ..inner(5) };
        let delta = place.train(&place.state, &inner, &mut Moments::default()).unwrap();
        delta.values.into_iter().flatten().collect::<Vec<f32>>()
    };
    let square = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    let whole = run(4, false);
    for (at_once, recompute) in [(1, false), (4, true), (3, true)] {
        let other = run(at_once, recompute);
        let apart: Vec<f32> = whole.iter().zip(other).map(|(one, other)| one - other).collect();
        let relative = (square(&apart) / square(&whole)).sqrt();
        assert!(relative < 1e-3, "{at_once} {recompute}: {relative:e}");
    }
}

#[test]
fn the_loss_falls_step_by_step() {
    let place = Place::new();
    let mut losses = Vec::new();
    let steps = Inner { batch: 64, at_once: 64, learning_rate: 0.003, warmup_steps: 1, ..inner(8) };
    let data = place::data(&place.text);
    inner_phase(&place.model, &place.state, &data, &steps, &mut Moments::default(), |_, loss| {
        losses.push(loss);
        true
    })
    .unwrap();
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
}

#[test]
fn the_same_shard_gives_the_same_file_and_another_shard_another() {
    let place = Place::new();
    let run = |inner: &Inner, name: &str| {
        let delta = place.train(&place.state, inner, &mut Moments::default()).unwrap();
        delta.write(&place.path(name), place.specs()).unwrap()
    };
    let first = run(&inner(3), "a");
    assert_eq!(run(&inner(3), "b"), first);
    assert_ne!(run(&Inner { first: 12, ..inner(3) }, "c"), first);
}

#[test]
fn moments_carry_over_between_rounds() {
    let place = Place::new();
    let mut kept = Moments::default();
    let first = place.train(&place.state, &inner(3), &mut kept).unwrap();
    let second = place.train(&place.state, &inner(3), &mut kept).unwrap();
    assert_ne!(first, second, "the second run starts with the moments of the first");
}

#[test]
fn divergence_names_its_step_and_settings_are_bounded() {
    let place = Place::new();
    let fails = |inner: &Inner| place.train(&place.state, inner, &mut Moments::default()).unwrap_err();
    let error = fails(&Inner { learning_rate: 1e30, warmup_steps: 1, ..inner(5) });
    assert!(matches!(error, TrainError::Diverged { step: 1.., .. }), "{error}");
    // Numbers that are far worse than a guess are as good as none.
    let error = fails(&Inner { learning_rate: 3.0, warmup_steps: 1, ..inner(200) });
    let TrainError::Diverged { what: "loss", value, step: 1.., round: 0 } = error else { panic!("{error}") };
    assert!(value.is_finite() && value > 3.0 * 256_f64.ln(), "{value}");
    for bad in [
        Inner { steps: 0, ..inner(1) },
        Inner { batch: 0, ..inner(1) },
        Inner { batch: u32::MAX, ..inner(1) },
        Inner { context: u32::MAX, ..inner(1) },
        Inner { at_once: 0, ..inner(1) },
        Inner { round: 3, rounds: 3, ..inner(1) },
    ] {
        let error = fails(&bad);
        assert!(matches!(error, TrainError::Setting { .. }), "{error}");
    }
    assert!(matches!(fails(&Inner { round: 1, ..inner(1) }), TrainError::Round { found: 0, wanted: 1 }));
    place::write_data(&place.text, "short");
    let short = fails(&inner(1)).to_string();
    assert!(short.contains("5 tokens") && short.contains("a context of 8"), "{short}");
}

#[test]
fn cancelling_stops_between_steps() {
    let place = Place::new();
    let mut moments = Moments::default();
    let data = place::data(&place.text);
    let result = inner_phase(&place.model, &place.state, &data, &inner(50), &mut moments, |done, _| done < 4);
    assert!(matches!(result, Err(TrainError::Cancelled { steps: 4 })));
}
