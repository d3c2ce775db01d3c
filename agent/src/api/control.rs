//! `/api/*`: status, jobs, blobs, claim, down.

use std::io::Write;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use skein_mesh::fetch_blob;
use skein_proto::ids::{Digest, JobId};
use skein_proto::job::JobSpec;
use skein_proto::message::JobStatus;
use smol::stream::StreamExt;

use super::{Door, Problem, may_order, whole_body};
use crate::daemon::Call;
use crate::daemon::curve::Point;
use crate::daemon::status::{ClaimState, Status};
use crate::limits::{API_BODY_TIMEOUT, BLOB_BYTES_MAX};
use crate::serve::desk::ServeOrder;
use crate::serve::registry::Entry;

#[derive(Deserialize)]
pub(super) struct HowMuch {
    #[serde(default)]
    brief: bool,
}

/// Who asks every other second leaves out, by `?brief=true`, what grows with the network.
pub(super) async fn status(
    State(door): State<Door>,
    Query(HowMuch { brief }): Query<HowMuch>,
) -> Result<Json<Status>, Problem> {
    let mut status = door.ask(Call::Status).await?;
    if brief {
        status.ledger.settlements.clear();
    }
    Ok(Json(*status))
}

pub(super) async fn jobs(State(door): State<Door>) -> Result<Json<Vec<JobStatus>>, Problem> {
    door.ask(Call::Jobs).await.map(Json)
}

pub(super) async fn job(
    State(door): State<Door>,
    Path(id): Path<String>,
) -> Result<Json<JobStatus>, Problem> {
    let id = parse_job(&id)?;
    let jobs = door.ask(Call::Jobs).await?;
    let job = jobs.into_iter().find(|job| job.id == id);
    job.map(Json).ok_or_else(|| {
        Problem::missing(format!("no job {} here\nhint: GET /api/jobs lists them", id.short()))
    })
}

/// The loss curve of a training job that was submitted here.
pub(super) async fn metrics(
    State(door): State<Door>,
    Path(id): Path<String>,
) -> Result<Json<Vec<Point>>, Problem> {
    let id = parse_job(&id)?;
    let curves = door.curves.clone();
    let points = smol::unblock(move || curves.points(id)).await;
    points.map(Json).map_err(|error| Problem::broken(error.to_string()))
}

pub(super) async fn submit(State(door): State<Door>, body: Body) -> Result<Json<Value>, Problem> {
    let bytes = whole_body(body).await?;
    let spec: JobSpec = serde_json::from_slice(&bytes).map_err(|error| {
        Problem::invalid(format!("not a job: {error}\nhint: `skein run --example` shows what a job holds"))
    })?;
    let id = door.ask(|answer| Call::Submit(spec, answer)).await?.map_err(Problem::invalid)?;
    Ok(Json(json!({ "id": id })))
}

/// A model that was put here piece by piece gets a name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewModel {
    name: String,
    /// Digest of its manifest.
    model: Digest,
}

pub(super) async fn add_model(State(door): State<Door>, body: Body) -> Result<Json<Entry>, Problem> {
    let new: NewModel = parse(&whole_body(body).await?, "name and model (the manifest's digest) are needed")?;
    let registry = door.desk.registry().clone();
    let added = smol::unblock(move || registry.add(&new.name, new.model)).await;
    added.map(Json).map_err(|error| Problem::invalid(error.to_string()))
}

pub(super) async fn models(State(door): State<Door>) -> Json<Vec<Entry>> {
    let registry = door.desk.registry().clone();
    Json(smol::unblock(move || registry.list()).await)
}

pub(super) async fn remove_model(
    State(door): State<Door>,
    Path(name): Path<String>,
) -> Result<Json<Entry>, Problem> {
    let registry = door.desk.registry().clone();
    let removed = smol::unblock(move || registry.remove(&name)).await;
    removed.map(Json).map_err(|error| Problem::missing(error.to_string()))
}

/// Puts a model that was added here into service until its job is cancelled.
pub(super) async fn serve(State(door): State<Door>, body: Body) -> Result<Json<Value>, Problem> {
    let order: ServeOrder = parse(&whole_body(body).await?, "model (its name) is needed")?;
    let entry =
        door.desk.registry().get(&order.model).map_err(|error| Problem::missing(error.to_string()))?;
    if let Some(context) = order.context.filter(|context| *context > entry.context) {
        let (name, own) = (&entry.name, entry.context);
        return Err(Problem::invalid(format!(
            "a context of {context} tokens is asked for, `{name}` has {own}\nhint: leave context out, or ask for less"
        )));
    }
    let spec = door.desk.job(&entry, &order).map_err(|error| Problem::broken(error.to_string()))?;
    let id = door.ask(|answer| Call::Submit(spec, answer)).await?.map_err(Problem::invalid)?;
    Ok(Json(json!({ "id": id })))
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], hint: &str) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::invalid(format!("{error}\nhint: {hint}")))
}

pub(super) async fn cancel(State(door): State<Door>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let id = parse_job(&id)?;
    door.ask(|answer| Call::Cancel(id, answer)).await?.map_err(Problem::invalid)?;
    Ok(Json(json!({ "id": id })))
}

