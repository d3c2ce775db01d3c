//! How an agent leaves, and what it says again after it was cut off.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names the one variant that it expects")]

use skein_proto::election::Reign;
use skein_proto::holdings::{Executed, Trouble};
use skein_proto::ids::{Digest, LeaseId, Millis, Term};
use skein_proto::lease::{End, Pace, Receipt};
use skein_proto::limits::{ATTEMPTS_MAX, BEAT_MS};
use skein_proto::message::Message;
use skein_proto::node::{Allowance, Input, Node, Output, Record};
use skein_proto::signed::{Envelope, encode};

use crate::fixture;

const START: u64 = 1_700_000_100_000;

/// A lone agent in office that holds the one stage of a service.
fn serving() -> (Node, u64, LeaseId) {
    let mut node = Node::new(fixture::key(1), &fixture::genesis(), true);
    let mut out = Vec::new();
    node.handle(Millis(START), Input::Offer(fixture::offer()), &mut out);
    let job = node.sign_job(fixture::serve_job(1));
    node.handle(Millis(START), Input::Submit(Box::new(job), None), &mut out);
    for tick in 1..20 {
        let now = START + tick * BEAT_MS;
        node.handle(Millis(now), Input::Tick, &mut out);
        let lease = out.iter().find_map(|output| {
            if let Output::Execute(execution) = output { Some(execution.lease) } else { None }
        });
        if let Some(lease) = lease {
            let ready = Pace { done: 1, of: 1, loss_micronats: None };
            node.handle(Millis(now), Input::Progress(lease, ready), &mut out);
            return (node, now, lease);
        }
    }
    panic!("the lone agent never got its own stage");
}

fn served() -> Result<Executed, Trouble> {
    let digest = Digest::of(b"rolling");
    Ok(Executed {
        inputs: vec![digest],
        outputs: vec![digest],
        tokens: 7,
        received_bytes: 0,
        loss_micronats: None,
    })
}

fn receipts(out: &[Output]) -> impl Iterator<Item = &Envelope<Receipt>> {
    out.iter().filter_map(|output| {
        if let Output::Append(Record::Receipt(receipt)) = output { Some(receipt) } else { None }
    })
}

#[test]
fn who_leaves_is_paid_for_what_it_served_and_takes_nothing_new() {
    let (mut node, now, lease) = serving();
    let mut out = Vec::new();
    node.handle(Millis(now), Input::Leave, &mut out);
    assert!(out.iter().any(|output| matches!(output, Output::Stop(stopped) if *stopped == lease)));
    assert!(!node.may_leave(), "a lease is still in hand");
    out.clear();
    node.handle(Millis(now), Input::Finished(lease, served()), &mut out);
    node.handle(Millis(now + BEAT_MS), Input::Tick, &mut out);
    let ends: Vec<End> = receipts(&out).map(|receipt| receipt.unverified().end).collect();
    assert_eq!(ends, [End::Completed]);
    let paid = out.iter().any(|output| {
        matches!(output, Output::Append(Record::Acceptance(acceptance)) if acceptance.unverified().units.0 > 0)
    });
    assert!(paid, "what was served before leaving is accepted");
    assert!(!out.iter().any(|output| matches!(output, Output::Execute(_))), "nothing new is taken");
    assert!(node.may_leave());
}

#[test]
fn a_receipt_whose_answer_was_lost_in_a_crash_is_said_again() {
    let (mut node, now, lease) = serving();
    let mut out = Vec::new();
    node.handle(Millis(now), Input::Leave, &mut out);
    node.handle(Millis(now), Input::Finished(lease, served()), &mut out);
    let receipt = receipts(&out).next().expect("the lease ended in a receipt").clone();
    // The same agent, started anew: only its log remembers the receipt. It obeys itself again.
    let mut again = Node::new(fixture::key(1), &fixture::genesis(), true);
    let mut out = Vec::new();
    again.handle(Millis(now), Input::Unanswered(vec![receipt]), &mut out);
    again.handle(Millis(now), Input::Offer(fixture::offer()), &mut out);
    for tick in 1..5 {
        again.handle(Millis(now + tick * BEAT_MS), Input::Tick, &mut out);
    }
    let noted = out.iter().any(|output| matches!(output, Output::Note(text) if text.contains("not paid")));
    assert!(noted, "it was sent, and the coordinator that remembers nothing refused it: {out:?}");
    assert!(!out.iter().any(|output| matches!(output, Output::Send(_, Message::Receipt(_)))));
    assert!(again.may_leave());
}

#[test]
fn every_coordinator_is_told_of_links_before_it_is_given_orders() {
    let mut node = Node::new(fixture::key(9), &fixture::genesis(), true);
    let mut out = Vec::new();
    node.handle(Millis(START), Input::Offer(fixture::offer()), &mut out);
    let mut links = vec![(fixture::id(1), 300), (fixture::id(2), 90_000)];
    links.sort_unstable();
    node.handle(Millis(START), Input::Links(links.clone()), &mut out);
    let job = node.sign_job(fixture::serve_job(1));
    node.handle(Millis(START), Input::Submit(Box::new(job), None), &mut out);
    for coordinator in [1, 2] {
        out.clear();
        node.handle(Millis(START + 1), Input::Up(fixture::id(coordinator)), &mut out);
        let reign = Reign { term: Term(u64::from(coordinator)), coordinator: fixture::id(coordinator) };
        let bytes = encode(&Message::Beat { reign: Some(reign) });
        node.handle(Millis(START + 1), Input::Frame { from: fixture::id(coordinator), bytes }, &mut out);
        let told: Vec<&Message> = out
            .iter()
            .filter_map(|output| match output {
                Output::Send(to, message) if *to == fixture::id(coordinator) => Some(message),
                _ => None,
            })
            .filter(|message| matches!(message, Message::Links(_) | Message::Submit { .. }))
            .collect();
        assert_eq!(told[0], &Message::Links(links.clone()));
        assert!(matches!(told[1], Message::Submit { .. }));
    }
}

