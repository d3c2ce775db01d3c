//! Owns the promise that gradients are right, for every architecture: against finite differences, and against PyTorch
//! (`tests/foreign/gradients.py`, which shares no code with us) on the same weights and batch.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use skein_engine::config::{Activation, Architecture, ModelConfig, Rope, RopeStyle};

use crate::checkpoint::Checkpoint;
use crate::data::Batch;
use crate::drawn::Drawn;
use crate::passes::{Gradients, Micro, Model, Passes, download};
use crate::trainee::{Method, TensorSpec, Trainee};

/// What PyTorch must agree to: relative L2 distance of every tensor's gradient.
const TOLERANCE: f64 = 1e-4;

/// One small model of every architecture, with all that is peculiar to it.
fn models() -> Vec<(&'static str, ModelConfig, bool)> {
    let rope = |style| Rope { style, base: 1e4, window_base: 1e4, dims: 8, scale: 1.0, factors: Vec::new() };
    let plain = |architecture, style| ModelConfig {
        architecture,
        layers: 2,
        width: 24,
        feed_width: 40,
        heads: 4,
        kv_heads: 2,
        head_width: 8,
        vocabulary: 50,
        context: 16,
        norm_epsilon: 1e-5,
        rope: rope(style),
        activation: Activation::SiluGated,
        embedding_scale: 1.0,
        query_scale: 1.0 / 8f32.sqrt(),
        score_cap: None,
        logit_cap: None,
        window: None,
        window_pattern: 1,
    };
    let llama = plain(Architecture::Llama, RopeStyle::Adjacent);
    let factors = Rope { factors: vec![1.0, 1.5, 4.0, 8.0], ..llama.rope.clone() };
    let gemma = |architecture| ModelConfig {
        activation: Activation::GeluGated,
        embedding_scale: 24f32.sqrt(),
        query_scale: 0.3,
        window: Some(5),
        window_pattern: 2,
        ..plain(architecture, RopeStyle::Halves)
    };
    vec![
        ("llama", llama.clone(), false),
        ("llama 3", ModelConfig { rope: factors, ..llama }, true),
        ("qwen2", plain(Architecture::Qwen2, RopeStyle::Halves), true),
        ("qwen3", plain(Architecture::Qwen3, RopeStyle::Halves), false),
        (
            "gemma2",
            ModelConfig { score_cap: Some(2.0), logit_cap: Some(3.0), ..gemma(Architecture::Gemma2) },
            true,
        ),
        (
            "gemma3",
            ModelConfig {
                rope: Rope { window_base: 1e2, scale: 2.0, ..rope(RopeStyle::Halves) },
                ..gemma(Architecture::Gemma3)
            },
            true,
        ),
    ]
}

struct Case {
    model: Model,
    drawn: Drawn,
    weights: Vec<Vec<f32>>,
    batch: Batch,
}

fn case(config: ModelConfig, tied: bool, method: Method) -> Case {
    let drawn = Drawn::new(config.clone(), tied, 5);
    let trainee = Trainee::new(config, tied, method).unwrap();
    let mut weights = Checkpoint::initial(&trainee, &drawn, 5).unwrap().weights;
    // Gains of one and second parts of zero would hide mistakes.
    for (number, value) in weights.iter_mut().flatten().enumerate() {
        *value += 0.1 * (number as f32 * 0.7).sin();
    }
    let (sequences, context) = (2, 12);
    let ids =
        |shift: usize| (0..sequences * context).map(move |at| ((at * 7 + shift * 3 + at / 5) % 50) as u32);
    let counts = (0..sequences * context).map(|at| at % 5 != 3).collect();
    let batch = Batch { sequences, context, inputs: ids(0).collect(), targets: ids(1).collect(), counts };
    let model = Model::load(trainee, &drawn, &Device::flex()).unwrap();
    Case { model, drawn, weights, batch }
}

impl Case {
    /// The mean loss, and the gradients as files have tensors.
    fn gradients(&self) -> (f64, Vec<Vec<f32>>) {
        let uploaded = self.model.upload(&self.weights);
        let counted = self.batch.counted().1.len();
        let passes = Passes::new(&self.model, self.batch.context, false);
        let mut found = Gradients::default();
        let (loss, _) = passes.learn(self.micro(&uploaded), None, counted, &mut found).unwrap();
        (f64::from(loss), downloaded(&self.model, found))
    }

    fn micro<'a>(&'a self, weights: &'a [Tensor<2>]) -> Micro<'a> {
        Micro { model: &self.model, weights, batch: &self.batch }
    }

    fn loss(&self, weights: &[Vec<f32>]) -> f64 {
        let uploaded = self.model.upload(weights);
        let passes = Passes::new(&self.model, self.batch.context, false);
        let sum = passes.loss(self.micro(&uploaded), None).unwrap();
        f64::from(sum) / self.batch.counted().1.len() as f64
    }
}

