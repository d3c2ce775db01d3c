//! A peer with a valid key that does not behave: it speaks the mesh's protocol and says what it likes.
//!
//! Built on the mesh crate, because its lies are told above the transport. Must never be believed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ed25519_dalek::SigningKey;
use skein_mesh::{BlobStore, BulkStream, Event, Mesh, MeshConfig, StreamKind, fetch_blob, serve_blob};
use skein_proto::election::Reign;
use skein_proto::ids::{Digest, Millis, NetworkId, NodeId};
use skein_proto::message::Message;
use skein_proto::offer::{Offer, WorkerOffer};
use skein_proto::signed::{Signed, decode, encode};
use smol::channel::Receiver;

use crate::agents::{Agent, SOON, wait_for};

/// First byte of a frame: for the core.
pub const CORE: u8 = 0;
/// First byte of a frame: for the ledger.
pub const LEDGER: u8 = 1;

/// A connected stranger.
#[derive(Debug)]
pub struct Rogue {
    /// Its key.
    pub key: SigningKey,
    /// The network whose handshake it passes.
    pub network: NetworkId,
    /// The agent it talks to.
    pub victim: NodeId,
    mesh: Mesh,
    events: Receiver<Event>,
    /// The reign that it says it obeys, twice a second, so that it is not taken for dead.
    reign: Arc<Mutex<Option<Reign>>>,
    /// Ends with this value, and with it the connection.
    _beating: smol::Task<()>,
}

impl Rogue {
    /// Connects to an agent.
    ///
    /// # Errors
    /// When the agent does not let it in.
    pub fn join(agent: &Agent, secret: u8) -> Result<Self> {
        let status = agent.status()?;
        let network: NetworkId = status["network_id"].as_str().context("no network id")?.parse()?;
        let key = SigningKey::from_bytes(&[secret; 32]);
        let victim: NodeId = agent.node.parse()?;
        let bootstrap = vec![format!("{}@{}", agent.node, agent.listen).parse()?];
        let listen = "127.0.0.1:0".parse()?;
        let (mesh, events) = Mesh::bind(MeshConfig { key: key.clone(), network, listen, bootstrap })?;
        let reign: Arc<Mutex<Option<Reign>>> = Arc::default();
        let (beating, said) = (mesh.clone(), Arc::clone(&reign));
        let beats = skein_mesh::spawn(async move {
            loop {
                let reign = *said.lock().unwrap_or_else(PoisonError::into_inner);
                let frame = [&[CORE], encode(&Message::Beat { reign }).as_slice()].concat();
                for (peer, _) in beating.peers() {
                    let _ = beating.send(peer, frame.clone());
                }
                smol::Timer::after(Duration::from_millis(500)).await;
            }
        });
        let rogue = Self { key, network, victim, mesh, events, reign, _beating: beats };
        rogue.connected()?;
        Ok(rogue)
    }

    /// Its node id.
    pub fn node(&self) -> NodeId {
        self.mesh.node()
    }

    /// Says from now on that it obeys this coordinator.
    pub fn obey(&self, reign: Option<Reign>) {
        *self.reign.lock().unwrap_or_else(PoisonError::into_inner) = reign;
    }

    /// Waits until the connection to the victim is up (again).
    ///
    /// # Errors
    /// When it does not come up.
    pub fn connected(&self) -> Result<()> {
        let started = Instant::now();
        while !self.mesh.peers().iter().any(|(node, _)| *node == self.victim) {
            self.next(started)?;
        }
        Ok(())
    }

    /// Sends any bytes as a control frame. What cannot be sent at the moment is lost.
    pub fn frame(&self, bytes: Vec<u8>) {
        let _ = self.mesh.send(self.victim, bytes);
    }

    /// Says something to the victim's core.
    pub fn say(&self, message: &Message) {
        self.frame([&[CORE], encode(message).as_slice()].concat());
    }

