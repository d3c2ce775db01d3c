//! Takes connections: on TCP for everybody on this machine, on a Unix socket for its owner.
//!
//! Slow and half-open connections are shed, oldest first, as soon as others need their places: whoever sends a request
//! gets an answer, however many do not. A connection whose client takes nothing of its answer for a minute is closed. Must
//! never look at a request.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use smol::channel;
use smol::io::{AsyncRead, AsyncWrite};
use smol_hyper::rt::{FuturesIo, SmolTimer};
use tower_service::Service;

use super::caller::Ends;
use crate::daemon::lock;
use crate::limits::{API_CONNECTIONS_MAX, API_HEADER_TIMEOUT, READER_STALLED_MAX};

/// The open connections of one listener.
#[derive(Clone, Default)]
struct Connections {
    open: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    next: u64,
    // In the order of their arrival.
    by_age: BTreeMap<u64, Connection>,
}

struct Connection {
    /// Requests whose answers are under way.
    requests: Arc<AtomicUsize>,
    close: channel::Sender<()>,
}

impl Connections {
    /// A place for one more, or nothing when everybody is being answered.
    fn enter(&self) -> Option<Place> {
        let mut table = lock(&self.open);
        if table.by_age.len() >= API_CONNECTIONS_MAX {
            let idle = |connection: &Connection| connection.requests.load(Ordering::Relaxed) == 0;
            let oldest = table.by_age.iter().find(|(_, connection)| idle(connection)).map(|(id, _)| *id)?;
            if let Some(connection) = table.by_age.remove(&oldest) {
                let _ = connection.close.try_send(());
            }
        }
        let (close, closed) = channel::bounded(1);
        let requests = Arc::new(AtomicUsize::new(0));
        let id = table.next;
        table.next += 1;
        table.by_age.insert(id, Connection { requests: Arc::clone(&requests), close });
        Some(Place { connections: self.clone(), id, requests, closed })
    }
}

/// One connection's place, given back when dropped.
struct Place {
    connections: Connections,
    id: u64,
    requests: Arc<AtomicUsize>,
    closed: channel::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.connections.open).by_age.remove(&self.id);
    }
}

/// A request under way, from its head to the end of its answer.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(requests: &Arc<AtomicUsize>) -> Self {
        requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(requests))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Since when a client has not taken what an answer had for it.
#[derive(Clone, Default)]
struct Reader {
    given: Arc<Mutex<Option<Instant>>>,
}

impl Reader {
    fn note(&self, given: Option<Instant>) {
        *lock(&self.given) = given;
    }

    /// How long from `now` to look again; nothing when the client is taken for gone.
    fn patience(&self, now: Instant) -> Option<Duration> {
        let Some(given) = *lock(&self.given) else { return Some(READER_STALLED_MAX) };
        READER_STALLED_MAX.checked_sub(now.duration_since(given)).filter(|left| !left.is_zero())
    }

    /// Ends when the client has stalled.
    async fn stalled(&self) {
        while let Some(left) = self.patience(Instant::now()) {
            smol::Timer::after(left).await;
        }
    }
}

/// An answer's body, which may be a stream of hours.
struct Answer {
    body: axum::body::Body,
    reader: Reader,
    _under_way: UnderWay,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.reader.note(None);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // hyper asks for more only when the client has taken what came before.
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.reader.note(matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves TCP connections for ever.
pub(super) async fn on_tcp(socket: smol::net::TcpListener, router: Router) {
    let connections = Connections::default();
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                // Tokens are small, and each is waited for.
                let _ = stream.set_nodelay(true);
                let ends = stream.local_addr().ok().map(|own| Ends { own, peer });
                serve(stream, ends, &connections, &router);
            }
            Err(error) => rest(&error).await,
        }
    }
}

/// Serves connections on a Unix socket for ever.
#[cfg(unix)]
pub(super) async fn on_unix(socket: smol::net::unix::UnixListener, router: Router) {
    let connections = Connections::default();
    loop {
        match socket.accept().await {
            Ok((stream, _)) => serve(stream, None, &connections, &router),
            Err(error) => rest(&error).await,
        }
    }
}

async fn rest(error: &std::io::Error) {
    tracing::warn!(%error, "cannot accept a connection to the local API");
    smol::Timer::after(std::time::Duration::from_millis(100)).await;
}

fn serve<S>(stream: S, ends: Option<Ends>, connections: &Connections, router: &Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(place) = connections.enter() else { return };
    let router = router.clone();
    skein_mesh::spawn(async move {
        let (requests, closed) = (Arc::clone(&place.requests), place.closed.clone());
        let reader = Reader::default();
        let readers = reader.clone();
        let service =
            hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
                if let Some(ends) = ends {
                    request.extensions_mut().insert(ends);
                }
                let under_way = UnderWay::new(&requests);
                let answer = router.clone().call(request);
                let reader = readers.clone();
                async move {
                    answer
                        .await
                        .map(|answer| answer.map(|body| Answer { body, reader, _under_way: under_way }))
                }
            });
        let served = async {
            hyper::server::conn::http1::Builder::new()
                .timer(SmolTimer::new())
                .header_read_timeout(API_HEADER_TIMEOUT)
                .serve_connection(FuturesIo::new(stream), service)
                .await
                .map_err(|error| error.to_string())
        };
        let shed = async {
            match closed.recv().await {
                Ok(()) => Err("shed, because it sent no request".to_owned()),
                Err(_) => smol::future::pending().await,
            }
        };
        let stalled = async {
            reader.stalled().await;
            Err("its client takes nothing of its answer".to_owned())
        };
        if let Err(error) = smol::future::or(served, smol::future::or(shed, stalled)).await {
            tracing::debug!(%error, "a connection to the local API ended early");
        }
        drop(place);
    })
    .detach();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_takes_nothing_for_a_minute_is_gone_and_one_that_waits_is_not() {
        let (reader, begun) = (Reader::default(), Instant::now());
        let answer = |frames: Vec<&'static str>| Answer {
            body: axum::body::Body::from_stream(smol::stream::iter(
                frames.into_iter().map(Ok::<_, std::io::Error>),
            )),
            reader: reader.clone(),
            _under_way: UnderWay::new(&Arc::default()),
        };
        let mut context = Context::from_waker(std::task::Waker::noop());
        let late = |s| begun + READER_STALLED_MAX + Duration::from_secs(s);
        assert!(reader.patience(late(1_000)).is_some(), "no answer is under way");
        let mut body = answer(vec!["one"]);
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut context), Poll::Ready(Some(Ok(_)))));
        assert!(reader.patience(begun + Duration::from_secs(50)).is_some());
        assert!(reader.patience(late(50)).is_none(), "nobody asked for more");
        // The end was asked for, and so the first was taken.
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut context), Poll::Ready(None)));
        assert!(reader.patience(late(1_000)).is_some());
        let mut body = answer(vec!["one"]);
        let _ = Pin::new(&mut body).poll_frame(&mut context);
        drop(body);
        assert!(reader.patience(late(1_000)).is_some(), "an answer that ended keeps nobody waiting");
    }
}
