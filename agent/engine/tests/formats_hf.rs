//! Models in safetensors: Hugging Face folders of every architecture, and damaged ones.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod formats_tiny;

use std::collections::BTreeMap;
use std::path::Path;

use formats_tiny::{ARCHITECTURES, config, model};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use skein_engine::config::{Architecture, ModelConfig, Rope, RopeStyle};
use skein_engine::dtype::{Dtype, quantize};
use skein_engine::hf::HfFolder;
use skein_engine::open::open;
use skein_engine::source::TensorSource;

/// The name by which Hugging Face knows a tensor of GGUF's.
fn foreign_name(name: &str, gemma: bool) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
    let names = [
        ("attn_norm.", "input_layernorm."),
        ("attn_output.", "self_attn.o_proj."),
        ("attn_q_norm.", "self_attn.q_norm."),
        ("attn_k_norm.", "self_attn.k_norm."),
        ("attn_q.", "self_attn.q_proj."),
        ("attn_k.", "self_attn.k_proj."),
        ("attn_v.", "self_attn.v_proj."),
        ("post_attention_norm.", "post_attention_layernorm."),
        ("post_ffw_norm.", "post_feedforward_layernorm."),
        ("ffn_norm.", if gemma { "pre_feedforward_layernorm." } else { "post_attention_layernorm." }),
        ("ffn_", "mlp."),
    ];
    let (ours, theirs) = names.iter().find(|(ours, _)| part.starts_with(ours)).unwrap();
    let rest = &part[ours.len()..];
    let rest = if *ours == "ffn_" { rest.replace(".weight", "_proj.weight") } else { rest.to_owned() };
    format!("model.layers.{layer}.{theirs}{rest}")
}

/// Tensors by name: dimensions and elements, all F32.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn write(path: &Path, tensors: &Tensors) {
    write_as(safetensors::Dtype::F32, path, tensors);
}

fn write_as(dtype: safetensors::Dtype, path: &Path, tensors: &Tensors) {
    let mut views = Vec::new();
    for (name, (shape, bytes)) in tensors {
        views.push((name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    }
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The tiny model of an architecture as a folder would hold it.
fn tensors(name: &str) -> Tensors {
    let gemma = name.starts_with("gemma");
    let translate = |(tensor, info, elements): &(String, skein_engine::source::TensorInfo, Vec<u8>)| {
        let shape = match info.rows {
            1 => vec![info.columns as usize],
            rows => vec![rows as usize, info.columns as usize],
        };
        (foreign_name(tensor, gemma), (shape, elements.clone()))
    };
    model(name).tensors.iter().map(translate).collect()
}

fn description(name: &str) -> Value {
    json!({
        "model_type": name, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 48,
        "max_position_embeddings": 64, "rms_norm_eps": 2_f64.powi(-17), "rope_theta": 10000.0,
        "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 8,
        "sliding_window": 8, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": if name == "gemma2" { json!(30.0) } else { Value::Null },
    })
}

fn folder(at: &Path, description: &Value, tensors: &Tensors) {
    std::fs::write(at.join("config.json"), description.to_string()).unwrap();
    write(&at.join("model.safetensors"), tensors);
}

/// The hyperparameters of the folder of a tiny model after `changes` to its description; or why it is refused.
fn read_config(name: &str, changes: &[(&str, Value)]) -> Result<ModelConfig, String> {
    let directory = tempfile::tempdir().unwrap();
    let mut description = description(name);
    for (key, value) in changes {
        description[*key] = value.clone();
    }
    folder(directory.path(), &description, &tensors(name));
    HfFolder::open(directory.path()).map(|folder| folder.config().clone()).map_err(|error| error.to_string())
}

#[test]
fn folders_of_every_architecture_open_as_their_gguf_twins() {
    for (name, _) in ARCHITECTURES {
        let directory = tempfile::tempdir().unwrap();
        folder(directory.path(), &description(name), &tensors(name));
        let opened = open(directory.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let source = opened.source();
        let mut expected = config(name);
        expected.rope.style = RopeStyle::Halves;
        assert_eq!(source.config(), &expected, "{name}");
        for (tensor, info, elements) in model(name).tensors {
            assert_eq!(source.tensors()[&tensor], info, "{name} {tensor}");
            let found = source.read(&tensor).unwrap();
            if name.starts_with("gemma") && tensor.ends_with("norm.weight") {
                let shifted = elements.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word) + 1.0);
                assert_eq!(found, shifted.flat_map(f32::to_le_bytes).collect::<Vec<_>>(), "{name} {tensor}");
            } else {
                assert_eq!(found, elements, "{name} {tensor}");
            }
        }
    }
}

#[test]
fn what_descriptions_say_beyond_the_usual() {
    let rope = |changes: &[(&str, Value)], name: &str| {
        let Rope { base, window_base, scale, factors, .. } = read_config(name, changes).unwrap().rope;
        (base, window_base, scale, factors)
    };
    // Wavelengths of 4 pairs at base 10,000: 6.3, 63, 628 and 6,283 tokens.
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 1_000});
    let (.., factors) = rope(&[("rope_scaling", llama3)], "llama");
    assert_eq!((factors[0], factors[1], factors[3]), (1.0, 1.0, 8.0));
    let smooth = (1_000.0 / (2.0 * std::f32::consts::PI * 100.0) - 1.0) / 3.0;
    assert!((factors[2] - 1.0 / ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-4, "{factors:?}");

    let linear = json!({"type": "linear", "factor": 4.0});
    assert_eq!(rope(&[("rope_scaling", linear)], "gemma3").2, 4.0);
    let newer = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                       "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}});
    assert_eq!(rope(&[("rope_parameters", newer)], "gemma3"), (1e6, 5e3, 8.0, vec![]));
    let newer = json!({"rope_type": "default", "rope_theta": 5e5});
    assert_eq!(rope(&[("rope_parameters", newer)], "llama").0, 5e5);

    let scale = |changes: &[(&str, Value)]| read_config("gemma2", changes).unwrap().query_scale;
    assert_eq!(scale(&[("query_pre_attn_scalar", json!(144))]), 1.0 / 12.0);
    assert_eq!(scale(&[("query_pre_attn_scalar", Value::Null)]), 1.0 / 16.0);

    let pattern = |name: &str, changes: &[(&str, Value)]| {
        let config = read_config(name, changes).unwrap();
        (config.window, config.window_pattern)
    };
    let kinds = json!(["sliding_attention", "full_attention"]);
    assert_eq!(pattern("gemma3", &[("layer_types", kinds)]), (Some(8), 2));
    assert_eq!(pattern("gemma3", &[("sliding_window_pattern", json!(3))]), (Some(8), 3));
    assert_eq!(pattern("llama", &[("model_type", json!("mistral"))]), (Some(8), 0));
    let none = [("model_type", json!("mistral")), ("sliding_window", Value::Null)];
    assert_eq!(pattern("llama", &none), (None, 1));
}

#[test]
fn models_of_text_inside_models_that_see_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let outer = json!({"model_type": "gemma3", "text_config": description("gemma3_text")});
    let inside = |(name, tensor)| (format!("language_model.{name}"), tensor);
    let mut tensors: Tensors = tensors("gemma3").into_iter().map(inside).collect();
    tensors.insert("vision_tower.patches.weight".to_owned(), (vec![1, 1, 1], vec![0; 4]));
    folder(directory.path(), &outer, &tensors);
    assert_eq!(HfFolder::open(directory.path()).unwrap().config().architecture, Architecture::Gemma3);
}

