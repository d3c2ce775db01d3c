//! The ledger's shell: keeps its file, gives it time, carries its messages, assembles this agent's claims.
//!
//! Blocks are durable before anything that rests on them is sent. Decides nothing about money.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ed25519_dalek::SigningKey;
use skein_ledger::claim;
use skein_ledger::emission::{self, Amount};
use skein_ledger::log::Log;
use skein_ledger::orderer::{self, Input, Orderer, Settlement};
use skein_proto::genesis::Genesis;
use skein_proto::ids::{Epoch, Millis, NodeId};

use super::journal::{Journal, disk_trouble, open_cut, read_or_empty};
use super::status::{ClaimState, Earned, LedgerState, Payout, Settled};

/// What the treasury wants done.
pub(crate) enum Output {
    /// Send to one agent.
    Send(NodeId, Vec<u8>),
    /// An epoch closed: claim it.
    ClaimDue(Epoch),
}

/// The ledger as this agent keeps it.
pub(crate) struct Treasury {
    path: PathBuf,
    file: File,
    genesis: Genesis,
    key: SigningKey,
    me: NodeId,
    orderer: Orderer,
    role: (Option<NodeId>, BTreeSet<NodeId>),
}

impl Treasury {
    /// Opens the chain of blocks, or begins it.
    ///
    /// # Errors
    /// When the file was damaged or cannot be read or written; it is left as it is.
    pub(crate) fn open(data_dir: &Path, genesis: &Genesis, key: SigningKey) -> Result<Self> {
        let path = data_dir.join("chain");
        let bytes = read_or_empty(&path)?;
        let (orderer, torn) = Orderer::open(genesis.clone(), key.clone(), &bytes).with_context(|| {
            format!(
                "the chain of blocks {} cannot be used; it was left as it is\nhint: restore it from a copy, or \
                 move it away: the other agents of the network hold it too",
                path.display()
            )
        })?;
        let file = open_cut(&path, (bytes.len() as u64).saturating_sub(torn))?;
        let me = NodeId(key.verifying_key().to_bytes());
        Ok(Self { path, file, genesis: genesis.clone(), key, me, orderer, role: (None, BTreeSet::new()) })
    }

    /// Lets time pass, under the present coordinator and members.
    ///
    /// # Errors
    /// When a block cannot be written.
    pub(crate) fn tick(
        &mut self,
        now: Millis,
        coordinator: Option<NodeId>,
        members: BTreeSet<NodeId>,
    ) -> Result<Vec<Output>> {
        let mut out = Vec::new();
        if self.role != (coordinator, members.clone()) {
            self.role = (coordinator, members.clone());
            self.orderer.handle(now, Input::Role { coordinator, members }, &mut out);
        }
        self.orderer.handle(now, Input::Tick, &mut out);
        self.perform(out)
    }

    /// An agent connected.
    ///
    /// # Errors
    /// When a block cannot be written.
    pub(crate) fn peer_up(&mut self, now: Millis, node: NodeId) -> Result<Vec<Output>> {
        let mut out = Vec::new();
        self.orderer.handle(now, Input::PeerUp(node), &mut out);
        self.perform(out)
    }

    /// A ledger message arrived.
    ///
    /// # Errors
    /// When a block cannot be written.
    pub(crate) fn message(&mut self, now: Millis, from: NodeId, bytes: Vec<u8>) -> Result<Vec<Output>> {
        let mut out = Vec::new();
        self.orderer.handle(now, Input::Message { from, bytes }, &mut out);
        self.perform(out)
    }

    /// Claims `epoch` for what the log holds of it.
    ///
    /// # Errors
    /// When a block cannot be written.
    pub(crate) fn claim(&mut self, now: Millis, epoch: Epoch, log: &Log) -> Result<Vec<Output>> {
        let claim = claim::assemble(log, epoch, &self.genesis, &self.key);
        if let Some(claim) = &claim {
            tracing::info!(epoch = epoch.0, receipts = claim.statement().work.len(), "claiming");
        }
        let mut out = Vec::new();
        self.orderer.handle(now, Input::OwnClaim { epoch, claim }, &mut out);
        self.perform(out)
    }

