//! From an address or an incoming packet to a connection that counts: handshake, hello, verdict.
//!
//! The dialler opens the control stream and sends its greeting; the answering side sends its own back
//! if the table accepts the connection, and closes it otherwise. So a dialler knows from the answer
//! that both sides keep this connection.
//!
//! Must never pass on a byte of a peer whose key is not proven.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use quinn::{
    Connection, ConnectionError, Incoming, ReadExactError, RecvStream, SendStream, TransportErrorCode,
};
use skein_proto::ids::NodeId;

use crate::address::{PeerAddress, canonical};
use crate::error::DialError;
use crate::identity;
use crate::limits::{GREETING_TIMEOUT, GREETINGS_MAX, GREETINGS_UNVALIDATED_MAX, HANDSHAKE_TIMEOUT};
use crate::link::Link;
use crate::mesh::{Shared, within};
use crate::table::{Facts, Verdict};
use crate::wire::{self, CloseCode, GREETING_BYTES};

/// TLS alert 120: no common application protocol, and ours names the network.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// What a dial that reached a peer led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dialled {
    /// This connection is the one.
    Up(NodeId),
    /// Another connection to the same node is, or is about to be.
    Duplicate(NodeId),
}

/// Dials, greets and starts the link.
pub(crate) async fn dial(shared: &Arc<Shared>, peer: PeerAddress) -> Result<Dialled, DialError> {
    let _turn = shared.dials.acquire().await;
    let connection = shake_hands(shared, peer).await?;
    let node = identity::node_of(&connection)
        .ok_or_else(|| DialError::Refused { reason: "it showed no key".to_owned() })?;
    if node == shared.identity.node {
        wire::close(&connection, CloseCode::Oneself, "it is this agent itself");
        return Err(DialError::Oneself);
    }
    let number = shared.next_number();
    let Some(claim) = Claim::new(shared, node, number) else {
        wire::close(&connection, CloseCode::Duplicate, "another connection is kept");
        return Ok(Dialled::Duplicate(node));
    };
    let (incarnation, sender, receiver) = match within(GREETING_TIMEOUT, greet(shared, &connection)).await {
        Some(Ok(greeted)) => greeted,
        Some(Err(GreetError::Connection(ConnectionError::ApplicationClosed(close))))
            if close.error_code == CloseCode::Duplicate.number() =>
        {
            return Ok(Dialled::Duplicate(node));
        }
        Some(Err(GreetError::Connection(error))) => return Err(classify(&error)),
        Some(Err(GreetError::Garbage)) => {
            wire::close(&connection, CloseCode::Violation, "this is no greeting");
            return Err(DialError::Refused { reason: "its answer is no greeting".to_owned() });
        }
        None => {
            wire::close(&connection, CloseCode::Silent, "no greeting in time");
            return Err(DialError::Unreachable { reason: "no greeting in time".to_owned() });
        }
    };
    let facts = Facts { number, dialled: true, incarnation };
    let (link, task) = Link::new(node, facts, connection);
    if !shared.table().promote(node, facts, link.clone()) {
        link.close(CloseCode::Duplicate, "another connection is kept");
        return Ok(Dialled::Duplicate(node));
    }
    drop(claim);
    crate::tasks::spawn(task.run(shared.clone(), sender, receiver)).detach();
    Ok(Dialled::Up(node))
}

/// Answers one incoming connection; the caller runs it in its own task.
pub(crate) async fn answer(shared: Arc<Shared>, incoming: Incoming, greeting: GreetingCount) {
    let address = canonical(incoming.remote_address());
    match receive(&shared, incoming).await {
        Ok(Some((link, task, old, sender, receiver))) => {
            if let Some(old) = old {
                old.close(CloseCode::Replaced, "the peer has connected anew");
                old.ended().await;
            }
            // Only now, so that a peer that keeps replacing itself cannot pile up tasks.
            drop(greeting);
            drop(link);
            task.run(shared, sender, receiver).await;
        }
        Ok(None) => {}
        Err(reason) => shared.report_refusal(address, reason),
    }
}

/// Whether another incoming connection may try to greet; if not, it is dealt with here.
pub(crate) fn admit(shared: &Arc<Shared>, incoming: Incoming) -> Option<(Incoming, GreetingCount)> {
    let in_progress = shared.greetings.load(Ordering::Relaxed);
    if in_progress >= GREETINGS_MAX {
        incoming.refuse();
        return None;
    }
    if in_progress >= GREETINGS_UNVALIDATED_MAX && !incoming.remote_address_validated() {
        // The peer comes back with a token, or was not where it said it is.
        let _ = incoming.retry();
        return None;
    }
    Some((incoming, GreetingCount::new(shared)))
}

type Received = (Arc<Link>, crate::link::LinkTask, Option<Arc<Link>>, SendStream, RecvStream);