    /// Opens a stream to the victim.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self, kind: StreamKind) -> Result<BulkStream> {
        Ok(smol::future::block_on(self.mesh.open(self.victim, kind))?)
    }

    /// Fetches a blob from the victim.
    ///
    /// # Errors
    /// When it does not hand it over.
    pub fn fetch(&self, store: &BlobStore, digest: Digest) -> Result<()> {
        const BYTES_MAX: u64 = 1 << 20;
        smol::future::block_on(fetch_blob(&self.mesh, store, digest, &[self.victim], BYTES_MAX))?;
        Ok(())
    }

    /// Hands every stream of this kind that the victim opens to `answer`, until `done`.
    pub fn answer(&self, kind: StreamKind, done: &AtomicBool, mut answer: impl FnMut(BulkStream)) {
        while !done.load(Ordering::Relaxed) {
            let event =
                smol::future::block_on(smol::future::or(async { self.events.recv().await.ok() }, async {
                    smol::Timer::after(Duration::from_millis(50)).await;
                    None
                }));
            if let Some(Event::Stream { stream, kind: opened, .. }) = event
                && opened == kind
            {
                answer(stream);
            }
        }
    }

    /// Connects to another agent as well.
    ///
    /// # Errors
    /// When it does not let it in.
    pub fn meet(&self, agent: &Agent) -> Result<()> {
        let node: NodeId = agent.node.parse()?;
        self.mesh.keep(format!("{}@{}", agent.node, agent.listen).parse()?);
        wait_for("a further connection", SOON, || {
            Ok(self.mesh.peers().iter().any(|(peer, _)| *peer == node).then_some(()))
        })
    }

    /// Offers to work, as an honest newcomer would, to everybody it is connected to.
    pub fn offer(&self, now: Millis) {
        let worker = WorkerOffer {
            // What a terminal would obey is not told on: others show `rogue`.
            device: "\u{1b}rog\u{202e}ue".into(),
            backend: "cpu".into(),
            matrix_mflops: 100_000,
            memory_mbps: 10_000,
            transfer_mbps: 1_000,
            memory_bytes: 1 << 30,
            open: true,
        };
        let offer = Offer {
            workers: vec![worker],
            addresses: vec![self.mesh.local_address().to_string()],
            issued_at: now,
        };
        let offer = Signed::new(offer, &self.network, &self.key).into_envelope();
        let frame = [&[CORE], encode(&Message::Offers(vec![offer])).as_slice()].concat();
        for (peer, _) in self.mesh.peers() {
            let _ = self.mesh.send(peer, frame.clone());
        }
    }

    /// Waits for a message of the victim in which `find` finds something.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn hears<T>(&self, what: &str, mut find: impl FnMut(Message) -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            let event = self.next(started).with_context(|| format!("waiting for {what}"))?;
            if let Event::Control { from, frame } = event
                && from == self.victim
                && let Some((&CORE, bytes)) = frame.split_first()
                && let Some(found) = decode(bytes).ok().and_then(&mut find)
            {
                return Ok(found);
            }
        }
    }

    /// Serves what lies in `store` to whoever fetches it, and hands every message of the victim to `act`, until `done`.
    pub fn work(&self, store: &BlobStore, done: &AtomicBool, mut act: impl FnMut(Message)) {
        while !done.load(Ordering::Relaxed) {
            let event =
                smol::future::block_on(smol::future::or(async { self.events.recv().await.ok() }, async {
                    smol::Timer::after(Duration::from_millis(50)).await;
                    None
                }));
            match event {
                Some(Event::Stream { stream, kind: StreamKind::Blob, .. }) => {
                    let store = store.clone();
                    skein_mesh::spawn(async move { serve_blob(stream, &store).await }).detach();
                }
                Some(Event::Control { from, frame }) if from == self.victim => {
                    if let Some((&CORE, bytes)) = frame.split_first()
                        && let Ok(message) = decode(bytes)
                    {
                        act(message);
                    }
                }
                _ => {}
            }
        }
    }

    fn next(&self, since: Instant) -> Result<Event> {
        let left = SOON.saturating_sub(since.elapsed());
        let event =
            smol::future::block_on(smol::future::or(async { self.events.recv().await.ok() }, async {
                smol::Timer::after(left).await;
                None
            }));
        match event {
            Some(event) => Ok(event),
            None => bail!("nothing within {} s", SOON.as_secs()),
        }
    }
}
