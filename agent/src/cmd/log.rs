//! `skein log verify`: check a log with nothing but its own bytes.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use skein_ledger::log;

use super::{print_json, say};

/// Verifies the log at `path`: its directory, or its file of entries with the checkpoint beside it.
///
/// # Errors
/// When the files cannot be read, or the first bad entry, named.
pub(crate) fn verify(path: &Path, json: bool) -> Result<ExitCode> {
    let entries = if path.is_dir() { path.join("entries") } else { path.to_owned() };
    let bytes = fs::read(&entries).with_context(|| format!("cannot read the log {}", entries.display()))?;
    let checkpoint = entries.with_file_name("checkpoint");
    let checkpoint = fs::read_to_string(&checkpoint)
        .with_context(|| format!("cannot read {}\nhint: a log is checked against the checkpoint beside it", checkpoint.display()))?;
    let result = log::verify(&bytes, &checkpoint);
    match (result, json) {
        (Ok(report), true) => {
            print_json(&json!({
                "ok": true, "node": report.node, "network": report.network, "entries": report.entries,
                "receipts": report.receipts, "acceptances": report.acceptances, "root": hex::encode(report.root),
            }))?;
            Ok(ExitCode::SUCCESS)
        }
        (Ok(report), false) => {
            say(&format!(
                "good: {} entries of agent {} ({} receipts, {} acceptances), root {}",
                report.entries,
                report.node.short(),
                report.receipts,
                report.acceptances,
                hex::encode(report.root)
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        (Err(fault), true) => {
            print_json(&json!({ "ok": false, "first_bad_entry": fault.entry(), "error": fault.to_string() }))?;
            Ok(ExitCode::FAILURE)
        }
        (Err(fault), false) => Err(fault).with_context(|| format!("{} is bad", entries.display())),
    }
}
