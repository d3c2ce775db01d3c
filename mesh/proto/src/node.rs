//! One agent's core: every input in, every effect out.
//!
//! Call order: feed each event with its time to [`Node::handle`], perform the outputs in order, and feed
//! [`Input::Tick`] every [`limits::TICK_MS`]. An [`Output::Append`] must be durable before any
//! [`Output::Send`] queued after it leaves. Per peer, frames arrive in the order in which they were sent
//! while one connection lasts; when a connection ends on either side, each side is told `Down` before it is
//! told of the next `Up`, or that `Up` alone. Every [`Output::Execute`] ends in one [`Input::Finished`],
//! soon after an [`Output::Stop`]. Must never do anything by itself.

mod events;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ed25519_dalek::SigningKey;

pub use self::events::{Allowance, Execution, Input, Output, Record};
use crate::election::{Election, Reign};
use crate::genesis::Genesis;
use crate::holdings::{Executed, HeldLease, Holdings, NotTaken, Trouble};
use crate::ids::{JobId, LeaseId, Millis, NetworkId, NodeId};
use crate::job::JobSpec;
use crate::lease::{Acceptance, End, Lease, Receipt};
use crate::limits;
use crate::links::Soundings;
use crate::membership::{Members, News};
use crate::message::{JobStatus, Message, Resume, bounded_reason};
use crate::offer::Offer;
use crate::office::{Letter, NotHired, Office};
use crate::orders::Orders;
use crate::placement::Hand;
use crate::signed::{Envelope, Malformed, Signed, decode};

/// One agent.
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    key: SigningKey,
    network: NetworkId,
    started_at: Option<Millis>,
    bootstrapped: bool,
    leaving: bool,
    /// By worker; what is not said is the default.
    allowances: BTreeMap<u8, Allowance>,
    offer: Option<Signed<Offer>>,
    members: Members,
    election: Election,
    office: Option<Office>,
    holdings: Holdings,
    orders: Orders,
    soundings: Soundings,
    loopback: VecDeque<Message>,
    beat_at: Millis,
    introduced_at: Millis,
    introduced: Option<NodeId>,
}

impl Node {
    /// A core at rest. `alone`: nobody to meet was named, so it need not wait for company.
    pub fn new(key: SigningKey, genesis: &Genesis, alone: bool) -> Self {
        let id = NodeId(key.verifying_key().to_bytes());
        let network = genesis.network_id();
        Self {
            id,
            key,
            network,
            started_at: None,
            bootstrapped: alone,
            leaving: false,
            allowances: BTreeMap::new(),
            offer: None,
            members: Members::default(),
            election: Election::new(id, network),
            office: None,
            holdings: Holdings::default(),
            orders: Orders::default(),
            soundings: Soundings::default(),
            loopback: VecDeque::new(),
            beat_at: Millis(0),
            introduced_at: Millis(0),
            introduced: None,
        }
    }

    /// This agent.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The coordinator that this agent obeys.
    pub fn reign(&self) -> Option<Reign> {
        self.election.reign()
    }

    /// Offers of the present members, without this agent's own.
    pub fn offers(&self) -> impl Iterator<Item = &Signed<Offer>> {
        self.members.offers()
    }

    /// This agent's own offer.
    pub fn offer(&self) -> Option<&Signed<Offer>> {
        self.offer.as_ref()
    }

    /// Leases held.
    pub fn held(&self) -> Vec<HeldLease> {
        self.holdings.list()
    }

    /// Whether any lease is in hand.
    pub fn works(&self) -> bool {
        !self.holdings.is_empty()
    }

    /// Whether this worker has any lease in hand.
    pub fn works_on(&self, worker: u8) -> bool {
        self.holdings.any_on(worker)
    }

    /// Whether nothing holds this agent any more: no lease in hand, no receipt that its
    /// coordinator has yet to answer.
    pub fn may_leave(&self) -> bool {
        let coordinator = self.election.reign().map(|reign| reign.coordinator);
        let answered = coordinator.is_none_or(|node| self.holdings.unanswered(node).is_empty());
        self.holdings.list().is_empty() && answered
    }

    /// Jobs that this agent has heard of.
    pub fn jobs(&self) -> &BTreeMap<JobId, JobStatus> {
        self.orders.jobs()
    }

