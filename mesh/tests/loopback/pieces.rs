//! Many blobs from many holders: all at work, none able to hold up or spoil the whole.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::blobs::{answer_with, connect, held, pattern, serve};
use crate::node::{Node, in_time};
use skein_mesh::{BlobStore, FetchError, Fetched, HolderFailure, fetch_blobs};
use skein_proto::ids::{Digest, NodeId};

const PIECE_BYTES: u64 = 4 << 20;

/// A store in a directory of its own.
fn store() -> (tempfile::TempDir, BlobStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    (directory, store)
}

/// The pieces of a model of `bytes`, in each of `stores`.
fn import(bytes: usize, stores: &[&BlobStore]) -> Vec<(Digest, u64)> {
    let content = pattern(bytes);
    let mut pieces = Vec::new();
    for store in stores {
        pieces = content.chunks(256 << 10).map(|piece| (store.import(piece).unwrap(), PIECE_BYTES)).collect();
    }
    pieces
}

/// Who gave how many.
fn givers(fetched: &[Fetched]) -> BTreeMap<Option<NodeId>, usize> {
    let mut givers = BTreeMap::new();
    for piece in fetched {
        *givers.entry(piece.from).or_default() += 1;
    }
    givers
}

#[test]
fn two_holders_serve_at_once_and_a_second_try_fetches_only_what_is_missing() {
    smol::future::block_on(async {
        let ((_here, mine), (_there, first), (_yonder, second)) = (store(), store(), store());
        let nodes: Vec<Node> = (41..=43).map(Node::start).collect();
        let holders = connect(&nodes[0], &[&nodes[1], &nodes[2]]).await;
        let _serving = [serve(&nodes[1], &first), serve(&nodes[2], &second)];
        let pieces = import(16 << 20, &[&first, &second]);
        let mut fetched = Vec::new();
        let fetching = fetch_blobs(&nodes[0].mesh, &mine, &pieces, &holders, |piece| fetched.push(piece));
        let started = Instant::now();
        in_time("sixty-four pieces", fetching).await.unwrap();
        let givers_then = givers(&fetched);
        println!("16 MB in {:?}, from {givers_then:?}", started.elapsed());
        assert_eq!(fetched.iter().map(|piece| piece.bytes).sum::<u64>(), 16 << 20);
        // Equal holders give about equally; each must have given something.
        assert!(holders.iter().all(|holder| givers_then[&Some(*holder)] >= 8), "{givers_then:?}");
        assert!([&nodes[1], &nodes[2]].iter().all(|node| node.mesh.bytes_sent() > 2 << 20));
        for (digest, _) in &pieces[..10] {
            mine.remove(*digest).await.unwrap();
        }
        fetched.clear();
        fetch_blobs(&nodes[0].mesh, &mine, &pieces, &holders, |piece| fetched.push(piece)).await.unwrap();
        assert_eq!(givers(&fetched)[&None], pieces.len() - 10);
        assert_eq!(fetched.len(), pieces.len());
    });
}

#[test]
fn liars_and_the_silent_lose_to_the_honest() {
    smol::future::block_on(async {
        let ((_here, mine), (_there, honest)) = (store(), store());
        let nodes: Vec<Node> = (51..=54).map(Node::start).collect();
        let holders = connect(&nodes[0], &[&nodes[1], &nodes[2], &nodes[3]]).await;
        // The third takes every request and never answers; what it holds up is asked of another.
        let _tasks = [answer_with(&nodes[1], held(5, b"false")), serve(&nodes[2], &honest)];
        let pieces = import(8 << 20, &[&honest]);
        let mut fetched = Vec::new();
        let fetching = fetch_blobs(&nodes[0].mesh, &mine, &pieces, &holders, |piece| fetched.push(piece));
        let started = Instant::now();
        in_time("thirty-two pieces", fetching).await.unwrap();
        println!("8 MB in {:?} past a liar and a mute", started.elapsed());
        assert_eq!(givers(&fetched), BTreeMap::from([(Some(holders[1]), pieces.len())]));
        for (digest, _) in pieces {
            assert_eq!(Digest::of(&mine.load(digest, PIECE_BYTES).await.unwrap()), digest);
        }
    });
}

#[test]
fn what_nobody_has_is_named_and_what_came_before_is_kept() {
    smol::future::block_on(async {
        let ((_here, mine), (_there, first), (_yonder, second)) = (store(), store(), store());
        let nodes: Vec<Node> = (61..=63).map(Node::start).collect();
        let holders = connect(&nodes[0], &[&nodes[1], &nodes[2]]).await;
        let _serving = [serve(&nodes[1], &first), serve(&nodes[2], &second)];
        let mut pieces = import(4 << 20, &[&first, &second]);
        let missing = Digest::of(b"nobody has this");
        pieces.push((missing, PIECE_BYTES));
        let fetch = async |pieces: &[(Digest, u64)]| {
            fetch_blobs(&nodes[0].mesh, &mine, pieces, &holders, |_| {}).await
        };
        match in_time("a fetch", fetch(&pieces)).await.unwrap_err() {
            FetchError::Holders { digest, mut failures } => {
                assert_eq!(digest, missing);
                failures.sort_unstable_by_key(|(node, _)| *node);
                let mut expected: Vec<_> =
                    holders.iter().map(|node| (*node, HolderFailure::NotHeld)).collect();
                expected.sort_unstable_by_key(|(node, _)| *node);
                assert_eq!(failures, expected);
            }
            other => panic!("{other}"),
        }
        pieces.pop();
        in_time("a fetch", fetch(&pieces)).await.unwrap();
        assert!(pieces.iter().all(|(digest, _)| mine.has(digest)));
    });
}
