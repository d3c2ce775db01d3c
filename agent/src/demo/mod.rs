//! `skein demo`: the whole of Skein on one machine, in one screen.
//!
//! Real processes, real QUIC, a real text. Every fact it prints it has checked; it ends well only if all
//! of them are as they should be.

mod agents;
mod report;

use std::fs;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use skein_compute::device::DeviceChoice;
use skein_engine::import;
use skein_engine::step::{Chunk, Input, Output, Sampling, Want};
use skein_ledger::emission::Amount;
use skein_proto::ids::Digest;
use skein_proto::job::{JobSpec, Method, Requires, TrainSpec, Work};
use skein_proto::message::{JobStatus, Phase};

use self::agents::{Agent, wait_for};
use self::report::{Device, Log, Report, Serve, Settlement, Train};
use crate::cmd::eval::whole;
use crate::cmd::jobs::phase_text;
use crate::cmd::run::{Pace, show};
use crate::cmd::train::{self, Shape};
use crate::cmd::{bytes_text, nats, thousandth};
use crate::daemon::status::{Offered, Payout, Settled, Status};
use crate::daemon::training::train_size;
use crate::serve::desk::ServeOrder;

const TEXT: &[u8] = include_bytes!("../../demo/shakespeare.txt");
const PROMPT: &str = "HAMLET.\nTo be, or not to be";
const COMPLETION_TOKENS: usize = 64;
/// An hour of network time in the demo.
const EPOCH_MS: u64 = 30_000;
/// The held-out loss that training must beat, in nats per byte.
const LOSS_BAR: f64 = 2.6;

const LAYERS: u16 = 6;
const CONTEXT: u32 = 128;
const ROUNDS: u32 = 8;
const SEED: u64 = 7;
/// Inner steps of one round over all agents, so that the demo takes as long with eight as with one.
const STEPS_PER_ROUND: u32 = 150;

