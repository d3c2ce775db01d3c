//! A node among hostile peers: no bytes make it panic, hoard or act for a stranger.
//!
//! Must never send anything but through the front door, [`Node::handle`].

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names the one variant that it expects")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use skein_proto::election::Reign;
use skein_proto::group::{Group, Member};
use skein_proto::ids::{Digest, JobId, LeaseId, Millis, NodeId, Term, Units};
use skein_proto::job::{Part, Shard, TrainSize, TrainSpec, Work};
use skein_proto::lease::{Lease, Pace};
use skein_proto::limits::{BEAT_MS, FRAME_BYTES_MAX, JOBS_MAX, LEASES_HELD_MAX, MEMBERS_MAX, TERM_JUMP_MAX};
use skein_proto::message::{JobStatus, Message, Phase, Resume, StageAt};
use skein_proto::node::{Input, Node, Output};
use skein_proto::signed::{Signed, decode, encode};

use crate::fixture;

/// Remembers the greatest single allocation.
struct Watched;

static GREATEST: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one only counts")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        GREATEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// A node with an offer, connected to agents 2, 3 and the hostile 1, who is its coordinator.
fn node_under(coordinator: u8) -> Node {
    let mut node = Node::new(fixture::key(9), &fixture::genesis(), true);
    let mut out = Vec::new();
    node.handle(Millis(1_000), Input::Offer(fixture::offer()), &mut out);
    for peer in 1..4 {
        node.handle(Millis(1_000), Input::Up(fixture::id(peer)), &mut out);
        let offer = Signed::new(fixture::offer(), &fixture::network(), &fixture::key(peer)).into_envelope();
        hear(&mut node, peer, &Message::Offers(vec![offer]));
    }
    let reign = Reign { term: Term(5), coordinator: fixture::id(coordinator) };
    hear(&mut node, coordinator, &Message::Beat { reign: Some(reign) });
    assert_eq!(node.reign(), Some(reign));
    node
}

/// A node that is in office itself.
fn node_in_office() -> Node {
    let mut node = Node::new(fixture::key(9), &fixture::genesis(), true);
    let mut out = Vec::new();
    node.handle(Millis(0), Input::Offer(fixture::offer()), &mut out);
    for beat in 0..4 {
        node.handle(Millis(beat * BEAT_MS), Input::Tick, &mut out);
    }
    assert!(node.reign().is_some_and(|reign| reign.coordinator == node.id()));
    for peer in 1..4 {
        node.handle(Millis(1_600), Input::Up(fixture::id(peer)), &mut out);
    }
    node
}

fn hear(node: &mut Node, from: u8, message: &Message) -> Vec<Output> {
    let mut out = Vec::new();
    let frame = Input::Frame { from: fixture::id(from), bytes: encode(message) };
    node.handle(Millis(1_700), frame, &mut out);
    out
}

fn lease_for(node: &Node, shard: Shard) -> Lease {
    Lease { agent: node.id(), units: shard.units(), shard, ..fixture::lease() }
}

fn grant(lease: Lease) -> Message {
    let lease = Signed::new(lease, &fixture::network(), &fixture::key(1)).into_envelope();
    Message::Grant { lease, holders: Vec::new() }
}

fn executes(out: &[Output]) -> bool {
    out.iter().any(|output| matches!(output, Output::Execute(_)))
}

fn messages() -> Vec<Message> {
    let network = fixture::network();
    let reign = Reign { term: Term(6), coordinator: fixture::id(1) };
    let lease = Signed::new(fixture::lease(), &network, &fixture::key(1)).into_envelope();
    let receipt = Signed::new(fixture::receipt(), &network, &fixture::key(2)).into_envelope();
    let acceptance = Signed::new(fixture::acceptance(), &network, &fixture::key(1)).into_envelope();
    let job = Signed::new(fixture::job(), &network, &fixture::key(1));
    let lease_id = fixture::lease().id();
    let serving = Signed::new(fixture::serve_job(2), &network, &fixture::key(1));
    let stage = StageAt { node: fixture::id(2), worker: 0, lease: lease_id, start: 0, end: 2 };
    vec![
        Message::Offers(vec![Signed::new(fixture::offer(), &network, &fixture::key(1)).into_envelope()]),
        Message::Beat { reign: Some(reign) },
        Message::Beat { reign: None },
        Message::Job(JobStatus::new(&job)),
        Message::Submit { job: job.into_envelope(), resume: None },
        Message::Cancel(JobId([1; 32])),
        Message::Grant { lease, holders: vec![fixture::id(3)] },
        Message::Progress { lease: lease_id, pace: Pace { done: 1, of: 2, loss_micronats: Some(3) } },
        Message::Renew(lease_id),
        Message::Release(lease_id),
        Message::Failed { lease: lease_id, reason: "because".into(), missing: Some(Digest::of(b"input")) },
        Message::Receipt(receipt),
        Message::Accepted(acceptance),
        Message::Refused { lease: lease_id, reason: "because".into() },
        Message::Links(vec![(fixture::id(2), 40_000), (fixture::id(3), u32::MAX)]),
        Message::Declined(lease_id),
        Message::Submit { job: serving.envelope().clone(), resume: Some(Resume::Serve(vec![stage; 2])) },
    ]
}

