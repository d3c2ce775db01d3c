//! Peers that do not run this crate's protocol: each loses its own connection and nobody else's.

#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not expect fails it")]

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use skein_proto::ids::{Digest, NetworkId, NodeId};
use smol::channel::Receiver;

use crate::fetch::fetch_patiently;
use crate::identity::{Identity, server_name};
use crate::mesh::within;
use crate::wire::{self, CloseCode, GREETING_BYTES, StreamCode};
use crate::{BlobStore, Event, FetchError, HolderFailure, Mesh, MeshConfig, PeerAddress};

const NETWORK: NetworkId = NetworkId([0x5c; 32]);
const PATIENCE: Duration = Duration::from_secs(20);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn id(seed: u8) -> NodeId {
    NodeId(key(seed).verifying_key().to_bytes())
}

fn start(seed: u8) -> (Mesh, Receiver<Event>) {
    let listen = "127.0.0.1:0".parse().unwrap();
    Mesh::bind(MeshConfig { key: key(seed), network: NETWORK, listen, bootstrap: vec![] }).unwrap()
}

async fn until(events: &Receiver<Event>, fits: impl Fn(&Event) -> bool) -> Event {
    let search = async {
        loop {
            let event = events.recv().await.unwrap();
            if fits(&event) {
                return event;
            }
        }
    };
    within(PATIENCE, search).await.expect("the event comes")
}

/// A victim with a good peer connected to it, which must not notice anything.
struct Scene {
    victim: Mesh,
    events: Receiver<Event>,
    good: Mesh,
    good_events: Receiver<Event>,
}

impl Scene {
    async fn set() -> Self {
        let ((victim, events), (good, good_events)) = (start(1), start(2));
        good.keep(PeerAddress { node: Some(victim.node()), address: victim.local_address() });
        until(&events, |event| matches!(event, Event::Up { node, .. } if *node == id(2))).await;
        until(&good_events, |event| matches!(event, Event::Up { .. })).await;
        Self { victim, events, good, good_events }
    }

    /// The good peer still talks to the victim, and never saw its connection end.
    async fn is_unharmed(&self) {
        self.good.send(self.victim.node(), b"there?".to_vec()).unwrap();
        until(&self.events, |event| matches!(event, Event::Control { frame, .. } if frame == b"there?"))
            .await;
        self.victim.send(self.good.node(), b"here".to_vec()).unwrap();
        match self.good_events.recv().await.unwrap() {
            Event::Control { frame, .. } => assert_eq!(frame, b"here"),
            other => panic!("{other:?}"),
        }
    }

