//! Fetching many blobs from many holders at once.
//!
//! Every blob is asked of one holder at a time, the least busy; so a fast one gets more to do, and who
//! fails, lies or has nothing loses to the others. When nothing is left to ask for, what is late is asked of
//! a second holder too. Each blob is durable as it comes: a fetch that is broken off goes on from there.
//!
//! Must never read or write a blob's bytes: that is `blob.rs`'s.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use skein_proto::ids::{Digest, NodeId};
use smol::Task;

use crate::blob::{Failure, FetchError, HolderFailure, fetch_from};
use crate::limits::{
    BLOB_FETCHES_MAX, BLOB_HOLDERS_MAX, BLOB_LATE_FACTOR, BLOB_LATE_MIN, BLOB_MISSES_MAX, BLOB_STALL_TIMEOUT,
    BLOB_TWICE_BYTES_MAX,
};
use crate::mesh::{Mesh, within};
use crate::store::BlobStore;

/// A blob that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its address.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// Who gave it; none if it was here before.
    pub from: Option<NodeId>,
}

/// Fetches one blob of at most `bytes_max`, verified and durable; returns where it is. A blob that is held
/// already is not fetched.
///
/// # Errors
/// [`FetchError`] names every holder that was asked, and what came of it.
pub async fn fetch_blob(
    mesh: &Mesh,
    store: &BlobStore,
    digest: Digest,
    holders: &[NodeId],
    bytes_max: u64,
) -> Result<PathBuf, FetchError> {
    fetch_blobs(mesh, store, &[(digest, bytes_max)], holders, |_| {}).await?;
    Ok(store.path(&digest))
}

/// Fetches blobs, each with the most bytes that it may have; `progress` hears of each as soon as it is
/// durable. At most [`BLOB_HOLDERS_MAX`] holders are asked.
///
/// # Errors
/// [`FetchError`] names the first blob that nobody gave. What had come is kept, and found by the next try.
pub async fn fetch_blobs(
    mesh: &Mesh,
    store: &BlobStore,
    wanted: &[(Digest, u64)],
    holders: &[NodeId],
    progress: impl FnMut(Fetched),
) -> Result<(), FetchError> {
    fetch_patiently(mesh, store, wanted, holders, BLOB_STALL_TIMEOUT, progress).await
}

/// `fetch_blobs` with the time that a holder may be silent.
pub(crate) async fn fetch_patiently(
    mesh: &Mesh,
    store: &BlobStore,
    wanted: &[(Digest, u64)],
    holders: &[NodeId],
    stall_timeout: Duration,
    mut progress: impl FnMut(Fetched),
) -> Result<(), FetchError> {
    let mut board = Board::new(mesh.node(), holders);
    let (here, missing) = sorted(store, wanted).await;
    here.into_iter().for_each(&mut progress);
    board.queue.extend(missing);
    let (answers, answered) = smol::channel::bounded(BLOB_FETCHES_MAX);
    // Dropping a task ends its transfer.
    let mut tasks: BTreeMap<(Digest, NodeId), Task<()>> = BTreeMap::new();
    loop {
        // What would only wait for a turn of its own is not asked for yet: somebody else may give it sooner.
        let at_once = BLOB_FETCHES_MAX.min(mesh.traffic().fetching.at_once());
        while tasks.len() < at_once {
            let Some((digest, bytes_max, holder)) = board.next(Instant::now())? else { break };
            let (mesh, store, answers) = (mesh.clone(), store.clone(), answers.clone());
            let task = crate::tasks::spawn(async move {
                let result = fetch_from(&mesh, holder, &store, digest, bytes_max, stall_timeout).await;
                // Nobody waits for it any more if this fails.
                let _ = answers.send((digest, holder, result)).await;
            });
            tasks.insert((digest, holder), task);
        }
        if tasks.is_empty() {
            return Ok(());
        }
        // From time to time, to see whether something is late.
        let Some(Ok((digest, holder, result))) = within(BLOB_LATE_MIN, answered.recv()).await else {
            continue;
        };
        tasks.remove(&(digest, holder));
        match result {
            Ok(bytes) => {
                if board.came(Instant::now(), digest, holder) {
                    progress(Fetched { digest, bytes, from: Some(holder) });
                }
                tasks.retain(|(other, _), _| *other != digest);
            }
            Err(Failure::Holder(failure)) => {
                tracing::debug!(%digest, holder = %holder.short(), %failure, "a holder failed");
                board.failed(digest, holder, failure);
            }
            Err(Failure::Store(error)) => return Err(error.into()),
        }
    }
}

