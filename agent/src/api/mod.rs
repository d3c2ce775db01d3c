//! The local HTTP door: `/v1/*` as OpenAI's, `/api/*` for jobs, status and orders.
//!
//! Listens on loopback unless told otherwise. Requests that a web page could make a browser send are
//! refused (foreign `Host` or any `Origin`); whatever changes state needs the token of `agent.json`.
//! Must never touch the core: it asks the daemon's loop.

mod caller;
mod control;
mod crowd;
mod dashboard;
mod fleet;
mod listen;
mod metrics;
mod openai;
mod owner;
mod ticket;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use skein_mesh::{BlobStore, Mesh};
use smol::channel;

use crate::daemon::curve::Curves;
use crate::daemon::{Call, Event, Running};
use crate::fleet::Fleet;
use crate::limits::{API_BODY_TIMEOUT, BODY_BYTES_MAX};
use crate::serve::desk::Desk;

pub(crate) use self::crowd::Crowd;

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct Door {
    feed: channel::Sender<Event>,
    store: BlobStore,
    mesh: Mesh,
    fleet: Fleet,
    uploads: Arc<Path>,
    data_dir: Arc<Path>,
    verified: owner::Verified,
    token: Arc<str>,
    loopback: bool,
    crowd: crowd::Crowd,
    tickets: ticket::Tickets,
    desk: Desk,
    curves: Curves,
}

impl Door {
    /// For the agent that runs so.
    pub(crate) fn new(
        running: &Running,
        feed: channel::Sender<Event>,
        store: BlobStore,
        fleet: Fleet,
        data_dir: &Path,
        desk: Desk,
        curves: Curves,
    ) -> Self {
        Self {
            feed,
            store,
            mesh: fleet.mesh().clone(),
            fleet,
            uploads: data_dir.join("scratch").into(),
            data_dir: data_dir.into(),
            verified: owner::Verified::default(),
            token: running.token.as_str().into(),
            loopback: running.api.ip().is_loopback(),
            crowd: crowd::Crowd::default(),
            tickets: ticket::Tickets::default(),
            desk,
            curves,
        }
    }

    /// The customers who are at it, to be waited for.
    pub(crate) fn crowd(&self) -> Crowd {
        self.crowd.clone()
    }

    /// Asks the daemon's loop.
    async fn ask<T>(&self, call: impl FnOnce(channel::Sender<T>) -> Call) -> Result<T, Problem> {
        let (answer, heard) = channel::bounded(1);
        let asked = self.feed.send(Event::Call(call(answer))).await;
        asked.map_err(|_| Problem::leaving())?;
        heard.recv().await.map_err(|_| Problem::leaving())
    }
}