/// Runs the demo.
///
/// # Errors
/// When something could not even be tried; what was tried and failed is in the report.
pub(crate) fn run(parent: Option<PathBuf>, agents: u16, json: bool) -> Result<ExitCode> {
    let demo = Demo::begin(parent, agents, json)?;
    let report = demo.play()?;
    if json {
        crate::cmd::print_json(&report)?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Demo {
    folder: PathBuf,
    agents: u16,
    threads: usize,
    json: bool,
    started: Instant,
}

impl Demo {
    fn begin(parent: Option<PathBuf>, agents: u16, json: bool) -> Result<Self> {
        let mut name = [0; 4];
        getrandom::fill(&mut name).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        let folder =
            parent.unwrap_or_else(std::env::temp_dir).join(format!("skein-demo-{}", hex::encode(name)));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // The agents share this machine: together they use each core once.
        let threads = (cores / usize::from(agents)).max(1);
        Ok(Self { folder, agents, threads, json, started: Instant::now() })
    }

    fn play(&self) -> Result<Report> {
        let mut failures = Vec::new();
        self.title("Skein: geese take turns at the front, and so do these machines.");
        let mut agents = self.meet()?;
        let statuses = agents.iter().map(Agent::status).collect::<Result<Vec<_>>>()?;
        let devices = statuses.iter().filter_map(device).collect();
        let (train, trained) = self.train(&agents, &mut failures)?;
        let (serve, served_until) = self.serve(&agents, &trained, &mut failures)?;
        let (settlement, leases) = self.account(&agents, served_until, &mut failures)?;
        let log = self.check(&mut agents, leases, &mut failures)?;
        let report = Report {
            ok: failures.is_empty(),
            agents: self.agents,
            devices,
            train,
            serve,
            log,
            settlement,
            folder: self.folder.display().to_string(),
            seconds: self.started.elapsed().as_secs_f64(),
            failures,
        };
        self.title(if report.ok { "All of it is true." } else { "Not all of it is true:" });
        for failure in &report.failures {
            self.say(&format!("FAILED: {failure}"));
        }
        self.say(&format!(
            "{:.0} s; everything is in {} for you to look at",
            report.seconds,
            self.folder.display()
        ));
        Ok(report)
    }

    fn meet(&self) -> Result<Vec<Agent>> {
        self.title(&format!("1 Meet: {} agents, each a process with its own key", self.agents));
        let genesis = self.folder.join("genesis.toml");
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let text =
            format!("name = \"demo\"\npolicy = \"io\"\nstarted_at_ms = {now}\nepoch_ms = {EPOCH_MS}\n");
        fs::write(&genesis, text).with_context(|| format!("cannot write {}", genesis.display()))?;
        let mut agents: Vec<Agent> = Vec::new();
        let spinner = self.spinner("starting");
        for number in 1..=self.agents {
            let data_dir = self.folder.join(format!("agent-{number}"));
            let agent = Agent::start(data_dir, &genesis, self.threads, agents.first())?;
            agents.push(agent);
        }
        spinner.set_message("measuring devices, meeting, electing");
        let statuses = wait_for("the agents to meet", Duration::from_secs(120), || {
            let statuses = agents.iter().map(Agent::status).collect::<Result<Vec<_>>>()?;
            Ok(have_met(&statuses).then_some(statuses))
        })?;
        spinner.finish_and_clear();
        for status in &statuses {
            let office = if status.coordinator == Some(status.node) { ", elected coordinator" } else { "" };
            if let Some(Offered { first: offer, .. }) = &status.offer {
                self.say(&format!(
                    "{}  {} ({}), {} GFLOP/s, memory {} GB/s{office}",
                    status.node.short(),
                    offer.device,
                    offer.backend,
                    offer.matrix_mflops / 1_000,
                    offer.memory_mbps / 1_000
                ));
            }
        }
        if let Some(status) = statuses.first() {
            self.say(&status.device_reason);
        }
        Ok(agents)
    }

    fn train(&self, agents: &[Agent], failures: &mut Vec<String>) -> Result<(Train, JobStatus)> {
        let customer = &agents[0].client;
        let shape = Shape {
            layers: u32::from(LAYERS),
            width: 128,
            heads: 4,
            context: CONTEXT,
            kv_heads: None,
            feed_width: None,
            vocabulary: None,
            tied: false,
        };
        let start = train::drawn(customer, Path::new("."), &shape, SEED)?;
        let size = train_size(&start.manifest, Method::Full).map_err(anyhow::Error::msg)?;
        let parameters = size.resident;
        self.title(&format!(
            "2 Train: a byte-level Llama of {:.1} M parameters on {} of Shakespeare, by DiLoCo",
            millions(parameters),
            bytes_text(TEXT.len() as u64)
        ));
        let text = std::str::from_utf8(TEXT)?;
        let data = customer.put_blob(train::data::plain(text, &start.tokenizer).encode()?.as_slice())?;
        let sent_before = bytes_sent(agents)?;
        let started = Instant::now();
        let work = Work::Train(TrainSpec {
            model: start.digest,
            size,
            method: Method::Full,
            data,
            context: CONTEXT,
            rounds: ROUNDS,
            inner_steps: (STEPS_PER_ROUND / u32::from(self.agents)).clamp(20, 75),
            batch: 4,
            learning_rate_millionths: 3_000,
            outer_rate_millionths: 1_000_000,
            outer_momentum_millionths: 0,
            seed: SEED,
            delta_bits: 4,
            check_millionths: 20_000,
        });
        let (name, requires) = ("shakespeare".to_owned(), Requires::default());
        let id = customer.submit(&JobSpec { name, nonce: 1, work, requires })?;
        let bar = self.bar();
        let mut pace = Pace::default();
        let mut told = 0;
        let job = wait_for("training", Duration::from_secs(900), || {
            let jobs: Vec<JobStatus> = customer.get("/api/jobs")?;
            let Some(job) = jobs.into_iter().find(|job| job.id == id) else { return Ok(None) };
            show(&bar, &job, &mut pace);
            if job.round > told {
                told = job.round;
                let loss = job.held_out_micronats.map_or(f64::NAN, nats);
                let state = job.state.map_or_else(String::new, |state| state.short());
                bar.suspend(|| {
                    self.say(&format!(
                        "outer step {told}: held-out loss {loss:.3} nats per byte, checkpoint {state}"
                    ))
                });
            }
            Ok(job.phase.is_final().then_some(job))
        })?;
        bar.finish_and_clear();
        let (Phase::Done, Some(state)) = (&job.phase, job.state) else {
            bail!("training ended: {}", phase_text(&job.phase));
        };
        let seconds = started.elapsed().as_secs_f64();
        let holding = agents.iter().map(|agent| self.holds(agent, state)).collect::<Result<Vec<_>>>()?;
        let train = Train {
            parameters,
            start_loss: job.start_loss_micronats.map_or(f64::NAN, nats),
            val_loss: job.held_out_micronats.map_or(f64::NAN, nats),
            outer_steps: job.round,
            bytes_sent: bytes_sent(agents)?.saturating_sub(sent_before),
            tokens: job.tokens,
            tokens_per_s: per_second(job.tokens, seconds),
            digests_equal: job.digests_equal && holding.iter().all(|&holds| holds),
            seconds,
        };
        require(
            failures,
            train.start_loss > 5.0,
            "the loss before training is not that of an untrained model",
        );
        require(
            failures,
            train.val_loss < LOSS_BAR,
            "the held-out loss did not fall below 2.6 nats per byte",
        );
        require(failures, train.digests_equal, "the agents do not all hold bit-identical weights");
        self.say(&format!(
            "held-out loss {:.3} -> {:.3} nats per byte; {:.0} tokens/s over {} agents; {} sent; all hold checkpoint {}",
            train.start_loss,
            train.val_loss,
            train.tokens_per_s,
            self.agents,
            bytes_text(train.bytes_sent),
            state.short()
        ));
        Ok((train, job))
    }

    /// Whether the agent holds the blob, judged by its bytes and not by its word.
    fn holds(&self, agent: &Agent, blob: Digest) -> Result<bool> {
        let copy = self.folder.join("weights.safetensors");
        if agent.client.get_blob(blob, &copy).is_err() {
            return Ok(false);
        }
        Ok(Digest::of(&fs::read(&copy)?) == blob)
    }

    fn serve(
        &self,
        agents: &[Agent],
        trained: &JobStatus,
        failures: &mut Vec<String>,
    ) -> Result<(Serve, u64)> {
        self.title("3 Serve: the same model, its layers split over the agents, behind the OpenAI API");
        let customer = &agents[0].client;
        let weights = self.folder.join("shakespeare");
        train::result::save(customer, trained, &weights)?;
        let entry = crate::cmd::model::add(customer, &weights, None)?;
        let id = customer.serve(&ServeOrder {
            model: entry.name,
            stages: Some(self.agents.min(LAYERS)),
            ..ServeOrder::default()
        })?;
        let spinner = self.spinner("loading stages");
        let job = wait_for("the stages to load", Duration::from_secs(120), || {
            let jobs: Vec<JobStatus> = customer.get("/api/jobs")?;
            let job = jobs.into_iter().find(|job| job.id == id);
            Ok(job.filter(|job| job.phase.is_final() || !job.stages.is_empty()))
        })?;
        if job.stages.is_empty() {
            bail!("serving ended: {}", phase_text(&job.phase));
        }
        spinner.set_message("generating");
        let request = json!({
            "model": "shakespeare", "prompt": PROMPT, "max_tokens": COMPLETION_TOKENS, "temperature": 0,
        });
        // The first completion also warms up; the second is timed.
        let _: Value = customer.post("/v1/completions", &request)?;
        let started = Instant::now();
        let answer: Value = customer.post("/v1/completions", &request)?;
        let seconds = started.elapsed().as_secs_f64();
        let text = answer["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
        let tokens = usize::try_from(answer["usage"]["completion_tokens"].as_u64().unwrap_or(0))?;
        // Greedy text repeats itself; what a person likes to read is sampled.
        let mut sampling = request.clone();
        sampling["temperature"] = json!(0.7);
        sampling["seed"] = json!(1);
        sampling["max_tokens"] = json!(CONTEXT as usize - PROMPT.len());
        let sampled: Value = customer.post("/v1/completions", &sampling)?;
        let sampled = sampled["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
        let streamed = streamed_text(agents, request)?;
        spinner.set_message("generating with the unsplit model, to compare");
        let (unsharded, unsharded_tokens_per_s) = self.unsharded(&weights)?;
        spinner.finish_and_clear();
        let _: Value = customer.post(&format!("/api/jobs/{id}/cancel"), &())?;
        wait_for("the stages to end", Duration::from_secs(30), || {
            let statuses = agents.iter().map(Agent::status).collect::<Result<Vec<_>>>()?;
            Ok(statuses.iter().all(|status| status.leases.is_empty()).then_some(()))
        })?;
        let ended = agents[0].status()?.ledger.epoch.0;
        let serve = Serve {
            stages: job.stages.len(),
            tokens,
            tokens_per_s: per_second(tokens as u64, seconds),
            unsharded_tokens_per_s,
            matches_unsharded: !text.is_empty() && text.as_bytes() == unsharded,
            streamed_matches: streamed == text,
            text,
            sampled,
        };
        require(failures, tokens == COMPLETION_TOKENS, "the completion has not the length asked for");
        require(failures, serve.matches_unsharded, "the split model's text is not that of the unsplit one");
        require(failures, serve.streamed_matches, "the streamed text is not that of the plain answer");
        for line in format!("{PROMPT}{}", serve.sampled).lines().take(8) {
            self.say(&format!("  | {line}"));
        }
        self.say(&format!(
            "{} stages, {:.0} tokens/s split, {:.0} unsplit; greedy text equal token for token, streamed or not",
            serve.stages, serve.tokens_per_s, serve.unsharded_tokens_per_s
        ));
        Ok((serve, ended))
    }

    /// Generates with all layers in this process: what the split must equal.
    fn unsharded(&self, weights: &Path) -> Result<(Vec<u8>, f64)> {
        let model = import::open(weights)?;
        let mut stage = whole(model.source.as_ref(), &DeviceChoice::Cpu, self.threads, CONTEXT, 2)?;
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, top_logprobs: 0 };
        let mut rate = 0.0;
        let mut tokens: Vec<u32> = Vec::new();
        // As with the split model, the second pass is timed.
        for session in 0..2 {
            let started = Instant::now();
            tokens = PROMPT.bytes().map(u32::from).collect();
            let mut fresh = 0;
            while tokens.len() < PROMPT.len() + COMPLETION_TOKENS {
                let want = Want::Picks { from: u32::try_from(tokens.len() - fresh - 1)?, sampling };
                let input = Input::Tokens(tokens[fresh..].to_vec());
                let chunk = Chunk { session, position: u32::try_from(fresh)?, input, want };
                fresh = tokens.len();
                let output = stage.step(&[chunk]).pop().context("a chunk has an answer")??;
                let Output::Picks(picks) = output else { bail!("the whole model answered with rows") };
                tokens.extend(picks.first().map(|pick| pick.token));
            }
            rate = per_second(COMPLETION_TOKENS as u64, started.elapsed().as_secs_f64());
        }
        let text =
            tokens[PROMPT.len()..].iter().map(|token| u8::try_from(*token)).collect::<Result<_, _>>()?;
        Ok((text, rate))
    }

    fn account(
        &self,
        agents: &[Agent],
        last_epoch: u64,
        failures: &mut Vec<String>,
    ) -> Result<(Settlement, u64)> {
        self.title(&format!("4 Account: an hour of network time lasts {} s here", EPOCH_MS / 1_000));
        let spinner = self.spinner("waiting for the epoch to close and to be settled");
        let patience = Duration::from_millis(4 * EPOCH_MS);
        let statuses = wait_for("the epoch to be settled", patience, || {
            let statuses = agents.iter().map(Agent::status).collect::<Result<Vec<_>>>()?;
            let settled = |status: &Status| {
                status.ledger.settlements.iter().any(|settled| settled.epoch.0 >= last_epoch)
            };
            let agreed = statuses.windows(2).all(|pair| pair[0].ledger.state == pair[1].ledger.state);
            Ok((agreed && statuses.iter().all(settled)).then_some(statuses))
        })?;
        spinner.finish_and_clear();
        let settlements = statuses[0].ledger.settlements.clone();
        let best = settlements.iter().max_by_key(|settled| (settled.claims.len(), settled.epoch));
        let best = best.context("no epoch was settled")?.clone();
        for settled in &settlements {
            self.tell_settlement(settled);
            let sum: u64 = settled.claims.iter().map(|payout| payout.amount.0).sum();
            let exact = settled.minted == settled.emission && sum == settled.minted.0;
            require(
                failures,
                exact,
                &format!("epoch {} does not divide exactly its emission", settled.epoch),
            );
        }
        let earned: Vec<Payout> = statuses
            .iter()
            .map(|status| Payout { node: status.node, amount: status.ledger.balance_base_units })
            .collect();
        require(failures, best.claims.len() == usize::from(self.agents), "not every agent claimed a share");
        require(failures, earned.iter().all(|payout| payout.amount > Amount(0)), "an agent earned nothing");
        let total: Vec<String> =
            earned.iter().map(|payout| format!("{} {}", payout.node.short(), payout.amount)).collect();
        self.say(&format!("earned in all: {}", total.join(", ")));
        let leases = statuses.iter().map(|status| status.leases_taken).sum();
        let settlement = Settlement {
            epoch: best.epoch,
            minted: best.minted,
            emission: best.emission,
            claims: best.claims,
            epochs_settled: settlements.len(),
            earned,
        };
        Ok((settlement, leases))
    }

    fn tell_settlement(&self, settled: &Settled) {
        let shares: Vec<String> = settled
            .claims
            .iter()
            .map(|payout| format!("{} {}", payout.node.short(), payout.amount))
            .collect();
        self.say(&format!(
            "epoch {}: minted {} of {}: {}",
            settled.epoch,
            settled.minted,
            settled.emission,
            shares.join(", ")
        ));
    }

    fn check(&self, agents: &mut [Agent], leases: u64, failures: &mut Vec<String>) -> Result<Log> {
        self.title("5 Check: anyone can verify the logs");
        let mut log = Log { leases, verified: true, ..Log::default() };
        for agent in agents.iter_mut() {
            agent.leave()?;
            let directory = agent.data_dir.join("log");
            let said = verify(&directory)?;
            log.verified &= said["ok"] == true;
            log.entries += said["entries"].as_u64().unwrap_or(0);
            log.receipts += said["receipts"].as_u64().unwrap_or(0);
        }
        let original = agents[0].data_dir.join("log");
        let tampered = self.folder.join("tampered-log");
        fs::create_dir_all(&tampered)?;
        fs::copy(original.join("checkpoint"), tampered.join("checkpoint"))?;
        let mut bytes = fs::read(original.join("entries"))?;
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(tampered.join("entries"), bytes)?;
        let said = verify(&tampered)?;
        log.tampered_entry = said["first_bad_entry"].as_u64();
        log.tamper_detected = said["ok"] == false && log.tampered_entry.is_some();
        require(failures, log.verified, "a log does not verify");
        require(failures, log.tamper_detected, "a flipped byte in a log went unnoticed");
        require(failures, log.receipts == log.leases && leases > 0, "not every lease ended in a receipt");
        self.say(&format!(
            "{} entries in {} logs verify; {} leases, {} receipts; one byte flipped in a copy: {}",
            log.entries,
            agents.len(),
            log.leases,
            log.receipts,
            said["error"].as_str().unwrap_or("unnoticed").lines().next().unwrap_or_default()
        ));
        Ok(log)
    }

    fn title(&self, text: &str) {
        if !self.json {
            eprintln!("\n{text}");
        }
    }

    fn say(&self, text: &str) {
        if !self.json {
            eprintln!("  {text}");
        }
    }

    fn bar(&self) -> ProgressBar {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("  {bar:24} {msg}") {
            bar.set_style(style);
        }
        bar
    }

    fn spinner(&self, text: &'static str) -> ProgressBar {
        let bar = self.bar();
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}") {
            bar.set_style(style);
        }
        bar.set_message(text);
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }
}

/// Whether all see all others, with their offers, and obey one coordinator.
fn have_met(statuses: &[Status]) -> bool {
    let coordinator = statuses.first().and_then(|status| status.coordinator);
    coordinator.is_some()
        && statuses.iter().all(|status| {
            let known = status.peers.iter().filter(|peer| peer.device.is_some()).count();
            status.visible && status.coordinator == coordinator && known + 1 == statuses.len()
        })
}

fn device(status: &Status) -> Option<Device> {
    let offer = &status.offer.as_ref()?.first;
    Some(Device {
        node: status.node,
        device: offer.device.clone(),
        backend: offer.backend.clone(),
        matrix_gflops: thousandth(offer.matrix_mflops),
        memory_gb_per_s: thousandth(offer.memory_mbps),
        transfer_gb_per_s: thousandth(offer.transfer_mbps),
        reason: status.device_reason.clone(),
    })
}

/// The text of a streamed completion, asked of the last agent: any agent is a door.
fn streamed_text(agents: &[Agent], mut request: Value) -> Result<String> {
    request["stream"] = json!(true);
    let last = agents.last().context("no agents")?;
    let mut text = String::new();
    for line in last.client.post_stream("/v1/completions", &request)?.lines() {
        let line = line?;
        match line.strip_prefix("data: ") {
            Some("[DONE]") => return Ok(text),
            Some(event) => {
                let event: Value = serde_json::from_str(event)?;
                text.push_str(event["choices"][0]["text"].as_str().unwrap_or_default());
            }
            None => {}
        }
    }
    bail!("the stream ended without its end mark")
}

/// `skein log verify --json`, as anyone would run it.
fn verify(log: &Path) -> Result<Value> {
    let executable = std::env::current_exe().context("cannot find this binary's own path")?;
    let output = Command::new(executable).args(["log", "verify", "--json"]).arg(log).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&said)
        .with_context(|| format!("`skein log verify` said: {}", String::from_utf8_lossy(&output.stderr)))
}

fn bytes_sent(agents: &[Agent]) -> Result<u64> {
    let statuses = agents.iter().map(Agent::status).collect::<Result<Vec<_>>>()?;
    Ok(statuses.iter().map(|status| status.bytes_sent).sum())
}

fn require(failures: &mut Vec<String>, holds: bool, otherwise: &str) {
    if !holds {
        failures.push(otherwise.to_owned());
    }
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn millions(value: u64) -> f64 {
    value as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}
