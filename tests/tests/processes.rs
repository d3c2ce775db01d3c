//! Real processes on loopback that are killed, stopped and started again: no job and no pay is lost.
//!
//! Every fault is one that an owner's machine will suffer. Must never look inside an agent: what it
//! shows at its API, says on stderr and leaves on disk is all there is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skein_ledger::entry::Entry;
use skein_proto::ids::Digest;
use skein_proto::job::Shard;
use skein_proto::lease::End;
use skein_tests::agents::{self, Agent, Network, PATIENCE, SOON, TEXT, training, wait_for};

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

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

#[test]
fn a_member_killed_while_training_costs_nothing_that_was_acknowledged() -> Result<()> {
    let mut network = Network::of(3, LONG_EPOCH_MS)?;
    let coordinator = network.coordinator()?;
    let owner = usize::from(coordinator == 0);
    let victim = (0..3).find(|place| ![coordinator, owner].contains(place)).context("no third agent")?;
    let data = network.agents[owner].put(&TEXT[..40_000])?;
    let job = network.agents[owner].submit("train", training(&data, 8, 20))?;
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
    let again = network.agents[owner].submit("again", training(&data, 2, 5))?;
    network.agents[owner].job_done(&again)?;
    let log = wait_for("the acceptances", SOON, || {
        let log = network.agents[victim].log()?;
        Ok((log.size() >= on_disk + 4).then_some(log))
    })?;
    ensure!(log.size() > on_disk, "the agent that came back was not used");
    network.finish()
}