    /// Signs a job as this agent's.
    pub fn sign_job(&self, spec: JobSpec) -> Signed<JobSpec> {
        Signed::new(spec, &self.network, &self.key)
    }

    /// Applies one event.
    pub fn handle(&mut self, now: Millis, input: Input, out: &mut Vec<Output>) {
        self.started_at.get_or_insert(now);
        match input {
            Input::Offer(offer) => self.offer_to_all(now, offer, out),
            Input::Allow { worker, allowance } => self.allow(now, worker, allowance, out),
            Input::Up(node) => self.up(now, node, out),
            Input::Down(node) => self.down(now, node, out),
            Input::Frame { from, bytes } => match parse(&bytes) {
                Ok(message) if self.members.heard(now, from) => self.message(now, from, message, out),
                Ok(_) => {}
                Err(error) => self.disconnect(now, from, error.to_string(), out),
            },
            Input::Submit(job, before) => {
                out.push(Output::JobChanged(self.orders.place(*job, before.map(|before| *before))));
                self.say_orders(now, out);
            }
            Input::Cancel(job) => {
                if self.orders.cancel(job) {
                    self.say_orders(now, out);
                } else if let Some(reign) = self.election.reign() {
                    // Not an order of this life of the agent, but perhaps of an earlier one.
                    self.send(reign.coordinator, Message::Cancel(job), out);
                }
            }
            Input::Progress(lease, pace) => {
                if let Some(coordinator) = self.holdings.progressed(lease, pace) {
                    self.send(coordinator, Message::Progress { lease, pace }, out);
                }
            }
            Input::Finished(lease, result) => self.finished(now, lease, result, out),
            Input::Leave => {
                self.leaving = true;
                self.offer_again(now, out);
                let stopped = self.holdings.give_up(|_| true);
                out.extend(stopped.into_iter().map(Output::Stop));
            }
            Input::Unanswered(receipts) => {
                for receipt in receipts {
                    let lease = receipt.unverified().lease.unverified().id();
                    self.holdings.await_answer(lease, receipt);
                }
            }
            Input::Links(links) => {
                self.soundings.measured(links);
                self.say_links(now, out);
            }
            Input::Tick => self.tick(now, out),
        }
        while let Some(message) = self.loopback.pop_front() {
            self.message(now, self.id, message, out);
        }
    }

    fn offer_to_all(&mut self, now: Millis, mut offer: Offer, out: &mut Vec<Output>) {
        // More would make the whole offer void to others.
        offer.workers.truncate(limits::WORKERS_MAX);
        for (index, worker) in (0..).zip(&mut offer.workers) {
            worker.open = self.allowance(index) == Allowance::Work && !self.leaving;
        }
        // Later than the one before, or nobody would take it for new.
        let last = self.offer.as_ref().map_or(Millis(0), |offer| offer.statement().issued_at.plus(1));
        offer.issued_at = now.max(last);
        let offer = Signed::new(offer, &self.network, &self.key);
        let message = Message::Offers(vec![offer.envelope().clone()]);
        self.offer = Some(offer);
        for node in self.members.connected().collect::<Vec<_>>() {
            out.push(Output::Send(node, message.clone()));
        }
    }

    fn offer_again(&mut self, now: Millis, out: &mut Vec<Output>) {
        if let Some(offer) = &self.offer {
            self.offer_to_all(now, offer.statement().clone(), out);
        }
    }

    fn allowance(&self, worker: u8) -> Allowance {
        self.allowances.get(&worker).copied().unwrap_or_default()
    }

    /// The offer goes first, so that the coordinator grants what is given up to others.
    fn allow(&mut self, now: Millis, worker: u8, allowance: Allowance, out: &mut Vec<Output>) {
        if allowance == self.allowance(worker) {
            return;
        }
        self.allowances.insert(worker, allowance);
        self.offer_again(now, out);
        let stopped = match allowance {
            Allowance::Work => Vec::new(),
            Allowance::Finish => {
                self.holdings.give_up(|lease| lease.worker == worker && lease.shard.is_standing())
            }
            Allowance::Nothing => self.holdings.give_up(|lease| lease.worker == worker),
        };
        out.extend(stopped.into_iter().map(Output::Stop));
        self.run_office(now, out);
    }

