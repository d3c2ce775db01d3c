//! Which connection to each peer counts: at most one, agreed with the peer without another message.
//!
//! Both ends decide by the same rules, so two agents that dial each other at the same moment end
//! with one connection, and neither reports it up before it is the one:
//! - a dialler claims the peer's slot before it says hello, and gives its connection up if the slot
//!   is taken;
//! - the answering side decides when the hello arrives. While its own hello to the same peer is
//!   under way, the connection dialled by the smaller node id wins;
//! - over a connection that is up, a hello from another incarnation replaces it (the peer has
//!   restarted), and so does a second one dialled by the peer itself (it lost the first).
//!
//! Must never do I/O or wait: it is a value behind a lock.

use std::collections::BTreeMap;

use skein_proto::ids::NodeId;

/// What the rules need to know about a connection that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Tells this connection from every other one of this run.
    pub(crate) number: u64,
    /// Whether this agent dialled it.
    pub(crate) dialled: bool,
    /// The peer's run.
    pub(crate) incarnation: u64,
}

#[derive(Debug)]
enum Slot<L> {
    /// This agent has said hello, or is about to, on the connection of that number.
    Greeting(u64),
    /// The peer is up. A dead link keeps its slot until its `Down` has been reported.
    Up { facts: Facts, link: L, alive: bool },
}

/// What the answering side does with a hello.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<L> {
    /// The connection is the one. It becomes visible now.
    Accept,
    /// The connection is the one, and the old link must be closed and reported down first.
    Replace(L),
    /// Another connection is kept; the link, if that one is up already.
    Duplicate(Option<L>),
    /// No room for another peer.
    Full,
}

/// The connections by peer.
#[derive(Debug)]
pub(crate) struct Table<L> {
    own: NodeId,
    peers_max: usize,
    slots: BTreeMap<NodeId, Slot<L>>,
}

impl<L: Clone> Table<L> {
    pub(crate) fn new(own: NodeId, peers_max: usize) -> Self {
        Self { own, peers_max, slots: BTreeMap::new() }
    }

    /// Claims the slot for a dialled connection; false if the peer has one already or none is free.
    pub(crate) fn begin(&mut self, node: NodeId, number: u64) -> bool {
        if self.slots.contains_key(&node) || self.slots.len() >= self.peers_max {
            return false;
        }
        self.slots.insert(node, Slot::Greeting(number));
        true
    }

    /// Gives up the claim of `begin`, if it still stands.
    pub(crate) fn abandon(&mut self, node: NodeId, number: u64) {
        if matches!(self.slots.get(&node), Some(Slot::Greeting(claimed)) if *claimed == number) {
            self.slots.remove(&node);
        }
    }

    /// The peer agreed to the dialled connection; false if the claim was lost meanwhile.
    pub(crate) fn promote(&mut self, node: NodeId, facts: Facts, link: L) -> bool {
        let claimed =
            matches!(self.slots.get(&node), Some(Slot::Greeting(number)) if *number == facts.number);
        if claimed {
            self.slots.insert(node, Slot::Up { facts, link, alive: true });
        }
        claimed
    }

    /// A peer says hello on a connection that it dialled.
    pub(crate) fn arrive(&mut self, node: NodeId, facts: Facts, link: L) -> Verdict<L> {
        let room = self.slots.len() < self.peers_max;
        let verdict = match self.slots.get(&node) {
            None if room => Verdict::Accept,
            None => Verdict::Full,
            Some(Slot::Greeting(_)) if self.own < node => Verdict::Duplicate(None),
            Some(Slot::Greeting(_)) => Verdict::Accept,
            Some(Slot::Up { facts: kept, link: old, alive }) => {
                if *alive && kept.dialled && kept.incarnation == facts.incarnation {
                    Verdict::Duplicate(Some(old.clone()))
                } else {
                    Verdict::Replace(old.clone())
                }
            }
        };
        match verdict {
            Verdict::Accept | Verdict::Replace(_) => {
                self.slots.insert(node, Slot::Up { facts, link, alive: true });
            }
            Verdict::Duplicate(_) | Verdict::Full => {}
        }
        verdict
    }

    /// The link is dead, but its `Down` is not reported yet.
    pub(crate) fn end(&mut self, node: NodeId, number: u64) {
        if let Some(Slot::Up { facts, alive, .. }) = self.slots.get_mut(&node)
            && facts.number == number
        {
            *alive = false;
        }
    }

    /// The link's `Down` is reported: its slot is free, unless a newer link has it.
    pub(crate) fn remove(&mut self, node: NodeId, number: u64) {
        if matches!(self.slots.get(&node), Some(Slot::Up { facts, .. }) if facts.number == number) {
            self.slots.remove(&node);
        }
    }

    /// The link to a peer that is up.
    pub(crate) fn link(&self, node: NodeId) -> Option<&L> {
        match self.slots.get(&node)? {
            Slot::Up { link, alive: true, .. } => Some(link),
            Slot::Up { .. } | Slot::Greeting(_) => None,
        }
    }

