//! Owns the promise of checks: every honest claim to have run an inner phase is near to what its check finds, on whatever
//! device and in whatever parts it was computed, and every false one is far. `--show-output` prints how near and how far.
//! Must never need a GPU; an adapter of any kind is tried where there is one.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a broken assumption should stop the test")]

mod place;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::Device;
use safetensors::SafeTensors;
use skein_compute::check::{Claim, check_phase};
use skein_compute::checkpoint::Delta;
use skein_compute::device::DeviceChoice;
use skein_compute::drawn::Drawn;
use skein_compute::limits::CHECK_DISTANCE_MAX_MILLIONTHS;
use skein_compute::optimiser::Moments;
use skein_compute::outer::{OuterRate, merge};
use skein_compute::packing::{Bits, pack, unpack};
use skein_compute::passes::Model;
use skein_compute::probe::{Adapter, list};
use skein_compute::train::{Inner, TrainError, inner_phase};
use skein_compute::trainee::{Method, TensorSpec, Trainee};

const STEPS: u32 = 20;
const BATCH: u32 = 8;
const CONTEXT: u32 = 32;
const SEED: u64 = 11;

/// Rounds before the one that is checked, so that there are moments, and much is kept back.
const ROUNDS_BEFORE: u32 = 3;

/// Under which an adapter is tried: on software a step takes half a second.
const ADAPTER_BITS: [Bits; 1] = [Bits::All];

const ALL_BITS: [Bits; 4] = [Bits::Sparse, Bits::Four, Bits::Eight, Bits::All];

/// Set in processes that this test starts of itself, to the folder of the one that starts them.
const INSIDE: &str = "SKEIN_TEST_INSIDE";

/// Set in those that are to use an adapter.
const ON_ADAPTER: &str = "SKEIN_TEST_ADAPTER";

/// An honest claim is within this part of the tolerance, and no false one within so many times it.
const ROOM: f64 = 3.0;

fn config() -> skein_engine::config::ModelConfig {
    place::config(2, 64, CONTEXT)
}

/// Words of a small language, drawn from a generator of numbers.
fn text() -> String {
    let mut state = 7_u64;
    let mut draw = |most: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    };
    let words: Vec<String> = (0..300)
        .map(|_| (0..2 + draw(6)).map(|_| char::from(b'a' + draw(26).min(draw(26)) as u8)).collect())
        .collect();
    (0..30_000).map(|_| words[draw(300).min(draw(300)) as usize].clone() + " ").collect()
}

fn inner(round: u32, bits: Bits) -> Inner {
    Inner {
        seed: 5,
        round,
        rounds: 50,
        first: u64::from(round) * 10_000,
        steps: STEPS,
        batch: BATCH,
        context: CONTEXT,
        at_once: BATCH,
        recompute: false,
        learning_rate: 0.002,
        warmup_steps: 10,
        bits,
    }
}

/// A folder of files: those of a job, and claims by their names.
struct Place {
    folder: PathBuf,
    model: Model,
}

impl Place {
    fn open(folder: &Path, device: &Device) -> Self {
        let drawn = Drawn::new(config(), false, SEED);
        let trainee = Trainee::new(config(), false, Method::Full).unwrap();
        Self { folder: folder.to_owned(), model: Model::load(trainee, &drawn, device).unwrap() }
    }

    fn specs(&self) -> &[TensorSpec] {
        self.model.trainee.tensors()
    }

    fn path(&self, name: &str, bits: Bits) -> PathBuf {
        self.folder.join(format!("{name}-{bits:?}"))
    }

    fn state(&self, round: u32, bits: Bits) -> PathBuf {
        if round == 0 { self.folder.join("state") } else { self.path(&format!("state{round}"), bits) }
    }

    fn began(&self, round: u32, bits: Bits) -> PathBuf {
        self.path(&format!("began{round}"), bits)
    }

    fn train(&self, inner: &Inner, bits: Bits, moments: &mut Moments) -> Delta {
        let (state, data) = (self.state(inner.round, bits), place::data(&self.folder.join("text")));
        inner_phase(&self.model, &state, &data, inner, moments, |_, _| true).unwrap().delta
    }

    /// What somebody says who began as is written, and then did this.
    fn claim(&self, name: &str, inner: &Inner, bits: Bits) -> Delta {
        let mut moments = Moments::read(&self.began(inner.round, bits), &self.model).unwrap();
        let delta = self.train(inner, bits, &mut moments);
        delta.write(&self.path(name, bits), self.specs()).unwrap();
        delta
    }

