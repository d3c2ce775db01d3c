//! How a rig is, in what its owner wants to see of it: made by the rig, and believed by nobody without a look.
//!
//! Fields are only ever added: owner and rig may be of different versions. Must never tell a number that no sensor gave.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use skein_ledger::emission::{Amount, COIN};
use skein_policy::readings::{Gpu, Readings};
use skein_policy::{Rule, State};
use skein_proto::ids::NodeId;

use super::{Fleet, plain};
use crate::daemon::Call;
use crate::daemon::status::{Status, WorkerStatus};
use crate::limits::{RIG_NAME_CHARS_MAX, RIG_REASONS_MAX, RIG_TEXT_CHARS_MAX, RIG_WORKERS_MAX};

/// How a rig is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Its host's name, or what its owner calls it.
    pub(crate) name: String,
    pub(crate) node: NodeId,
    pub(crate) version: String,
    /// Whether that version still has to prove itself.
    pub(crate) on_trial: bool,
    pub(crate) state: State,
    /// The state in a sentence.
    pub(crate) headline: String,
    /// Why it does not work, or not on everything.
    pub(crate) reasons: Vec<Why>,
    pub(crate) workers: Vec<WorkerReport>,
    /// Leases held now, and taken since its start.
    pub(crate) leases: u64,
    pub(crate) leases_taken: u64,
    /// Whom it obeys in the network.
    pub(crate) coordinator: Option<NodeId>,
    /// In coins, exact.
    pub(crate) balance: String,
    /// In coins, since the rig's midnight.
    pub(crate) earned_today: String,
    /// How the network last tested what it can do. This version of the ledger knows no such test.
    pub(crate) last_challenge: Option<Challenge>,
    /// Seconds since its start.
    pub(crate) uptime_s: u64,
    /// Why its last update failed, if it did.
    pub(crate) update_trouble: Option<String>,
    /// Orders since its start that were not its owner's.
    pub(crate) orders_refused: u64,
}

/// One reason; of a rule, with what was read and what it is held against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Why {
    pub(crate) text: String,
    pub(crate) value: Option<String>,
    pub(crate) threshold: Option<String>,
    /// Something is broken; a rig that goes on with the rest of it tells that too. Earlier versions do not.
    #[serde(default)]
    pub(crate) trouble: bool,
}

/// One device that works, and what its sensors say; absent where they say nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerReport {
    pub(crate) device: String,
    /// `cpu`, or by what a GPU is used; empty until it is measured.
    pub(crate) backend: String,
    /// What its own policy lets it do: one card may rest while the others work.
    pub(crate) state: State,
    pub(crate) temperature_c: Option<u16>,
    pub(crate) power_mw: Option<u64>,
    pub(crate) busy_percent: Option<u8>,
    pub(crate) memory_used_bytes: Option<u64>,
}

/// A test of what a rig can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Challenge {
    /// Unix milliseconds.
    pub(crate) at_ms: u64,
    pub(crate) passed: bool,
}

impl Fleet {
    /// How this agent is; nothing when it is leaving.
    pub(super) async fn own_report(&self) -> Option<Report> {
        let (status, readings) = self.call(Call::Gauges).await?;
        let shared = std::sync::Arc::clone(&self.shared);
        let updates = smol::unblock(move || skein_update::State::load(&shared.data_dir)).await;
        Some(Report {
            name: self.shared.name.clone(),
            uptime_s: self.shared.started.elapsed().as_secs(),
            update_trouble: updates.last_result.and_then(|result| result.reason),
            orders_refused: self.shared.refused.load(Ordering::Relaxed),
            ..Report::of(&status, readings.as_ref())
        })
    }
}

impl Report {
    /// What the daemon's loop knows of it.
    fn of(status: &Status, readings: Option<&Readings>) -> Self {
        let rules = status.policy.reasons.iter().map(|reason| Why {
            text: reason.text.clone(),
            value: Some(reason.value.clone()),
            threshold: Some(reason.threshold.clone()),
            trouble: reason.rule == Rule::Trouble,
        });
        let of_no_rule = |text: &&String| status.policy.reasons.iter().all(|reason| reason.line != **text);
        let others = status.reasons.iter().filter(of_no_rule);
        let plain = |text: &String| Why { text: text.clone(), value: None, threshold: None, trouble: false };
        let reasons: Vec<Why> = rules.chain(others.map(plain)).collect();
        Self {
            name: String::new(),
            node: status.node,
            version: status.version.clone(),
            on_trial: status.on_trial,
            state: status.policy.state,
            headline: status.policy.headline.clone(),
            reasons,
            workers: workers(status, readings),
            leases: status.leases.len() as u64,
            leases_taken: status.leases_taken,
            coordinator: status.coordinator,
            balance: status.ledger.balance.clone(),
            earned_today: status.earned_today.clone(),
            last_challenge: None,
            uptime_s: 0,
            update_trouble: None,
            orders_refused: 0,
        }
    }

