//! What a client is told: answers as OpenAI's JSON, whole or in chunks.
//!
//! Must never see a model or a connection: pieces in, JSON out.

use serde_json::{Map, Value, json};

use crate::serve::answer::{Finish, Usage};

/// More of one choice, its tokens spelt.
#[derive(Debug, Clone, Default)]
pub(super) struct Spoken {
    pub(super) choice: usize,
    pub(super) text: String,
    pub(super) tokens: Vec<Token>,
    pub(super) finish: Option<Finish>,
}

/// A token as it was chosen.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) bytes: Vec<u8>,
    pub(super) logprob: f32,
    /// The likeliest instead, falling.
    pub(super) top: Vec<(Vec<u8>, f32)>,
}

/// The answer to one request, of which parts were told.
pub(super) struct Reply {
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) fingerprint: String,
    pub(super) style: Style,
    pub(super) logprobs: bool,
    pub(super) include_usage: bool,
    /// What was told of each choice.
    pub(super) told: Vec<Told>,
}

/// Which of OpenAI's two shapes an answer has.
#[derive(Debug)]
pub(super) enum Style {
    Completion,
    Chat,
}

impl Style {
    pub(super) fn id_prefix(&self) -> &'static str {
        match self {
            Self::Completion => "cmpl",
            Self::Chat => "chatcmpl",
        }
    }

    fn whole(&self) -> &'static str {
        match self {
            Self::Completion => "text_completion",
            Self::Chat => "chat.completion",
        }
    }

    fn chunk(&self) -> &'static str {
        match self {
            Self::Completion => "text_completion",
            Self::Chat => "chat.completion.chunk",
        }
    }
}

/// What a client knows of one choice.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// The prompt, where the answer is to begin with it.
    pub(super) echo: Option<String>,
    /// Characters of prompt and text so far.
    pub(super) characters: usize,
    /// Whether anything was told.
    pub(super) begun: bool,
}

impl Reply {
    /// The chunks that tell a stream's client this.
    pub(super) fn chunks(&mut self, spoken: Spoken) -> Vec<Value> {
        let choices = match self.style {
            Style::Completion => self.completion_choice(spoken).into_iter().collect(),
            Style::Chat => self.chat_choices(spoken),
        };
        choices.into_iter().map(|choice| self.chunk(json!([choice]))).collect()
    }

