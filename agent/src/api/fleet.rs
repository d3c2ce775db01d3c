//! `/api/fleet`: the rigs of the owner whose key lies here, and orders to them.
//!
//! Needs the token for everything: it tells of other machines. What rigs say was cut and cleaned before.

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::control::parse;
use super::owner::Until;
use super::{Door, Problem, whole_body};
use crate::fleet::order::{Ask, Length};
use crate::fleet::{Obeyed, Overview};
use crate::limits::PAUSE_S_MAX;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Look {
    /// Whether rigs are asked how they are now; otherwise, what they said last.
    #[serde(default = "yes")]
    ask: bool,
}

fn yes() -> bool {
    true
}

pub(super) async fn overview(
    State(door): State<Door>,
    Query(look): Query<Look>,
) -> Result<Json<Overview>, Problem> {
    let overview = door.fleet.overview(look.ask).await;
    overview.map(Json).map_err(|error| Problem::broken(format!("{error:#}")))
}

/// Rigs by name or the first digits of their node ids; all of them, if absent.
type Rigs = Option<Vec<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PauseOrder {
    rigs: Rigs,
    /// Seconds.
    for_s: Option<u64>,
    until: Option<Until>,
    /// The GPUs alone.
    #[serde(default)]
    gpu: bool,
}

pub(super) async fn pause(State(door): State<Door>, body: Body) -> Result<Json<Value>, Problem> {
    let hint = r#"{"for_s": 1800}, {"until": "tomorrow"} or {}; with "gpu": true for the GPUs alone, and "rigs": ["NAME"] for some"#;
    let PauseOrder { rigs, for_s, until, gpu } = parse(&whole_body(body).await?, hint)?;
    let length = match (for_s, until) {
        (None, None) => Length::UntilResumed,
        (Some(seconds), None) if (1..=PAUSE_S_MAX).contains(&seconds) => Length::For { seconds },
        (Some(_), None) => {
            return Err(Problem::invalid(format!(
                "for_s is out of range\nhint: from 1 to {PAUSE_S_MAX} seconds"
            )));
        }
        (None, Some(Until::Tomorrow)) => Length::UntilTomorrow,
        (Some(_), Some(_)) => {
            return Err(Problem::invalid("both for_s and until are given\nhint: keep one of the two"));
        }
    };
    tell(&door, rigs, Ask::Pause { gpu, length }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainOrder {
    rigs: Rigs,
}

const PLAIN: &str = r#"{} for all rigs, or {"rigs": ["NAME"]}"#;

pub(super) async fn resume(State(door): State<Door>, body: Body) -> Result<Json<Value>, Problem> {
    let PlainOrder { rigs } = parse(&whole_body(body).await?, PLAIN)?;
    tell(&door, rigs, Ask::Resume).await
}

pub(super) async fn finish(State(door): State<Door>, body: Body) -> Result<Json<Value>, Problem> {
    let PlainOrder { rigs } = parse(&whole_body(body).await?, PLAIN)?;
    tell(&door, rigs, Ask::Finish).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateOrder {
    rigs: Rigs,
    /// The newest of each rig's channel, if absent.
    version: Option<skein_update::Version>,
}

pub(super) async fn update(State(door): State<Door>, body: Body) -> Result<Json<Value>, Problem> {
    let hint = r#"{} for the newest, or {"version": "1.2.3"}; with "rigs": ["NAME"] for some"#;
    let UpdateOrder { rigs, version } = parse(&whole_body(body).await?, hint)?;
    tell(&door, rigs, Ask::Update { version: version.map(|version| version.to_string()) }).await
}

async fn tell(door: &Door, rigs: Rigs, ask: Ask) -> Result<Json<Value>, Problem> {
    let obeyed: anyhow::Result<Vec<Obeyed>> = door.fleet.order(rigs, ask).await;
    obeyed.map(|rigs| Json(json!({ "rigs": rigs }))).map_err(|error| Problem::invalid(format!("{error:#}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForgetOrder {
    rig: String,
    #[serde(default)]
    undo: bool,
}

pub(super) async fn forget(State(door): State<Door>, body: Body) -> Result<Json<Value>, Problem> {
    let ForgetOrder { rig, undo } = parse(&whole_body(body).await?, r#"{"rig": "NAME"}"#)?;
    let forgotten = smol::unblock(move || door.fleet.forget(&rig, undo)).await;
    forgotten
        .map(|node| Json(json!({ "node": node })))
        .map_err(|error| Problem::invalid(format!("{error:#}")))
}
