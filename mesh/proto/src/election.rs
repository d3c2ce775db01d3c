//! Who coordinates: a deterministic order of succession among present members, with terms.
//!
//! The incumbent stays while it is present. When the office is vacant, members succeed in the order of
//! `BLAKE3(network, node)`; each further in line waits longer. Whoever takes office does so with a term
//! higher than any it has seen; the highest term wins, and at equal terms the first in the order of
//! succession. This keeps one coordinator among members that see each other; two halves of a split
//! network each have one until they meet again, and then fencing decides. (The mesh issue replaces this
//! by an elected committee.) Must never trust hearsay: only a claim from the claimant itself counts. Must
//! never obey a lower term than it obeyed before.

use std::collections::BTreeSet;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::ids::{Millis, NetworkId, NodeId, Term};
use crate::limits::{NEWCOMER_MS, SUCCESSION_MS, TERM_JUMP_MAX, VACANCY_MS};

/// One coordinator's time in office.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Reign {
    /// Its term.
    pub term: Term,
    /// Who.
    pub coordinator: NodeId,
}

/// One agent's view of the office.
#[derive(Debug)]
pub struct Election {
    me: NodeId,
    network: NetworkId,
    reign: Option<Reign>,
    /// The highest term heard of, hearsay included: the next claim exceeds it.
    highest_term: Term,
    /// The highest term obeyed: no lower one is obeyed again.
    obeyed_term: Term,
    vacant_since: Option<Millis>,
}

impl Election {
    /// No coordinator is known yet.
    pub fn new(me: NodeId, network: NetworkId) -> Self {
        Self { me, network, reign: None, highest_term: Term(0), obeyed_term: Term(0), vacant_since: None }
    }

    /// The coordinator that this agent obeys.
    pub fn reign(&self) -> Option<Reign> {
        self.reign
    }

    /// Whether this agent holds the office.
    pub fn in_office(&self) -> bool {
        self.reign.is_some_and(|reign| reign.coordinator == self.me)
    }

    /// Takes note of the reign that `from` obeys; returns whether this agent now obeys another, or none.
    pub fn heard(&mut self, from: NodeId, said: Option<Reign>) -> bool {
        if let Some(said) = said {
            let reach = Term(self.highest_term.0.saturating_add(TERM_JUMP_MAX));
            self.highest_term = self.highest_term.max(said.term.min(reach));
            if said.coordinator == from && said.term <= reach && self.outranks_present(said) {
                self.obey(said);
                return true;
            }
        }
        // Our coordinator does not hold the office for which we obey it: it stepped down, or it started
        // anew and remembers nothing. For us the office is vacant.
        let left = self.reign.is_some_and(|reign| reign.coordinator == from && said != Some(reign));
        if left {
            self.reign = None;
        }
        left
    }

    /// Lets time pass. `present` holds the members that can be heard now, this agent included if it may
    /// hold office. Returns whether this agent now obeys another reign, its own or none.
    pub fn tick(&mut self, now: Millis, present: &BTreeSet<NodeId>) -> bool {
        if self.reign.is_some_and(|reign| present.contains(&reign.coordinator)) {
            self.vacant_since = None;
            return false;
        }
        let Some(place) = self.place_in_line(present) else {
            // Who may not hold office counts no vacancy.
            self.vacant_since = None;
            return self.reign.take().is_some();
        };
        let since = *self.vacant_since.get_or_insert(now);
        // Others obey somebody from whom this agent has yet to hear: a newcomer gives him time to speak.
        let newcomer = self.obeyed_term == Term(0) && self.highest_term > Term(0);
        let patience = VACANCY_MS + SUCCESSION_MS * place + if newcomer { NEWCOMER_MS } else { 0 };
        if now.since(since) < patience {
            return false;
        }
        self.highest_term = Term(self.highest_term.0.saturating_add(1));
        self.obey(Reign { term: self.highest_term, coordinator: self.me });
        true
    }

    fn obey(&mut self, reign: Reign) {
        self.obeyed_term = reign.term;
        self.reign = Some(reign);
        self.vacant_since = None;
    }

    fn outranks_present(&self, said: Reign) -> bool {
        let Some(present) = self.reign else { return said.term >= self.obeyed_term };
        if said.term != present.term {
            return said.term > present.term;
        }
        said.coordinator != present.coordinator
            && self.order(said.coordinator) < self.order(present.coordinator)
    }

    fn place_in_line(&self, present: &BTreeSet<NodeId>) -> Option<u64> {
        present.contains(&self.me).then(|| {
            let mine = self.order(self.me);
            present.iter().filter(|&&node| self.order(node) < mine).count() as u64
        })
    }

    fn order(&self, node: NodeId) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.network.0).update(&node.0);
        *hasher.finalize().as_bytes()
    }
}
