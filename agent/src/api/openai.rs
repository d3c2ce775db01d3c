//! `/v1/*`: models and completions, as an unmodified OpenAI client expects them.
//!
//! The tokens of these models are bytes. A completion keeps every byte it has, so when a stage dies it is
//! replayed through the next pipeline and goes on with the same text.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use skein_proto::job::Work;
use skein_proto::message::JobStatus;
use smol::channel;

use super::{Door, Problem, whole_body};
use crate::daemon::Call;
use crate::daemon::pipeline::{Pipeline, Session};
use crate::limits::{COMPLETIONS_MAX, PLACEMENT_WAIT, REPLAYS_MAX};
use crate::sample::Sampler;

pub(super) async fn models(State(door): State<Door>) -> Result<Json<Value>, Problem> {
    let jobs = door.ask(Call::Jobs).await?;
    let serving = jobs.iter().filter(|job| matches!(job.work, Work::Serve(_)) && !job.phase.is_final());
    let models: Vec<Value> = serving
        .map(|job| json!({ "id": job.name, "object": "model", "created": 0, "owned_by": job.owner }))
        .collect();
    Ok(Json(json!({ "object": "list", "data": models })))
}

/// The fields of OpenAI's completion request that a byte model can honour; others are ignored, as there.
#[derive(Deserialize)]
struct CompletionRequest {
    model: String,
    prompt: Prompt,
    #[serde(default = "sixteen")]
    max_tokens: u32,
    #[serde(default = "one")]
    temperature: f32,
    #[serde(default = "one")]
    top_p: f32,
    seed: Option<u64>,
    #[serde(default)]
    stream: bool,
    stop: Option<Stop>,
    n: Option<u32>,
}

