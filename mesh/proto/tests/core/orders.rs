//! The customer's side and the neighbours: what is said again, and who is dialled again.
//!
//! Must never wait: time is a number.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names the one variant that it expects")]

use skein_proto::ids::{Digest, JobId, LeaseId, Millis, NodeId};
use skein_proto::job::JobSpec;
use skein_proto::limits::{
    INTRODUCTIONS_MAX, JOBS_MAX, MEMBERS_MAX, ORDERS_MAX, REDIAL_MS, REDIALS_MAX, RESUBMIT_MS,
};
use skein_proto::membership::{Members, News};
use skein_proto::message::{JobStatus, Message, Phase, Resume, StageAt};
use skein_proto::offer::Offer;
use skein_proto::orders::Orders;
use skein_proto::signed::Signed;

use crate::fixture;

fn job(nonce: u64) -> Signed<JobSpec> {
    Signed::new(JobSpec { nonce, ..fixture::job() }, &fixture::network(), &fixture::key(3))
}

fn told(nonce: u64, phase: Phase) -> JobStatus {
    JobStatus { phase, round: 2, state: Some(Digest::of(b"state")), ..JobStatus::new(&job(nonce)) }
}

/// `S` for a submission (`R` with a resume), `C` for a cancellation, at each of `times`.
fn said(orders: &mut Orders, times: impl IntoIterator<Item = u64>) -> String {
    let mut line = String::new();
    for time in times {
        for message in orders.to_say(Millis(time)) {
            line.push(match message {
                Message::Submit { resume: None, .. } => 'S',
                Message::Submit { resume: Some(_), .. } => 'R',
                Message::Cancel(_) => 'C',
                other => panic!("{other:?}"),
            });
        }
        line.push('.');
    }
    line
}

#[test]
fn a_submission_is_said_again_until_the_coordinator_tells_of_the_job() {
    let mut orders = Orders::default();
    let id = orders.place(job(1), None);
    assert_eq!(orders.jobs()[&id].phase, Phase::Waiting, "its owner sees it at once");
    let again = RESUBMIT_MS;
    assert_eq!(said(&mut orders, [0, 1, again - 1, again, 2 * again]), "S...S.S.");
    assert!(orders.heard(told(1, Phase::Running)));
    assert_eq!(said(&mut orders, [3 * again, 9 * again]), "..");
    // Another coordinator: it may know nothing, and is told from where to go on.
    orders.unanswered();
    assert_eq!(said(&mut orders, [9 * again, 9 * again + 1, 10 * again]), "R..R.");
    assert!(orders.heard(told(1, Phase::Done)));
    orders.unanswered();
    assert_eq!(said(&mut orders, [20 * again]), ".");
}

#[test]
fn a_pipeline_outlives_a_coordinator_who_never_had_it() {
    let mut orders = Orders::default();
    let job = Signed::new(fixture::serve_job(1), &fixture::network(), &fixture::key(3));
    orders.place(job.clone(), None);
    let stage = StageAt { node: fixture::id(2), worker: 3, lease: LeaseId([9; 32]), start: 0, end: 4 };
    let waiting = JobStatus::new(&job);
    let served = JobStatus { phase: Phase::Running, stages: vec![stage], ..waiting.clone() };
    assert!(orders.heard(served));
    // Two take office at once, and the first tells of the job before the second is heard.
    for time in [0, RESUBMIT_MS] {
        orders.unanswered();
        let said = orders.to_say(Millis(time));
        let [Message::Submit { resume: Some(Resume::Serve(stages)), .. }] = said.as_slice() else {
            panic!("{said:?}")
        };
        assert_eq!(stages, &[stage]);
        assert!(orders.heard(waiting.clone()));
    }
}

#[test]
fn a_cancellation_is_said_until_the_job_ended() {
    let mut orders = Orders::default();
    let id = orders.place(job(1), None);
    assert_eq!(said(&mut orders, [0]), "S.");
    assert!(orders.cancel(id));
    assert_eq!(said(&mut orders, [1, RESUBMIT_MS + 1]), "SC.SC.");
    orders.heard(told(1, Phase::Running));
    assert_eq!(said(&mut orders, [3 * RESUBMIT_MS, 4 * RESUBMIT_MS]), "C.C.");
    orders.heard(told(1, Phase::Cancelled));
    assert_eq!(said(&mut orders, [9 * RESUBMIT_MS]), ".");
    assert!(!orders.cancel(id));
}

#[test]
fn what_ended_stays_ended() {
    let mut orders = Orders::default();
    let id = orders.place(job(1), None);
    orders.heard(told(1, Phase::Done));
    assert!(!orders.heard(told(1, Phase::Running)), "a coordinator that missed the end");
    assert_eq!(orders.jobs()[&id].phase, Phase::Done);
}