/// An error as the client sees it, in OpenAI's shape.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// The field of the request that it is about.
    param: Option<String>,
    /// For programs.
    code: Option<&'static str>,
    retry_after_s: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None, retry_after_s: None }
    }

    /// The same, about this field of the request.
    fn about(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The same, with a code for programs.
    fn coded(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// As JSON.
    fn body(&self) -> serde_json::Value {
        json!({ "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code } })
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    fn too_long(bytes_max: usize) -> Self {
        let message = format!(
            "the request has more than {bytes_max} bytes\nhint: what is larger goes to POST /api/blobs and is named by its digest"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    fn too_slow(timeout: Duration) -> Self {
        let message = format!(
            "the request's body did not come within {} s\nhint: send as many bytes as content-length says",
            timeout.as_secs()
        );
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    fn missing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    fn broken(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "server_error", message)
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    fn leaving() -> Self {
        Self::unavailable("the agent is leaving")
    }

    fn no_token() -> Self {
        let message = "this needs the agent's token\nhint: send `Authorization: Bearer TOKEN`; the token is in agent.json of the data directory";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
    }

    fn no_token_by_name() -> Self {
        let message = "who asks by a name needs the agent's token\nhint: use the IP address instead, or send `Authorization: Bearer TOKEN`; the token is in agent.json of the data directory";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
    }
}

/// The whole body of a request that is not a blob; a client that stalls does not keep its connection.
async fn whole_body(body: Body) -> Result<Bytes, Problem> {
    body_within(body, BODY_BYTES_MAX, API_BODY_TIMEOUT).await
}

async fn body_within(body: Body, bytes_max: usize, timeout: Duration) -> Result<Bytes, Problem> {
    let read = async { to_bytes(body, bytes_max).await.map_err(|_| Problem::too_long(bytes_max)) };
    let late = async {
        smol::Timer::after(timeout).await;
        Err(Problem::too_slow(timeout))
    };
    smol::future::or(read, late).await
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(socket: smol::net::TcpListener, door: Door) {
    #[cfg(unix)]
    let door_for_owner = owners_socket(&door.data_dir);
    let orders = Router::new()
        .route("/api/jobs", post(control::submit))
        .route("/api/jobs/{id}/cancel", post(control::cancel))
        .route("/api/jobs/{id}/resume", post(control::resume))
        .route("/api/models", post(control::add_model))
        .route("/api/models/{name}/remove", post(control::remove_model))
        .route("/api/serve", post(control::serve))
        .route("/api/claim", post(control::claim))
        .route("/api/pause", post(owner::pause))
        .route("/api/resume", post(owner::resume))
        .route("/api/finish", post(owner::finish))
        .route("/api/down", post(control::down))
        .route("/api/ticket", post(ticket::issue))
        .route("/api/blobs", post(control::put_blob).layer(DefaultBodyLimit::disable()))
        .route("/api/update", get(owner::updates).post(owner::update))
        .route("/api/settings", get(owner::settings).post(owner::set))
        .layer(middleware::from_fn_with_state(door.clone(), need_token));
    // Who asks here hears of other machines.
    let rigs = Router::new()
        .route("/api/fleet", get(fleet::overview))
        .route("/api/fleet/pause", post(fleet::pause))
        .route("/api/fleet/resume", post(fleet::resume))
        .route("/api/fleet/finish", post(fleet::finish))
        .route("/api/fleet/update", post(fleet::update))
        .route("/api/fleet/forget", post(fleet::forget))
        .layer(middleware::from_fn_with_state(door.clone(), need_token_to_read));
    let router = Router::new()
        .route("/", get(dashboard::page))
        .route("/app.js", get(dashboard::script))
        .route("/fleet", get(dashboard::fleet_page))
        .route("/fleet.js", get(dashboard::fleet_script))
        .route("/style.css", get(dashboard::style))
        .route("/metrics", get(metrics::metrics))
        .route("/api/token", post(ticket::redeem))
        .route("/api/status", get(control::status))
        .route("/api/history", get(owner::history))
        .route("/api/earnings", get(owner::earnings))
        .route("/api/log", get(owner::log))
        .route("/api/jobs", get(control::jobs))
        .route("/api/jobs/{id}", get(control::job))
        .route("/api/jobs/{id}/metrics", get(control::metrics))
        .route("/api/models", get(control::models))
        .route("/api/blobs/{digest}", get(control::get_blob))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{id}", get(openai::model))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/chat/completions", post(openai::chat))
        .merge(orders)
        .merge(rigs)
        .fallback(|| async {
            Problem::missing(
                "no such path: see /v1/models, /v1/chat/completions, /v1/completions, /api/status, /api/jobs",
            )
        })
        .method_not_allowed_fallback(|| async {
            let message = "this path takes another method\nhint: GET asks, POST orders";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(door.clone(), crowd::bound))
        .layer(middleware::from_fn_with_state(door.clone(), refuse_browsers))
        .with_state(door);
    #[cfg(unix)]
    if let Some(socket) = door_for_owner {
        skein_mesh::spawn(listen::on_unix(socket, router.clone().layer(axum::Extension(Trusted)))).detach();
    }
    listen::on_tcp(socket, router).await;
}

/// Marks requests that came through the owner's own socket.
#[derive(Clone, Copy)]
struct Trusted;

/// The socket that only the owner may open; without one the API is on TCP alone.
#[cfg(unix)]
fn owners_socket(data_dir: &Path) -> Option<smol::net::unix::UnixListener> {
    use std::os::unix::fs::DirBuilderExt;
    let directory = data_dir.join("run");
    let path = directory.join("api.sock");
    // Of an agent that was killed: the lock on the data directory says that none runs.
    let _ = std::fs::remove_dir_all(&directory);
    let bound = std::fs::DirBuilder::new().mode(0o700).create(&directory);
    let bound = bound.and_then(|()| smol::net::unix::UnixListener::bind(&path));
    bound
        .map_err(|error| tracing::warn!(path = %path.display(), %error, "no Unix socket for the local API"))
        .ok()
}

/// A page in the owner's browser must not command his agent, nor read from it by DNS rebinding. The agent's own page may.
async fn refuse_browsers(State(door): State<Door>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let local = host(headers).is_some_and(is_local);
    let foreign = headers.contains_key(header::ORIGIN) && !is_own_page(headers);
    // A link on any page may lead to the agent's own pages, and to nothing else of it.
    let led = is_from_elsewhere(headers) && !matches!(request.uri().path(), "/" | "/fleet");
    let mut response = if !is_trusted(&request) && (foreign || led || (door.loopback && !local)) {
        let message = "requests from web pages are refused\nhint: use 127.0.0.1 or localhost as the host, and no Origin";
        Problem::new(StatusCode::FORBIDDEN, "permission_error", message).into_response()
    } else if !door.loopback
        && !is_number(headers)
        && request.uri().path() != "/metrics"
        && !may_order(&door, &request)
    {
        // Where names are allowed, a page's own name may lead here.
        Problem::no_token_by_name().into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(policy, HeaderValue::from_static("same-origin"));
    response
}

/// What a browser says of a request that another page caused, an image or a link, where it sends no `Origin`.
fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site");
    site.is_some_and(|site| site != "none" && site != "same-origin")
}

fn is_trusted(request: &Request) -> bool {
    request.extensions().get::<Trusted>().is_some()
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST).and_then(|host| host.to_str().ok())
}

/// Whether the request comes from a page of this very address: a number, because a name could be made to lead here.
fn is_own_page(headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let Some((host, origin)) = host(headers).zip(origin) else { return false };
    origin.strip_prefix("http://") == Some(host) && (is_local(host) || host.parse::<SocketAddr>().is_ok())
}

fn is_local(host: &str) -> bool {
    name_of(host) == "localhost" || ip_of(host).is_some_and(|ip| ip.is_loopback())
}

/// Whether the host is an address, which no page's name can be made to lead to.
fn is_number(headers: &HeaderMap) -> bool {
    host(headers).is_some_and(|host| name_of(host) == "localhost" || ip_of(host).is_some())
}

fn name_of(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn ip_of(host: &str) -> Option<IpAddr> {
    let with_port = host.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bare = || host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    with_port.or_else(bare).or_else(|| name_of(host).parse().ok())
}

async fn need_token(State(door): State<Door>, request: Request, next: Next) -> Response {
    if request.method() == hyper::Method::GET || may_order(&door, &request) {
        return next.run(request).await;
    }
    Problem::no_token().into_response()
}

async fn need_token_to_read(State(door): State<Door>, request: Request, next: Next) -> Response {
    if may_order(&door, &request) { next.run(request).await } else { Problem::no_token().into_response() }
}

fn may_order(door: &Door, request: &Request) -> bool {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    // The digest, so that the comparison's time tells nothing about the token.
    let expected = blake3::hash(door.token.as_bytes());
    given.is_some_and(|given| blake3::hash(given.as_bytes()) == expected) || is_trusted(request)
}