    /// Whether the peer has a link, alive or not yet reported down.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        matches!(self.slots.get(&node), Some(Slot::Up { .. }))
    }

    /// The links that are up, by node id.
    pub(crate) fn links(&self) -> impl Iterator<Item = (NodeId, &L)> {
        self.slots.iter().filter_map(|(node, slot)| match slot {
            Slot::Up { link, alive: true, .. } => Some((*node, link)),
            Slot::Up { .. } | Slot::Greeting(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: NodeId = NodeId([1; 32]);
    const LARGE: NodeId = NodeId([2; 32]);

    fn facts(number: u64, dialled: bool, incarnation: u64) -> Facts {
        Facts { number, dialled, incarnation }
    }

    /// What can happen in a duel, after both agents have claimed the slot and said hello.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Step {
        /// The hello of this agent's connection reaches the other.
        Hello(NodeId),
        /// The other's answer to it comes back.
        Answer(NodeId),
    }

    /// Connection 10 is dialled by SMALL, connection 20 by LARGE; the links that each ends with.
    fn duel(steps: [Step; 4]) -> [Option<u64>; 2] {
        let mut tables = BTreeMap::from([(SMALL, Table::new(SMALL, 8)), (LARGE, Table::new(LARGE, 8))]);
        let other = |node| if node == SMALL { LARGE } else { SMALL };
        let number = |dialler| if dialler == SMALL { 10 } else { 20 };
        let incarnation = |node: NodeId| u64::from(node.0[0]);
        for dialler in [SMALL, LARGE] {
            assert!(tables.get_mut(&dialler).unwrap().begin(other(dialler), number(dialler)));
        }
        let mut verdicts = BTreeMap::new();
        for step in steps {
            match step {
                Step::Hello(dialler) => {
                    let facts = facts(number(dialler), false, incarnation(dialler));
                    let table = tables.get_mut(&other(dialler)).unwrap();
                    verdicts.insert(dialler, table.arrive(dialler, facts, number(dialler)));
                }
                Step::Answer(dialler) => {
                    let facts = facts(number(dialler), true, incarnation(other(dialler)));
                    let table = tables.get_mut(&dialler).unwrap();
                    match &verdicts[&dialler] {
                        Verdict::Accept => {
                            assert!(table.promote(other(dialler), facts, number(dialler)), "{steps:?}");
                        }
                        Verdict::Duplicate(_) => table.abandon(other(dialler), number(dialler)),
                        verdict @ (Verdict::Replace(_) | Verdict::Full) => panic!("{steps:?}: {verdict:?}"),
                    }
                }
            }
        }
        [SMALL, LARGE].map(|node| tables[&node].link(other(node)).copied())
    }

    #[test]
    fn a_duel_ends_with_the_smaller_ids_connection_on_both_sides() {
        use Step::{Answer, Hello};
        for steps in [
            [Hello(SMALL), Answer(SMALL), Hello(LARGE), Answer(LARGE)],
            [Hello(SMALL), Hello(LARGE), Answer(SMALL), Answer(LARGE)],
            [Hello(SMALL), Hello(LARGE), Answer(LARGE), Answer(SMALL)],
            [Hello(LARGE), Answer(LARGE), Hello(SMALL), Answer(SMALL)],
            [Hello(LARGE), Hello(SMALL), Answer(LARGE), Answer(SMALL)],
            [Hello(LARGE), Hello(SMALL), Answer(SMALL), Answer(LARGE)],
        ] {
            assert_eq!(duel(steps), [Some(10), Some(10)], "{steps:?}");
        }
    }

    #[test]
    fn a_dialler_that_was_reached_first_keeps_what_it_has() {
        let mut table = Table::new(SMALL, 8);
        assert_eq!(table.arrive(LARGE, facts(1, false, 5), "first"), Verdict::Accept);
        assert!(!table.begin(LARGE, 2));
        assert!(!table.promote(LARGE, facts(2, true, 5), "late"));
        assert_eq!(table.link(LARGE), Some(&"first"));
    }

    #[test]
    fn a_restarted_or_returning_peer_replaces_its_old_link() {
        let mut table = Table::new(SMALL, 8);
        assert!(table.begin(LARGE, 1));
        assert!(table.promote(LARGE, facts(1, true, 5), "dialled"));
        // The same run of the peer has this link too: its hello crossed ours.
        assert_eq!(table.arrive(LARGE, facts(2, false, 5), "again"), Verdict::Duplicate(Some("dialled")));
        // Another run cannot have it.
        assert_eq!(table.arrive(LARGE, facts(3, false, 6), "restarted"), Verdict::Replace("dialled"));
        // It dials again, so it has lost what it dialled before.
        assert_eq!(table.arrive(LARGE, facts(4, false, 6), "returned"), Verdict::Replace("restarted"));
        // The old links' ends do not touch the new one.
        for old in [1, 3] {
            table.end(LARGE, old);
            table.remove(LARGE, old);
        }
        assert_eq!(table.link(LARGE), Some(&"returned"));
    }

    #[test]
    fn a_dead_link_is_no_duplicate_and_hides() {
        let mut table = Table::new(SMALL, 8);
        assert!(table.begin(LARGE, 1));
        assert!(table.promote(LARGE, facts(1, true, 5), "dead"));
        table.end(LARGE, 1);
        assert_eq!(table.link(LARGE), None);
        assert!(table.is_up(LARGE) && !table.begin(LARGE, 2));
        assert_eq!(table.arrive(LARGE, facts(3, false, 5), "new"), Verdict::Replace("dead"));
    }

    #[test]
    fn strangers_beyond_the_bound_are_turned_away_but_known_peers_return() {
        let mut table = Table::new(SMALL, 1);
        assert_eq!(table.arrive(LARGE, facts(1, false, 5), "one"), Verdict::Accept);
        assert_eq!(table.arrive(NodeId([3; 32]), facts(2, false, 5), "two"), Verdict::Full);
        assert!(!table.begin(NodeId([3; 32]), 3));
        assert_eq!(table.arrive(LARGE, facts(4, false, 6), "back"), Verdict::Replace("one"));
    }
}
