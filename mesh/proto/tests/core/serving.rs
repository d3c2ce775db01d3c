//! The coordinator and its pipelines: what is granted to whom, and again to whom when a stage is lost.
//!
//! Must never sleep: time is a number.

use std::collections::BTreeMap;

use skein_proto::ids::{LeaseId, Millis, NodeId, Term};
use skein_proto::job::{JobSpec, Shard, Work};
use skein_proto::lease::{End, Lease};
use skein_proto::limits::{ATTEMPTS_MAX, LINKS_WAIT_MS};
use skein_proto::message::{Phase, Resume, StageAt};
use skein_proto::office::Office;
use skein_proto::placement::Hand;
use skein_proto::signed::{Envelope, Signed};

use crate::desk::{Desk, agent, pace};
use crate::fixture;

#[test]
fn a_pipeline_is_running_when_every_stage_is_ready_and_waits_when_one_is_lost() {
    let mut desk = Desk::new(&[2, 4, 5]);
    let job = desk.submit(fixture::serve_job(2));
    desk.pass(0);
    let leases = desk.granted();
    assert_eq!(leases.len(), 2);
    for lease in &leases {
        desk.pass(500);
        assert_eq!(desk.status().phase, Phase::Waiting);
        desk.office.progress(Millis(desk.now), agent(lease), lease.unverified().id(), pace(1, 1));
    }
    desk.pass(500);
    assert_eq!(desk.status().phase, Phase::Running);
    assert!(desk.status().is_bounded());
    assert_eq!(
        desk.status().stages.iter().map(|stage| stage.node).collect::<Vec<_>>(),
        leases.iter().map(agent).collect::<Vec<_>>()
    );
    let dead = agent(&leases[1]);
    desk.office.vanished(dead, &mut desk.letters);
    desk.hands.retain(|hand| hand.worker.node != dead);
    desk.pass(500);
    assert_eq!(desk.status().phase, Phase::Waiting);
    let again = desk.granted().pop().unwrap();
    assert_eq!(again.unverified().shard, leases[1].unverified().shard);
    desk.office.progress(Millis(desk.now), agent(&again), again.unverified().id(), pace(1, 1));
    desk.pass(500);
    assert_eq!(desk.status().phase, Phase::Running);
    desk.office.cancel(fixture::id(3), job, &mut desk.letters);
    desk.pass(500);
    assert_eq!(desk.status().phase, Phase::Done);
    assert_eq!(desk.released().len(), 2);
}

#[test]
fn a_service_outlives_many_failures_of_stages_that_had_loaded() {
    let mut desk = Desk::new(&[2]);
    desk.submit(fixture::serve_job(1));
    for _ in 0..3 * ATTEMPTS_MAX {
        desk.pass(500);
        let lease = desk.granted().pop().unwrap();
        let id = lease.unverified().id();
        desk.office.progress(Millis(desk.now), agent(&lease), id, pace(1, 1));
        desk.office.failed(agent(&lease), id, &"driver reset".into(), &mut desk.letters);
    }
    desk.pass(500);
    assert!(!desk.status().phase.is_final());
}

/// Layers of a granted stage.
fn span(lease: &Envelope<Lease>) -> (u16, u16) {
    let Shard::Stage { start, end, .. } = &lease.unverified().shard else { panic!("not a stage") };
    (*start, *end)
}

fn load_all(desk: &mut Desk, leases: &[Envelope<Lease>]) {
    for lease in leases {
        desk.office.progress(Millis(desk.now), agent(lease), lease.unverified().id(), pace(1, 1));
    }
    desk.pass(500);
    assert_eq!(desk.status().phase, Phase::Running);
}

/// What layers `start..end` of the fixture's model take.
fn bytes(start: u16, end: u16) -> u64 {
    fixture::serve(None).memory_bytes(start, end)
}

fn hand(number: u8, memory_bytes: u64) -> Hand {
    Hand { memory_bytes, ..fixture::hand(fixture::id(number)) }
}

/// Agents leave, with whatever they hold.
fn vanish(desk: &mut Desk, node: NodeId) {
    desk.hands.retain(|hand| hand.worker.node != node);
    desk.office.vanished(node, &mut desk.letters);
}

