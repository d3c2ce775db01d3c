//! How far members are apart: what this agent measured, and the coordinator's table of what all told.
//!
//! Times are round trips in microseconds. Must never trust one end alone where both ends speak: the greater
//! time counts, so that nobody lies himself nearer to an honest neighbour.

use std::collections::BTreeMap;

use crate::ids::{Millis, NodeId};
use crate::limits::{LINK_UNKNOWN_NS, LINKS_MAX, LINKS_MS};
use crate::message::Message;

/// This agent's own links.
#[derive(Debug, Default)]
pub struct Soundings {
    /// The shortest, in the order of ids.
    measured: Vec<(NodeId, u32)>,
    /// What the coordinator in office was told, and when.
    told: Option<(Vec<(NodeId, u32)>, Millis)>,
}

impl Soundings {
    /// The shell measured all links anew.
    pub fn measured(&mut self, mut links: Vec<(NodeId, u32)>) {
        links.sort_unstable_by_key(|&(node, time_us)| (time_us, node));
        links.truncate(LINKS_MAX);
        links.sort_unstable();
        self.measured = links;
    }

    /// Another coordinator is in office, or the same was met anew.
    pub fn untold(&mut self) {
        self.told = None;
    }

    /// What the coordinator must be told now: nothing while no link is new, lost or much changed. The first
    /// time even that there is none, or it would wait for word of them.
    pub fn to_say(&mut self, now: Millis) -> Option<Message> {
        let news = match &self.told {
            None => true,
            Some((told, at)) => {
                (told.is_empty() || now.since(*at) >= LINKS_MS) && differ(told, &self.measured)
            }
        };
        news.then(|| {
            self.told = Some((self.measured.clone(), now));
            Message::Links(self.measured.clone())
        })
    }
}

/// Whether the difference could change where a stage goes.
fn differ(told: &[(NodeId, u32)], now: &[(NodeId, u32)]) -> bool {
    let much = |before: u32, now: u32| before.abs_diff(now) > before / 4 && before.abs_diff(now) > 200;
    told.len() != now.len()
        || told.iter().zip(now).any(|(before, now)| before.0 != now.0 || much(before.1, now.1))
}

/// The coordinator's table.
#[derive(Debug, Default)]
pub struct Links {
    /// By who told.
    told: BTreeMap<NodeId, BTreeMap<NodeId, u32>>,
}

impl Links {
    /// A connected agent told of its links.
    pub fn told(&mut self, from: NodeId, links: Vec<(NodeId, u32)>) {
        self.told.insert(from, links.into_iter().take(LINKS_MAX).collect());
    }

    /// Whether an agent told of its links, be they none.
    pub fn knows(&self, node: NodeId) -> bool {
        self.told.contains_key(&node)
    }

    /// An agent is gone; what others told of it may still hold when it returns.
    pub fn forget(&mut self, node: NodeId) {
        self.told.remove(&node);
    }

    /// The way from one agent to another, one way, in nanoseconds.
    pub fn between_ns(&self, one: NodeId, other: NodeId) -> u64 {
        if one == other {
            return 0;
        }
        let says = |one: NodeId, other: NodeId| self.told.get(&one)?.get(&other).copied();
        let round_trip_us = says(one, other).max(says(other, one));
        round_trip_us.map_or(LINK_UNKNOWN_NS, |time_us| u64::from(time_us) * 1_000 / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId([1; 32]);
    const TWO: NodeId = NodeId([2; 32]);
    const THREE: NodeId = NodeId([3; 32]);

    #[test]
    fn news_are_told_once_and_noise_is_not() {
        let mut own = Soundings::default();
        assert_eq!(own.to_say(Millis(0)), Some(Message::Links(vec![])), "nothing is measured yet");
        assert_eq!(own.to_say(Millis(0)), None);
        own.measured(vec![(TWO, 900), (ONE, 40_000)]);
        let first = Message::Links(vec![(ONE, 40_000), (TWO, 900)]);
        assert_eq!(own.to_say(Millis(0)), Some(first));
        own.measured(vec![(ONE, 42_000), (TWO, 1_050)]);
        assert_eq!(own.to_say(Millis(LINKS_MS)), None, "noise");
        own.measured(vec![(ONE, 42_000), (TWO, 3_000)]);
        assert_eq!(own.to_say(Millis(LINKS_MS - 1)), None, "too soon");
        let second = Message::Links(vec![(ONE, 42_000), (TWO, 3_000)]);
        assert_eq!(own.to_say(Millis(LINKS_MS)), Some(second.clone()));
        own.untold();
        assert_eq!(own.to_say(Millis(LINKS_MS)), Some(second));
        own.measured(vec![(ONE, 42_000)]);
        assert_eq!(own.to_say(Millis(2 * LINKS_MS)), Some(Message::Links(vec![(ONE, 42_000)])));
    }

    #[test]
    fn the_shortest_links_are_told_when_there_are_too_many() {
        let mut own = Soundings::default();
        let node = |number: u8| NodeId([number; 32]);
        own.measured((0..200).map(|number| (node(number), 1_000 - u32::from(number))).collect());
        let Some(Message::Links(told)) = own.to_say(Millis(0)) else { panic!("nothing was told") };
        assert_eq!(told.len(), LINKS_MAX);
        assert_eq!(told.last(), Some(&(node(199), 801)));
    }

    #[test]
    fn the_greater_word_counts_and_silence_is_far() {
        let mut links = Links::default();
        assert_eq!(links.between_ns(ONE, ONE), 0);
        assert_eq!(links.between_ns(ONE, TWO), LINK_UNKNOWN_NS);
        links.told(ONE, vec![(TWO, 10)]);
        assert_eq!(links.between_ns(TWO, ONE), 5_000);
        links.told(TWO, vec![(ONE, 8_000), (THREE, 4)]);
        assert_eq!(links.between_ns(ONE, TWO), 4_000_000);
        links.forget(TWO);
        assert_eq!(links.between_ns(ONE, TWO), 5_000);
        links.told(ONE, (0..200).map(|number| (NodeId([number; 32]), 1)).collect());
        assert_eq!(links.told[&ONE].len(), LINKS_MAX);
    }
}
