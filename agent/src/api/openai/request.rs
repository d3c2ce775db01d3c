//! What a client asks for: the two requests of OpenAI's API, parsed and checked.
//!
//! Every field is either honoured, harmless to ignore, or refused by name. Must never touch a model.

use serde_json::{Value, json};
use skein_engine::chat::Message;
use skein_engine::draft::DRAFT_MAX;
use skein_engine::step::Sampling;

use super::fields::{Fields, missing, wrong};
use crate::api::Problem;
use crate::limits::{CHOICES_MAX, CHOICES_PER_PROMPT_MAX, STOP_BYTES_MAX};

/// A request to `/v1/completions` or `/v1/chat/completions`.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    pub(super) model: String,
    pub(super) input: Input,
    /// Choices for each prompt.
    pub(super) choices: usize,
    /// None for what the context has room for.
    pub(super) max_tokens: Option<usize>,
    pub(super) sampling: Sampling,
    pub(super) stops: Vec<String>,
    /// Whether an answer goes on where the model would end it; not OpenAI's, but other servers'.
    pub(super) ignore_ends: bool,
    /// At most so many tokens are guessed ahead; our own, for benchmarks: it changes no text.
    pub(super) draft_tokens: usize,
    pub(super) stream: bool,
    /// Whether a stream ends with a chunk that counts tokens.
    pub(super) include_usage: bool,
    /// Whether log-probabilities are told; how many alternatives, the sampling says.
    pub(super) logprobs: bool,
}

/// What the model is to go on from.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    /// Prompts to complete; with `echo`, answers begin with them.
    Prompts { prompts: Vec<Prompt>, echo: bool },
    /// A conversation to go on with.
    Messages(Vec<Message>),
}

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// OpenAI's default for completions.
const MAX_TOKENS_DEFAULT: usize = 16;
const STOPS_MAX: usize = 4;

impl Request {
    /// Reads the body of a request to `/v1/completions`; `seed` is for one that names none.
    pub(super) fn completion(body: &[u8], seed: u64) -> Result<Self, Problem> {
        let mut fields = Fields::of_body(body)?;
        let prompts = prompts(&mut fields)?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        let top_logprobs = fields.whole("logprobs", 0..=5)?;
        if echo && top_logprobs.is_some() {
            let message = "`echo` with `logprobs` is not supported: the prompt's own log-probabilities are not told\nhint: leave one of them out";
            return Err(Problem::invalid(message).about("echo").coded("unsupported_parameter"));
        }
        let max_tokens = fields.whole("max_tokens", 1..=u64::from(u32::MAX))?;
        fields.only("suffix", &[json!("")])?;
        let max_tokens = max_tokens.map_or(MAX_TOKENS_DEFAULT, to_usize);
        Self::rest(fields, Input::Prompts { prompts, echo }, Some(max_tokens), top_logprobs, seed)
    }

    /// Reads the body of a request to `/v1/chat/completions`; `seed` is for one that names none.
    pub(super) fn chat(body: &[u8], seed: u64) -> Result<Self, Problem> {
        let mut fields = Fields::of_body(body)?;
        let messages = messages(&mut fields)?;
        let logprobs = fields.flag("logprobs")?.unwrap_or(false);
        let top_logprobs = fields.whole("top_logprobs", 0..=20)?;
        if top_logprobs.is_some_and(|count| count > 0) && !logprobs {
            let message = "`top_logprobs` needs `logprobs`\nhint: send `logprobs`: true with it";
            return Err(Problem::invalid(message).about("top_logprobs"));
        }
        let top_logprobs = logprobs.then_some(top_logprobs.unwrap_or(0));
        let allowed = 1..=u64::from(u32::MAX);
        let old = fields.whole("max_tokens", allowed.clone())?;
        let max_tokens = fields.whole("max_completion_tokens", allowed)?.or(old).map(to_usize);
        for name in ["tools", "functions"] {
            fields.only(name, &[json!([])])?;
        }
        for name in ["tool_choice", "function_call"] {
            fields.only(name, &[json!("none"), json!("auto")])?;
        }
        fields.only("response_format", &[json!({ "type": "text" })])?;
        fields.only("modalities", &[json!(["text"])])?;
        for name in ["audio", "web_search_options"] {
            fields.only(name, &[])?;
        }
        Self::rest(fields, Input::Messages(messages), max_tokens, top_logprobs, seed)
    }

