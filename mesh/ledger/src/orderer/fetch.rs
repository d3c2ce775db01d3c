//! Taking over blocks that another holds: one peer at a time, in bounded pieces, block by block.
//!
//! Followers take them from the coordinator, a coordinator from its members. Where the other chain forks
//! from ours, ours is undone first and put back if the other turns out wrong or too short. Must never
//! apply a block of an epoch that is not over.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use skein_proto::ids::{Digest, Epoch, Millis, NodeId};
use skein_proto::signed::Envelope;

use super::limits::{BLOCKS_SENT_MAX, CLAIMS_ASKED_MAX, CLOCK_SKEW_MS, QUESTIONS_MAX};
use super::wire::{Message, Place};
use super::{Orderer, Output, Role, send};
use crate::block::Block;
use crate::claim::Claim;

/// Blocks under way from one peer.
pub(super) struct Fetch {
    peer: NodeId,
    /// Where the peer's chain ended when this began.
    target: Place,
    /// Blocks that follow our chain, each the one before.
    queue: VecDeque<Envelope<Block>>,
    /// Claims of the first block in the queue.
    claims: BTreeMap<Digest, Envelope<Claim>>,
    /// What was undone for this, until the other chain is complete.
    undone: Option<Undone>,
    ask_at: Millis,
    questions: u32,
}

/// The part of our chain that another is to replace.
struct Undone {
    common: u64,
    blocks: Vec<(Envelope<Block>, Vec<Envelope<Claim>>)>,
}

#[cfg(test)]
impl Fetch {
    /// Whether it holds no more than a peer may make it hold.
    pub(super) fn is_bounded(&self) -> bool {
        self.queue.len() <= 2 * BLOCKS_SENT_MAX && self.claims.len() <= crate::block::BLOCK_CLAIMS_MAX
    }
}

impl Orderer {
    /// Begins to take over `peer`'s chain up to `target`, unless a fetch is under way.
    pub(super) fn start_fetch(&mut self, now: Millis, peer: NodeId, target: Place, out: &mut Vec<Output>) {
        if self.fetch.is_none() {
            self.fetch = Some(Fetch {
                peer,
                target,
                queue: VecDeque::new(),
                claims: BTreeMap::new(),
                undone: None,
                ask_at: now,
                questions: 0,
            });
            self.advance_fetch(now, out);
        }
    }

    /// Asks again what was not answered, and gives up a peer that does not answer.
    pub(super) fn advance_fetch(&mut self, now: Millis, out: &mut Vec<Output>) {
        let repeat_ms = self.repeat_ms();
        let Some(fetch) = self.fetch.as_mut().filter(|fetch| now >= fetch.ask_at) else { return };
        if fetch.questions >= QUESTIONS_MAX {
            return self.abandon_fetch("it does not answer", out);
        }
        fetch.questions += 1;
        fetch.ask_at = now.plus(repeat_ms);
        let peer = fetch.peer;
        let message = match fetch.queue.front() {
            None => Message::Want { places: self.held.places() },
            Some(block) => {
                let named = block.unverified().claims.iter();
                let missing = named.filter(|claim| !fetch.claims.contains_key(*claim));
                Message::WantClaims { digests: missing.take(CLAIMS_ASKED_MAX).copied().collect() }
            }
        };
        send(peer, &message, out);
    }

    /// Gives up the fetch under way, if any, and puts back what was undone for it.
    pub(super) fn abandon_fetch(&mut self, why: &str, out: &mut Vec<Output>) {
        let Some(fetch) = self.fetch.take() else { return };
        out.push(Output::Note(format!("stopped taking over blocks of {}: {why}", fetch.peer.short())));
        if let Role::Coordinator(desk) = &mut self.role {
            desk.refuse(fetch.target);
        }
        let Some(undone) = fetch.undone else { return };
        let ours = undone.common + undone.blocks.len() as u64;
        if self.held.end().height >= ours {
            return;
        }
        if self.held.end().height > undone.common {
            self.roll_back(undone.common, out);
        }
        for (block, claims) in undone.blocks {
            if !self.take(&block, claims, out) {
                return;
            }
        }
    }

    /// Blocks: an answer, or what the coordinator has just settled.
    pub(super) fn on_blocks(
        &mut self,
        now: Millis,
        from: NodeId,
        blocks: Vec<Envelope<Block>>,
        out: &mut Vec<Output>,
    ) {
        let ordered = matches!(&self.role, Role::Follower { coordinator, .. } if *coordinator == from);
        if let (None, true, Some(last)) = (&self.fetch, ordered, blocks.last()) {
            let target = place(last);
            if self.held.goes_through(target) {
                return;
            }
            self.start_fetch(now, from, target, out);
        }
        if self.fetch.as_ref().is_none_or(|fetch| fetch.peer != from) {
            return;
        }
        let linked = blocks.windows(2).all(|pair| {
            let [first, second] = pair else { return false };
            follows(second, place(first))
        });
        if !linked {
            return self.abandon_fetch("its blocks do not follow each other", out);
        }
        let mut blocks: VecDeque<_> = blocks.into();
        while blocks.front().is_some_and(|block| self.held.goes_through(place(block))) {
            blocks.pop_front();
        }
        let Some(first) = blocks.front() else {
            return self.end_of_chain(out);
        };
        let Some(fetch) = &mut self.fetch else { return };
        let end = fetch.queue.back().map_or(self.held.end(), place);
        if follows(first, end) {
            let room = (2 * BLOCKS_SENT_MAX).saturating_sub(fetch.queue.len());
            fetch.queue.extend(blocks.into_iter().take(room));
        } else if fetch.queue.is_empty() {
            let Some(common) = self.common(first) else { return };
            if !self.yields(common, &blocks, out) {
                return;
            }
            self.undo(common, out);
            if let Some(fetch) = &mut self.fetch {
                fetch.queue.extend(blocks);
            }
        }
        self.pump(now, out);
    }

