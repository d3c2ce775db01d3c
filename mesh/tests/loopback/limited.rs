//! Lines that their owners limit: transfers take their time, and nobody is given up for it.

use std::time::{Duration, Instant};

use crate::blobs::{connect, pattern, serve};
use crate::node::{Node, within};
use skein_mesh::{BlobStore, fetch_blobs};
use skein_proto::ids::{Digest, NodeId};
use smol::Task;

/// Bytes a second.
const RATE: u64 = 20_000;
/// What the transfers here need at that rate is 20 s.
const LONG: Duration = Duration::from_secs(60);

/// An agent, and another that holds what it wants.
struct Scene {
    one: Node,
    two: Node,
    mine: BlobStore,
    wanted: Vec<(Digest, u64)>,
    holders: Vec<NodeId>,
    _serving: Task<()>,
    _folders: [tempfile::TempDir; 2],
}

impl Scene {
    async fn set(seed: u8, pieces: usize, piece_bytes: usize) -> Self {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mine, theirs) = (BlobStore::open(here.path()).unwrap(), BlobStore::open(there.path()).unwrap());
        let (one, two) = (Node::start(seed), Node::start(seed + 1));
        let holders = connect(&one, &[&two]).await;
        let content = pattern(pieces * piece_bytes);
        let wanted = content
            .chunks(piece_bytes)
            .map(|piece| (theirs.import(piece).unwrap(), piece_bytes as u64))
            .collect();
        let serving = serve(&two, &theirs);
        Self { one, two, mine, wanted, holders, _serving: serving, _folders: [here, there] }
    }

    /// Fetches it all; how long that took.
    async fn fetch(&self) -> Duration {
        let started = Instant::now();
        let fetching = fetch_blobs(&self.one.mesh, &self.mine, &self.wanted, &self.holders, |_| {});
        within(LONG, "a slow fetch", fetching).await.unwrap();
        assert!(self.wanted.iter().all(|(digest, _)| self.mine.has(digest)));
        started.elapsed()
    }
}

/// One after the other, so that the last waits longer than a silent holder is borne with.
#[test]
fn a_holder_with_a_slow_line_is_waited_for() {
    smol::future::block_on(async {
        let scene = Scene::set(71, 5, 80_000).await;
        scene.two.mesh.limit_rate(Some(RATE));
        let took = scene.fetch().await;
        assert!(took >= Duration::from_secs(19), "{took:?}");
    });
}

#[test]
fn a_fetcher_with_a_slow_line_blames_no_holder() {
    smol::future::block_on(async {
        let scene = Scene::set(73, 5, 80_000).await;
        scene.one.mesh.limit_rate(Some(RATE));
        let took = scene.fetch().await;
        assert!(took >= Duration::from_secs(19), "{took:?}");
    });
}

/// What came and is held back must not fill the connection's window.
#[test]
fn control_frames_come_through_while_blobs_are_held_back() {
    smol::future::block_on(async {
        let scene = Scene::set(75, 8, 5 << 20).await;
        let Scene { one, two, mine, wanted, holders, .. } = &scene;
        one.mesh.limit_rate(Some(RATE));
        let fetching = async { Some(fetch_blobs(&one.mesh, mine, wanted, holders, |_| {}).await) };
        let talking = async {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(3) {
                two.mesh.send(one.id(), b"beat".to_vec()).unwrap();
                one.until_frame(b"beat").await;
            }
            None
        };
        let ended = smol::future::or(fetching, talking).await;
        assert!(ended.is_none(), "{ended:?}");
    });
}