/// OpenAI takes one prompt or several; this server takes one.
#[derive(Deserialize)]
#[serde(untagged, expecting = "prompt must be a string, a list of one string, or a list of bytes")]
enum Prompt {
    Text(String),
    Bytes(Vec<u8>),
    Texts(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "stop must be a string or a list of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

const fn sixteen() -> u32 {
    16
}

const fn one() -> f32 {
    1.0
}

pub(super) async fn completions(State(door): State<Door>, body: Body) -> Result<Response, Problem> {
    let bytes = whole_body(body).await?;
    let request: CompletionRequest = serde_json::from_slice(&bytes).map_err(|error| {
        Problem::invalid(format!(
            "not a completion request: {error}\nhint: model and prompt are needed, as in OpenAI's API"
        ))
    })?;
    let place = Place::take(&door.completions)?;
    let stream = request.stream;
    let completion = Completion::prepare(door, request).await?;
    if stream {
        Ok(completion.stream(place))
    } else {
        completion.whole().await.map(Json).map(IntoResponse::into_response)
    }
}

/// One of the places for completions under way.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Result<Self, Problem> {
        let within = |now: usize| (now < COMPLETIONS_MAX).then_some(now + 1);
        if count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
            let message = format!("{COMPLETIONS_MAX} completions are under way already");
            let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
            problem.retry_after_s = Some(1);
            return Err(problem);
        }
        Ok(Self(Arc::clone(count)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A completion under way.
struct Completion {
    door: Door,
    model: String,
    id: String,
    created: u64,
    /// Prompt and answer so far.
    text: Vec<u8>,
    prompt_len: usize,
    max_tokens: usize,
    stops: Vec<Vec<u8>>,
    sampler: Sampler,
    pipeline: Pipeline,
    session: Option<Session>,
    replays: usize,
    /// How much of the answer was handed out.
    told: usize,
}

impl Completion {
    async fn prepare(door: Door, request: CompletionRequest) -> Result<Self, Problem> {
        let text = match request.prompt {
            Prompt::Text(text) => text.into_bytes(),
            Prompt::Bytes(bytes) => bytes,
            Prompt::Texts(texts) => match <[String; 1]>::try_from(texts) {
                Ok([text]) => text.into_bytes(),
                Err(texts) => {
                    return Err(Problem::invalid(format!(
                        "one prompt at a time, not {}\nhint: send a request for each",
                        texts.len()
                    )));
                }
            },
        };
        let (job, pipeline) = serving(&door, &request.model).await?;
        let Work::Serve(spec) = &job.work else { return Err(Problem::missing("not a model")) };
        let context = usize::from(spec.shape.context);
        let max_tokens = request.max_tokens as usize;
        if text.is_empty() {
            return Err(Problem::invalid(
                "the prompt is empty\nhint: the model goes on from at least one byte",
            ));
        }
        if let Some(n) = request.n.filter(|&n| n != 1) {
            let message = format!(
                "n = {n}: only one completion at a time\nhint: send the request as often as you want answers"
            );
            return Err(Problem::invalid(message));
        }
        if max_tokens == 0 || text.len() + max_tokens > context {
            return Err(Problem::invalid(format!(
                "the prompt has {} tokens (bytes) and max_tokens is {max_tokens}: this model's context holds {context} in all, and at least one must be generated\nhint: shorten the prompt or lower max_tokens",
                text.len()
            )));
        }
        let mut number = [0; 16];
        getrandom::fill(&mut number).map_err(|error| Problem::broken(error.to_string()))?;
        let (id, chance) = number.split_at(8);
        let seed = request
            .seed
            .unwrap_or_else(|| chance.iter().fold(0, |seed, &byte| (seed << 8) | u64::from(byte)));
        let sampler = Sampler::new(request.temperature, request.top_p, seed).map_err(|error| {
            let (temperature, top_p) = (request.temperature, request.top_p);
            Problem::invalid(format!(
                "temperature = {temperature}, top_p = {top_p}: {error}\nhint: leave both out for 1"
            ))
        })?;
        let stops: Vec<String> = match request.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        };
        if stops.len() > 4 || stops.iter().any(String::is_empty) {
            return Err(Problem::invalid(
                "stop takes at most 4 strings, none of them empty\nhint: leave stop out to generate max_tokens",
            ));
        }
        Ok(Self {
            door,
            model: request.model,
            id: format!("cmpl-{}", hex::encode(id)),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            prompt_len: text.len(),
            text,
            max_tokens,
            stops: stops.into_iter().map(String::into_bytes).collect(),
            sampler,
            pipeline,
            session: None,
            replays: 0,
            told: 0,
        })
    }

    /// The next byte, through as many pipelines as it takes.
    async fn next(&mut self) -> Result<(), Problem> {
        loop {
            let broken = match self.step().await {
                Ok(logits) => {
                    let token =
                        self.sampler.choose(&logits).map_err(|error| Problem::broken(error.to_string()))?;
                    self.text.push(token);
                    return Ok(());
                }
                Err(error) => error,
            };
            self.session = None;
            self.replays += 1;
            tracing::info!(model = %self.model, replays = self.replays, "{broken}; going through another pipeline");
            if self.replays > REPLAYS_MAX {
                return Err(Problem::broken(format!("gave up after {REPLAYS_MAX} pipelines: {broken}")));
            }
        }
    }

    async fn step(&mut self) -> Result<Vec<f32>, String> {
        if let Some(session) = &mut self.session {
            let last = self.text.len() - 1;
            let position = u32::try_from(last).map_err(|error| error.to_string())?;
            return session.step(position, &self.text[last..]).await.map_err(|error| error.to_string());
        }
        let stages = ready_stages(&self.door, &self.model).await.map_err(|problem| problem.message)?;
        let opened = self.pipeline.open(&stages).await;
        let session = match opened {
            Ok(session) => self.session.insert(session),
            Err(error) => {
                // The coordinator needs a moment to notice what we noticed.
                smol::Timer::after(std::time::Duration::from_millis(200)).await;
                return Err(error.to_string());
            }
        };
        // The prompt in one pass, then byte by byte as it was first generated: passes of another length may
        // round differently, and the text after a failover must be the text without one.
        let mut logits =
            session.step(0, &self.text[..self.prompt_len]).await.map_err(|error| error.to_string())?;
        for place in self.prompt_len..self.text.len() {
            let position = u32::try_from(place).map_err(|error| error.to_string())?;
            let step = session.step(position, &self.text[place..=place]).await;
            logits = step.map_err(|error| error.to_string())?;
        }
        Ok(logits)
    }

    /// Why the answer ends here, if it does; cuts the text before a stop string.
    fn finished(&mut self) -> Option<&'static str> {
        let answer = &self.text[self.prompt_len..];
        let cut = self.stops.iter().filter_map(|stop| find(answer, stop)).min();
        if let Some(cut) = cut {
            self.text.truncate(self.prompt_len + cut);
            return Some("stop");
        }
        (answer.len() >= self.max_tokens).then_some("length")
    }

    /// Text that can be handed out now: whole characters, and nothing that may become a stop string.
    fn fresh(&mut self, all: bool) -> String {
        let answer = &self.text[self.prompt_len..];
        let longest_stop = self.stops.iter().map(Vec::len).max().unwrap_or(0);
        let mut end = if all { answer.len() } else { (answer.len() + 1).saturating_sub(longest_stop.max(1)) };
        if !all {
            end = self.told + whole_characters(answer.get(self.told..end).unwrap_or_default());
        }
        let fresh = String::from_utf8_lossy(answer.get(self.told..end).unwrap_or_default()).into_owned();
        self.told = self.told.max(end);
        fresh
    }

    fn usage(&self) -> Value {
        let completion = self.text.len() - self.prompt_len;
        json!({ "prompt_tokens": self.prompt_len, "completion_tokens": completion, "total_tokens": self.text.len() })
    }

    fn body(&self, text: &str, finish_reason: Option<&str>) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "choices": [{ "index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason }],
        })
    }