    /// The same with nothing in it that could do harm where it is shown; said by `node`, whatever it says.
    pub(super) fn tidied(mut self, node: NodeId) -> Self {
        let short = |text: &mut String| *text = plain(text, RIG_TEXT_CHARS_MAX);
        let coins = |text: &mut String| {
            if base_units(text).is_none() {
                *text = Amount(0).to_string();
            }
        };
        self.node = node;
        self.name = plain(self.name.trim(), RIG_NAME_CHARS_MAX);
        if self.name.is_empty() {
            self.name = node.short();
        }
        self.version = plain(&self.version, RIG_NAME_CHARS_MAX);
        short(&mut self.headline);
        self.reasons.truncate(RIG_REASONS_MAX);
        for Why { text, value, threshold, trouble: _ } in &mut self.reasons {
            short(text);
            value.iter_mut().chain(threshold).for_each(short);
        }
        self.workers.truncate(RIG_WORKERS_MAX);
        for worker in &mut self.workers {
            worker.device = plain(&worker.device, RIG_NAME_CHARS_MAX);
            worker.backend = plain(&worker.backend, RIG_NAME_CHARS_MAX);
        }
        coins(&mut self.balance);
        coins(&mut self.earned_today);
        self.update_trouble.iter_mut().for_each(short);
        self
    }
}

/// Its devices, and of each what the sensors say that know which GPU it is.
fn workers(status: &Status, readings: Option<&Readings>) -> Vec<WorkerReport> {
    let gpus = readings.and_then(|readings| readings.gpus.known()).map_or(&[][..], Vec::as_slice);
    let told = |worker: &WorkerStatus| {
        let gpu = gpus.iter().find(|gpu| worker.gpu.as_deref() == Some(&gpu.id));
        let said = |read: fn(&Gpu) -> Option<u64>| gpu.and_then(read);
        WorkerReport {
            device: worker.device.clone(),
            backend: worker.backend.clone().unwrap_or_default(),
            state: worker.state,
            temperature_c: gpu.and_then(|gpu| gpu.temperature_c.known().copied()),
            power_mw: said(|gpu| gpu.power_mw.known().copied()),
            busy_percent: gpu.and_then(|gpu| gpu.busy_percent.known().copied()),
            memory_used_bytes: said(|gpu| gpu.memory_used_bytes.known().copied()),
        }
    };
    status.workers.iter().map(told).collect()
}

/// An exact number of coins, in base units; nothing if it is none.
pub(crate) fn base_units(coins: &str) -> Option<u64> {
    let (whole, decimals) = coins.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() != 8 {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(COIN)?.checked_add(decimals.parse().ok()?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A rig that works.
    pub(crate) fn report() -> Report {
        Report {
            name: "rig-1".to_owned(),
            node: NodeId([1; 32]),
            version: "0.1.0".to_owned(),
            on_trial: false,
            state: State::Working,
            headline: "Working".to_owned(),
            reasons: Vec::new(),
            workers: vec![WorkerReport {
                device: "NVIDIA GeForce RTX 3060".to_owned(),
                backend: "wgpu".to_owned(),
                state: State::Working,
                temperature_c: Some(61),
                power_mw: Some(141_600),
                busy_percent: Some(97),
                memory_used_bytes: None,
            }],
            leases: 1,
            leases_taken: 17,
            coordinator: None,
            balance: "12.50000000".to_owned(),
            earned_today: "0.25000001".to_owned(),
            last_challenge: None,
            uptime_s: 3_600,
            update_trouble: None,
            orders_refused: 0,
        }
    }

    #[test]
    fn coins_are_exact() {
        for units in [0, 1, COIN - 1, COIN, 12_345_678_901, 80_000_000 * COIN] {
            assert_eq!(base_units(&Amount(units).to_string()), Some(units));
        }
        for bad in
            ["", ".", "1", "1.5", "-1.00000000", "1.000000000", "99999999999999.00000000", "1.0000000x"]
        {
            assert_eq!(base_units(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_a_rig_says_is_cut_and_cleaned() {
        let why = Why {
            text: "x".repeat(100_000),
            value: Some("\u{1b}]0;gone\u{7}".to_owned()),
            threshold: None,
            trouble: false,
        };
        let wild = Report {
            name: "\n\u{1b}[31m".repeat(100),
            node: NodeId([9; 32]),
            reasons: vec![why; 1_000],
            workers: vec![report().workers[0].clone(); 1_000],
            balance: "1e308".to_owned(),
            ..report()
        };
        let tidy = wild.tidied(NodeId([1; 32]));
        assert_eq!((tidy.node, tidy.balance.as_str()), (NodeId([1; 32]), "0.00000000"));
        assert!(tidy.name.chars().count() <= RIG_NAME_CHARS_MAX && !tidy.name.contains('\u{1b}'));
        assert_eq!((tidy.reasons.len(), tidy.workers.len()), (RIG_REASONS_MAX, RIG_WORKERS_MAX));
        assert_eq!(tidy.reasons[0].text.len(), RIG_TEXT_CHARS_MAX);
        assert_eq!(tidy.reasons[0].value.as_deref(), Some("]0;gone"));
        let nameless = Report { name: " \u{200b}".to_owned(), ..report() }.tidied(NodeId([1; 32]));
        assert_eq!(nameless.name, "01010101");
        assert_eq!(report().tidied(NodeId([1; 32])), report());
    }

    #[test]
    fn a_newer_rig_may_say_more() {
        let mut said = serde_json::to_value(report()).unwrap();
        said["mood"] = "fine".into();
        said["workers"][0]["fan"] = 40.into();
        said.as_object_mut().unwrap().remove("last_challenge");
        assert_eq!(serde_json::from_value::<Report>(said).unwrap(), report());
    }
}
