//! Keeping connections: one small task for each address dials, waits while the peer is up, and dials
//! again with growing pauses.
//!
//! Must never poll: while the peer is up a keeper sleeps until it is told of the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skein_proto::ids::NodeId;
use smol::channel::{Receiver, Sender};
use smol::{Task, Timer};

use crate::address::PeerAddress;
use crate::error::DialError;
use crate::greeting::{self, Dialled};
use crate::limits::{
    HINT_FAILURES_MAX, HINTS_MAX, KEPT_MAX, REDIAL_PAUSE_MAX, REDIAL_PAUSE_MIN, STABLE_CONNECTION,
};
use crate::mesh::{Event, Shared};

/// How long an address is worth trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until told otherwise.
    Endless,
    /// Until it failed [`HINT_FAILURES_MAX`] times in a row.
    Hint,
}

/// The addresses that are kept. Behind a lock; tasks run outside it.
#[derive(Debug, Default)]
pub(crate) struct Keepers {
    keepers: BTreeMap<PeerAddress, Keeper>,
    stopped: bool,
}

#[derive(Debug)]
struct Keeper {
    patience: Patience,
    /// Who is, or was last, behind the address.
    node: Option<NodeId>,
    wake: Sender<()>,
    /// Dropping it ends the keeper.
    task: Task<()>,
}

impl Keepers {
    /// Tells whoever keeps this node that its connection ended.
    pub(crate) fn wake(&self, node: NodeId) {
        for keeper in self.keepers.values().filter(|keeper| keeper.node == Some(node)) {
            // A full channel holds the same message.
            let _ = keeper.wake.try_send(());
        }
    }

    fn learn(&mut self, peer: &PeerAddress, node: NodeId) {
        if let Some(keeper) = self.keepers.get_mut(peer) {
            keeper.node = Some(node);
        }
    }

    fn patience(&self, peer: &PeerAddress) -> Patience {
        self.keepers.get(peer).map_or(Patience::Hint, |keeper| keeper.patience)
    }

    /// Ends every keeper, and takes no further ones. The caller drops them outside the lock.
    pub(crate) fn stop(&mut self) -> impl Sized + use<> {
        self.stopped = true;
        std::mem::take(&mut self.keepers)
    }
}

/// Starts keeping an address; false if it cannot be taken because too many are kept.
pub(crate) fn keep(shared: &Arc<Shared>, peer: PeerAddress, patience: Patience) -> bool {
    if peer.node == Some(shared.identity.node) {
        return true;
    }
    let mut keepers = shared.keepers();
    if keepers.stopped {
        return false;
    }
    if let Some(known) = keepers.keepers.get_mut(&peer) {
        if patience == Patience::Endless {
            known.patience = Patience::Endless;
        }
        return true;
    }
    let count = keepers.keepers.values().filter(|keeper| keeper.patience == patience).count();
    let count_max = match patience {
        Patience::Endless => KEPT_MAX,
        Patience::Hint => HINTS_MAX,
    };
    if count >= count_max {
        return false;
    }
    let (wake, woken) = smol::channel::bounded(1);
    // The task starts with the lock taken, so it finds itself in the map.
    let task = crate::tasks::spawn(run(shared.clone(), peer, woken));
    keepers.keepers.insert(peer, Keeper { patience, node: peer.node, wake, task });
    true
}

/// Ends keeping an address; a connection that is up stays.
pub(crate) fn forget(shared: &Shared, peer: &PeerAddress) {
    let keeper = shared.keepers().keepers.remove(peer);
    drop(keeper);
}

async fn run(shared: Arc<Shared>, peer: PeerAddress, woken: Receiver<()>) {
    // An address without a node id may have another owner after every failure.
    let mut node = peer.node;
    let mut attempts: u32 = 0;
    let mut failures: u32 = 0;
    let mut refused: Option<DialError> = None;
    loop {
        if let Some(node) = node {
            let since = Instant::now();
            if !sleep_while_up(&shared, node, &woken).await {
                return;
            }
            if since.elapsed() >= STABLE_CONNECTION {
                attempts = 0;
            }
        }
        if attempts > 0 {
            Timer::after(pause(attempts, &peer)).await;
            if node.is_some_and(|node| shared.table().is_up(node)) {
                continue;
            }
        }
        attempts = attempts.saturating_add(1);
        match greeting::dial(&shared, peer).await {
            Ok(Dialled::Up(reached) | Dialled::Duplicate(reached)) => {
                shared.keepers().learn(&peer, reached);
                node = Some(reached);
                failures = 0;
                refused = None;
            }
            Err(DialError::Oneself) => {
                tracing::debug!(%peer, "the address is this agent's own");
                break;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "dial failed");
                node = peer.node;
                failures = failures.saturating_add(1);
                if error.is_refusal() && refused.as_ref() != Some(&error) {
                    shared.report(Event::Refused { address: peer.address, reason: error.to_string() }).await;
                    refused = Some(error);
                }
                if failures >= HINT_FAILURES_MAX && shared.keepers().patience(&peer) == Patience::Hint {
                    break;
                }
            }
        }
    }
    if let Some(keeper) = shared.keepers().keepers.remove(&peer) {
        keeper.task.detach();
    }
}

/// Returns once the node has no link; false if the keeper is to end.
async fn sleep_while_up(shared: &Shared, node: NodeId, woken: &Receiver<()>) -> bool {
    // `is_up` is false before `wake` is called, so no end is missed between the two.
    while shared.table().is_up(node) {
        if woken.recv().await.is_err() {
            return false;
        }
    }
    true
}

/// The pause before an attempt: doubling, and up to a quarter longer by who dials whom, so that many
/// agents do not return to a restarted one at the same instant.
fn pause(attempts: u32, peer: &PeerAddress) -> Duration {
    let doubled = REDIAL_PAUSE_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let pause = doubled.min(REDIAL_PAUSE_MAX);
    let spread = u32::from(peer.address.port()) ^ attempts.wrapping_mul(97);
    pause + pause / 4 * (spread % 16) / 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let peer: PeerAddress = "127.0.0.1:4600".parse().unwrap();
        let longest = REDIAL_PAUSE_MAX + REDIAL_PAUSE_MAX / 4;
        assert!(pause(1, &peer) >= REDIAL_PAUSE_MIN && pause(1, &peer) < 2 * REDIAL_PAUSE_MIN);
        for attempts in 1..200 {
            assert!(pause(attempts, &peer) <= longest);
        }
        assert!(pause(u32::MAX, &peer) >= REDIAL_PAUSE_MAX);
    }
}
