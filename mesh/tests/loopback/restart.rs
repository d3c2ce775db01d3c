//! A peer killed without a word and started again with the same key is back within seconds, not after
//! QUIC's idle timeout. The peer is this test binary, started as a child process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::node::{Node, config, id};
use skein_mesh::limits::PULSE_ANSWER_TIMEOUT;
use skein_mesh::{Event, MeshConfig, PeerAddress};

const CHILD: &str = "SKEIN_MESH_TEST_CHILD";
const CHILD_SEED: u8 = 200;

struct Peer {
    process: Child,
    address: SocketAddr,
}

impl Peer {
    /// Starts a peer that listens there and, if told, dials there.
    fn start(listen: SocketAddr, dial: Option<PeerAddress>) -> Self {
        let dial = dial.map(|peer| peer.to_string()).unwrap_or_default();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "restart::child", "--nocapture"])
            .env(CHILD, format!("{listen} {dial}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| line.unwrap().split_once("listening on ").map(|(_, address)| address.parse()))
            .unwrap()
            .unwrap();
        Self { process, address }
    }

    /// Kills it without a word; where it was.
    fn kill(self) -> SocketAddr {
        self.address
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Not a test by itself: what the child process runs. It echoes frames until it is killed.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let (listen, dial) = arguments.split_once(' ').unwrap();
    let bootstrap = dial.split_whitespace().map(|peer| peer.parse().unwrap()).collect();
    smol::future::block_on(async {
        let node =
            Node::with(MeshConfig { listen: listen.parse().unwrap(), ..config(CHILD_SEED, bootstrap) });
        println!("listening on {}", node.mesh.local_address());
        while let Ok(event) = node.events.recv().await {
            if let Event::Control { from, frame } = event {
                // The parent may be gone; then it kills this process.
                let _ = node.mesh.send(from, frame);
            }
        }
    });
}

#[test]
fn a_killed_peer_that_is_dialled_is_back_with_the_first_packet() {
    smol::future::block_on(async {
        let node = Node::start(1);
        let peer = Peer::start("127.0.0.1:0".parse().unwrap(), None);
        node.mesh.keep(PeerAddress { node: Some(id(CHILD_SEED)), address: peer.address });
        node.until_up(id(CHILD_SEED)).await;
        let address = peer.kill();
        let restarted = Instant::now();
        let peer = Peer::start(address, None);
        // The new process knows nothing of this connection and says so.
        node.mesh.send(id(CHILD_SEED), b"ping".to_vec()).unwrap();
        let reason = node.until_down(id(CHILD_SEED)).await;
        // Unless it was seen to be gone before.
        assert!(["it has restarted", "nobody listens"].iter().any(|why| reason.contains(why)), "{reason}");
        node.until_up(id(CHILD_SEED)).await;
        node.mesh.send(id(CHILD_SEED), b"again".to_vec()).unwrap();
        node.until_frame(b"again").await;
        println!("back after {:?}", restarted.elapsed());
        peer.kill();
    });
}

#[test]
fn a_killed_peer_is_missed_long_before_quic_gives_up() {
    smol::future::block_on(async {
        let node = Node::start(4);
        let mut gaps = Vec::new();
        for _ in 0..5 {
            let peer = Peer::start("127.0.0.1:0".parse().unwrap(), Some(node.contact()));
            node.until_up(id(CHILD_SEED)).await;
            let started = Instant::now();
            // Long enough for it to be seen what its machine's word is worth.
            while started.elapsed() < 2 * PULSE_ANSWER_TIMEOUT {
                node.mesh.send(id(CHILD_SEED), b"beat".to_vec()).unwrap();
                node.until_frame(b"beat").await;
            }
            peer.kill();
            let killed = Instant::now();
            let reason = node.until_down(id(CHILD_SEED)).await;
            assert!(reason.contains("nobody listens"), "{reason}");
            gaps.push(killed.elapsed());
        }
        println!("missed after {gaps:?}");
    });
}

#[test]
fn a_killed_peer_that_dials_replaces_its_old_connection() {
    smol::future::block_on(async {
        let node = Node::start(2);
        let anywhere = "127.0.0.1:0".parse().unwrap();
        for dial in [node.contact(), PeerAddress::from(node.mesh.local_address())] {
            let peer = Peer::start(anywhere, Some(dial));
            node.until_up(id(CHILD_SEED)).await;
            peer.kill();
            let restarted = Instant::now();
            let peer = Peer::start(anywhere, Some(dial));
            let reason = node.until_down(id(CHILD_SEED)).await;
            assert!(["connected anew", "nobody listens"].iter().any(|why| reason.contains(why)), "{reason}");
            let seen = node.until_up(id(CHILD_SEED)).await;
            assert_eq!(seen.len(), 1, "{seen:?}");
            node.mesh.send(id(CHILD_SEED), b"again".to_vec()).unwrap();
            node.until_frame(b"again").await;
            println!("back after {:?}", restarted.elapsed());
            peer.kill();
            node.mesh.disconnect(id(CHILD_SEED), "the next round begins");
            node.until_down(id(CHILD_SEED)).await;
        }
    });
}

#[test]
fn a_killed_peer_that_was_dialled_and_now_dials_is_known_to_have_restarted() {
    smol::future::block_on(async {
        let node = Node::start(3);
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let peer = Peer::start(anywhere, None);
        node.mesh.keep(PeerAddress { node: Some(id(CHILD_SEED)), address: peer.address });
        node.until_up(id(CHILD_SEED)).await;
        peer.kill();
        // It listens elsewhere now, so only its new run tells that the old connection is dead.
        let _peer = Peer::start(anywhere, Some(node.contact()));
        let reason = node.until_down(id(CHILD_SEED)).await;
        assert!(["connected anew", "nobody listens"].iter().any(|why| reason.contains(why)), "{reason}");
        node.until_up(id(CHILD_SEED)).await;
        node.mesh.send(id(CHILD_SEED), b"again".to_vec()).unwrap();
        node.until_frame(b"again").await;
    });
}