    fn up(&mut self, now: Millis, node: NodeId, out: &mut Vec<Output>) {
        if node == self.id {
            out.push(Output::Disconnect(node, "this is the agent itself".into()));
            return;
        }
        if self.members.is_connected(node) {
            // A new connection in place of the old: what was under way on that one may be lost.
            self.down(now, node, out);
        }
        if !self.members.up(now, node) {
            out.push(Output::Disconnect(node, "this agent has as many members as it can".into()));
            return;
        }
        self.bootstrapped = true;
        if let Some(offer) = &self.offer {
            out.push(Output::Send(node, Message::Offers(vec![offer.envelope().clone()])));
        }
        out.push(Output::Send(node, Message::Beat { reign: self.election.reign() }));
        self.reintroduce(now, node, out);
    }

    fn disconnect(&mut self, now: Millis, node: NodeId, why: String, out: &mut Vec<Output>) {
        out.push(Output::Disconnect(node, why));
        self.down(now, node, out);
    }

    /// Says again to a coordinator that came (back) what it may have missed.
    fn reintroduce(&mut self, now: Millis, node: NodeId, out: &mut Vec<Output>) {
        if self.election.reign().is_none_or(|reign| reign.coordinator != node) {
            return;
        }
        for receipt in self.holdings.unanswered(node) {
            self.send(node, Message::Receipt(receipt), out);
        }
        // First, so that the coordinator knows them when it places what is ordered.
        self.soundings.untold();
        self.say_links(now, out);
        self.orders.unanswered();
        self.say_orders(now, out);
    }

    fn down(&mut self, now: Millis, node: NodeId, out: &mut Vec<Output>) {
        if self.members.down(now, node) {
            out.push(Output::Note(format!("agent {} is gone", node.short())));
        }
        let mut letters = Vec::new();
        if let Some(office) = &mut self.office {
            office.vanished(node, &mut letters);
        }
        self.post(letters, out);
        // What it held goes to others at once, not at the next tick.
        self.run_office(now, out);
    }

    fn message(&mut self, now: Millis, from: NodeId, message: Message, out: &mut Vec<Output>) {
        match message {
            Message::Offers(offers) => self.offers_heard(now, from, offers, out),
            Message::Beat { reign } => {
                if self.election.heard(from, reign) {
                    self.reign_changed(now, out);
                }
            }
            Message::Submit { job, resume } => self.submitted(now, from, job, resume, out),
            Message::Cancel(job) => {
                let mut letters = Vec::new();
                if let Some(office) = &mut self.office {
                    office.cancel(from, job, &mut letters);
                }
                self.post(letters, out);
            }
            Message::Job(status) => self.job_heard(from, status, out),
            Message::Grant { lease, holders } => self.granted(now, from, lease, holders, out),
            Message::Progress { lease, pace } => {
                if let Some(office) = &mut self.office {
                    let answer = office.progress(now, from, lease, pace);
                    self.send(from, answer, out);
                    if pace.of > 0 && pace.done == pace.of {
                        // A stage became ready, for which somebody waits.
                        self.run_office(now, out);
                    }
                }
            }
            Message::Renew(lease) => self.holdings.renewed(now, lease, from),
            Message::Release(lease) => {
                if self.holdings.released(lease, from) {
                    out.push(Output::Stop(lease));
                }
            }
            Message::Failed { lease, reason, missing } => {
                let mut letters = Vec::new();
                if let Some(office) = &mut self.office {
                    let trouble = Trouble { reason: bounded_reason(&reason), missing };
                    office.failed(from, lease, &trouble, &mut letters);
                }
                self.post(letters, out);
                self.run_office(now, out);
            }
            Message::Declined(lease) => {
                let mut letters = Vec::new();
                if let Some(office) = &mut self.office {
                    office.declined(from, lease, &mut letters);
                }
                self.post(letters, out);
                self.run_office(now, out);
            }
            Message::Receipt(receipt) => self.receipt_heard(now, from, receipt, out),
            Message::Accepted(acceptance) => self.accepted(from, acceptance, out),
            Message::Refused { lease, reason } => self.refused(from, lease, &reason, out),
            Message::Links(links) => {
                if let Some(office) = &mut self.office {
                    office.links_told(from, links);
                }
                // A fresh office may have waited for just these.
                self.run_office(now, out);
            }
        }
    }

