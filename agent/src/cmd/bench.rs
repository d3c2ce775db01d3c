//! `skein bench`: what devices are here, which one would work, and how fast it is.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use skein_compute::device::DeviceChoice;
use skein_compute::probe::{self, Survey};
use skein_compute::protocol::{Reply, Task};

use super::{bytes_text, print_json, say, thousandth};
use crate::cli::DataDir;
use crate::daemon::worker::{Launch, Worker};
use crate::host::Host;
use crate::limits::PROBE_TIMEOUT;

/// # Errors
/// When the requested device does not exist or does not work.
pub(crate) fn run(data_dir: DataDir, device: Option<String>, json: bool) -> Result<ExitCode> {
    let data_dir = crate::config::data_dir(data_dir.data_dir)?;
    let directory = data_dir.join("worker");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let host = Host::look(&data_dir);
    let executable = std::env::current_exe().context("cannot find this binary's own path")?;
    let survey = probe::survey(&executable, PROBE_TIMEOUT);
    if !json {
        eprintln!("{}, {} cores, {} of memory", host.processor, host.cores, bytes_text(host.memory_bytes));
        describe(&survey);
    }
    let chosen = probe::choose(&survey, device.as_deref())?;
    if !json {
        eprintln!("{}; measuring...", chosen.reason);
    }
    let threads = u32::try_from(host.cores).unwrap_or(1);
    let worker = Worker::new(Launch { executable, device: chosen.device.clone(), directory, threads });
    let note = |reply| {
        if let Reply::Progress { note, .. } = reply
            && !note.is_empty()
            && !json
        {
            eprintln!("{note}");
        }
    };
    let Reply::Benched(bench) = smol::block_on(worker.call(Task::Bench, note))? else {
        bail!("the worker answered out of turn");
    };
    if json {
        print_json(&json!({
            "device": chosen.device, "reason": chosen.reason, "host": host, "bench": bench, "survey": survey,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = match &chosen.device {
        DeviceChoice::Cpu => host.processor,
        DeviceChoice::Wgpu { name, .. } => name.clone(),
    };
    say(&format!(
        "{name}\n  matrix product   {:>8.1} GFLOP/s (f32, {side} x {side})\n  memory           {:>8.1} GB/s\n  \
         host to device   {:>8.1} GB/s\n  device to host   {:>8.1} GB/s",
        thousandth(bench.matmul_mflops),
        thousandth(bench.memory_mb_s),
        thousandth(bench.upload_mb_s),
        thousandth(bench.download_mb_s),
        side = bench.matmul_side,
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn describe(survey: &Survey) {
    if let Some(trouble) = &survey.trouble {
        eprintln!("  adapters cannot be listed: {}", trouble);
    } else if survey.adapters.is_empty() {
        eprintln!("  no GPU adapter");
    }
    for report in &survey.adapters {
        let adapter = &report.adapter;
        eprintln!("  {} ({}, {}): {}", adapter.name, adapter.backend, adapter.driver, report.verdict);
    }
}