    /// What both have.
    fn rest(
        mut fields: Fields,
        input: Input,
        max_tokens: Option<usize>,
        top_logprobs: Option<u64>,
        seed: u64,
    ) -> Result<Self, Problem> {
        let model = fields.text("model")?;
        let model = model.ok_or_else(|| missing("model", "GET /v1/models lists those that are there"))?;
        let choices = to_usize(fields.whole("n", 1..=CHOICES_PER_PROMPT_MAX)?.unwrap_or(1));
        fields.only("best_of", &[json!(choices)])?;
        let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
        let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut fields, stream)?;
        let stops = stops(&mut fields)?;
        let seed = given_seed(&mut fields)?.unwrap_or(seed);
        for name in ["frequency_penalty", "presence_penalty"] {
            fields.only(name, &[json!(0)])?;
        }
        fields.only("logit_bias", &[json!({})])?;
        let ignore_ends = fields.flag("ignore_eos")?.unwrap_or(false);
        let draft_tokens = fields.whole("draft_tokens", 0..=DRAFT_MAX as u64)?.map_or(DRAFT_MAX, to_usize);
        neighbours(&mut fields)?;
        let sampling = Sampling {
            temperature: temperature as f32,
            // No probability at all still leaves the likeliest token.
            top_p: (top_p as f32).max(f32::MIN_POSITIVE),
            seed,
            top_logprobs: top_logprobs.and_then(|count| u8::try_from(count).ok()).unwrap_or(0),
        };
        let logprobs = top_logprobs.is_some();
        Ok(Self {
            model,
            input,
            choices,
            max_tokens,
            sampling,
            stops,
            ignore_ends,
            draft_tokens,
            stream,
            include_usage,
            logprobs,
        })
    }
}

/// What other servers take beyond OpenAI's API, at the values that change nothing.
fn neighbours(fields: &mut Fields) -> Result<(), Problem> {
    for (name, neutral) in [("min_p", 0), ("repetition_penalty", 1), ("repeat_penalty", 1), ("min_tokens", 0)]
    {
        fields.only(name, &[json!(neutral)])?;
    }
    fields.only("top_k", &[json!(0), json!(-1)])?;
    for name in ["grammar", "json_schema", "guided_json", "guided_regex"] {
        fields.only(name, &[])?;
    }
    Ok(())
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, Problem> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        let message = "`stream_options` is only for streams\nhint: send `stream`: true with it";
        return Err(Problem::invalid(message).about("stream_options"));
    }
    let mut options = Fields::of_value(options, "stream_options")?;
    Ok(options.flag("include_usage")?.unwrap_or(false))
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => strings(&stops)
            .ok_or_else(|| wrong("stop", "a string or a list of strings", &Value::Array(stops.clone())))?,
        Some(other) => return Err(wrong("stop", "a string or a list of strings", &other)),
    };
    let good = |stop: &String| (1..=STOP_BYTES_MAX).contains(&stop.len());
    if stops.len() > STOPS_MAX || !stops.iter().all(good) {
        let message = format!(
            "`stop` takes at most {STOPS_MAX} strings of 1 to {STOP_BYTES_MAX} bytes\nhint: leave it out to stop where the model does"
        );
        return Err(Problem::invalid(message).about("stop"));
    }
    Ok(stops)
}

/// OpenAI's seeds are signed.
fn given_seed(fields: &mut Fields) -> Result<Option<u64>, Problem> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some).ok_or_else(|| wrong("seed", "a whole number of 64 bits", &value))
}