#[test]
fn a_model_that_fits_nowhere_waits_and_says_what_is_missing() {
    let mut desk = Desk::new(&[2]);
    desk.hands = vec![hand(2, bytes(0, 2))];
    desk.submit(JobSpec { work: Work::Serve(fixture::serve(None)), ..fixture::serve_job(1) });
    desk.pass(500);
    assert!(desk.granted().is_empty());
    assert_eq!(desk.status().phase, Phase::Waiting);
    let note = desk.status().note.clone().unwrap();
    assert!(note.contains("MB are missing"), "{note}");
    assert!(desk.status().is_bounded());
    desk.hands.push(hand(4, bytes(1, 4)));
    desk.pass(500);
    let leases = desk.granted();
    assert_eq!(leases.len(), 2);
    load_all(&mut desk, &leases);
    assert_eq!(desk.status().note, None);
}

#[test]
fn memory_is_promised_once() {
    let mut desk = Desk::new(&[2, 4]);
    desk.hands = vec![hand(2, bytes(0, 4) + bytes(0, 4) / 2), hand(4, bytes(0, 4))];
    let job = |nonce| JobSpec { nonce, work: Work::Serve(fixture::serve(None)), ..fixture::serve_job(1) };
    for nonce in 0..3 {
        desk.submit(job(nonce));
    }
    desk.pass(500);
    let leases = desk.granted();
    let mut held: BTreeMap<NodeId, usize> = BTreeMap::new();
    for lease in &leases {
        *held.entry(agent(lease)).or_default() += 1;
    }
    assert_eq!(held, BTreeMap::from([(fixture::id(2), 1), (fixture::id(4), 1)]));
    // What one gives back the third takes.
    let first = leases.iter().find(|lease| agent(lease) == fixture::id(2)).unwrap();
    desk.office.cancel(fixture::id(3), first.unverified().job, &mut desk.letters);
    desk.pass(500);
    assert!(desk.granted().is_empty(), "released, but not yet given back");
    desk.finish(first, End::Completed, b"");
    desk.pass(500);
    assert_eq!(desk.granted().len(), 1);
}

#[test]
fn a_lost_stage_alone_moves_and_who_returns_changes_nothing() {
    let mut desk = Desk::new(&[2, 4, 5]);
    desk.submit(fixture::serve_job(3));
    desk.pass(500);
    let leases = desk.granted();
    load_all(&mut desk, &leases);
    let gone = agent(&leases[1]);
    vanish(&mut desk, gone);
    desk.pass(500);
    let again = desk.granted();
    // Nobody is free, so one of the others holds two.
    assert_eq!(again.iter().map(span).collect::<Vec<_>>(), vec![span(&leases[1])]);
    assert!([&leases[0], &leases[2]].iter().any(|lease| agent(lease) == agent(&again[0])));
    load_all(&mut desk, &again);
    desk.hands.push(fixture::hand(gone));
    for _ in 0..20 {
        desk.pass(500);
    }
    assert!(desk.granted().is_empty() && desk.released().is_empty());
    assert_eq!(desk.status().phase, Phase::Running);
}

#[test]
fn when_a_lost_stage_fits_nowhere_all_are_placed_anew_if_that_fits() {
    let mut desk = Desk::new(&[2, 4]);
    // Two stages of two layers. Of the three that stay none has room for two, but they have for all.
    desk.hands = vec![hand(2, bytes(0, 2)), hand(4, bytes(2, 4))];
    desk.submit(fixture::serve_job(2));
    desk.pass(500);
    let leases = desk.granted();
    assert_eq!(leases.iter().map(span).collect::<Vec<_>>(), [(0, 2), (2, 4)]);
    load_all(&mut desk, &leases);
    desk.hands.extend([hand(5, bytes(0, 1))]);
    vanish(&mut desk, agent(&leases[1]));
    desk.pass(500);
    // Layers 2 to 4 with the head fit nowhere, and neither does the whole.
    assert!(desk.granted().is_empty() && desk.released().is_empty());
    assert!(desk.status().note.as_ref().unwrap().contains("not in parts that hold it in 2 stages"));
    // One more layer would do, were the first stage not there; it is given up for that.
    desk.hands[0].memory_bytes = bytes(0, 3);
    desk.hands[1].memory_bytes = bytes(3, 4);
    desk.pass(500);
    assert!(desk.granted().is_empty(), "the first stage still has its memory");
    assert_eq!(desk.released(), vec![leases[0].unverified().id()]);
    desk.finish(&leases[0], End::Completed, b"");
    desk.pass(500);
    let again = desk.granted();
    assert_eq!(again.iter().map(span).collect::<Vec<_>>(), [(0, 3), (3, 4)]);
    load_all(&mut desk, &again);
}

