//! `skein`: one binary for owners, customers, operators and auditors.
//!
//! Owns the exit path: stdout is the answer, stderr the story, and every error leaves through here.

mod api;
mod cli;
mod client;
mod cmd;
mod config;
mod daemon;
mod demo;
mod fleet;
mod host;
mod identity;
mod limits;
mod os;
mod serve;
mod story;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, JobChoice, LogVerb, Verb};

/// This build's version. One text in the binary, never a constant in its code: tests make the next version of a
/// binary by writing another number over it.
#[inline(never)]
pub(crate) fn version() -> &'static str {
    std::hint::black_box(env!("CARGO_PKG_VERSION"))
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", cmd::harmless(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Up(args) => cmd::up::run(args),
        Verb::Down(data_dir) => cmd::down::run(data_dir),
        Verb::Status { data_dir, json } => cmd::status::run(data_dir, json),
        Verb::Update(args) => cmd::update::run(args),
        Verb::Dashboard(data_dir) => cmd::dashboard::run(data_dir),
        Verb::Fleet { data_dir, json, verb: None } => cmd::fleet::show(data_dir, json),
        Verb::Fleet { verb: Some(verb), .. } => cmd::fleet::run(verb),
        Verb::Tray(data_dir) => cmd::tray::run(data_dir),
        Verb::Doctor { data_dir, json } => cmd::doctor::run(data_dir, json),
        Verb::Bugreport { data_dir, output } => cmd::bugreport::run(data_dir, output),
        Verb::Bench(args) => cmd::bench::run(args),
        Verb::Model { verb } => cmd::model::run(verb),
        Verb::Chat(args) => cmd::chat::run(args),
        Verb::Eval(args) => cmd::eval::run(args),
        Verb::Check(args) => cmd::check::run(args),
        Verb::Run { data_dir, job, example, detach, output } => {
            cmd::run::run(data_dir, job, example, detach, output)
        }
        Verb::Jobs { data_dir, json } => cmd::jobs::list(data_dir, json),
        Verb::Logs { job, follow, json } => cmd::jobs::logs(job, follow, json),
        Verb::Cancel { job } => cmd::jobs::cancel(job),
        Verb::Pause { data_dir, time, gpu } => cmd::owner::pause(data_dir, time, gpu),
        Verb::Finish(data_dir) => cmd::owner::finish(data_dir),
        Verb::Set { data_dir, key, value } => cmd::owner::set(data_dir, &key, &value),
        Verb::Get { data_dir, key, json } => cmd::owner::get(data_dir, key.as_deref(), json),
        Verb::Resume { data_dir, id: None } => cmd::owner::resume(data_dir),
        Verb::Resume { data_dir, id: Some(id) } => cmd::jobs::resume(JobChoice { data_dir, id }),
        Verb::Result { job, output } => cmd::jobs::result(job, &output),
        Verb::Log { verb: LogVerb::Verify { data_dir, log, json } } => cmd::log::verify(data_dir, log, json),
        Verb::Claim { data_dir, dry_run, json } => cmd::claim::run(data_dir, dry_run, json),
        Verb::Demo { data_dir, agents, json } => demo::run(data_dir.data_dir, agents, json),
        Verb::Service { verb } => cmd::service::run(verb),
        Verb::Worker { device } => cmd::worker::run(&device),
        Verb::Probe { adapter, .. } => cmd::worker::probe(adapter),
    }
}
