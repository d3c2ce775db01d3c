//! What can go wrong at the mesh's own calls, in words for the owner of the machine.
//!
//! Must never hold an error of a bulk stream or a blob: those live beside what fails.

use std::io;
use std::net::SocketAddr;

use skein_proto::ids::NodeId;

/// Why the mesh did not start. Nothing is left open.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process holds the port.
    #[error(
        "cannot listen on UDP {address}: the port is in use\n\
         hint: is another skein running? Stop it, or choose another port; port 0 picks a free one"
    )]
    InUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The machine has no such address.
    #[error(
        "cannot listen on UDP {address}: this machine does not have that address\n\
         hint: listen on 0.0.0.0 (or [::]) for all addresses"
    )]
    NotHere {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The system forbids it.
    #[error(
        "cannot listen on UDP {address}: permission denied\n\
         hint: ports below 1024 need privileges; choose a higher one"
    )]
    Forbidden {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// Anything else that the socket reported.
    #[error("cannot listen on UDP {address}: {source}")]
    Socket {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS for the mesh: {reason}")]
    Tls {
        /// What rustls or quinn said.
        reason: String,
    },
}

/// Why a control frame was not queued. Nothing of it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection to the node.
    #[error("not connected to node {node}")]
    NotConnected {
        /// The addressee.
        node: NodeId,
    },
    /// The node takes frames more slowly than they come.
    #[error("the queue of control frames to node {node} is full")]
    QueueFull {
        /// The addressee.
        node: NodeId,
    },
    /// The frame exceeds `FRAME_BYTES_MAX`.
    #[error("a control frame of {bytes} bytes is larger than the {bytes_max} allowed")]
    TooLarge {
        /// The frame's length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The frame holds nothing; the wire uses empty frames for itself.
    #[error("a control frame must not be empty")]
    Empty,
}

/// Why a bulk stream was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to the node.
    #[error("not connected to node {node}")]
    NotConnected {
        /// The other end.
        node: NodeId,
    },
    /// The node serves as many streams of this agent as it allows.
    #[error("node {node} accepted no further stream in {timeout_ms} ms: too many are open")]
    Busy {
        /// The other end.
        node: NodeId,
        /// How long this agent waited.
        timeout_ms: u128,
    },
    /// The connection ended while opening.
    #[error("the connection to node {node} ended while opening a stream: {reason}")]
    Lost {
        /// The other end.
        node: NodeId,
        /// Who ended it and why.
        reason: String,
    },
}

/// Why an attempt to reach an address failed. The keeper tries again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    #[error(
        "another node answered: expected {expected}, but {answered} answered\n\
         hint: has the agent there a new key, or is the address another agent's?"
    )]
    WrongKey { expected: NodeId, answered: NodeId },
    #[error(
        "the agent there belongs to another network\n\
         hint: both agents need the same genesis file"
    )]
    OtherNetwork,
    #[error("it is this agent itself")]
    Oneself,
    #[error("it refused: {reason}")]
    Refused { reason: String },
    #[error("no answer: {reason}")]
    Unreachable { reason: String },
}

impl DialError {
    /// Whether somebody answered and said no, which the owner may have to act on.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::WrongKey { .. } | Self::OtherNetwork | Self::Refused { .. } => true,
            Self::Oneself | Self::Unreachable { .. } => false,
        }
    }
}
