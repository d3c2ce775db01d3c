//! Owns two measurements of a model that one stage holds whole: how well it foretells a text, and how fast it is.
//! Must never use more than a stage's public face.

use std::time::Instant;

use crate::limits::CHUNK_ROWS_MAX;
use crate::stage::Stage;
use crate::step::{Chunk, Input, Output, Sampling, StepError, Want};

/// The session that measurements use.
const SESSION: u64 = 0;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The stage does not hold every layer.
    #[error("this stage holds layers {start}..{end} of {layers}; measuring needs all of them")]
    Partial {
        /// First layer.
        start: u32,
        /// One past the last.
        end: u32,
        /// Of the model.
        layers: u32,
    },
    /// The text is too short for even one window, or the window for any score.
    #[error("{tokens} tokens are too few: a window takes {context}, and at least 4")]
    Short {
        /// There are.
        tokens: usize,
        /// Asked for.
        context: u32,
    },
    /// The stage refused.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// How well a model foretells a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// e to the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Tokens that were scored.
    pub tokens: usize,
}

/// Scores a text in windows of `context` tokens, each on its own; only the second half of a window is scored, so that
/// every score has some context. The first token of each window is replaced by `begin`, for models that need one. That
/// is what llama-perplexity does, so the numbers compare. `progress` is told the windows done, those in all, and the
/// perplexity so far.
///
/// # Errors
/// [`EvaluateError`].
pub fn perplexity(
    stage: &mut Stage,
    tokens: &[u32],
    context: u32,
    begin: Option<u32>,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<Perplexity, EvaluateError> {
    whole(stage)?;
    let size = context as usize;
    let short = EvaluateError::Short { tokens: tokens.len(), context };
    let windows = tokens.len().checked_div(size).filter(|windows| *windows > 0 && size >= 4).ok_or(short)?;
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0_usize);
    for (number, window) in tokens.chunks_exact(size).enumerate() {
        for score in score_window(stage, window, begin)? {
            let surprise = -f64::from(score);
            sum += surprise;
            squares += surprise * surprise;
            count += 1;
        }
        progress(number + 1, windows, (sum / count as f64).exp());
    }
    let mean = sum / count as f64;
    let variance = (squares / count as f64 - mean * mean).max(0.0);
    let perplexity = mean.exp();
    let standard_error = perplexity * (variance / (count as f64 - 1.0)).sqrt();
    Ok(Perplexity { perplexity, standard_error, tokens: count })
}

/// The log-probability of every token after the middle of a window.
fn score_window(stage: &mut Stage, window: &[u32], begin: Option<u32>) -> Result<Vec<f32>, EvaluateError> {
    let mut sent = window.to_vec();
    if let (Some(begin), Some(first)) = (begin, sent.first_mut()) {
        *first = begin;
    }
    // The row of token i is asked for token i + 1; the last row's is not in the window.
    let (first, end) = (window.len() / 2, window.len() - 1);
    let mut scores = Vec::with_capacity(end - first);
    let mut position = 0;
    for tokens in sent[..end].chunks(CHUNK_ROWS_MAX) {
        let last = position + tokens.len();
        let from = first.saturating_sub(position);
        let want = if from < tokens.len() {
            Want::Scores { from: from as u32, targets: window[position + from + 1..=last].to_vec() }
        } else {
            Want::Nothing
        };
        let input = Input::Tokens(tokens.to_vec());
        if let Output::Scores(found) =
            one(stage, Chunk { session: SESSION, position: position as u32, input, want })?
        {
            scores.extend(found);
        }
        position = last;
    }
    stage.close(SESSION);
    Ok(scores)
}

/// How fast a model is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bench {
    /// Tokens of the prompt per second, all in as few chunks as possible.
    pub prompt_per_second: f64,
    /// Tokens generated per second, one at a time from an empty session.
    pub generate_per_second: f64,
    /// Seconds of processor time that the prompt took; `None` where the system does not say.
    pub prompt_cpu_seconds: Option<f64>,
    /// The same for generating.
    pub generate_cpu_seconds: Option<f64>,
    /// Bytes that weights, cache and buffers take.
    pub resident_bytes: u64,
}

/// Measures, for `sessions` at once, a prompt of `prompt` tokens and the generation of `generate` more, as llama-bench
/// does: of any tokens, each from an empty session, after a run to warm up. 0 leaves a part out. Rates count the tokens
/// of all sessions.
///
/// # Errors
/// [`EvaluateError`].
pub fn bench(stage: &mut Stage, prompt: u32, generate: u32, sessions: u32) -> Result<Bench, EvaluateError> {
    whole(stage)?;
    feed(stage, prompt.min(32), CHUNK_ROWS_MAX, 1)?;
    feed(stage, generate.min(4), 1, sessions)?;
    let prompts = || feed(stage, prompt, CHUNK_ROWS_MAX, sessions);
    let (prompt_per_second, prompt_cpu_seconds) = timed(prompt * sessions, prompts)?;
    let generations = || feed(stage, generate, 1, sessions);
    let (generate_per_second, generate_cpu_seconds) = timed(generate * sessions, generations)?;
    let resident_bytes = stage.resident_bytes();
    Ok(Bench {
        prompt_per_second,
        generate_per_second,
        prompt_cpu_seconds,
        generate_cpu_seconds,
        resident_bytes,
    })
}

/// Sends `count` tokens of each session in chunks, all sessions' together, asking for the token after each last row.
fn feed(stage: &mut Stage, count: u32, chunk: usize, sessions: u32) -> Result<(), EvaluateError> {
    let vocabulary = stage.config().vocabulary;
    let tokens: Vec<u32> = (0..count).map(|index| index.wrapping_mul(2_654_435_761) % vocabulary).collect();
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, top_logprobs: 0 };
    for (number, tokens) in tokens.chunks(chunk).enumerate() {
        let want = Want::Picks { from: tokens.len() as u32 - 1, sampling };
        let position = (number * chunk) as u32;
        let chunk = |session| {
            let input = Input::Tokens(tokens.to_vec());
            Chunk { session: u64::from(session), position, input, want: want.clone() }
        };
        let chunks: Vec<Chunk> = (0..sessions).map(chunk).collect();
        for answer in stage.step(&chunks) {
            answer?;
        }
    }
    for session in 0..sessions {
        stage.close(u64::from(session));
    }
    Ok(())
}

fn timed(
    count: u32,
    work: impl FnOnce() -> Result<(), EvaluateError>,
) -> Result<(f64, Option<f64>), EvaluateError> {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    work()?;
    let seconds = start.elapsed().as_secs_f64().max(1e-9);
    let used = cpu_seconds().zip(cpu).map(|(after, before)| after - before);
    Ok((f64::from(count) / seconds, used))
}

/// Processor time of this process in all its threads, where there is a `/proc`: fields 14 and 15 of its `stat`, in
/// ticks, of which every Linux has a hundred a second.
#[must_use]
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in brackets, which may hold blanks.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

fn whole(stage: &Stage) -> Result<(), EvaluateError> {
    let (layers, all) = (stage.layers(), stage.config().layers);
    match layers == (0..all) {
        true => Ok(()),
        false => Err(EvaluateError::Partial { start: layers.start, end: layers.end, layers: all }),
    }
}

fn one(stage: &mut Stage, chunk: Chunk) -> Result<Output, EvaluateError> {
    let missing = || StepError::Device("the stage gave no answer".to_owned());
    let answer = stage.step(&[chunk]).pop().ok_or_else(missing)?;
    Ok(answer?)
}
