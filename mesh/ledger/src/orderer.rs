//! The protocol by which agents agree on blocks today: the coordinator orders, everybody checks.
//!
//! ```text
//! epoch ends ─> ClaimDue ─> OwnClaim ─> Submit/Nothing ─> (coordinator) block ─> Blocks ─> Settled
//!                                          Held/Refused <─┘     │
//! whoever lacks blocks:  Tip ─> Want ─> Blocks ─> WantClaims ─> Claims ─> Settled
//! ```
//! The shell feeds [`Orderer::handle`] with what happens and performs the outputs in order: what stands
//! after a [`Output::Persist`] may happen only once those bytes are durable. So a proposer that crashes
//! never shows a block it does not remember, and nobody reports a payment that a restart forgets.
//!
//! **This rule is interim, until a committee orders blocks.** Blocks are taken from the coordinator's
//! connection only (whoever signed them once: a newcomer cannot know who was coordinator when), and its
//! chain is the chain: a follower whose chain differs tells it so, and yields once the coordinator has
//! considered that. A new coordinator first hears the members and takes over what they have more, and
//! gives its own chain up only if more members hold another. So agents that can talk end with one chain.
//! The limits: while a network is parted, each part settles on its own, and when it heals the blocks of
//! one part are undone (claims of epochs that the other left open are settled anew). A lying coordinator
//! can leave claims out or undo blocks; it cannot mint more than the emission, pay unaccepted work, or
//! pay a lease twice. Nor does the ledger know who was rightfully coordinator when a lease was signed:
//! it believes any granter that stands by its own leases.
//!
//! Must never read a clock, never block, and never trust a message further than it was checked.

mod desk;
mod fetch;
mod held;
pub mod limits;
mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ed25519_dalek::SigningKey;
use skein_proto::genesis::Genesis;
use skein_proto::ids::{Digest, Epoch, Millis, NodeId};
use skein_proto::signed::{Malformed, Signed, encode};

use crate::chain::{Applied, BlockFault, State};
use crate::claim::Claim;
use crate::emission::{self, Amount};
use desk::Desk;
use fetch::Fetch;
use held::Held;
use limits::{
    CLAIMS_ASKED_MAX, CLOSING_MS, GRACE_MS_MAX, GRACE_MS_MIN, MEMBERS_MAX, OPEN_EPOCHS_MAX, REPEAT_MS_MAX,
    REPEAT_MS_MIN, SETTLEMENTS_KEPT_MAX,
};
use wire::{Message, Place, batch};

/// What happens to an orderer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Who is coordinator, as far as this agent knows (maybe itself), and which others are present.
    Role {
        /// The coordinator, if there is one.
        coordinator: Option<NodeId>,
        /// The other present members.
        members: BTreeSet<NodeId>,
    },
    /// A message from an authenticated peer.
    Message {
        /// Who sent it.
        from: NodeId,
        /// What it sent.
        bytes: Vec<u8>,
    },
    /// Time has passed. Wanted at least twice a second.
    Tick,
    /// The answer to [`Output::ClaimDue`]; giving it again replaces the claim while its epoch is open.
    OwnClaim {
        /// For which epoch.
        epoch: Epoch,
        /// The claim; none if there is nothing to claim.
        claim: Option<Signed<Claim>>,
    },
    /// A peer was connected, perhaps anew: what was sent before may be lost.
    PeerUp(NodeId),
}

/// What the shell must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this to a peer; below 1 MiB. May be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        bytes: Vec<u8>,
    },
    /// Append this to the ledger's file and make it durable before any output after it is performed.
    Persist(Vec<u8>),
    /// An epoch has ended: assemble the claim for it and answer with [`Input::OwnClaim`].
    ClaimDue {
        /// Which.
        epoch: Epoch,
    },
    /// A block was applied.
    Settled(Settlement),
    /// Something that the owner of the machine may want to read in the log.
    Note(String),
}

