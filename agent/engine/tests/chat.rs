//! Owns equality of prompts with what transformers renders, and the bounds on hostile templates.
//! Must never hold a model's template: those are read from llama.cpp's folder and the test model, if they are there.
//!
//! `chat_goldens.json` was written by Jinja2 3.1 in an `ImmutableSandboxedEnvironment` with `trim_blocks` and
//! `lstrip_blocks`, `tools` and `documents` none, at noon of 4 July 2025; null where the template raised an exception.

#![expect(clippy::expect_used, reason = "a test says by failing what it expected")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skein_engine::chat::{ChatError, ChatTemplate, Message};
use skein_engine::gguf::{Header, Metadata, Value};
use skein_engine::limits::CHAT_TEMPLATE_BYTES_MAX;
use skein_engine::tokenizer::{TokenizerError, Vocabulary};

const GOLDENS: &str = include_str!("chat_goldens.json");

/// A template that cannot render a conversation without functions, in Jinja2 neither.
const NEEDS_FUNCTIONS: &str = "fireworks-ai-llama-3-firefunction-v2.jinja";

fn conversation(name: &str) -> Vec<Message> {
    let turns: &[(&str, &str)] = match name {
        "short" => &[("user", "Hello, world!")],
        "system" => &[
            ("system", "Answer in rhyme.\n"),
            ("user", " Who are you? "),
            ("assistant", "I am <b>Skein</b>.\n\nNice & \"quoted\"."),
            ("user", "Écris 'été' 🦙"),
        ],
        _ => &[("user", "One"), ("assistant", "Two"), ("user", "Three")],
    };
    turns.iter().map(|(role, content)| Message { role: (*role).into(), content: (*content).into() }).collect()
}

fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_751_630_400)
}

/// A vocabulary with little but a template.
fn vocabulary(template: Option<&str>, tokens: &[&str]) -> Result<Vocabulary, TokenizerError> {
    let texts = tokens.iter().map(|token| token.as_bytes().to_vec()).collect();
    let mut metadata = Metadata::from([
        ("tokenizer.ggml.model".to_owned(), Value::Text(b"llama".to_vec())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Texts(texts)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Signeds(vec![3; tokens.len()])),
        ("tokenizer.ggml.scores".to_owned(), Value::Floats(vec![0.0; tokens.len()])),
    ]);
    if let Some(template) = template {
        metadata.insert("tokenizer.chat_template".to_owned(), Value::Text(template.as_bytes().to_vec()));
    }
    Vocabulary::from_gguf(&metadata)
}

fn chat(template: &str) -> ChatTemplate {
    let vocabulary = vocabulary(Some(template), &["<unk>", "<s>", "</s>"]).expect("the vocabulary is sound");
    ChatTemplate::new(&vocabulary).expect("the template can be read")
}

fn from_environment(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: {name} is not set");
    }
    path
}

fn check_goldens(of: impl Fn(&str) -> bool, chat: impl Fn(&str) -> ChatTemplate) {
    let goldens: BTreeMap<String, Option<String>> =
        serde_json::from_str(GOLDENS).expect("the goldens are JSON");
    let mut checked = 0;
    for (key, golden) in &goldens {
        let [template, name, add] = key.split('|').collect::<Vec<_>>()[..] else { panic!("bad key {key}") };
        if !of(template) {
            continue;
        }
        let prompt = chat(template).render_at(&conversation(name), add == "true", noon());
        assert_eq!(prompt.ok().as_deref(), golden.as_deref(), "{key}");
        checked += 1;
    }
    assert!(checked >= 3, "there are goldens");
}

#[test]
fn the_test_models_prompts_are_those_of_transformers() {
    let Some(path) = from_environment("SKEIN_TEST_MODEL") else { return };
    let header = Header::open(&path).expect("the model is sound");
    let vocabulary = Vocabulary::from_gguf(&header.metadata).expect("its vocabulary is supported");
    let chat = |_: &str| ChatTemplate::new(&vocabulary).expect("it has a template");
    check_goldens(|template| template == "SmolLM2", chat);
}

#[test]
fn prompts_of_known_families_are_those_of_transformers() {
    let Some(folder) = from_environment("SKEIN_TEST_VOCABS") else { return };
    let read = |template: &str| std::fs::read_to_string(folder.join("templates").join(template));
    check_goldens(
        |template| Path::new(template).extension().is_some(),
        |template| chat(&read(template).expect("llama.cpp has the template")),
    );
}

