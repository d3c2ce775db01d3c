//! Who is here: directly connected agents with a verified offer, heard within the last two seconds. And who
//! is not, but may be reached: agents that were here or of which members told.
//!
//! A simple version for small networks where everybody is connected to everybody; the mesh issue
//! replaces it by SWIM. Must never count an agent that only others have heard.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Millis, NodeId};
use crate::limits::{
    INTRODUCTION_REST_MS, INTRODUCTIONS_MAX, MEMBERS_MAX, REDIAL_MS, REDIALS_MAX, SILENCE_MS,
};
use crate::offer::Offer;
use crate::signed::Signed;

/// One connected agent.
#[derive(Debug)]
struct Member {
    heard_at: Millis,
    offer: Option<Signed<Offer>>,
}

/// What an offer changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing: it is older than what is known, or its signer is not connected.
    Stale,
    /// Its signer is a member from now on.
    Arrived,
    /// A member offers something else.
    Changed,
}

/// An agent that is not connected, and where it said that it listens.
#[derive(Debug)]
struct Absent {
    addresses: Vec<String>,
    dial_at: Millis,
    tries_left: u16,
}

/// The agents connected to this one, and those that could be.
#[derive(Debug, Default)]
pub struct Members {
    connected: BTreeMap<NodeId, Member>,
    absent: BTreeMap<NodeId, Absent>,
}

impl Members {
    /// A connection opened. Returns false, and keeps nothing, when there are too many already.
    pub fn up(&mut self, now: Millis, node: NodeId) -> bool {
        if self.connected.len() >= MEMBERS_MAX && !self.connected.contains_key(&node) {
            return false;
        }
        self.absent.remove(&node);
        self.connected.insert(node, Member { heard_at: now, offer: None });
        true
    }

    /// A connection closed. Returns whether the agent had been present; then it will be dialled again.
    pub fn down(&mut self, now: Millis, node: NodeId) -> bool {
        let Some(offer) = self.connected.remove(&node).and_then(|member| member.offer) else { return false };
        let addresses = offer.statement().addresses.clone();
        self.remember(node, Absent { addresses, dial_at: now.plus(REDIAL_MS), tries_left: REDIALS_MAX });
        true
    }

    /// A member told of `offer`'s signer. It is dialled at the next tick, unless it is here or known.
    pub fn told_of(&mut self, now: Millis, offer: &Signed<Offer>) {
        let node = offer.signer();
        if !self.knows(node) {
            let addresses = offer.statement().addresses.clone();
            self.remember(node, Absent { addresses, dial_at: now, tries_left: INTRODUCTIONS_MAX });
        }
    }

    /// Whether `node` is connected, or absent and not forgotten.
    pub fn knows(&self, node: NodeId) -> bool {
        self.connected.contains_key(&node) || self.absent.contains_key(&node)
    }

    /// Absent agents to be dialled now.
    pub fn to_dial(&mut self, now: Millis) -> Vec<(NodeId, Vec<String>)> {
        let mut due = Vec::new();
        for (node, absent) in &mut self.absent {
            if now >= absent.dial_at && absent.tries_left > 0 {
                absent.tries_left -= 1;
                absent.dial_at =
                    now.plus(if absent.tries_left > 0 { REDIAL_MS } else { INTRODUCTION_REST_MS });
                due.push((*node, absent.addresses.clone()));
            }
        }
        self.absent.retain(|_, absent| absent.tries_left > 0 || now < absent.dial_at);
        due
    }

    fn remember(&mut self, node: NodeId, absent: Absent) {
        if self.absent.len() >= MEMBERS_MAX {
            // The one that is nearest to being forgotten makes room.
            let fewest = self.absent.iter().min_by_key(|(_, absent)| absent.tries_left);
            let Some(fewest) = fewest.map(|(node, _)| *node) else { return };
            self.absent.remove(&fewest);
        }
        self.absent.insert(node, absent);
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

    /// `offer` came from its signer.
    pub fn offered(&mut self, offer: Signed<Offer>) -> News {
        let Some(member) = self.connected.get_mut(&offer.signer()) else { return News::Stale };
        let news = match &member.offer {
            None => News::Arrived,
            Some(known) if known.statement().issued_at < offer.statement().issued_at => News::Changed,
            Some(_) => return News::Stale,
        };
        member.offer = Some(offer);
        news
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

    /// The present member after `last` in the order of ids, and round again.
    pub fn after(&self, last: Option<NodeId>) -> Option<NodeId> {
        let here = || self.offers().map(Signed::signer);
        here().find(|node| Some(*node) > last).or_else(|| here().next())
    }

    /// The present members.
    pub fn present(&self) -> BTreeSet<NodeId> {
        self.offers().map(Signed::signer).collect()
    }
}
