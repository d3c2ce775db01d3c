//! `skein bench`: what devices are here, which one would work, and how fast it is; or how fast a language model is.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use skein_compute::device::DeviceChoice;
use skein_compute::probe::{self, Survey};
use skein_compute::protocol::{Reply, Task};
use skein_engine::evaluate::{Bench, bench};
use skein_engine::import;

use super::eval::{device, threads, whole};
use super::{bytes_text, print_json, say, thousandth};
use crate::cli::BenchArgs;
use crate::daemon::worker::{Launch, Worker};
use crate::host::Host;
use crate::limits::PROBE_TIMEOUT;

/// # Errors
/// When the requested device does not exist or does not work.
pub(crate) fn run(args: BenchArgs) -> Result<ExitCode> {
    if let Some(path) = args.model.clone() {
        return model(&args, &path);
    }
    let BenchArgs { data_dir, device, json, threads, .. } = args;
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
    let threads = if threads == 0 { host.cores } else { threads };
    let threads = u32::try_from(threads).unwrap_or(1);
    let worker = Worker::new(Launch { executable, device: chosen.device.clone(), directory, threads });
    let note = |reply| {
        if let Reply::Progress { note, .. } = reply
            && !note.is_empty()
            && !json
        {
            eprintln!("{note}");
        }
    };
    let Reply::Benched(bench) = smol::future::block_on(worker.call(Task::Bench, note))? else {
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

/// Measures a model as llama-bench does: a prompt, and tokens one by one, each from an empty session.
fn model(args: &BenchArgs, path: &Path) -> Result<ExitCode> {
    let device = device(args.device.as_deref().unwrap_or("cpu"))?;
    let threads = threads(args.threads);
    let model = import::open(path)?;
    let tokens = args.prompt.max(args.generate);
    let mut stage = whole(model.source.as_ref(), &device, threads, tokens, args.sessions)?;
    let runs = (0..args.repeat)
        .map(|_| bench(&mut stage, args.prompt, args.generate, args.sessions))
        .collect::<Result<Vec<_>, _>>()?;
    let median = |of: fn(&Bench) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let prompt = median(|run| run.prompt_per_second);
    let generate = median(|run| run.generate_per_second);
    let prompt_cpu = median(|run| run.prompt_cpu_seconds.unwrap_or(f64::NAN));
    let generate_cpu = median(|run| run.generate_cpu_seconds.unwrap_or(f64::NAN));
    let resident = stage.resident_bytes();
    if args.json {
        print_json(&json!({
            "model": path, "device": device, "threads": threads, "sessions": args.sessions, "repeat": args.repeat,
            "prompt_tokens": args.prompt, "generated_tokens": args.generate,
            "prompt_per_second": prompt, "generate_per_second": generate,
            "prompt_cpu_seconds": prompt_cpu, "generate_cpu_seconds": generate_cpu, "resident_bytes": resident,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!(
        "{} on {device}, {threads} threads, {} sessions, median of {}\n  prompt of {:>6}  {prompt:>9.1} tokens/s\n  \
         generate {:>7}  {generate:>9.1} tokens/s\n  resident         {:>9}",
        path.display(),
        args.sessions,
        args.repeat,
        args.prompt,
        args.generate,
        bytes_text(resident),
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
