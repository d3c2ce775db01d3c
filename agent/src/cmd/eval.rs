//! `skein eval MODEL --perplexity FILE`: how well a model predicts a text, comparable with llama-perplexity.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use skein_compute::device::{DeviceChoice, engine_device};
use skein_engine::evaluate::perplexity;
use skein_engine::graph::PAGE_POSITIONS;
use skein_engine::import::{self, Imported};
use skein_engine::manifest::{Manifest, PieceSource};
use skein_engine::stage::{Options, Stage};
use skein_engine::tokenizer::Tokenizer;
use skein_mesh::BlobStore;
use skein_proto::ids::Digest;

use super::{print_json, say};
use crate::cli::{DataDir, EvalArgs};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::serve::registry::Registry;

/// # Errors
/// When there is no such model, or the text is too short.
pub(crate) fn run(args: EvalArgs) -> Result<ExitCode> {
    let text = std::fs::read(&args.perplexity)
        .with_context(|| format!("cannot read the text {}", args.perplexity.display()))?;
    let text = String::from_utf8_lossy(&text);
    let model = open(&args.model, args.data_dir)?;
    let tokenizer = Tokenizer::new(model.vocabulary)?;
    // As llama-perplexity does: the text's own tokens, none of them special, after the one that begins every text.
    let begin =
        tokenizer.prompt("").first().copied().filter(|token| tokenizer.vocabulary().bos() == Some(*token));
    let tokens: Vec<u32> = begin.into_iter().chain(tokenizer.encode(&text, false)).collect();
    let device = device(&args.processor.device)?;
    let threads = threads(args.processor.threads);
    let mut stage = whole(model.source.as_ref(), &device, threads, args.ctx, 1)?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} chunks, {eta} left, {msg}")?);
    let most = args.chunks.map_or(usize::MAX, |chunks| chunks as usize).saturating_mul(args.ctx as usize);
    let tokens = &tokens[..tokens.len().min(most)];
    let result = perplexity(&mut stage, tokens, args.ctx, begin, &mut |done, of, so_far| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("perplexity {so_far:.4}"));
    })?;
    bar.finish_and_clear();
    if args.json {
        print_json(&json!({
            "perplexity": result.perplexity, "standard_error": result.standard_error,
            "tokens": tokens.len(), "scored": result.tokens, "ctx": args.ctx, "device": device,
        }))?;
    } else {
        say(&format!(
            "perplexity {:.4} +/- {:.4} over {} of {} tokens, chunks of {}",
            result.perplexity,
            result.standard_error,
            result.tokens,
            tokens.len(),
            args.ctx
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The model in a file or folder, or the one that was added under this name; no agent needs to run.
fn open(model: &str, data_dir: DataDir) -> Result<Imported> {
    if Path::new(model).exists() {
        return Ok(import::open(Path::new(model))?);
    }
    let data_dir = crate::config::data_dir(data_dir.data_dir)?;
    let blobs = data_dir.join("blobs");
    let nothing =
        || format!("there is no file `{model}`, and no model of that name in {}", data_dir.display());
    let store = BlobStore::open(&blobs).with_context(nothing)?;
    let entry = Registry::open(&data_dir, store.clone())?.get(model).with_context(nothing)?;
    Ok(import::from_pieces(pieces(&store, entry.model)?)?)
}

/// A model by its digest, from the pieces in this store.
///
/// # Errors
/// When its manifest is not there.
pub(crate) fn pieces(store: &BlobStore, model: Digest) -> Result<PieceSource> {
    let bytes = smol::future::block_on(store.load(model, MANIFEST_BYTES_MAX)).with_context(|| {
        format!("model {} is not here\nhint: run this where it was added, or add it", model.short())
    })?;
    let store = store.clone();
    let path = Box::new(move |piece: &[u8; 32]| store.path(&Digest(*piece)));
    Ok(PieceSource::new(Manifest::decode(&bytes)?, path))
}

/// All layers of a model in this process, with room for so many sessions of so many tokens.
pub(crate) fn whole(
    source: &dyn skein_engine::source::TensorSource,
    device: &DeviceChoice,
    threads: usize,
    tokens: u32,
    sessions: u32,
) -> Result<Stage> {
    let config = source.config();
    let tokens_in_all = u64::from(tokens).next_multiple_of(PAGE_POSITIONS as u64) * u64::from(sessions);
    let options = Options {
        layers: 0..config.layers,
        device: engine_device(device, threads),
        cache_bytes: tokens_in_all * u64::from(config.layers) * config.cache_bytes_per_token_and_layer(),
        context: tokens,
    };
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("loading {bar:30} {bytes}/{total_bytes}")?);
    let stage = Stage::open(source, &options, &mut |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(stage?)
}

/// So many threads, or one for each core.
pub(crate) fn threads(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
}

/// A device by the name that people give it.
///
/// # Errors
/// When it does not exist or does not work.
pub(crate) fn device(name: &str) -> Result<DeviceChoice> {
    if name == "cpu" {
        return Ok(DeviceChoice::Cpu);
    }
    let executable = std::env::current_exe().context("cannot find this binary's own path")?;
    let survey = skein_compute::probe::survey(&executable, crate::limits::PROBE_TIMEOUT);
    Ok(skein_compute::probe::choose(&survey, Some(name))?.device)
}
