//! A customer's text as tokens: plain text, or JSON Lines of texts or of conversations.
//!
//! The last tenth is held out. Of conversations, only what the assistant says is learnt.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use skein_compute::data::{Dataset, Tokens};
use skein_engine::chat::{ChatTemplate, Message};
use skein_engine::tokenizer::Tokenizer;

use super::template;
use crate::limits::BLOB_BYTES_MAX;

/// The share that is never trained on.
const HELD_OUT: usize = 10;

/// A line of JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    text: Option<String>,
    messages: Option<Vec<Turn>>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

/// Reads a file and makes tokens of it.
///
/// # Errors
/// Names the file, and the line where one is at fault.
pub(crate) fn read(path: &Path, tokenizer: &Tokenizer) -> Result<Dataset> {
    let name = path.display();
    let file = File::open(path).with_context(|| {
        format!("cannot read {name}\nhint: paths in a job file are relative to that file")
    })?;
    let mut bytes = Vec::new();
    file.take(BLOB_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > BLOB_BYTES_MAX {
        bail!(
            "{name} has more than {BLOB_BYTES_MAX} bytes\nhint: split it, and train on one part after the other"
        );
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => bail!("{name} is empty\nhint: give it some text to learn from"),
        Ok(text) if text.contains('\0') => bail!("{name} is no text: it holds bytes that are zero"),
        Ok(text) => text,
        Err(error) => {
            bail!(
                "{name} is no text: byte {} is not UTF-8\nhint: convert it first",
                error.utf8_error().valid_up_to()
            )
        }
    };
    let json = path.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson");
    if json {
        records(&text, tokenizer).with_context(|| format!("{name} cannot be used"))
    } else {
        Ok(plain(&text, tokenizer))
    }
}

/// One text; its last tenth is held out.
pub(crate) fn plain(text: &str, tokenizer: &Tokenizer) -> Dataset {
    let cut = text.floor_char_boundary(text.len() - text.len() / HELD_OUT);
    let tokens = |text: &str| Tokens { ids: tokenizer.prompt(text), counts: Vec::new() };
    Dataset::new(tokens(&text[..cut]), tokens(&text[cut..]))
}

/// A text or a conversation per line; the last tenth of the lines, one at least, is held out.
fn records(text: &str, tokenizer: &Tokenizer) -> Result<Dataset> {
    let mut all = Vec::new();
    let mut chat = None;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let tokens = record(line, tokenizer, &mut chat).with_context(|| format!("line {}", number + 1))?;
        all.push(tokens);
    }
    if all.len() < 2 {
        bail!("it has {} lines; one to learn from and one to judge by are needed", all.len());
    }
    let held_out = all.split_off(all.len() - (all.len() / HELD_OUT).max(1));
    Ok(Dataset::new(join(all), join(held_out)))
}

fn record(line: &str, tokenizer: &Tokenizer, chat: &mut Option<ChatTemplate>) -> Result<Tokens> {
    let record: Record = serde_json::from_str(line).context(
        "it is neither {\"text\": \"…\"} nor {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}",
    )?;
    match record {
        Record { text: Some(text), messages: None } => {
            let mut ids = tokenizer.prompt(&text);
            let end = tokenizer.vocabulary().eos().filter(|end| ids.last() != Some(end));
            ids.extend(end);
            Ok(Tokens { counts: vec![true; ids.len()], ids })
        }
        Record { text: None, messages: Some(turns) } => {
            let template = match chat {
                Some(template) => template,
                None => chat.insert(template(tokenizer)?),
            };
            let turns = turns.into_iter().map(|Turn { role, content }| Message { role, content });
            conversation(&turns.collect::<Vec<_>>(), tokenizer, template)
        }
        Record { text: Some(_), messages: Some(_) } | Record { text: None, messages: None } => {
            bail!("it has neither or both of `text` and `messages`")
        }
    }
}

/// What the template makes of a conversation. What the assistant says counts, with what ends its turns.
fn conversation(turns: &[Message], tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Tokens> {
    let mut tokens = Tokens::default();
    let mut written = String::new();
    let mut write = |text: String, counts: bool| {
        let Some(more) = text.strip_prefix(&written) else {
            bail!(
                "the model's chat template does not keep earlier turns as they were\nhint: give each answer a line of its own"
            );
        };
        let ids = tokenizer.encode(more, true);
        tokens.counts.extend(ids.iter().map(|_| counts));
        tokens.ids.extend(ids);
        written = text;
        Ok(())
    };
    for (place, _) in turns.iter().enumerate().filter(|(_, turn)| turn.role == "assistant") {
        write(template.render(&turns[..place], true)?, false)?;
        write(template.render(&turns[..=place], false)?, true)?;
    }
    if written.is_empty() {
        bail!(
            "the assistant says nothing in it, so there is nothing to learn\nhint: add a message of role \"assistant\""
        );
    }
    Ok(tokens)
}

/// One after the other; where all count, nothing is said of it.
fn join(parts: Vec<Tokens>) -> Tokens {
    let mut joined = Tokens::default();
    for part in parts {
        joined.ids.extend(part.ids);
        joined.counts.extend(part.counts);
    }
    if joined.counts.iter().all(|counts| *counts) {
        joined.counts.clear();
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_engine::tokenizer::Vocabulary;

    fn tokenizer() -> Tokenizer {
        Tokenizer::new(Vocabulary::bytes()).unwrap()
    }

    fn refused(name: &str, content: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        format!("{:#}", read(&path, &tokenizer()).unwrap_err())
    }

    #[test]
    fn what_is_no_text_is_named() {
        assert!(refused("a.txt", b"").contains("a.txt is empty"));
        assert!(refused("a.txt", b" \n\t ").contains("is empty"));
        assert!(refused("a.txt", b"ab\xff").contains("byte 2 is not UTF-8"));
        assert!(refused("a.txt", b"ab\0c").contains("bytes that are zero"));
        let bad = refused("a.jsonl", b"{\"text\":\"x\"}\n\n{\"txt\":\"x\"}\n");
        assert!(bad.contains("line 3") && bad.contains("\"messages\""), "{bad}");
        assert!(refused("a.jsonl", b"{\"text\":\"x\"}").contains("it has 1 lines"));
        let chat = refused("a.jsonl", b"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
        assert!(chat.contains("no chat template"), "{chat}");
    }

    #[test]
    fn the_last_tenth_is_held_out() {
        let text = "ä".repeat(50);
        let data = plain(&text, &tokenizer());
        assert_eq!(data.train().ids.len() % 2, 0, "no character is cut");
        let lines: String = (0..20).map(|line| format!("{{\"text\":\"{line:02}\"}}\n")).collect();
        let data = records(&lines, &tokenizer()).unwrap();
        assert_eq!(data.train().ids.len(), 18 * 2);
        assert!(data.train().counts.is_empty(), "all count");
    }
}