    fn offers_heard(
        &mut self,
        now: Millis,
        from: NodeId,
        offers: Vec<Envelope<Offer>>,
        out: &mut Vec<Output>,
    ) {
        for envelope in offers.into_iter().take(limits::OFFERS_SENT_MAX) {
            let signer = envelope.signer();
            // What would change nothing is not worth the check of its signature.
            if signer == self.id || (signer != from && self.members.knows(signer)) {
                continue;
            }
            let Ok(offer) = envelope.open(&self.network) else {
                return self.disconnect(now, from, "an offer's signature does not verify".into(), out);
            };
            if !offer.statement().is_bounded() {
                continue;
            }
            if signer == from {
                match self.members.offered(offer) {
                    News::Arrived => self.welcome(from, out),
                    News::Changed | News::Stale => {}
                }
            } else {
                self.members.told_of(now, &offer);
            }
        }
    }

    fn welcome(&mut self, newcomer: NodeId, out: &mut Vec<Output>) {
        out.push(Output::Note(format!("agent {} is here", newcomer.short())));
        self.introduce(newcomer, out);
        if let Some(office) = &mut self.office {
            office.newcomer();
        }
    }

    /// Tells `node` of the other members.
    fn introduce(&mut self, node: NodeId, out: &mut Vec<Output>) {
        let others = self.members.offers().filter(|offer| offer.signer() != node);
        let others: Vec<_> =
            others.take(limits::OFFERS_SENT_MAX).map(|offer| offer.envelope().clone()).collect();
        if !others.is_empty() {
            out.push(Output::Send(node, Message::Offers(others)));
        }
    }

    fn submitted(
        &mut self,
        now: Millis,
        from: NodeId,
        job: Envelope<JobSpec>,
        resume: Option<Resume>,
        out: &mut Vec<Output>,
    ) {
        let Some(office) = &mut self.office else { return };
        let refusal = match job.open(&self.network) {
            Ok(job) if job.signer() == from => match office.submit(&job, resume) {
                Ok(()) => return self.run_office(now, out),
                Err(NotHired::Full) => "as many jobs as can be are under way".to_owned(),
                Err(NotHired::Refused(status)) => {
                    return self.send(from, Message::Job(*status), out);
                }
            },
            Ok(job) => format!("it is {}'s", job.signer().short()),
            Err(error) => error.to_string(),
        };
        out.push(Output::Note(format!("did not take a job of {}: {refusal}", from.short())));
    }

    /// Tells the coordinator what it has not answered about own jobs.
    fn say_orders(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Some(reign) = self.election.reign() else { return };
        for message in self.orders.to_say(now) {
            self.send(reign.coordinator, message, out);
        }
    }

    /// Tells the coordinator how far others are, if there is news.
    fn say_links(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Some(reign) = self.election.reign() else { return };
        if let Some(message) = self.soundings.to_say(now) {
            self.send(reign.coordinator, message, out);
        }
    }

    fn job_heard(&mut self, from: NodeId, status: JobStatus, out: &mut Vec<Output>) {
        if self.election.reign().is_none_or(|reign| reign.coordinator != from) {
            return;
        }
        let id = status.id;
        if !status.is_bounded() {
            out.push(Output::Note(format!("ignored nonsense about job {}", id.short())));
        } else if self.orders.heard(status) {
            out.push(Output::JobChanged(id));
        }
    }

