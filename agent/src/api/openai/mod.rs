//! `/v1/*`: models, completions and conversations, as an unmodified OpenAI client expects them.
//!
//! Owns the way from a request to its answer; the shapes on either side are in the files below. Must never decide
//! who is answered when: that is admission's (`serve::slots`).

mod events;
mod fields;
mod reply;
mod request;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use skein_engine::chat::ChatError;
use skein_proto::job::Work;

use self::reply::{Reply, Spoken, Style, Token, Told};
use self::request::{Input, Prompt, Request};
use super::{Door, Problem, whole_body};
use crate::daemon::Call;
use crate::limits::RETRY_AFTER_S;
use crate::serve::answer::{Answer, Piece, Question, Refused, Usage};
use crate::serve::desk::{Desk, FindError};
use crate::serve::generation::Broken;
use crate::serve::served::{Model, Served};

/// Every model that can be asked for, by name.
async fn listed(door: &Door) -> Result<BTreeMap<String, Value>, Problem> {
    let describe =
        |name: &str, owner: &str| json!({ "id": name, "object": "model", "created": 0, "owned_by": owner });
    let registry = door.desk.registry().clone();
    let added = smol::unblock(move || registry.list()).await;
    let mut models: BTreeMap<String, Value> =
        added.into_iter().map(|entry| (entry.name.clone(), describe(&entry.name, "this agent"))).collect();
    let jobs = door.ask(Call::Jobs).await?;
    for job in jobs.iter().filter(|job| matches!(job.work, Work::Serve(_)) && !job.phase.is_final()) {
        let described = describe(&job.name, &job.owner.to_string());
        models.entry(job.name.clone()).or_insert(described);
    }
    Ok(models)
}

pub(super) async fn models(State(door): State<Door>) -> Result<Json<Value>, Problem> {
    let models: Vec<Value> = listed(&door).await?.into_values().collect();
    Ok(Json(json!({ "object": "list", "data": models })))
}

pub(super) async fn model(State(door): State<Door>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let model = listed(&door).await?.remove(&id);
    model.map(Json).ok_or_else(|| Problem::from(FindError::Missing(id)))
}

pub(super) async fn completions(State(door): State<Door>, body: Body) -> Result<Response, Problem> {
    let body = whole_body(body).await?;
    answer(door, Request::completion(&body, u64::from_le_bytes(chance()?))?).await
}

pub(super) async fn chat(State(door): State<Door>, body: Body) -> Result<Response, Problem> {
    let body = whole_body(body).await?;
    answer(door, Request::chat(&body, u64::from_le_bytes(chance()?))?).await
}

fn chance<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Problem::broken(error.to_string()))?;
    Ok(bytes)
}

async fn answer(door: Door, request: Request) -> Result<Response, Problem> {
    if request.stream {
        return events::response(Box::pin(begin(door.desk, request))).await;
    }
    let whole = begin(door.desk, request).await?.whole().await?;
    Ok(Json(whole).into_response())
}

/// From a request to its answer under way: the model is found, and loaded if need be.
async fn begin(desk: Desk, request: Request) -> Result<Begun, Problem> {
    let served = desk.find(&request.model).await?;
    let Request { input, choices, max_tokens, sampling, stops, ignore_ends, draft_tokens, .. } = request;
    let Request { include_usage, logprobs, .. } = request;
    let (style, param) = match input {
        Input::Prompts { .. } => (Style::Completion, "prompt"),
        Input::Messages(_) => (Style::Chat, "messages"),
    };
    let model = Arc::clone(&served.model);
    // Long prompts take a moment.
    let prepared = smol::unblock(move || prepare(&model, input, logprobs)).await;
    let (prompts, told) = prepared.map_err(|problem| problem.about(param))?;
    let question = Question { prompts, choices, max_tokens, sampling, stops, ignore_ends, draft_tokens };
    let answer = Answer::begin(Arc::clone(&served), question).map_err(|refused| refusal(refused, param))?;
    let reply = Reply {
        id: format!("{}-{}", style.id_prefix(), hex::encode(chance::<12>()?)),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: served.name.clone(),
        // The same model answers the same question with the same seed alike, whoever computes it.
        fingerprint: format!("fp_{}", hex::encode(&served.digest.0[..5])),
        style,
        logprobs,
        include_usage,
        told: told.into_iter().flat_map(|told| std::iter::repeat_n(told, choices)).collect(),
    };
    Ok(Begun { served, answer, reply })
}

