//! Real processes on loopback that are killed, stopped and started again: no job and no pay is lost.
//!
//! Every fault is one that an owner's machine will suffer. Must never look inside an agent: what it
//! shows at its API, says on stderr and leaves on disk is all there is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skein_ledger::entry::Entry;
use skein_proto::ids::Digest;
use skein_proto::job::Shard;
use skein_proto::lease::End;
use skein_tests::agents::{self, Agent, Network, PATIENCE, SOON, TEXT, Training, wait_for};
use skein_tests::command::{run, signal};
use skein_tests::http;

/// No epoch closes in tests that are not about money.
const LONG_EPOCH_MS: u64 = 600_000;

/// Training tokens in an agent's log: under completed receipts, and under those of them that were accepted.
fn tokens_logged(agent: &Agent) -> Result<(u64, u64)> {
    let log = agent.log()?;
    let mut open: BTreeMap<Digest, u64> = BTreeMap::new();
    let (mut receipts, mut accepted) = (0, 0);
    for entry in log.entries() {
        match entry {
            Entry::Receipt(envelope) => {
                let receipt = envelope.unverified();
                let shard = &receipt.lease.unverified().shard;
                if receipt.end == End::Completed && matches!(shard, Shard::Train { .. }) {
                    receipts += receipt.tokens;
                    open.insert(envelope.digest(), receipt.tokens);
                }
            }
            Entry::Acceptance(envelope) => {
                accepted += open.remove(&envelope.unverified().receipt).unwrap_or(0);
            }
        }
    }
    Ok((receipts, accepted))
}

