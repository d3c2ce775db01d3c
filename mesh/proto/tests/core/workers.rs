//! Agents with several workers: what a stranger may say of them, who gets which shard, and what concerns one of them alone.
//!
//! Must never sleep: time is a number.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names the one variant that it expects")]

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::election::Reign;
use skein_proto::group::{Group, Member};
use skein_proto::ids::{Digest, LeaseId, Millis, NodeId, Term, WorkerId};
use skein_proto::job::{JobSpec, Part, Requires, ServeSpec, Shard, TrainSpec, Work};
use skein_proto::lease::{End, Lease};
use skein_proto::limits::{LEASES_HELD_MAX, SLICES_MAX, WORKERS_MAX};
use skein_proto::links::Links;
use skein_proto::message::{JobStatus, Message, Phase, Resume, StageAt};
use skein_proto::node::{Allowance, Input, Node, Output};
use skein_proto::offer::{Offer, WorkerOffer};
use skein_proto::placement::{Hand, place};
use skein_proto::plan::{Next, Outcome, Slot, Task, TrainPlan};
use skein_proto::signed::{Envelope, Signed, encode};

use crate::desk::{Desk, accepted};
use crate::fixture;

fn offer_of(workers: usize) -> Offer {
    Offer { workers: vec![fixture::worker_offer(); workers], ..fixture::offer() }
}

/// An agent with so many workers that obeys agent 1.
fn node_with(workers: usize) -> Node {
    let mut node = Node::new(fixture::key(9), &fixture::genesis(), true);
    let mut out = Vec::new();
    node.handle(Millis(1_000), Input::Offer(offer_of(workers)), &mut out);
    node.handle(Millis(1_000), Input::Up(fixture::id(1)), &mut out);
    let reign = Reign { term: Term(5), coordinator: fixture::id(1) };
    hear(&mut node, &Message::Beat { reign: Some(reign) });
    node
}

fn hear(node: &mut Node, message: &Message) -> Vec<Output> {
    let mut out = Vec::new();
    let frame = Input::Frame { from: fixture::id(1), bytes: encode(message) };
    node.handle(Millis(1_700), frame, &mut out);
    out
}

fn grant(node: &mut Node, worker: u8, sequence: u64, shard: Shard) -> Vec<Output> {
    let mut lease = Lease { agent: node.id(), worker, units: shard.units(), shard, ..fixture::lease() };
    lease.fence.sequence = sequence;
    let lease = Signed::new(lease, &fixture::network(), &fixture::key(1)).into_envelope();
    hear(node, &Message::Grant { lease, holders: Vec::new() })
}

/// On which worker something is executed.
fn executed_on(out: &[Output]) -> Option<(u8, LeaseId)> {
    out.iter().find_map(|output| match output {
        Output::Execute(execution) => Some((execution.worker, execution.lease)),
        _ => None,
    })
}

fn declined(out: &[Output]) -> bool {
    out.iter().any(|output| matches!(output, Output::Send(_, Message::Failed { .. })))
}

/// The doors of the last offer that was sent.
fn doors(out: &[Output]) -> Vec<bool> {
    let offer = out.iter().rev().find_map(|output| match output {
        Output::Send(_, Message::Offers(offers)) => offers.last(),
        _ => None,
    });
    offer.map_or(Vec::new(), |offer| offer.unverified().workers.iter().map(|worker| worker.open).collect())
}

#[test]
fn an_offer_of_no_worker_or_of_too_many_is_no_offer() {
    let long = "x".repeat(200);
    let wordy = |worker| Offer { workers: vec![fixture::worker_offer(), worker], ..fixture::offer() };
    let device = wordy(WorkerOffer { device: long.clone(), ..fixture::worker_offer() });
    let backend = wordy(WorkerOffer { backend: long, ..fixture::worker_offer() });
    for (offer, taken) in [
        (offer_of(0), false),
        (offer_of(1), true),
        (offer_of(WORKERS_MAX), true),
        (offer_of(WORKERS_MAX + 1), false),
        (offer_of(255), false),
        (offer_of(2_000), false),
        (device, false),
        (backend, false),
    ] {
        let mut node = node_with(1);
        let said = Signed::new(offer.clone(), &fixture::network(), &fixture::key(1)).into_envelope();
        hear(&mut node, &Message::Offers(vec![said]));
        assert_eq!(node.offers().count(), usize::from(taken), "{} workers", offer.workers.len());
    }
}

