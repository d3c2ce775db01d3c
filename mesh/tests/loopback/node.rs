//! A mesh with its events, for tests. Must never sleep: every wait is for an event, with a bound.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use skein_mesh::{Event, Mesh, MeshConfig, PeerAddress};
use skein_proto::ids::{NetworkId, NodeId};
use smol::channel::Receiver;
use smol::future::FutureExt as _;

pub(crate) const NETWORK: NetworkId = NetworkId([0x5c; 32]);
/// Far longer than anything here takes, and shorter than QUIC's idle timeout.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Node {
    pub(crate) mesh: Mesh,
    pub(crate) events: Receiver<Event>,
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn id(seed: u8) -> NodeId {
    NodeId(key(seed).verifying_key().to_bytes())
}

pub(crate) fn config(seed: u8, bootstrap: Vec<PeerAddress>) -> MeshConfig {
    MeshConfig { key: key(seed), network: NETWORK, listen: "127.0.0.1:0".parse().unwrap(), bootstrap }
}

impl Node {
    pub(crate) fn start(seed: u8) -> Self {
        Self::with(config(seed, vec![]))
    }

    pub(crate) fn with(config: MeshConfig) -> Self {
        let (mesh, events) = Mesh::bind(config).unwrap();
        Self { mesh, events }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.mesh.node()
    }

    /// Where others find this node, with its id.
    pub(crate) fn contact(&self) -> PeerAddress {
        PeerAddress { node: Some(self.id()), address: self.mesh.local_address() }
    }

    pub(crate) async fn next(&self) -> Event {
        in_time("an event", self.events.recv()).await.unwrap()
    }

    /// Events up to and including the first that fits.
    pub(crate) async fn until(&self, fits: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut seen = vec![];
        loop {
            let event = self.next().await;
            let fitting = fits(&event);
            seen.push(event);
            if fitting {
                return seen;
            }
        }
    }

    pub(crate) async fn until_up(&self, peer: NodeId) -> Vec<Event> {
        self.until(|event| matches!(event, Event::Up { node, .. } if *node == peer)).await
    }

    pub(crate) async fn until_down(&self, peer: NodeId) -> String {
        let mut seen = self.until(|event| matches!(event, Event::Down { node, .. } if *node == peer)).await;
        match seen.pop() {
            Some(Event::Down { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn until_frame(&self, expected: &[u8]) -> Vec<Event> {
        self.until(|event| matches!(event, Event::Control { frame, .. } if frame == expected)).await
    }
}

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(PATIENCE, what, future).await
}

/// The same for what takes its time.
pub(crate) async fn within<T>(patience: Duration, what: &str, future: impl Future<Output = T>) -> T {
    future
        .or(async {
            smol::Timer::after(patience).await;
            panic!("waited {patience:?} for {what}")
        })
        .await
}

/// Two nodes that are connected.
pub(crate) async fn pair(first: u8, second: u8) -> (Node, Node) {
    let one = Node::start(first);
    let two = Node::start(second);
    assert!(one.mesh.keep(two.contact()));
    one.until_up(two.id()).await;
    two.until_up(one.id()).await;
    (one, two)
}