proptest! {
    // Signatures are slow in a debug build.
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 32 } else { 2_000 }))]

    #[test]
    fn random_bytes_do_nothing(bytes in prop::collection::vec(any::<u8>(), 0..300), from in 1u8..4) {
        let mut node = node_under(1);
        let mut out = Vec::new();
        node.handle(Millis(1_700), Input::Frame { from: fixture::id(from), bytes }, &mut out);
        node.handle(Millis(2_200), Input::Tick, &mut out);
    }

    #[test]
    fn mutated_messages_do_no_harm(
        which in any::<prop::sample::Index>(),
        wounds in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_office in any::<bool>(),
    ) {
        let mut bytes = encode(which.get(&messages()));
        for (place, value) in wounds {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let mut node = if in_office { node_in_office() } else { node_under(1) };
        let mut out = Vec::new();
        node.handle(Millis(1_700), Input::Frame { from: fixture::id(1), bytes }, &mut out);
        node.handle(Millis(2_200), Input::Tick, &mut out);
    }

    #[test]
    fn messages_survive_the_wire(which in any::<prop::sample::Index>()) {
        let all = messages();
        let message = which.get(&all);
        prop_assert_eq!(&decode::<Message>(&encode(message)).unwrap(), message);
    }
}

/// A tiny frame that announces four thousand million items must not reserve room for them. One test, since
/// the allocator is the whole process's: everything else here allocates far less.
#[test]
fn announced_lengths_reserve_nothing() {
    let mut node = node_under(1);
    for message in messages() {
        let bytes = encode(&message);
        for place in 0..bytes.len().saturating_sub(4) {
            let mut bytes = bytes.clone();
            bytes[place..place + 4].fill(0xff);
            let _ = decode::<Message>(&bytes);
        }
    }
    let mut out = Vec::new();
    let bytes = vec![0; FRAME_BYTES_MAX + 1];
    node.handle(Millis(1_700), Input::Frame { from: fixture::id(1), bytes }, &mut out);
    assert!(matches!(out.first(), Some(Output::Disconnect(..))));
    let greatest = GREATEST.load(Ordering::Relaxed);
    assert!(greatest <= 2 * FRAME_BYTES_MAX, "{greatest} bytes were allocated at once");
}

#[test]
fn malformed_frames_end_the_connection() {
    let mut node = node_under(1);
    let mut out = Vec::new();
    node.handle(Millis(1_700), Input::Frame { from: fixture::id(2), bytes: vec![0xff] }, &mut out);
    assert!(matches!(out.first(), Some(Output::Disconnect(peer, _)) if *peer == fixture::id(2)));
    assert_eq!(node.offers().count(), 2);
}

#[test]
fn an_agent_does_not_meet_itself() {
    let mut node = node_under(1);
    let mut out = Vec::new();
    let me = node.id();
    node.handle(Millis(1_700), Input::Up(me), &mut out);
    assert!(matches!(out.first(), Some(Output::Disconnect(peer, _)) if *peer == me));
}

