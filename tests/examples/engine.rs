//! The engine in one process against llama.cpp on the same file: speed by processor time, and agreement.
//!
//! `cargo run --release -p skein-tests --example engine` prints one JSON object. Speeds are medians of alternating
//! runs with one thread each; `ratio` is ours by theirs, above 1 is faster.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_tests::agents::{Network, serve_file};
use skein_tests::command::run;
use skein_tests::yardstick::{corpus, llama, median, model, timed};

const ROUNDS: usize = 5;
const PROMPT: u32 = 128;
const GENERATE: u32 = 64;
const SESSIONS: u32 = 16;
/// Windows of 512 tokens: 20,480 tokens.
const WINDOWS: &str = "40";
const GREEDY_TOKENS: usize = 32;

fn main() -> Result<()> {
    let model = model()?.display().to_string();
    let report = json!({
        "prompt": speed(&model, "prompt")?,
        "decode": speed(&model, "generate")?,
        "sessions": sessions(&model)?,
        "perplexity": perplexity(&model)?,
        "greedy": greedy(&model)?,
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

/// Tokens per second of processor time: ours by its own count; llama-bench's by the difference between many
/// repetitions and few, so that loading is left out of it.
fn speed(model: &str, what: &str) -> Result<Value> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (prompt, generate) = if what == "prompt" { (PROMPT, 0) } else { (0, GENERATE) };
        theirs.push(f64::from(prompt + generate) / llama_seconds(model, prompt, generate)?);
        let said = bench(model, 1)?;
        let seconds = said[format!("{what}_cpu_seconds")].as_f64().context("no processor time")?;
        let tokens = if what == "prompt" { PROMPT } else { GENERATE };
        ours.push(f64::from(tokens) / seconds);
    }
    let (ours, theirs) = (median(ours)?, median(theirs)?);
    Ok(json!({ "ours_per_cpu_s": ours, "llama_cpp_per_cpu_s": theirs, "ratio": ours / theirs }))
}

/// Processor seconds of one repetition of llama-bench.
fn llama_seconds(model: &str, prompt: u32, generate: u32) -> Result<f64> {
    let tool = llama("llama-bench")?;
    let (prompt, generate) = (prompt.to_string(), generate.to_string());
    let seconds = |repeat: &str| -> Result<f64> {
        let arguments = ["-m", model, "-t", "1", "-p", &prompt, "-n", &generate, "-r", repeat, "-o", "json"];
        Ok(timed(&tool, &arguments)?.1)
    };
    Ok((seconds("5")? - seconds("1")?) / 4.0)
}

fn bench(model: &str, sessions: u32) -> Result<Value> {
    let (prompt, generate, sessions) = (PROMPT.to_string(), GENERATE.to_string(), sessions.to_string());
    let said = run(&[
        "bench",
        "--model",
        model,
        "--prompt",
        &prompt,
        "--generate",
        &generate,
        "--threads",
        "1",
        "--sessions",
        &sessions,
        "--json",
    ])?;
    ensure!(said.code == 0, "{said:?}");
    said.json()
}

/// Tokens per processor second of many sessions decoded together, against one; and llama.cpp's own ratio.
fn sessions(model: &str) -> Result<Value> {
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let rate = |said: &Value, count: f64| -> Result<f64> {
            let seconds = said["generate_cpu_seconds"].as_f64().context("no processor time")?;
            Ok(f64::from(GENERATE) * count / seconds)
        };
        let one = rate(&bench(model, 1)?, 1.0)?;
        let many = rate(&bench(model, SESSIONS)?, f64::from(SESSIONS))?;
        ratios.push(many / one);
    }
    Ok(json!({ "sessions": SESSIONS, "tokens_per_cpu_s_against_one": median(ratios)? }))
}

