//! The language model of the tests, and requests to it as a customer sends them.
//!
//! The model is SmolLM2-135M-Instruct, from wherever the environment says it is. Must never fetch it: a test
//! without it says so and passes.

use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::agents::Agent;
use crate::command::run;
use crate::http::{self, Answer, Body};

/// The GGUF file; none, said loudly, where the environment names none.
pub fn file() -> Option<PathBuf> {
    let file = std::env::var_os("SKEIN_TEST_MODEL").map(PathBuf::from);
    if file.is_none() {
        eprintln!(
            "SKIPPED: SKEIN_TEST_MODEL names no GGUF file of SmolLM2-135M-Instruct\n\
             hint: `export SKEIN_TEST_MODEL=$(tests/yardsticks/get model)`"
        );
    }
    file
}

/// Adds the model to this agent; the first request puts it into service.
///
/// # Errors
/// When it is not taken.
pub fn add(agent: &Agent, file: &std::path::Path, name: &str) -> Result<()> {
    let added =
        run(&["model", "add", &file.display().to_string(), "--name", name, "--data-dir", &agent.dir()])?;
    ensure!(added.code == 0, "{added:?}");
    Ok(())
}

/// Sends a request without any token, as customers do, whatever the answer.
///
/// # Errors
/// When there is no answer.
pub fn ask(agent: &Agent, path: &str, body: &Value) -> Result<Answer> {
    http::send(agent.api, &request(agent, path, body))
}

/// Sends a request for a stream.
///
/// # Errors
/// When it is refused; the error is the answer.
pub fn stream(agent: &Agent, path: &str, body: &Value) -> Result<Stream> {
    let mut body = body.clone();
    body["stream"] = Value::Bool(true);
    let answer = http::open(agent.api, &request(agent, path, &body))?;
    if answer.status != 200 {
        let head = answer.head.clone();
        let text: Vec<String> = BufReader::new(answer).lines().collect::<Result<_, _>>()?;
        bail!("{head}{}", text.join("\n"));
    }
    Ok(Stream { head: answer.head.clone(), lines: BufReader::new(answer).lines() })
}

fn request(agent: &Agent, path: &str, body: &Value) -> Vec<u8> {
    let headers = [("content-type", "application/json")];
    http::request("POST", path, agent.api, &headers, body.to_string().as_bytes())
}

/// A stream of events, line by line; whoever drops it has gone away.
#[derive(Debug)]
pub struct Stream {
    /// Status line and headers.
    pub head: String,
    lines: Lines<BufReader<Body>>,
}

impl Stream {
    /// The next event or comment, which an empty line must follow; none at the end.
    ///
    /// # Errors
    /// When something else comes.
    pub fn event(&mut self) -> Result<Option<String>> {
        let Some(line) = self.lines.next().transpose()? else { return Ok(None) };
        ensure!(line.starts_with("data: ") || line.starts_with(": "), "neither event nor comment: `{line}`");
        let after = self.lines.next().transpose()?.context("the stream ends within an event")?;
        ensure!(after.is_empty(), "`{after}` follows `{line}`");
        Ok(Some(line))
    }

    /// The next event's JSON, past any comments; none for the one that ends a stream.
    ///
    /// # Errors
    /// When the stream breaks off.
    pub fn chunk(&mut self) -> Result<Option<Value>> {
        loop {
            let event = self.event()?.context("the stream broke off")?;
            match event.strip_prefix("data: ") {
                None => {}
                Some("[DONE]") => return Ok(None),
                Some(json) => return serde_json::from_str(json).with_context(|| event.clone()),
            }
        }
    }
}