/// How many leases of such shards this agent completed, by its log.
fn completed(agent: &Agent, wanted: impl Fn(&Shard) -> bool) -> Result<usize> {
    let log = agent.log()?;
    let completed = log.entries().iter().filter(|entry| match entry {
        Entry::Receipt(receipt) => {
            let receipt = receipt.unverified();
            receipt.end == End::Completed && wanted(&receipt.lease.unverified().shard)
        }
        Entry::Acceptance(_) => false,
    });
    Ok(completed.count())
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

#[test]
fn a_member_killed_while_training_costs_nothing_that_was_acknowledged() -> Result<()> {
    let mut network = Network::of(3, LONG_EPOCH_MS)?;
    let coordinator = network.coordinator()?;
    let owner = usize::from(coordinator == 0);
    let victim = (0..3).find(|place| ![coordinator, owner].contains(place)).context("no third agent")?;
    let job = agents::train(&network.agents[owner], &TEXT[..40_000], &Training::of(8, 20))?;
    network.agents[owner].job_until(&job, "the first outer step", SOON, |job| {
        job["round"].as_u64().is_some_and(|round| (1..6).contains(&round))
    })?;
    let entries_before = number(&network.agents[victim].status()?["log"]["entries"])?;
    network.agents[victim].kill()?;
    ensure!(entries_before >= 2, "the victim had a part in the first outer step");
    let on_disk = network.agents[victim].log()?.size();
    ensure!(on_disk >= entries_before, "the log had {entries_before} entries and has {on_disk}");

    let done = network.agents[owner].job_done(&job)?;
    ensure!(done["digests_equal"] == true && number(&done["round"])? == 8, "{done}");
    let state = done["state"].as_str().context("no checkpoint")?;
    for place in [coordinator, owner] {
        let held = network.agents[place].blob(state)?.context("a survivor has no checkpoint")?;
        ensure!(Digest::of(&held).to_string() == state, "a survivor's checkpoint is not what it is called");
    }
    // Each accepted receipt is counted in the job's tokens; each was durable before it was sent.
    let counted = number(&done["tokens"])?;
    let mut logged = (0, 0);
    for agent in &network.agents {
        let (receipts, accepted) = tokens_logged(agent)?;
        logged = (logged.0 + receipts, logged.1 + accepted);
    }
    ensure!(logged.1 <= counted && counted <= logged.0, "{counted} tokens accepted, {logged:?} in the logs");

    // Back again: the same agent with the same log, of use as before.
    let node = network.agents[victim].node.clone();
    network.agents[victim].restart()?;
    ensure!(network.agents[victim].node == node, "another identity after the restart");
    ensure!(number(&network.agents[victim].status()?["log"]["entries"])? == on_disk, "the log changed");
    network.met(3)?;
    let again = agents::train(&network.agents[owner], &TEXT[..40_000], &Training::of(2, 5))?;
    network.agents[owner].job_done(&again)?;
    let log = wait_for("the acceptances", SOON, || {
        let log = network.agents[victim].log()?;
        Ok((log.size() >= on_disk + 4).then_some(log))
    })?;
    ensure!(log.size() > on_disk, "the agent that came back was not used");
    network.finish()
}

/// The pieces of a streamed completion; `at_piece` is told of each as it comes.
fn stream(agent: &Agent, request: &Value, mut at_piece: impl FnMut(usize) -> Result<()>) -> Result<String> {
    let body = request.to_string();
    let request = http::request("POST", "/v1/completions", agent.api, &[], body.as_bytes());
    let answer = http::open(agent.api, &request)?;
    ensure!(answer.status == 200, "{}", answer.head);
    let mut text = String::new();
    let mut pieces = 0;
    for line in BufReader::new(answer).lines() {
        let line = line?;
        match line.strip_prefix("data: ") {
            Some("[DONE]") => return Ok(text),
            Some(event) => {
                let event: Value = serde_json::from_str(event)?;
                let piece = event["choices"][0]["text"].as_str();
                text.push_str(piece.with_context(|| format!("no text in {event}"))?);
                pieces += 1;
                at_piece(pieces)?;
            }
            None => ensure!(line.is_empty(), "no event: {line}"),
        }
    }
    bail!("the stream ended without its end mark after {pieces} pieces")
}

#[test]
fn a_stage_killed_while_it_generates_is_replaced_within_the_stream() -> Result<()> {
    let mut network = Network::of(3, LONG_EPOCH_MS)?;
    let coordinator = network.coordinator()?;
    let door = usize::from(coordinator == 0);
    let victim = (0..3).find(|place| ![coordinator, door].contains(place)).context("no third agent")?;
    let model = agents::model(&network.agents[door], 3, 1_024)?;
    agents::serve(&network.agents[door], &model, 3)?;
    let request = json!({ "model": "tiny", "prompt": "To be", "max_tokens": 1_000, "temperature": 0 });
    let whole = network.agents[door].order("/v1/completions", &request)?;
    let expected = whole["choices"][0]["text"].as_str().context("no text")?.to_owned();
    ensure!(whole["usage"]["completion_tokens"] == 1_000, "{}", whole["usage"]);

    let mut request = request;
    request["stream"] = json!(true);
    let process = network.agents[victim].process.take();
    let mut process = process.context("the victim lives")?;
    let mut longest = (Duration::ZERO, 0);
    let mut last = Instant::now();
    let text = stream(&network.agents[door], &request, |piece| {
        longest = longest.max((last.elapsed(), piece));
        last = Instant::now();
        if piece == 100 {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    })?;
    ensure!(process.try_wait()?.is_some(), "the whole answer came in fewer than 100 pieces");
    ensure!(text == expected, "after a stage was killed: {text:?}, undisturbed: {expected:?}");
    let distinct = text.chars().collect::<std::collections::BTreeSet<_>>().len();
    eprintln!(
        "1,000 tokens ({distinct} kinds), longest gap {} ms, before piece {}",
        longest.0.as_millis(),
        longest.1
    );
    ensure!(longest.0 < Duration::from_secs(15), "the stream stood still for {:?}", longest.0);
    network.finish()
}

/// The worker's process, once there is one other than `than`.
fn worker(agent: &Agent, than: Option<u32>) -> Result<u32> {
    wait_for("a worker", SOON, || {
        let pid = agent.status()?["worker"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Ok(pid.filter(|_| pid != than))
    })
}

/// Waits until the agent executes a training shard.
fn busy(agent: &Agent) -> Result<()> {
    wait_for("a shard under way", PATIENCE, || {
        let status = agent.status()?;
        let mut leases = status["leases"].as_array().into_iter().flatten();
        Ok(leases.any(|lease| lease["shard"] == "train" && lease["done"].as_u64() > Some(0)).then_some(()))
    })
}

#[test]
fn a_worker_that_dies_or_hangs_costs_its_lease_and_nothing_else() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let training = Training { context: 64, ..Training::of(4, 200) };
    let job = agents::train(agent, &TEXT[..40_000], &training)?;
    for (fault, deaths) in [("KILL", 1), ("ABRT", 2)] {
        busy(agent)?;
        let pid = worker(agent, None)?;
        signal(fault, pid)?;
        worker(agent, Some(pid))?;
        ensure!(agent.status()?["worker"]["deaths"] == deaths, "{}", agent.status()?["worker"]);
    }
    busy(agent)?;
    let pid = worker(agent, None)?;
    signal("STOP", pid)?;
    // Only silence tells that it hangs: its lease runs out, and it is killed.
    let fresh = wait_for("the worker that hangs to be replaced", PATIENCE, || {
        let now = agent.status()?["worker"]["pid"].as_u64();
        Ok(now.filter(|&now| now != u64::from(pid)))
    });
    if fresh.is_err() {
        signal("KILL", pid)?;
    }
    fresh?;
    let done = agent.job_done(&job)?;
    ensure!(number(&done["regrants"])? >= 3 && done["digests_equal"] == true, "{done}");
    // Nothing is paid for a lease that a fault cost, and each has its receipt all the same.
    let log = wait_for("the last acceptance", SOON, || {
        let log = agent.log()?;
        let ends = log.entries().iter().filter_map(|entry| match entry {
            Entry::Receipt(receipt) => Some(receipt.unverified().clone()),
            Entry::Acceptance(_) => None,
        });
        let ends: Vec<_> = ends.collect();
        let completed = ends.iter().filter(|receipt| receipt.end == End::Completed).count() as u64;
        let accepted = log.size() - ends.len() as u64;
        Ok((completed == accepted).then_some(ends))
    })?;
    let unpaid: Vec<_> = log.iter().filter(|receipt| receipt.end != End::Completed).collect();
    ensure!(unpaid.len() >= 3 && unpaid.iter().all(|receipt| receipt.units.0 == 0), "{unpaid:?}");
    network.finish()
}

#[test]
fn a_worker_that_dies_again_and_again_is_started_more_and_more_slowly() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let model = agents::model(agent, 2, 64)?;
    // A stage wants its worker back at once, as often as it dies.
    agents::serve(agent, &model, 1)?;
    let mut waits = Vec::new();
    let mut pid = worker(agent, None)?;
    for _ in 0..5 {
        // A stage that is never loaded fails its job.
        wait_for("the stage", SOON, || {
            let status = agent.status()?;
            let mut leases = status["leases"].as_array().into_iter().flatten();
            Ok(leases.any(|lease| lease["shard"] == "stage" && lease["done"] == 1).then_some(()))
        })?;
        signal("KILL", pid)?;
        let died = Instant::now();
        pid = worker(agent, Some(pid))?;
        waits.push(died.elapsed());
    }
    ensure!(waits[0] < Duration::from_secs(2), "the first death is forgiven at once: {waits:?}");
    ensure!(waits[4] >= Duration::from_secs(3), "the fifth start waits 3.2 s: {waits:?}");
    ensure!(agent.status()?["worker"]["deaths"] == 5, "{}", agent.status()?["worker"]);
    let request = json!({ "model": "tiny", "prompt": "To be", "max_tokens": 4, "temperature": 0 });
    let answer = agent.order("/v1/completions", &request)?;
    ensure!(answer["usage"]["completion_tokens"] == 4, "{answer}");
    network.finish()
}

#[test]
fn a_stage_whose_worker_hangs_is_replaced() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let model = agents::model(agent, 2, 64)?;
    agents::serve(agent, &model, 1)?;
    let request = json!({ "model": "tiny", "prompt": "To be", "max_tokens": 8, "temperature": 0 });
    let expected = agent.order("/v1/completions", &request)?["choices"][0]["text"].clone();
    let pid = worker(agent, None)?;
    signal("STOP", pid)?;
    let answer = agent.order("/v1/completions", &request);
    if answer.is_err() {
        signal("KILL", pid)?;
    }
    ensure!(answer?["choices"][0]["text"] == expected, "another text after the worker hung");
    network.finish()
}

