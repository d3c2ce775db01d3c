//! How many customers' requests are under way at once: fewer than there are connections, so that the owner's word always
//! finds a place.
//!
//! Must never keep an order, or a question about the agent itself, waiting.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};

use super::{Door, Problem};
use crate::limits::{API_CUSTOMERS_MAX, RETRY_AFTER_S};

/// The customers' requests that are under way. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Crowd(Arc<AtomicUsize>);

/// As many as there never are: nobody is let in any more.
const CLOSED: usize = usize::MAX;

impl Crowd {
    /// A place for one more, if there is one.
    fn enter(&self) -> Option<Place> {
        let more = |under_way| (under_way < API_CUSTOMERS_MAX).then_some(under_way + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place(Arc::clone(&self.0)))
    }

    /// Lets nobody in any more, if nobody is inside; says whether it is so.
    pub(crate) fn close(&self) -> bool {
        let closed = self.0.compare_exchange(0, CLOSED, Ordering::Relaxed, Ordering::Relaxed);
        closed.is_ok() || closed == Err(CLOSED)
    }

    fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == CLOSED
    }
}

/// One request's place, given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, which keeps the place of its request until the end.
struct Placed {
    body: Body,
    _place: Place,
}

impl hyper::body::Body for Placed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Customers' requests, which may last: answers of models, and blobs on their way out.
fn may_last(request: &Request) -> bool {
    let path = request.uri().path();
    (request.method() == Method::POST && path.starts_with("/v1/"))
        || (request.method() == Method::GET && path.starts_with("/api/blobs/"))
}

pub(super) async fn bound(State(door): State<Door>, request: Request, next: Next) -> Response {
    if !may_last(&request) {
        return next.run(request).await;
    }
    match door.crowd.enter() {
        Some(place) => next.run(request).await.map(|body| Body::new(Placed { body, _place: place })),
        None if door.crowd.is_closed() => Problem::leaving().into_response(),
        None => {
            let message = format!(
                "the agent is busy with {API_CUSTOMERS_MAX} requests\nhint: ask again in {RETRY_AFTER_S} s, or have fewer under way at once"
            );
            let kind = "rate_limit_exceeded";
            let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, kind, message).coded(kind);
            problem.retry_after_s = Some(RETRY_AFTER_S);
            problem.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let crowd = Crowd::default();
        let mut held: Vec<Place> = std::iter::from_fn(|| crowd.enter()).take(API_CUSTOMERS_MAX + 1).collect();
        assert_eq!(held.len(), API_CUSTOMERS_MAX);
        held.pop();
        assert!(crowd.enter().is_some() && crowd.enter().is_some());
        held.push(crowd.enter().unwrap());
        assert!(crowd.enter().is_none());
    }

    #[test]
    fn nobody_is_shut_in_and_then_nobody_comes() {
        let crowd = Crowd::default();
        let inside = crowd.enter().unwrap();
        assert!(!crowd.close(), "somebody is inside");
        assert!(crowd.enter().is_some() && !crowd.is_closed());
        drop(inside);
        assert!(crowd.close() && crowd.clone().close() && crowd.is_closed());
        assert!(crowd.enter().is_none());
    }

    #[test]
    fn what_lasts_is_bounded_and_nothing_else() {
        let lasts = |method: &str, path: &str| {
            may_last(&Request::builder().method(method).uri(path).body(Body::empty()).unwrap())
        };
        assert!(lasts("POST", "/v1/completions") && lasts("GET", "/api/blobs/00?fetch=true"));
        for (method, path) in
            [("POST", "/api/pause"), ("GET", "/api/status"), ("GET", "/v1/models"), ("POST", "/api/blobs")]
        {
            assert!(!lasts(method, path), "{method} {path}");
        }
    }
}
