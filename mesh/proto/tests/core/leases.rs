//! Both sides of leases: what an agent holds and how it ends; what a coordinator grants, takes back and pays.
//!
//! Must never sleep: time is a number.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names the one variant that it expects")]

use skein_proto::election::Reign;
use skein_proto::holdings::{Executed, Holdings, NotTaken};
use skein_proto::ids::{Digest, LeaseId, Millis, Term, Units};
use skein_proto::job::{JobSpec, Shard};
use skein_proto::lease::{End, Fence, Lease, Pace, Receipt};
use skein_proto::limits::{ATTEMPTS_MAX, JOBS_MAX, LEASE_TTL_MS, LEASES_HELD_MAX, RENEW_MS};
use skein_proto::message::{Message, Phase, Resume, Trained};
use skein_proto::office::NotHired;
use skein_proto::signed::Signed;

use crate::desk::{Desk, accepted, agent, pace, receipt};
use crate::fixture;

// ---- the agent's side; agent 2 holds leases of coordinator 1

fn reign(term: u64, coordinator: u8) -> Reign {
    Reign { term: Term(term), coordinator: fixture::id(coordinator) }
}

fn lease(sequence: u64, shard: Shard) -> Signed<Lease> {
    let fence = Fence { term: Term(5), sequence };
    let lease = Lease { fence, units: shard.units(), shard, ..fixture::lease() };
    Signed::new(lease, &fixture::network(), &fixture::key(1))
}

fn stage() -> Shard {
    fixture::stage(0, 4, 0, 1)
}

fn take(holdings: &mut Holdings, sequence: u64, shard: Shard) -> LeaseId {
    holdings.take(Millis(0), fixture::id(2), 1, reign(5, 1), lease(sequence, shard)).unwrap()
}

fn executed(tokens: u64) -> Executed {
    let outputs = vec![Digest::of(b"delta")];
    Executed { inputs: vec![], outputs, tokens, received_bytes: 1_000, loss_micronats: Some(4) }
}

#[test]
fn every_way_to_end_gives_exactly_one_receipt() {
    type Course = fn(&mut Holdings, LeaseId);
    let courses: [(Course, bool, End); 7] = [
        (|_, _| {}, true, End::Completed),
        (|_, _| {}, false, End::Failed),
        (|holdings, _| assert_eq!(holdings.expired(Millis(15_000)).len(), 1), false, End::Expired),
        (|holdings, id| assert!(holdings.released(id, fixture::id(1))), false, End::Cancelled),
        (|holdings, id| assert!(holdings.disowned(id, fixture::id(1))), false, End::Cancelled),
        (|holdings, _| assert_eq!(holdings.fenced(reign(6, 3)).len(), 1), false, End::Cancelled),
        // A result that comes while the lease is taken back is a result all the same.
        (|holdings, id| assert!(holdings.released(id, fixture::id(1))), true, End::Completed),
    ];
    for (course, well, end) in courses {
        let mut holdings = Holdings::default();
        let id = take(&mut holdings, 1, fixture::shard());
        course(&mut holdings, id);
        let result = if well { Ok(executed(10)) } else { Err("died".into()) };
        let receipt = holdings.finish(Millis(20_000), id, result.clone()).unwrap();
        assert_eq!(receipt.end, end);
        let units = if end == End::Completed { fixture::shard().units() } else { Units(0) };
        assert_eq!(receipt.units, units);
        assert_eq!(holdings.finish(Millis(20_001), id, result), None);
        assert!(holdings.list().is_empty());
    }
}

#[test]
fn a_stage_is_paid_by_token_when_released_and_not_when_it_expired() {
    let mut holdings = Holdings::default();
    let (served, expired) = (take(&mut holdings, 1, stage()), take(&mut holdings, 2, stage()));
    assert!(holdings.released(served, fixture::id(1)));
    assert_eq!(holdings.expired(Millis(15_000)), vec![expired]);
    let receipt = holdings.finish(Millis(9), served, Ok(executed(100))).unwrap();
    assert_eq!((receipt.end, receipt.units), (End::Completed, Units(100 * stage().units().0)));
    let receipt = holdings.finish(Millis(9), expired, Ok(executed(100))).unwrap();
    assert_eq!((receipt.end, receipt.units), (End::Expired, Units(0)));
}

#[test]
fn leases_of_others_and_of_other_terms_are_not_taken() {
    let mut holdings = Holdings::default();
    let mut take =
        |me, office| holdings.take(Millis(0), fixture::id(me), 1, office, lease(1, fixture::shard()));
    assert_eq!(take(3, reign(5, 1)), Err(NotTaken::NotMine));
    assert_eq!(take(2, reign(6, 1)), Err(NotTaken::Fenced));
    assert_eq!(take(2, reign(4, 1)), Err(NotTaken::Fenced));
    assert_eq!(take(2, reign(5, 3)), Err(NotTaken::Fenced));
    assert!(take(2, reign(5, 1)).is_ok());
    assert_eq!(take(2, reign(5, 1)), Err(NotTaken::Repeated));
}

