//! `/metrics`: what Prometheus scrapes, in its text format 0.0.4.
//!
//! Names follow its conventions: base units, `_total` for counters. What no sensor knows has no sample.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use skein_policy::readings::{Gpu, Readings};
use skein_policy::{Reason, Rule};

use super::{Door, Problem};
use crate::daemon::Call;
use crate::daemon::history::gpus;
use crate::daemon::status::{Status, WorkerStatus};

pub(super) async fn metrics(State(door): State<Door>) -> Result<Response, Problem> {
    let (status, readings) = door.ask(Call::Gauges).await?;
    let text = text(&status, readings.as_ref());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

struct Page(String);

impl Page {
    /// One metric: its help, and a sample for each set of labels.
    fn metric(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, String)>, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.into_iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(&text))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.metric(name, help, [(Vec::new(), value)]);
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A word of the API, as `gpu_busy`.
fn word(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).ok();
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The rules that hold work back, each once, and when the first device that is held back by it is looked at again.
/// Values that were read are gauges of their own; limits are the owner's, and change seldom enough for a label.
fn blocking(reasons: &[Reason]) -> BTreeMap<Vec<(&'static str, String)>, u64> {
    let mut rules = BTreeMap::new();
    // Trouble is told among them and blocks nothing.
    for reason in reasons.iter().filter(|reason| reason.rule != Rule::Trouble) {
        let labels = vec![
            ("rule", word(reason.rule)),
            ("blocks", word(reason.blocks)),
            ("limit", reason.threshold.clone()),
        ];
        let again_ms = rules.entry(labels).or_insert(u64::MAX);
        *again_ms = reason.look_again_ms.min(*again_ms);
    }
    rules
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but doubles")]
fn text(status: &Status, readings: Option<&Readings>) -> String {
    let mut page = Page(String::new());
    let yes = |yes: bool| f64::from(u8::from(yes));
    let build = vec![("version", status.version.clone()), ("node", status.node.to_string())];
    page.metric("skein_build_info", "The agent's version and node id.", [(build, 1.0)]);
    page.one("skein_visible", "Whether the scheduler can see the agent.", yes(status.visible));
    page.one("skein_working", "Whether a lease is in hand.", yes(status.working));
    let states = ["working", "waiting", "paused", "trouble"];
    let state = word(status.policy.state);
    page.metric(
        "skein_state",
        "The agent's state: 1 for the present one.",
        states.map(|name| (vec![("state", name.to_owned())], yes(state == name))),
    );
    let rules = blocking(&status.policy.reasons);
    let held = rules.keys().map(|labels| (labels.clone(), 1.0));
    page.metric("skein_policy_blocked", "Rules of the owner that hold work back now.", held);
    page.metric(
        "skein_policy_next_look_timestamp_seconds",
        "When such a rule is looked at again.",
        rules.iter().map(|(labels, again_ms)| (labels.clone(), *again_ms as f64 / 1e3)),
    );
    let troubles = status.policy.reasons.iter().filter(|reason| reason.rule == Rule::Trouble).count();
    page.one(
        "skein_troubles",
        "What is broken, workers and cards; `skein status` says what.",
        troubles as f64,
    );
    let labels = |worker: &WorkerStatus| {
        let gpu = worker.gpu.clone().unwrap_or_default();
        vec![("worker", worker.index.to_string()), ("device", worker.device.clone()), ("gpu", gpu)]
    };
    let workers = &status.workers;
    page.metric(
        "skein_worker_working",
        "Whether the worker holds a lease.",
        workers.iter().map(|worker| (labels(worker), yes(worker.working))),
    );
    let of_each = workers.iter().flat_map(|worker| {
        let labels = labels(worker);
        states.map(|name| {
            let state = ("state", name.to_owned());
            (labels.iter().cloned().chain([state]).collect(), yes(word(worker.state) == name))
        })
    });
    page.metric("skein_worker_state", "The worker's state: 1 for the present one.", of_each);
    page.metric(
        "skein_worker_deaths_total",
        "Deaths of the worker's process since the start.",
        workers.iter().map(|worker| (labels(worker), worker.deaths as f64)),
    );
    let known = readings.map_or(&[][..], |readings| gpus(&readings.gpus));
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&Gpu) -> Option<f64>| {
        let samples = known.iter().filter_map(|gpu| {
            let labels = vec![("gpu", gpu.id.clone()), ("name", gpu.name.clone())];
            value(gpu).map(|value| (labels, value))
        });
        page.metric(name, help, samples);
    };
    gauge("skein_gpu_busy_ratio", "How busy the GPU is, whoever keeps it so.", &|gpu| {
        gpu.busy_percent.known().map(|percent| f64::from(*percent) / 100.0)
    });
    gauge("skein_gpu_temperature_celsius", "The GPU's temperature.", &|gpu| {
        gpu.temperature_c.known().map(|celsius| f64::from(*celsius))
    });
    gauge("skein_gpu_power_watts", "What the GPU draws.", &|gpu| {
        gpu.power_mw.known().map(|milliwatts| *milliwatts as f64 / 1e3)
    });
    gauge("skein_gpu_memory_used_bytes", "The GPU's memory in use, whoever uses it.", &|gpu| {
        gpu.memory_used_bytes.known().map(|bytes| *bytes as f64)
    });
    gauge("skein_gpu_memory_bytes", "The GPU's memory.", &|gpu| {
        gpu.memory_total_bytes.known().map(|bytes| *bytes as f64)
    });
    gauge("skein_gpu_fan_ratio", "The GPU's fan, of its full speed.", &|gpu| {
        gpu.fan_percent.known().map(|percent| f64::from(*percent) / 100.0)
    });
    page.one("skein_peers", "Connected agents.", status.peers.len() as f64);
    page.one("skein_leases", "Leases in hand.", status.leases.len() as f64);
    page.one("skein_leases_taken_total", "Leases taken since the start.", status.leases_taken as f64);
    page.one("skein_log_entries", "Entries of the signed log.", status.log.entries as f64);
    page.one(
        "skein_epoch_units",
        "Accepted work of the present epoch.",
        status.ledger.accepted_units.0 as f64,
    );
    let coins = status.ledger.balance_base_units.0 as f64 / 1e8;
    page.one("skein_balance_coins", "What the ledger holds for the agent.", coins);
    page.one("skein_ledger_height", "Height of the ledger.", status.ledger.height as f64);
    page.one("skein_mesh_sent_bytes_total", "Payload bytes sent over the mesh.", status.bytes_sent as f64);
    page.one(
        "skein_mesh_received_bytes_total",
        "Payload bytes received over the mesh.",
        status.bytes_received as f64,
    );
    page.0
}

#[cfg(test)]
mod tests {
    use skein_policy::Blocks;

    use super::*;

    #[test]
    fn trouble_blocks_nothing_and_a_rule_is_there_once() {
        let reason = |rule, look_again_ms| Reason {
            rule,
            blocks: Blocks::Gpu,
            text: String::new(),
            value: String::new(),
            threshold: "30 %".to_owned(),
            since_ms: 0,
            look_again_ms,
            line: String::new(),
        };
        let reasons = [reason(Rule::Trouble, 1), reason(Rule::GpuBusy, 5), reason(Rule::GpuBusy, 3)];
        let labels = ["gpu_busy", "gpu", "30 %"].map(str::to_owned);
        let labels = ["rule", "blocks", "limit"].into_iter().zip(labels).collect();
        assert_eq!(blocking(&reasons), BTreeMap::from([(labels, 3)]));
    }
}
