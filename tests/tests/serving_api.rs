//! The OpenAI API over a real language model, byte by byte: what is refused and how, what a stream is made of,
//! who waits, and who makes room.
//!
//! That OpenAI's own clients are content is `foreign.rs`'s to show.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skein_tests::agents::{Agent, Network, SOON, wait_for};
use skein_tests::command::explains;
use skein_tests::http;
use skein_tests::language::{self, Stream, ask, stream};

const LONG_EPOCH_MS: u64 = 600_000;
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// One agent with the model, called `smol`; none where there is no model.
fn served() -> Result<Option<Network>> {
    let Some(file) = language::file() else { return Ok(None) };
    let network = Network::of(1, LONG_EPOCH_MS)?;
    language::add(&network.agents[0], &file, "smol")?;
    Ok(Some(network))
}

/// A request that holds a whole context, and takes minutes unless it is let go: the model counts on and on.
fn endless() -> Value {
    json!({ "model": "smol", "prompt": "1, 2, 3, 4,", "max_tokens": 8_000, "temperature": 0 })
}

/// What `chunk` tells of a completion.
fn told(chunk: &Value) -> Result<&str> {
    chunk["choices"][0]["text"].as_str().with_context(|| format!("no text in {chunk}"))
}

#[test]
fn what_cannot_be_honoured_is_refused_by_field() -> Result<()> {
    let Some(network) = served()? else { return Ok(()) };
    let agent = &network.agents[0];
    let prompt = |changes: Value| with(json!({ "model": "smol", "prompt": "Once" }), &changes);
    let hello = json!({ "model": "smol", "messages": [{ "role": "user", "content": "Hello" }] });
    let messages = |changes: Value| with(hello.clone(), &changes);
    let long = "Once upon a time, ".repeat(25_000);
    for (path, body, status, param, code, words) in [
        (COMPLETIONS, prompt(json!({ "model": "nobody" })), 404, "model", "model_not_found", &["nobody"][..]),
        (CHAT, messages(json!({ "model": "../smol" })), 404, "model", "model_not_found", &["../smol"]),
        (CHAT, messages(json!({ "model": null })), 400, "model", "missing_required_parameter", &[]),
        (COMPLETIONS, prompt(json!({ "prompt": "" })), 400, "prompt", "", &["no tokens"]),
        (COMPLETIONS, prompt(json!({ "prompt": ["a", ""] })), 400, "prompt", "", &["no tokens"]),
        (COMPLETIONS, prompt(json!({ "prompt": [49_152] })), 400, "prompt", "", &["49152", "49151"]),
        (COMPLETIONS, prompt(json!({ "prompt": vec!["a"; 100], "n": 2 })), 400, "n", "", &["200", "128"]),
        (COMPLETIONS, prompt(json!({ "prompt": long })), 400, "prompt", "context_length_exceeded", &["8192"]),
        (
            COMPLETIONS,
            prompt(json!({ "max_tokens": 8_192 })),
            400,
            "max_tokens",
            "context_length_exceeded",
            &["8192"],
        ),
        (
            CHAT,
            messages(json!({ "max_tokens": 9_000 })),
            400,
            "max_tokens",
            "context_length_exceeded",
            &["9000"],
        ),
        (
            CHAT,
            messages(json!({ "messages": [{ "role": "user", "content": long }] })),
            400,
            "messages",
            "context_length_exceeded",
            &["8192"],
        ),
        (CHAT, messages(json!({ "temperature": 1e300 })), 400, "temperature", "", &["0 to 2"]),
        (CHAT, messages(json!({ "tools": [{}] })), 400, "tools", "unsupported_parameter", &["not supported"]),
    ] {
        // A stream is refused like any other request.
        for streamed in [false, true] {
            let answer = ask(agent, path, &with(body.clone(), &json!({ "stream": streamed })))?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            ensure!(answer.status == status, "{param}: {}{text}", answer.head);
            let error = answer.json()?["error"].clone();
            ensure!(error["type"] == "invalid_request_error", "{text}");
            ensure!(error["param"] == param, "{param}: {text}");
            ensure!(error["code"].as_str().unwrap_or_default() == code, "{param}: {text}");
            explains(&answer.message()?, words)?;
        }
    }
    network.finish()
}