#[test]
fn a_shell_that_finds_too_many_devices_offers_the_first() {
    let node = node_with(40);
    assert_eq!(node.offer().unwrap().statement().workers.len(), WORKERS_MAX);
}

#[test]
fn a_lease_for_a_worker_that_is_not_there_is_nonsense() {
    for (workers, worker, taken) in
        [(1, 0, true), (1, 1, false), (1, 255, false), (3, 2, true), (3, 3, false), (32, 31, true)]
    {
        let mut node = node_with(workers);
        let out = grant(&mut node, worker, 1, fixture::shard());
        assert_eq!(executed_on(&out).map(|(worker, _)| worker), taken.then_some(worker));
        assert_eq!(declined(&out), !taken, "worker {worker} of {workers}");
        assert_eq!((node.works(), node.works_on(worker)), (taken, taken));
        assert!(!node.works_on(worker.wrapping_add(1)));
    }
    // Nor has an agent that measured nothing yet.
    let mut node = Node::new(fixture::key(9), &fixture::genesis(), true);
    node.handle(Millis(1_000), Input::Up(fixture::id(1)), &mut Vec::new());
    let reign = Reign { term: Term(5), coordinator: fixture::id(1) };
    hear(&mut node, &Message::Beat { reign: Some(reign) });
    assert!(declined(&grant(&mut node, 0, 1, fixture::shard())));
}

#[test]
fn leases_are_bounded_by_worker() {
    let mut node = node_with(3);
    for sequence in 0..600 {
        let worker = u8::try_from(sequence % 2).unwrap();
        grant(&mut node, worker, sequence + 1, fixture::shard());
    }
    let held = |worker| node.held().iter().filter(|held| held.worker == worker).count();
    assert_eq!([held(0), held(1), held(2)], [LEASES_HELD_MAX, LEASES_HELD_MAX, 0]);
}

#[test]
fn a_group_means_each_worker_once_and_a_lease_the_one_that_its_group_means() {
    let mut node = node_with(2);
    let me = node.id();
    let member = |node, worker, start, end| Member { node, worker, start, end };
    let judge = |members: [Member; 2], stage| Shard::Judge {
        state: Digest::of(b"state"),
        spec: fixture::train(),
        round: 0,
        part: Part { index: 0, of: 1 },
        group: Group { number: 1, members: members.to_vec(), stage, sequences: 1 },
    };
    let siblings = [member(me, 0, 0, 2), member(me, 1, 2, 4)];
    let mut sequence = 0;
    let mut takes = |worker, members, stage| {
        sequence += 1;
        let out = grant(&mut node, worker, sequence, judge(members, stage));
        assert_ne!(declined(&out), executed_on(&out).is_some());
        executed_on(&out).is_some()
    };
    assert!(takes(0, siblings, 0) && takes(1, siblings, 1), "two workers of one agent");
    assert!(!takes(0, [member(me, 0, 0, 2), member(me, 0, 2, 4)], 0), "no worker twice");
    assert!(!takes(0, siblings, 1), "the sibling's part");
    assert!(!takes(1, siblings, 0), "the sibling's part");
    let others = [member(fixture::id(1), 0, 0, 2), member(me, 1, 2, 4)];
    assert!(!takes(0, others, 0), "another agent's part");
    assert!(takes(1, others, 1));
}

