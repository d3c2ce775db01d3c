//! `/api/*` for the owner: pause, resume, finish, settings, and what the dashboard shows over time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use skein_policy::{Blocks, Event as Told, Pause, Settings, View};

use super::control::parse;
use super::{Door, Problem, whole_body};
use crate::daemon::history::Past;
use crate::daemon::owner::unix_ms;
use crate::daemon::status::Earned;
use crate::daemon::{Call, lock};
use crate::limits::{LOG_VERIFIED_EVERY, PAUSE_S_MAX};

/// The verification of the own log, which is not done for each who asks, and never waited for. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Verified(Arc<Mutex<Verification>>);

#[derive(Default)]
struct Verification {
    last: Option<Verdict>,
    under_way: Option<smol::Task<()>>,
}

struct Verdict {
    at: Instant,
    took: Duration,
    value: Value,
}

impl Verdict {
    /// A long log is verified the less often: it takes a hundredth of one processor at most.
    fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.at) >= LOG_VERIFIED_EVERY.max(self.took.saturating_mul(100))
    }
}

impl Verified {
    /// The last verdict; a new one is on its way when that is old, and nobody waits for it.
    fn told(&self, verify: impl FnOnce() -> Value + Send + 'static) -> Value {
        let mut kept = lock(&self.0);
        let due = kept.last.as_ref().is_none_or(|verdict| verdict.is_due(Instant::now()));
        if due && kept.under_way.as_ref().is_none_or(smol::Task::is_finished) {
            let verified = self.clone();
            kept.under_way = Some(skein_mesh::spawn(smol::unblock(move || {
                let began = Instant::now();
                let value = verify();
                let verdict = Verdict { at: Instant::now(), took: began.elapsed(), value };
                lock(&verified.0).last = Some(verdict);
            })));
        }
        match &kept.last {
            Some(verdict) => verdict.value.clone(),
            None => json!({
                "entries": null, "root": null, "verified": null, "message": "being verified", "checked_at_ms": null,
            }),
        }
    }
}

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
    let directory = door.data_dir.join("log");
    Json(door.verified.told(move || verify(&directory)))
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn one_verification_runs_at_a_time_and_nobody_waits_for_it() {
        let (verified, (end, ended)) = (Verified::default(), mpsc::channel::<Value>());
        let first = verified.told(move || ended.recv().unwrap());
        assert!(first["verified"].is_null() && first["message"] == "being verified", "{first}");
        let again = verified.told(|| panic!("a second one beside it"));
        assert_eq!(again, first);
        end.send(json!("good")).unwrap();
        let task = lock(&verified.0).under_way.take().unwrap();
        smol::future::block_on(task);
        assert_eq!(verified.told(|| panic!("the last one is new")), "good");
    }

    #[test]
    fn what_takes_long_is_done_seldom() {
        let verdict = |took| Verdict { at: Instant::now(), took, value: Value::Null };
        let due = |verdict: &Verdict, seconds| verdict.is_due(verdict.at + Duration::from_secs(seconds));
        let short = verdict(Duration::from_millis(3));
        assert!(!due(&short, 59) && due(&short, 60));
        let long = verdict(Duration::from_secs(7));
        assert!(!due(&long, 699) && due(&long, 700));
    }
}