    fn granted(
        &mut self,
        now: Millis,
        from: NodeId,
        lease: Envelope<Lease>,
        mut holders: Vec<NodeId>,
        out: &mut Vec<Output>,
    ) {
        holders.truncate(limits::HOLDERS_MAX);
        let office = self.election.reign().filter(|reign| reign.coordinator == from);
        let id = lease.unverified().id();
        let taken = match (office, lease.open(&self.network)) {
            (Some(_), Ok(lease))
                if self.leaving || self.allowance(lease.statement().worker) != Allowance::Work =>
            {
                let reason =
                    if self.leaving { "this agent is leaving" } else { "its owner needs the device" };
                self.send(from, Message::Declined(id), out);
                Err(reason.to_owned())
            }
            (Some(reign), Ok(lease)) if lease.signer() == from => {
                let Lease { job, shard, worker, .. } = lease.statement().clone();
                let workers = self.offer.as_ref().map_or(0, |offer| offer.statement().workers.len());
                self.holdings
                    .take(now, self.id, workers, reign, lease)
                    .map(|lease| Execution { lease, worker, job, shard, holders })
                    .map_err(|error| {
                        if let NotTaken::Nonsense(error) = &error {
                            let reason = bounded_reason(&error.to_string());
                            self.send(from, Message::Failed { lease: id, reason, missing: None }, out);
                        }
                        error.to_string()
                    })
            }
            (None, _) => Err("this agent obeys another coordinator".to_owned()),
            (Some(_), Ok(_)) => Err("the lease is signed by another agent".to_owned()),
            (Some(_), Err(error)) => Err(error.to_string()),
        };
        match taken {
            Ok(execution) => out.push(Output::Execute(execution)),
            Err(reason) => out.push(Output::Note(format!("did not take lease {}: {reason}", id.short()))),
        }
    }

    fn finished(
        &mut self,
        now: Millis,
        lease: LeaseId,
        result: Result<Executed, Trouble>,
        out: &mut Vec<Output>,
    ) {
        let trouble = result.as_ref().err().cloned();
        let Some(receipt) = self.holdings.finish(now, lease, result) else { return };
        let coordinator = receipt.lease.signer();
        let trouble = trouble.filter(|_| receipt.end == End::Failed);
        let receipt = Signed::new(receipt, &self.network, &self.key).into_envelope();
        self.holdings.await_answer(lease, receipt.clone());
        out.push(Output::Append(Record::Receipt(receipt.clone())));
        if let Some(Trouble { reason, missing }) = trouble {
            let reason = bounded_reason(&reason);
            out.push(Output::Note(format!("lease {} failed: {reason}", lease.short())));
            self.send(coordinator, Message::Failed { lease, reason, missing }, out);
        }
        self.send(coordinator, Message::Receipt(receipt), out);
    }

    fn receipt_heard(
        &mut self,
        now: Millis,
        from: NodeId,
        receipt: Envelope<Receipt>,
        out: &mut Vec<Output>,
    ) {
        let lease = receipt.unverified().lease.unverified().id();
        let mut letters = Vec::new();
        let answer = match (&mut self.office, receipt.open(&self.network)) {
            (Some(office), Ok(receipt)) if receipt.signer() == from => {
                office.receipt(now, &receipt, &mut letters)
            }
            (Some(_), Ok(_)) => Message::Refused { lease, reason: "the receipt is another agent's".into() },
            (Some(_), Err(error)) => Message::Refused { lease, reason: error.to_string() },
            (None, _) => {
                Message::Refused { lease, reason: "this agent is not the coordinator any more".into() }
            }
        };
        self.send(from, answer, out);
        self.post(letters, out);
        // Grant what follows at once, not at the next tick.
        self.run_office(now, out);
    }

    fn accepted(&mut self, from: NodeId, acceptance: Envelope<Acceptance>, out: &mut Vec<Output>) {
        let Ok(acceptance) = acceptance.open(&self.network) else { return };
        let statement = acceptance.statement();
        let about_mine = self.holdings.awaiting(statement.lease).is_some_and(|receipt| {
            receipt.digest() == statement.receipt && receipt.unverified().lease.signer() == from
        });
        if acceptance.signer() == from && statement.agent == self.id && about_mine {
            self.holdings.answered(statement.lease);
            out.push(Output::Append(Record::Acceptance(acceptance.into_envelope())));
        }
    }

    fn refused(&mut self, from: NodeId, lease: LeaseId, reason: &str, out: &mut Vec<Output>) {
        let reason = bounded_reason(reason);
        let signed_by_sender =
            self.holdings.awaiting(lease).is_some_and(|receipt| receipt.unverified().lease.signer() == from);
        if signed_by_sender {
            self.holdings.answered(lease);
            out.push(Output::Note(format!("lease {} is not paid: {reason}", lease.short())));
        } else if self.holdings.disowned(lease, from) {
            // It is still being executed, for nothing.
            out.push(Output::Stop(lease));
        }
    }

