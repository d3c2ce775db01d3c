//! The mesh as the daemon sees it: bind, keep, send, open, close, and one stream of events.
//!
//! Must never decide what a frame means or whom to trust beyond its key: no policy lives here.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use skein_proto::ids::{NetworkId, NodeId};
use smol::Timer;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt as _;
use smol::lock::Semaphore;

use crate::address::PeerAddress;
use crate::counted::Counted;
use crate::error::{BindError, OpenError, SendError};
use crate::greeting;
use crate::identity::Identity;
use crate::keeper::{self, Keepers, Patience};
use crate::limits::{
    BULK_STREAMS_MAX, CLOSE_DRAIN_TIMEOUT, CLOSE_FLUSH_TIMEOUT, CONNECTION_WINDOW_BYTES, CONNECTIONS_MAX,
    DIALS_MAX, EVENTS_MAX, FRAME_BYTES_MAX, GREETINGS_MAX, IDLE_TIMEOUT_MS, KEEP_ALIVE, STREAM_OPEN_TIMEOUT,
    STREAM_WINDOW_BYTES,
};
use crate::link::Link;
use crate::plain;
use crate::socket;
use crate::stream::{BulkStream, StreamKind};
use crate::table::Table;
use crate::traffic::Traffic;
use crate::wire::{self, CloseCode};

/// What a mesh needs to start.
#[derive(Debug)]
pub struct MeshConfig {
    /// The agent's key; its public half is the node id.
    pub key: SigningKey,
    /// Agents of other networks are refused in the handshake.
    pub network: NetworkId,
    /// Where to listen; port 0 picks a free one. `[::]` serves IPv4 as well.
    pub listen: SocketAddr,
    /// Addresses to keep from the start, as by [`Mesh::keep`].
    pub bootstrap: Vec<PeerAddress>,
}

/// What happens on the mesh. For one peer the order is `Up`, any `Control`, `Down`; a `Stream` that
/// crosses a `Down` may come after it, and then fails at once.
#[derive(Debug)]
pub enum Event {
    /// A connection to the node is agreed by both sides.
    Up {
        /// The peer.
        node: NodeId,
        /// Where its packets come from.
        address: SocketAddr,
        /// Whether this agent dialled.
        dialled: bool,
    },
    /// The connection to the node ended. Frames that were queued and not yet delivered are lost.
    Down {
        /// The peer.
        node: NodeId,
        /// Who ended it and why.
        reason: String,
    },
    /// A control frame arrived.
    Control {
        /// Who sent it, proven.
        from: NodeId,
        /// Its bytes: never empty, never more than `FRAME_BYTES_MAX`.
        frame: Vec<u8>,
    },
    /// The peer opened a bulk stream.
    Stream {
        /// Who opened it, proven.
        from: NodeId,
        /// What it carries.
        kind: StreamKind,
        /// The stream, after its kind byte.
        stream: BulkStream,
    },
    /// Somebody was not let in, or did not let this agent in: a wrong key, another network, a broken
    /// greeting. For logs; reported once per kept address and reason, and dropped under load.
    Refused {
        /// The other end.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// A handle to the mesh. Clones share it; when the last one is dropped every connection closes.
#[derive(Clone, Debug)]
pub struct Mesh {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.shut();
    }
}

impl Mesh {
    /// Binds the socket and starts the mesh on smol's global executor.
    ///
    /// The receiver must be drained: at [`EVENTS_MAX`] waiting events every peer is made to wait.
    /// It ends when the mesh has closed and its connections are reported down.
    pub fn bind(config: MeshConfig) -> Result<(Self, Receiver<Event>), BindError> {
        let listen = config.listen;
        let socket = plain::wrap(socket::bind(listen)?);
        Self::over(config, socket.map_err(|source| BindError::Socket { address: listen, source })?)
    }

    /// The same over a socket that is bound.
    pub(crate) fn over(
        config: MeshConfig,
        socket: Arc<dyn AsyncUdpSocket>,
    ) -> Result<(Self, Receiver<Event>), BindError> {
        let MeshConfig { key, network, listen, bootstrap } = config;
        let identity = Identity::new(key, network);
        let tls = |error: rustls::Error| BindError::Tls { reason: error.to_string() };
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(identity.server().map_err(tls)?));
        server
            .transport_config(Arc::new(transport(None)))
            .max_incoming(GREETINGS_MAX)
            // What comes before the keys are proven fits into a few packets.
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(1 << 20);
        let mut endpoint_config = EndpointConfig::new(identity.reset_key());
        let connection_ids = identity.connection_ids();
        endpoint_config.cid_generator(move || Box::new(connection_ids.clone()));

