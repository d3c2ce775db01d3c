//! Three stages that are 40 ms from each other: what drafts gain where every lap is slow, and what several
//! sessions gain that share the pipe.
//!
//! `cargo run --release -p skein-tests --example far` prints one JSON object. The distance is made in user
//! space (`skein_tests::relay`): every datagram to an agent is held for 40 ms.

use std::io::Write;
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_tests::agents::{Agent, serve_file};
use skein_tests::relay::{Line, network};
use skein_tests::yardstick::{corpus, median, model};

const DELAY: Duration = Duration::from_millis(40);
const TOKENS: u64 = 96;
const SESSIONS: u64 = 6;
const REPEATS: usize = 3;

fn main() -> Result<()> {
    let (network, _relays) = network(3, Line { one_way: DELAY, bytes_per_s: f64::INFINITY })?;
    let agent = &network.agents[0];
    serve_file(agent, &model()?, "far", 3)?;
    let passage: String = std::fs::read_to_string(corpus()?)?.chars().skip(400_000).take(1_200).collect();
    let quoting = [
        format!(
            "Repeat the text word for word, with `thou` written as `you`.\n\nText:\n{passage}\n\nRepeated:\n"
        ),
        format!("Correct the spelling of this text.\n\nText:\n{passage}\n\nCorrected text:\n"),
        format!("{passage}\n\nThe passage above, quoted once more in full:\n\n"),
    ];
    let prose = ["The history of the lighthouse begins", "My grandmother told me that in the old days"];
    let report = json!({
        "delay_ms": DELAY.as_millis(), "tokens": TOKENS, "stages": 3,
        "quoting": compare(agent, &quoting)?,
        "open_prose": compare(agent, &prose.map(str::to_owned))?,
        "sessions": together(agent, prose[0])?,
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    network.finish()
}

/// Tokens per second with drafts and without, over several prompts.
fn compare(agent: &Agent, prompts: &[String]) -> Result<Value> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for prompt in prompts {
        for _ in 0..REPEATS {
            let (plain, expected) = complete(agent, prompt, 0)?;
            let (drafted, text) = complete(agent, prompt, 32)?;
            ensure!(text == expected, "drafts changed the text: {text} is not {expected}");
            with.push(drafted);
            without.push(plain);
        }
    }
    let ratios = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    let (with, without) = (median(with)?, median(without)?);
    Ok(
        json!({ "with_drafts_per_s": with, "one_token_per_lap_per_s": without, "median_ratio": median(ratios)? }),
    )
}

/// Decode rate after the first token, and the text.
fn complete(agent: &Agent, prompt: &str, draft_tokens: u64) -> Result<(f64, String)> {
    let ask = |max_tokens: u64| -> Result<(f64, String)> {
        let request = json!({
            "model": "far", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
            "draft_tokens": draft_tokens, "ignore_eos": true,
        });
        let started = Instant::now();
        let answer = agent.post("/v1/completions", request.to_string().as_bytes())?.json()?;
        let text = answer["choices"][0]["text"].as_str().with_context(|| format!("no text in {answer}"))?;
        Ok((started.elapsed().as_secs_f64(), text.to_owned()))
    };
    // What the prompt takes is measured by an answer of one token, and taken off.
    let (prompt_seconds, _) = ask(1)?;
    let (seconds, text) = ask(TOKENS)?;
    Ok((count(TOKENS - 1) / (seconds - prompt_seconds).max(1e-3), text))
}

/// Tokens per second over several sessions at once, against one.
fn together(agent: &Agent, prompt: &str) -> Result<Value> {
    let (alone, _) = complete(agent, prompt, 0)?;
    let started = Instant::now();
    let answers: Vec<Result<(f64, String)>> = scope(|scope| {
        let ask = |number: u64| scope.spawn(move || complete(agent, &format!("{number}. {prompt}"), 0));
        let asked: Vec<_> = (0..SESSIONS).map(ask).collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap_or_else(|_| anyhow::bail!("a thread failed")))
            .collect()
    });
    for answer in answers {
        answer?;
    }
    // Each asked for one token more, to measure its prompt.
    let rate = count(SESSIONS * (TOKENS + 1)) / started.elapsed().as_secs_f64();
    Ok(json!({ "sessions": SESSIONS, "together_per_s": rate, "one_per_s": alone, "ratio": rate / alone }))
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn count(value: u64) -> f64 {
    value as f64
}