    fn tick(&mut self, now: Millis, out: &mut Vec<Output>) {
        for node in self.members.silent(now) {
            let why = format!("nothing heard for {} ms", limits::SILENCE_MS);
            self.disconnect(now, node, why, out);
        }
        for (node, addresses) in self.members.to_dial(now) {
            out.push(Output::Dial(node, addresses));
        }
        if self.election.tick(now, &self.electorate(now)) {
            self.reign_changed(now, out);
        }
        self.say_orders(now, out);
        if now.since(self.beat_at) >= limits::BEAT_MS {
            self.beat_at = now;
            let beat = Message::Beat { reign: self.election.reign() };
            out.extend(self.members.connected().map(|node| Output::Send(node, beat.clone())));
        }
        if now.since(self.introduced_at) >= limits::INTRODUCE_MS {
            self.introduced_at = now;
            self.introduced = self.members.after(self.introduced);
            if let Some(node) = self.introduced {
                self.introduce(node, out);
            }
        }
        for lease in self.holdings.expired(now) {
            out.push(Output::Note(format!("lease {} expired", lease.short())));
            out.push(Output::Stop(lease));
        }
        for (lease, coordinator, pace) in self.holdings.to_renew(now) {
            self.send(coordinator, Message::Progress { lease, pace }, out);
        }
        self.run_office(now, out);
    }

    /// The present members that may hold office, this agent included once it has an offer and company.
    fn electorate(&self, now: Millis) -> BTreeSet<NodeId> {
        let mut present = self.members.present();
        let waited = now.since(self.started_at.unwrap_or(now)) >= limits::LONELY_MS;
        if self.offer.is_some() && (self.bootstrapped || waited) {
            present.insert(self.id);
        }
        present
    }

    fn run_office(&mut self, now: Millis, out: &mut Vec<Output>) {
        // Who leaves answers receipts to the last, and grants nothing more: the next coordinator will.
        let Some(office) = self.office.as_mut().filter(|_| !self.leaving) else { return };
        let offers = || self.offer.iter().chain(self.members.offers());
        let members: Vec<NodeId> = offers().map(Signed::signer).collect();
        let hands: Vec<Hand> = offers().flat_map(Hand::all_of).collect();
        let mut letters = Vec::new();
        office.tick(now, &members, &hands, &mut letters);
        self.post(letters, out);
    }

    fn reign_changed(&mut self, now: Millis, out: &mut Vec<Output>) {
        let reign = self.election.reign();
        out.push(Output::CoordinatorChanged(reign));
        self.office = reign
            .filter(|reign| reign.coordinator == self.id)
            .map(|reign| Office::new(self.network, self.key.clone(), reign.term));
        let Some(reign) = reign else { return };
        // Said now, so that it is known before the first grant.
        let beat = Message::Beat { reign: Some(reign) };
        out.extend(self.members.connected().map(|node| Output::Send(node, beat.clone())));
        for lease in self.holdings.fenced(reign) {
            out.push(Output::Note(format!(
                "lease {} is fenced: another coordinator is in office",
                lease.short()
            )));
            out.push(Output::Stop(lease));
        }
        self.reintroduce(now, reign.coordinator, out);
    }

    fn post(&mut self, letters: Vec<Letter>, out: &mut Vec<Output>) {
        for (to, message) in letters {
            self.send(to, message, out);
        }
    }

    fn send(&mut self, to: NodeId, message: Message, out: &mut Vec<Output>) {
        if to == self.id {
            self.loopback.push_back(message);
        } else if self.members.is_connected(to) {
            // What cannot be sent is not kept: it is said again when it matters and the peer is back.
            out.push(Output::Send(to, message));
        }
    }
}

/// Parses a control frame; a longer one than a frame may be is not even looked at.
fn parse(bytes: &[u8]) -> Result<Message, Malformed> {
    if bytes.len() > limits::FRAME_BYTES_MAX { Err(Malformed::too_long(bytes.len())) } else { decode(bytes) }
}