    fn check(&self, name: &str, inner: &Inner) -> f64 {
        let (began, delta) = (self.began(inner.round, inner.bits), self.path(name, inner.bits));
        let claim = Claim { began: &began, delta: &delta };
        let (state, data) = (self.state(inner.round, inner.bits), place::data(&self.folder.join("text")));
        check_phase(&self.model, &state, &data, inner, claim, |_, _| true).unwrap()
    }

    /// Two agents train and merge up to the round that is checked; what the first one has is written before each round.
    fn prepare(&self, bits: Bits) {
        let mut moments = [Moments::fresh(self.specs()), Moments::fresh(self.specs())];
        for round in 0..=ROUNDS_BEFORE {
            let first = inner(round, bits);
            let second = Inner { first: first.first + 5_000, ..first };
            moments[0].write(&self.began(round, bits)).unwrap();
            let names = [format!("honest{round}"), format!("other agent{round}")];
            for ((inner, moments), name) in [first, second].iter().zip(&mut moments).zip(&names) {
                let delta = self.train(inner, bits, moments);
                delta.write(&self.path(name, bits), self.specs()).unwrap();
            }
            if round < ROUNDS_BEFORE {
                let deltas: Vec<Vec<PathBuf>> =
                    names.iter().map(|name| vec![self.path(name, bits)]).collect();
                let rate = OuterRate { rate: 0.7, momentum: 0.5 };
                let next = self.state(round + 1, bits);
                merge(self.specs(), &self.state(round, bits), &deltas, rate, &next)
                    .unwrap()
                    .publish()
                    .unwrap();
            }
        }
    }