    /// The last chunk of a stream, if it was asked for.
    pub(super) fn usage_chunk(&self, spent: Usage) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(spent);
            chunk
        })
    }

    /// The whole answer, its choices in order.
    pub(super) fn whole(&mut self, choices: Vec<Spoken>, spent: Usage) -> Value {
        let choices: Vec<Value> = match self.style {
            Style::Completion => {
                choices.into_iter().filter_map(|spoken| self.completion_choice(spoken)).collect()
            }
            Style::Chat => choices.into_iter().map(|spoken| self.chat_message(spoken)).collect(),
        };
        let mut body = self.head(self.style.whole(), Value::Array(choices));
        body["usage"] = usage(spent);
        body
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.head(self.style.chunk(), choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn head(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        })
    }

    /// A completion's choice has one shape, whole or in chunks; none if there is nothing to tell.
    fn completion_choice(&mut self, spoken: Spoken) -> Option<Value> {
        let Spoken { choice, mut text, tokens, finish } = spoken;
        let told = self.told.get_mut(choice)?;
        let logprobs = self.logprobs.then(|| completion_logprobs(&tokens, told.characters));
        told.characters += text.chars().count();
        if let Some(echo) = told.echo.take() {
            text.insert_str(0, &echo);
        }
        let silent = text.is_empty() && finish.is_none() && (tokens.is_empty() || logprobs.is_none());
        (!silent).then(|| {
            json!({ "index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish.map(reason) })
        })
    }

    fn chat_message(&self, spoken: Spoken) -> Value {
        let logprobs = self.logprobs.then(|| chat_logprobs(&spoken.tokens));
        json!({
            "index": spoken.choice,
            "message": { "role": "assistant", "content": spoken.text, "refusal": null },
            "logprobs": logprobs,
            "finish_reason": spoken.finish.map(reason),
        })
    }

    /// The role first, then what is said, and why it ends by itself.
    fn chat_choices(&mut self, spoken: Spoken) -> Vec<Value> {
        let Spoken { choice, text, tokens, finish } = spoken;
        let delta = |delta: Value, logprobs: Option<Value>, finish: Option<Finish>| json!({ "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish.map(reason) });
        let mut choices = Vec::new();
        if let Some(told) = self.told.get_mut(choice)
            && !std::mem::replace(&mut told.begun, true)
        {
            let role = json!({ "role": "assistant", "content": "", "refusal": null });
            choices.push(delta(role, None, None));
        }
        let logprobs = (self.logprobs && !tokens.is_empty()).then(|| chat_logprobs(&tokens));
        if !text.is_empty() || logprobs.is_some() {
            choices.push(delta(json!({ "content": text }), logprobs, None));
        }
        if finish.is_some() {
            choices.push(delta(json!({}), None, finish));
        }
        choices
    }
}

/// Four lists of one length. Offsets count from the prompt's beginning, told or not, as OpenAI's do.
fn completion_logprobs(tokens: &[Token], characters: usize) -> Value {
    let mut offset = characters;
    let mut offsets = Vec::with_capacity(tokens.len());
    let mut tops = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(offset);
        // Every byte but those inside a character begins one.
        offset += token.bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
        let mut top: Map<String, Value> = Map::new();
        for (bytes, logprob) in token.top.iter().chain([&(token.bytes.clone(), token.logprob)]) {
            top.entry(spelling(bytes)).or_insert_with(|| json!(logprob));
        }
        tops.push(top);
    }
    json!({
        "tokens": tokens.iter().map(|token| spelling(&token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tops,
        "text_offset": offsets,
    })
}

fn chat_logprobs(tokens: &[Token]) -> Value {
    let entry = |bytes: &[u8], logprob: f32| json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes });
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let top: Vec<Value> = token.top.iter().map(|(bytes, logprob)| entry(bytes, *logprob)).collect();
            let mut told = entry(&token.bytes, token.logprob);
            told["top_logprobs"] = Value::Array(top);
            told
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

/// A token's text; part of a character is spelt as OpenAI does.
fn spelling(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

fn usage(spent: Usage) -> Value {
    json!({
        "prompt_tokens": spent.prompt, "completion_tokens": spent.generated,
        "total_tokens": spent.prompt + spent.generated,
    })
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(style: Style, logprobs: bool, include_usage: bool) -> Reply {
        let told = Told { characters: 4, ..Told::default() };
        Reply {
            id: "x-1".into(),
            created: 5,
            model: "m".into(),
            fingerprint: "fp_1".into(),
            style,
            logprobs,
            include_usage,
            told: vec![told; 2],
        }
    }

    fn token(text: &[u8], logprob: f32) -> Token {
        Token { bytes: text.to_vec(), logprob, top: vec![(b"A".to_vec(), -0.5), (b"B".to_vec(), -1.5)] }
    }

    fn spoken(text: &str, tokens: Vec<Token>, finish: Option<Finish>) -> Spoken {
        Spoken { choice: 1, text: text.into(), tokens, finish }
    }

    const SPENT: Usage = Usage { prompt: 3, generated: 4 };

    #[test]
    fn a_conversations_stream_begins_with_the_role_and_ends_with_the_reason() {
        let mut reply = reply(Style::Chat, false, true);
        let chunks = reply.chunks(spoken("Hel", vec![], None));
        let head = json!({
            "id": "x-1", "object": "chat.completion.chunk", "created": 5, "model": "m", "system_fingerprint": "fp_1",
            "usage": null, "choices": [
                { "index": 1, "delta": { "role": "assistant", "content": "", "refusal": null }, "logprobs": null, "finish_reason": null },
            ],
        });
        assert_eq!(chunks[0], head);
        let choices =
            |chunks: &[Value]| chunks.iter().map(|chunk| chunk["choices"][0].clone()).collect::<Vec<_>>();
        let delta = |delta: Value, finish: Option<&str>| json!({ "index": 1, "delta": delta, "logprobs": null, "finish_reason": finish });
        assert_eq!(choices(&chunks[1..]), [delta(json!({ "content": "Hel" }), None)]);
        let chunks = reply.chunks(spoken("lo", vec![], Some(Finish::Stop)));
        assert_eq!(
            choices(&chunks),
            [delta(json!({ "content": "lo" }), None), delta(json!({}), Some("stop"))]
        );
        let last = reply.usage_chunk(SPENT).unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], json!({ "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7 }));
    }

    #[test]
    fn usage_is_streamed_only_where_asked_for() {
        let mut reply = reply(Style::Completion, false, false);
        assert!(reply.usage_chunk(SPENT).is_none());
        let chunks = reply.chunks(spoken("a", vec![], Some(Finish::Length)));
        let chunk = json!({
            "id": "x-1", "object": "text_completion", "created": 5, "model": "m", "system_fingerprint": "fp_1",
            "choices": [{ "index": 1, "text": "a", "logprobs": null, "finish_reason": "length" }],
        });
        assert_eq!(chunks, [chunk]);
        assert!(reply.chunks(spoken("", vec![token(b"", -1.0)], None)).is_empty(), "nothing to tell");
    }

    #[test]
    fn an_echo_comes_once_before_the_text() {
        let mut reply = reply(Style::Completion, false, false);
        reply.told[1].echo = Some("Once".into());
        let text = |chunks: Vec<Value>| chunks[0]["choices"][0]["text"].clone();
        assert_eq!(text(reply.chunks(spoken(" upon", vec![], None))), "Once upon");
        assert_eq!(text(reply.chunks(spoken(" a", vec![], None))), " a");
    }

    #[test]
    fn a_completions_log_probabilities_are_four_lists() {
        let mut reply = reply(Style::Completion, true, false);
        reply.chunks(spoken("\u{e9}", vec![token("\u{e9}".as_bytes(), -1.0)], None));
        let tokens =
            vec![token(b"A", -0.5), token(b"C\xe2", -2.0), token(b"\x82\xac", -3.0), token(b"D", -4.0)];
        let chunks = reply.chunks(spoken("AC\u{20ac}D", tokens, None));
        let found = &chunks[0]["choices"][0]["logprobs"];
        // Four characters of prompt, one of text.
        assert_eq!(found["text_offset"], json!([5, 6, 8, 8]));
        assert_eq!(found["tokens"], json!(["A", "bytes:\\x43\\xe2", "bytes:\\x82\\xac", "D"]));
        assert_eq!(found["token_logprobs"], json!([-0.5, -2.0, -3.0, -4.0]));
        // The chosen token is among the alternatives, once.
        assert_eq!(found["top_logprobs"][0], json!({ "A": -0.5, "B": -1.5 }));
        assert_eq!(found["top_logprobs"][3], json!({ "A": -0.5, "B": -1.5, "D": -4.0 }));
    }

    #[test]
    fn a_conversations_log_probabilities_have_bytes() {
        let mut reply = reply(Style::Chat, true, false);
        let chunks =
            reply.chunks(spoken("\u{20ac}", vec![token(b"\xe2\x82", -1.0), token(b"\xac", -2.0)], None));
        let content = &chunks[1]["choices"][0]["logprobs"]["content"];
        assert_eq!(content[0]["bytes"], json!([0xe2, 0x82]));
        assert_eq!(content[1]["logprob"], -2.0);
        let top = json!([
            { "token": "A", "logprob": -0.5, "bytes": [65] }, { "token": "B", "logprob": -1.5, "bytes": [66] },
        ]);
        assert_eq!(content[1]["top_logprobs"], top);
        // A finished choice without more to say still has its reason.
        let chunks = reply.chunks(spoken("", vec![], Some(Finish::Length)));
        assert_eq!(chunks.len(), 1);
        assert_eq!(chunks[0]["choices"][0]["finish_reason"], "length");
    }

    #[test]
    fn a_whole_answer_has_every_choice_and_the_usage() {
        let choices =
            || (0..2).map(|choice| Spoken { choice, ..spoken("a", vec![], Some(Finish::Stop)) }).collect();
        let whole = reply(Style::Chat, false, true).whole(choices(), SPENT);
        assert_eq!(whole["object"], "chat.completion");
        assert_eq!(whole["usage"]["total_tokens"], 7);
        let choice = json!({
            "index": 1, "message": { "role": "assistant", "content": "a", "refusal": null }, "logprobs": null,
            "finish_reason": "stop",
        });
        assert_eq!(whole["choices"][1], choice);
        let whole = reply(Style::Completion, true, false).whole(choices(), SPENT);
        assert_eq!(whole["object"], "text_completion");
        assert_eq!(whole["choices"][0]["text"], "a");
        let empty = json!({ "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [] });
        assert_eq!(whole["choices"][1]["logprobs"], empty);
    }
}
