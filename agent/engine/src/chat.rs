//! Owns turning a conversation into a prompt by the template that came with a model.
//! Must never trust the template: it is a stranger's program, and gets fuel and a stack of its own.
//!
//! Fuel does not bound everything: a list that holds another list twice, which holds another twice, and so on, is cheap
//! to build, and minijinja writes it out or compares it without charging. A template from a stranger therefore belongs
//! in a process whose memory and time are limited; what is here bounds the rest.
//!
//! Templates are written for Jinja2 as transformers sets it up: blocks swallow the line they stand on, `tools` and
//! `documents` are none, and a few functions are there besides Jinja's own. Goldens of the tests come from there.

mod python;

use std::time::SystemTime;

use fancy_regex::Regex;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::limits::{CHAT_PROMPT_BYTES_MAX, CHAT_STACK_BYTES, CHAT_TEMPLATE_FUEL};
use crate::tokenizer::Vocabulary;

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Why there is no prompt. Nothing else changed.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model was not made for conversations.
    #[error(
        "the model has no chat template; hint: use /v1/completions, or a model whose name says instruct or chat"
    )]
    NoTemplate,
    /// The template cannot be read.
    #[error("the chat template is not understood: {0}; hint: use /v1/completions")]
    BadTemplate(String),
    /// The template refused the conversation, failed, or burnt all its fuel.
    #[error("the chat template refused the conversation: {0}")]
    Refused(String),
    /// The prompt is longer than any context.
    #[error("the prompt has {bytes} bytes, more than the {CHAT_PROMPT_BYTES_MAX} that are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
}

/// What models without a template of their own are given, if they have its tokens.
const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A model's template, ready for conversations.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Reads the template of a vocabulary.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`] and [`ChatError::BadTemplate`].
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, ChatError> {
        let source = match vocabulary.chat_template() {
            Some(template) => without_generation_tags(template)?,
            None if vocabulary.has_special("<|im_start|>") => CHATML.to_owned(),
            None => return Err(ChatError::NoTemplate),
        };
        let environment = environment()?;
        environment.template_from_str(&source).map_err(|error| ChatError::BadTemplate(reason(&error)))?;
        let text = |token: Option<u32>| token.and_then(|token| vocabulary.text(token)).unwrap_or_default();
        let (bos, eos) = (text(vocabulary.bos()).to_owned(), text(vocabulary.eos()).to_owned());
        Ok(Self { environment, source, bos, eos })
    }

    /// The prompt of a conversation; with `add_generation_prompt` it ends where the assistant begins to speak.
    ///
    /// # Errors
    /// [`ChatError::Refused`] and [`ChatError::TooLong`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ChatError> {
        self.render_at(messages, add_generation_prompt, SystemTime::now())
    }

    /// The same at a given time, which some templates write into the prompt.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, ChatError> {
        // A template can nest a list until writing it out overflows an ordinary stack, which would end the process.
        let prompt = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(CHAT_STACK_BYTES);
            let rendering = thread.spawn_scoped(scope, || self.prompt(messages, add_generation_prompt, now));
            let rendering = rendering.map_err(|error| ChatError::Refused(error.to_string()))?;
            rendering.join().map_err(|_| ChatError::Refused("it made the renderer fail".to_owned()))?
        })?;
        match prompt.len() {
            bytes if bytes > CHAT_PROMPT_BYTES_MAX => Err(ChatError::TooLong { bytes }),
            _ => Ok(prompt),
        }
    }

    fn prompt(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, ChatError> {
        let refused = |error: Error| ChatError::Refused(reason(&error));
        let template = self.environment.template_from_str(&self.source).map_err(refused)?;
        let context = context! {
            messages => messages.iter().map(turn).collect::<Value>(),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
            strftime_now => Value::from_function(move |format: &str| python::strftime(format, now)),
        };
        template.render(context).map_err(refused)
    }
}

/// A message as templates see it.
fn turn(message: &Message) -> Value {
    Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
}

fn environment() -> Result<Environment<'static>, ChatError> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().map_err(|error| ChatError::BadTemplate(reason(&error)))?);
    environment.set_fuel(Some(CHAT_TEMPLATE_FUEL));
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::to_json);
    environment.add_test("iterable", python::is_iterable);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    Ok(environment)
}

/// transformers knows a block that marks what the assistant said, for training; here it is a block like any other.
fn without_generation_tags(template: &str) -> Result<String, ChatError> {
    let mut source = template.to_owned();
    for (tag, block) in [("generation", "if true"), ("endgeneration", "endif")] {
        let pattern = Regex::new(&format!(r"(\{{%[-+]?\s*){tag}(\s*[-+]?%\}})"))
            .map_err(|error| ChatError::BadTemplate(error.to_string()))?;
        source = pattern.replace_all(&source, format!("${{1}}{block}${{2}}")).into_owned();
    }
    Ok(source)
}

/// What went wrong, in one line.
fn reason(error: &Error) -> String {
    match (error.detail(), error.line()) {
        (Some(detail), Some(line)) => format!("{detail} (line {line} of the template)"),
        (Some(detail), None) => detail.to_owned(),
        (None, _) => error.kind().to_string(),
    }
}