#[test]
fn what_the_owner_says_of_one_worker_concerns_that_alone() {
    let mut node = node_with(3);
    let leases: Vec<LeaseId> = (0..3)
        .map(|worker| {
            executed_on(&grant(&mut node, worker, u64::from(worker) + 1, fixture::shard())).unwrap().1
        })
        .collect();
    let mut out = Vec::new();
    node.handle(Millis(1_800), Input::Allow { worker: 1, allowance: Allowance::Nothing }, &mut out);
    assert_eq!(doors(&out), [true, false, true]);
    let stopped: Vec<&LeaseId> = out
        .iter()
        .filter_map(|output| match output {
            Output::Stop(lease) => Some(lease),
            _ => None,
        })
        .collect();
    assert_eq!(stopped, [&leases[1]]);
    node.handle(Millis(1_800), Input::Finished(leases[1], Err("stopped".into())), &mut out);
    assert_eq!([0, 1, 2].map(|worker| node.works_on(worker)), [true, false, true]);
    let mut out = grant(&mut node, 1, 4, fixture::shard());
    let nobody_failed = |output: &Output| matches!(output, Output::Send(_, Message::Declined(_)));
    assert!(executed_on(&out).is_none() && out.iter().any(nobody_failed) && !declined(&out));
    assert!(executed_on(&grant(&mut node, 2, 5, fixture::shard())).is_some());
    // A new measurement changes nothing of that, and a worker may be spoken of before it is offered.
    node.handle(Millis(1_900), Input::Allow { worker: 4, allowance: Allowance::Finish }, &mut out);
    out.clear();
    node.handle(Millis(1_900), Input::Offer(offer_of(5)), &mut out);
    assert_eq!(doors(&out), [true, false, true, true, false]);
    out.clear();
    node.handle(Millis(1_900), Input::Allow { worker: 1, allowance: Allowance::Work }, &mut out);
    assert_eq!(doors(&out), [true, true, true, true, false]);
}

#[test]
fn closed_workers_are_no_hands_and_an_agent_of_closed_ones_is_still_a_member() {
    let hands = |doors: &[bool]| {
        let worker = |open: &bool| WorkerOffer { open: *open, ..fixture::worker_offer() };
        let offer = Offer { workers: doors.iter().map(worker).collect(), ..fixture::offer() };
        let offer = Signed::new(offer, &fixture::network(), &fixture::key(4));
        Hand::all_of(&offer).map(|hand| (hand.worker.node, hand.worker.index)).collect::<Vec<_>>()
    };
    assert_eq!(hands(&[true, false, true]), [(fixture::id(4), 0), (fixture::id(4), 2)]);
    assert_eq!(hands(&[false; 3]), []);
    assert!(offer_of(3).is_bounded());
}

// ---- the coordinator's side

/// Workers of an agent, with so many bytes each.
fn rig(number: u8, memory: &[u64]) -> Vec<Hand> {
    let worker = |index| WorkerId { node: fixture::id(number), index };
    let hand = |(index, memory_bytes): (u8, &u64)| Hand {
        worker: worker(index),
        memory_bytes: *memory_bytes,
        ..fixture::hand(fixture::id(number))
    };
    (0..).zip(memory).map(hand).collect()
}

const GIGABYTE: u64 = 1_000_000_000;

fn desk(hands: Vec<Hand>) -> Desk {
    let mut desk = Desk::new(&[2, 4, 5]);
    desk.hands = hands;
    desk
}

fn by_kind(leases: &[Envelope<Lease>], kind: &str) -> Vec<WorkerId> {
    let leases = leases.iter().map(Envelope::unverified).filter(|lease| lease.shard.kind() == kind);
    leases.map(Lease::worker_id).collect()
}

fn worker(number: u8, index: u8) -> WorkerId {
    WorkerId { node: fixture::id(number), index }
}

/// Up to the outer step of the first round.
fn up_to_the_merge(desk: &mut Desk) -> Vec<Envelope<Lease>> {
    desk.submit(fixture::job());
    desk.pass(500);
    let init = desk.granted();
    assert!(accepted(&desk.finish(&init[0], End::Completed, b"state")));
    desk.pass(500);
    for (at, lease) in (0_u8..).zip(desk.granted()) {
        assert!(accepted(&desk.finish(&lease, End::Completed, &[at])));
    }
    desk.pass(500);
    desk.granted()
}