/// What the last offer that was sent to a peer says of the doors.
fn told_open(out: &[Output]) -> Option<bool> {
    out.iter().rev().find_map(|output| match output {
        Output::Send(_, Message::Offers(offers)) => {
            offers.last().map(|offer| offer.unverified().workers[0].open)
        }
        _ => None,
    })
}

fn stops(out: &[Output], lease: LeaseId) -> bool {
    out.iter().any(|output| matches!(output, Output::Stop(stopped) if *stopped == lease))
}

#[test]
fn an_owner_who_needs_his_machine_gets_it_and_the_work_comes_back_when_he_is_done() {
    let (mut node, now, lease) = serving();
    let mut out = Vec::new();
    node.handle(Millis(now), Input::Up(fixture::id(7)), &mut out);
    out.clear();
    node.handle(Millis(now), Input::Allow { worker: 0, allowance: Allowance::Nothing }, &mut out);
    assert!(stops(&out, lease));
    assert_eq!(told_open(&out), Some(false), "the others are told before anything else");
    assert!(matches!(out[0], Output::Send(_, Message::Offers(_))));
    node.handle(Millis(now), Input::Finished(lease, served()), &mut out);
    for tick in 1..5 {
        node.handle(Millis(now + tick * BEAT_MS), Input::Tick, &mut out);
    }
    assert!(!out.iter().any(|output| matches!(output, Output::Execute(_))), "nothing begins meanwhile");
    assert!(node.reign().is_some(), "who works nothing still takes part");
    // The peer of this test was silent meanwhile, and comes again.
    node.handle(Millis(now + 5 * BEAT_MS), Input::Up(fixture::id(7)), &mut out);
    assert_eq!(told_open(&out), Some(false));
    out.clear();
    node.handle(Millis(now + 5 * BEAT_MS), Input::Allow { worker: 0, allowance: Allowance::Work }, &mut out);
    assert_eq!(told_open(&out), Some(true));
    assert!(out.iter().any(|output| matches!(output, Output::Execute(_))), "at once: {out:?}");
}

#[test]
fn to_finish_ends_stages_and_nothing_else() {
    let (mut node, now, lease) = serving();
    let mut out = Vec::new();
    node.handle(Millis(now), Input::Allow { worker: 0, allowance: Allowance::Finish }, &mut out);
    assert!(stops(&out, lease), "a stage would never end by itself");

    let mut node = Node::new(fixture::key(1), &fixture::genesis(), true);
    let mut out = Vec::new();
    node.handle(Millis(START), Input::Offer(fixture::offer()), &mut out);
    let job = node.sign_job(fixture::job());
    node.handle(Millis(START), Input::Submit(Box::new(job), None), &mut out);
    let mut now = START;
    let lease = loop {
        now += BEAT_MS;
        node.handle(Millis(now), Input::Tick, &mut out);
        if let Some(lease) = out.iter().find_map(|output| match output {
            Output::Execute(execution) => Some(execution.lease),
            _ => None,
        }) {
            break lease;
        }
        assert!(now < START + 20 * BEAT_MS, "the lone agent never got a shard");
    };
    out.clear();
    node.handle(Millis(now), Input::Allow { worker: 0, allowance: Allowance::Finish }, &mut out);
    assert!(!stops(&out, lease), "what will end by itself goes on");
    node.handle(Millis(now), Input::Allow { worker: 0, allowance: Allowance::Nothing }, &mut out);
    assert!(stops(&out, lease));
}

#[test]
fn an_owner_may_need_his_machine_any_number_of_times() {
    let mut node = Node::new(fixture::key(1), &fixture::genesis(), true);
    let mut out = Vec::new();
    node.handle(Millis(START), Input::Offer(fixture::offer()), &mut out);
    let job = node.sign_job(fixture::job());
    node.handle(Millis(START), Input::Submit(Box::new(job), None), &mut out);
    let mut now = START;
    for _ in 0..3 * ATTEMPTS_MAX {
        out.clear();
        node.handle(Millis(now), Input::Allow { worker: 0, allowance: Allowance::Work }, &mut out);
        let lease = loop {
            now += BEAT_MS;
            node.handle(Millis(now), Input::Tick, &mut out);
            if let Some(lease) = out.iter().find_map(|output| match output {
                Output::Execute(execution) => Some(execution.lease),
                _ => None,
            }) {
                break lease;
            }
            assert!(now < START + 1_000 * BEAT_MS, "no shard any more: {:?}", node.jobs());
        };
        node.handle(Millis(now), Input::Allow { worker: 0, allowance: Allowance::Nothing }, &mut out);
        node.handle(Millis(now), Input::Finished(lease, Err("stopped".into())), &mut out);
    }
    let failed = node.jobs().values().any(|job| job.phase.is_final());
    assert!(!failed, "to give a shard back is no failure: {:?}", node.jobs());
}