#[test]
fn the_coordinator_is_killed_and_the_job_goes_on_under_another() -> Result<()> {
    let mut network = Network::of(3, LONG_EPOCH_MS)?;
    let first = network.coordinator()?;
    let owner = (0..3).find(|&place| place != first).context("nobody else")?;
    let term = number(&network.agents[owner].status()?["term"])?;
    let job = agents::train(&network.agents[owner], &TEXT[..40_000], &Training::of(8, 20))?;
    let before = network.agents[owner].job_until(&job, "the first outer step", SOON, |job| {
        job["round"].as_u64().is_some_and(|round| (1..6).contains(&round))
    })?;
    network.agents[first].kill()?;
    let old = network.agents[first].node.clone();
    let status = wait_for("another coordinator", SOON, || {
        let status = network.agents[owner].status()?;
        Ok((status["visible"] == true && status["coordinator"] != old.as_str()).then_some(status))
    })?;
    ensure!(number(&status["term"])? > term, "{status}");
    let done = network.agents[owner].job_done(&job)?;
    ensure!(number(&done["round"])? == 8 && done["digests_equal"] == true, "{done}");
    ensure!(done["start_loss_micronats"] == before["start_loss_micronats"], "{done}");
    // It went on from the last outer step: the first weights were made only once.
    let mut begun = 0;
    for agent in &network.agents {
        begun += completed(agent, |shard| matches!(shard, Shard::Init { .. }))?;
    }
    ensure!(begun == 1, "the job was begun {begun} times");
    let state = done["state"].as_str().context("no checkpoint")?;
    for agent in network.agents.iter().filter(|agent| agent.process.is_some()) {
        ensure!(agent.blob(state)?.is_some(), "a survivor has no checkpoint");
    }
    // The old coordinator comes back: all obey one again, under no lower term, and it is of use.
    let term = number(&status["term"])?;
    network.agents[first].restart()?;
    network.met(3)?;
    let status = network.agents[owner].status()?;
    ensure!(number(&status["term"])? >= term, "an earlier term is obeyed again: {status}");
    let more = agents::train(&network.agents[first], &TEXT[..40_000], &Training::of(2, 5))?;
    network.agents[first].job_done(&more)?;
    network.finish()
}

