//! Tools that are not ours, on what a real agent serves and writes: a verifier in plain Python, and
//! OpenAI's own clients.
//!
//! Must never import a check from the product: what is tested is that others can do without us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use skein_tests::agents::{self, Network, TEXT, Training, wait_for};
use skein_tests::command::{Said, explains, run};
use skein_tests::language;

const LONG_EPOCH_MS: u64 = 600_000;
/// What a client's script says when the package is not installed.
const NO_PACKAGE: i32 = 77;

/// Runs a script of `tests/foreign`; none, said loudly, where there is no Python.
fn python(script: &str, arguments: &[&str]) -> Result<Option<Said>> {
    let interpreter = std::env::var_os("SKEIN_PYTHON").unwrap_or_else(|| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign").join(script);
    match Command::new(&interpreter).arg("-B").arg(script).args(arguments).output() {
        Ok(output) => Ok(Some(Said::of(output)?)),
        Err(error) if std::env::var_os("SKEIN_PYTHON").is_none() => {
            eprintln!(
                "SKIPPED: there is no python3 here ({error})\nhint: set SKEIN_PYTHON to an interpreter"
            );
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("SKEIN_PYTHON is {}", interpreter.display())),
    }
}

/// A copy of a log with one byte changed.
fn tampered(log: &Path, into: PathBuf, file: &str, at: impl Fn(usize) -> usize) -> Result<PathBuf> {
    fs::create_dir_all(&into)?;
    for name in ["entries", "checkpoint"] {
        let mut bytes = fs::read(log.join(name))?;
        if name == file {
            let at = at(bytes.len());
            let byte = bytes.get_mut(at).context("no such byte")?;
            *byte ^= 1;
        }
        fs::write(into.join(name), bytes)?;
    }
    Ok(into)
}

#[test]
fn a_verifier_that_shares_no_code_with_us_comes_to_our_verdict() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let job = agents::train(agent, &TEXT[..20_000], &Training::of(3, 4))?;
    agent.job_done(&job)?;
    // One initial state, and three rounds of training and merging, all accepted.
    wait_for("the acceptances", agents::SOON, || Ok((agent.log()?.size() == 14).then_some(())))?;
    let log = agent.data_dir.join("log");
    let text = |path: &Path| path.display().to_string();
    let Some(theirs) = python("verify_log.py", &[&text(&log)])? else { return network.finish() };
    ensure!(theirs.code == 0, "{theirs:?}");
    let theirs = theirs.json()?;
    let ours = run(&["log", "verify", "--json", &text(&log)])?.json()?;
    for key in ["ok", "node", "entries", "receipts", "acceptances", "root"] {
        ensure!(theirs[key] == ours[key] && !ours[key].is_null(), "{key}: {theirs} is not {ours}");
    }
    ensure!(ours["entries"] == 14 && ours["receipts"] == 7, "{ours}");

    let folder = network.folder.path();
    let copies = [
        tampered(&log, folder.join("header"), "entries", |_| 40)?,
        tampered(&log, folder.join("first"), "entries", |_| 100)?,
        tampered(&log, folder.join("middle"), "entries", |length| length / 2)?,
        tampered(&log, folder.join("last"), "entries", |length| length - 1)?,
        tampered(&log, folder.join("size"), "checkpoint", |_| 136)?,
        tampered(&log, folder.join("root"), "checkpoint", |_| 140)?,
        tampered(&log, folder.join("signature"), "checkpoint", |length| length - 20)?,
    ];
    for copy in &copies {
        let theirs = python("verify_log.py", &[&text(copy)])?.context("it was there just now")?;
        let ours = run(&["log", "verify", "--json", &text(copy)])?;
        ensure!(theirs.code == 1 && theirs.json()?["ok"] == false, "{}: {theirs:?}", copy.display());
        ensure!(ours.code == 1 && ours.json()?["ok"] == false, "{}: {ours:?}", copy.display());
    }
    network.finish()
}

#[test]
fn openais_python_client_is_served() -> Result<()> {
    let Some(file) = language::file() else { return Ok(()) };
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    language::add(agent, &file, "smol")?;
    let Some(said) = python("openai_client.py", &[&format!("http://{}/v1", agent.api), "smol"])? else {
        return network.finish();
    };
    if said.code == NO_PACKAGE {
        eprintln!(
            "SKIPPED: this Python has no package `openai`\n\
             hint: in a virtual environment `pip install openai==2.54.0`, and set SKEIN_PYTHON to its interpreter"
        );
        return network.finish();
    }
    ensure!(said.code == 0, "{}", said.err);
    let errors = said.json()?["errors"].take();
    for (about, param, word) in [
        ("retrieve", "model", "nobody"),
        ("chat_model", "model", "nobody"),
        ("image", "messages[0].content[0].type", "image_url"),
        ("role", "messages[0].role", "king"),
        ("tools", "tools", "not supported"),
        ("response_format", "response_format", "json_object"),
        ("chat_penalty", "frequency_penalty", "not supported"),
        ("top_logprobs", "top_logprobs", "`logprobs`"),
        ("context", "messages", "context"),
        ("temperature", "temperature", "3"),
        ("top_p", "top_p", "-1"),
        ("max_tokens", "max_tokens", "100000"),
        ("prompt", "prompt", "no tokens"),
        ("token", "prompt", "49152"),
        ("n", "n", "17"),
        ("choices", "n", "130"),
        ("stop", "stop", "4"),
        ("logprobs", "logprobs", "6"),
        ("presence_penalty", "presence_penalty", "not supported"),
        ("logit_bias", "logit_bias", "not supported"),
    ] {
        let error = &errors[about];
        ensure!(error["param"] == param, "{about}: {error}");
        explains(error["message"].as_str().context("no message")?, &[word])?;
    }
    ensure!(errors["context"]["code"] == "context_length_exceeded", "{errors}");
    ensure!(errors["chat_model"]["code"] == "model_not_found", "{errors}");
    network.finish()
}

#[test]
fn openais_javascript_client_is_served() -> Result<()> {
    let Some(file) = language::file() else { return Ok(()) };
    let Some(modules) = std::env::var_os("SKEIN_NODE_MODULES") else {
        eprintln!(
            "SKIPPED: SKEIN_NODE_MODULES names no folder of packages\n\
             hint: `npm install --prefix DIR openai@6.49.0`, and set it to DIR/node_modules"
        );
        return Ok(());
    };
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    language::add(agent, &file, "smol")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign/openai_client.mjs");
    let url = format!("http://{}/v1", agent.api);
    let output = Command::new("node").arg(script).arg(&modules).args([&url, "smol"]).output();
    let said = Said::of(output.context("there is no `node`")?)?;
    ensure!(said.code != NO_PACKAGE, "no package `openai` in {}", modules.display());
    ensure!(said.code == 0, "{}", said.err);
    let errors = said.json()?["errors"].take();
    for (about, word) in [
        ("model", "nobody"),
        ("temperature", "-1"),
        ("max_tokens", "100000"),
        ("response_format", "json_object"),
    ] {
        ensure!(errors[about]["param"] == about, "{errors}");
        explains(errors[about]["message"].as_str().context("no message")?, &[word])?;
    }
    network.finish()
}
