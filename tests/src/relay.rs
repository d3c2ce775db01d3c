//! A port forward that takes its time: datagrams to it reach their target so much later, and answers come back
//! the same way.
//!
//! Makes a far network of one machine, without privileges. Must never reorder, drop or look into a datagram.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smol::Task;
use smol::channel::{Receiver, Sender};
use smol::net::UdpSocket;

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
        let socket = smol::block_on(UdpSocket::bind("127.0.0.1:0"))?;
        let address = socket.local_addr()?;
        Ok(Self { address, _task: smol::spawn(forward(socket, target, one_way)) })
    }
}

type Delayed = (Instant, Vec<u8>);

/// One who sends to the relay: the way to the target, and the tasks of both directions.
struct Flow {
    outward: Sender<Delayed>,
    _tasks: [Task<()>; 3],
}

async fn forward(socket: UdpSocket, target: SocketAddr, one_way: Duration) {
    let mut flows: BTreeMap<SocketAddr, Flow> = BTreeMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is about a datagram that was sent earlier, to somebody who is gone.
        let Ok((bytes, client)) = socket.recv_from(&mut buffer).await else { continue };
        let flow = match flows.entry(client) {
            Entry::Occupied(flow) => flow.into_mut(),
            Entry::Vacant(place) => {
                let Ok(flow) = open(socket.clone(), client, target, one_way).await else { continue };
                place.insert(flow)
            }
        };
        let _ = flow.outward.send((Instant::now() + one_way, buffer[..bytes].to_vec())).await;
    }
}

async fn open(
    socket: UdpSocket,
    client: SocketAddr,
    target: SocketAddr,
    one_way: Duration,
) -> io::Result<Flow> {
    let upstream = UdpSocket::bind("127.0.0.1:0").await?;
    upstream.connect(target).await?;
    let (outward, to_send) = smol::channel::bounded::<Delayed>(UNDER_WAY_MAX);
    let (homeward, to_return) = smol::channel::bounded::<Delayed>(UNDER_WAY_MAX);
    let tasks = [
        smol::spawn(deliver(to_send, upstream.clone(), target)),
        smol::spawn(deliver(to_return, socket, client)),
        smol::spawn(listen(upstream, homeward, one_way)),
    ];
    Ok(Flow { outward, _tasks: tasks })
}

async fn listen(upstream: UdpSocket, homeward: Sender<Delayed>, one_way: Duration) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok(bytes) = upstream.recv(&mut buffer).await else { continue };
        if homeward.send((Instant::now() + one_way, buffer[..bytes].to_vec())).await.is_err() {
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
