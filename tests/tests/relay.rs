//! Agents behind a port forward: they are reached at the address that they tell, and nowhere else.
//!
//! Must never depend on a delay being exact: a loaded machine adds to it.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

use std::time::Duration;

use ed25519_dalek::SigningKey;
use skein_mesh::{Event, Mesh, MeshConfig, PeerAddress, StreamKind};
use skein_proto::ids::{NetworkId, NodeId};
use skein_tests::relay::Relay;
use smol::channel::Receiver;

const ONE_WAY: Duration = Duration::from_millis(20);

fn start(seed: u8) -> (Mesh, Receiver<Event>) {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let listen = "127.0.0.1:0".parse().unwrap();
    Mesh::bind(MeshConfig { key, network: NetworkId([3; 32]), listen, bootstrap: vec![] }).unwrap()
}

/// Where `node` is when it comes up.
async fn up(events: &Receiver<Event>, node: NodeId) -> std::net::SocketAddr {
    loop {
        if let Event::Up { node: who, address, .. } = events.recv().await.unwrap()
            && who == node
        {
            return address;
        }
    }
}

#[test]
fn a_forwarded_agent_is_reached_at_the_address_it_tells_and_from_there_alone() {
    smol::future::block_on(async {
        let ((near, near_events), (far, far_events)) = (start(1), start(2));
        let relay = Relay::start(far.local_address(), ONE_WAY).unwrap();
        near.hint(PeerAddress { node: Some(far.node()), address: relay.address });
        assert_eq!(up(&near_events, far.node()).await, relay.address);
        // The other end sees the forward's own port, which it never dials.
        assert_ne!(up(&far_events, near.node()).await, near.local_address());
        assert!(near.round_trip(far.node()).unwrap() >= 2 * ONE_WAY);
        let trips = near.round_trips();
        assert_eq!(trips.len(), 1);
        assert!(trips[0].0 == far.node() && trips[0].1 >= 40_000, "{trips:?}");
        // A frame of a stage takes one lap, not more: nothing waits for an acknowledgement.
        let mut asking = near.open(far.node(), StreamKind::Stage).await.unwrap();
        let begun = std::time::Instant::now();
        asking.send_frame(&[7; 1_153]).await.unwrap();
        let mut answering = loop {
            if let Event::Stream { stream, .. } = far_events.recv().await.unwrap() {
                break stream;
            }
        };
        let frame = answering.recv_frame(2_000).await.unwrap().unwrap();
        answering.send_frame(&frame).await.unwrap();
        assert_eq!(asking.recv_frame(2_000).await.unwrap().unwrap(), frame);
        eprintln!("a lap over 2 x {ONE_WAY:?} took {:?}", begun.elapsed());
        assert!(begun.elapsed() >= 2 * ONE_WAY);
    });
}
