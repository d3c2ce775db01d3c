//! The coordinator's part: hearing the members, collecting their claims, proposing blocks.
//!
//! An epoch is settled once every present member has answered, or had its time to; if nobody claims,
//! there is no block. Epochs are settled in order, so an earlier one is not closed by a later one while
//! somebody may still answer. Must never propose before the members were heard: see the parent module.

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::ids::{Digest, Epoch, Millis, NodeId};
use skein_proto::signed::Envelope;

use super::held::Held;
use super::limits::REFUSED_TIPS_MAX;
use super::wire::{Message, Place};
use super::{Orderer, Output, Role, send};
use crate::claim::{self, Claim};

/// Times the grace that an epoch is held up at most by members that come and go.
const GRACES_MAX: u64 = 4;

/// What a coordinator knows beyond its chain.
pub(super) struct Desk {
    /// When this agent became coordinator.
    since: Millis,
    /// Whether the members were heard, so that this chain is the chain.
    pub(super) settled: bool,
    /// Where each member's chain ends.
    pub(super) tips: BTreeMap<NodeId, Place>,
    /// Ends of members' chains that were not taken over.
    refused: BTreeSet<Place>,
    /// Each member's word for each open epoch.
    answers: BTreeMap<Epoch, BTreeMap<NodeId, Option<Envelope<Claim>>>>,
}

impl Desk {
    pub(super) fn new(now: Millis) -> Self {
        Self {
            since: now,
            settled: false,
            tips: BTreeMap::new(),
            refused: BTreeSet::new(),
            answers: BTreeMap::new(),
        }
    }

    /// The end of `member`'s chain, if it was decided about.
    pub(super) fn considered(&self, held: &Held, member: NodeId) -> Option<Digest> {
        let place = self.tips.get(&member)?;
        self.decided(held, *place).then_some(place.tip)
    }

    pub(super) fn refuse(&mut self, place: Place) {
        if self.refused.len() >= REFUSED_TIPS_MAX {
            self.refused.pop_first();
        }
        self.refused.insert(place);
    }

    /// Whether as many members hold another chain than ours beyond height `common`, or more: compares
    /// them with those that hold ours, this agent included.
    pub(super) fn support(&self, held: &Held, common: u64) -> std::cmp::Ordering {
        let ours = 1 + self.tips.values().filter(|at| at.height > common && held.goes_through(**at)).count();
        let theirs = self.tips.values().filter(|at| !self.decided(held, **at)).count();
        theirs.cmp(&ours)
    }

    fn decided(&self, held: &Held, place: Place) -> bool {
        held.goes_through(place) || self.refused.contains(&place)
    }
}

impl Orderer {
    /// A member's claim.
    pub(super) fn on_submit(
        &mut self,
        now: Millis,
        from: NodeId,
        claim: Envelope<Claim>,
        out: &mut Vec<Output>,
    ) {
        let epoch = claim.unverified().epoch;
        if !self.hears(now, from, epoch) {
            return;
        }
        if let Some(block) = self.held.settled(epoch)
            && block.claims.contains(&claim.digest())
        {
            return self.send_tip(from, out);
        }
        if let Err(why) = self.acceptable(now, from, &claim) {
            out.push(Output::Note(format!("refused {}'s claim for epoch {epoch}: {why}", from.short())));
            return send(from, &Message::refused(epoch, &why), out);
        }
        self.answer(from, epoch, Some(claim), out);
    }

    /// A member's word that it has nothing to claim.
    pub(super) fn on_nothing(&mut self, now: Millis, from: NodeId, epoch: Epoch, out: &mut Vec<Output>) {
        if self.hears(now, from, epoch) && self.open_epochs(now).contains(&epoch.0) {
            self.answer(from, epoch, None, out);
        }
    }

