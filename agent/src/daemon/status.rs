//! What `status`, `jobs` and `claim` tell: stable JSON, gathered from the core, the ledger and the shell.
//!
//! Operators script against these keys; a key is never renamed or given another meaning.

use serde::{Deserialize, Serialize};
use skein_ledger::emission::Amount;
use skein_policy::{Sensor, State, View};
use skein_proto::ids::{Digest, Epoch, JobId, LeaseId, Millis, NetworkId, NodeId, Units};
use skein_proto::offer::{Offer, WorkerOffer};
use skein_proto::signed::Signed;
use skein_update::LastResult;

/// `skein status --json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// This agent.
    pub(crate) node: NodeId,
    /// Its process.
    pub(crate) pid: u32,
    /// The version of the binary.
    pub(crate) version: String,
    /// The network's name and id.
    pub(crate) network: String,
    pub(crate) network_id: NetworkId,
    /// Where other agents reach it.
    pub(crate) listen: String,
    /// Where the local API answers.
    pub(crate) api: String,
    /// Connected agents.
    pub(crate) peers: Vec<Peer>,
    /// Whom it obeys.
    pub(crate) coordinator: Option<NodeId>,
    pub(crate) term: Option<u64>,
    /// Whether the scheduler can see it.
    pub(crate) visible: bool,
    /// Whether it executes something now.
    pub(crate) working: bool,
    /// Every reason why it does not do all that it could, each in a line; of one at work, what holds back a part of it.
    pub(crate) reasons: Vec<String>,
    /// What the owner allows, and why not more.
    pub(crate) policy: View,
    /// Whether this version still has to prove itself.
    pub(crate) on_trial: bool,
    /// Whether it is finding out which devices there are. An earlier version on trial does not tell.
    #[serde(default)]
    pub(crate) surveying: bool,
    /// How the last look for a newer version, or the last update, ended.
    #[serde(default)]
    pub(crate) update: Option<LastResult>,
    /// Since the owner's midnight, in coins.
    pub(crate) earned_today: String,
    /// What it measured, once it has.
    pub(crate) offer: Option<Offered>,
    /// Why this device; the first worker's.
    pub(crate) device_reason: String,
    /// Leases held.
    pub(crate) leases: Vec<HeldLease>,
    /// Leases taken since the start, those held included.
    pub(crate) leases_taken: u64,
    pub(crate) log: LogState,
    pub(crate) ledger: LedgerState,
    /// The first worker's process.
    pub(crate) worker: WorkerInfo,
    /// One for each device.
    pub(crate) workers: Vec<WorkerStatus>,
    /// Payload bytes over the mesh.
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) host: crate::host::Host,
}

/// A connected agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) round_trip_us: Option<u64>,
    /// Its devices, once its offer is here.
    pub(crate) device: Option<String>,
}

/// What an agent offers: its first worker's device, and the list of all.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Offered {
    #[serde(flatten)]
    pub(crate) first: WorkerOffer,
    pub(crate) workers: Vec<WorkerOffer>,
    pub(crate) addresses: Vec<String>,
    pub(crate) issued_at: Millis,
}

impl Offered {
    /// Nothing of an offer without a worker, which only a stranger makes.
    pub(crate) fn of(offer: &Offer) -> Option<Self> {
        let Offer { workers, addresses, issued_at } = offer.clone();
        Some(Self { first: workers.first()?.clone(), workers, addresses, issued_at })
    }
}

/// Whether any of its workers takes work.
pub(crate) fn is_open(offer: &Signed<Offer>) -> bool {
    offer.statement().workers.iter().any(|worker| worker.open)
}

/// The devices of an offer in a line: `2 × GeForce RTX 3060, Radeon RX 6800`.
pub(crate) fn devices(offer: &Offer) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for worker in &offer.workers {
        match counts.iter_mut().find(|(name, _)| *name == worker.device) {
            Some((_, count)) => *count += 1,
            None => counts.push((&worker.device, 1)),
        }
    }
    let named = counts.iter().map(|(name, count)| match count {
        1 => (*name).to_owned(),
        count => format!("{count} × {name}"),
    });
    named.collect::<Vec<_>>().join(", ")
}

/// One device and its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    pub(crate) index: u8,
    /// Its name; empty until the devices were looked for.
    pub(crate) device: String,
    /// `cpu` or the GPU interface, once it is measured.
    pub(crate) backend: Option<String>,
    /// By which id sensors know the GPU.
    pub(crate) gpu: Option<String>,
    pub(crate) pid: Option<u32>,
    /// How often its process died.
    pub(crate) deaths: u64,
    /// Whether it holds a lease.
    pub(crate) working: bool,
    pub(crate) state: State,
    pub(crate) headline: String,
    /// Why it may not do everything.
    pub(crate) reasons: Vec<String>,
}