    /// Claims that were asked for.
    pub(super) fn on_claims(
        &mut self,
        now: Millis,
        from: NodeId,
        claims: Vec<Envelope<Claim>>,
        out: &mut Vec<Output>,
    ) {
        let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.peer == from) else { return };
        let Some(first) = fetch.queue.front() else { return };
        let before = fetch.claims.len();
        for claim in claims {
            let digest = claim.digest();
            if first.unverified().claims.contains(&digest) {
                fetch.claims.insert(digest, claim);
            }
        }
        if fetch.claims.len() > before {
            self.pump(now, out);
        }
    }

    /// Applies what is complete, and asks for what is not.
    fn pump(&mut self, now: Millis, out: &mut Vec<Output>) {
        while let Some(fetch) = &mut self.fetch
            && let Some(block) = fetch.queue.front()
        {
            let named = &block.unverified().claims;
            let Some(claims) = named.iter().map(|claim| fetch.claims.get(claim).cloned()).collect() else {
                break;
            };
            let block = block.clone();
            let epoch = block.unverified().epoch;
            let over = self.held.genesis().epoch_start(Epoch(epoch.0.saturating_add(1)));
            if now.plus(CLOCK_SKEW_MS) < over {
                return self
                    .abandon_fetch(&format!("its block settles epoch {epoch}, which is not over"), out);
            }
            if !self.take(&block, claims, out) {
                return self.abandon_fetch("its block is wrong", out);
            }
            if let Some(fetch) = &mut self.fetch {
                fetch.queue.pop_front();
                fetch.claims.clear();
            }
        }
        let end = self.held.end();
        if self.fetch.as_ref().is_some_and(|fetch| fetch.queue.is_empty() && fetch.target == end) {
            return self.end_of_chain(out);
        }
        if let Some(fetch) = &mut self.fetch {
            fetch.questions = 0;
            fetch.ask_at = now;
        }
        self.advance_fetch(now, out);
    }

    /// The peer has no more blocks.
    fn end_of_chain(&mut self, out: &mut Vec<Output>) {
        let Some(fetch) = &mut self.fetch else { return };
        if !fetch.queue.is_empty() {
            return;
        }
        if !self.held.goes_through(fetch.target) {
            return self.abandon_fetch("it has no such blocks", out);
        }
        self.fetch = None;
        match &self.role {
            Role::Alone => {}
            Role::Follower { coordinator, .. } => self.send_tip(*coordinator, out),
            Role::Coordinator(_) => {
                for member in self.members.keys() {
                    self.send_tip(*member, out);
                }
            }
        }
    }

    /// Applies one block and reports it; a note says why if it is not applied.
    fn take(&mut self, block: &Envelope<Block>, claims: Vec<Envelope<Claim>>, out: &mut Vec<Output>) -> bool {
        let before = self.held.state().next_epoch;
        match self.held.apply(block, claims) {
            Ok((applied, bytes)) => {
                self.report(&applied, bytes, before, out);
                true
            }
            Err(fault) => {
                let (height, signer) = (block.unverified().height, block.signer());
                out.push(Output::Note(format!("refused block {height} of {}: {fault}", signer.short())));
                false
            }
        }
    }

    /// The height of our block that `first` follows, if it follows one.
    fn common(&self, first: &Envelope<Block>) -> Option<u64> {
        let block = first.unverified();
        let common = Place { height: block.height.checked_sub(1)?, tip: block.previous };
        self.held.goes_through(common).then_some(common.height)
    }

    /// Whether our chain above `common` gives way to `blocks`; if not, the fetch is over.
    fn yields(&mut self, common: u64, blocks: &VecDeque<Envelope<Block>>, out: &mut Vec<Output>) -> bool {
        let end = self.held.end();
        match &mut self.role {
            Role::Alone => false,
            Role::Follower { considered, coordinator, .. } => {
                // The coordinator must know what we would undo: it may want to take it over.
                let knows = *considered == Some(end.tip);
                let coordinator = *coordinator;
                if !knows {
                    self.fetch = None;
                    self.send_tip(coordinator, out);
                }
                knows
            }
            Role::Coordinator(desk) => {
                let length = common + blocks.len() as u64;
                let wins = match desk.support(&self.held, common) {
                    Ordering::Greater => true,
                    Ordering::Less => false,
                    // Longer, as far as this one answer shows; else any rule will do that all share.
                    Ordering::Equal if length == end.height => {
                        blocks.back().is_some_and(|last| last.digest() < end.tip)
                    }
                    Ordering::Equal => length > end.height,
                };
                if !wins {
                    self.abandon_fetch("its chain forks from ours, which more members hold", out);
                }
                wins
            }
        }
    }

    /// Undoes our chain above `common`, keeping it at hand.
    fn undo(&mut self, common: u64, out: &mut Vec<Output>) {
        let blocks = self.held.above(common);
        self.roll_back(common, out);
        if let Some(fetch) = &mut self.fetch {
            // Of a chain undone twice in one fetch, the first part is what was ours.
            fetch.undone.get_or_insert(Undone { common, blocks });
        }
    }
}

fn place(block: &Envelope<Block>) -> Place {
    Place { height: block.unverified().height, tip: block.digest() }
}

/// Whether `block` says that it comes after `end`.
fn follows(block: &Envelope<Block>, end: Place) -> bool {
    let said = block.unverified();
    said.previous == end.tip && end.height.checked_add(1) == Some(said.height)
}