/// One applied block, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The settled epoch.
    pub epoch: Epoch,
    /// The block's height.
    pub height: u64,
    /// Who proposed it.
    pub proposer: NodeId,
    /// What was minted.
    pub minted: Amount,
    /// Who got how much.
    pub payouts: BTreeMap<NodeId, Amount>,
    /// What the epoch's emission is; always what was minted.
    pub emission: Amount,
}

/// Why a ledger's file cannot be used. Nothing was changed; it must be put right or moved away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenFault {
    /// A record is damaged and sound ones follow, so it was not a crash.
    #[error("record {index} of the ledger, at byte {offset}, is damaged: {why}")]
    Rotten {
        /// The record, from 0.
        index: usize,
        /// Where its frame begins.
        offset: usize,
        /// What is wrong.
        why: String,
    },
    /// A record is not one of ours.
    #[error("record {index} of the ledger: {fault}")]
    Malformed {
        /// The record, from 0.
        index: usize,
        /// What is wrong.
        fault: Malformed,
    },
    /// A block names a claim that does not stand before it.
    #[error("record {index} of the ledger is a block of which a claim is missing")]
    LostClaim {
        /// The record, from 0.
        index: usize,
    },
    /// A block is wrong.
    #[error("record {index} of the ledger: {fault}")]
    Block {
        /// The record, from 0.
        index: usize,
        /// Why.
        fault: Box<BlockFault>,
    },
    /// A rollback to a height that is not below.
    #[error("record {index} of the ledger rolls back to {height} from {at}")]
    Rollback {
        /// The record, from 0.
        index: usize,
        /// To which height.
        height: u64,
        /// The height before.
        at: u64,
    },
}

/// One agent's part in the protocol: see the module.
pub struct Orderer {
    key: SigningKey,
    node: NodeId,
    held: Held,
    role: Role,
    /// The other present members, with when each of them came.
    members: BTreeMap<NodeId, Millis>,
    fetch: Option<Fetch>,
    /// Own answers for closed epochs; kept after settlement, for the case that it is undone.
    own: BTreeMap<Epoch, Option<Signed<Claim>>>,
    /// When each claim was asked of the shell.
    due: BTreeMap<Epoch, Millis>,
    settlements: VecDeque<Settlement>,
    repeat_at: Millis,
}

/// What this agent is.
enum Role {
    /// Nobody orders.
    Alone,
    /// Another orders.
    Follower {
        coordinator: NodeId,
        /// Epochs for which the coordinator has, or has refused, our word.
        told: BTreeSet<Epoch>,
        /// The end of ours that it has decided about.
        considered: Option<Digest>,
    },
    /// This agent orders.
    Coordinator(Desk),
}

impl Orderer {
    /// Takes up the chain from the bytes of its file (none at first), verifying all of it. Also gives the
    /// number of bytes at the file's end that a crash left torn: the shell cuts them off before it appends.
    ///
    /// # Errors
    /// [`OpenFault`] when the file is damaged or wrong.
    pub fn open(genesis: Genesis, key: SigningKey, persisted_bytes: &[u8]) -> Result<(Self, u64), OpenFault> {
        let (held, torn, done) = Held::open(genesis, persisted_bytes)?;
        let node = NodeId(key.verifying_key().to_bytes());
        let mut orderer = Self {
            key,
            node,
            held,
            role: Role::Alone,
            members: BTreeMap::new(),
            fetch: None,
            own: BTreeMap::new(),
            due: BTreeMap::new(),
            settlements: VecDeque::new(),
            repeat_at: Millis(0),
        };
        for (height, applied) in (1..).zip(&done) {
            orderer.remember(height, applied);
        }
        Ok((orderer, torn))
    }

