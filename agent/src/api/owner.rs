//! `/api/*` for the owner: pause, resume, finish, settings, and what the dashboard shows over time.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use skein_policy::{Blocks, Event as Told, Pause, Settings, View};

use super::control::parse;
use super::{Door, Problem, whole_body};
use crate::daemon::Call;
use crate::daemon::history::Past;
use crate::daemon::owner::unix_ms;
use crate::daemon::status::Earned;
use crate::limits::{LOG_VERIFIED_EVERY, PAUSE_S_MAX};

/// The last verification of the own log, which need not be done for each who asks.
pub(super) type Verified = Arc<Mutex<Option<(Instant, Value)>>>;

/// What to pause, and for how long: until resumed, unless one of the two times is given.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PauseOrder {
    /// Seconds.
    for_s: Option<u64>,
    until: Option<Until>,
    /// The GPU alone.
    #[serde(default)]
    gpu: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Until {
    /// The owner's next midnight.
    Tomorrow,
}

pub(super) async fn pause(State(door): State<Door>, body: Body) -> Result<Json<View>, Problem> {
    let hint = r#"{"for_s": 1800}, {"until": "tomorrow"} or {}; with "gpu": true for the GPU alone"#;
    let order: PauseOrder = parse(&whole_body(body).await?, hint)?;
    let until_ms = match (order.for_s, order.until) {
        (None, None) => None,
        (Some(seconds), None) if (1..=PAUSE_S_MAX).contains(&seconds) => Some(unix_ms() + seconds * 1_000),
        (Some(_), None) => {
            return Err(Problem::invalid(format!(
                "for_s is out of range\nhint: from 1 to {PAUSE_S_MAX} seconds"
            )));
        }
        (None, Some(Until::Tomorrow)) => Some(door.ask(Call::Midnight).await?),
        (Some(_), Some(_)) => {
            return Err(Problem::invalid("both for_s and until are given\nhint: keep one of the two"));
        }
    };
    let blocks = if order.gpu { Blocks::Gpu } else { Blocks::All };
    tell(&door, Told::Pause(Pause { blocks, until_ms })).await
}

pub(super) async fn resume(State(door): State<Door>) -> Result<Json<View>, Problem> {
    tell(&door, Told::Resume).await
}

pub(super) async fn finish(State(door): State<Door>) -> Result<Json<View>, Problem> {
    tell(&door, Told::Finish).await
}

async fn tell(door: &Door, told: Told) -> Result<Json<View>, Problem> {
    door.ask(|answer| Call::Owner(told, answer)).await.map(Json)
}

pub(super) async fn settings(State(door): State<Door>) -> Result<Json<Map<String, Value>>, Problem> {
    door.ask(Call::Settings).await.map(|settings| Json(listed(&settings)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    key: String,
    value: String,
}

pub(super) async fn set(State(door): State<Door>, body: Body) -> Result<Json<Map<String, Value>>, Problem> {
    let Change { key, value } = parse(&whole_body(body).await?, "key and value, both texts, are needed")?;
    let set = door.ask(|answer| Call::Set { key, value, answer }).await?;
    set.map(|settings| Json(listed(&settings))).map_err(Problem::invalid)
}

fn listed(settings: &Settings) -> Map<String, Value> {
    settings.all().into_iter().map(|(key, value, _)| (key.to_owned(), Value::String(value))).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateOrder {
    /// The newest of the channel, if absent.
    version: Option<skein_update::Version>,
}

pub(super) async fn update(State(door): State<Door>, body: Body) -> Result<Json<Value>, Problem> {
    let UpdateOrder { version } = parse(&whole_body(body).await?, r#"{} or {"version": "1.2.3"}"#)?;
    door.ask(|answer| Call::Update(version, answer)).await?.map_err(Problem::invalid)?;
    Ok(Json(json!({ "begun": true })))
}

/// How the last look and the last update ended.
pub(super) async fn updates(State(door): State<Door>) -> Json<skein_update::State> {
    let directory = Arc::clone(&door.data_dir);
    Json(smol::unblock(move || skein_update::State::load(&directory)).await)
}

#[derive(Deserialize)]
pub(super) struct HistoryQuery {
    #[serde(default)]
    since_ms: u64,
}

pub(super) async fn history(
    State(door): State<Door>,
    Query(HistoryQuery { since_ms }): Query<HistoryQuery>,
) -> Result<Json<Past>, Problem> {
    door.ask(|answer| Call::History { since_ms, answer }).await.map(Json)
}

pub(super) async fn earnings(State(door): State<Door>) -> Result<Json<Vec<Earned>>, Problem> {
    door.ask(Call::Earnings).await.map(Json)
}

/// The log as `skein log verify` sees it: from its files, not from memory.
pub(super) async fn log(State(door): State<Door>) -> Json<Value> {
    let (directory, verified) = (door.data_dir.join("log"), Arc::clone(&door.verified));
    Json(
        smol::unblock(move || {
            // Held meanwhile, so that many who ask wait for one verification.
            let mut last = crate::daemon::lock(&verified);
            if let Some((at, value)) = last.as_ref()
                && at.elapsed() < LOG_VERIFIED_EVERY
            {
                return value.clone();
            }
            let value = verify(&directory);
            *last = Some((Instant::now(), value.clone()));
            value
        })
        .await,
    )
}

fn verify(directory: &std::path::Path) -> Value {
    let read = || {
        // The checkpoint first: the log may grow in between, and is longer then, which is good.
        let checkpoint = std::fs::read_to_string(directory.join("checkpoint"))?;
        Ok::<_, std::io::Error>((std::fs::read(directory.join("entries"))?, checkpoint))
    };
    let told = match read() {
        Err(error) => Err(format!("the log cannot be read: {error}")),
        Ok((bytes, checkpoint)) => {
            skein_ledger::log::verify(&bytes, &checkpoint).map_err(|fault| fault.to_string())
        }
    };
    match told {
        Ok(report) => json!({
            "entries": report.entries, "root": hex::encode(report.root), "verified": true,
            "message": format!("good: {} receipts, {} acceptances", report.receipts, report.acceptances),
            "checked_at_ms": unix_ms(),
        }),
        Err(message) => {
            json!({ "entries": null, "root": null, "verified": false, "message": message, "checked_at_ms": unix_ms() })
        }
    }
}
