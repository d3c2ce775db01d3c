//! An owner and his rigs: one key commands all agents that were told it, over the mesh, wherever they are.
//!
//! ```text
//! owner's agent ── opens a stream ──────────────────> rig
//!               <──────────── 32 bytes, never twice ──   and that it was told the owner's key
//!               ── order, signed by the owner's key ─>   for this rig, from this agent, over these bytes
//!               <─────────────────── how it is now ───
//! ```
//!
//! An agent may be both: it answers for the owner that its configuration names, and asks for the owner whose key lies in
//! its data directory. Must never obey whom its configuration does not name, nor trust what an agent says that it asked.

mod book;
mod operator;
pub(crate) mod order;
pub(crate) mod report;
mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skein_mesh::{BulkStream, Mesh};
use skein_proto::ids::{NetworkId, NodeId};
use smol::channel;

use self::book::Book;
pub(crate) use self::operator::{NO_KEY, Obeyed, Overview, Sight};
use crate::config::Config;
use crate::daemon::{Call, Event, lock};

/// This agent's part in fleets. Clones share it.
#[derive(Clone)]
pub(crate) struct Fleet {
    shared: Arc<Shared>,
}

struct Shared {
    mesh: Mesh,
    feed: channel::Sender<Event>,
    network: NetworkId,
    data_dir: PathBuf,
    /// Whose orders this agent obeys.
    owner: Option<NodeId>,
    name: String,
    started: Instant,
    /// Orders that were not obeyed because they were not the owner's.
    refused: AtomicU64,
    /// Whose order is being heard; one at a time from each.
    heard: Mutex<BTreeSet<NodeId>>,
    /// The rigs of the owner whose key is here.
    book: Mutex<Book>,
    /// Peers that said, since they connected, that they are none, and when.
    strangers: Mutex<BTreeMap<NodeId, Instant>>,
    /// Held while rigs are asked: a rig listens to one order of an agent at a time.
    asking: smol::lock::Mutex<()>,
}

impl Fleet {
    /// For an agent that was told so.
    pub(crate) fn new(config: &Config, mesh: Mesh, feed: channel::Sender<Event>) -> Self {
        let shared = Shared {
            mesh,
            feed,
            network: config.genesis.network_id(),
            data_dir: config.data_dir.clone(),
            owner: config.owner,
            name: config.name.clone(),
            started: Instant::now(),
            refused: AtomicU64::new(0),
            heard: Mutex::default(),
            book: Mutex::new(Book::open(&config.data_dir)),
            strangers: Mutex::default(),
            asking: smol::lock::Mutex::new(()),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The network that rigs are reached over.
    pub(crate) fn mesh(&self) -> &Mesh {
        &self.shared.mesh
    }

    /// Somebody opened a stream to give an order.
    pub(crate) fn accept(&self, from: NodeId, stream: BulkStream) {
        match self.shared.owner {
            Some(owner) => skein_mesh::spawn(self.clone().obey(owner, from, stream)).detach(),
            // What is dropped is abandoned: so the other side knows that this agent is nobody's rig.
            None => drop(stream),
        }
    }

    /// A peer disconnected; when it is back, it may have been told whose rig it is.
    pub(crate) fn gone(&self, node: NodeId) {
        lock(&self.shared.strangers).remove(&node);
    }

    fn node(&self) -> NodeId {
        self.shared.mesh.node()
    }

    /// Asks the daemon's loop; nothing when the agent is leaving.
    async fn call<T>(&self, call: impl FnOnce(channel::Sender<T>) -> Call) -> Option<T> {
        let (answer, heard) = channel::bounded(1);
        self.shared.feed.send(Event::Call(call(answer))).await.ok()?;
        heard.recv().await.ok()
    }
}

/// At most so many characters of a text, none of which does anything but stand there.
pub(crate) fn plain(text: &str, chars_max: usize) -> String {
    let shown = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    shown.filter(|&c| !acts(c)).take(chars_max).collect()
}

/// Whether a character does something to a terminal: beside control characters, those that turn the direction of what
/// follows or are not seen at all.
pub(crate) fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    smol::future::or(async { Some(future.await) }, async {
        smol::Timer::after(limit).await;
        None
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn texts_of_strangers_do_nothing_to_a_terminal() {
        assert_eq!(plain("rig\u{1b}[2J-7\r\n", 64), "rig[2J-7  ");
        assert_eq!(plain("a\u{202e}b\u{200b}c", 64), "abc");
        assert_eq!(plain("Schweißgerät 熊", 64), "Schweißgerät 熊");
        assert_eq!(plain("12345", 3), "123");
    }
}
