//! `skein chat MODEL`: talk to a model, line by line.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{harmless, say};
use crate::cli::ChatArgs;
use crate::client::Client;

/// # Errors
/// When no agent runs, or it has no such model.
pub(crate) fn run(args: ChatArgs) -> Result<ExitCode> {
    let client = Client::find(args.data_dir.clone())?;
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    if let Some(prompt) = &args.prompt {
        messages.push(json!({ "role": "user", "content": prompt }));
        answer(&client, &args, &messages)?;
        return Ok(ExitCode::SUCCESS);
    }
    let person = std::io::stdin().is_terminal();
    if person {
        eprintln!("talking to `{}`; an empty line or Ctrl-D ends", args.model);
    }
    loop {
        if person {
            eprint!("> ");
            std::io::stderr().flush()?;
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 || (person && line.trim().is_empty()) {
            return Ok(ExitCode::SUCCESS);
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(json!({ "role": "user", "content": line.trim() }));
        let said = answer(&client, &args, &messages)?;
        messages.push(json!({ "role": "assistant", "content": said }));
    }
}

/// Asks, prints the answer as it comes, and returns it.
fn answer(client: &Client, args: &ChatArgs, messages: &[Value]) -> Result<String> {
    let mut request = json!({
        "model": args.model, "messages": messages, "stream": true, "temperature": args.temperature,
        "stream_options": { "include_usage": true },
    });
    if let Some(seed) = args.seed {
        request["seed"] = json!(seed);
    }
    if let Some(tokens) = args.max_tokens {
        request["max_tokens"] = json!(tokens);
    }
    let spinner = ProgressBar::new_spinner();
    spinner.set_message("waiting for the model");
    spinner.enable_steady_tick(Duration::from_millis(120));
    let started = Instant::now();
    let mut first = None;
    let mut said = String::new();
    let mut out = std::io::stdout().lock();
    for line in client.post_stream("/v1/chat/completions", &request)?.lines() {
        let line = line.context("the answer broke off\nhint: ask again")?;
        let Some(event) = line.strip_prefix("data: ") else { continue };
        if event == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(event).context("the agent sent what is no event")?;
        if let Some(message) = event["error"]["message"].as_str() {
            spinner.finish_and_clear();
            bail!("{message}");
        }
        if let Some(piece) = event["choices"][0]["delta"]["content"].as_str() {
            if first.is_none() {
                spinner.finish_and_clear();
                first = Some(started.elapsed());
            }
            write!(out, "{}", harmless(piece))?;
            out.flush()?;
            said.push_str(piece);
        }
        if let (true, Some(tokens)) = (args.verbose, event["usage"]["completion_tokens"].as_u64()) {
            tell_pace(&event, tokens, first.unwrap_or_default(), started.elapsed());
        }
    }
    spinner.finish_and_clear();
    drop(out);
    say("")?;
    Ok(said)
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn tell_pace(event: &Value, tokens: u64, first: Duration, whole: Duration) {
    let rate = tokens.saturating_sub(1) as f64 / (whole - first).as_secs_f64().max(1e-3);
    eprintln!(
        "\n[{} tokens read, {tokens} written; the first after {:.2} s, then {rate:.1} per second]",
        event["usage"]["prompt_tokens"],
        first.as_secs_f64()
    );
}