#[test]
fn every_template_of_llama_cpp_renders_messages() {
    let Some(folder) = from_environment("SKEIN_TEST_VOCABS") else { return };
    let entries = std::fs::read_dir(folder.join("templates")).expect("the folder is there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    assert!(paths.len() > 40, "the folder holds templates");
    let mut failed = Vec::new();
    for path in paths {
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let template = std::fs::read_to_string(&path).expect("templates are UTF-8");
        let vocabulary =
            vocabulary(Some(&template), &["<unk>", "<s>", "</s>"]).expect("the vocabulary is sound");
        let prompt =
            ChatTemplate::new(&vocabulary).and_then(|chat| chat.render(&conversation("plain"), true));
        let holds = prompt.as_ref().is_ok_and(|prompt| prompt.contains("Three"));
        if holds == (name == NEEDS_FUNCTIONS) {
            failed.push(format!("{name}: {prompt:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_longest_conversations_are_within_fuel() {
    let Some(folder) = from_environment("SKEIN_TEST_VOCABS") else { return };
    let text = "A sentence of forty-odd characters, or so.\n".repeat(50);
    let roles = ["user", "assistant"].into_iter().cycle().take(399);
    let long: Vec<Message> = roles.map(|role| Message { role: role.into(), content: text.clone() }).collect();
    let names =
        ["Qwen-Qwen3-0.6B", "meta-llama-Llama-3.2-3B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407"];
    for name in names {
        let path = folder.join("templates").join(format!("{name}.jinja"));
        let template = std::fs::read_to_string(path).expect("llama.cpp has the template");
        let prompt = chat(&template).render(&long, true).expect(name);
        assert!(prompt.len() > 800_000, "{name}: {}", prompt.len());
    }
}

#[test]
fn blocks_swallow_their_lines_and_python_is_at_hand() {
    let template = "{% for message in messages %}\n  {% if true %}\n{{ message['content'].strip().upper() }}|\n  \
        {% endif %}\n{% endfor %}\n{% generation %}{{ bos_token }}{{ messages[0] | tojson }}{% endgeneration %}\n\
        {{ strftime_now('%d %b %Y') }}{{ 'x' if tools is none else 'y' }}";
    let prompt = chat(template).render_at(&conversation("short"), true, noon()).expect("it renders");
    let expected = "HELLO, WORLD!|\n<s>{\"content\": \"Hello, world!\", \"role\": \"user\"}04 Jul 2025x";
    assert_eq!(prompt, expected);
}

#[test]
fn a_template_may_refuse_a_conversation() {
    let refused = chat("{{ raise_exception('roles must alternate') }}").render(&conversation("plain"), true);
    let Err(ChatError::Refused(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("roles must alternate"), "{reason}");
}

#[test]
fn models_without_a_template_get_chatml_or_an_error() {
    let with_tokens = vocabulary(None, &["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]);
    let chat = ChatTemplate::new(&with_tokens.expect("it is sound")).expect("ChatML serves");
    let prompt = chat.render(&conversation("short"), true).expect("it renders");
    assert_eq!(prompt, "<|im_start|>user\nHello, world!<|im_end|>\n<|im_start|>assistant\n");
    let without = vocabulary(None, &["<unk>", "<s>", "</s>"]).expect("it is sound");
    let error = ChatTemplate::new(&without).err().expect("there is nothing to go by");
    assert!(
        matches!(error, ChatError::NoTemplate) && error.to_string().contains("hint: use /v1/completions")
    );
}

#[test]
fn lists_nested_without_end_do_not_end_the_process() {
    let nest = "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% for j in range(900) %}\
        {% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
    for end in
        ["ok", "{{ ns.x }}", "{{ ns.x == [ns.x] }}", "{{ ns.x | tojson }}", "{{ ns.x | string | length }}"]
    {
        // Whether it renders does not matter, only that it returns.
        let _ = chat(&format!("{nest}{end}")).render(&conversation("short"), true);
    }
}

#[test]
fn hostile_templates_cost_little() {
    let deep = format!("{}1{}", "{{ (".repeat(5_000), ") }}".repeat(5_000));
    let hostile = [
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(10000) %}{% for j in range(10000) %}{{ i * j }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 10000000000 }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ ('{0}' * 100000).format('x' * 1000000) }}",
        "{{ ('x' * 1000000).join(range(100000)) }}",
        "{{ ('x' * 100000000).split('') | length }}",
        "{% set s = 'x' * 10000000 %}{% for i in range(100000) %}{{ s.count('y') }}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{{ ['x'] * 1000000000 }}",
        "{{ 'x'.center(1000000000) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ range(1000000000) | list }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{% include 'secret' %}",
        "{{ messages.__class__ }}{{ raise_exception() }}",
        "{{ 'x' * 10000000 }}",
        "{% if %}",
        &deep,
    ];
    for template in hostile {
        let vocabulary =
            vocabulary(Some(template), &["<unk>", "<s>", "</s>"]).expect("the vocabulary is sound");
        let begun = Instant::now();
        let prompt =
            ChatTemplate::new(&vocabulary).and_then(|chat| chat.render(&conversation("short"), true));
        let shown: String = template.chars().take(60).collect();
        assert!(prompt.is_err(), "{shown} gives {} bytes", prompt.map_or(0, |prompt| prompt.len()));
        assert!(begun.elapsed() < Duration::from_secs(20), "{shown} took {:?}", begun.elapsed());
    }
    let long = "x".repeat(CHAT_TEMPLATE_BYTES_MAX + 1);
    assert!(matches!(vocabulary(Some(&long), &["<unk>"]), Err(TokenizerError::TooLarge { .. })));
}
