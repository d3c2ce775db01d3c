//! A UDP socket that asks its system for nothing: no offloading, no marks of congestion, no search for a larger packet.
//!
//! For systems that refuse what quinn's own socket asks for, as Wine and old Windows do: slower there, not wrong. Must never
//! end an endpoint over one datagram.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, Runtime, SmolRuntime, UdpPoller};
use smol::Async;

/// The socket as quinn uses it: its own way where the system lets it, and this one otherwise.
pub(crate) fn wrap(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    match UdpSocketState::new((&socket).into()) {
        Ok(_) => SmolRuntime.wrap_udp_socket(socket),
        Err(error) => {
            tracing::warn!(%error, "this system's UDP lacks what makes it fast; going on without");
            plain(socket)
        }
    }
}

pub(crate) fn plain(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(Arc::new(Plain { socket: Async::new(socket)? }))
}

#[derive(Debug)]
struct Plain {
    socket: Async<UdpSocket>,
}

impl AsyncUdpSocket for Plain {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.socket.get_ref().send_to(transmit.contents, transmit.destination) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // A datagram that could not be sent is one that was lost.
            Err(error) => {
                tracing::debug!(to = %transmit.destination, %error, "a datagram was not sent");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        told: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(told)) = (buffers.first_mut(), told.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        loop {
            match self.socket.get_ref().recv_from(buffer) {
                Ok((len, addr)) => {
                    *told = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_readable(context))?;
                }
                // Windows tells here of earlier datagrams that nobody took, and of one that is too long.
                Err(error) => tracing::debug!(%error, "a datagram was not received"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// One task's wait until the socket takes more.
struct Writable {
    socket: Arc<Plain>,
    waiting: Option<Waiting>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Writable").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = Arc::clone(&self.socket);
        let waiting =
            self.waiting.get_or_insert_with(|| Box::pin(async move { socket.socket.writable().await }));
        let writable = ready!(waiting.as_mut().poll(context));
        self.waiting = None;
        Poll::Ready(writable)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use skein_proto::ids::NetworkId;
    use smol::channel::Receiver;

    use super::*;
    use crate::{Event, Mesh, MeshConfig, PeerAddress, StreamKind};

    fn mesh(number: u8, bootstrap: Vec<PeerAddress>) -> (Mesh, Receiver<Event>) {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = MeshConfig {
            key: SigningKey::from_bytes(&[number; 32]),
            network: NetworkId([7; 32]),
            listen,
            bootstrap,
        };
        let socket = plain(crate::socket::bind(listen).unwrap()).unwrap();
        Mesh::over(config, socket).unwrap()
    }

    #[test]
    fn agents_without_the_fast_ways_meet_and_a_megabyte_arrives_whole() {
        smol::future::block_on(async {
            let (one, events) = mesh(1, Vec::new());
            let address = PeerAddress { node: Some(one.node()), address: one.local_address() };
            let (other, met) = mesh(2, vec![address]);
            while !matches!(met.recv().await.unwrap(), Event::Up { .. }) {}
            let sent: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
            let mut stream = other.open(one.node(), StreamKind::Blob).await.unwrap();
            let bytes = sent.clone();
            let sending = crate::tasks::spawn(async move {
                stream.send_frame(&bytes).await.unwrap();
                stream.finish().unwrap();
                stream
            });
            let mut arrived = loop {
                if let Event::Stream { stream, .. } = events.recv().await.unwrap() {
                    break stream;
                }
            };
            assert!(arrived.recv_frame(2 << 20).await.unwrap().unwrap() == sent);
            drop(sending.await);
        });
    }
}
