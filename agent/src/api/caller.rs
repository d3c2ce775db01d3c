//! Which user of this machine is at the other end of a connection: Linux tells it in `/proc/net/tcp`, others do not.
//!
//! Must never take what it cannot find out for a user.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The two ends of a connection, as this agent sees them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) own: SocketAddr,
    pub(super) peer: SocketAddr,
}

impl Ends {
    /// The user id of the peer, if it is on this machine and the system tells.
    pub(super) fn user(self) -> Option<u32> {
        let table = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        // A peer may have a socket of either kind, whatever the address.
        ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|path| self.user_in(&table(path)))
    }

    fn user_in(self, table: &str) -> Option<u32> {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let wanted = (plain(self.peer), plain(self.own));
        table.lines().skip(1).find_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let ends = (plain(address(fields.next()?)?), plain(address(fields.next()?)?));
            (ends == wanted).then(|| fields.nth(4)?.parse().ok()).flatten()
        })
    }
}

/// As the kernel writes it: `0100007F:1C8F`, each word of four bytes as a number of this machine.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(8 * at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_row_of_the_peers_socket_tells_its_user() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1C8F 0100007F:A1B2 01 00000000:00000000 00:00000000 00000000     7        0 1 1\n\
            1: 0100007F:A1B2 0100007F:1C8F 01 00000000:00000000 00:00000000 00000000  1000        0 2 1\n\
            2: garbage\n";
        let ends = |own: &str, peer: &str| Ends { own: own.parse().unwrap(), peer: peer.parse().unwrap() };
        assert_eq!(ends("127.0.0.1:7311", "127.0.0.1:41394").user_in(table), Some(1000));
        assert_eq!(ends("127.0.0.1:7312", "127.0.0.1:41394").user_in(table), None);
        let six = "head\n\
            0: 0000000000000000FFFF00000100007F:A1B2 0000000000000000FFFF00000100007F:1C8F 01 0:0 00:0 0 1001 0 3 1\n\
            1: 00000000000000000000000001000000:A1B2 00000000000000000000000001000000:1C8F 01 0:0 00:0 0 1002 0 4 1\n";
        assert_eq!(ends("127.0.0.1:7311", "127.0.0.1:41394").user_in(six), Some(1001));
        assert_eq!(ends("[::1]:7311", "[::1]:41394").user_in(six), Some(1002));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_connection_of_this_process_is_its_users() {
        use std::os::unix::fs::MetadataExt;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = Ends { own: client.peer_addr().unwrap(), peer: client.local_addr().unwrap() };
        let me = std::fs::metadata("/proc/self").unwrap().uid();
        assert_eq!(ends.user(), Some(me));
    }
}
