//! Whether the agents of `bootstrap` answer, asked by a command while no agent runs here.
//!
//! The question is a QUIC packet of a version that nobody speaks: whoever serves QUIC answers with those that it speaks
//! (RFC 9000, 6.1). Must never open a connection, nor show a key.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use skein_mesh::PeerAddress;

use super::Finding;

/// How often each is asked.
const TRIES: u32 = 2;
/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// Servers leave shorter questions unanswered.
const QUESTION_BYTES: usize = 1_200;

pub(super) fn look(bootstrap: &[PeerAddress]) -> Vec<Finding> {
    let asked = bootstrap.iter().map(|peer| match ask(peer.address) {
        Ok(()) => Finding::good("reachability", format!("{} answers", peer.address)),
        Err(error) => Finding::poor(
            "reachability",
            format!("{} does not answer: {error}", peer.address),
            "see whether its address is still right and it runs, and let UDP out of this machine",
        ),
    });
    let unseen = "whether others reach this machine cannot be checked while no agent runs";
    let told = if bootstrap.is_empty() {
        format!("config.toml names no `bootstrap` to ask, and {unseen}")
    } else {
        unseen.to_owned()
    };
    asked.chain([Finding::unknown("reachability", told, "start the agent, then look again")]).collect()
}

fn ask(address: SocketAddr) -> io::Result<()> {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(ANSWER_WAIT))?;
    let question = question();
    let mut answer = [0; QUESTION_BYTES];
    for _ in 0..TRIES {
        socket.send(&question)?;
        match socket.recv(&mut answer) {
            // A long header whose version is zero.
            Ok(5..) if answer[0] & 0x80 != 0 && answer[1..5] == [0; 4] => return Ok(()),
            Ok(_) => return Err(io::Error::other("what is there is no agent")),
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came back"))
}

/// A long header, a version of those that are kept for this, the lengths of two ids of a connection, and zeros.
fn question() -> [u8; QUESTION_BYTES] {
    let mut question = [0; QUESTION_BYTES];
    question[..6].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8]);
    question
}

#[cfg(test)]
mod tests {
    use skein_mesh::{Mesh, MeshConfig};
    use skein_proto::ids::NetworkId;

    use super::super::Health;
    use super::*;

    #[test]
    fn an_agent_answers_and_what_is_none_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let key = crate::identity::load_or_create(folder.path()).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = MeshConfig { key, network: NetworkId([3; 32]), listen, bootstrap: Vec::new() };
        let (mesh, _events) = Mesh::bind(config).unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peers = [mesh.local_address(), silent.local_addr().unwrap()].map(PeerAddress::from);
        let told = look(&peers);
        let states: Vec<_> = told.iter().map(|finding| finding.state).collect();
        assert_eq!(states, [Health::Good, Health::Poor, Health::Unknown], "{told:?}");
        assert_eq!(look(&[]).len(), 1, "what was not asked is not good");
    }
}