/// As files have tensors.
fn downloaded(model: &Model, found: Gradients) -> Vec<Vec<f32>> {
    let specs = model.trainee.tensors();
    let found = found.whole(specs.len()).unwrap().into_iter();
    found.zip(specs).map(|(tensor, spec)| download(tensor, spec).unwrap()).collect()
}

fn size(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for (name, config, tied) in models() {
        for method in [Method::Full, Method::Lora { rank: 3, alpha: 6.0 }] {
            let case = case(config.clone(), tied, method);
            let (_, found) = case.gradients();
            for (number, spec) in case.model.trainee.tensors().iter().enumerate() {
                // Along the gradient the slope is the gradient's size.
                let slope = size(&found[number]);
                assert!(slope > 0.0, "{name}: {}", spec.name);
                let error = |part: f64| {
                    let step = (part * size(&case.weights[number])).max(1e-3) / slope;
                    let at = |steps: f64| {
                        let mut weights = case.weights.clone();
                        for (weight, gradient) in weights[number].iter_mut().zip(&found[number]) {
                            *weight += (steps * step * f64::from(*gradient)) as f32;
                        }
                        case.loss(&weights)
                    };
                    // Five points, so that curvature does not count.
                    let difference = 8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0));
                    (difference / (12.0 * step * slope * slope) - 1.0).abs()
                };
                // Small steps drown in f32's rounding, large ones leave what five points can follow.
                let best =
                    [0.03, 0.01, 0.003, 0.001, 0.000_3].map(error).into_iter().fold(f64::INFINITY, f64::min);
                assert!(best < 3e-3, "{name} {method:?}: {}: off by {best:e}", spec.name);
            }
        }
    }
}

/// Relative L2 distance of any tensor's gradients.
fn worst(found: &[Vec<f32>], wanted: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let apart = |(found, wanted): (&Vec<f32>, &Vec<f32>)| {
        let difference: Vec<f32> = found.iter().zip(wanted).map(|(one, other)| one - other).collect();
        assert_eq!(found.len(), wanted.len());
        size(&difference) / size(wanted)
    };
    found.iter().zip(wanted).map(apart).fold(0.0, f64::max)
}

impl Case {
    /// The gradients of stages that end at these layers, in canonical order, with micro-batches of one sequence of which
    /// all go forward before any goes back.
    fn of_stages(&self, ends: &[u32], recompute: bool) -> (f64, Vec<Vec<f32>>) {
        let whole = &self.model.trainee;
        let counted = self.batch.counted().1.len();
        let micros: Vec<Batch> = self.batch.parts(1).collect();
        let starts = [0].into_iter().chain(ends.iter().copied());
        let stages: Vec<Model> = starts
            .zip(ends)
            .map(|(start, end)| {
                Model::load(whole.stage(start..*end).unwrap(), &self.drawn, &Device::flex()).unwrap()
            })
            .collect();
        let weights: Vec<Vec<Tensor<2>>> = stages
            .iter()
            .map(|model| {
                let own = |spec: &TensorSpec| {
                    let place = whole.tensors().iter().position(|other| other.name == spec.name).unwrap();
                    self.weights[place].clone()
                };
                model.upload(&model.trainee.tensors().iter().map(own).collect::<Vec<_>>())
            })
            .collect();
        let passes: Vec<Passes> =
            stages.iter().map(|model| Passes::new(model, self.batch.context, recompute)).collect();
        let mut gradients: Vec<Gradients> = stages.iter().map(|_| Gradients::default()).collect();
        let last = stages.len() - 1;
        let through = |stage: usize, batch| Micro { model: &stages[stage], weights: &weights[stage], batch };
        let mut kept = Vec::new();
        for batch in &micros {
            let mut rows = None;
            let mut of_micro = Vec::new();
            for (stage, passes) in passes[..last].iter().enumerate() {
                let (next, link) = passes.forward(through(stage, batch), rows).unwrap();
                rows = Some(next);
                of_micro.push(link);
            }
            kept.push((rows, of_micro));
        }
        let mut loss = 0.0;
        for (batch, (rows, of_micro)) in micros.iter().zip(kept) {
            let (more, mut upstream) =
                passes[last].learn(through(last, batch), rows, counted, &mut gradients[last]).unwrap();
            loss += f64::from(more);
            for (stage, link) in of_micro.into_iter().enumerate().rev() {
                let given = upstream.unwrap();
                let found = passes[stage].backward(through(stage, batch), link, given, &mut gradients[stage]);
                upstream = found.unwrap();
            }
            assert!(upstream.is_none(), "nothing comes before the first stage");
        }
        let found = stages.iter().zip(gradients).flat_map(|(model, found)| downloaded(model, found));
        (loss, found.collect())
    }
}