#[test]
fn every_worker_trains_and_every_agent_takes_the_outer_step_once_on_its_ablest() {
    let mut desk = desk([rig(2, &[GIGABYTE, 2 * GIGABYTE, 2 * GIGABYTE]), rig(4, &[GIGABYTE])].concat());
    desk.submit(fixture::job());
    desk.pass(500);
    let init = desk.granted();
    assert_eq!(by_kind(&init, "init"), [worker(2, 0)]);
    desk.finish(&init[0], End::Completed, b"state");
    desk.pass(500);
    let slices = desk.granted();
    assert_eq!(by_kind(&slices, "train"), [worker(2, 0), worker(2, 1), worker(2, 2), worker(4, 0)]);
    desk.pass(500);
    assert_eq!((desk.status().workers, desk.status().agents), (4, 2));
    for (at, lease) in (0_u8..).zip(&slices) {
        assert!(accepted(&desk.finish(lease, End::Completed, &[at])));
    }
    desk.pass(500);
    let mut merges = by_kind(&desk.granted(), "merge");
    merges.sort_unstable();
    let mut expected = [worker(2, 1), worker(4, 0)];
    expected.sort_unstable();
    assert_eq!(merges, expected);
}

#[test]
fn an_outer_step_that_fails_on_one_worker_is_tried_on_its_siblings_and_only_there() {
    let mut desk = desk([rig(2, &[GIGABYTE, 2 * GIGABYTE, 3 * GIGABYTE]), rig(4, &[GIGABYTE])].concat());
    let merges = up_to_the_merge(&mut desk);
    let mut lease = merges.iter().find(|lease| lease.unverified().agent == fixture::id(2)).unwrap().clone();
    for expected in [worker(2, 2), worker(2, 1), worker(2, 0)] {
        assert_eq!(lease.unverified().worker_id(), expected, "the ablest first");
        let id = lease.unverified().id();
        desk.office.failed(fixture::id(2), id, &"broken".into(), &mut desk.letters);
        desk.pass(500);
        match desk.granted().pop() {
            Some(next) => lease = next,
            None => assert_eq!(expected, worker(2, 0)),
        }
    }
    // The other agent's result is enough.
    let other = merges.iter().find(|lease| lease.unverified().agent == fixture::id(4)).unwrap();
    desk.finish(other, End::Completed, b"next");
    desk.pass(500);
    assert_eq!((desk.status().round, desk.status().state), (1, Some(Digest::of(b"next"))));
}

#[test]
fn an_agent_that_closes_all_its_workers_leaves_its_outer_step_to_nobody() {
    let mut desk = desk([rig(2, &[GIGABYTE; 3]), rig(4, &[GIGABYTE])].concat());
    let merges = up_to_the_merge(&mut desk);
    let mine = merges.iter().find(|lease| lease.unverified().agent == fixture::id(2)).unwrap();
    desk.hands.retain(|hand| hand.worker.node != fixture::id(2));
    desk.finish(mine, End::Cancelled, b"");
    desk.pass(500);
    assert!(desk.granted().is_empty(), "another would take the same step twice");
    let other = merges.iter().find(|lease| lease.unverified().agent == fixture::id(4)).unwrap();
    desk.finish(other, End::Completed, b"next");
    desk.pass(500);
    assert_eq!(desk.status().round, 1);
}

