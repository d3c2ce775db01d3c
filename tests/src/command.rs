//! The built binary as a command: found, run, and judged by what it says.
//!
//! Owns what a good refusal is. Must never start what does not end by itself: that is `agents.rs`.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The `skein` binary: `SKEIN_BIN`, or the one built beside this test.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKEIN_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let name = format!("skein{}", std::env::consts::EXE_SUFFIX);
    let beside = test.ancestors().nth(2).map(|folder| folder.join(&name)).filter(|path| path.is_file());
    beside.with_context(|| {
        format!(
            "no `{name}` beside {}\nhint: `cargo build --release -p skein` builds it, or set SKEIN_BIN",
            test.display()
        )
    })
}

/// `skein` with these arguments, untouched by the environment of whoever runs the tests.
///
/// # Errors
/// When there is no binary.
pub fn skein(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SKEIN_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// Runs `skein` to its end.
///
/// # Errors
/// When it cannot be run.
pub fn run(arguments: &[&str]) -> Result<Said> {
    Said::of(skein(arguments)?.output()?)
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// The answer.
    pub out: String,
    /// The story.
    pub err: String,
}

impl Said {
    /// # Errors
    /// When it was killed or did not print text.
    pub fn of(output: Output) -> Result<Self> {
        let code = output.status.code().with_context(|| format!("it was killed: {}", output.status))?;
        Ok(Self { code, out: String::from_utf8(output.stdout)?, err: String::from_utf8(output.stderr)? })
    }

    /// The answer as JSON: all of it, and nothing else on stdout.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("stdout is not JSON: {self:?}"))
    }

    /// The command failed with an error that says all of `words` and what to do, and answered nothing.
    ///
    /// # Errors
    /// When it did not.
    pub fn refuses(&self, words: &[&str]) -> Result<()> {
        ensure!(self.code != 0, "it succeeded: {self:?}");
        ensure!(self.out.is_empty(), "an error is no answer: {self:?}");
        explains(&self.err, words)
    }
}

/// The text says all of `words` and what to do, and is not the last cry of a program.
///
/// # Errors
/// When it does not.
pub fn explains(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "`{word}` is missing in: {text}");
    }
    ensure!(text.contains("hint:"), "no hint in: {text}");
    ensure!(!text.contains("panicked at") && !text.contains("RUST_BACKTRACE"), "a panic: {text}");
    Ok(())
}

/// Sends a signal to a process.
///
/// # Errors
/// When there is no such process.
pub fn signal(name: &str, pid: u32) -> Result<()> {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).output()?;
    ensure!(sent.status.success(), "cannot send {name} to {pid}: {}", String::from_utf8_lossy(&sent.stderr));
    Ok(())
}

/// A TOML text whose `key` has another value; the key must be there, outside comments.
///
/// # Errors
/// When it is not.
pub fn set(text: &str, key: &str, value: &str) -> Result<String> {
    let mut found = false;
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some((name, _)) if name == key => {
            found = true;
            format!("{key} = {value}\n")
        }
        _ => format!("{line}\n"),
    });
    let text = lines.collect();
    ensure!(found, "no key {key} in the example");
    Ok(text)
}