fn prompts(fields: &mut Fields) -> Result<Vec<Prompt>, Problem> {
    let wanted = "a string, a list of strings, a list of tokens, or a list of lists of tokens";
    let value = fields.take("prompt").ok_or_else(|| missing("prompt", "the model goes on from it"))?;
    let prompts = match &value {
        Value::String(text) => Some(vec![Prompt::Text(text.clone())]),
        Value::Array(list) => match list.first() {
            None => {
                let message = "`prompt` is an empty list\nhint: the model goes on from at least one token";
                return Err(Problem::invalid(message).about("prompt"));
            }
            Some(Value::String(_)) => {
                strings(list).map(|texts| texts.into_iter().map(Prompt::Text).collect())
            }
            Some(Value::Array(_)) => list.iter().map(|one| tokens(one.as_array()?)).collect(),
            Some(_) => tokens(list).map(|prompt| vec![prompt]),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    };
    let prompts = prompts.ok_or_else(|| wrong("prompt", wanted, &value))?;
    if prompts.len() > CHOICES_MAX {
        let message = format!(
            "`prompt` has {} prompts, allowed are {CHOICES_MAX}\nhint: send several requests",
            prompts.len()
        );
        return Err(Problem::invalid(message).about("prompt"));
    }
    Ok(prompts)
}

fn strings(list: &[Value]) -> Option<Vec<String>> {
    list.iter().map(|one| one.as_str().map(str::to_owned)).collect()
}

fn tokens(list: &[Value]) -> Option<Prompt> {
    let token = |one: &Value| one.as_u64().and_then(|token| u32::try_from(token).ok());
    list.iter().map(token).collect::<Option<Vec<u32>>>().map(Prompt::Tokens)
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, Problem> {
    let hint = "send [{\"role\": \"user\", \"content\": \"…\"}]";
    let list = fields.list("messages")?.ok_or_else(|| missing("messages", hint))?;
    if list.is_empty() {
        return Err(Problem::invalid(format!("`messages` is empty\nhint: {hint}")).about("messages"));
    }
    list.into_iter().enumerate().map(|(at, value)| message(value, &format!("messages[{at}]"))).collect()
}

fn message(value: Value, place: &str) -> Result<Message, Problem> {
    let mut fields = Fields::of_value(value, place)?;
    let role = fields.text("role")?;
    let role = role.ok_or_else(|| missing(&fields.place("role"), "system, user or assistant"))?;
    let role = match role.as_str() {
        // OpenAI's new name for the same.
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &role,
        _ => {
            let place = fields.place("role");
            let role: String = role.chars().take(40).collect();
            let message = format!(
                "`{place}` is `{role}`\nhint: it is one of system, developer, user, assistant and tool"
            );
            return Err(Problem::invalid(message).about(place));
        }
    };
    fields.only("tool_calls", &[json!([])])?;
    for name in ["function_call", "audio"] {
        fields.only(name, &[])?;
    }
    let place = fields.place("content");
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.into_iter().enumerate();
            texts.map(|(at, part)| text_of(part, &format!("{place}[{at}]"))).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong(&place, "a string or a list of parts", &other)),
        None => return Err(missing(&place, "a string, which may be empty")),
    };
    Ok(Message { role: role.to_owned(), content })
}