fn with(mut body: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn bodies_that_are_no_requests_are_told_so() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let fat = format!("{{\"model\": \"{}\"}}", "x".repeat(1 << 20));
    let deep = "[".repeat(1_000_000);
    for (method, path, body, status, words) in [
        ("POST", CHAT, &b"{\"model\": \"sm\xffol\"}"[..], 400, &["UTF-8"][..]),
        ("POST", COMPLETIONS, b"", 400, &["not JSON"]),
        ("POST", COMPLETIONS, b"{\"model\": ", 400, &["not JSON"]),
        ("POST", COMPLETIONS, b"[1, 2]", 400, &["a list"]),
        ("POST", COMPLETIONS, deep.as_bytes(), 400, &["not JSON"]),
        ("POST", CHAT, fat.as_bytes(), 413, &["1048576"]),
        ("GET", CHAT, b"", 405, &["method"]),
        ("POST", "/v1/models", b"", 405, &["method"]),
        ("GET", "/v1/models/nobody", b"", 404, &["nobody"]),
        ("GET", "/v1/models/..%2f..%2fetc", b"", 404, &[]),
    ] {
        let answer = http::send(agent.api, &http::request(method, path, agent.api, &[], body))?;
        ensure!(answer.status == status, "{method} {path}: {answer:?}");
        explains(&answer.message()?, words)?;
    }
    network.finish()
}

#[test]
fn a_stream_is_openais_events_and_nothing_else() -> Result<()> {
    let Some(network) = served()? else { return Ok(()) };
    let agent = &network.agents[0];
    let body = json!({
        "model": "smol", "messages": [{ "role": "user", "content": "Say hello." }], "max_tokens": 5,
        "temperature": 0, "stream_options": { "include_usage": true },
    });
    let mut events = stream(agent, CHAT, &body)?;
    let head = events.head.to_ascii_lowercase();
    ensure!(head.contains("content-type: text/event-stream"), "{head}");
    ensure!(head.contains("cache-control: no-cache"), "{head}");
    let mut chunks = Vec::new();
    while let Some(chunk) = events.chunk()? {
        chunks.push(chunk);
    }
    ensure!(events.event()?.is_none(), "something follows [DONE]");
    let first = chunks.first().context("no chunks")?;
    for chunk in &chunks {
        for key in ["id", "object", "created", "model", "system_fingerprint"] {
            ensure!(chunk[key] == first[key] && !chunk[key].is_null(), "{key}: {chunk}");
        }
    }
    ensure!(first["choices"][0]["delta"]["role"] == "assistant", "{first}");
    let [.., last, usage] = chunks.as_slice() else { bail!("too few chunks: {chunks:?}") };
    ensure!(last["choices"][0]["delta"] == json!({}), "{last}");
    ensure!(last["choices"][0]["finish_reason"] == "length", "{last}");
    ensure!(usage["choices"] == json!([]) && usage["usage"]["completion_tokens"] == 5, "{usage}");
    ensure!(
        last.as_object().is_some_and(|last| last.contains_key("usage")) && last["usage"].is_null(),
        "{last}"
    );

    // Nothing of the model's own end is told, and its length is what was asked for.
    let body = json!({ "model": "smol", "prompt": "1, 2, 3, 4,", "max_tokens": 7, "temperature": 0 });
    let whole = ask(agent, COMPLETIONS, &body)?.json()?;
    let mut events = stream(agent, COMPLETIONS, &body)?;
    let mut text = String::new();
    while let Some(chunk) = events.chunk()? {
        ensure!(chunk["object"] == "text_completion" && chunk.get("usage").is_none(), "{chunk}");
        text.push_str(told(&chunk)?);
    }
    ensure!(whole["choices"][0]["text"] == text.as_str(), "{whole} is not {text}");
    network.finish()
}

#[test]
fn a_long_prompt_of_tokens_is_read() -> Result<()> {
    let Some(network) = served()? else { return Ok(()) };
    let agent = &network.agents[0];
    // "The capital of France is", over and over.
    let prompt = [504, 3575, 282, 4649, 314].repeat(200);
    let body = json!({ "model": "smol", "prompt": prompt, "max_tokens": 5, "temperature": 0 });
    let answer = ask(agent, COMPLETIONS, &body)?.json()?;
    ensure!(answer["usage"]["prompt_tokens"] == 1_000, "{answer}");
    ensure!(answer["choices"][0]["text"] == "The capital of France is", "{answer}");
    network.finish()
}