#[test]
fn what_an_owner_declines_is_nobodys_failure_and_goes_to_others_while_he_is_closed() {
    let all = rig(2, &[GIGABYTE; 2]);
    let mut desk = desk(all.clone());
    desk.submit(fixture::job());
    // More often than a shard may fail.
    for turn in 0..20 {
        desk.pass(500);
        let lease = desk.granted().pop().unwrap();
        assert_eq!(lease.unverified().worker, turn % 2, "it is avoided by nothing but its door");
        desk.hands =
            all.iter().filter(|hand| hand.worker != lease.unverified().worker_id()).copied().collect();
        let id = lease.unverified().id();
        // A stranger's word does not count.
        desk.office.declined(fixture::id(7), id, &mut desk.letters);
        desk.pass(500);
        assert!(desk.granted().is_empty());
        desk.office.declined(fixture::id(2), id, &mut desk.letters);
    }
    assert!(!desk.status().phase.is_final());
}

#[test]
fn a_shard_that_failed_on_one_worker_goes_to_its_sibling_rather_than_back() {
    let mut desk = desk(rig(2, &[GIGABYTE; 3]));
    desk.submit(fixture::job());
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        desk.pass(500);
        let lease = desk.granted().pop().unwrap();
        assert!(seen.insert(lease.unverified().worker), "again on {}", lease.unverified().worker);
        desk.office.failed(fixture::id(2), lease.unverified().id(), &"broken".into(), &mut desk.letters);
    }
    desk.pass(500);
    assert_eq!(desk.granted().len(), 1, "when all have failed it is tried again");
}

#[test]
fn who_is_to_show_and_is_closed_is_not_asked_and_nobody_else_is() {
    let mut desk = desk([rig(2, &[GIGABYTE; 2]), rig(4, &[GIGABYTE])].concat());
    let Work::Train(train) = fixture::job().work else { panic!("no training") };
    let work = Work::Train(TrainSpec { check_millionths: 1_000_000, ..train });
    desk.submit(JobSpec { work, ..fixture::job() });
    desk.pass(500);
    let init = desk.granted();
    desk.finish(&init[0], End::Completed, b"state");
    desk.pass(500);
    let slices = desk.granted();
    for (at, lease) in (0_u8..).zip(&slices) {
        let receipt = crate::desk::receipt(lease, End::Completed, &[at]);
        let mut receipt = receipt.statement().clone();
        receipt.outputs.push(Digest::of(&[at, 1]));
        let signer = if lease.unverified().agent == fixture::id(2) { 2 } else { 4 };
        let receipt = Signed::new(receipt, &fixture::network(), &fixture::key(signer));
        assert!(accepted(&desk.office.receipt(Millis(desk.now), &receipt, &mut desk.letters)));
    }
    // One worker of the rig closes: its sibling shows. The other agent closes: nobody does.
    desk.hands = rig(2, &[GIGABYTE; 2])[1..].to_vec();
    desk.hands.extend(rig(5, &[GIGABYTE]));
    desk.pass(500);
    let shows = by_kind(&desk.granted(), "show");
    assert_eq!(shows, [worker(2, 1), worker(2, 1)]);
    desk.pass(500);
    assert_eq!(desk.status().refused, []);
}

#[test]
fn an_agent_that_vanishes_takes_all_its_workers_with_it() {
    let mut desk = desk([rig(2, &[GIGABYTE; 3]), rig(4, &[GIGABYTE])].concat());
    desk.submit(fixture::job());
    desk.pass(500);
    let init = desk.granted();
    desk.finish(&init[0], End::Completed, b"state");
    desk.pass(500);
    assert_eq!(desk.granted().len(), 4);
    desk.hands.retain(|hand| hand.worker.node != fixture::id(2));
    desk.office.vanished(fixture::id(2), &mut desk.letters);
    desk.pass(500);
    assert_eq!(by_kind(&desk.granted(), "train"), [worker(4, 0); 3]);
    assert_eq!(desk.status().regrants, 3);
}