#[test]
fn links_decide_between_equals() {
    let mut desk = Desk::new(&[2, 4, 5]);
    let far = |from: u8, to: u8, time_us| (fixture::id(from), vec![(fixture::id(to), time_us)]);
    for (from, links) in [far(2, 3, 30_000), far(4, 3, 20_000), far(5, 3, 40_000)] {
        desk.office.links_told(from, links);
    }
    desk.submit(fixture::serve_job(1));
    desk.pass(500);
    assert_eq!(desk.granted().iter().map(agent).collect::<Vec<_>>(), [fixture::id(4)]);
}

#[test]
fn a_fresh_coordinator_waits_a_moment_for_links() {
    let mut desk = Desk::new(&[2, 4]);
    desk.office = Office::new(fixture::network(), fixture::key(1), Term(5));
    desk.office.links_told(fixture::id(2), vec![(fixture::id(3), 30_000)]);
    desk.submit(fixture::serve_job(1));
    desk.pass(0);
    desk.pass(LINKS_WAIT_MS - 1);
    assert!(desk.granted().is_empty());
    // All have spoken.
    desk.office.links_told(fixture::id(4), vec![(fixture::id(3), 20_000)]);
    desk.pass(0);
    assert_eq!(desk.granted().iter().map(agent).collect::<Vec<_>>(), [fixture::id(4)]);
    // Or one says nothing; and later nobody is waited for.
    desk.hands.push(fixture::hand(fixture::id(5)));
    desk.submit(JobSpec { nonce: 9, ..fixture::serve_job(1) });
    desk.pass(1);
    assert_eq!(desk.granted().len(), 1);
}

/// The pipeline that an earlier coordinator had, as the owner tells of it.
fn before(stages: &[(u8, u16, u16)]) -> Option<Resume> {
    let stage = |&(number, start, end): &(u8, u16, u16)| StageAt {
        node: fixture::id(number),
        worker: 0,
        lease: LeaseId([number; 32]),
        start,
        end,
    };
    Some(Resume::Serve(stages.iter().map(stage).collect()))
}

#[test]
fn a_new_coordinator_leaves_stages_where_they_were() {
    let job = Signed::new(fixture::serve_job(3), &fixture::network(), &fixture::key(3));
    let grants = |before| {
        let mut desk = Desk::new(&[2, 4, 5, 6]);
        let near: Vec<_> = [2, 3, 4, 5, 6].map(|number| (fixture::id(number), 100)).to_vec();
        for &(from, _) in &near {
            desk.office.links_told(from, near.clone());
        }
        desk.office.submit(&job, before).unwrap();
        desk.pass(500);
        desk.granted().iter().map(|lease| (agent(lease), span(lease))).collect::<Vec<_>>()
    };
    let kept = [(6, 0, 2), (2, 2, 3), (4, 3, 4)];
    let expected = kept.map(|(number, start, end)| (fixture::id(number), (start, end)));
    assert_eq!(grants(before(&kept)), expected);
    // One of them is gone: another takes its layers.
    let replaced = grants(before(&[(6, 0, 2), (8, 2, 3), (4, 3, 4)]));
    assert_eq!((replaced[0], replaced[2]), (expected[0], expected[2]));
    assert_eq!(replaced[1].1, (2, 3));
    assert!([2, 5].map(fixture::id).contains(&replaced[1].0));
    // All are gone, or it was never a pipeline: everything is placed anew.
    for nonsense in [before(&[(7, 0, 2), (8, 2, 4)]), before(&[(2, 0, 2), (4, 3, 4)]), before(&[]), None] {
        let anew = grants(nonsense);
        assert_eq!(anew.len(), 3, "{anew:?}");
    }
}
