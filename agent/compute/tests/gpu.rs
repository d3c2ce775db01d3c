//! Owns the promise that a wgpu adapter computes what the CPU does, within a stated tolerance. Any adapter will do,
//! software ones too; without one the test says loudly that it was skipped.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a broken assumption should stop the test")]

mod place;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use burn::tensor::Device;
use skein_compute::checkpoint::Delta;
use skein_compute::device::DeviceChoice;
use skein_compute::drawn::Drawn;
use skein_compute::optimiser::Moments;
use skein_compute::packing::Bits;
use skein_compute::passes::Model;
use skein_compute::probe::{Adapter, exercise, list};
use skein_compute::train::{Inner, inner_phase};
use skein_compute::trainee::Trainee;

/// Relative L2 distance allowed between two devices for the change of the weights after one AdamW step, which divides by the gradient's size: where a
/// gradient is almost zero, its rounding decides the step's sign.
const STEP_TOLERANCE: f64 = 2e-3;

fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = want.iter().map(|value| f64::from(*value).powi(2)).sum();
    (difference / size).sqrt()
}

fn step(device: &Device, trainee: &Trainee, drawn: &Drawn, state: &Path, text: &Path) -> (Delta, f64) {
    let inner = Inner {
        seed: 1,
        round: 0,
        rounds: 1,
        first: 0,
        steps: 1,
        batch: 2,
        context: 8,
        at_once: 2,
        recompute: true,
        learning_rate: 0.01,
        warmup_steps: 1,
        bits: Bits::All,
    };
    let model = Model::load(trainee.clone(), drawn, device).unwrap();
    let result =
        inner_phase(&model, state, &place::data(text), &inner, &mut Moments::default(), |_, _| true).unwrap();
    (result.delta, result.loss)
}

/// Set in the process that the test starts: wgpu and Burn read their settings from the environment, which a test may
/// not change in its own.
const INSIDE: &str = "SKEIN_TEST_INSIDE";

#[test]
fn an_adapter_agrees_with_the_cpu() {
    if std::env::var_os(INSIDE).is_some() {
        return agrees();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "an_adapter_agrees_with_the_cpu", "--nocapture"]);
    // As `worker::command` does: on software, timing every kernel takes longer than the test.
    let output = child.env(INSIDE, "1").env("CUBECL_AUTOTUNE_LEVEL", "minimal").output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn agrees() {
    let started = Instant::now();
    let mut output = Vec::new();
    list(&mut output).unwrap();
    let adapters: Vec<Adapter> = serde_json::from_slice(&output).unwrap();
    let Some(adapter) = adapters.first() else {
        println!("SKIPPED: an_adapter_agrees_with_the_cpu: wgpu finds no adapter on this machine");
        return;
    };
    println!("on {} over {} ({})", adapter.name, adapter.backend, adapter.driver);
    let mut output = Vec::new();
    exercise(adapter.index, &mut output).unwrap();
    assert_eq!(String::from_utf8(output).unwrap(), "null");
    println!("{:?}: multiplied matrices", started.elapsed());

    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    let text = path("text");
    place::write_data(&text, &"the geese fly south. ".repeat(20));
    let (trainee, drawn, state) = place::begin(place::config(2, 16, 8), 3, path("state"));

    let gpu = DeviceChoice::Wgpu { index: adapter.index, name: adapter.name.clone() }.open().unwrap();
    let cpu = Device::flex();
    let run = |device| step(device, &trainee, &drawn, &state, &text);
    let ((gpu_delta, gpu_loss), (cpu_delta, cpu_loss)) = (run(&gpu), run(&cpu));
    let flat = |delta: Delta| delta.values.into_iter().flatten().collect::<Vec<f32>>();
    let moved = distance(&flat(gpu_delta), &flat(cpu_delta));
    println!(
        "{:?}: delta after one step: relative L2 {moved:.1e}; losses {gpu_loss} and {cpu_loss}",
        started.elapsed()
    );
    assert!(moved < STEP_TOLERANCE, "{moved:e}");
    assert!((gpu_loss - cpu_loss).abs() < 1e-4);
}

#[test]
fn a_missing_adapter_is_an_error_that_names_it() {
    let error =
        DeviceChoice::Wgpu { index: 0, name: "no such card".to_owned() }.open().unwrap_err().to_string();
    assert!(error.contains("no such card"), "{error}");
}