/// Perplexity on the same windows of the same text.
fn perplexity(model: &str) -> Result<Value> {
    let corpus = corpus()?.display().to_string();
    let said = run(&["eval", model, "--perplexity", &corpus, "--ctx", "512", "--chunks", WINDOWS, "--json"])?;
    ensure!(said.code == 0, "{said:?}");
    let ours = said.json()?["perplexity"].as_f64().context("no perplexity")?;
    let arguments = ["-m", model, "-f", &corpus, "-c", "512", "--chunks", WINDOWS, "-t", "2"];
    // Its estimate goes to either stream, by version.
    let output = std::process::Command::new(llama("llama-perplexity")?).args(arguments).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let theirs = text.split("Final estimate: PPL = ").nth(1).and_then(|rest| rest.split(' ').next());
    let theirs: f64 = theirs.with_context(|| format!("no estimate in {text}"))?.parse()?;
    Ok(json!({
        "tokens": said.json()?["tokens"], "ours": ours, "llama_cpp": theirs,
        "difference_percent": (ours / theirs - 1.0) * 100.0,
    }))
}

const PROMPTS: [&str; 20] = [
    "The capital of France is",
    "Once upon a time there was a",
    "To be, or not to be, that is",
    "Water boils at a temperature of",
    "The three primary colours are",
    "def fibonacci(n):\n",
    "In 1969, the first human",
    "The largest planet of the solar system",
    "Photosynthesis is the process by which",
    "A haiku about autumn:\n",
    "The recipe for pancakes needs",
    "Dear Sir or Madam,\n\nI am writing to",
    "The mitochondrion is",
    "A prime number is a number that",
    "Geese fly in a V because",
    "#include <stdio.h>\n\nint main",
    "The Roman Empire fell because",
    "My favourite book is",
    "Newton's second law says that",
    "The quick brown fox",
];

/// How many greedy continuations are the same, text for text; and how many of llama.cpp's own are, with flash attention
/// and without, which computes the same in another order.
fn greedy(model: &str) -> Result<Value> {
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    serve_file(agent, std::path::Path::new(model), "smol", 1)?;
    let (mut equal, mut self_equal, mut different) = (0, 0, Vec::new());
    for prompt in PROMPTS {
        let request = json!({
            "model": "smol", "prompt": prompt, "max_tokens": GREEDY_TOKENS, "temperature": 0, "logprobs": 2,
        });
        let answer = agent.post("/v1/completions", request.to_string().as_bytes())?.json()?;
        let ours = answer["choices"][0]["text"].as_str().with_context(|| format!("no text in {answer}"))?;
        let theirs = llama_continues(model, prompt, "on")?;
        self_equal += usize::from(llama_continues(model, prompt, "off")? == theirs);
        if ours.trim_end() == theirs {
            equal += 1;
        } else {
            let margin = margin(&answer["choices"][0]["logprobs"], &theirs)?;
            different
                .push(json!({ "prompt": prompt, "ours": ours, "llama_cpp": theirs, "margin_nats": margin }));
        }
    }
    network.finish()?;
    Ok(json!({
        "prompts": PROMPTS.len(), "tokens": GREEDY_TOKENS, "equal": equal, "llama_cpp_with_itself": self_equal,
        "different": different,
    }))
}

/// llama.cpp's greedy continuation.
fn llama_continues(model: &str, prompt: &str, flash_attention: &str) -> Result<String> {
    let tokens = GREEDY_TOKENS.to_string();
    let arguments =
        ["-m", model, "-p", prompt, "-n", &tokens, "--temp", "0", "-no-cnv", "--no-display-prompt"];
    let more = ["-t", "2", "-fa", flash_attention];
    let (text, _) = timed(&llama("llama-completion")?, &[&arguments[..], &more].concat())?;
    Ok(text.trim_end_matches('\n').replace(" [end of text]", "").trim_end().to_owned())
}

/// How much likelier our first token that is not theirs was than the next likeliest, in nats: of a close call, little.
fn margin(logprobs: &Value, theirs: &str) -> Result<f64> {
    let (tokens, tops) = (logprobs["tokens"].as_array(), logprobs["top_logprobs"].as_array());
    let (tokens, tops) = tokens.zip(tops).context("no log-probabilities")?;
    let mut text = String::new();
    for (token, top) in tokens.iter().zip(tops) {
        text.push_str(token.as_str().unwrap_or_default());
        if !theirs.starts_with(text.trim_end()) {
            let mut likely: Vec<f64> =
                top.as_object().into_iter().flatten().filter_map(|(_, p)| p.as_f64()).collect();
            likely.sort_by(f64::total_cmp);
            return Ok(likely.last().unwrap_or(&0.0) - likely.first().unwrap_or(&0.0));
        }
    }
    Ok(0.0)
}