/// Only text can be read.
fn text_of(part: Value, place: &str) -> Result<String, Problem> {
    let mut part = Fields::of_value(part, place)?;
    let kind = part.text("type")?.unwrap_or_default();
    if kind != "text" {
        let kind: String = kind.chars().take(40).collect();
        let message = format!(
            "`{place}` is of type `{kind}`: this model reads text only\nhint: send parts of type `text`"
        );
        return Err(Problem::invalid(message).about(part.place("type")));
    }
    let text = part.text("text")?;
    text.ok_or_else(|| missing(&part.place("text"), "a part of type `text` has it"))
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(body: &Value) -> Result<Request, Problem> {
        Request::completion(body.to_string().as_bytes(), 7)
    }

    fn chat(body: &Value) -> Result<Request, Problem> {
        Request::chat(body.to_string().as_bytes(), 7)
    }

    /// A good request with this changed.
    fn with(good: &Value, changes: &Value) -> Value {
        let mut body = good.clone();
        for (name, value) in changes.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    }

    fn good_completion() -> Value {
        json!({ "model": "m", "prompt": "Once" })
    }

    fn good_chat() -> Value {
        json!({ "model": "m", "messages": [{ "role": "user", "content": "Hello" }] })
    }

    fn said(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn defaults_are_openais() {
        let request = completion(&good_completion()).unwrap();
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 7, top_logprobs: 0 };
        let expected = Request {
            model: "m".into(),
            input: Input::Prompts { prompts: vec![Prompt::Text("Once".into())], echo: false },
            choices: 1,
            max_tokens: Some(16),
            sampling,
            stops: vec![],
            ignore_ends: false,
            draft_tokens: DRAFT_MAX,
            stream: false,
            include_usage: false,
            logprobs: false,
        };
        assert_eq!(request, expected);
        let request = chat(&good_chat()).unwrap();
        let input = Input::Messages(vec![said("user", "Hello")]);
        assert_eq!(request, Request { input, max_tokens: None, ..expected });
    }

    #[test]
    fn every_field_arrives() {
        let all = json!({
            "model": "m", "max_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": -1, "stop": ["a", "b"], "n": 3,
            "stream": true, "stream_options": { "include_usage": true }, "user": "u", "frequency_penalty": 0.0,
            "presence_penalty": 0, "logit_bias": {}, "nobody knows this": [1], "suffix": null, "best_of": 3,
        });
        let request =
            completion(&with(&all, &json!({ "prompt": [1, 2], "logprobs": 4, "echo": false }))).unwrap();
        let sampling = Sampling { temperature: 0.0, top_p: 0.5, seed: u64::MAX, top_logprobs: 4 };
        let expected = Request {
            model: "m".into(),
            input: Input::Prompts { prompts: vec![Prompt::Tokens(vec![1, 2])], echo: false },
            choices: 3,
            max_tokens: Some(5),
            sampling,
            stops: vec!["a".into(), "b".into()],
            ignore_ends: false,
            draft_tokens: DRAFT_MAX,
            stream: true,
            include_usage: true,
            logprobs: true,
        };
        assert_eq!(request, expected);
        let conversation = json!({
            "messages": [
                { "role": "developer", "content": "Be brief." },
                { "role": "user", "name": "x", "content": [{ "type": "text", "text": "Hel" }, { "type": "text", "text": "lo" }] },
                { "role": "assistant", "content": "", "refusal": null },
                { "role": "tool", "content": "42", "tool_call_id": "1" },
            ],
            "logprobs": true, "top_logprobs": 4, "max_completion_tokens": 5, "max_tokens": 9, "tools": [],
            "response_format": { "type": "text" }, "tool_choice": "none", "modalities": ["text"], "store": true,
        });
        let request = chat(&with(&all, &conversation)).unwrap();
        let input = Input::Messages(vec![
            said("system", "Be brief."),
            said("user", "Hello"),
            said("assistant", ""),
            said("tool", "42"),
        ]);
        assert_eq!(request, Request { input, ..expected });
    }

    #[test]
    fn a_prompt_has_many_forms() {
        let prompts =
            |prompt: Value| match completion(&with(&good_completion(), &json!({ "prompt": prompt }))) {
                Ok(Request { input: Input::Prompts { prompts, .. }, .. }) => prompts,
                other => panic!("{other:?}"),
            };
        let (text, tokens) =
            (|text: &str| Prompt::Text(text.into()), |tokens: &[u32]| Prompt::Tokens(tokens.into()));
        assert_eq!(prompts(json!("")), [text("")]);
        assert_eq!(prompts(json!(["a"])), [text("a")]);
        assert_eq!(prompts(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(prompts(json!([5, 6])), [tokens(&[5, 6])]);
        assert_eq!(prompts(json!([[5], [6, 7], []])), [tokens(&[5]), tokens(&[6, 7]), tokens(&[])]);
    }

    /// The request is refused, about this field, and says what to do.
    fn refuses(result: Result<Request, Problem>, param: &str, words: &[&str]) {
        let problem = result.expect_err(param);
        assert_eq!(problem.status, 400, "{problem:?}");
        assert_eq!(problem.param.as_deref(), Some(param), "{problem:?}");
        assert!(problem.message.contains("hint: "), "{problem:?}");
        for word in words {
            assert!(problem.message.contains(word), "no `{word}` in {problem:?}");
        }
    }

    #[test]
    fn what_both_cannot_take_is_named() {
        let long = "x".repeat(STOP_BYTES_MAX + 1);
        for (name, value, words) in [
            ("model", json!(null), &["missing"][..]),
            ("model", json!(5), &["a string", "a number (5)"]),
            ("n", json!(0), &["is 0", "1 to 16"]),
            ("n", json!(17), &["is 17", "1 to 16"]),
            ("n", json!("two"), &["a whole number", "a string (\"two\")"]),
            ("n", json!(1.5), &["is 1.5"]),
            ("max_tokens", json!(0), &["is 0"]),
            ("max_tokens", json!(-1), &["is -1"]),
            ("max_tokens", json!(1e300), &["is 1e+300"]),
            ("temperature", json!(-0.1), &["is -0.1", "0 to 2"]),
            ("temperature", json!(3), &["is 3", "0 to 2"]),
            ("temperature", json!("hot"), &["a number", "hot"]),
            ("temperature", json!([1]), &["a list ([1])"]),
            ("top_p", json!(1.01), &["is 1.01", "0 to 1"]),
            ("seed", json!(0.5), &["0.5"]),
            ("seed", json!("lucky"), &["lucky"]),
            ("stop", json!(""), &["4 strings"]),
            ("stop", json!(["a", "b", "c", "d", "e"]), &["4 strings"]),
            ("stop", json!([long]), &["1024"]),
            ("stop", json!([1]), &["a list of strings", "[1]"]),
            ("stop", json!({}), &["an object"]),
            ("stream", json!("yes"), &["true or false", "yes"]),
            ("stream_options", json!({ "include_usage": true }), &["stream"]),
            ("frequency_penalty", json!(0.5), &["0.5", "not supported"]),
            ("presence_penalty", json!(-2), &["-2", "not supported"]),
            ("logit_bias", json!({ "50256": -100 }), &["50256", "not supported"]),
            ("best_of", json!(2), &["not supported"]),
            ("top_k", json!(40), &["40", "not supported"]),
            ("min_p", json!(0.05), &["0.05", "not supported"]),
            ("repetition_penalty", json!(1.1), &["1.1", "not supported"]),
            ("json_schema", json!({}), &["not supported"]),
        ] {
            let changes = json!({ name: value });
            refuses(completion(&with(&good_completion(), &changes)), name, words);
            refuses(chat(&with(&good_chat(), &changes)), name, words);
        }
        let options = json!({ "stream": true, "stream_options": { "include_usage": 1 } });
        refuses(chat(&with(&good_chat(), &options)), "stream_options.include_usage", &["true or false"]);
        refuses(
            chat(&with(&good_chat(), &json!({ "stream": true, "stream_options": 1 }))),
            "stream_options",
            &[],
        );
    }

    #[test]
    fn what_completions_cannot_take_is_named() {
        let many = vec!["a"; CHOICES_MAX + 1];
        for (name, value, words) in [
            ("prompt", json!(null), &["missing"][..]),
            ("prompt", json!(5), &["a list of tokens", "a number (5)"]),
            ("prompt", json!([]), &["empty list"]),
            ("prompt", json!([1, "a"]), &["a list of tokens"]),
            ("prompt", json!(["a", 1]), &["a list of tokens"]),
            ("prompt", json!([[1], "a"]), &["a list of tokens"]),
            ("prompt", json!([[["a"]]]), &["a list of tokens"]),
            ("prompt", json!([-1]), &["-1"]),
            ("prompt", json!([1u64 << 32]), &["4294967296"]),
            ("prompt", json!(many), &["129", "128"]),
            ("logprobs", json!(6), &["is 6", "0 to 5"]),
            ("logprobs", json!(true), &["a whole number", "true"]),
            ("echo", json!(1), &["true or false"]),
            ("suffix", json!("end"), &["end", "not supported"]),
        ] {
            refuses(completion(&with(&good_completion(), &json!({ name: value }))), name, words);
        }
        let both = json!({ "echo": true, "logprobs": 0 });
        refuses(completion(&with(&good_completion(), &both)), "echo", &["logprobs"]);
    }

    #[test]
    fn what_conversations_cannot_have_is_named() {
        for (name, value, words) in [
            ("messages", json!(null), &["missing"][..]),
            ("messages", json!("Hello"), &["a list", "Hello"]),
            ("messages", json!([]), &["empty"]),
            ("logprobs", json!(3), &["true or false"]),
            ("top_logprobs", json!(21), &["is 21", "0 to 20"]),
            ("top_logprobs", json!(2), &["needs `logprobs`"]),
            ("max_completion_tokens", json!(0), &["is 0"]),
            ("tools", json!([{ "type": "function" }]), &["function", "not supported"]),
            ("tool_choice", json!("required"), &["required", "not supported"]),
            ("response_format", json!({ "type": "json_object" }), &["json_object", "not supported"]),
            ("modalities", json!(["text", "audio"]), &["audio"]),
        ] {
            refuses(chat(&with(&good_chat(), &json!({ name: value }))), name, words);
        }
        let image = json!([{ "type": "text", "text": "this" }, { "type": "image_url", "image_url": {} }]);
        for (place, message, words) in [
            ("messages[1]", json!("Hello"), &["an object"][..]),
            ("messages[1].role", json!({ "content": "" }), &["missing"]),
            ("messages[1].role", json!({ "role": "king", "content": "" }), &["king", "user"]),
            ("messages[1].role", json!({ "role": 1, "content": "" }), &["a string"]),
            ("messages[1].content", json!({ "role": "user" }), &["missing"]),
            ("messages[1].content", json!({ "role": "user", "content": 5 }), &["a list of parts", "5"]),
            (
                "messages[1].content[1].type",
                json!({ "role": "user", "content": image }),
                &["image_url", "text only"],
            ),
            ("messages[1].content[0]", json!({ "role": "user", "content": ["a"] }), &["an object"]),
            (
                "messages[1].content[0].text",
                json!({ "role": "user", "content": [{ "type": "text" }] }),
                &["missing"],
            ),
            (
                "messages[1].tool_calls",
                json!({ "role": "assistant", "content": null, "tool_calls": [{ "id": "1" }] }),
                &["not supported"],
            ),
        ] {
            let messages = json!([{ "role": "user", "content": "Hello" }, message]);
            refuses(chat(&with(&good_chat(), &json!({ "messages": messages }))), place, words);
        }
    }

    #[test]
    fn a_body_that_is_no_request_is_told_so() {
        let deep = "[".repeat(100_000);
        for (body, word) in [
            (&b""[..], "not JSON"),
            (b"{\"model\": ", "not JSON"),
            (b"{\"model\": \"\xff\"}", "UTF-8"),
            (b"{\"model\": \"\\ud800\"}", "not JSON"),
            (b"[]", "a list"),
            (b"\"x\"", "a string"),
            (deep.as_bytes(), "not JSON"),
        ] {
            let problem = Request::chat(body, 0).unwrap_err();
            assert!(problem.message.contains(word) && problem.message.contains("hint: "), "{problem:?}");
            assert_eq!(problem.status, 400);
        }
    }

    #[test]
    fn no_probability_is_the_likeliest_token() {
        let request = chat(&with(&good_chat(), &json!({ "top_p": 0, "temperature": 1e-300 }))).unwrap();
        assert!(request.sampling.top_p > 0.0 && request.sampling.temperature == 0.0);
    }
}