#[test]
fn tied_heads_are_left_out_and_others_kept() {
    for (tied, kept) in [(true, false), (false, true)] {
        let directory = tempfile::tempdir().unwrap();
        let mut description = description("llama");
        description["tie_word_embeddings"] = json!(tied);
        let mut tensors = tensors("llama");
        tensors.insert("lm_head.weight".to_owned(), tensors["model.embed_tokens.weight"].clone());
        folder(directory.path(), &description, &tensors);
        let opened = HfFolder::open(directory.path()).unwrap();
        assert_eq!(opened.tensors().contains_key("output.weight"), kept);
    }
}

#[test]
fn indices_are_followed_inside_the_folder_only() {
    let directory = tempfile::tempdir().unwrap();
    let all = tensors("qwen3");
    let (first, second): (Tensors, Tensors) =
        all.clone().into_iter().partition(|(name, _)| name.contains(".0."));
    std::fs::write(directory.path().join("config.json"), description("qwen3").to_string()).unwrap();
    write(&directory.path().join("one.safetensors"), &first);
    write(&directory.path().join("two.safetensors"), &second);
    let file = |name: &String| if first.contains_key(name) { "one.safetensors" } else { "two.safetensors" };
    let index = |extra: &[(&str, &str)]| {
        let mut map: BTreeMap<String, String> =
            all.keys().map(|name| (name.clone(), file(name).into())).collect();
        map.extend(extra.iter().map(|(name, file)| ((*name).to_owned(), (*file).to_owned())));
        let text = json!({ "weight_map": map }).to_string();
        std::fs::write(directory.path().join("model.safetensors.index.json"), text).unwrap();
        HfFolder::open(directory.path()).map_err(|error| error.to_string())
    };
    let opened = index(&[]).map_err(|error| panic!("{error}")).unwrap();
    assert_eq!(opened.tensors().len(), all.len());
    assert_eq!(opened.read("blk.1.attn_q.weight").unwrap(), all["model.layers.1.self_attn.q_proj.weight"].1);

    let refused = |extra: &[(&str, &str)]| index(extra).map(|_| ()).unwrap_err();
    assert!(refused(&[("a", "../one.safetensors")]).contains("`../one.safetensors` is no plain name"));
    assert!(refused(&[("a", "/etc/passwd")]).contains("is no plain name"));
    assert!(refused(&[("a", "one.safetensors")]).contains("tensor `a` is in none of its files"));
    assert!(refused(&[("a", "three.safetensors")]).contains("cannot read"));
}