#[test]
fn a_new_coordinator_makes_hearsay_of_unfinished_foreign_jobs() {
    let mut orders = Orders::default();
    let own = orders.place(job(1), None);
    orders.heard(told(2, Phase::Running));
    orders.heard(told(3, Phase::Done));
    orders.unanswered();
    let left: Vec<JobId> = orders.jobs().keys().copied().collect();
    let mut expected = vec![own, told(3, Phase::Done).id];
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn a_job_that_cannot_be_ordered_is_shown_as_failed() {
    let mut orders = Orders::default();
    let spec = JobSpec { name: String::new(), ..fixture::job() };
    let id = orders.place(Signed::new(spec, &fixture::network(), &fixture::key(3)), None);
    assert!(matches!(orders.jobs()[&id].phase, Phase::Failed { .. }));
    for nonce in 0..ORDERS_MAX as u64 {
        orders.place(job(nonce), None);
    }
    let id = orders.place(job(9_999), None);
    assert!(matches!(&orders.jobs()[&id].phase, Phase::Failed { reason } if reason.contains("128")));
    assert_eq!(orders.to_say(Millis(0)).len(), ORDERS_MAX);
}

#[test]
fn foreign_jobs_make_room_for_own_ones() {
    let mut orders = Orders::default();
    for nonce in 0..2 * JOBS_MAX as u64 {
        orders.heard(told(nonce, Phase::Running));
    }
    assert_eq!(orders.jobs().len(), JOBS_MAX);
    let own = orders.place(job(100_000), None);
    assert_eq!(orders.jobs().len(), JOBS_MAX);
    for nonce in 0..JOBS_MAX as u64 {
        orders.heard(told(nonce, Phase::Running));
    }
    assert!(orders.jobs().contains_key(&own));
}

fn offer(signer: u8, issued_at: u64) -> Signed<Offer> {
    let offer = Offer { issued_at: Millis(issued_at), ..fixture::offer() };
    Signed::new(offer, &fixture::network(), &fixture::key(signer))
}

/// How often anybody is dialled in `ms`.
fn dials(members: &mut Members, from: u64, ms: u64) -> usize {
    (from..from + ms).step_by(500).map(|now| members.to_dial(Millis(now)).len()).sum()
}

#[test]
fn a_lost_member_is_dialled_for_an_hour_and_hearsay_three_times() {
    let mut members = Members::default();
    members.up(Millis(0), fixture::id(1));
    assert_eq!(members.offered(offer(1, 1)), News::Arrived);
    assert_eq!(members.offered(offer(1, 2)), News::Changed);
    assert_eq!(members.offered(offer(1, 1)), News::Stale);
    assert!(members.down(Millis(0), fixture::id(1)));
    assert_eq!(dials(&mut members, 0, REDIAL_MS), 0);
    assert_eq!(dials(&mut members, REDIAL_MS, 10_000_000), usize::from(REDIALS_MAX));
    members.told_of(Millis(0), &offer(2, 1));
    assert_eq!(dials(&mut members, 0, 60_000), usize::from(INTRODUCTIONS_MAX));
    // Told of again while it rests, it is left in peace; later it is tried again.
    members.told_of(Millis(60_000), &offer(2, 1));
    assert_eq!(dials(&mut members, 60_000, 5_000), 0);
    assert_eq!(dials(&mut members, 65_000, 10_000), 0);
    members.told_of(Millis(75_000), &offer(2, 1));
    assert_eq!(dials(&mut members, 75_000, 60_000), usize::from(INTRODUCTIONS_MAX));
}

#[test]
fn who_is_here_is_not_dialled() {
    let mut members = Members::default();
    members.told_of(Millis(0), &offer(1, 1));
    members.up(Millis(0), fixture::id(1));
    members.told_of(Millis(0), &offer(1, 1));
    assert_eq!(dials(&mut members, 0, 100_000), 0);
    // An agent that never offered anything was never a member.
    assert!(!members.down(Millis(0), fixture::id(1)));
    assert_eq!(dials(&mut members, 0, 100_000), 0);
}

#[test]
fn members_are_bounded() {
    let mut members = Members::default();
    let node = |number: usize| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        NodeId(id)
    };
    for number in 0..MEMBERS_MAX {
        assert!(members.up(Millis(0), node(number)));
    }
    assert!(!members.up(Millis(0), node(MEMBERS_MAX)));
    assert!(members.up(Millis(0), node(0)), "one that is here may come again");
}