        let failed = |source| BindError::Socket { address: listen, source };
        let runtime = Arc::new(crate::tasks::OurTasks);
        let traffic = Arc::new(Traffic::default());
        let socket = Arc::new(Counted::new(socket, Arc::clone(&traffic)));
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config, Some(server), socket, runtime)
            .map_err(failed)?;
        let local_address = endpoint.local_addr().map_err(failed)?;
        let (events, receiver) = smol::channel::bounded(EVENTS_MAX);
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(identity.node, CONNECTIONS_MAX)),
            identity,
            endpoint,
            local_address,
            dialling: Arc::new(transport(Some(KEEP_ALIVE))),
            events,
            keepers: Mutex::new(Keepers::default()),
            dials: Semaphore::new(DIALS_MAX),
            greetings: AtomicUsize::new(0),
            numbers: AtomicU64::new(0),
            traffic,
        });
        crate::tasks::spawn(accept(shared.clone())).detach();
        for peer in bootstrap {
            keeper::keep(&shared, peer, Patience::Endless);
        }
        Ok((Self { handle: Arc::new(Handle(shared)) }, receiver))
    }

    /// Where this agent listens, with the port that was picked.
    pub fn local_address(&self) -> SocketAddr {
        self.shared().local_address
    }

    /// This agent's node id.
    pub fn node(&self) -> NodeId {
        self.shared().identity.node
    }

    /// Keeps a connection to this address until [`Mesh::forget`]: dials, waits while the node is up by
    /// any connection, and dials again. The own node id is ignored. False if too many are kept.
    pub fn keep(&self, peer: PeerAddress) -> bool {
        keeper::keep(self.shared(), peer, Patience::Endless)
    }

    /// Like [`Mesh::keep`] for an address learnt from others: given up after
    /// `HINT_FAILURES_MAX` failures in a row. False if too many hints are being tried.
    pub fn hint(&self, peer: PeerAddress) -> bool {
        keeper::keep(self.shared(), peer, Patience::Hint)
    }

    /// Stops dialling this address. A connection that is up stays.
    pub fn forget(&self, peer: &PeerAddress) {
        keeper::forget(self.shared(), peer);
    }

    /// Queues one control frame. Frames arrive once and in order while the connection lives; when it
    /// ends, those not yet delivered are lost, and `Down` says so.
    pub fn send(&self, to: NodeId, frame: Vec<u8>) -> Result<(), SendError> {
        if frame.is_empty() {
            return Err(SendError::Empty);
        }
        if frame.len() > FRAME_BYTES_MAX {
            return Err(SendError::TooLarge { bytes: frame.len(), bytes_max: FRAME_BYTES_MAX });
        }
        self.link(to).ok_or(SendError::NotConnected { node: to })?.send(frame)
    }

    /// The nodes that are up and where their packets come from, ordered by node id.
    pub fn peers(&self) -> Vec<(NodeId, SocketAddr)> {
        self.shared().table().links().map(|(node, link)| (node, link.address())).collect()
    }

    /// The smoothed round-trip time to a node that is up.
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.link(node).map(|link| link.connection.rtt())
    }

    /// The smoothed round-trip times to all nodes that are up, in microseconds, ordered by node id.
    pub fn round_trips(&self) -> Vec<(NodeId, u32)> {
        let micros = |link: &Link| u32::try_from(link.connection.rtt().as_micros()).unwrap_or(u32::MAX);
        self.shared().table().links().map(|(node, link)| (node, micros(link))).collect()
    }

    /// Opens a bulk stream. The peer learns of it with the first packet, so at once.
    pub async fn open(&self, to: NodeId, kind: StreamKind) -> Result<BulkStream, OpenError> {
        let link = self.link(to).ok_or(OpenError::NotConnected { node: to })?;
        let opened = within(STREAM_OPEN_TIMEOUT, async {
            let (mut sender, receiver) = link.connection.open_bi().await?;
            if sender.write_all(&[kind.byte()]).await.is_err() {
                return Err(link.connection.closed().await);
            }
            Ok((sender, receiver))
        });
        match opened.await {
            Some(Ok((sender, receiver))) => {
                Ok(BulkStream::new(sender, receiver, self.shared().traffic.clone()))
            }
            Some(Err(error)) => Err(OpenError::Lost { node: to, reason: wire::describe(&error) }),
            None => Err(OpenError::Busy { node: to, timeout_ms: STREAM_OPEN_TIMEOUT.as_millis() }),
        }
    }

    /// Ends the connection to a node, at once and on both sides; `Down` follows. A kept address is
    /// dialled again after a pause.
    pub fn disconnect(&self, node: NodeId, reason: &str) {
        if let Some(link) = self.link(node) {
            link.close(CloseCode::Disconnected, reason);
        }
    }

    /// Lets bulk streams send, and receive, no more than so many bytes a second, all together; nothing is no limit.
    pub fn limit_rate(&self, bytes_per_s: Option<u64>) {
        self.shared().traffic.limit(bytes_per_s);
    }

    /// Payload bytes sent since the start: control frames and bulk streams.
    pub fn bytes_sent(&self) -> u64 {
        self.shared().traffic.sent()
    }

    /// Payload bytes received since the start: control frames and bulk streams.
    pub fn bytes_received(&self) -> u64 {
        self.shared().traffic.received()
    }

    /// Bytes that went over the line since the start, in both directions: all that the socket sent and received in
    /// UDP, with handshakes, acknowledgements and what was sent again, and from strangers too.
    pub fn line_bytes(&self) -> u64 {
        self.shared().traffic.on_line()
    }

    /// Delivers what is queued, within half a second, and closes every connection, so that peers
    /// notice at once. Takes no new ones. The events of it still come.
    pub async fn close(&self) {
        let shared = self.shared();
        shared.stop_keepers();
        let links: Vec<Arc<Link>> = shared.table().links().map(|(_, link)| link.clone()).collect();
        let flushed = async {
            // All queues first, so that the waits overlap.
            for link in &links {
                link.stop_queue();
            }
            for link in &links {
                link.flushed().await;
            }
        };
        if within(CLOSE_FLUSH_TIMEOUT, flushed).await.is_none() {
            tracing::debug!("closed before every control frame was acknowledged");
        }
        shared.shut();
        // A peer that does not answer its close only costs time.
        let _ = within(CLOSE_DRAIN_TIMEOUT, shared.endpoint.wait_idle()).await;
    }

    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.shared().traffic
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.shared().table().link(node).cloned()
    }
}