/// A lease in hand.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HeldLease {
    pub(crate) lease: LeaseId,
    pub(crate) job: JobId,
    /// Which worker has it.
    pub(crate) worker: u8,
    pub(crate) shard: String,
    pub(crate) done: u32,
    pub(crate) of: u32,
}

/// The log in numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LogState {
    pub(crate) path: String,
    pub(crate) entries: u64,
}

/// The ledger in numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LedgerState {
    pub(crate) epoch: Epoch,
    pub(crate) height: u64,
    /// Digest of balances and all: equal on all agents of one height.
    pub(crate) state: Digest,
    pub(crate) balance: String,
    pub(crate) balance_base_units: Amount,
    /// Accepted work of the present epoch.
    pub(crate) accepted_units: Units,
    pub(crate) settlements: Vec<Settled>,
}

/// One settled epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settled {
    pub(crate) epoch: Epoch,
    pub(crate) height: u64,
    /// What the curve gives for this epoch.
    pub(crate) emission: Amount,
    pub(crate) minted: Amount,
    pub(crate) claims: Vec<Payout>,
}

/// Who earned how much, in base units of 10^-8.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Payout {
    pub(crate) node: NodeId,
    pub(crate) amount: Amount,
}

/// One epoch of `GET /api/earnings`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Earned {
    pub(crate) epoch: Epoch,
    pub(crate) started_at_ms: u64,
    /// In coins.
    pub(crate) amount: String,
    pub(crate) amount_base_units: Amount,
}

/// The worker process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerInfo {
    pub(crate) pid: Option<u32>,
    pub(crate) deaths: u64,
}

/// The answer to `skein claim`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClaimState {
    /// The last epoch that closed.
    pub(crate) epoch: Epoch,
    /// Accepted work in it.
    pub(crate) units: Units,
    /// Receipts that the claim names.
    pub(crate) receipts: usize,
    /// Whether the claim was sent now.
    pub(crate) sent: bool,
    /// How the epoch was settled, if it was.
    pub(crate) settled: Option<Settled>,
    /// For people.
    pub(crate) message: String,
}

/// How several workers stand: the one that stands best leads, and the others add their reasons and their GPUs' sensors.
pub(super) fn together(views: Vec<View>) -> View {
    let best = |view: &View| match view.state {
        State::Working => 0,
        State::Waiting => 1,
        State::Paused => 2,
        State::Trouble => 3,
    };
    let lead = (0..views.len()).min_by_key(|at| best(&views[*at])).unwrap_or(0);
    let mut view = views[lead].clone();
    let alike = views.iter().filter(|other| other.state == view.state).count();
    if alike < views.len() {
        view.headline = format!("{} ({alike} of {} workers)", view.headline, views.len());
    }
    for (at, other) in views.into_iter().enumerate().filter(|(at, _)| *at != lead) {
        for sensor in other.sensors.into_iter().filter(|sensor| sensor.gpu.is_some()) {
            let same = |known: &Sensor| known.gpu == sensor.gpu && known.sensor == sensor.sensor;
            if !view.sensors.iter().any(same) {
                view.sensors.push(sensor);
            }
        }
        for mut reason in other.reasons {
            if view.reasons.iter().all(|known| known.rule != reason.rule || known.text != reason.text) {
                reason.text = format!("worker {at}: {}", reason.text);
                reason.line = format!("worker {at}: {}", reason.line);
                view.reasons.push(reason);
            }
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use skein_policy::readings::Reading;
    use skein_policy::{Event, Policy, Rule, Settings};

    use super::*;
    use crate::daemon::device::tests::{gpu, readings};

    #[test]
    fn of_several_gpus_each_ones_sensors_are_told() {
        let view = |own: &str| {
            let mut policy = Policy::new(Settings::headless(), 1_000);
            let (cool, mut hot) = (gpu("1", "A"), gpu("2", "A"));
            hot.temperature_c = Reading::Known(100);
            policy.handle(1_000, Event::Device(Some(own.to_owned())));
            policy.handle(1_000, Event::Readings(Box::new(readings(vec![cool, hot]))));
            policy.view(1_000)
        };
        let (first, second) = (view("1"), view("2"));
        let alone = first.sensors.len();
        let view = together(vec![first.clone(), second.clone(), second]);
        assert_eq!(view.state, first.state, "the cool one leads");
        assert_eq!(
            view.reasons.iter().map(|reason| reason.rule).collect::<Vec<_>>(),
            [Rule::GpuTemperature; 2]
        );
        let of = |id: &str| view.sensors.iter().filter(|sensor| sensor.gpu.as_deref() == Some(id)).count();
        assert_eq!((of("1"), of("2")), (8, 8), "each once");
        assert_eq!(view.sensors.len(), alone + 8, "and what is no GPU's once");
    }
}