/// What is here, and what is not; each blob once.
async fn sorted(store: &BlobStore, wanted: &[(Digest, u64)]) -> (Vec<Fetched>, Vec<(Digest, u64)>) {
    let (store, wanted) = (store.clone(), wanted.iter().copied().collect::<BTreeMap<_, _>>());
    smol::unblock(move || {
        let (mut here, mut missing) = (Vec::new(), Vec::new());
        for (digest, bytes_max) in wanted {
            match store.touch(&digest) {
                Some(bytes) => here.push(Fetched { digest, bytes, from: None }),
                None => missing.push((digest, bytes_max)),
            }
        }
        (here, missing)
    })
    .await
}

/// Who is asked for what. A value: it neither waits nor sends.
#[derive(Debug)]
struct Board {
    queue: VecDeque<(Digest, u64)>,
    asked: BTreeMap<Digest, Asked>,
    holders: Vec<Holder>,
    /// Where to begin among equal holders; differs from agent to agent.
    start: usize,
    /// Blobs that came, and the time that they took together.
    came: (u32, Duration),
}

/// A blob that was asked for and has not come.
#[derive(Debug)]
struct Asked {
    bytes_max: u64,
    since: Instant,
    /// Those that are sending it, or should be.
    at: Vec<NodeId>,
    failures: Vec<(NodeId, HolderFailure)>,
}

#[derive(Debug)]
struct Holder {
    node: NodeId,
    /// Transfers under way.
    busy: usize,
    /// Blobs in a row that it does not hold.
    misses: u32,
    /// It broke off, lied or fell silent: it is asked for nothing more.
    lost: Option<HolderFailure>,
}

impl Board {
    fn new(own: NodeId, named: &[NodeId]) -> Self {
        let mut holders: Vec<Holder> = Vec::new();
        for &node in named {
            let known = node == own || holders.iter().any(|holder| holder.node == node);
            if !known && holders.len() < BLOB_HOLDERS_MAX {
                holders.push(Holder { node, busy: 0, misses: 0, lost: None });
            }
        }
        let start = usize::from(own.0[0]) | usize::from(own.0[1]) << 8;
        Self { queue: VecDeque::new(), asked: BTreeMap::new(), holders, start, came: (0, Duration::ZERO) }
    }

    /// The next blob to ask for, and of whom.
    fn next(&mut self, now: Instant) -> Result<Option<(Digest, u64, NodeId)>, FetchError> {
        if let Some((digest, bytes_max)) = self.queue.pop_front() {
            let asked = self.asked.entry(digest).or_insert(Asked {
                bytes_max,
                since: now,
                at: vec![],
                failures: vec![],
            });
            asked.since = now;
            return match self.choose(digest) {
                Some(holder) => Ok(Some((digest, bytes_max, holder))),
                None => Err(self.nobody(digest)),
            };
        }
        let Some(late) = self.late(now) else { return Ok(None) };
        Ok(self.choose(late).map(|holder| (late, self.asked[&late].bytes_max, holder)))
    }

    /// The least busy holder that was not asked for this blob yet; it is asked now.
    fn choose(&mut self, digest: Digest) -> Option<NodeId> {
        let start = self.start ^ usize::from(digest.0[0]) ^ (usize::from(digest.0[1]) << 8);
        let count = self.holders.len();
        let asked = self.asked.get_mut(&digest)?;
        let fresh = |node: NodeId| {
            !asked.at.contains(&node) && !asked.failures.iter().any(|(failed, _)| *failed == node)
        };
        let open = self.holders.iter_mut().enumerate();
        let (_, holder) = open.filter(|(_, holder)| holder.lost.is_none() && fresh(holder.node)).min_by_key(
            |(at, holder)| (holder.misses >= BLOB_MISSES_MAX, holder.busy, (at + start) % count),
        )?;
        holder.busy += 1;
        asked.at.push(holder.node);
        Some(holder.node)
    }