/// What every task of the mesh shares.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) endpoint: Endpoint,
    /// Transport settings of the connections that this agent dials.
    pub(crate) dialling: Arc<TransportConfig>,
    pub(crate) traffic: Arc<Traffic>,
    /// One permit for each handshake that this agent may start.
    pub(crate) dials: Semaphore,
    /// Incoming connections that have not greeted yet.
    pub(crate) greetings: AtomicUsize,
    local_address: SocketAddr,
    events: Sender<Event>,
    table: Mutex<Table<Arc<Link>>>,
    keepers: Mutex<Keepers>,
    numbers: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("node", &self.identity.node).finish_non_exhaustive()
    }
}

impl Shared {
    /// Never held across an await, nor together with `keepers`.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table<Arc<Link>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never held across an await, nor together with `table`.
    pub(crate) fn keepers(&self) -> MutexGuard<'_, Keepers> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for room in the event queue, and so pushes back on the peer that the event is about.
    pub(crate) async fn report(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            tracing::trace!("an event after the daemon stopped listening");
        }
    }

    /// Reports a stranger's failure, unless the daemon is busy: strangers must not fill the queue.
    pub(crate) fn report_refusal(&self, address: SocketAddr, reason: String) {
        tracing::debug!(%address, reason, "refused");
        if self.events.len() < EVENTS_MAX / 2 {
            // A full or closed queue has better use than this.
            let _ = self.events.try_send(Event::Refused { address, reason });
        }
    }

    fn stop_keepers(&self) {
        let stopped = self.keepers().stop();
        drop(stopped);
    }

    fn shut(&self) {
        self.stop_keepers();
        self.endpoint.close(CloseCode::Stopping.number(), b"the agent stops");
    }
}

/// Takes incoming connections until the endpoint closes; each greets in its own task.
async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        if let Some((incoming, greeting)) = greeting::admit(&shared, incoming) {
            crate::tasks::spawn(greeting::answer(shared.clone(), incoming, greeting)).detach();
        }
    }
}

/// The result of a future, or `None` if it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, future: impl IntoFuture<Output = T>) -> Option<T> {
    let future = future.into_future();
    async { Some(future.await) }
        .or(async {
            Timer::after(limit).await;
            None
        })
        .await
}

fn transport(keep_alive: Option<Duration>) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(keep_alive)
        // One more than the bulk streams: the control stream.
        .max_concurrent_bidi_streams(VarInt::from_u32(BULK_STREAMS_MAX + 1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES));
    transport
}
