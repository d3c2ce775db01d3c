//! Whether anybody still listens where a silent peer was: its machine says so itself.
//!
//! When an agent is killed its machine lives on, and answers what still comes to the agent's port with "port
//! unreachable". QUIC must not hear that, since anybody can forge it. Here it is asked for, from a socket of
//! its own, so that it cannot be forged without guessing that socket's port in time; only after silence; and
//! only of a machine that says nothing of the kind while the agent lives, for there are firewalls that
//! answer so to every stranger. Must never end a link on silence alone: a busy machine is silent too.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use smol::Timer;
use smol::net::UdpSocket;

use crate::limits::{PULSE_ANSWER_TIMEOUT, PULSE_QUIET};
use crate::link::Link;
use crate::mesh::within;

/// Too short to be a packet of QUIC's: whoever listens drops it unanswered.
const PROBE: [u8; 1] = [0x40];

/// What a machine says of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// Nothing, as it should while somebody listens there.
    Nothing,
    /// Nobody listens there.
    Closed,
    /// It cannot be asked.
    Unknown,
}

/// Returns once nobody listens at the peer's address any more; never, where its machine does not say.
pub(crate) async fn ended(link: &Link) {
    // The peer has just spoken: from what its machine says now it is seen what its word is worth.
    let (mut address, mut last) = (link.address(), Instant::now());
    let mut trusted = ask(address).await == Said::Nothing;
    loop {
        // Looked at as seldom as it can be, since every look wakes an idle agent once for every peer.
        Timer::at(last + PULSE_QUIET).await;
        let heard = link.heard();
        if heard > last {
            last = heard;
            if link.address() != address {
                address = link.address();
                trusted = ask(address).await == Said::Nothing;
            }
            continue;
        }
        let received = || link.connection.stats().udp_rx.datagrams;
        let before = received();
        if trusted && ask(address).await == Said::Closed && received() == before {
            return;
        }
        // It is only silent. It is asked again after as much silence.
        last = Instant::now();
    }
}

async fn ask(address: SocketAddr) -> Said {
    let asked = async {
        let any = match address.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(address).await?;
        socket.send(&PROBE).await?;
        socket.recv(&mut [0; 1]).await
    };
    match within(PULSE_ANSWER_TIMEOUT, asked).await {
        None | Some(Ok(_)) => Said::Nothing,
        Some(Err(error)) if is_closed(&error) => Said::Closed,
        Some(Err(error)) => {
            tracing::debug!(%address, %error, "cannot ask whether a port is open");
            Said::Unknown
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_listener_is_there_and_a_dead_one_is_not() {
        smol::future::block_on(async {
            for any in ["127.0.0.1:0", "[::1]:0"] {
                let Ok(listener) = std::net::UdpSocket::bind(any) else { continue };
                let address = listener.local_addr().unwrap();
                // It never reads, like a process that gets no processor time.
                for _ in 0..3 {
                    assert_eq!(ask(address).await, Said::Nothing);
                }
                drop(listener);
                assert_eq!(ask(address).await, Said::Closed);
            }
        });
    }
}
