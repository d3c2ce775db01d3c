//! Blobs between real meshes on loopback: intact, from whoever has them, or an error that says why.

use crate::node::{Node, in_time};
use skein_mesh::{
    BlobStore, Event, FetchError, HolderFailure, StoreError, StreamKind, fetch_blob, serve_blob,
};
use skein_proto::ids::{Digest, NodeId};
use smol::Task;

const MEGABYTE: u64 = 1 << 20;

/// Serves blobs to whoever asks until dropped.
pub(crate) fn serve(node: &Node, store: &BlobStore) -> Task<()> {
    let (events, store) = (node.events.clone(), store.clone());
    skein_mesh::spawn(async move {
        while let Ok(event) = events.recv().await {
            if let Event::Stream { kind: StreamKind::Blob, stream, .. } = event {
                let store = store.clone();
                skein_mesh::spawn(async move {
                    // The fetcher may stop early; it says why.
                    let _ = serve_blob(stream, &store).await;
                })
                .detach();
            }
        }
    })
}

/// Answers every request with these bytes, whatever was asked.
pub(crate) fn answer_with(node: &Node, answer: Vec<u8>) -> Task<()> {
    let events = node.events.clone();
    skein_mesh::spawn(async move {
        while let Ok(event) = events.recv().await {
            if let Event::Stream { mut stream, .. } = event {
                stream.read_exact(&mut [0; 32]).await.unwrap();
                // The fetcher may have seen enough before the end.
                let _ = stream.write_all(&answer).await;
                let _ = stream.finish();
            }
        }
    })
}

pub(crate) fn held(announced: u64, content: &[u8]) -> Vec<u8> {
    [&[1], &announced.to_le_bytes()[..], content].concat()
}

pub(crate) async fn connect(one: &Node, others: &[&Node]) -> Vec<NodeId> {
    for other in others {
        one.mesh.keep(other.contact());
        one.until_up(other.id()).await;
        other.until_up(one.id()).await;
    }
    others.iter().map(|other| other.id()).collect()
}

pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(b"pattern").finalize_xof().fill(&mut content);
    content
}

fn files(store: &tempfile::TempDir) -> usize {
    std::fs::read_dir(store.path()).unwrap().count()
}

#[test]
fn blobs_of_every_size_arrive_intact_and_together() {
    smol::future::block_on(async {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mine, theirs) = (BlobStore::open(here.path()).unwrap(), BlobStore::open(there.path()).unwrap());
        let (one, two) = (Node::start(1), Node::start(2));
        let holders = connect(&one, &[&two]).await;
        let _serving = serve(&two, &theirs);
        for bytes in [0, 1, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 9_000_001] {
            let content = pattern(bytes);
            let digest = theirs.put_bytes(content.clone()).await.unwrap();
            let fetch = || fetch_blob(&one.mesh, &mine, digest, &holders, 16 * MEGABYTE);
            let (first, second) = in_time("two fetches", smol::future::zip(fetch(), fetch())).await;
            assert_eq!((first.unwrap(), second.unwrap()), (mine.path(&digest), mine.path(&digest)));
            assert!(mine.load(digest, 16 * MEGABYTE).await.unwrap() == content, "{bytes} bytes differ");
        }
        assert_eq!(files(&here), 6, "no unfinished file is left");
        assert!(one.mesh.bytes_received() > 9_000_000 && two.mesh.bytes_sent() > 9_000_000);
        // What is held is not fetched again: there is nobody to ask.
        let digest = Digest::of(&pattern(1));
        assert_eq!(fetch_blob(&one.mesh, &mine, digest, &[], 1).await.unwrap(), mine.path(&digest));
    });
}

