//! Owns which pages of a stage's cache belong to which session.
//! Must never hold keys or values: those lie in the graph, under the same page numbers.

use std::collections::BTreeMap;

use crate::graph::PAGE_POSITIONS;
use crate::limits::SESSIONS_MAX;

/// Pages and their owners.
#[derive(Debug)]
pub struct Cache {
    pages: u32,
    free: Vec<u32>,
    sessions: BTreeMap<u64, Held>,
}

#[derive(Debug, Default)]
struct Held {
    pages: Vec<u32>,
    length: u32,
}

/// Why there is no room. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheFull {
    /// Too few pages are free.
    #[error(
        "{needed} more pages of {PAGE_POSITIONS} tokens are needed, {free} of {pages} are free: close a session or send less"
    )]
    Pages {
        /// More than the session has.
        needed: usize,
        /// That nobody has.
        free: usize,
        /// In all.
        pages: u32,
    },
    /// Too many sessions.
    #[error("{SESSIONS_MAX} sessions are open: close one first")]
    Sessions,
}

impl Cache {
    /// A cache of `pages` pages, none in use.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        // Low numbers are handed out first, so that a cache that is never filled never touches all of its memory.
        Self { pages, free: (0..pages).rev().collect(), sessions: BTreeMap::new() }
    }

    /// Tokens that are cached for a session; 0 for one that is unknown.
    #[must_use]
    pub fn length(&self, session: u64) -> u32 {
        self.sessions.get(&session).map_or(0, |held| held.length)
    }

    /// The pages of a session, in the order of positions.
    #[must_use]
    pub fn pages(&self, session: u64) -> &[u32] {
        self.sessions.get(&session).map_or(&[], |held| &held.pages)
    }

    /// Sessions that are open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Pages that nobody has.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Makes a session exactly `length` tokens long; it is opened if need be. What lay beyond is forgotten, what is new
    /// has no content yet.
    ///
    /// # Errors
    /// [`CacheFull`].
    pub fn resize(&mut self, session: u64, length: u32) -> Result<(), CacheFull> {
        if !self.sessions.contains_key(&session) && self.sessions.len() >= SESSIONS_MAX {
            return Err(CacheFull::Sessions);
        }
        let wanted = (length as usize).div_ceil(PAGE_POSITIONS);
        let needed = wanted.saturating_sub(self.pages(session).len());
        if needed > self.free.len() {
            return Err(CacheFull::Pages { needed, free: self.free.len(), pages: self.pages });
        }
        let held = self.sessions.entry(session).or_default();
        held.pages.extend(self.free.drain(self.free.len() - needed..).rev());
        self.free.extend(held.pages.drain(wanted..).rev());
        held.length = length;
        Ok(())
    }

    /// Forgets a session. Whether there was one.
    pub fn close(&mut self, session: u64) -> bool {
        let held = self.sessions.remove(&session);
        let known = held.is_some();
        self.free.extend(held.into_iter().flat_map(|held| held.pages.into_iter().rev()));
        known
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sessions_are_bounded_and_errors_change_nothing() {
        let mut cache = Cache::new(1_000);
        for session in 0..SESSIONS_MAX as u64 {
            cache.resize(session, 1).unwrap();
        }
        assert_eq!(cache.resize(9_999, 1), Err(CacheFull::Sessions));
        assert_eq!(
            cache.resize(0, 1_000 * 16),
            Err(CacheFull::Pages { needed: 999, free: 744, pages: 1_000 })
        );
        assert_eq!((cache.length(0), cache.pages(0).len(), cache.free_pages()), (1, 1, 744));
        assert!(cache.close(0) && !cache.close(0));
        cache.resize(9_999, 0).unwrap();
        assert_eq!((cache.sessions(), cache.free_pages()), (SESSIONS_MAX, 745));
    }

    proptest! {
        #[test]
        fn pages_have_one_owner_and_keep_their_place(
            pages in 0_u32..40, moves in prop::collection::vec((0_u64..6, prop::option::of(0_u32..300)), 0..80),
        ) {
            let mut cache = Cache::new(pages);
            let mut lengths = BTreeMap::new();
            for (session, length) in moves {
                let before = cache.pages(session).to_vec();
                match length {
                    None => prop_assert_eq!(cache.close(session), lengths.remove(&session).is_some()),
                    Some(length) => {
                        let others: usize = lengths
                            .iter()
                            .filter(|(other, _)| **other != session)
                            .map(|(_, length): (_, &u32)| (*length as usize).div_ceil(16))
                            .sum();
                        let fits = others + (length as usize).div_ceil(16) <= pages as usize;
                        prop_assert_eq!(cache.resize(session, length).is_ok(), fits);
                        if fits {
                            lengths.insert(session, length);
                        }
                        let kept = before.len().min(cache.pages(session).len());
                        prop_assert_eq!(&cache.pages(session)[..kept], &before[..kept]);
                    }
                }
                let mut owned = BTreeSet::new();
                for session in 0..6 {
                    let length = lengths.get(&session).copied().unwrap_or(0);
                    prop_assert_eq!(cache.length(session), length);
                    prop_assert_eq!(cache.pages(session).len(), (length as usize).div_ceil(16));
                    for page in cache.pages(session) {
                        prop_assert!(*page < pages && owned.insert(*page), "page {} has two owners", page);
                    }
                }
                prop_assert_eq!(owned.len() + cache.free_pages(), pages as usize);
                prop_assert_eq!(cache.sessions(), lengths.len());
            }
        }
    }
}