#[test]
fn what_a_job_requires_is_asked_of_each_worker_and_the_note_counts_them() {
    let mut desk = desk([rig(2, &[GIGABYTE; 3]), rig(4, &[2 * GIGABYTE])].concat());
    let requires = |gigabytes| Requires { memory_bytes: gigabytes * GIGABYTE, gpu: false };
    desk.submit(JobSpec { requires: requires(4), ..fixture::job() });
    desk.pass(500);
    let note = desk.status().note.clone().unwrap();
    assert!(note.contains("of 4 workers on 2 agents the largest offers 2000 MB"), "{note}");
    desk.hands[1].memory_bytes = 4 * GIGABYTE;
    desk.pass(500);
    assert_eq!(by_kind(&desk.granted(), "init"), [worker(2, 1)]);
}

#[test]
fn a_pipeline_lies_on_distinct_workers_of_one_rig_rather_than_far_apart() {
    let spec: ServeSpec = fixture::serve(Some(3));
    let (part, owner) = (spec.memory_bytes(0, 2), fixture::id(3));
    let mut links = Links::default();
    for number in [2, 4, 5] {
        links.told(fixture::id(number), [2, 3, 4, 5].map(|other| (fixture::id(other), 2_000)).to_vec());
    }
    let hands = [rig(4, &[part]), rig(2, &[part; 3]), rig(5, &[part])].concat();
    let seats = place(&spec, owner, &hands, &links).unwrap();
    let workers: BTreeSet<WorkerId> = seats.iter().map(|seat| seat.worker).collect();
    assert_eq!(workers, BTreeSet::from([worker(2, 0), worker(2, 1), worker(2, 2)]));
    let error = place(&fixture::serve(None), owner, &rig(2, &[10; 3]), &links).unwrap_err().to_string();
    assert!(error.contains("3 workers on 1 agent have 1 MB free"), "{error}");
}

#[test]
fn a_new_coordinator_seats_each_stage_on_the_very_worker_that_had_it() {
    let job = Signed::new(fixture::serve_job(3), &fixture::network(), &fixture::key(3));
    let grants = |before: [(u8, u8); 3]| {
        let mut desk = desk([rig(2, &[GIGABYTE; 4]), rig(4, &[GIGABYTE])].concat());
        let stage = |(at, (number, worker)): (u16, (u8, u8))| {
            let (start, end) = [(0, 2), (2, 3), (3, 4)][usize::from(at)];
            StageAt { node: fixture::id(number), worker, lease: LeaseId([9; 32]), start, end }
        };
        let stages = (0..).zip(before).map(stage).collect();
        desk.office.submit(&job, Some(Resume::Serve(stages))).unwrap();
        desk.pass(500);
        by_kind(&desk.granted(), "stage")
    };
    assert_eq!(grants([(2, 3), (2, 1), (4, 0)]), [worker(2, 3), worker(2, 1), worker(4, 0)]);
    // A worker that is not there, or another agent's, is one that is gone.
    for strange in [(4, 2), (2, 200), (7, 0)] {
        let seats = grants([(2, 3), strange, (4, 0)]);
        assert_eq!((seats[0], seats[2]), (worker(2, 3), worker(4, 0)));
        assert_eq!(seats[1].node, fixture::id(2), "beside the first: {seats:?}");
        assert!(seats[1].index < 3, "a free one: {seats:?}");
    }
}

// ---- the plan

struct Run {
    plan: TrainPlan,
    status: JobStatus,
    now: u64,
}

impl Run {
    fn new(chance: u32, hands: &[Hand]) -> Self {
        let job = Signed::new(fixture::job(), &fixture::network(), &fixture::key(3));
        let spec = TrainSpec { check_millionths: chance, ..fixture::train() };
        let plan = TrainPlan::new(spec, fixture::id(3), None);
        let mut run = Self { plan, status: JobStatus::new(&job), now: 0 };
        let init = run.tasks(hands);
        run.completes(&init[0], b"state", &[], Some(9), 1);
        run
    }

    fn tasks(&mut self, hands: &[Hand]) -> Vec<Task> {
        self.now += 1;
        self.plan.tasks(Millis(self.now), hands, &Links::default(), &mut self.status)
    }

