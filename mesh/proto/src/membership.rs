//! Who is here: directly connected agents with a verified offer, heard within the last two seconds.
//!
//! A simple version for small networks where everybody is connected to everybody; the mesh issue
//! replaces it by SWIM. Must never count an agent that only others have heard.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Millis, NodeId};
use crate::limits::{MEMBERS_MAX, SILENCE_MS};
use crate::offer::Offer;
use crate::signed::Signed;

/// One connected agent.
#[derive(Debug)]
struct Member {
    heard_at: Millis,
    offer: Option<Signed<Offer>>,
}

/// The agents connected to this one.
#[derive(Debug, Default)]
pub struct Members {
    connected: BTreeMap<NodeId, Member>,
}

impl Members {
    /// A connection opened. Returns false, and keeps nothing, when there are too many already.
    pub fn up(&mut self, now: Millis, node: NodeId) -> bool {
        if self.connected.len() >= MEMBERS_MAX && !self.connected.contains_key(&node) {
            return false;
        }
        self.connected.insert(node, Member { heard_at: now, offer: None });
        true
    }

    /// A connection closed. Returns whether the agent had been present.
    pub fn down(&mut self, node: NodeId) -> bool {
        self.connected.remove(&node).is_some_and(|member| member.offer.is_some())
    }

    /// Something arrived from `node`. Returns whether it is connected.
    pub fn heard(&mut self, now: Millis, node: NodeId) -> bool {
        match self.connected.get_mut(&node) {
            Some(member) => {
                member.heard_at = now;
                true
            }
            None => false,
        }
    }

    /// `offer` came from its signer. Returns whether it is news.
    pub fn offered(&mut self, offer: Signed<Offer>) -> bool {
        let Some(member) = self.connected.get_mut(&offer.signer()) else { return false };
        let newer = member
            .offer
            .as_ref()
            .is_none_or(|known| known.statement().issued_at < offer.statement().issued_at);
        if newer {
            member.offer = Some(offer);
        }
        newer
    }

    /// Connected agents that have been silent too long.
    pub fn silent(&self, now: Millis) -> Vec<NodeId> {
        let silent = |member: &Member| now.since(member.heard_at) >= SILENCE_MS;
        self.connected.iter().filter(|(_, member)| silent(member)).map(|(node, _)| *node).collect()
    }

    /// Everybody connected, with or without an offer.
    pub fn connected(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.connected.keys().copied()
    }

    /// Whether `node` is connected.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.connected.contains_key(&node)
    }

    /// The offers of all present members, by node.
    pub fn offers(&self) -> impl Iterator<Item = &Signed<Offer>> {
        self.connected.values().filter_map(|member| member.offer.as_ref())
    }

    /// The present members.
    pub fn present(&self) -> BTreeSet<NodeId> {
        self.offers().map(Signed::signer).collect()
    }
}