    /// Brings a coordinator's work forward as far as it goes now.
    pub(super) fn advance_desk(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Role::Coordinator(desk) = &mut self.role else { return };
        desk.tips.retain(|member, _| self.members.contains_key(member));
        desk.answers = desk.answers.split_off(&self.held.state().next_epoch);
        let foreign = desk.tips.iter().find(|(_, at)| !desk.decided(&self.held, **at));
        if let (Some((member, at)), None) = (foreign, &self.fetch) {
            let (member, at) = (*member, *at);
            self.start_fetch(now, member, at, out);
        }
        let grace_ms = self.grace_ms();
        let Role::Coordinator(desk) = &mut self.role else { return };
        if self.fetch.is_some() {
            return;
        }
        if !desk.settled {
            let heard = self.members.keys().all(|member| desk.tips.contains_key(member));
            if !heard && now < desk.since.plus(grace_ms) {
                return;
            }
            desk.settled = true;
            self.repeat_at = now;
        }
        for epoch in self.open_epochs(now).map(Epoch) {
            if self.waits(now, epoch) {
                break;
            }
            self.settle(epoch, out);
        }
    }

    /// Whether somebody present may still answer for `epoch`.
    fn waits(&self, now: Millis, epoch: Epoch) -> bool {
        let Role::Coordinator(desk) = &self.role else { return true };
        let grace_ms = self.grace_ms();
        let begun = self.closing(epoch).max(desk.since);
        if now >= begun.plus(GRACES_MAX * grace_ms) {
            return false;
        }
        if !self.own.contains_key(&epoch) && now < begun.plus(grace_ms) {
            return true;
        }
        self.members.iter().any(|(member, came)| {
            let answered = desk.answers.get(&epoch).is_some_and(|answers| answers.contains_key(member));
            !answered && now < begun.max(*came).plus(grace_ms)
        })
    }

    /// Settles `epoch` with the claims at hand, if there are any.
    fn settle(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        let Role::Coordinator(desk) = &self.role else { return };
        let others = desk.answers.get(&epoch).into_iter().flat_map(BTreeMap::values).flatten();
        let own = self.own.get(&epoch).into_iter().flatten().map(|claim| claim.envelope());
        let claims: Vec<Envelope<Claim>> = own.chain(others).cloned().collect();
        if claims.is_empty() {
            return;
        }
        let Some(proposal) = self.held.propose(epoch, &claims, &self.key) else { return };
        let block = proposal.block.into_envelope();
        let before = self.held.state().next_epoch;
        match self.held.apply(&block, proposal.claims) {
            Ok((applied, bytes)) => {
                self.report(&applied, bytes, before, out);
                for member in self.members.keys() {
                    send(*member, &Message::Blocks { blocks: vec![block.clone()] }, out);
                }
            }
            Err(fault) => out.push(Output::Note(format!("cannot settle epoch {epoch}: {fault}"))),
        }
    }

    /// Whether `from` is a member of which this coordinator wants to hear about `epoch` now. One that is
    /// not heard says it again later.
    fn hears(&self, now: Millis, from: NodeId, epoch: Epoch) -> bool {
        let Role::Coordinator(desk) = &self.role else { return false };
        desk.settled && self.members.contains_key(&from) && epoch.0 < self.open_epochs(now).end
    }

    /// Whether the claim can be settled here, or why not.
    fn acceptable(&self, now: Millis, from: NodeId, claim: &Envelope<Claim>) -> Result<(), String> {
        let said = claim.unverified();
        if said.node != from {
            return Err(format!("it is the claim of {}", said.node.short()));
        }
        if let Some(block) = self.held.settled(said.epoch) {
            return Err(format!("epoch {} is settled already, by block {}", said.epoch, block.height));
        }
        let open = self.open_epochs(now);
        if !open.contains(&said.epoch.0) {
            return Err(format!("epoch {} is closed; the first open one is {}", said.epoch, open.start));
        }
        let checked = claim::check(claim, self.genesis()).map_err(|fault| fault.to_string())?;
        self.held.state().payable(&checked, said.epoch).map_err(|fault| fault.to_string())
    }

    fn answer(&mut self, from: NodeId, epoch: Epoch, claim: Option<Envelope<Claim>>, out: &mut Vec<Output>) {
        if let Role::Coordinator(desk) = &mut self.role {
            desk.answers.entry(epoch).or_default().insert(from, claim);
            send(from, &Message::Held { epoch }, out);
        }
    }
}
