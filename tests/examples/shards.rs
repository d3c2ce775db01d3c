//! What splitting a language model costs: decode over one and three agents on this machine, and llama.cpp over
//! two `ggml-rpc-server`s, in the same run.
//!
//! `cargo run --release -p skein-tests --example shards` prints one JSON object: medians of alternating
//! completions without drafts, so that every token takes a lap. Agents have one thread each.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_tests::agents::{Agent, Network, PATIENCE, serve_file, wait_for};
use skein_tests::yardstick::{llama, median, model, processor_seconds};

const TOKENS: u64 = 128;
const REPEATS: usize = 5;

fn main() -> Result<()> {
    let file = model()?;
    let network = Network::of(3, 3_600_000)?;
    let agent = &network.agents[0];
    serve_file(agent, &file, "whole", 1)?;
    serve_file(agent, &file, "split", 3)?;
    let (mut whole, mut split) = (Vec::new(), Vec::new());
    let (mut whole_cpu, mut split_cpu) = (Vec::new(), Vec::new());
    let mut texts = Vec::new();
    for repeat in 0..=REPEATS {
        for (name, rates, cpus) in
            [("whole", &mut whole, &mut whole_cpu), ("split", &mut split, &mut split_cpu)]
        {
            let before = processor(&network)?;
            let (rate, text) = complete(agent, name)?;
            texts.push(text);
            // The first of each warms up.
            if repeat > 0 {
                rates.push(rate);
                cpus.push(count(TOKENS) / (processor(&network)? - before));
            }
        }
    }
    ensure!(texts.windows(2).all(|pair| pair[0] == pair[1]), "split and whole differ");
    network.finish()?;
    let (whole, split) = (median(whole)?, median(split)?);
    let (whole_cpu, split_cpu) = (median(whole_cpu)?, median(split_cpu)?);
    let remote = remote(&file.display().to_string())?;
    let report = json!({
        "tokens": TOKENS, "repeats": REPEATS,
        "one_agent_per_s": whole, "three_agents_per_s": split, "ratio": split / whole,
        "one_agent_per_cpu_s": whole_cpu, "three_agents_per_cpu_s": split_cpu, "cpu_ratio": split_cpu / whole_cpu,
        "llama_cpp_two_rpc_servers_per_s": remote, "ratio_to_llama_cpp_rpc": split / remote,
        "texts_equal": true,
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

fn complete(agent: &Agent, model: &str) -> Result<(f64, String)> {
    let request = json!({
        "model": model, "prompt": "The history of", "max_tokens": TOKENS, "temperature": 0, "draft_tokens": 0,
        "ignore_eos": true,
    });
    let started = Instant::now();
    let answer = agent.post("/v1/completions", request.to_string().as_bytes())?.json()?;
    let seconds = started.elapsed().as_secs_f64();
    let text = answer["choices"][0]["text"].as_str().with_context(|| format!("no text in {answer}"))?;
    ensure!(answer["usage"]["completion_tokens"] == TOKENS, "{answer}");
    Ok((count(TOKENS) / seconds, text.to_owned()))
}

/// Processor seconds of all agents and their workers so far.
fn processor(network: &Network) -> Result<f64> {
    network.agents.iter().map(|agent| processor_seconds(agent.pid()?)).sum()
}

/// Decode rate of llama.cpp with its layers on two servers of one thread each.
fn remote(model: &str) -> Result<f64> {
    let servers = [Server::start()?, Server::start()?];
    let hosts: Vec<String> = servers.iter().map(|server| server.address.clone()).collect();
    let mut rates = Vec::new();
    for _ in 0..3 {
        let output = Command::new(llama("llama-bench")?)
            .args(["-m", model, "-t", "1", "-p", "0", "-n", &TOKENS.to_string(), "-r", "1", "-o", "json"])
            .args(["-ngl", "99", "--rpc", &hosts.join(",")])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout)?;
        rates.push(said[0]["avg_ts"].as_f64().with_context(|| format!("no rate in {said}"))?);
    }
    median(rates)
}

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Result<Self> {
        // A port that was free a moment ago; the server takes no port 0.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new(llama("ggml-rpc-server")?)
            .args(["-t", "1", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { process, address: format!("127.0.0.1:{port}") };
        wait_for("the server to listen", PATIENCE, || {
            Ok(std::net::TcpStream::connect(&server.address).ok().map(drop))
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn count(value: u64) -> f64 {
    value as f64
}