    async fn down_reason(&self, node: NodeId) -> String {
        match until(&self.events, |event| matches!(event, Event::Down { node: down, .. } if *down == node))
            .await
        {
            Event::Down { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    async fn refusal(&self) -> String {
        match until(&self.events, |event| matches!(event, Event::Refused { .. })).await {
            Event::Refused { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }
}

async fn connect(identity: &Identity, victim: &Mesh) -> (Endpoint, Connection) {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(identity.client(Some(victim.node())).unwrap().0));
    let name = server_name(Some(victim.node()));
    let connection = endpoint.connect_with(config, victim.local_address(), &name).unwrap().await.unwrap();
    (endpoint, connection)
}

/// A peer that proves its key and greets, and then does as it likes.
async fn intrude(seed: u8, scene: &Scene) -> (Endpoint, Connection, SendStream, RecvStream) {
    let identity = Identity::new(key(seed), NETWORK);
    let (endpoint, connection) = connect(&identity, &scene.victim).await;
    let (mut sender, mut receiver) = connection.open_bi().await.unwrap();
    sender.write_all(&wire::greeting(identity.incarnation)).await.unwrap();
    let mut answer = [0; GREETING_BYTES];
    receiver.read_exact(&mut answer).await.unwrap();
    assert!(wire::parse_greeting(answer).is_some());
    let up = |event: &Event| matches!(event, Event::Up { node, .. } if *node == id(seed));
    until(&scene.events, up).await;
    (endpoint, connection, sender, receiver)
}

async fn close_of(connection: &Connection) -> (u64, String) {
    match within(PATIENCE, connection.closed()).await.expect("the victim closes") {
        ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8(close.reason.to_vec()).unwrap())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_oversized_control_frame_costs_its_sender_the_connection() {
    smol::future::block_on(async {
        let scene = Scene::set().await;
        let (_endpoint, connection, mut sender, _receiver) = intrude(3, &scene).await;
        sender.write_all(&(2_u32 << 20).to_le_bytes()).await.unwrap();
        let (code, reason) = close_of(&connection).await;
        assert_eq!(code, CloseCode::Violation as u64);
        assert!(reason.contains("2097152 bytes; at most 1048576"), "{reason}");
        assert_eq!(scene.down_reason(id(3)).await, format!("closed here: {reason}"));
        scene.is_unharmed().await;
    });
}

#[test]
fn a_broken_control_stream_ends_the_connection() {
    smol::future::block_on(async {
        let scene = Scene::set().await;
        let (_endpoint, connection, mut sender, _receiver) = intrude(4, &scene).await;
        sender.write_all(&[9, 0, 0, 0, 1]).await.unwrap();
        sender.finish().unwrap();
        let (code, reason) = close_of(&connection).await;
        assert_eq!(
            (code, reason.as_str()),
            (CloseCode::Violation as u64, "its control stream ended inside a frame")
        );
        scene.down_reason(id(4)).await;
        scene.is_unharmed().await;
    });
}

#[test]
fn garbage_for_a_greeting_is_refused() {
    smol::future::block_on(async {
        let scene = Scene::set().await;
        let (_endpoint, connection) = connect(&Identity::new(key(5), NETWORK), &scene.victim).await;
        let (mut sender, _receiver) = connection.open_bi().await.unwrap();
        sender.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(close_of(&connection).await.0, CloseCode::Violation as u64);
        let reason = scene.refusal().await;
        assert!(reason.contains(&id(5).to_string()), "{reason}");
        scene.is_unharmed().await;
    });
}

#[test]
fn an_unknown_kind_of_stream_is_reset_and_the_connection_lives() {
    smol::future::block_on(async {
        let scene = Scene::set().await;
        let (_endpoint, connection, mut sender, _receiver) = intrude(6, &scene).await;
        let (mut unknown, mut answer) = connection.open_bi().await.unwrap();
        unknown.write_all(&[250]).await.unwrap();
        let stopped = within(PATIENCE, unknown.stopped()).await.unwrap().unwrap();
        assert_eq!(stopped, Some(StreamCode::UnknownKind.number()));
        assert!(answer.read(&mut [0]).await.is_err());
        wire::write_frame(&mut sender, b"still here".to_vec()).await.unwrap();
        until(&scene.events, |event| matches!(event, Event::Control { frame, .. } if frame == b"still here"))
            .await;
    });
}

#[test]
fn without_the_secret_key_there_is_no_connection() {
    smol::future::block_on(async {
        let scene = Scene::set().await;
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let name = server_name(None);
        let address = scene.victim.local_address();
        // No key at all, and the good peer's key without its secret half.
        let nameless = Identity::new(key(7), NETWORK).client_without_key();
        let thief = Identity::impersonating(key(8), NETWORK, id(2)).client(None).unwrap().0;
        for tls in [nameless, thief] {
            let config = quinn::ClientConfig::new(Arc::new(tls));
            let connecting = endpoint.connect_with(config, address, &name).unwrap();
            // A TLS 1.3 client may be done before the server has judged it.
            let ended = async {
                match connecting.await {
                    Ok(connection) => connection.closed().await,
                    Err(error) => error,
                }
            };
            let error = within(PATIENCE, ended).await.expect("the victim refuses");
            assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error}");
            scene.refusal().await;
        }
        assert_eq!(scene.victim.peers().len(), 1);
        scene.is_unharmed().await;
    });
}

#[test]
fn a_listener_without_the_secret_key_is_not_believed() {
    smol::future::block_on(async {
        let identity = Identity::impersonating(key(9), NETWORK, id(10));
        let config = quinn::ServerConfig::with_crypto(Arc::new(identity.server().unwrap()));
        let thief = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let (mesh, events) = start(11);
        mesh.keep(PeerAddress { node: Some(id(10)), address: thief.local_addr().unwrap() });
        let incoming = within(PATIENCE, thief.accept()).await.unwrap().unwrap();
        // The handshake goes on while this lives.
        let _connecting = incoming.accept().unwrap();
        until(&events, |event| matches!(event, Event::Refused { .. })).await;
        assert!(mesh.peers().is_empty());
    });
}

#[test]
fn datagrams_of_garbage_change_nothing() {
    smol::future::block_on(async {
        let scene = Scene::set().await;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut garbage = [0; 1400];
        for round in 0..500_u32 {
            blake3::Hasher::new().update(&round.to_le_bytes()).finalize_xof().fill(&mut garbage);
            let length = 1 + usize::try_from(round).unwrap() * 7 % garbage.len();
            // Half of them look like QUIC version 1.
            if round % 2 == 0 {
                garbage[0] |= 0xc0;
                garbage[1..5].copy_from_slice(&[0, 0, 0, 1]);
            }
            socket.send_to(&garbage[..length], scene.victim.local_address()).unwrap();
        }
        scene.is_unharmed().await;
        let (late, _events) = start(12);
        late.keep(PeerAddress::from(scene.victim.local_address()));
        until(&scene.events, |event| matches!(event, Event::Up { node, .. } if *node == id(12))).await;
    });
}

#[test]
fn a_holder_that_stalls_is_given_up() {
    smol::future::block_on(async {
        let scene = Scene::set().await;
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let holding = async {
            let event = until(&scene.events, |event| matches!(event, Event::Stream { .. })).await;
            let Event::Stream { mut stream, .. } = event else { panic!("{event:?}") };
            // It announces a thousand bytes, sends four, and falls silent until the fetcher leaves.
            stream.read_exact(&mut [0; 32]).await.unwrap();
            stream.write_all(&[&[1], &1000_u64.to_le_bytes()[..], b"four"].concat()).await.unwrap();
            while stream.write_all(&[]).await.is_ok() && stream.read(&mut [0]).await != Ok(None) {}
            stream
        };
        let digest = Digest::of(b"wanted");
        let holders = [scene.victim.node()];
        let silence = Duration::from_millis(300);
        let wanted = [(digest, 1000)];
        let fetching = fetch_patiently(&scene.good, &store, &wanted, &holders, silence, |_| {});
        let (_stream, result) = smol::future::zip(holding, fetching).await;
        match result.unwrap_err() {
            FetchError::Holders { failures, .. } => {
                let stalled = HolderFailure::Stalled { timeout_ms: 300, received: 4 };
                assert_eq!(failures, [(scene.victim.node(), stalled)]);
            }
            other => panic!("{other}"),
        }
        scene.is_unharmed().await;
    });
}