#[test]
fn renewal_puts_expiry_off_and_only_the_grantor_renews() {
    let mut holdings = Holdings::default();
    let id = take(&mut holdings, 1, fixture::shard());
    holdings.renewed(Millis(10_000), id, fixture::id(3));
    assert_eq!(holdings.expired(Millis(15_000)), vec![id]);
    assert_eq!(holdings.expired(Millis(15_001)), vec![], "each is stopped once");
    let mut holdings = Holdings::default();
    let id = take(&mut holdings, 1, fixture::shard());
    holdings.renewed(Millis(10_000), id, fixture::id(1));
    assert_eq!(holdings.expired(Millis(24_999)), vec![]);
    assert_eq!(holdings.expired(Millis(25_000)), vec![id]);
}

#[test]
fn only_life_asks_for_renewal() {
    let mut holdings = Holdings::default();
    let id = take(&mut holdings, 1, fixture::shard());
    assert_eq!(holdings.to_renew(Millis(RENEW_MS)).len(), 1, "queued");
    assert_eq!(holdings.progressed(id, pace(1, 4)), None);
    assert_eq!(holdings.to_renew(Millis(2 * RENEW_MS)).len(), 1, "moved");
    assert_eq!(holdings.to_renew(Millis(3 * RENEW_MS)), vec![], "hung");
    assert!(holdings.released(id, fixture::id(1)));
    holdings.progressed(id, pace(2, 4));
    assert_eq!(holdings.to_renew(Millis(9 * RENEW_MS)), vec![], "stopping");
}

#[test]
fn a_stage_that_became_ready_is_told_at_once_and_a_queued_one_is_not() {
    let mut holdings = Holdings::default();
    let id = take(&mut holdings, 1, stage());
    assert_eq!(holdings.progressed(id, pace(0, 0)), None);
    assert_eq!(holdings.progressed(id, pace(1, 1)), Some(fixture::id(1)));
    assert_eq!(holdings.progressed(id, pace(1, 1)), None);
}

#[test]
fn a_stranger_neither_releases_nor_disowns() {
    let mut holdings = Holdings::default();
    let id = take(&mut holdings, 1, fixture::shard());
    assert!(!holdings.released(id, fixture::id(3)));
    assert!(!holdings.disowned(id, fixture::id(3)));
    assert_eq!(holdings.fenced(reign(5, 1)), vec![]);
}

// ---- the coordinator's side

#[test]
fn a_vanished_agents_shard_is_granted_again_and_its_late_receipt_refused() {
    let mut desk = Desk::new(&[2, 4]);
    desk.submit(fixture::job());
    desk.pass(0);
    let first = desk.granted().pop().unwrap();
    desk.office.vanished(agent(&first), &mut desk.letters);
    desk.hands.retain(|hand| hand.worker.node != agent(&first));
    desk.pass(500);
    let second = desk.granted().pop().unwrap();
    assert_ne!(agent(&first), agent(&second));
    assert!(second.unverified().fence > first.unverified().fence);
    assert!(!accepted(&desk.finish(&first, End::Completed, b"late")));
    assert!(accepted(&desk.finish(&second, End::Completed, b"state")));
    desk.pass(500);
    assert_eq!((desk.status().regrants, desk.status().state), (1, Some(Digest::of(b"state"))));
}

#[test]
fn a_lease_without_a_sign_of_life_expires_and_goes_to_another() {
    let mut desk = Desk::new(&[2, 4]);
    desk.submit(fixture::job());
    desk.pass(0);
    let first = desk.granted().pop().unwrap();
    let id = first.unverified().id();
    desk.pass(u64::from(LEASE_TTL_MS) - 1);
    let now = Millis(desk.now);
    assert_eq!(desk.office.progress(now, agent(&first), id, Pace::default()), Message::Renew(id));
    desk.pass(u64::from(LEASE_TTL_MS) - 1);
    assert!(desk.granted().is_empty());
    desk.pass(1);
    let second = desk.granted().pop().unwrap();
    assert_ne!(agent(&first), agent(&second));
    let answer = desk.office.progress(Millis(desk.now), agent(&first), id, Pace::default());
    assert!(matches!(answer, Message::Refused { .. }));
}

