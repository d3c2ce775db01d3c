//! Owns the promises of training on the CPU: it learns, it repeats to the bit, and it stops where it should.
//! Must never need a GPU.

#![expect(clippy::unwrap_used, reason = "a broken assumption should stop the test")]

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use skein_compute::checkpoint::{Checkpoint, Delta};
use skein_compute::outer::{OuterRate, merge};
use skein_compute::packing::Bits;
use skein_compute::shape::ModelShape;
use skein_compute::train::{Inner, Moments, TrainError, evaluate, inner_phase};

struct Place {
    directory: tempfile::TempDir,
    text: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("text");
        fs::write(&text, "the geese fly south. ".repeat(60)).unwrap();
        Self { directory, text }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn initial(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        Checkpoint::initial(ModelShape::new(2, 16, 2, 8).unwrap(), 11).write(&path).unwrap();
        path
    }
}

fn inner(steps: u32) -> Inner {
    Inner {
        seed: 5,
        round: 0,
        index: 0,
        of: 2,
        steps,
        batch: 4,
        learning_rate: 0.01,
        warmup_steps: 5,
        bits: Bits::All,
    }
}

fn train(state: &Path, text: &Path, inner: &Inner, moments: &mut Moments) -> Result<Delta, TrainError> {
    inner_phase(&Device::flex(), state, text, inner, moments, |_, _| true).map(|result| result.delta)
}

fn held_out(place: &Place, checkpoint: &Checkpoint) -> f64 {
    evaluate(&Device::flex(), checkpoint, &place.text).unwrap().0
}

#[test]
fn two_shards_and_outer_steps_learn_a_repetitive_text() {
    let place = Place::new();
    let mut state = place.initial("0");
    let start = held_out(&place, &Checkpoint::read(&state).unwrap());
    assert!((start - 256f64.ln()).abs() < 0.6, "an untrained model guesses: {start}");
    let mut moments = [Moments::default(), Moments::default()];
    for round in 0..3 {
        let deltas: Vec<PathBuf> = (0..2)
            .map(|index| {
                let path = place.path(&format!("delta{index}"));
                let inner = Inner { round, index, ..inner(40) };
                let delta = train(&state, &place.text, &inner, &mut moments[index as usize]).unwrap();
                delta.write(&path).unwrap();
                path
            })
            .collect();
        let next = merge(&state, &deltas, OuterRate { rate: 0.7, momentum: 0.6 }).unwrap().next;
        state = place.path(&format!("{}", round + 1));
        next.write(&state).unwrap();
    }
    let end = held_out(&place, &Checkpoint::read(&state).unwrap());
    assert!(end < 1.5, "from {start} to {end}");
}

#[test]
fn the_gradient_points_downhill() {
    // One step of plain size against the gradient's sign must lower the loss on the same batch.
    let place = Place::new();
    let state = place.initial("0");
    let mut losses = Vec::new();
    let steps = Inner { batch: 64, learning_rate: 0.003, warmup_steps: 1, ..inner(8) };
    inner_phase(&Device::flex(), &state, &place.text, &steps, &mut Moments::default(), |_, loss| {
        losses.push(loss);
        true
    })
    .unwrap();
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
}

#[test]
fn the_same_shard_gives_the_same_file_and_another_shard_another() {
    let place = Place::new();
    let state = place.initial("0");
    let run = |inner: &Inner, name: &str| {
        let delta = train(&state, &place.text, inner, &mut Moments::default()).unwrap();
        delta.write(&place.path(name)).unwrap()
    };
    let first = run(&inner(3), "a");
    assert_eq!(run(&inner(3), "b"), first);
    assert_ne!(run(&Inner { index: 1, ..inner(3) }, "c"), first);
}

#[test]
fn moments_carry_over_between_rounds() {
    let place = Place::new();
    let state = place.initial("0");
    let mut kept = Moments::default();
    let first = train(&state, &place.text, &inner(3), &mut kept).unwrap();
    let second = train(&state, &place.text, &inner(3), &mut kept).unwrap();
    assert_ne!(first, second, "the second run starts with the moments of the first");
}

#[test]
fn divergence_names_its_step_and_settings_are_bounded() {
    let place = Place::new();
    let state = place.initial("0");
    let wild = Inner { learning_rate: 1e30, warmup_steps: 1, ..inner(5) };
    let error = train(&state, &place.text, &wild, &mut Moments::default()).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { step: 1.., .. }), "{error}");
    for bad in [
        Inner { steps: 0, ..inner(1) },
        Inner { batch: 0, ..inner(1) },
        Inner { batch: u32::MAX, ..inner(1) },
        Inner { index: 2, ..inner(1) },
        Inner { index: 0, of: 0, ..inner(1) },
    ] {
        let error = train(&state, &place.text, &bad, &mut Moments::default()).unwrap_err();
        assert!(matches!(error, TrainError::Setting { .. }), "{error}");
    }
    let stale = train(&state, &place.text, &Inner { round: 1, ..inner(1) }, &mut Moments::default());
    assert!(matches!(stale, Err(TrainError::Round { found: 0, wanted: 1 })));
    fs::write(&place.text, "short").unwrap();
    let short = train(&state, &place.text, &inner(1), &mut Moments::default()).unwrap_err().to_string();
    assert!(short.contains("5 bytes"), "{short}");
}

#[test]
fn cancelling_stops_between_steps() {
    let place = Place::new();
    let state = place.initial("0");
    let result =
        inner_phase(&Device::flex(), &state, &place.text, &inner(50), &mut Moments::default(), |done, _| {
            done < 4
        });
    assert!(matches!(result, Err(TrainError::Cancelled { steps: 4 })));
}
