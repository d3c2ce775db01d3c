//! Connections between real meshes on loopback: who is let in, how often, and what is said when not.

use crate::node::{NETWORK, Node, config, id, in_time, key, pair};
use skein_mesh::limits::{FRAME_BYTES_MAX, OUTGOING_BYTES_MAX};
use skein_mesh::{BindError, Event, Mesh, MeshConfig, PeerAddress, SendError, StreamError, StreamKind};
use skein_proto::ids::NetworkId;

#[test]
fn frames_arrive_in_order_both_ways() {
    smol::future::block_on(async {
        let (one, two) = pair(1, 2).await;
        for number in 0..200_u32 {
            one.mesh.send(two.id(), number.to_le_bytes().to_vec()).unwrap();
        }
        for number in 0..200_u32 {
            match two.next().await {
                Event::Control { from, frame } => {
                    assert_eq!((from, frame), (one.id(), number.to_le_bytes().to_vec()));
                }
                other => panic!("{other:?}"),
            }
        }
        let large = vec![7; FRAME_BYTES_MAX];
        two.mesh.send(one.id(), large.clone()).unwrap();
        one.until_frame(&large).await;
        assert_eq!(one.mesh.bytes_received(), FRAME_BYTES_MAX as u64);
        assert_eq!(two.mesh.bytes_received(), 800);
        assert_eq!(one.mesh.peers(), vec![(two.id(), two.mesh.local_address())]);
        assert!(one.mesh.round_trip(two.id()).unwrap().as_secs() < 5);
    });
}

#[test]
fn sending_is_bounded_and_says_why_not() {
    smol::future::block_on(async {
        let (one, two) = pair(3, 4).await;
        let to = two.id();
        assert_eq!(one.mesh.send(to, vec![]), Err(SendError::Empty));
        let bytes = FRAME_BYTES_MAX + 1;
        let too_large = SendError::TooLarge { bytes, bytes_max: FRAME_BYTES_MAX };
        assert_eq!(one.mesh.send(to, vec![0; bytes]), Err(too_large));
        let node = id(9);
        assert_eq!(one.mesh.send(node, vec![0]), Err(SendError::NotConnected { node }));
        // Nobody drains the receiver's events: windows fill, then the queue, then the sender is told.
        let mut queued = 0;
        let error = loop {
            match one.mesh.send(to, vec![0; FRAME_BYTES_MAX]) {
                Ok(()) => queued += 1,
                Err(error) => break error,
            }
            assert!(queued < 1000, "the queue has no bound");
        };
        assert_eq!(error, SendError::QueueFull { node: to });
        assert!(queued >= OUTGOING_BYTES_MAX / FRAME_BYTES_MAX);
        // What was taken arrives.
        for _ in 0..queued {
            two.until(|event| matches!(event, Event::Control { .. })).await;
        }
    });
}

#[test]
fn an_address_alone_is_enough() {
    smol::future::block_on(async {
        let two = Node::start(6);
        let one = Node::with(config(5, vec![PeerAddress::from(two.mesh.local_address())]));
        one.until_up(two.id()).await;
        two.until_up(one.id()).await;
    });
}