    /// What `skein claim` asks for: the last closed epoch.
    ///
    /// # Errors
    /// When a block cannot be written.
    pub(crate) fn claim_now(
        &mut self,
        now: Millis,
        dry_run: bool,
        journal: &Journal,
    ) -> Result<(ClaimState, Vec<Output>)> {
        let Some(last) = self.genesis.epoch_at(now).0.checked_sub(1) else {
            let message = "the network's first epoch has not closed yet".to_owned();
            let state = ClaimState {
                epoch: Epoch(0),
                units: journal.accepted(Epoch(0)),
                receipts: 0,
                sent: false,
                settled: None,
                message,
            };
            return Ok((state, Vec::new()));
        };
        let epoch = Epoch(last);
        let settled = self.settlements().into_iter().find(|settled| settled.epoch == epoch);
        let claim = claim::assemble(journal.log(), epoch, &self.genesis, &self.key);
        let receipts = claim.as_ref().map_or(0, |claim| claim.statement().work.len());
        let open = settled.is_none() && self.orderer.state().next_epoch <= epoch;
        let send = !dry_run && open && receipts > 0;
        let outputs = if send { self.claim(now, epoch, journal.log())? } else { Vec::new() };
        let message = match (&settled, receipts) {
            (Some(settled), _) => match settled.claims.iter().find(|payout| payout.node == self.me) {
                Some(payout) => format!("epoch {last} is settled: this agent earned {}", payout.amount),
                None => format!("epoch {last} is settled: this agent had no part in it"),
            },
            (None, 0) => format!("nothing to claim: no work of this agent was accepted in epoch {last}"),
            (None, _) if !open => {
                format!("epoch {last} is closed for claims: a later one is settled already")
            }
            (None, _) if dry_run => format!("would claim {receipts} receipts of epoch {last}"),
            (None, _) => format!("claimed {receipts} receipts of epoch {last}"),
        };
        let units = journal.accepted(epoch);
        Ok((ClaimState { epoch, units, receipts, sent: send, settled, message }, outputs))
    }

    /// The ledger in numbers.
    pub(crate) fn state(&self, now: Millis, journal: &Journal) -> LedgerState {
        let state = self.orderer.state();
        let balance = state.balances.get(&self.me).copied().unwrap_or_default();
        let epoch = self.genesis.epoch_at(now);
        LedgerState {
            epoch,
            height: state.height,
            state: state.digest(),
            balance: balance.to_string(),
            balance_base_units: balance,
            accepted_units: journal.accepted(epoch),
            settlements: self.settlements(),
        }
    }

    /// What this agent earned in epochs that ended after `since`.
    pub(crate) fn earned_since(&self, since: Millis) -> Amount {
        let earnings = self.earnings();
        let late = earnings.iter().filter(|earned| earned.started_at_ms + self.genesis.epoch_ms > since.0);
        Amount(late.fold(0, |sum, earned| earned.amount_base_units.0.saturating_add(sum)))
    }

    /// What this agent earned, epoch by epoch, oldest first.
    pub(crate) fn earnings(&self) -> Vec<Earned> {
        let mut earnings: Vec<Earned> = self
            .orderer
            .settlements()
            .map(|settlement| {
                let amount = settlement.payouts.get(&self.me).copied().unwrap_or_default();
                let began = settlement.epoch.0.saturating_mul(self.genesis.epoch_ms);
                Earned {
                    epoch: settlement.epoch,
                    started_at_ms: self.genesis.started_at_ms.saturating_add(began),
                    amount: amount.to_string(),
                    amount_base_units: amount,
                }
            })
            .collect();
        earnings.sort_by_key(|earned| earned.epoch);
        earnings
    }

    fn settlements(&self) -> Vec<Settled> {
        self.orderer.settlements().map(settled).collect()
    }

    fn perform(&mut self, outputs: Vec<orderer::Output>) -> Result<Vec<Output>> {
        let mut wanted = Vec::new();
        for output in outputs {
            match output {
                orderer::Output::Send { to, bytes } => wanted.push(Output::Send(to, bytes)),
                orderer::Output::Persist(bytes) => self.persist(&bytes)?,
                orderer::Output::ClaimDue { epoch } => wanted.push(Output::ClaimDue(epoch)),
                orderer::Output::Settled(settlement) => {
                    let mine = settlement.payouts.get(&self.me).copied().unwrap_or_default();
                    tracing::info!(epoch = settlement.epoch.0, minted = %settlement.minted, earned = %mine, "epoch settled");
                }
                orderer::Output::Note(text) => tracing::info!("{text}"),
            }
        }
        Ok(wanted)
    }

    fn persist(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        written.map_err(|error| disk_trouble(&self.path, &error))
    }
}

fn settled(settlement: &Settlement) -> Settled {
    Settled {
        epoch: settlement.epoch,
        height: settlement.height,
        emission: emission::of_epoch(settlement.epoch),
        minted: settlement.minted,
        claims: settlement.payouts.iter().map(|(&node, &amount)| Payout { node, amount }).collect(),
    }
}