/// The answering side up to the verdict. `None`: nothing worth reporting; the error is for the owner.
async fn receive(shared: &Arc<Shared>, incoming: Incoming) -> Result<Option<Received>, String> {
    let handshake = async { incoming.accept()?.await };
    let connection = match within(HANDSHAKE_TIMEOUT, handshake).await {
        Some(Ok(connection)) => connection,
        Some(Err(error)) if is_other_network(&error) => {
            return Err("it belongs to another network".to_owned());
        }
        Some(Err(error)) => return Err(wire::describe(&error)),
        None => return Err("no handshake in time".to_owned()),
    };
    let node = identity::node_of(&connection).ok_or("it showed no key")?;
    if node == shared.identity.node {
        wire::close(&connection, CloseCode::Oneself, "it is this agent itself");
        return Ok(None);
    }
    let (incarnation, mut sender, receiver) = match within(GREETING_TIMEOUT, hear(&connection)).await {
        Some(Ok(heard)) => heard,
        // The dialler found that it has another connection, or gave up.
        Some(Err(GreetError::Connection(_))) => return Ok(None),
        Some(Err(GreetError::Garbage)) => {
            wire::close(&connection, CloseCode::Violation, "this is no greeting");
            return Err(format!("node {node} began with no greeting"));
        }
        None => {
            wire::close(&connection, CloseCode::Silent, "no greeting in time");
            return Err(format!("node {node} sent no greeting in time"));
        }
    };
    let facts = Facts { number: shared.next_number(), dialled: false, incarnation };
    let (link, task) = Link::new(node, facts, connection.clone());
    let verdict = shared.table().arrive(node, facts, link.clone());
    let old = match verdict {
        Verdict::Accept => None,
        Verdict::Replace(old) => Some(old),
        Verdict::Duplicate(kept) => {
            if let Some(kept) = kept {
                kept.nudge();
            }
            wire::close(&connection, CloseCode::Duplicate, "another connection is kept");
            return Ok(None);
        }
        Verdict::Full => {
            wire::close(&connection, CloseCode::Full, "it serves as many peers as it can");
            return Err(format!("node {node} was turned away: no room for another peer"));
        }
    };
    // If this fails the connection is dead, and the link's reader reports so.
    let _ = sender.write_all(&wire::greeting(shared.identity.incarnation)).await;
    Ok(Some((link, task, old, sender, receiver)))
}

async fn shake_hands(shared: &Shared, peer: PeerAddress) -> Result<Connection, DialError> {
    let unreachable = |reason: String| DialError::Unreachable { reason };
    let (tls, answered) =
        shared.identity.client(peer.node).map_err(|error| unreachable(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(shared.dialling.clone());
    let name = identity::server_name(peer.node);
    let connecting = shared
        .endpoint
        .connect_with(config, peer.address, &name)
        .map_err(|error| unreachable(error.to_string()))?;
    match within(HANDSHAKE_TIMEOUT, connecting).await {
        Some(Ok(connection)) => Ok(connection),
        Some(Err(error)) => match (peer.node, answered.get()) {
            (Some(expected), Some(answered)) if expected != answered => {
                Err(DialError::WrongKey { expected, answered })
            }
            (Some(_) | None, Some(_) | None) => Err(classify(&error)),
        },
        None => Err(unreachable(format!("no handshake in {} s", HANDSHAKE_TIMEOUT.as_secs()))),
    }
}

enum GreetError {
    Connection(ConnectionError),
    Garbage,
}

impl From<ConnectionError> for GreetError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

/// The dialler's part: sends its greeting on a new stream and reads the answer.
async fn greet(
    shared: &Shared,
    connection: &Connection,
) -> Result<(u64, SendStream, RecvStream), GreetError> {
    let (mut sender, mut receiver) = connection.open_bi().await?;
    if sender.write_all(&wire::greeting(shared.identity.incarnation)).await.is_err() {
        return Err(connection.closed().await.into());
    }
    let incarnation = read_greeting(&mut receiver).await?;
    Ok((incarnation, sender, receiver))
}

/// The answering side's part: the first stream is the control stream.
async fn hear(connection: &Connection) -> Result<(u64, SendStream, RecvStream), GreetError> {
    let (sender, mut receiver) = connection.accept_bi().await?;
    let incarnation = read_greeting(&mut receiver).await?;
    Ok((incarnation, sender, receiver))
}

async fn read_greeting(receiver: &mut RecvStream) -> Result<u64, GreetError> {
    let mut bytes = [0; GREETING_BYTES];
    match receiver.read_exact(&mut bytes).await {
        Ok(()) => wire::parse_greeting(bytes).ok_or(GreetError::Garbage),
        Err(ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error))) => Err(error.into()),
        Err(ReadExactError::ReadError(_) | ReadExactError::FinishedEarly(_)) => Err(GreetError::Garbage),
    }
}

fn is_other_network(error: &ConnectionError) -> bool {
    let code = TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL);
    match error {
        ConnectionError::ConnectionClosed(close) => close.error_code == code,
        ConnectionError::TransportError(error) => error.code == code,
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => false,
    }
}

fn classify(error: &ConnectionError) -> DialError {
    if is_other_network(error) {
        return DialError::OtherNetwork;
    }
    let reason = wire::describe(error);
    match error {
        ConnectionError::ConnectionClosed(_)
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::TransportError(_)
        | ConnectionError::VersionMismatch => DialError::Refused { reason },
        ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => DialError::Unreachable { reason },
    }
}

/// A dialler's claim on a peer's slot. Dropping it gives the slot back, unless it was promoted.
struct Claim<'a> {
    shared: &'a Shared,
    node: NodeId,
    number: u64,
}

impl<'a> Claim<'a> {
    fn new(shared: &'a Shared, node: NodeId, number: u64) -> Option<Self> {
        // Lazily: a claim that exists takes the table's lock when it is dropped.
        let begun = shared.table().begin(node, number);
        begun.then(|| Self { shared, node, number })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.table().abandon(self.node, self.number);
    }
}

/// Counts greetings in progress, however they end.
pub(crate) struct GreetingCount(Arc<Shared>);

impl GreetingCount {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.greetings.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for GreetingCount {
    fn drop(&mut self) {
        self.0.greetings.fetch_sub(1, Ordering::Relaxed);
    }
}