    /// A blob that takes much longer than those before it took, and is sent by one holder alone.
    fn late(&self, now: Instant) -> Option<Digest> {
        let (count, time) = self.came;
        let usual = time.checked_div(count)?;
        let patience = (usual * BLOB_LATE_FACTOR).max(BLOB_LATE_MIN);
        let late = |asked: &&Asked| {
            asked.at.len() == 1
                && asked.bytes_max <= BLOB_TWICE_BYTES_MAX
                && now.saturating_duration_since(asked.since) >= patience
        };
        self.asked
            .iter()
            .filter(|(_, asked)| late(asked))
            .min_by_key(|(_, asked)| asked.since)
            .map(|(digest, _)| *digest)
    }

    /// `holder` gave the blob. Returns whether it is the first to do so.
    fn came(&mut self, now: Instant, digest: Digest, holder: NodeId) -> bool {
        if let Some(holder) = self.holder(holder) {
            holder.misses = 0;
        }
        let Some(asked) = self.asked.remove(&digest) else { return false };
        for node in asked.at {
            if let Some(holder) = self.holder(node) {
                holder.busy = holder.busy.saturating_sub(1);
            }
        }
        let (count, time) = self.came;
        self.came =
            (count.saturating_add(1), time.saturating_add(now.saturating_duration_since(asked.since)));
        true
    }

    /// `holder` did not give it. It goes to the next, unless another is at it already.
    fn failed(&mut self, digest: Digest, node: NodeId, failure: HolderFailure) {
        let counted = self.asked.get(&digest).is_some_and(|asked| asked.at.contains(&node));
        if let Some(holder) = self.holder(node).filter(|_| counted) {
            holder.busy = holder.busy.saturating_sub(1);
            match failure {
                HolderFailure::NotHeld => holder.misses = holder.misses.saturating_add(1),
                HolderFailure::Failed => {}
                HolderFailure::Open(_)
                | HolderFailure::Stream(_)
                | HolderFailure::Garbage { .. }
                | HolderFailure::TooLarge { .. }
                | HolderFailure::Lied { .. }
                | HolderFailure::Stalled { .. }
                | HolderFailure::TooSlow { .. } => holder.lost = Some(failure.clone()),
            }
        }
        let Some(asked) = self.asked.get_mut(&digest) else { return };
        asked.at.retain(|other| *other != node);
        asked.failures.push((node, failure));
        if asked.at.is_empty() {
            self.queue.push_front((digest, asked.bytes_max));
        }
    }

    /// Why nobody is left to ask for a blob: what each said, be it about another one.
    fn nobody(&mut self, digest: Digest) -> FetchError {
        let mut failures = self.asked.remove(&digest).map_or_else(Vec::new, |asked| asked.failures);
        for holder in &self.holders {
            if let Some(failure) = &holder.lost
                && !failures.iter().any(|(node, _)| *node == holder.node)
            {
                failures.push((holder.node, failure.clone()));
            }
        }
        if failures.is_empty() {
            return FetchError::NoHolders { digest };
        }
        FetchError::Holders { digest, failures }
    }

    fn holder(&mut self, node: NodeId) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| holder.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId([9; 32]);

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn board(holders: u8, blobs: u8) -> Board {
        let holders: Vec<NodeId> = (1..=holders).map(node).collect();
        let mut board = Board::new(OWN, &[&holders[..], &[OWN], &holders[..]].concat());
        board.queue.extend((0..blobs).map(|number| (Digest([number; 32]), 100)));
        board
    }

    fn ask(board: &mut Board, now: Instant) -> (Digest, NodeId) {
        let (digest, _, holder) = board.next(now).unwrap().unwrap();
        (digest, holder)
    }

    #[test]
    fn holders_share_the_work_and_the_faster_gets_more() {
        let (mut board, now) = (board(2, 100), Instant::now());
        let mut under_way: Vec<(Digest, NodeId)> = (0..4).map(|_| ask(&mut board, now)).collect();
        assert_eq!(under_way.iter().filter(|(_, holder)| *holder == node(1)).count(), 2);
        let mut given = BTreeMap::new();
        // The second gives three while the first gives one.
        for turn in 0..40 {
            let who = node(if turn % 4 == 0 { 1 } else { 2 });
            let at = under_way.iter().position(|(_, holder)| *holder == who).unwrap();
            let (digest, holder) = under_way.remove(at);
            assert!(board.came(now, digest, holder));
            *given.entry(holder).or_insert(0) += 1;
            under_way.push(ask(&mut board, now));
        }
        assert_eq!(given, BTreeMap::from([(node(1), 10), (node(2), 30)]));
    }