    /// What was kept back before a round.
    fn kept(&self, round: u32, bits: Bits) -> Vec<Vec<f32>> {
        let bytes = fs::read(self.began(round, bits)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |spec: &TensorSpec| {
            let tensor = file.tensor(&format!("kept.{}", spec.name)).unwrap();
            tensor.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
        };
        self.specs().iter().map(tensor).collect()
    }

    /// A claim of changed values, rounded as if they were honest.
    fn changed(&self, name: &str, bits: Bits, values: Vec<Vec<f32>>) {
        let values = values.into_iter().map(|values| {
            let packed = pack(&values, bits).unwrap();
            unpack(&packed.codes, &packed.scales, bits, values.len()).unwrap()
        });
        let delta = Delta { round: ROUNDS_BEFORE, bits, values: values.collect() };
        delta.write(&self.path(name, bits), self.specs()).unwrap();
    }
}

/// Numbers that look drawn from a bell, with a norm of 1.
fn noise(like: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut state = 99_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut values: Vec<Vec<f32>> =
        like.iter().map(|values| values.iter().map(|_| draw() + draw() + draw()).collect()).collect();
    let norm = norm(&values);
    values.iter_mut().flatten().for_each(|value| *value /= norm);
    values
}

fn norm(values: &[Vec<f32>]) -> f32 {
    values.iter().flatten().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32
}

fn sum(one: &[Vec<f32>], other: &[Vec<f32>], times: f32) -> Vec<Vec<f32>> {
    let tensor = |(one, other): (&Vec<f32>, &Vec<f32>)| {
        one.iter().zip(other).map(|(one, other)| one + times * other).collect()
    };
    one.iter().zip(other).map(tensor).collect()
}

/// Distances by what was claimed and under how many bits.
type Table = BTreeMap<String, BTreeMap<u8, f64>>;

fn honest(place: &Place, bits: Bits, table: &mut Table) {
    let mut put = |name: &str, distance| {
        table.entry(name.to_owned()).or_default().insert(bits.number(), distance);
    };
    let usual = inner(ROUNDS_BEFORE, bits);
    put("itself", place.check(&format!("honest{ROUNDS_BEFORE}"), &usual));
    put("itself, first round", place.check("honest0", &inner(0, bits)));
    let first = inner(0, bits);
    for (name, checked, inner) in [
        ("recomputed", usual, Inner { recompute: true, ..usual }),
        ("recomputed, first round", first, Inner { recompute: true, ..first }),
        ("one at once", usual, Inner { at_once: 1, ..usual }),
        ("one at once, first round", first, Inner { at_once: 1, ..first }),
        ("three at once, recomputed", usual, Inner { at_once: 3, recompute: true, ..usual }),
    ] {
        place.claim(name, &inner, bits);
        put(name, place.check(name, &checked));
    }
}

fn cheats(place: &Place, bits: Bits, table: &mut Table) {
    let mut put = |name: &str, distance| {
        table.entry(name.to_owned()).or_default().insert(bits.number(), distance);
    };
    let usual = inner(ROUNDS_BEFORE, bits);
    for (name, inner) in [
        ("one step skipped", Inner { steps: STEPS - 1, ..usual }),
        ("half skipped", Inner { steps: STEPS / 2, ..usual }),
        ("a batch later", Inner { first: usual.first + u64::from(BATCH), ..usual }),
        ("another seed", Inner { seed: 6, ..usual }),
        ("rate x 1.1", Inner { learning_rate: usual.learning_rate * 1.1, ..usual }),
        ("rate x 0.9", Inner { learning_rate: usual.learning_rate * 0.9, ..usual }),
        ("half the batch", Inner { batch: BATCH / 2, at_once: BATCH / 2, ..usual }),
    ] {
        place.claim(name, &inner, bits);
        put(name, place.check(name, &usual));
    }
    let first = inner(0, bits);
    place.claim("no warm-up", &Inner { warmup_steps: 1, ..first }, bits);
    put("no warm-up", place.check("no warm-up", &first));
    put("another agent's", place.check(&format!("other agent{ROUNDS_BEFORE}"), &usual));

    let kept = place.kept(ROUNDS_BEFORE, bits);
    let with_kept = place.claim("unrounded", &Inner { bits: Bits::All, ..usual }, bits).values;
    let change = sum(&with_kept, &kept, -1.0);
    let decay = if bits == Bits::Sparse { 0.95 } else { 1.0 };
    let wanted = sum(&change, &kept, decay);
    let noise = noise(&change);
    place.changed("as wanted", bits, wanted.clone());
    assert!(place.check("as wanted", &usual) < 1e-3, "noise is added to what was wanted indeed");
    for (name, part) in [("noise of 0.1", 0.1), ("noise of 0.3", 0.3)] {
        place.changed(name, bits, sum(&wanted, &noise, part * norm(&change)));
        put(name, place.check(name, &usual));
    }
    let delta = Delta::read(&place.path(&format!("honest{ROUNDS_BEFORE}"), bits), place.specs()).unwrap();
    let scaled = |by: f32| Delta {
        values: delta.values.iter().map(|values| values.iter().map(|value| value * by).collect()).collect(),
        ..delta
    };
    for (name, by) in [("scaled by 1.1", 1.1), ("zeros", 0.0)] {
        scaled(by).write(&place.path(name, bits), place.specs()).unwrap();
        put(name, place.check(name, &usual));
    }
}

/// In another process: claims of its own, and on an adapter also checks of what the first process claims.
fn inside(folder: &Path) {
    let adapter = std::env::var_os(ON_ADAPTER).is_some();
    let (name, device) = if adapter {
        let mut output = Vec::new();
        list(&mut output).unwrap();
        let adapters: Vec<Adapter> = serde_json::from_slice(&output).unwrap();
        let Some(adapter) = adapters.first() else {
            println!("SKIPPED: checks on an adapter: wgpu finds none on this machine");
            return;
        };
        println!("on {} over {}", adapter.name, adapter.backend);
        let choice = DeviceChoice::Wgpu { index: adapter.index, name: adapter.name.clone() };
        ("on an adapter", choice.open().unwrap())
    } else {
        ("on one thread", Device::flex())
    };
    let place = Place::open(folder, &device);
    let mut table = Table::new();
    for bits in if adapter { ADAPTER_BITS.to_vec() } else { ALL_BITS.to_vec() } {
        // Each way once, since a step may take half a second here.
        place.claim(name, &inner(0, bits), bits);
        let distance = place.check(&format!("honest{ROUNDS_BEFORE}"), &inner(ROUNDS_BEFORE, bits));
        table.entry(format!("checked {name}")).or_default().insert(bits.number(), distance);
    }
    fs::write(folder.join(name), serde_json::to_vec(&table).unwrap()).unwrap();
}

#[test]
fn honest_claims_are_near_and_false_ones_far() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        return inside(Path::new(&folder));
    }
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    place::write_data(&folder.join("text"), &text());
    place::begin(config(), SEED, folder.join("state"));
    let place = Place::open(folder, &Device::flex());
    let (mut near, mut far) = (Table::new(), Table::new());
    println!("{} weights", place.model.trainee.parameters());
    for bits in ALL_BITS {
        place.prepare(bits);
    }
    for adapter in [false, true] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "honest_claims_are_near_and_false_ones_far", "--nocapture"]);
        child.env(INSIDE, folder).env("CUBECL_AUTOTUNE_LEVEL", "minimal");
        if adapter {
            child.env(ON_ADAPTER, "1");
        } else {
            child.env("RAYON_NUM_THREADS", "1");
        }
        let output = child.output().unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for name in ["on one thread", "on an adapter"] {
        let Ok(bytes) = fs::read(folder.join(name)) else { continue };
        let checked: Table = serde_json::from_slice(&bytes).unwrap();
        near.extend(checked);
        for bits in ALL_BITS.into_iter().filter(|bits| place.path(name, *bits).exists()) {
            let row = near.entry(format!("{name}, first round")).or_default();
            row.insert(bits.number(), place.check(name, &inner(0, bits)));
        }
    }
    for bits in ALL_BITS {
        honest(&place, bits, &mut near);
        cheats(&place, bits, &mut far);
    }
    for (title, table) in [("honest", &near), ("false", &far)] {
        println!("{title:30} {}", ALL_BITS.map(|bits| format!("{:>11}", bits.number())).concat());
        for (name, row) in table {
            let cell = |bits: Bits| match row.get(&bits.number()) {
                Some(distance) => format!("{distance:11.7}"),
                None => format!("{:>11}", "-"),
            };
            println!("  {name:28} {}", ALL_BITS.map(cell).concat());
        }
    }
    let most = CHECK_DISTANCE_MAX_MILLIONTHS as f64 / 1e6;
    println!("tolerance {most}");
    for (name, row) in near {
        assert!(row.values().all(|distance| *distance < most / ROOM), "{name}: {row:?}");
    }
    for (name, row) in far {
        assert!(row.values().all(|distance| *distance > most * ROOM), "{name}: {row:?}");
    }
}

