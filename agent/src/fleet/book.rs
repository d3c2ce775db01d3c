//! The rigs that ever answered, in `fleet.json`: one that is gone is shown as it was last seen.
//!
//! Holds nothing that cannot be asked again. Must never hold more than `RIGS_MAX` rigs, whoever calls himself one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skein_proto::ids::NodeId;

use super::report::Report;
use crate::identity::write_private;
use crate::limits::RIGS_MAX;

/// One rig, as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    /// When, by this machine's clock, in Unix milliseconds.
    pub(super) seen_ms: u64,
    /// From where its packets came; nothing for the owner's own agent.
    pub(super) address: Option<String>,
    pub(super) report: Report,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Book {
    path: PathBuf,
    rigs: BTreeMap<NodeId, Known>,
    forgotten: BTreeSet<NodeId>,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    rigs: Vec<Known>,
    forgotten: BTreeSet<NodeId>,
}

impl Book {
    /// Opens the book of this data directory; what cannot be read is empty.
    pub(super) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("fleet.json");
        let file = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "the list of rigs is damaged: it begins anew");
                File::default()
            }),
            Err(_) => File::default(),
        };
        let rigs = file.rigs.into_iter().take(RIGS_MAX).map(|known| (known.report.node, known)).collect();
        Self { path, rigs, forgotten: file.forgotten }
    }

    pub(super) fn rigs(&self) -> &BTreeMap<NodeId, Known> {
        &self.rigs
    }

    pub(super) fn forgotten(&self) -> &BTreeSet<NodeId> {
        &self.forgotten
    }

    /// A rig answered.
    pub(super) fn note(&mut self, known: Known) {
        let node = known.report.node;
        let room = self.rigs.len() < RIGS_MAX || self.rigs.contains_key(&node);
        if room && !self.forgotten.contains(&node) {
            self.rigs.insert(node, known);
        }
    }

    /// From now on it is none of the rigs.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.rigs.remove(&node);
        if self.forgotten.len() >= RIGS_MAX {
            self.forgotten.pop_first();
        }
        self.forgotten.insert(node);
    }

    /// It may be a rig again.
    pub(super) fn recall(&mut self, node: NodeId) {
        self.forgotten.remove(&node);
    }

    /// Writes it down.
    pub(super) fn save(&self) {
        let file = File { rigs: self.rigs.values().cloned().collect(), forgotten: self.forgotten.clone() };
        let bytes = serde_json::to_vec(&file).unwrap_or_default();
        if let Err(error) = write_private(&self.path, &bytes) {
            tracing::warn!(path = %self.path.display(), %error, "the list of rigs will not outlive this process");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    fn known(number: u32) -> Known {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        Known {
            seen_ms: u64::from(number),
            address: Some("192.0.2.7:7310".to_owned()),
            report: Report { node: NodeId(id), ..report() },
        }
    }

    #[test]
    fn rigs_outlive_the_process_and_the_forgotten_stay_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = Book::open(folder.path());
        (1..=3).for_each(|number| book.note(known(number)));
        book.forget(known(2).report.node);
        book.note(known(2));
        book.save();
        let mut again = Book::open(folder.path());
        let numbers = |book: &Book| book.rigs().values().map(|known| known.seen_ms).collect::<Vec<_>>();
        assert_eq!(numbers(&again), [1, 3]);
        assert_eq!(again.rigs()[&known(3).report.node], known(3));
        again.recall(known(2).report.node);
        again.note(known(2));
        assert_eq!(numbers(&again), [1, 2, 3]);
        std::fs::write(folder.path().join("fleet.json"), b"{").unwrap();
        assert_eq!(numbers(&Book::open(folder.path())), [0; 0]);
    }

    #[test]
    fn pretenders_do_not_fill_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = Book::open(folder.path());
        let more = u32::try_from(RIGS_MAX).unwrap() + 100;
        (0..more).for_each(|number| book.note(known(number)));
        assert_eq!(book.rigs().len(), RIGS_MAX);
        book.note(Known { seen_ms: 99, ..known(7) });
        assert_eq!(book.rigs()[&known(7).report.node].seen_ms, 99, "who is known is still heard");
        (0..more).for_each(|number| book.forget(known(number).report.node));
        assert_eq!((book.rigs().len(), book.forgotten().len()), (0, RIGS_MAX));
    }
}
