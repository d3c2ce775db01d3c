//! What splitting a model costs: greedy decode over one, two and three agents on this machine, against all
//! layers at one agent, through the same HTTP API in the same run.
//!
//! `cargo run --release -p skein-tests --example decode` prints one JSON object: medians of five completions each.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_tests::agents::{Agent, Network, model, serve};

const TOKENS: u64 = 96;
const REPEATS: usize = 5;

fn main() -> Result<()> {
    let network = Network::of(3, 3_600_000)?;
    let agent = &network.agents[0];
    let shape = json!({ "layers": 6, "width": 128, "heads": 4, "context": 128 });
    let model = model(agent, &shape)?;
    let mut rows: Vec<Value> = Vec::new();
    let mut whole: Option<(f64, String)> = None;
    for stages in 1..=3 {
        let job = serve(agent, &model, &shape, stages)?;
        let (rate, text) = median(agent)?;
        let (alone, expected) = whole.get_or_insert_with(|| (rate, text.clone()));
        ensure!(*expected == text, "{stages} stages give another text than one");
        rows.push(json!({ "stages": stages, "tokens_per_s": rate, "ratio_to_one_stage": rate / *alone }));
        agent.order(&format!("/api/jobs/{job}/cancel"), &json!(null))?;
        agent.job_done(&job)?;
    }
    writeln!(std::io::stdout(), "{:#}", json!({ "tokens": TOKENS, "repeats": REPEATS, "decode": rows }))?;
    network.finish()
}

/// The median rate of several completions, after one that warms up.
fn median(agent: &Agent) -> Result<(f64, String)> {
    let name = agent.get("/v1/models")?["data"][0]["id"].as_str().context("no model")?.to_owned();
    let request =
        json!({ "model": name, "prompt": "To be, or not to be", "max_tokens": TOKENS, "temperature": 0 });
    let mut rates = Vec::new();
    let mut text = String::new();
    for repeat in 0..=REPEATS {
        let started = Instant::now();
        let answer = agent.post("/v1/completions", request.to_string().as_bytes())?.json()?;
        let seconds = started.elapsed().as_secs_f64();
        text =
            answer["choices"][0]["text"].as_str().with_context(|| format!("no text in {answer}"))?.to_owned();
        #[expect(clippy::cast_precision_loss, reason = "for display")]
        let rate = TOKENS as f64 / seconds;
        if repeat > 0 {
            rates.push(rate);
        }
    }
    rates.sort_by(f64::total_cmp);
    Ok((rates[rates.len() / 2], text))
}