#[test]
fn training_that_comes_to_another_end_each_time_convicts_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    // Learnt by heart at a rate far too high: what is left of the gradients is noise, which AdamW makes large.
    place::write_data(&folder.join("text"), &"the geese fly south. ".repeat(3_000));
    place::begin(config(), SEED, folder.join("state"));
    let place = Place::open(folder, &Device::flex());
    let usual = Inner { learning_rate: 0.02, steps: 160, ..inner(0, Bits::All) };
    Moments::fresh(place.specs()).write(&place.began(0, Bits::All)).unwrap();
    place.claim("recomputed", &Inner { recompute: true, at_once: 1, ..usual }, Bits::All);
    place.claim("as it is", &usual, Bits::All);
    let data = place::data(&folder.join("text"));
    let check = |name: &str| {
        let claim = Claim { began: &place.began(0, Bits::All), delta: &place.path(name, Bits::All) };
        check_phase(&place.model, &folder.join("state"), &data, &usual, claim, |_, _| true)
    };
    assert_eq!(check("as it is").unwrap(), 0.0, "whoever computes in the same way comes to the same");
    let error = check("recomputed").unwrap_err();
    println!("{error}");
    assert!(matches!(error, TrainError::Unstable { .. }), "{error}");
}

#[test]
fn what_is_no_claim_is_infinitely_far_and_what_is_not_there_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    place::write_data(&folder.join("text"), &text());
    place::begin(config(), SEED, folder.join("state"));
    let place = Place::open(folder, &Device::flex());
    let usual = Inner { steps: 2, ..inner(0, Bits::Four) };
    Moments::fresh(place.specs()).write(&place.began(0, Bits::Four)).unwrap();
    place.claim("claim", &usual, Bits::Four);
    let data = place::data(&folder.join("text"));
    let check = |began: &str, delta: &str, inner: &Inner| {
        let (began, delta) = (folder.join(began), folder.join(delta));
        let claim = Claim { began: &began, delta: &delta };
        check_phase(&place.model, &folder.join("state"), &data, inner, claim, |_, _| true)
    };
    let (began, claim) = ("began0-Four", "claim-Four");
    assert_eq!(check(began, claim, &usual).unwrap(), 0.0);
    assert_eq!(check(began, claim, &Inner { bits: Bits::Eight, ..usual }).unwrap(), f64::INFINITY);
    assert_eq!(check(claim, claim, &usual).unwrap(), f64::INFINITY);
    assert_eq!(check(began, began, &usual).unwrap(), f64::INFINITY);
    assert!(check("nothing", claim, &usual).unwrap_err().to_string().contains("nothing"));
    assert!(check(began, "nothing", &usual).is_err());
    // The claimant's moments take the phase out of the numbers.
    let mut bytes = fs::read(folder.join(began)).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(folder.join("infinite"), bytes).unwrap();
    assert_eq!(check("infinite", claim, &usual).unwrap(), f64::INFINITY);
    let cancelled = check_phase(
        &place.model,
        &folder.join("state"),
        &data,
        &usual,
        Claim { began: &folder.join(began), delta: &folder.join(claim) },
        |_, _| false,
    );
    assert!(matches!(cancelled, Err(TrainError::Cancelled { steps: 1 })));
}
