//! A port forward that takes its time: datagrams to it reach their target so much later, and answers come back
//! the same way; and no faster than a line that all of one direction share.
//!
//! Makes a far network of one machine, without privileges. Must never reorder, drop or look into a datagram.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use smol::Task;
use smol::channel::{Receiver, Sender};
use smol::net::UdpSocket;

use crate::agents::Network;

/// Datagrams under way in one direction of one flow; more are waited for.
const UNDER_WAY_MAX: usize = 4_096;
/// Longer than any datagram.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// A forward that works until it is dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    _task: Task<()>,
}

impl Relay {
    /// Forwards to `target`, `one_way` later.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(target: SocketAddr, one_way: Duration) -> io::Result<Self> {
        Self::over(target, Line { one_way, bytes_per_s: f64::INFINITY })
    }

    /// The same over a line that takes so many bytes a second each way.
    ///
    /// # Errors
    /// When no port is free.
    pub fn over(target: SocketAddr, line: Line) -> io::Result<Self> {
        let socket = smol::future::block_on(UdpSocket::bind("127.0.0.1:0"))?;
        let address = socket.local_addr()?;
        Ok(Self { address, _task: skein_mesh::spawn(forward(socket, target, line)) })
    }
}

/// How far and how wide.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// What a datagram takes for its way.
    pub one_way: Duration,
    /// Each way; infinite for as fast as this machine is.
    pub bytes_per_s: f64,
}

/// Agents that reach each other only over such lines.
///
/// # Errors
/// When one does not start, or they do not meet.
pub fn network(count: usize, line: Line) -> Result<(Network, Vec<Relay>)> {
    let mut relays = Vec::new();
    let mut network = Network::empty(3_600_000)?;
    let mut first: Option<String> = None;
    for _ in 0..count {
        // A port that was free a moment ago: the relay must know it before the agent has it.
        let listen = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let relay = Relay::over(listen, line)?;
        let (listen, advertised) = (listen.to_string(), relay.address.to_string());
        let mut arguments = vec!["--listen", &listen, "--advertise", &advertised];
        if let Some(first) = &first {
            arguments.extend(["--bootstrap", first]);
        }
        let agent = network.start(&arguments)?;
        first.get_or_insert_with(|| format!("{}@{}", agent.node, relay.address));
        relays.push(relay);
    }
    network.met(count)?;
    Ok((network, relays))
}

/// One direction of a line: when what was sent last has left it.
#[derive(Clone)]
struct Lane {
    line: Line,
    free_at: Arc<Mutex<Instant>>,
}

impl Lane {
    fn new(line: Line) -> Self {
        Self { line, free_at: Arc::new(Mutex::new(Instant::now())) }
    }

    /// When a datagram of so many bytes arrives that is sent now.
    fn arrives(&self, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::cast_precision_loss, reason = "datagrams are short")]
        let takes = Duration::from_secs_f64(bytes as f64 / self.line.bytes_per_s);
        *free_at = (*free_at).max(Instant::now()) + takes;
        *free_at + self.line.one_way
    }
}

type Delayed = (Instant, Vec<u8>);

/// One who sends to the relay: the way to the target, and the tasks of both directions.
struct Flow {
    outward: Sender<Delayed>,
    _tasks: [Task<()>; 3],
}

async fn forward(socket: UdpSocket, target: SocketAddr, line: Line) {
    let (there, back) = (Lane::new(line), Lane::new(line));
    let mut flows: BTreeMap<SocketAddr, Flow> = BTreeMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is about a datagram that was sent earlier, to somebody who is gone.
        let Ok((bytes, client)) = socket.recv_from(&mut buffer).await else { continue };
        let flow = match flows.entry(client) {
            Entry::Occupied(flow) => flow.into_mut(),
            Entry::Vacant(place) => {
                let Ok(flow) = open(socket.clone(), client, target, back.clone()).await else { continue };
                place.insert(flow)
            }
        };
        let _ = flow.outward.send((there.arrives(bytes), buffer[..bytes].to_vec())).await;
    }
}

async fn open(socket: UdpSocket, client: SocketAddr, target: SocketAddr, back: Lane) -> io::Result<Flow> {
    let upstream = UdpSocket::bind("127.0.0.1:0").await?;
    upstream.connect(target).await?;
    let (outward, to_send) = smol::channel::bounded::<Delayed>(UNDER_WAY_MAX);
    let (homeward, to_return) = smol::channel::bounded::<Delayed>(UNDER_WAY_MAX);
    let tasks = [
        skein_mesh::spawn(deliver(to_send, upstream.clone(), target)),
        skein_mesh::spawn(deliver(to_return, socket, client)),
        skein_mesh::spawn(listen(upstream, homeward, back)),
    ];
    Ok(Flow { outward, _tasks: tasks })
}

async fn listen(upstream: UdpSocket, homeward: Sender<Delayed>, back: Lane) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok(bytes) = upstream.recv(&mut buffer).await else { continue };
        if homeward.send((back.arrives(bytes), buffer[..bytes].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn deliver(datagrams: Receiver<Delayed>, socket: UdpSocket, to: SocketAddr) {
    let connected = socket.peer_addr().is_ok();
    while let Ok((due, bytes)) = datagrams.recv().await {
        smol::Timer::at(due).await;
        // Nobody may be there any more, as with any datagram.
        let _ = if connected { socket.send(&bytes).await } else { socket.send_to(&bytes, to).await };
    }
}