#[test]
fn a_receipt_sent_again_gets_the_same_acceptance() {
    let mut desk = Desk::new(&[2]);
    desk.submit(fixture::job());
    desk.pass(0);
    let lease = desk.granted().pop().unwrap();
    let first = desk.finish(&lease, End::Completed, b"state");
    desk.now += 700;
    let second = desk.finish(&lease, End::Completed, b"state");
    assert!(accepted(&first));
    assert_eq!(first, second);
    // Another account of the same work gets no second acceptance of its own.
    assert_eq!(first, desk.finish(&lease, End::Completed, b"other"));
}

#[test]
fn nobody_is_paid_for_anothers_lease_or_more_than_the_lease_says() {
    let mut desk = Desk::new(&[2]);
    desk.submit(fixture::job());
    desk.pass(0);
    let lease = desk.granted().pop().unwrap();
    let honest = receipt(&lease, End::Completed, b"state");
    let stolen = Signed::new(honest.statement().clone(), &fixture::network(), &fixture::key(4));
    let answer = desk.office.receipt(Millis(desk.now), &stolen, &mut desk.letters);
    assert!(matches!(answer, Message::Refused { .. }));
    let greedy = Receipt { units: Units(u64::MAX), ..honest.statement().clone() };
    let greedy = Signed::new(greedy, &fixture::network(), &fixture::key(2));
    match desk.office.receipt(Millis(desk.now), &greedy, &mut desk.letters) {
        Message::Accepted(acceptance) => {
            assert_eq!(acceptance.unverified().units, lease.unverified().units);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_receipt_without_a_result_fails_the_shard_and_not_the_job() {
    let mut desk = Desk::new(&[2, 4]);
    desk.submit(fixture::job());
    desk.pass(0);
    let first = desk.granted().pop().unwrap();
    let empty = Receipt { outputs: vec![], ..receipt(&first, End::Completed, b"").statement().clone() };
    let signer = if agent(&first) == fixture::id(2) { 2 } else { 4 };
    let empty = Signed::new(empty, &fixture::network(), &fixture::key(signer));
    assert!(!accepted(&desk.office.receipt(Millis(desk.now), &empty, &mut desk.letters)));
    desk.pass(500);
    let second = desk.granted().pop().unwrap();
    assert_ne!(agent(&first), agent(&second));
    assert!(accepted(&desk.finish(&second, End::Completed, b"state")));
}

#[test]
fn a_shard_that_fails_too_often_fails_its_job_and_the_last_reason_is_told() {
    let mut desk = Desk::new(&[2, 4]);
    desk.submit(fixture::job());
    for attempt in 0..ATTEMPTS_MAX {
        desk.pass(500);
        let lease = desk.granted().pop().unwrap();
        let id = lease.unverified().id();
        let reason = format!("out of memory, try {attempt}");
        // A stranger's word about it does not count.
        desk.office.failed(fixture::id(7), id, &"lies".into(), &mut desk.letters);
        desk.office.failed(agent(&lease), id, &reason.as_str().into(), &mut desk.letters);
        assert!(!accepted(&desk.finish(&lease, End::Failed, b"")));
    }
    desk.pass(500);
    assert!(desk.granted().is_empty());
    match &desk.status().phase {
        Phase::Failed { reason } => assert!(reason.ends_with("out of memory, try 4"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn vanished_agents_do_not_count_as_failures() {
    let mut desk = Desk::new(&[2]);
    desk.submit(fixture::job());
    for _ in 0..3 * ATTEMPTS_MAX {
        desk.pass(500);
        assert_eq!(desk.granted().len(), 1);
        desk.office.vanished(fixture::id(2), &mut desk.letters);
    }
    desk.pass(500);
    assert_eq!(desk.status().phase, Phase::Running);
}

#[test]
fn only_the_owner_cancels_and_what_is_finished_then_is_still_paid() {
    let mut desk = Desk::new(&[2]);
    let job = desk.submit(fixture::job());
    desk.pass(0);
    let lease = desk.granted().pop().unwrap();
    desk.office.cancel(fixture::id(2), job, &mut desk.letters);
    assert!(desk.released().is_empty());
    desk.office.cancel(fixture::id(3), job, &mut desk.letters);
    assert_eq!(desk.released(), vec![lease.unverified().id()]);
    let id = lease.unverified().id();
    let answer = desk.office.progress(Millis(desk.now), fixture::id(2), id, pace(1, 2));
    assert_eq!(answer, Message::Release(id));
    assert!(accepted(&desk.finish(&lease, End::Completed, b"state")));
    desk.pass(500);
    assert_eq!(desk.status().phase, Phase::Cancelled);
    assert!(desk.granted().is_empty());
}

#[test]
fn full_hands_get_nothing_and_nothing_is_forgotten() {
    let mut desk = Desk::new(&[2]);
    let jobs = LEASES_HELD_MAX as u64 + 3;
    for nonce in 0..jobs {
        desk.submit(JobSpec { nonce, ..fixture::job() });
    }
    desk.pass(500);
    let leases = desk.granted();
    assert_eq!(leases.len(), LEASES_HELD_MAX);
    for lease in &leases[..3] {
        desk.finish(lease, End::Failed, b"");
    }
    desk.finish(&leases[3], End::Completed, b"state");
    desk.pass(500);
    assert_eq!(desk.granted().len(), 4);
}

#[test]
fn jobs_are_bounded_and_ended_ones_make_room() {
    let mut desk = Desk::new(&[2]);
    let mut first = None;
    for nonce in 0..JOBS_MAX as u64 {
        let id = desk.submit(JobSpec { nonce, ..fixture::job() });
        first.get_or_insert(id);
    }
    let late = Signed::new(fixture::job(), &fixture::network(), &fixture::key(4));
    assert_eq!(desk.office.submit(&late, None), Err(NotHired::Full));
    desk.office.cancel(fixture::id(3), first.unwrap(), &mut desk.letters);
    assert_eq!(desk.office.submit(&late, None), Ok(()));
}

#[test]
fn a_job_that_can_never_run_is_refused_with_its_reason() {
    let mut desk = Desk::new(&[2]);
    let spec = JobSpec { name: "no spaces".into(), ..fixture::job() };
    let job = Signed::new(spec, &fixture::network(), &fixture::key(3));
    match desk.office.submit(&job, None) {
        Err(NotHired::Refused(status)) => {
            assert!(matches!(&status.phase, Phase::Failed { reason } if reason.contains("no spaces")));
            assert!(status.is_bounded());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_resumed_job_goes_on_and_remembers() {
    let resume = |round| {
        Resume::Train(Trained {
            round,
            state: Digest::of(b"before"),
            start_loss_micronats: Some(5),
            held_out_micronats: Some(4),
            tokens: 9,
            sent_bytes: 10,
            samples: 17,
            left_out: vec![(3, 5)],
            digests_equal: false,
            regrants: 2,
        })
    };
    let job = Signed::new(fixture::job(), &fixture::network(), &fixture::key(3));
    let mut desk = Desk::new(&[2]);
    desk.office.submit(&job, Some(resume(2))).unwrap();
    desk.pass(500);
    let lease = desk.granted().pop().unwrap();
    assert!(matches!(
        lease.unverified().shard,
        Shard::Train { round: 2, state, .. } if state == Digest::of(b"before")
    ));
    assert_eq!(desk.status().resume(), Some(resume(2)));
    // All rounds were done: there is nothing left to do.
    let mut desk = Desk::new(&[2]);
    desk.office.submit(&job, Some(resume(3))).unwrap();
    desk.pass(500);
    assert_eq!(desk.status().phase, Phase::Done);
    assert!(desk.granted().is_empty());
    // More rounds than there are: nobody can have that, so it starts anew.
    let mut desk = Desk::new(&[2]);
    desk.office.submit(&job, Some(resume(4))).unwrap();
    desk.pass(500);
    assert!(matches!(desk.granted().pop().unwrap().unverified().shard, Shard::Init { .. }));
}

#[test]
fn fences_grow_even_when_the_coordinator_starts_anew_in_its_term() {
    let mut before = Desk::new(&[2]);
    before.submit(fixture::job());
    before.pass(500);
    let old = before.granted().pop().unwrap();
    let mut after = Desk::new(&[2]);
    after.submit(fixture::job());
    after.pass(501);
    let new = after.granted().pop().unwrap();
    assert!(new.unverified().fence > old.unverified().fence);
}

#[test]
fn where_nobody_can_take_one_step_the_checkpoint_before_is_kept() {
    for (begun, kept, round) in [(false, &b"first"[..], 0), (true, b"second", 1)] {
        let mut desk = Desk::new(&[2]);
        desk.submit(fixture::job());
        for output in [&b"first"[..], b"delta", b"second"] {
            desk.pass(500);
            let lease = desk.granted().pop().unwrap();
            assert!(accepted(&desk.finish(&lease, End::Completed, output)));
        }
        for _ in 0..ATTEMPTS_MAX {
            desk.pass(500);
            let lease = desk.granted().pop().unwrap();
            assert_eq!(lease.unverified().shard.kind(), "train");
            if begun {
                desk.office.progress(Millis(desk.now), fixture::id(2), lease.unverified().id(), pace(1, 4));
            }
            desk.finish(&lease, End::Failed, b"");
        }
        desk.pass(500);
        let status = desk.status();
        assert!(matches!(status.phase, Phase::Failed { .. }));
        assert_eq!((status.state, status.round), (Some(Digest::of(kept)), round));
    }
}