    fn completes(
        &mut self,
        task: &Task,
        output: &[u8],
        more: &[Digest],
        measure: Option<i64>,
        took_ms: u64,
    ) -> Next {
        let outcome = Outcome { output: Digest::of(output), more, measure, tokens: 1, took_ms, draw: 0 };
        self.plan.completed(task.slot, task.pinned.unwrap(), outcome, &mut self.status)
    }

    /// Every slice trained, up to the outer step; what is to be shown.
    fn shows(&mut self, hands: &[Hand]) -> Vec<Task> {
        for (at, task) in (0_u8..).zip(self.tasks(hands)) {
            self.completes(&task, &[at], &[Digest::of(&[at, 1])], Some(7), 500);
        }
        let tasks = self.tasks(hands).into_iter();
        tasks.filter(|task| matches!(task.slot, Slot::Show(_))).collect()
    }
}

#[test]
fn who_checks_is_another_agent_than_the_maker() {
    let hands = [rig(2, &[GIGABYTE; 3]), rig(4, &[GIGABYTE, 2 * GIGABYTE]), rig(5, &[GIGABYTE])].concat();
    let mut run = Run::new(1_000_000, &hands);
    let shows = run.shows(&hands);
    let makers: Vec<WorkerId> = shows.iter().filter_map(|task| task.pinned).collect();
    assert_eq!(makers, hands.iter().map(|hand| hand.worker).collect::<Vec<_>>(), "each shows its own");
    let mut checkers: BTreeMap<NodeId, BTreeSet<WorkerId>> = BTreeMap::new();
    for show in &shows {
        let Shard::Show { began, .. } = show.shard else { panic!("{show:?}") };
        let outcome = Outcome { output: began, more: &[], measure: None, tokens: 0, took_ms: 1, draw: 0 };
        let maker = show.pinned.unwrap();
        let Next::Also(first) = run.plan.completed(show.slot, maker, outcome, &mut run.status) else {
            panic!("no check of {maker:?}")
        };
        let checker = first.pinned.unwrap();
        assert!(checker.node != maker.node && first.avoids(WorkerId { index: 31, ..maker }));
        checkers.entry(checker.node).or_default().insert(checker);
        // The second opinion is a third agent's, not the sibling's of the first.
        let Next::Also(second) = run.completes(&first, b"verdict", &[], Some(500_000), 1) else {
            panic!("no second opinion on {maker:?}")
        };
        let nodes: BTreeSet<NodeId> =
            [maker, checker, second.pinned.unwrap()].iter().map(|worker| worker.node).collect();
        assert_eq!(nodes.len(), 3);
        run.completes(&second, b"verdict", &[], Some(0), 1);
    }
    assert!(checkers.values().all(|workers| workers.len() == 1), "one witness each: {checkers:?}");
    assert!(
        checkers.get(&fixture::id(4)).is_some_and(|workers| workers.contains(&worker(4, 1))),
        "the ablest"
    );
    assert_eq!((run.status.confirmed, run.status.refused.len()), (6, 0));
    // A rig alone has no witness.
    let alone = rig(2, &[GIGABYTE; 4]);
    assert_eq!(Run::new(1_000_000, &alone).shows(&alone), []);
}

#[test]
fn a_siblings_word_about_what_its_agent_made_is_not_heard() {
    let hands = [rig(2, &[GIGABYTE; 2]), rig(4, &[GIGABYTE])].concat();
    let mut run = Run::new(1_000_000, &hands);
    let shows = run.shows(&hands);
    let Shard::Show { began, .. } = shows[0].shard else { panic!("{shows:?}") };
    let outcome = Outcome { output: began, more: &[], measure: None, tokens: 0, took_ms: 1, draw: 0 };
    let next = run.plan.completed(shows[0].slot, worker(2, 0), outcome, &mut run.status);
    let Next::Also(check) = next else { panic!("{next:?}") };
    let check = Task { pinned: Some(worker(2, 1)), ..*check };
    run.completes(&check, b"verdict", &[], Some(0), 1);
    assert_eq!((run.status.confirmed, run.status.rejected), (0, 0));
}