#[test]
fn a_wrong_key_is_refused_and_both_ids_are_named() {
    smol::future::block_on(async {
        let two = Node::start(8);
        let one = Node::start(7);
        one.mesh.keep(PeerAddress { node: Some(id(99)), ..two.contact() });
        match one.next().await {
            Event::Refused { address, reason } => {
                assert_eq!(address, two.mesh.local_address());
                assert!(reason.contains(&id(99).to_string()), "{reason}");
                assert!(reason.contains(&two.id().to_string()), "{reason}");
                assert!(reason.contains("hint:"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert!(one.mesh.peers().is_empty() && two.mesh.peers().is_empty());
    });
}

#[test]
fn another_network_is_refused_on_both_sides() {
    smol::future::block_on(async {
        let two = Node::start(11);
        let other = MeshConfig { network: NetworkId([1; 32]), ..config(10, vec![two.contact()]) };
        assert_ne!(other.network, NETWORK);
        let one = Node::with(other);
        for node in [&one, &two] {
            match node.next().await {
                Event::Refused { reason, .. } => assert!(reason.contains("another network"), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn nobody_connects_to_oneself() {
    smol::future::block_on(async {
        let one = Node::start(12);
        let two = Node::start(13);
        one.mesh.keep(one.contact());
        one.mesh.keep(PeerAddress::from(one.mesh.local_address()));
        one.mesh.keep(two.contact());
        let seen = one.until_up(two.id()).await;
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(one.mesh.peers().len(), 1);
    });
}

#[test]
fn simultaneous_dials_end_with_one_connection_on_both_sides() {
    smol::future::block_on(async {
        for round in 0..20_u8 {
            let one = Node::start(round);
            let two = Node::start(100 + round);
            one.mesh.keep(two.contact());
            two.mesh.keep(one.contact());
            let mut seen_by_one = one.until_up(two.id()).await;
            let mut seen_by_two = two.until_up(one.id()).await;
            // Both directions work, and whatever the lost duel stirs up comes before the last answer.
            for trip in 1..=5 {
                one.mesh.send(two.id(), vec![trip]).unwrap();
                seen_by_two.extend(two.until_frame(&[trip]).await);
                two.mesh.send(one.id(), vec![trip]).unwrap();
                seen_by_one.extend(one.until_frame(&[trip]).await);
            }
            let first = one.id();
            drop(one);
            two.until_down(first).await;
            let seen = [seen_by_one, seen_by_two];
            let count = |fits: fn(&Event) -> bool| {
                seen.each_ref().map(|events| events.iter().filter(|e| fits(e)).count())
            };
            assert_eq!(count(|event| matches!(event, Event::Up { .. })), [1, 1], "round {round}");
            assert_eq!(count(|event| matches!(event, Event::Down { .. })), [0, 0], "round {round}");
            assert_eq!(count(|event| matches!(event, Event::Refused { .. })), [0, 0], "round {round}");
            // They speak of the same connection.
            let dialled = |events: &[Event]| {
                events.iter().find_map(|event| match event {
                    Event::Up { dialled, .. } => Some(*dialled),
                    Event::Down { .. }
                    | Event::Control { .. }
                    | Event::Stream { .. }
                    | Event::Refused { .. } => None,
                })
            };
            assert_ne!(dialled(&seen[0]), dialled(&seen[1]), "round {round}");
        }
    });
}

#[test]
fn an_orderly_restart_is_noticed_at_once_and_the_peer_returns() {
    smol::future::block_on(async {
        let (one, two) = pair(14, 15).await;
        let address = two.mesh.local_address();
        two.mesh.send(one.id(), b"last words".to_vec()).unwrap();
        two.mesh.close().await;
        drop(two);
        one.until_frame(b"last words").await;
        let reason = one.until_down(id(15)).await;
        assert!(reason.contains("the agent stops"), "{reason}");
        // The port is free once the old socket's driver has noticed.
        let two = in_time("the port to be free", async {
            loop {
                match Mesh::bind(MeshConfig { listen: address, ..config(15, vec![]) }) {
                    Ok((mesh, events)) => return Node { mesh, events },
                    Err(BindError::InUse { .. }) => smol::future::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await;
        one.until_up(two.id()).await;
        two.until_up(one.id()).await;
    });
}

#[test]
fn disconnect_ends_it_on_both_sides_and_a_kept_peer_returns() {
    smol::future::block_on(async {
        let (one, two) = pair(16, 17).await;
        two.mesh.disconnect(one.id(), "no answer to pings");
        assert_eq!(two.until_down(one.id()).await, "closed here: no answer to pings");
        assert_eq!(one.until_down(two.id()).await, "the peer closed it: no answer to pings");
        one.until_up(two.id()).await;
        two.until_up(one.id()).await;
        // Forgotten, it stays away: the next to connect is another.
        one.mesh.forget(&two.contact());
        two.mesh.disconnect(one.id(), "again");
        two.until_down(one.id()).await;
        one.until_down(two.id()).await;
        let three = Node::with(config(18, vec![two.contact()]));
        let seen = two.until_up(three.id()).await;
        assert_eq!(seen.len(), 1, "{seen:?}");
    });
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    smol::future::block_on(async {
        let one = Node::start(19);
        let error =
            Mesh::bind(MeshConfig { listen: one.mesh.local_address(), ..config(20, vec![]) }).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, BindError::InUse { .. }), "{text}");
        assert!(text.contains(&one.mesh.local_address().to_string()) && text.contains("hint:"), "{text}");
        let nowhere = "192.0.2.1:0".parse().unwrap();
        let error = Mesh::bind(MeshConfig { listen: nowhere, ..config(20, vec![]) }).unwrap_err();
        assert!(matches!(error, BindError::NotHere { .. }), "{error}");
    });
}

#[test]
fn a_bulk_stream_carries_frames_in_order_and_its_end() {
    smol::future::block_on(async {
        let (one, two) = pair(21, 22).await;
        // The dialled side opens as well as the dialling one.
        for (opener, other) in [(&one, &two), (&two, &one)] {
            let mut stream = opener.mesh.open(other.id(), StreamKind::Stage).await.unwrap();
            let sending = async {
                for number in 0..50_u8 {
                    stream.send_frame(&vec![number; usize::from(number) * 1000]).await.unwrap();
                }
                stream.finish().unwrap();
                let reply = in_time("a reply", stream.recv_frame(9)).await.unwrap();
                assert_eq!(reply.as_deref(), Some(&b"reply"[..]));
            };
            let receiving = async {
                let (from, kind, stream) = next_stream(other).await;
                assert_eq!((from, kind), (opener.id(), StreamKind::Stage));
                let (mut sender, mut receiver) = stream.split();
                for number in 0..50_u8 {
                    let frame = in_time("a frame", receiver.recv_frame(1 << 20)).await.unwrap().unwrap();
                    assert_eq!(frame, vec![number; usize::from(number) * 1000]);
                }
                assert_eq!(receiver.recv_frame(1).await.unwrap(), None);
                sender.send_frame(b"reply").await.unwrap();
                sender.finish().unwrap();
            };
            smol::future::zip(sending, receiving).await;
        }
    });
}

#[test]
fn a_dropped_or_oversized_bulk_stream_is_an_error_and_the_connection_lives() {
    smol::future::block_on(async {
        let (one, two) = pair(23, 24).await;
        let mut stream = one.mesh.open(two.id(), StreamKind::Stage).await.unwrap();
        stream.send_frame(b"complete").await.unwrap();
        let (_, _, mut incoming) = next_stream(&two).await;
        let first = in_time("a frame", incoming.recv_frame(99)).await.unwrap();
        assert_eq!(first.as_deref(), Some(&b"complete"[..]));
        drop(stream);
        let error = in_time("the end", incoming.recv_frame(99)).await.unwrap_err();
        assert!(matches!(error, StreamError::Abandoned { .. }), "{error}");

        let mut stream = one.mesh.open(two.id(), StreamKind::Stage).await.unwrap();
        stream.send_frame(&[0; 100]).await.unwrap();
        let (_, _, mut incoming) = next_stream(&two).await;
        let error = in_time("a frame", incoming.recv_frame(99)).await.unwrap_err();
        assert_eq!(error, StreamError::TooLarge { bytes: 100, bytes_max: 99 });

        one.mesh.send(two.id(), b"alive".to_vec()).unwrap();
        assert_eq!(two.until_frame(b"alive").await.len(), 1);
    });
}

async fn next_stream(node: &Node) -> (skein_proto::ids::NodeId, StreamKind, skein_mesh::BulkStream) {
    match node.until(|event| matches!(event, Event::Stream { .. })).await.pop() {
        Some(Event::Stream { from, kind, stream }) => (from, kind, stream),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_handle_closes_the_mesh() {
    smol::future::block_on(async {
        let (one, two) = pair(25, 26).await;
        let clone = one.mesh.clone();
        let Node { mesh, events } = one;
        drop(mesh);
        assert_eq!(clone.peers().len(), 1);
        drop(clone);
        two.until_down(id(25)).await;
        let ended = async { while events.recv().await.is_ok() {} };
        in_time("the events to end", ended).await;
        assert_eq!(key(25).verifying_key().to_bytes(), id(25).0);
    });
}

#[test]
fn what_the_line_carries_is_counted_with_all_that_quic_adds() {
    smol::future::block_on(async {
        let (one, two) = pair(27, 28).await;
        one.mesh.send(two.id(), vec![7; 1_000]).unwrap();
        two.until_frame(&[7; 1_000]).await;
        // The first packet of a handshake has 1,200 bytes.
        for node in [&one, &two] {
            let (line, payload) =
                (node.mesh.line_bytes(), node.mesh.bytes_sent() + node.mesh.bytes_received());
            assert!(line > 1_200 + payload, "{line} bytes for {payload}");
        }
        // So has that of one that nobody answers.
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let alone = Node::start(29);
        alone.mesh.keep(PeerAddress::from(silent.local_addr().unwrap()));
        in_time("a packet", async {
            while alone.mesh.line_bytes() < 1_200 {
                smol::future::yield_now().await;
            }
        })
        .await;
        assert_eq!(alone.mesh.bytes_sent(), 0);
    });
}