#[test]
fn nonsense_shards_are_declined_and_the_coordinator_is_told() {
    let good = || fixture::train();
    let state = Digest::of(b"state");
    let sized = |layers, width, weights| TrainSpec {
        size: TrainSize { layers, width, weights, ..fixture::SIZE },
        ..fixture::train()
    };
    let train = |spec, round, index, of| Shard::Train {
        state,
        spec,
        round,
        index,
        of,
        first: 0,
        steps: 1,
        group: None,
    };
    let stage = fixture::stage;
    let mut huge = good();
    (huge.inner_steps, huge.batch, huge.context) = (u32::MAX, u32::MAX, u32::MAX);
    let (mut lying, mut endless) = (fixture::serve(None), fixture::serve(None));
    lying.size.layer_weights = 8 * lying.size.layer_bytes + 1;
    (endless.context, endless.sessions) = (u32::MAX, u16::MAX);
    let merge = |deltas: usize| Shard::Merge {
        state,
        deltas: vec![vec![state]; deltas],
        spec: good(),
        round: 0,
        part: None,
    };
    let judged_by = |index, of| Shard::Merge {
        state,
        deltas: vec![vec![state]],
        spec: good(),
        round: 0,
        part: Some(Part { index, of }),
    };
    let member = |number, start, end| Member { node: fixture::id(number), worker: 0, start, end };
    let grouped = |members: &[Member], stage, sequences| {
        let group = Group { number: 1, members: members.to_vec(), stage, sequences };
        Shard::Judge { state, spec: good(), round: 0, part: Part { index: 0, of: 1 }, group }
    };
    let halves = [member(1, 0, 2), member(2, 2, 4)];
    let nonsense = [
        Shard::Init { spec: sized(0, 64, 1), judge: true },
        Shard::Init { spec: sized(4, 0, 1), judge: true },
        Shard::Init { spec: sized(4, 64, 0), judge: true },
        Shard::Init { spec: sized(u16::MAX, u32::MAX, u64::MAX), judge: true },
        Shard::Train { state, spec: good(), round: 0, index: 0, of: 1, first: 0, steps: 0, group: None },
        Shard::Train {
            state,
            spec: good(),
            round: 0,
            index: 0,
            of: 1,
            first: u64::MAX,
            steps: 51,
            group: None,
        },
        train(huge, 0, 0, 1),
        train(good(), 3, 0, 1),
        train(good(), 0, 1, 1),
        train(good(), 0, 0, 0),
        train(good(), 0, 0, u16::MAX),
        merge(0),
        merge(5_000),
        Shard::Merge { state, deltas: vec![Vec::new()], spec: good(), round: 0, part: None },
        judged_by(1, 1),
        judged_by(0, 0),
        grouped(&[], 0, 1),
        grouped(&halves, 2, 1),
        grouped(&halves, 0, 0),
        grouped(&halves, 0, u32::MAX),
        grouped(&[member(1, 0, 2), member(1, 2, 4)], 0, 1),
        grouped(&[member(1, 0, 2), member(2, 3, 4)], 0, 1),
        grouped(&[member(1, 0, 2), member(2, 2, 5)], 0, 1),
        grouped(&[member(1, 0, 4), member(2, 4, 4)], 0, 1),
        stage(0, 5, 0, 1),
        stage(2, 2, 0, 1),
        stage(3, 1, 0, 1),
        stage(0, 4, 1, 1),
        stage(0, 4, 0, 5),
        Shard::Stage { spec: lying, start: 0, end: 4, index: 0, of: 1 },
        Shard::Stage { spec: endless, start: 0, end: 4, index: 0, of: 1 },
    ];
    for shard in nonsense {
        let mut node = node_under(1);
        let lease = lease_for(&node, shard.clone());
        let out = hear(&mut node, 1, &grant(lease));
        assert!(!executes(&out), "{shard:?}");
        assert!(
            out.iter().any(|output| matches!(output, Output::Send(_, Message::Failed { .. }))),
            "{shard:?}"
        );
        assert!(node.held().is_empty());
    }
    let mut node = node_under(1);
    let lease = lease_for(&node, stage(0, 4, 0, 1));
    assert!(executes(&hear(&mut node, 1, &grant(lease))));
}

#[test]
fn leases_with_nonsense_terms_are_declined() {
    let mut node = node_under(1);
    for ttl_ms in [0, 999, 600_001, u32::MAX] {
        let lease = Lease { ttl_ms, ..lease_for(&node, fixture::shard()) };
        assert!(!executes(&hear(&mut node, 1, &grant(lease))), "ttl {ttl_ms}");
    }
    let lease = lease_for(&node, fixture::shard());
    let lease = Lease { units: Units(lease.units.0 + 1), ..lease };
    assert!(!executes(&hear(&mut node, 1, &grant(lease))));
}

#[test]
fn only_the_coordinator_grants() {
    let mut node = node_under(1);
    let lease = lease_for(&node, fixture::shard());
    // Another member passes the coordinator's own lease on.
    assert!(!executes(&hear(&mut node, 2, &grant(lease.clone()))));
    // The coordinator passes on what another signed.
    let forged = Signed::new(lease.clone(), &fixture::network(), &fixture::key(2)).into_envelope();
    assert!(!executes(&hear(&mut node, 1, &Message::Grant { lease: forged, holders: Vec::new() })));
    // The lease is another agent's.
    assert!(!executes(&hear(&mut node, 1, &grant(Lease { agent: fixture::id(3), ..lease.clone() }))));
    assert!(executes(&hear(&mut node, 1, &grant(lease))));
}