#[test]
fn who_waits_is_told_so_and_who_leaves_makes_room() -> Result<()> {
    let Some(network) = served()? else { return Ok(()) };
    let agent = &network.agents[0];
    let (mut running, mut waiting) = crowd(agent)?;
    let refused = ask(agent, COMPLETIONS, &endless())?;
    ensure!(refused.status == 429, "{refused:?}");
    ensure!(refused.head.to_ascii_lowercase().contains("retry-after: "), "{refused:?}");
    ensure!(refused.json()?["error"]["code"] == "rate_limit_exceeded", "{refused:?}");
    explains(&refused.message()?, &["busy"])?;
    // Whoever waits hears a comment now and then, which no client takes for an event.
    let next = waiting.first_mut().context("nobody waits")?;
    let event = next.event()?.context("the stream ended")?;
    ensure!(event == ": waiting", "{event}");
    // One of those who wait in the middle of the queue leaves, and one who runs: the first of the queue is next.
    waiting.remove(5);
    running.remove(2);
    let next = waiting.first_mut().context("nobody waits")?;
    ensure!(!told(&next.chunk()?.context("no tokens")?)?.is_empty());
    // When all are gone, there is room for one that needs all of it.
    drop((running, waiting));
    let body = with(endless(), &json!({ "max_tokens": 3 }));
    let answer = ask(agent, COMPLETIONS, &body)?;
    ensure!(answer.status == 200, "{answer:?}");
    network.finish()
}

/// As many endless streams as there is room for, each with a first token; and those who wait, up to the first
/// that is refused.
fn crowd(agent: &Agent) -> Result<(Vec<Stream>, Vec<Stream>)> {
    let mut running = Vec::new();
    for _ in 0..32 {
        let mut events = stream(agent, COMPLETIONS, &endless())?;
        events.chunk()?.context("no tokens")?;
        running.push(events);
    }
    let mut waiting = Vec::new();
    while let Ok(events) = stream(agent, COMPLETIONS, &endless()) {
        waiting.push(events);
        ensure!(waiting.len() < 100, "the queue has no end");
    }
    ensure!(waiting.len() == 64, "{} wait", waiting.len());
    Ok((running, waiting))
}

#[test]
fn a_stream_whose_model_is_withdrawn_ends_with_an_error() -> Result<()> {
    let Some(network) = served()? else { return Ok(()) };
    let agent = &network.agents[0];
    let mut events = stream(agent, COMPLETIONS, &endless())?;
    events.chunk()?.context("no tokens")?;
    let jobs = agent.get("/api/jobs")?;
    let job = jobs[0]["id"].as_str().context("no job")?;
    agent.order(&format!("/api/jobs/{job}/cancel"), &json!({}))?;
    let mut broken = Value::Null;
    wait_for("the stream's end", SOON, || {
        let chunk = events.chunk()?.context("it ended as if all were well")?;
        broken = chunk["error"].clone();
        Ok(broken.is_object().then_some(()))
    })?;
    ensure!(broken["type"] == "server_error", "{broken}");
    explains(broken["message"].as_str().context("no message")?, &["smol"])?;
    ensure!(events.event()?.is_none(), "something follows the error");
    network.finish()
}

#[test]
fn answers_that_grow_beyond_the_room_take_turns_and_stay_the_same() -> Result<()> {
    let Some(file) = language::file() else { return Ok(()) };
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    language::add(agent, &file, "smol")?;
    // Room for two that begin, but not for both in full.
    agent.order("/api/serve", &json!({ "model": "smol", "context": 1_152, "sessions": 1 }))?;
    let bodies = ["1, 2, 3, 4,", "The history of the lighthouse"].map(|prompt| {
        json!({ "model": "smol", "prompt": prompt, "max_tokens": 800, "temperature": 0, "ignore_eos": true })
    });
    let text = |body: &Value| -> Result<String> {
        let answer = ask(agent, COMPLETIONS, body)?.json()?;
        ensure!(answer["usage"]["completion_tokens"] == 800, "{answer}");
        Ok(told(&answer)?.to_owned())
    };
    let alone = [text(&bodies[0])?, text(&bodies[1])?];
    let together = std::thread::scope(|scope| {
        let both = bodies.each_ref().map(|body| scope.spawn(|| text(body)));
        both.map(|one| one.join().unwrap_or_else(|_| bail!("a client failed")))
    });
    let [first, second] = together;
    ensure!([first?, second?] == alone, "an answer that took turns is another one");
    let refused =
        agent.post("/api/serve", json!({ "model": "smol", "context": 9_000 }).to_string().as_bytes())?;
    explains(&refused.message()?, &["9000", "8192"])?;
    network.finish()
}