/// What each agent says of the ledger, once all say the same and `enough` of it.
fn agreed(network: &Network, enough: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_for("one ledger", PATIENCE, || {
        let mut ledgers = Vec::new();
        for agent in &network.agents {
            ledgers.push(agent.status()?["ledger"].clone());
        }
        let same = ledgers.windows(2).all(|pair| pair[0]["state"] == pair[1]["state"]);
        Ok(ledgers.first().filter(|ledger| same && enough(ledger)).cloned())
    })
}

#[test]
fn epochs_are_settled_exactly_and_all_agree_also_after_a_restart() -> Result<()> {
    let mut network = Network::of(3, 4_000)?;
    let owner = &network.agents[0];
    let job = agents::train(owner, &TEXT[..40_000], &Training::of(6, 10))?;
    let done = owner.job_done(&job)?;
    ensure!(done["digests_equal"] == true, "{done}");
    let shared = |ledger: &Value| {
        let settlements = ledger["settlements"].as_array().into_iter().flatten();
        settlements
            .filter(|settled| settled["claims"].as_array().is_some_and(|claims| claims.len() == 3))
            .count()
    };
    let ledger = agreed(&network, |ledger| shared(ledger) >= 1)?;
    let mut earned: BTreeMap<String, u64> = BTreeMap::new();
    for settled in ledger["settlements"].as_array().context("no settlements")? {
        let mut paid = 0;
        for claim in settled["claims"].as_array().context("no claims")? {
            let amount = number(&claim["amount"])?;
            paid += amount;
            *earned.entry(claim["node"].as_str().context("no node")?.to_owned()).or_default() += amount;
        }
        let minted = number(&settled["minted"])?;
        ensure!(minted == paid && minted == number(&settled["emission"])? && minted > 0, "{settled}");
    }
    for agent in &network.agents {
        let balance = number(&agent.status()?["ledger"]["balance_base_units"])?;
        ensure!(
            earned.get(&agent.node) == Some(&balance) && balance > 0,
            "{} has {balance}: {earned:?}",
            agent.node
        );
        let claim = run(&["claim", "--dry-run", "--json", "--data-dir", &agent.dir()])?.json()?;
        ensure!(claim["sent"] == false, "a dry run sends nothing: {claim}");
    }

    // One is away while an epoch with work closes, comes back, and knows what the others know.
    network.agents[2].kill()?;
    let away = network.agents.remove(2);
    let owner = &network.agents[0];
    let more = agents::train(owner, &TEXT[..40_000], &Training::of(3, 10))?;
    owner.job_done(&more)?;
    let height = number(&ledger["height"])?;
    agreed(&network, |ledger| number(&ledger["height"]).is_ok_and(|now| now > height))?;
    network.agents.push(away);
    network.agents[2].restart()?;
    let ledger = agreed(&network, |ledger| number(&ledger["height"]).is_ok_and(|now| now > height))?;
    ensure!(number(&ledger["settlements"].as_array().map_or(0, Vec::len).into())? >= 2, "{ledger}");
    network.finish()
}

