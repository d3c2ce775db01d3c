//! What a job requires of the agents that work on it: who gets none of its shards, and what its owner is told.
//!
//! Must never sleep: time is a number.

use skein_proto::ids::NodeId;
use skein_proto::job::{JobSpec, Requires};
use skein_proto::lease::End;
use skein_proto::limits::ATTEMPTS_MAX;
use skein_proto::message::Phase;

use crate::desk::{Desk, agent};
use crate::fixture;

const GIGABYTE: u64 = 1_000_000_000;

/// Agent 2 has little memory, agent 4 much, and agent 5 as much on a GPU.
fn desk(hands: &[u8]) -> Desk {
    let mut desk = Desk::new(hands);
    for hand in &mut desk.hands {
        if hand.worker.node != fixture::id(2) {
            hand.memory_bytes = 8 * GIGABYTE;
        }
        hand.gpu = hand.worker.node == fixture::id(5);
    }
    desk
}

fn requires(memory_bytes: u64, gpu: bool) -> Requires {
    Requires { memory_bytes, gpu }
}

/// Who worked on the job until it was done.
fn workers(desk: &mut Desk) -> Vec<NodeId> {
    let mut seen = Vec::new();
    for turn in 0_u32.. {
        desk.pass(500);
        let granted = desk.granted();
        if granted.is_empty() {
            break;
        }
        for lease in granted {
            seen.push(agent(&lease));
            // The slices of a round differ, and the outer steps agree.
            let output = [turn.to_le_bytes().to_vec(), lease.unverified().shard.kind().into()].concat();
            desk.finish(&lease, End::Completed, &output);
        }
    }
    seen.sort_unstable();
    seen.dedup();
    seen
}

#[test]
fn who_does_not_offer_it_gets_no_shard() {
    let mut all = vec![fixture::id(2), fixture::id(4), fixture::id(5)];
    all.sort_unstable();
    let mut large = vec![fixture::id(4), fixture::id(5)];
    large.sort_unstable();
    for (requires, wanted) in [
        (requires(0, false), all),
        (requires(8 * GIGABYTE, false), large),
        (requires(0, true), vec![fixture::id(5)]),
        (requires(8 * GIGABYTE, true), vec![fixture::id(5)]),
    ] {
        let mut desk = desk(&[2, 4, 5]);
        desk.submit(JobSpec { requires, ..fixture::job() });
        assert_eq!(workers(&mut desk), wanted, "{requires:?}");
        assert_eq!((&desk.status().phase, &desk.status().note), (&Phase::Done, &None));
        // By the receipts of the fixture, of a MiB each.
        assert!(desk.status().sent_bytes >= 1 << 20 && desk.status().sent_bytes.is_multiple_of(1 << 20));
    }
}

#[test]
fn a_shard_that_failed_goes_to_nobody_else_for_that() {
    let mut desk = desk(&[2, 4]);
    desk.submit(JobSpec { requires: requires(8 * GIGABYTE, false), ..fixture::job() });
    for _ in 0..ATTEMPTS_MAX {
        desk.pass(500);
        let lease = desk.granted().pop().unwrap();
        assert_eq!(agent(&lease), fixture::id(4));
        desk.finish(&lease, End::Failed, b"");
    }
    desk.pass(500);
    assert!(matches!(desk.status().phase, Phase::Failed { .. }));
}

#[test]
fn what_nobody_offers_is_told_with_the_numbers_until_somebody_does() {
    let all = |hands: &[u8], wanted: Requires| {
        let mut desk = desk(hands);
        desk.submit(JobSpec { requires: wanted, ..fixture::job() });
        desk.pass(500);
        assert!(desk.granted().is_empty());
        assert_eq!(desk.status().phase, Phase::Waiting);
        desk
    };
    let words = |hands: &[u8], wanted: Requires, words: &[&str]| {
        let desk = all(hands, wanted);
        let note = desk.status().note.clone().unwrap();
        for word in words.iter().chain(&["\nhint: "]) {
            assert!(note.contains(word), "{word} is not in {note}");
        }
    };
    words(
        &[2, 4],
        requires(9 * GIGABYTE, false),
        &["requires 9000 MB", "2 agents", "the largest offers 8000 MB"],
    );
    words(&[2, 4], requires(0, true), &["requires a GPU,", "none of them has a GPU"]);
    let gpu = requires(9 * GIGABYTE, true);
    words(&[2, 4, 5], gpu, &["a GPU with 9000 MB", "1 of them have a GPU, the largest with 8000 MB"]);

    let mut waiting = all(&[2, 4], requires(0, true));
    waiting.hands = desk(&[2, 4, 5]).hands;
    assert_eq!(workers(&mut waiting), [fixture::id(5)]);
    assert_eq!((&waiting.status().phase, &waiting.status().note), (&Phase::Done, &None));
}

#[test]
fn a_serving_job_is_placed_on_those_alone_who_offer_it() {
    let mut desk = desk(&[2, 4, 5]);
    let wanted = requires(8 * GIGABYTE, false);
    desk.submit(JobSpec { requires: wanted, ..fixture::serve_job(2) });
    desk.pass(500);
    let mut holders: Vec<NodeId> = desk.granted().iter().map(agent).collect();
    holders.sort_unstable();
    let mut large = vec![fixture::id(4), fixture::id(5)];
    large.sort_unstable();
    assert_eq!(holders, large);
}
