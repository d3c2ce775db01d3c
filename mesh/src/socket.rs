//! The UDP socket under the endpoint.
//!
//! Must never fail over a tuning option: a smaller buffer is slower, not wrong.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::BindError;
use crate::limits::SOCKET_BUFFER_BYTES;

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the system has more errors than have a hint of their own"
)]
pub(crate) fn bind(address: SocketAddr) -> Result<UdpSocket, BindError> {
    open(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        io::ErrorKind::AddrNotAvailable => BindError::NotHere { address },
        io::ErrorKind::PermissionDenied => BindError::Forbidden { address },
        _ => BindError::Socket { address, source },
    })
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6()
        && let Err(error) = socket.set_only_v6(false)
    {
        tracing::debug!(%error, "the socket serves IPv6 only");
    }
    for result in
        [socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES), socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)]
    {
        if let Err(error) = result {
            tracing::debug!(%error, "the system grants smaller socket buffers");
        }
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}