/// Takes up a training job that was ordered here and ended unfinished.
pub(super) async fn resume(State(door): State<Door>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let id = parse_job(&id)?;
    let id = door.ask(|answer| Call::Resume(id, answer)).await?.map_err(Problem::invalid)?;
    Ok(Json(json!({ "id": id })))
}

#[derive(Deserialize)]
pub(super) struct ClaimQuery {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn claim(
    State(door): State<Door>,
    Query(query): Query<ClaimQuery>,
) -> Result<Json<ClaimState>, Problem> {
    door.ask(|answer| Call::Claim { dry_run: query.dry_run, answer }).await.map(Json)
}

pub(super) async fn down(State(door): State<Door>) -> Result<Json<Value>, Problem> {
    door.ask(Call::Down).await?;
    Ok(Json(json!({ "left": true })))
}

#[derive(Deserialize)]
pub(super) struct UploadQuery {
    /// Whether the blob stays until the owner removes it; if not, it may go when room is needed.
    #[serde(default = "yes")]
    keep: bool,
}

fn yes() -> bool {
    true
}

/// Takes a blob of any size up to the limit, through a file, never whole in memory.
pub(super) async fn put_blob(
    State(door): State<Door>,
    Query(query): Query<UploadQuery>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let mut name = [0; 16];
    getrandom::fill(&mut name).map_err(|error| Problem::broken(error.to_string()))?;
    let path = door.uploads.join(hex::encode(name));
    let unstored = |error: std::io::Error| {
        Problem::broken(format!("cannot store the blob: {error}\nhint: free some space on the agent's disk"))
    };
    // Not smol's own files: they report a full disk as zero bytes written.
    let created = path.clone();
    let mut file = smol::unblock(move || std::fs::File::create(created)).await.map_err(unstored)?;
    let mut chunks = body.into_data_stream();
    let mut total = 0u64;
    let received = async {
        loop {
            let late = async {
                smol::Timer::after(API_BODY_TIMEOUT).await;
                Err(Problem::too_slow(API_BODY_TIMEOUT))
            };
            let Some(chunk) = smol::future::or(async { Ok(chunks.next().await) }, late).await? else { break };
            let chunk = chunk.map_err(|error| Problem::invalid(format!("the upload broke off: {error}")))?;
            total += chunk.len() as u64;
            if total > BLOB_BYTES_MAX {
                let message = format!("a blob may have at most {BLOB_BYTES_MAX} bytes\nhint: split it");
                return Err(Problem::invalid(message));
            }
            let written = smol::unblock(move || file.write_all(&chunk).map(|()| file)).await;
            file = written.map_err(unstored)?;
        }
        Ok(())
    };
    if let Err(problem) = received.await {
        let _ = smol::fs::remove_file(&path).await;
        return Err(problem);
    }
    let digest = door.store.adopt(&path).await.map_err(|error| Problem::broken(error.to_string()))?;
    if query.keep {
        let store = door.store.clone();
        let pinned = smol::unblock(move || store.pin(&format!("upload-{digest}"), [digest])).await;
        pinned.map_err(|error| Problem::broken(error.to_string()))?;
    }
    Ok(Json(json!({ "digest": digest, "bytes": total })))
}

#[derive(Deserialize)]
pub(super) struct DownloadQuery {
    /// Whether to ask the connected agents for a blob that is not here, which is an order.
    #[serde(default)]
    fetch: bool,
}

pub(super) async fn get_blob(
    State(door): State<Door>,
    Path(digest): Path<String>,
    Query(query): Query<DownloadQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let digest: Digest = digest.parse().map_err(|error: skein_proto::ids::BadId| {
        Problem::invalid(format!("{error}\nhint: POST /api/blobs answers with a blob's digest"))
    })?;
    if query.fetch && !door.store.has(&digest) {
        if !may_order(&door, &request) {
            return Err(Problem::no_token());
        }
        drop(request);
        let holders: Vec<_> = door.mesh.peers().into_iter().map(|(node, _)| node).collect();
        // If nobody has it, that is told below.
        let _ = fetch_blob(&door.mesh, &door.store, digest, &holders, BLOB_BYTES_MAX).await;
    }
    let file = smol::fs::File::open(door.store.path(&digest)).await;
    let file = file.map_err(|_| {
        Problem::missing(format!(
            "blob {} is not held here\nhint: ask another agent, or put it here",
            digest.short()
        ))
    })?;
    let chunks = smol::stream::unfold(file, |mut file| async move {
        use smol::io::AsyncReadExt;
        let mut chunk = vec![0; 64 << 10];
        match file.read(&mut chunk).await {
            Ok(0) => None,
            Ok(count) => {
                chunk.truncate(count);
                Some((Ok(chunk), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    // Bytes that anybody may have written: no browser may take them for a page of this agent's.
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

fn parse_job(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|error: skein_proto::ids::BadId| {
        Problem::invalid(format!("{error}\nhint: GET /api/jobs lists the jobs with their ids"))
    })
}