    async fn whole(mut self) -> Result<Value, Problem> {
        loop {
            self.next().await?;
            if let Some(reason) = self.finished() {
                let text = self.fresh(true);
                let mut body = self.body(&text, Some(reason));
                body["usage"] = self.usage();
                return Ok(body);
            }
        }
    }

    fn stream(mut self, place: Place) -> Response {
        let (sender, events) = channel::bounded::<Result<String, Infallible>>(16);
        smol::spawn(async move {
            let _place = place;
            loop {
                let (event, last) = match self.next().await {
                    Err(problem) => {
                        (json!({ "error": { "message": problem.message, "type": problem.kind } }), true)
                    }
                    Ok(()) => {
                        let finished = self.finished();
                        let text = self.fresh(finished.is_some());
                        if finished.is_none() && text.is_empty() {
                            continue;
                        }
                        (self.body(&text, finished), finished.is_some())
                    }
                };
                // A client that went away frees its place at the next token.
                if sender.send(Ok(format!("data: {event}\n\n"))).await.is_err() || last {
                    break;
                }
            }
            let _ = sender.send(Ok("data: [DONE]\n\n".to_owned())).await;
        })
        .detach();
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        (headers, Body::from_stream(events)).into_response()
    }
}

async fn serving(door: &Door, model: &str) -> Result<(JobStatus, Pipeline), Problem> {
    let name = model.to_owned();
    let found = door.ask(|answer| Call::Serving { name, answer }).await?;
    found.ok_or_else(|| {
        Problem::missing(format!("no model `{model}` is being served\nhint: GET /v1/models lists them"))
    })
}

/// The pipeline of `model`, as soon as it is complete.
async fn ready_stages(door: &Door, model: &str) -> Result<Vec<skein_proto::message::StageAt>, Problem> {
    let started = Instant::now();
    loop {
        let (job, _) = serving(door, model).await?;
        if !job.stages.is_empty() {
            return Ok(job.stages);
        }
        if started.elapsed() > PLACEMENT_WAIT {
            let message = format!("no complete pipeline for `{model}` within {} s", PLACEMENT_WAIT.as_secs());
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message));
        }
        smol::Timer::after(std::time::Duration::from_millis(50)).await;
    }
}

/// How many of these bytes can be told without cutting a character whose end may still come.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Err(error) = std::str::from_utf8(&bytes[whole..]) {
        whole += error.valid_up_to();
        // Bytes that no continuation makes a character are told at once, as what they are.
        let Some(wrong) = error.error_len() else { return whole };
        whole += wrong;
    }
    bytes.len()
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_byte_by_byte_or_at_once_the_text_is_the_same() {
        // Good characters, a broken one before a good one, one that never ends, and noise.
        let texts: [&[u8]; 4] =
            ["caf\u{e9} \u{20ac}".as_bytes(), b"\xe2\xe2\x82\xac", b"\xf0\x9f\x98", b"\xff\xe2\x82a\xc3\xa9"];
        for text in texts {
            let (mut told, mut at) = (String::new(), 0);
            for end in 1..=text.len() {
                let whole = at + whole_characters(&text[at..end]);
                told.push_str(&String::from_utf8_lossy(&text[at..whole]));
                at = whole;
            }
            told.push_str(&String::from_utf8_lossy(&text[at..]));
            assert_eq!(told, String::from_utf8_lossy(text));
        }
    }
}
