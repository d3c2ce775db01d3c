//! The verbs, one file each: arguments in, an answer on stdout, an exit code out.

pub(crate) mod batch;
pub(crate) mod bench;
pub(crate) mod bugreport;
pub(crate) mod chat;
pub(crate) mod check;
pub(crate) mod claim;
pub(crate) mod curve;
pub(crate) mod dashboard;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod eval;
pub(crate) mod fleet;
pub(crate) mod jobs;
#[cfg(any(windows, test))]
pub(crate) mod keeper;
pub(crate) mod log;
pub(crate) mod model;
pub(crate) mod owner;
pub(crate) mod run;
pub(crate) mod service;
#[cfg(target_os = "linux")]
mod service_linux;
#[cfg(windows)]
mod service_windows;
pub(crate) mod status;
pub(crate) mod train;
pub(crate) mod tray;
pub(crate) mod up;
pub(crate) mod update;
pub(crate) mod worker;

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use crate::fleet::acts;

/// Prints the answer as JSON.
///
/// # Errors
/// When stdout is closed.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = String::new();
    // Programs get all of it, and terminals nothing that they would obey.
    for c in serde_json::to_string_pretty(value)?.chars() {
        if c != '\n' && acts(c) {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    say(&text)
}

/// What is shown of a text that others may have written: all but what a terminal would obey.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().filter(|&c| matches!(c, '\n' | '\t') || !acts(c)).collect()
}

/// Prints one part of the answer, and a line's end.
///
/// # Errors
/// When stdout is closed.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", harmless(text))?;
    Ok(())
}

/// A rate in thousands.
#[expect(clippy::cast_precision_loss, reason = "for display")]
pub(crate) fn thousandth(value: u64) -> f64 {
    value as f64 / 1e3
}

/// A loss in nats per token.
#[expect(clippy::cast_precision_loss, reason = "for display")]
pub(crate) fn nats(micronats: i64) -> f64 {
    micronats as f64 / 1e6
}

/// Bytes for people.
pub(crate) fn bytes_text(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// A count for people: 135 M.
#[expect(clippy::cast_precision_loss, reason = "for display")]
pub(crate) fn count_text(count: u64) -> String {
    match count {
        0..1_000_000 => count.to_string(),
        1_000_000..1_000_000_000 => format!("{:.0} M", count as f64 / 1e6),
        _ => format!("{:.1} B", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn what_others_wrote_is_shown_and_not_obeyed() {
        let text = "peer  \u{1b}]0;mine\u{7}\u{9b}2J\ra\u{202e}b\u{feff}\n\t熊 – µs\n";
        assert_eq!(harmless(text), "peer  ]0;mine2Jab\n\t熊 – µs\n");
    }
}