#[test]
fn who_is_found_out_gets_nothing_on_any_worker() {
    let hands = [rig(2, &[GIGABYTE; 3]), rig(4, &[GIGABYTE])].concat();
    let mut run = Run::new(0, &hands);
    run.status.refused.push(fixture::id(2));
    let tasks = run.tasks(&hands);
    assert_eq!(tasks.iter().filter_map(|task| task.pinned).collect::<Vec<_>>(), [worker(4, 0)]);
    assert!((0..3).all(|index| tasks[0].avoids(worker(2, index))) && !tasks[0].avoids(worker(4, 0)));
}

#[test]
fn each_worker_has_a_pace_of_its_own() {
    let hands = rig(2, &[GIGABYTE; 2]);
    let mut run = Run::new(0, &hands);
    for (task, took_ms) in run.tasks(&hands).iter().zip([1_000_u64, 4_000]) {
        run.completes(task, &took_ms.to_le_bytes(), &[], Some(7), took_ms);
    }
    let merges = run.tasks(&hands);
    assert_eq!(merges.len(), 1);
    run.completes(&merges[0], b"next", &[], Some(6), 1);
    let steps = |task: &Task| if let Shard::Train { steps, .. } = task.shard { steps } else { 0 };
    assert_eq!(run.tasks(&hands).iter().map(steps).collect::<Vec<_>>(), [50, 12]);
}

#[test]
fn a_round_has_no_more_slices_than_a_lease_may_say() {
    let hands: Vec<Hand> = (0..40)
        .flat_map(|number| (0..32).map(move |index| WorkerId { node: NodeId([number; 32]), index }))
        .map(|worker| Hand { worker, ..fixture::hand(worker.node) })
        .collect();
    let mut run = Run::new(0, &hands);
    let tasks = run.tasks(&hands);
    assert_eq!(tasks.len(), SLICES_MAX);
    tasks.last().unwrap().shard.validate().unwrap();
    for (at, task) in (0_u32..).zip(&tasks) {
        run.completes(task, &at.to_le_bytes(), &[], Some(7), 500);
    }
    let merges = run.tasks(&hands);
    assert_eq!(merges.len(), 40, "one by agent");
    merges[0].shard.validate().unwrap();
}

#[test]
fn too_little_memory_is_told_by_workers_where_agents_have_several() {
    let note = |hands: &[Hand]| {
        let mut run = Run::new(0, &[fixture::hand(fixture::id(4))]);
        assert_eq!(run.tasks(hands), []);
        run.status.note.unwrap()
    };
    let note_of_rig = note(&[rig(2, &[1_000_000; 2]), rig(4, &[1_000_000])].concat());
    assert!(note_of_rig.contains("MB on one device: "), "{note_of_rig}");
    assert!(
        note_of_rig.contains("and 3 workers on 2 agents together have too little with 3 MB"),
        "{note_of_rig}"
    );
    let plain = note(&[rig(2, &[1_000_000]), rig(4, &[1_000_000])].concat());
    assert!(
        plain.contains("MB on one device: ") && plain.contains("and 2 agents together have too little"),
        "{plain}"
    );
}

#[test]
fn a_job_told_as_failed_names_the_worker() {
    let mut desk = desk(rig(2, &[GIGABYTE; 2]));
    desk.submit(fixture::job());
    while !matches!(desk.letters.last(), Some((_, Message::Job(status))) if status.phase.is_final()) {
        desk.pass(500);
        for lease in desk.granted() {
            let id = lease.unverified().id();
            desk.office.failed(fixture::id(2), id, &"out of memory".into(), &mut desk.letters);
        }
    }
    let Phase::Failed { reason } = &desk.status().phase else { panic!("{:?}", desk.status().phase) };
    let named = format!("last on worker {}/0: out of memory", fixture::id(2).short());
    assert!(reason.ends_with(&named), "{reason}");
}