#[test]
fn foreign_folders_are_named() {
    let refused = |name: &str, changes: &[(&str, Value)]| read_config(name, changes).unwrap_err();
    let llama = |key: &str, value: Value| refused("llama", &[(key, value)]);
    let cases = [
        (llama("model_type", json!("mamba")), "a model of type `mamba`"),
        (llama("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})), "rope scaling of type `yarn`"),
        (llama("partial_rotary_factor", json!(0.5)), "`partial_rotary_factor`"),
        (llama("hidden_act", json!("relu")), "activation `relu`"),
        (llama("quantization_config", json!({"bits": 4})), "a model with `quantization_config`"),
        (llama("num_attention_heads", Value::Null), "`num_attention_heads` is missing"),
        (llama("num_attention_heads", json!(0)), "number of heads is 0"),
        (llama("hidden_size", json!(-1)), "it is no configuration of a model"),
        (llama("vocab_size", json!(47)), "expected 47 rows of 32 columns"),
        (llama("num_hidden_layers", json!(3)), "`blk.2.attn_norm.weight` is missing"),
        (refused("qwen2", &[("use_sliding_window", json!(true))]), "`use_sliding_window`"),
        (
            refused("gemma3", &[("layer_types", json!(["linear_attention"]))]),
            "layers of type `linear_attention`",
        ),
    ];
    for (number, (found, expected)) in cases.iter().enumerate() {
        assert!(found.contains(expected), "case {number}: {found}");
    }
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = tensors("llama");
    tensors.insert("model.layers.0.self_attn.q_proj.g_idx".to_owned(), (vec![1], vec![0; 4]));
    folder(directory.path(), &description("llama"), &tensors);
    let refused = HfFolder::open(directory.path()).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("`model.layers.0.self_attn.q_proj.g_idx` is no part"), "{refused}");
}

#[test]
fn what_is_no_model_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let refused = |what: &str| {
        let found = open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(found.contains(what), "{found}");
    };
    refused("cannot read");
    std::fs::write(&path, b"hello").unwrap();
    refused("is no model; hint: name a GGUF file");
    std::fs::write(&path, b"GGUF").unwrap();
    refused("the file of 4 bytes ends in the version");
    write(&path, &tensors("llama"));
    refused("is no model; hint: name a GGUF file");
    assert!(open(directory.path()).is_err_and(|error| error.to_string().contains("is no model")));
    std::fs::write(directory.path().join("config.json"), "{}").unwrap();
    let found = open(directory.path()).map(|_| ()).unwrap_err().to_string();
    assert!(found.contains("a folder without model.safetensors"), "{found}");
}

#[test]
fn damaged_safetensors_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    folder(directory.path(), &description("llama"), &tensors("llama"));
    let path = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in (9..bytes.len()).step_by(971) {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(open(directory.path()).is_err(), "{length} bytes");
    }
    for at in 0..400 {
        let mut changed = bytes.clone();
        changed[at] ^= 0x15;
        std::fs::write(&path, changed).unwrap();
        // Some changes are harmless; none may panic, and what opens must be readable.
        if let Ok(opened) = open(directory.path()) {
            for (name, info) in opened.source().tensors() {
                assert_eq!(opened.source().read(name).unwrap().len() as u64, info.bytes().unwrap());
            }
        }
    }
    let mut huge = bytes;
    huge[..8].copy_from_slice(&(u64::MAX - 7).to_le_bytes());
    std::fs::write(&path, huge).unwrap();
    let found = open(directory.path()).map(|_| ()).unwrap_err().to_string();
    assert!(found.contains("exceeds the file, or what is allowed"), "{found}");
}

#[test]
fn half_precision_stays_as_it_is_except_in_gemmas_norms() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), description("gemma2").to_string()).unwrap();
    let halves: BTreeMap<_, _> = tensors("gemma2")
        .into_iter()
        .map(|(name, (shape, bytes))| {
            let values: Vec<f32> =
                bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
            (name, (shape, quantize(Dtype::Bf16, &values).unwrap()))
        })
        .collect();
    write_as(safetensors::Dtype::BF16, &directory.path().join("model.safetensors"), &halves);
    let opened = HfFolder::open(directory.path()).unwrap();
    assert_eq!(opened.tensors()["blk.0.attn_q.weight"].dtype, Dtype::Bf16);
    assert_eq!(opened.tensors()["blk.0.attn_norm.weight"].dtype, Dtype::F32);
    assert_eq!(opened.read("blk.0.attn_norm.weight").unwrap().len(), 128);
    let gain = &opened.read("blk.0.attn_norm.weight").unwrap()[..4];
    let gain = f32::from_le_bytes(gain.try_into().unwrap());
    assert!((1.5..=2.5).contains(&gain), "{gain}");
}
