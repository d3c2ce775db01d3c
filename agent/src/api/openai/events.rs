//! A stream of answers as server-sent events.
//!
//! What goes wrong before anything was told is an ordinary error; later it is an event. While there is nothing to
//! say, a comment now and then keeps the connection alive. Must never outlive its client: when the stream is
//! dropped, the answer ends.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use smol::Timer;
use smol::future::or;

use super::Begun;
use crate::api::Problem;
use crate::limits::STREAM_SILENCE_MAX;

/// What leads to an answer: its model may still have to be loaded.
pub(super) type Beginning = Pin<Box<dyn Future<Output = Result<Begun, Problem>> + Send>>;

/// The response to a request for a stream; waits for its beginning, but not so long that the client loses patience.
///
/// # Errors
/// What went wrong until then.
pub(super) async fn response(mut beginning: Beginning) -> Result<Response, Problem> {
    let begun = or(async { Some((&mut beginning).await) }, silence()).await;
    let stage = match begun {
        Some(begun) => Stage::Telling(Box::new(begun?)),
        None => Stage::Waiting(beginning),
    };
    let first = match stage {
        Stage::Waiting(_) => VecDeque::from([WAITING.to_owned()]),
        Stage::Telling(_) | Stage::Over => VecDeque::new(),
    };
    let events = Events { stage, ready: first };
    let events = smol::stream::unfold(events, |mut events| async {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(events)).into_response())
}

const WAITING: &str = ": waiting\n\n";

async fn silence<T>() -> Option<T> {
    Timer::after(STREAM_SILENCE_MAX).await;
    None
}

struct Events {
    stage: Stage,
    ready: VecDeque<String>,
}

enum Stage {
    Waiting(Beginning),
    Telling(Box<Begun>),
    Over,
}

impl Events {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match &mut self.stage {
                Stage::Over => return None,
                Stage::Waiting(beginning) => match or(async { Some(beginning.await) }, silence()).await {
                    None => return Some(WAITING.to_owned()),
                    Some(Ok(begun)) => self.stage = Stage::Telling(Box::new(begun)),
                    Some(Err(problem)) => self.end(&[problem.body()]),
                },
                Stage::Telling(begun) => match or(async { Some(begun.next().await) }, silence()).await {
                    None => return Some(WAITING.to_owned()),
                    Some(Some(Ok(spoken))) => {
                        self.ready.extend(begun.reply.chunks(spoken).iter().map(event));
                    }
                    Some(Some(Err(problem))) => self.end(&[problem.body()]),
                    Some(None) => {
                        let usage = begun.reply.usage_chunk(begun.usage());
                        self.end(usage.as_slice());
                        self.ready.push_back("data: [DONE]\n\n".to_owned());
                    }
                },
            }
        }
    }

    /// The last events; what produced them is dropped.
    fn end(&mut self, last: &[Value]) {
        self.stage = Stage::Over;
        self.ready.extend(last.iter().map(event));
    }
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}