/// Gradients in stages, or computed again layer by layer, may differ from the whole model's by so much: relative L2
/// distance of any tensor's. They are the same sums in another order.
const STAGES_TOLERANCE: f64 = 1e-4;

#[test]
fn stages_and_recomputation_give_the_gradients_of_the_whole_model() {
    let mut most: f64 = 0.0;
    for (name, config, tied) in models() {
        for method in [Method::Full, Method::Lora { rank: 3, alpha: 6.0 }] {
            let case = case(ModelConfig { layers: 3, ..config.clone() }, tied, method);
            let (loss, wanted) = case.gradients();
            let split: &[&[u32]] =
                if tied && method == Method::Full { &[&[3]] } else { &[&[3], &[1, 3], &[2, 3], &[1, 2, 3]] };
            for (ends, recompute) in split.iter().flat_map(|ends| [(ends, false), (ends, true)]) {
                let (found_loss, found) = case.of_stages(ends, recompute);
                let apart = worst(&found, &wanted).max((found_loss / loss - 1.0).abs());
                assert!(apart < STAGES_TOLERANCE, "{name} {method:?} {ends:?} {recompute}: {apart:e}");
                most = most.max(apart);
            }
        }
    }
    println!("the worst relative distance: {most:.1e}");
}

/// The same weights, batch, loss and gradients in a file, for a program that computes them again.
fn write(path: &Path, name: &str, case: &Case) {
    let (loss, found) = case.gradients();
    let trainee = &case.model.trainee;
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = HashMap::new();
    for tensor in trainee.frozen() {
        let values = crate::checkpoint::read_weights(&case.drawn, &tensor.name).unwrap();
        let shape = vec![tensor.rows as usize, tensor.columns as usize];
        tensors.insert(tensor.name, (shape, bytes(&values)));
    }
    for ((spec, weights), gradient) in trainee.tensors().iter().zip(&case.weights).zip(&found) {
        let shape = vec![spec.rows, spec.columns];
        tensors.insert(spec.name.clone(), (shape.clone(), bytes(weights)));
        tensors.insert(format!("gradient.{}", spec.name), (shape, bytes(gradient)));
    }
    let config = trainee.config();
    let rope = &config.rope;
    let (rank, alpha) = match trainee.method() {
        Method::Full => (0, 0.0),
        Method::Lora { rank, alpha } => (rank, alpha),
    };
    let note = json!({
        "name": name, "loss": loss, "layers": config.layers, "heads": config.heads, "kv_heads": config.kv_heads,
        "head_width": config.head_width, "epsilon": config.norm_epsilon, "tied": trainee.tied(),
        "style": if rope.style == RopeStyle::Adjacent { "adjacent" } else { "halves" },
        "base": rope.base, "window_base": rope.window_base, "scale": rope.scale, "factors": rope.factors,
        "gelu": config.activation == Activation::GeluGated, "embedding_scale": config.embedding_scale,
        "query_scale": config.query_scale, "score_cap": config.score_cap, "logit_cap": config.logit_cap,
        "windows": (0..config.layers).map(|layer| config.window_of(layer)).collect::<Vec<_>>(),
        "rank": rank, "alpha": alpha, "context": case.batch.context,
        "inputs": case.batch.inputs, "targets": case.batch.targets, "counts": case.batch.counts,
    });
    let views: Vec<(&String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
        .collect();
    let metadata = HashMap::from([("case".to_owned(), note.to_string())]);
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

#[test]
fn gradients_are_those_of_pytorch() {
    // Debian's package python3-torch brings it for the system's own interpreter.
    let python = std::env::var("SKEIN_TORCH_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let has_torch = Command::new(&python).args(["-c", "import torch"]).output();
    if !has_torch.is_ok_and(|ran| ran.status.success()) {
        println!(
            "SKIPPED: gradients_are_those_of_pytorch: {python} has no PyTorch; `apt install python3-torch`"
        );
        return;
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/foreign/gradients.py");
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (name, config, tied) in models() {
        for (kind, method) in [("full", Method::Full), ("lora", Method::Lora { rank: 3, alpha: 6.0 })] {
            let path = directory.path().join(format!("{name}-{kind}.safetensors"));
            write(&path, &format!("{name}, {kind}"), &case(config.clone(), tied, method));
            files.push(path);
        }
    }
    let ran = Command::new(python).arg(script).args(&files).output().unwrap();
    let out = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{out}{}", String::from_utf8_lossy(&ran.stderr));
    println!("{out}");
    let worst: Vec<f64> = out.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert_eq!(worst.len(), files.len(), "one line for each: {out}");
    assert!(worst.iter().all(|error| *error < TOLERANCE), "{out}");
}