#[test]
fn the_next_holder_is_asked_when_one_lies_or_has_nothing() {
    smol::future::block_on(async {
        let (here, there, nothing) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mine, theirs) = (BlobStore::open(here.path()).unwrap(), BlobStore::open(there.path()).unwrap());
        let empty = BlobStore::open(nothing.path()).unwrap();
        let nodes: Vec<Node> = (11..=14).map(Node::start).collect();
        let holders = connect(&nodes[0], &[&nodes[1], &nodes[2], &nodes[3]]).await;
        let content = pattern(700_000);
        let digest = theirs.put_bytes(content.clone()).await.unwrap();
        let mut lie = content;
        lie[699_999] ^= 1;
        let _tasks = [
            answer_with(&nodes[1], held(700_000, &lie)),
            serve(&nodes[2], &empty),
            serve(&nodes[3], &theirs),
        ];
        // Alone, the first two are no use, and each is quoted.
        let fetch =
            async |holders: &[NodeId]| fetch_blob(&nodes[0].mesh, &mine, digest, holders, MEGABYTE).await;
        let error = in_time("a fetch", fetch(&holders[..2])).await.unwrap_err();
        let text = error.to_string();
        match error {
            FetchError::Holders { failures, .. } => {
                assert!(
                    failures.contains(&(holders[0], HolderFailure::Lied { actual: Digest::of(&lie) })),
                    "{text}"
                );
                assert!(failures.contains(&(holders[1], HolderFailure::NotHeld)), "{text}");
            }
            other => panic!("{other}"),
        }
        assert!(text.contains(&holders[0].short()) && text.contains("lied"), "{text}");
        assert_eq!(files(&here), 0, "nothing of a lie is kept");
        // With the third, in whatever order they are asked, the blob comes.
        for rotation in 0..3 {
            let mut holders = holders.clone();
            holders.rotate_left(rotation);
            in_time("a fetch", fetch(&holders)).await.unwrap();
            mine.remove(digest).await.unwrap();
        }
    });
}

#[test]
fn holders_cannot_exceed_the_bound_or_stop_short() {
    smol::future::block_on(async {
        let here = tempfile::tempdir().unwrap();
        let mine = BlobStore::open(here.path()).unwrap();
        let nodes: Vec<Node> = (21..=24).map(Node::start).collect();
        let holders = connect(&nodes[0], &[&nodes[1], &nodes[2], &nodes[3]]).await;
        let _tasks = [
            answer_with(&nodes[1], held(u64::MAX, b"huge")),
            answer_with(&nodes[2], held(1000, b"short")),
            answer_with(&nodes[3], vec![77; 9]),
        ];
        let absent = NodeId([9; 32]);
        let asked = [&holders[..], &[absent]].concat();
        let digest = Digest::of(b"wanted");
        let error =
            in_time("a fetch", fetch_blob(&nodes[0].mesh, &mine, digest, &asked, 1000)).await.unwrap_err();
        let FetchError::Holders { mut failures, .. } = error else { panic!("{error}") };
        failures.sort_by_key(|(node, _)| asked.iter().position(|asked| asked == node));
        let texts: Vec<String> = failures.iter().map(|(_, failure)| failure.to_string()).collect();
        assert!(texts[0].contains("announced 18446744073709551615 bytes"), "{texts:?}");
        assert!(texts[1].contains("ended in the middle"), "{texts:?}");
        assert!(texts[2].contains("unknown status 77"), "{texts:?}");
        assert!(texts[3].contains("not connected"), "{texts:?}");
        let nobody = fetch_blob(&nodes[0].mesh, &mine, digest, &[nodes[0].id()], 1000).await.unwrap_err();
        assert!(matches!(nobody, FetchError::NoHolders { .. }), "{nobody}");
        // An aborted writer cleans up on its own thread.
        in_time("the store to be empty", async {
            while files(&here) > 0 {
                smol::future::yield_now().await;
            }
        })
        .await;
    });
}

#[test]
fn a_store_that_cannot_be_written_ends_the_fetch_with_its_own_error() {
    smol::future::block_on(async {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directory = here.path().join("blobs");
        let (mine, theirs) = (BlobStore::open(&directory).unwrap(), BlobStore::open(there.path()).unwrap());
        let (one, two) = (Node::start(31), Node::start(32));
        let holders = connect(&one, &[&two]).await;
        let _serving = serve(&two, &theirs);
        let digest = theirs.put_bytes(pattern(300_000)).await.unwrap();
        // Root may write anywhere, so the directory itself gives way to a file.
        std::fs::remove_dir(&directory).unwrap();
        std::fs::write(&directory, b"").unwrap();
        let error =
            in_time("a fetch", fetch_blob(&one.mesh, &mine, digest, &holders, MEGABYTE)).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, FetchError::Store(StoreError::Io { .. })), "{text}");
        assert!(text.contains(&directory.display().to_string()) && text.contains("hint:"), "{text}");
    });
}