/// Leases taken, and receipts in the log.
fn leases_and_receipts(agent: &Agent, taken: u64) -> Result<()> {
    let log = agent.log()?;
    let receipts = log.entries().iter().filter(|entry| matches!(entry, Entry::Receipt(_))).count() as u64;
    ensure!(receipts == taken, "{taken} leases, {receipts} receipts");
    Ok(())
}

#[test]
fn an_agent_that_is_told_to_leave_ends_its_leases_and_exits_well() -> Result<()> {
    let mut network = Network::of(2, LONG_EPOCH_MS)?;
    let model = agents::model(&network.agents[0], 2, 64)?;
    agents::serve(&network.agents[0], &model, 2)?;
    for (place, by_signal) in [(1, false), (0, true)] {
        let status = wait_for("its stages", SOON, || {
            let status = network.agents[place].status()?;
            Ok((status["leases"] != json!([])).then_some(status))
        })?;
        let agent = &mut network.agents[place];
        let started = Instant::now();
        if by_signal {
            signal("TERM", agent.pid()?)?;
        } else {
            let said = run(&["down", "--data-dir", &agent.dir()])?;
            ensure!(said.code == 0 && said.out.contains("left"), "{said:?}");
        }
        let ended = agent.ended(Duration::from_secs(5))?;
        ensure!(ended.success(), "it ended badly: {ended}");
        eprintln!("left within {} ms", started.elapsed().as_millis());
        leases_and_receipts(agent, number(&status["leases_taken"])?)?;
        ensure!(!agent.data_dir.join("agent.json").exists(), "it left, and agent.json still points at it");
    }
    network.finish()
}

#[test]
fn a_bootstrap_with_another_key_is_refused_and_the_agent_lives() -> Result<()> {
    let mut network = Network::of(1, LONG_EPOCH_MS)?;
    let listen = network.agents[0].listen;
    // Some other key: the id of nobody here.
    let wrong = format!("{}@{listen}", "5a".repeat(31) + "50");
    let data_dir = network.folder.path().join("insistent");
    let genesis = network.genesis().to_owned();
    let insistent = Agent::start(data_dir, &genesis, &["--bootstrap", &wrong])?;
    network.agents.push(insistent);
    let insistent = &network.agents[1];
    wait_for("the refusal", SOON, || {
        let story = insistent.story();
        Ok((story.contains("refused") && story.contains(&listen.to_string())).then_some(()))
    })?;
    let status = insistent.status()?;
    ensure!(status["peers"] == json!([]), "it met the wrong agent: {status}");
    let reasons = status["reasons"].to_string();
    ensure!(reasons.contains("bootstrap"), "it does not say why it is alone: {reasons}");
    ensure!(network.agents[0].status()?["peers"] == json!([]), "the other took it for a peer");
    eprintln!("{}", insistent.story().lines().find(|line| line.contains("refused")).unwrap_or_default());
    network.finish()
}