    #[test]
    fn agents_start_with_different_holders() {
        let starts: std::collections::BTreeSet<NodeId> = (10..30)
            .map(|own| {
                let mut board = Board::new(node(own), &[node(1), node(2), node(3)]);
                board.queue.push_back((Digest([7; 32]), 1));
                ask(&mut board, Instant::now()).1
            })
            .collect();
        assert_eq!(starts.len(), 3);
    }

    #[test]
    fn every_holder_is_asked_once_and_then_all_are_quoted() {
        let (mut board, now) = (board(3, 1), Instant::now());
        let mut asked = Vec::new();
        for _ in 0..3 {
            let (digest, holder) = ask(&mut board, now);
            board.failed(digest, holder, HolderFailure::NotHeld);
            asked.push(holder);
        }
        let FetchError::Holders { failures, .. } = board.next(now).unwrap_err() else { panic!("others") };
        assert_eq!(failures.iter().map(|(node, _)| *node).collect::<Vec<_>>(), asked);
        asked.sort_unstable();
        assert_eq!(asked, [node(1), node(2), node(3)]);
        let mut alone = Board::new(OWN, &[OWN]);
        alone.queue.push_back((Digest([1; 32]), 1));
        assert!(matches!(alone.next(now), Err(FetchError::NoHolders { .. })));
    }

    #[test]
    fn a_liar_is_asked_for_nothing_more_and_quoted_at_the_end() {
        let (mut board, now) = (board(2, 50), Instant::now());
        let lie = HolderFailure::Lied { actual: Digest([0xff; 32]) };
        let (mut lied, mut given) = (0, 0);
        while given < 49 {
            let (digest, holder) = ask(&mut board, now);
            if holder == node(1) {
                lied += 1;
                board.failed(digest, holder, lie.clone());
            } else {
                given += 1;
                board.came(now, digest, holder);
            }
        }
        assert_eq!(lied, 1);
        let (digest, holder) = ask(&mut board, now);
        board.failed(digest, holder, HolderFailure::NotHeld);
        let FetchError::Holders { failures, .. } = board.next(now).unwrap_err() else { panic!("others") };
        assert_eq!(failures, [(node(2), HolderFailure::NotHeld), (node(1), lie)]);
    }

    #[test]
    fn who_never_has_anything_is_asked_last() {
        let (mut board, now) = (board(2, 50), Instant::now());
        let mut misses = 0;
        for _ in 0..40 {
            let (digest, holder) = ask(&mut board, now);
            if holder == node(1) {
                misses += 1;
                board.failed(digest, holder, HolderFailure::NotHeld);
            } else {
                board.came(now, digest, holder);
            }
        }
        assert_eq!(misses, BLOB_MISSES_MAX);
    }

    #[test]
    fn what_is_late_is_asked_of_another_once_and_the_first_to_give_it_counts() {
        let (mut board, now) = (board(3, 3), Instant::now());
        let first: Vec<_> = (0..3).map(|_| ask(&mut board, now)).collect();
        assert_eq!(
            board.next(now + Duration::from_secs(9)).unwrap(),
            None,
            "nothing came yet to compare with"
        );
        assert!(board.came(now + Duration::from_millis(10), first[0].0, first[0].1));
        assert_eq!(board.next(now + BLOB_LATE_MIN / 2).unwrap(), None);
        let late = now + BLOB_LATE_MIN;
        let second = ask(&mut board, late);
        assert!(first[1..].iter().any(|asked| asked.0 == second.0 && asked.1 != second.1));
        ask(&mut board, late);
        assert_eq!(board.next(late).unwrap(), None, "each is asked of two at most");
        assert!(board.came(late, second.0, second.1));
        assert!(!board.came(late, second.0, node(3)));
        assert_eq!(board.holders.iter().map(|holder| holder.busy).sum::<usize>(), 2);
    }
}
