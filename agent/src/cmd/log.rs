//! `skein log verify`: check a log with nothing but its own bytes.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use skein_ledger::log;

use super::{print_json, say};
use crate::cli::DataDir;

/// Verifies a log, by default that of the data directory: its directory, or its file of entries with the
/// checkpoint beside it.
///
/// # Errors
/// When the files cannot be read, or the first bad entry, named.
pub(crate) fn verify(data_dir: DataDir, log: Option<PathBuf>, json: bool) -> Result<ExitCode> {
    let path = match log {
        Some(path) => path,
        None => crate::config::data_dir(data_dir.data_dir)?.join("log"),
    };
    let entries = if path.is_dir() { path.join("entries") } else { path };
    let bytes = fs::read(&entries).with_context(|| {
        format!(
            "cannot read the log {}\nhint: name an agent's log directory, DATA_DIR/log",
            entries.display()
        )
    })?;
    let checkpoint = entries.with_file_name("checkpoint");
    let checkpoint = fs::read_to_string(&checkpoint).with_context(|| {
        format!(
            "cannot read {}\nhint: a log is checked against the checkpoint beside it",
            checkpoint.display()
        )
    })?;
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
            print_json(
                &json!({ "ok": false, "first_bad_entry": fault.entry(), "error": fault.to_string() }),
            )?;
            Ok(ExitCode::FAILURE)
        }
        (Err(fault), false) => Err(fault).with_context(|| format!("{} is bad", entries.display())),
    }
}