    /// Handles one input. Never blocks, never fails: what is wrong with an input becomes a note.
    pub fn handle(&mut self, now: Millis, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Role { coordinator, members } => self.on_role(now, coordinator, members, out),
            Input::Message { from, bytes } => match Message::read(&bytes) {
                Ok(message) => self.on_message(now, from, message, out),
                Err(fault) => {
                    out.push(Output::Note(format!("ignored a ledger message of {}: {fault}", from.short())));
                }
            },
            Input::Tick => {}
            Input::OwnClaim { epoch, claim } => self.on_own_claim(now, epoch, claim, out),
            Input::PeerUp(peer) => self.on_peer_up(now, peer, out),
        }
        self.advance(now, out);
    }

    /// Where the chain stands and what everybody owns.
    pub fn state(&self) -> &State {
        self.held.state()
    }

    /// The latest settlements, oldest first.
    pub fn settlements(&self) -> impl DoubleEndedIterator<Item = &Settlement> {
        self.settlements.iter()
    }

    /// The latest own claim that is not settled yet.
    pub fn pending_claim(&self) -> Option<&Signed<Claim>> {
        self.own.range(self.state().next_epoch..).rev().find_map(|(_, claim)| claim.as_ref())
    }

    fn on_role(
        &mut self,
        now: Millis,
        coordinator: Option<NodeId>,
        members: BTreeSet<NodeId>,
        out: &mut Vec<Output>,
    ) {
        let before = std::mem::take(&mut self.members);
        let others = members.into_iter().filter(|member| *member != self.node).take(MEMBERS_MAX);
        self.members = others.map(|member| (member, before.get(&member).copied().unwrap_or(now))).collect();
        let known = match &self.role {
            Role::Alone => None,
            Role::Follower { coordinator, .. } => Some(*coordinator),
            Role::Coordinator(_) => Some(self.node),
        };
        if coordinator == known {
            return;
        }
        self.abandon_fetch("another coordinator took over", out);
        self.role = match coordinator {
            None => Role::Alone,
            Some(node) if node == self.node => Role::Coordinator(Desk::new(now)),
            Some(coordinator) => Role::Follower { coordinator, told: BTreeSet::new(), considered: None },
        };
        self.repeat_at = now;
    }

    fn on_peer_up(&mut self, now: Millis, peer: NodeId, out: &mut Vec<Output>) {
        match &mut self.role {
            Role::Follower { coordinator, told, .. } if *coordinator == peer => {
                told.clear();
                self.repeat_at = now;
            }
            Role::Coordinator(_) => self.send_tip(peer, out),
            Role::Alone | Role::Follower { .. } => {}
        }
    }

    fn on_own_claim(
        &mut self,
        now: Millis,
        epoch: Epoch,
        claim: Option<Signed<Claim>>,
        out: &mut Vec<Output>,
    ) {
        let ours = |claim: &Signed<Claim>| {
            claim.signer() == self.node
                && claim.statement().node == self.node
                && claim.statement().epoch == epoch
        };
        if !claim.as_ref().is_none_or(ours) {
            out.push(Output::Note(format!("an own claim for epoch {epoch} names another node or epoch")));
            return;
        }
        if self.own.get(&epoch) == Some(&claim) {
            return;
        }
        if !self.open_epochs(now).contains(&epoch.0) {
            out.push(Output::Note(format!("epoch {epoch} can be claimed no more, or not yet")));
            return;
        }
        self.own.insert(epoch, claim);
        if let Role::Follower { told, .. } = &mut self.role {
            told.remove(&epoch);
        }
        self.tell(epoch, out);
    }

    fn on_message(&mut self, now: Millis, from: NodeId, message: Message, out: &mut Vec<Output>) {
        match message {
            Message::Tip { at, settled, considered } => self.on_tip(now, from, at, settled, considered, out),
            Message::Want { places } => {
                let blocks = batch(self.held.following(&places), limits::BLOCKS_SENT_MAX);
                send(from, &Message::Blocks { blocks }, out);
            }
            Message::WantClaims { digests } => {
                let claims = digests.iter().filter_map(|digest| self.held.claim(digest));
                send(from, &Message::Claims { claims: batch(claims, CLAIMS_ASKED_MAX) }, out);
            }
            Message::Blocks { blocks } => self.on_blocks(now, from, blocks, out),
            Message::Claims { claims } => self.on_claims(now, from, claims, out),
            Message::Submit { claim } => self.on_submit(now, from, claim, out),
            Message::Nothing { epoch } => self.on_nothing(now, from, epoch, out),
            Message::Held { epoch } => {
                self.told(from, epoch);
            }
            Message::Refused { epoch, why } => {
                if self.told(from, epoch) && self.own.get(&epoch).is_some_and(Option::is_some) {
                    let why: String = why.chars().filter(|letter| !letter.is_control()).collect();
                    out.push(Output::Note(format!(
                        "the coordinator {} refused the claim for epoch {epoch}: {why}",
                        from.short()
                    )));
                }
            }
        }
    }

    /// Notes that the coordinator has our word; says whether that is news from the coordinator.
    fn told(&mut self, from: NodeId, epoch: Epoch) -> bool {
        match &mut self.role {
            Role::Follower { coordinator, told, .. } if *coordinator == from => {
                self.own.contains_key(&epoch) && told.insert(epoch)
            }
            Role::Alone | Role::Follower { .. } | Role::Coordinator(_) => false,
        }
    }

    /// A tip from a member to the coordinator, or from the coordinator to a follower; others are no matter.
    fn on_tip(
        &mut self,
        now: Millis,
        from: NodeId,
        at: Place,
        settled: bool,
        considered: Option<Digest>,
        out: &mut Vec<Output>,
    ) {
        let end = self.held.end();
        match &mut self.role {
            Role::Alone => {}
            Role::Coordinator(desk) => {
                if self.members.contains_key(&from) {
                    desk.tips.insert(from, at);
                    if at != end && desk.settled {
                        self.send_tip(from, out);
                    }
                }
            }
            Role::Follower { coordinator, .. } if *coordinator != from => {}
            Role::Follower { considered: last, .. } => {
                *last = considered;
                if !settled {
                    self.send_tip(from, out);
                } else if self.held.goes_through(at) {
                    if at != end && considered == Some(end.tip) {
                        self.roll_back(at.height, out);
                    } else if at != end {
                        self.send_tip(from, out);
                    }
                } else {
                    self.start_fetch(now, from, at, out);
                }
            }
        }
    }

    /// What is due whatever the input was.
    fn advance(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.ask_for_claims(now, out);
        self.advance_fetch(now, out);
        self.advance_desk(now, out);
        if now < self.repeat_at {
            return;
        }
        self.repeat_at = now.plus(self.repeat_ms());
        match &self.role {
            Role::Alone => {}
            Role::Follower { coordinator, .. } => {
                self.send_tip(*coordinator, out);
                for epoch in self.open_epochs(now) {
                    self.tell(Epoch(epoch), out);
                }
            }
            Role::Coordinator(_) => {
                for member in self.members.keys() {
                    self.send_tip(*member, out);
                }
            }
        }
    }

    /// Asks the shell for own claims of epochs that have ended; again if it did not answer.
    fn ask_for_claims(&mut self, now: Millis, out: &mut Vec<Output>) {
        let oldest = Epoch(self.genesis().epoch_at(now).0.saturating_sub(OPEN_EPOCHS_MAX));
        self.own = self.own.split_off(&oldest);
        self.due = self.due.split_off(&oldest);
        for epoch in self.open_epochs(now).map(Epoch) {
            let asked = self.due.get(&epoch).is_some_and(|at| now.since(*at) < self.grace_ms());
            if !asked && !self.own.contains_key(&epoch) {
                self.due.insert(epoch, now);
                out.push(Output::ClaimDue { epoch });
            }
        }
    }

    /// Tells the coordinator our word for `epoch`, unless it has it.
    fn tell(&self, epoch: Epoch, out: &mut Vec<Output>) {
        let Role::Follower { coordinator, told, .. } = &self.role else { return };
        if told.contains(&epoch) || epoch < self.state().next_epoch {
            return;
        }
        match self.own.get(&epoch) {
            Some(Some(claim)) => {
                send(*coordinator, &Message::Submit { claim: claim.envelope().clone() }, out);
            }
            Some(None) => send(*coordinator, &Message::Nothing { epoch }, out),
            None => {}
        }
    }

    /// Tells `to` where our chain ends.
    fn send_tip(&self, to: NodeId, out: &mut Vec<Output>) {
        let (settled, considered) = match &self.role {
            Role::Coordinator(desk) => (desk.settled, desk.considered(&self.held, to)),
            Role::Alone | Role::Follower { .. } => (false, None),
        };
        send(to, &Message::Tip { at: self.held.end(), settled, considered }, out);
    }

    /// Forgets the blocks above `height`.
    fn roll_back(&mut self, height: u64, out: &mut Vec<Output>) {
        let from = self.held.end().height;
        match self.held.roll_back(height) {
            Ok(bytes) => {
                out.push(Output::Persist(bytes));
                out.push(Output::Note(format!(
                    "blocks {} to {from} are undone: the chain forked",
                    height + 1
                )));
                self.settlements.retain(|settlement| settlement.height <= height);
                if let Role::Follower { told, .. } = &mut self.role {
                    told.clear();
                }
            }
            Err(fault) => out.push(Output::Note(format!("cannot roll back to block {height}: {fault}"))),
        }
    }

    /// Reports a block that was just applied and whose bytes are `bytes`.
    fn report(&mut self, applied: &Applied, bytes: Vec<u8>, before: Epoch, out: &mut Vec<Output>) {
        out.push(Output::Persist(bytes));
        let settlement = self.remember(self.held.end().height, applied);
        out.push(Output::Settled(settlement));
        let paid = applied.claims.iter().any(|claim| claim.node == self.node);
        for (epoch, claim) in self.own.range(before..=applied.epoch) {
            if claim.is_some() && !(paid && *epoch == applied.epoch) {
                out.push(Output::Note(format!(
                    "the claim for epoch {epoch} was not paid: {} settled epoch {} without it",
                    applied.proposer.short(),
                    applied.epoch
                )));
            }
        }
    }

    fn remember(&mut self, height: u64, applied: &Applied) -> Settlement {
        let settlement = Settlement {
            epoch: applied.epoch,
            height,
            proposer: applied.proposer,
            minted: applied.minted,
            payouts: applied.payouts.clone(),
            emission: emission::of_epoch(applied.epoch),
        };
        if self.settlements.len() >= SETTLEMENTS_KEPT_MAX {
            self.settlements.pop_front();
        }
        self.settlements.push_back(settlement.clone());
        settlement
    }

    /// The epochs that have ended, long enough ago for late acceptances, and are not settled or skipped.
    fn open_epochs(&self, now: Millis) -> std::ops::Range<u64> {
        let settling = Millis(now.0.saturating_sub(CLOSING_MS));
        let current = self.genesis().epoch_at(settling).0;
        self.state().next_epoch.0.max(current.saturating_sub(OPEN_EPOCHS_MAX))..current
    }

    /// When `epoch` has ended and may be claimed.
    fn closing(&self, epoch: Epoch) -> Millis {
        self.genesis().epoch_start(Epoch(epoch.0.saturating_add(1))).plus(CLOSING_MS)
    }

    fn genesis(&self) -> &Genesis {
        self.held.genesis()
    }

    fn grace_ms(&self) -> u64 {
        (self.genesis().epoch_ms / 4).clamp(GRACE_MS_MIN, GRACE_MS_MAX)
    }

    fn repeat_ms(&self) -> u64 {
        (self.genesis().epoch_ms / 16).clamp(REPEAT_MS_MIN, REPEAT_MS_MAX)
    }
}

fn send(to: NodeId, message: &Message, out: &mut Vec<Output>) {
    out.push(Output::Send { to, bytes: encode(message) });
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