#[test]
fn a_grant_played_again_is_not_executed_again() {
    let mut node = node_under(1);
    let message = grant(lease_for(&node, fixture::shard()));
    assert!(executes(&hear(&mut node, 1, &message)));
    assert!(!executes(&hear(&mut node, 1, &message)));
    let lease = node.held()[0].id;
    node.handle(Millis(1_800), Input::Finished(lease, Err("died".into())), &mut Vec::new());
    assert!(!executes(&hear(&mut node, 1, &message)));
    // Nor after the coordinator answered, when nothing about the lease is remembered any more.
    hear(&mut node, 1, &Message::Refused { lease, reason: "no".into() });
    assert!(!executes(&hear(&mut node, 1, &message)));
}

#[test]
fn leases_held_are_bounded() {
    let mut node = node_under(1);
    for sequence in 1..200 {
        let mut lease = lease_for(&node, fixture::shard());
        lease.fence.sequence = sequence;
        hear(&mut node, 1, &grant(lease));
    }
    assert_eq!(node.held().len(), LEASES_HELD_MAX);
}

#[test]
fn holders_are_bounded() {
    let mut node = node_under(1);
    let lease = Signed::new(lease_for(&node, fixture::shard()), &fixture::network(), &fixture::key(1))
        .into_envelope();
    let out = hear(&mut node, 1, &Message::Grant { lease, holders: vec![NodeId([7; 32]); 20_000] });
    let holders = out.iter().find_map(|output| match output {
        Output::Execute(execution) => Some(execution.holders.len()),
        _ => None,
    });
    assert_eq!(holders, Some(MEMBERS_MAX + 2));
}

#[test]
fn a_stranger_cannot_end_all_elections() {
    let mut node = node_under(1);
    let greatest = |coordinator| Message::Beat { reign: Some(Reign { term: Term(u64::MAX), coordinator }) };
    hear(&mut node, 2, &greatest(fixture::id(2)));
    assert_eq!(node.reign().unwrap().coordinator, fixture::id(1));
    hear(&mut node, 2, &greatest(fixture::id(3)));
    // Another takes office by the ordinary way, however far the stranger pushed the terms.
    let term = Term(5 + 2 * TERM_JUMP_MAX + 1);
    hear(&mut node, 3, &Message::Beat { reign: Some(Reign { term, coordinator: fixture::id(3) }) });
    assert_eq!(node.reign().unwrap().coordinator, fixture::id(3));
}

#[test]
fn job_statuses_are_bounded_and_only_the_coordinators_count() {
    let network = fixture::network();
    let status = |number: u64| {
        let spec = skein_proto::job::JobSpec { nonce: number, ..fixture::serve_job(4) };
        JobStatus::new(&Signed::new(spec, &network, &fixture::key(3)))
    };
    let stage = |start, end| StageAt { node: fixture::id(1), worker: 0, lease: LeaseId([0; 32]), start, end };
    let mut node = node_under(1);
    hear(&mut node, 2, &Message::Job(status(0)));
    assert!(node.jobs().is_empty());
    let mut nonsense = Vec::new();
    for stages in [
        vec![stage(0, 2)],
        vec![stage(0, 2), stage(1, 4)],
        vec![stage(2, 4), stage(0, 2)],
        vec![stage(0, 2), stage(2, 2), stage(2, 4)],
        vec![stage(0, 4); 2_000],
        vec![stage(0, u16::MAX)],
    ] {
        nonsense.push(JobStatus { stages, ..status(1) });
    }
    nonsense.push(JobStatus { name: "n".repeat(100_000), ..status(1) });
    nonsense.push(JobStatus { phase: Phase::Failed { reason: "r".repeat(100_000) }, ..status(1) });
    nonsense.push(JobStatus { stages: vec![stage(0, 4)], work: Work::Train(fixture::train()), ..status(1) });
    for status in nonsense {
        hear(&mut node, 1, &Message::Job(status));
        assert!(node.jobs().is_empty());
    }
    hear(&mut node, 1, &Message::Job(JobStatus { stages: vec![stage(0, 1), stage(1, 4)], ..status(1) }));
    assert_eq!(node.jobs().len(), 1);
    for number in 0..JOBS_MAX as u64 + 100 {
        let phase = if number % 2 == 0 { Phase::Done } else { Phase::Running };
        hear(&mut node, 1, &Message::Job(JobStatus { phase, ..status(number) }));
    }
    assert_eq!(node.jobs().len(), JOBS_MAX);
}
