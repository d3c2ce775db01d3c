//! A stage is killed with -9 at a random moment of a stream, again and again: how long nothing comes, and whether
//! the text is the one of an undisturbed stream.
//!
//! `cargo run --release -p skein-tests --example failover [TRIALS]` (50 by default) prints one JSON object.

use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skein_tests::agents::{Agent, Network, PATIENCE, serve_file};
use skein_tests::http;
use skein_tests::prng::Prng;
use skein_tests::yardstick::{median, model};

const TOKENS: u64 = 200;
const AGENTS: usize = 4;
const STAGES: u16 = 3;

fn main() -> Result<()> {
    let trials = std::env::args().nth(1).map_or(Ok(50), |text| text.parse::<usize>())?;
    let mut prng = Prng::new(7);
    let mut network = Network::of(AGENTS, 3_600_000)?;
    let job = serve_file(&network.agents[0], &model()?, "smol", STAGES)?;
    let (expected, longest) = stream(&network.agents[0], |_| Ok(()))?;
    let mut gaps = Vec::new();
    let mut equal = 0;
    for trial in 0..trials {
        let victim = stage_elsewhere(&network, &job, &mut prng)?;
        let at = usize::try_from(prng.between(5, TOKENS / 2))?;
        let mut killed = false;
        let mut agents = network.agents.split_first_mut().context("no agents")?;
        let (door, others) = (&mut agents.0, &mut agents.1);
        let (text, gap) = stream(door, |pieces| {
            if pieces >= at && !killed {
                killed = true;
                others[victim - 1].kill()?;
            }
            Ok(())
        })?;
        ensure!(killed, "the stream ended before the kill");
        equal += usize::from(text == expected);
        gaps.push(gap.as_secs_f64());
        eprintln!(
            "trial {}: silent for {:.2} s, text equal: {}",
            trial + 1,
            gap.as_secs_f64(),
            text == expected
        );
        network.agents[victim].restart()?;
        network.met(AGENTS)?;
    }
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    let report = json!({
        "trials": trials, "completed": gaps.len(), "texts_equal": equal, "median_gap_s": median(gaps)?,
        "worst_gap_s": worst, "longest_gap_undisturbed_s": longest.as_secs_f64(),
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    network.finish()
}

/// A stage of the job that is not at the agent whom the client asks.
fn stage_elsewhere(network: &Network, job: &str, prng: &mut Prng) -> Result<usize> {
    let status = network.agents[0].job_until(job, "the stages", PATIENCE, |job| {
        job["stages"].as_array().is_some_and(|stages| stages.len() == usize::from(STAGES))
    })?;
    let stages = status["stages"].as_array().context("no stages")?;
    let mut places = Vec::new();
    for stage in stages {
        let place = network.place(stage["node"].as_str().context("no node")?)?;
        if place != 0 {
            places.push(place);
        }
    }
    ensure!(!places.is_empty(), "every stage is at the door: {status}");
    let chosen = prng.between(0, places.len() as u64 - 1);
    Ok(places[usize::try_from(chosen)?])
}

/// The text of a streamed completion, and the longest time between two of its pieces.
fn stream(agent: &Agent, mut at_piece: impl FnMut(usize) -> Result<()>) -> Result<(String, Duration)> {
    let request = json!({
        "model": "smol", "prompt": "The history of the lighthouse", "max_tokens": TOKENS, "temperature": 0,
        "stream": true, "draft_tokens": 0, "ignore_eos": true,
    });
    let body = request.to_string();
    let request = http::request("POST", "/v1/completions", agent.api, &[], body.as_bytes());
    let answer = http::open(agent.api, &request)?;
    ensure!(answer.status == 200, "{}", answer.head);
    let (mut text, mut pieces, mut longest) = (String::new(), 0, Duration::ZERO);
    let mut last: Option<Instant> = None;
    for line in BufReader::new(answer).lines() {
        let line = line?;
        match line.strip_prefix("data: ") {
            Some("[DONE]") => return Ok((text, longest)),
            Some(event) => {
                let event: Value = serde_json::from_str(event)?;
                if let Some(message) = event["error"]["message"].as_str() {
                    bail!("the stream broke off: {message}");
                }
                text.push_str(event["choices"][0]["text"].as_str().unwrap_or_default());
                longest = longest.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
                last = Some(Instant::now());
                pieces += 1;
                at_piece(pieces)?;
            }
            None => {}
        }
    }
    bail!("the stream ended without its end mark after {pieces} pieces")
}
