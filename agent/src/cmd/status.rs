//! `skein status`: can the network see me, am I working, and if not, why.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use skein_update::LastResult;

use super::{bytes_text, print_json, say};
use crate::cli::DataDir;
use crate::client::Client;
use crate::daemon::status::Status;

/// # Errors
/// When no agent runs there.
pub(crate) fn run(data_dir: DataDir, json: bool) -> Result<ExitCode> {
    let status: Status = Client::find(data_dir)?.get("/api/status")?;
    if json {
        print_json(&status)?
    } else {
        say(describe(&status).trim_end())?
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<12} {value}");
    };
    line("agent", format!("{} on {}", status.node, status.network));
    line("version", status.version.clone());
    if let Some(LastResult { version, reason: Some(reason), .. }) = &status.update {
        let version = version.as_ref().map_or_else(String::new, |version| format!("{version}: "));
        for (at, words) in format!("{version}{reason}").lines().enumerate() {
            line(if at == 0 { "no update" } else { "" }, words.to_owned());
        }
    }
    line("visible", if status.visible { "yes".into() } else { "no".into() });
    let working = match status.leases.as_slice() {
        [] => "no".to_owned(),
        leases => leases.iter().map(|lease| lease.shard.clone()).collect::<Vec<_>>().join(", "),
    };
    line("working", working);
    line("state", status.policy.headline.clone());
    for reason in &status.reasons {
        line("", reason.clone());
    }
    let coordinator = match status.coordinator {
        Some(node) if node == status.node => format!("this agent, term {}", status.term.unwrap_or(0)),
        Some(node) => format!("{}, term {}", node.short(), status.term.unwrap_or(0)),
        None => "none".to_owned(),
    };
    line("coordinator", coordinator);
    for (worker, told) in status.workers.iter().enumerate() {
        let label = if status.workers.len() == 1 { "device".to_owned() } else { format!("worker {worker}") };
        let offered = status.offer.as_ref().and_then(|offer| offer.workers.get(worker));
        if let Some(offer) = offered.filter(|_| told.backend.is_some()) {
            let speed = format!(
                "{} ({}): {} GFLOP/s, memory {} GB/s, up to {} for jobs",
                offer.device,
                offer.backend,
                offer.matrix_mflops / 1_000,
                offer.memory_mbps / 1_000,
                bytes_text(offer.memory_bytes)
            );
            line(&label, speed);
        } else if status.workers.len() > 1 {
            line(&label, told.device.clone());
        }
        if status.workers.len() > 1 {
            line("", told.headline.clone());
        }
    }
    if !status.device_reason.is_empty() && status.workers.len() == 1 {
        line("", status.device_reason.clone());
    }
    line("listening", format!("{} (agents), http://{} (you)", status.listen, status.api));
    for peer in &status.peers {
        let time = peer.round_trip_us.map_or_else(String::new, |us| format!(", {us} µs away"));
        let device = peer.device.clone().unwrap_or_else(|| "no offer yet".into());
        line("peer", format!("{} at {}{time}: {device}", peer.node.short(), peer.address));
    }
    line("log", format!("{} entries in {}", status.log.entries, status.log.path));
    let ledger = &status.ledger;
    line("earned", format!("{} (block {}, epoch {})", ledger.balance, ledger.height, ledger.epoch));
    line("today", format!("{} earned since midnight", status.earned_today));
    line("this epoch", format!("{} units accepted", ledger.accepted_units));
    line(
        "traffic",
        format!("{} sent, {} received", bytes_text(status.bytes_sent), bytes_text(status.bytes_received)),
    );
    text
}
