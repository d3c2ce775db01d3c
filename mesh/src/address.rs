//! Where a peer is: an address, and the node id that must answer there if it is known.
//!
//! Must never resolve names: an address that needs the network to be understood is not one.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use skein_proto::ids::NodeId;

/// `ADDRESS` or `NODEID@ADDRESS`.
///
/// Without a node id whoever answers is accepted, still authenticated by its own key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// The only node id that may answer there.
    pub node: Option<NodeId>,
    /// IP address and UDP port.
    pub address: SocketAddr,
}

/// Why a string is not a peer's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPeerAddress {
    /// The part before `@` is no node id.
    #[error("`{text}` is not a peer address: {source}\nhint: write NODEID@ADDRESS:PORT or only ADDRESS:PORT")]
    Node {
        /// What was given, shortened.
        text: String,
        /// What is wrong with the node id.
        source: skein_proto::ids::BadId,
    },
    /// The address is not numeric or lacks its port.
    #[error(
        "`{text}` is not a peer address: expected IP:PORT or NODEID@IP:PORT\n\
         hint: for example 192.0.2.7:4600 or [2001:db8::7]:4600"
    )]
    Address {
        /// What was given, shortened.
        text: String,
    },
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        Self { node: None, address }
    }
}

impl FromStr for PeerAddress {
    type Err = BadPeerAddress;

    fn from_str(text: &str) -> Result<Self, BadPeerAddress> {
        let shortened = || text.chars().take(120).collect::<String>();
        let (node, address) = match text.split_once('@') {
            Some((node, address)) => {
                let node =
                    node.parse().map_err(|source| BadPeerAddress::Node { text: shortened(), source })?;
                (Some(node), address)
            }
            None => (None, text),
        };
        let address: SocketAddr =
            address.parse().map_err(|_| BadPeerAddress::Address { text: shortened() })?;
        if address.port() == 0 {
            return Err(BadPeerAddress::Address { text: shortened() });
        }
        Ok(Self { node, address: canonical(address) })
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = self.node {
            write!(f, "{node}@")?;
        }
        write!(f, "{}", self.address)
    }
}

/// The address as people write it: an IPv4 address seen through an IPv6 socket is IPv4 again.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_survive_a_round_trip() {
        let node = NodeId([0xab; 32]);
        for text in ["192.0.2.7:4600".to_owned(), "[2001:db8::7]:1".to_owned(), format!("{node}@127.0.0.1:9")]
        {
            assert_eq!(text.parse::<PeerAddress>().unwrap().to_string(), text);
        }
        let mapped: PeerAddress = "[::ffff:192.0.2.7]:4600".parse().unwrap();
        assert_eq!(mapped.to_string(), "192.0.2.7:4600");
    }

    #[test]
    fn errors_quote_the_text_and_hint() {
        for (text, expected) in [
            ("", "expected IP:PORT"),
            ("example.org:4600", "expected IP:PORT"),
            ("192.0.2.7", "hint: for example"),
            ("192.0.2.7:0", "expected IP:PORT"),
            ("abc@192.0.2.7:4600", "hint: write NODEID@"),
        ] {
            let error = text.parse::<PeerAddress>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