/// The tokens of every prompt, and what of it its answer's reader is told or counts.
fn prepare(model: &Model, input: Input, logprobs: bool) -> Result<(Vec<Vec<u32>>, Vec<Told>), Problem> {
    let tokenizer = &model.tokenizer;
    match input {
        Input::Messages(messages) => {
            let template = model.template.as_ref().map_err(|reason| Problem::invalid(reason.as_str()))?;
            let text = template.render(&messages, true).map_err(|error| match error {
                ChatError::TooLong { .. } => {
                    Problem::invalid(format!("{error}\nhint: shorten the messages")).coded(TOO_LONG)
                }
                ChatError::NoTemplate | ChatError::BadTemplate(_) | ChatError::Refused(_) => {
                    Problem::invalid(format!("{error}\nhint: mind the roles and their order"))
                }
            })?;
            Ok((vec![tokenizer.prompt(&text)], vec![Told::default()]))
        }
        Input::Prompts { prompts, echo } => {
            let prepare = |prompt| {
                let (tokens, text) = match prompt {
                    Prompt::Text(text) => (tokenizer.prompt(&text), text),
                    Prompt::Tokens(tokens) if echo || logprobs => {
                        let bytes: Vec<u8> =
                            tokens.iter().flat_map(|token| tokenizer.bytes_of(*token)).copied().collect();
                        (tokens, String::from_utf8_lossy(&bytes).into_owned())
                    }
                    Prompt::Tokens(tokens) => (tokens, String::new()),
                };
                let characters = text.chars().count();
                (tokens, Told { echo: echo.then_some(text), characters, begun: false })
            };
            Ok(prompts.into_iter().map(prepare).unzip())
        }
    }
}

/// An answer under way, and how it is told.
struct Begun {
    served: Arc<Served>,
    answer: Answer,
    reply: Reply,
}

impl Begun {
    /// More of any choice; `None` when all have ended.
    async fn next(&mut self) -> Option<Result<Spoken, Problem>> {
        let piece = self.answer.next().await?;
        Some(piece.map(|piece| self.spell(piece)).map_err(Problem::from))
    }

    fn usage(&self) -> Usage {
        self.answer.usage()
    }

    /// Waits for all of it.
    async fn whole(mut self) -> Result<Value, Problem> {
        let blank = |choice| Spoken { choice, ..Spoken::default() };
        let mut choices: Vec<Spoken> = (0..self.reply.told.len()).map(blank).collect();
        while let Some(spoken) = self.next().await {
            let spoken = spoken?;
            if let Some(choice) = choices.get_mut(spoken.choice) {
                choice.text.push_str(&spoken.text);
                choice.tokens.extend(spoken.tokens);
                choice.finish = spoken.finish;
            }
        }
        Ok(self.reply.whole(choices, self.answer.usage()))
    }

    fn spell(&self, piece: Piece) -> Spoken {
        let tokenizer = &self.served.model.tokenizer;
        let bytes = |token| tokenizer.bytes_of_any(token).to_vec();
        let picks = if self.reply.logprobs { piece.tokens } else { Vec::new() };
        let tokens = picks.into_iter().map(|pick| Token {
            // A token that adds nothing to the text has no bytes there; among alternatives, its name tells it.
            bytes: tokenizer.bytes_of(pick.token).to_vec(),
            logprob: pick.logprob,
            top: pick.top.into_iter().map(|(token, logprob)| (bytes(token), logprob)).collect(),
        });
        Spoken { choice: piece.choice, text: piece.text, tokens: tokens.collect(), finish: piece.finish }
    }
}

/// OpenAI's code for a prompt that the context has no room for.
const TOO_LONG: &str = "context_length_exceeded";

impl From<FindError> for Problem {
    fn from(error: FindError) -> Self {
        let message = error.to_string();
        match error {
            FindError::Missing(_) => Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
                .about("model")
                .coded("model_not_found"),
            FindError::Unavailable(_) => Self::unavailable(message),
        }
    }
}

impl From<Broken> for Problem {
    fn from(broken: Broken) -> Self {
        Self::unavailable(format!("the answer broke off: {broken}\nhint: send the request again"))
    }
}

/// Why a question is not answered; `param` is what holds its prompts.
fn refusal(refused: Refused, param: &'static str) -> Problem {
    let problem = Problem::invalid(refused.to_string());
    match refused {
        Refused::Choices(_) => problem.about("n"),
        Refused::Empty | Refused::Token { .. } => problem.about(param),
        Refused::Nothing(_) => problem.about("max_tokens"),
        Refused::TooLong { prompt, context, .. } => {
            problem.about(if prompt < context { "max_tokens" } else { param }).coded(TOO_LONG)
        }
        Refused::Full(_) => {
            let kind = "rate_limit_exceeded";
            let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, kind, problem.message).coded(kind);
            problem.retry_after_s = Some(RETRY_AFTER_S);
            problem
        }
    }
}
