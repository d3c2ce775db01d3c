//! Tests of the orderer's rules one by one; the simulation tests them together.

use skein_proto::ids::Units;
use skein_proto::signed::decode;

use super::*;
use crate::claim::fixture::{EPOCH_MS, Story, amid, genesis, key, node, signed, sound, unsigned};

const EPOCH: Epoch = Epoch(0);

fn opened(index: u64) -> Orderer {
    Orderer::open(genesis(), key(index), &[]).unwrap().0
}

fn step(orderer: &mut Orderer, now: Millis, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    orderer.handle(now, input, &mut out);
    out
}

fn role(coordinator: u64, members: &[u64]) -> Input {
    let members = members.iter().map(|member| node(&key(*member))).collect();
    Input::Role { coordinator: Some(node(&key(coordinator))), members }
}

fn says(from: u64, message: &Message) -> Input {
    Input::Message { from: node(&key(from)), bytes: encode(message) }
}

fn sent(out: &[Output]) -> Vec<(NodeId, Message)> {
    out.iter()
        .filter_map(|output| match output {
            Output::Send { to, bytes } => Some((*to, decode(bytes).unwrap())),
            Output::Persist(_) | Output::ClaimDue { .. } | Output::Settled(_) | Output::Note(_) => None,
        })
        .collect()
}

fn persisted(out: &[Output]) -> Vec<u8> {
    out.iter()
        .filter_map(|output| match output {
            Output::Persist(bytes) => Some(bytes.clone()),
            Output::Send { .. } | Output::ClaimDue { .. } | Output::Settled(_) | Output::Note(_) => None,
        })
        .flatten()
        .collect()
}

fn notes(out: &[Output]) -> usize {
    out.iter().filter(|output| matches!(output, Output::Note(_))).count()
}

/// When `EPOCH` may be claimed.
fn closing() -> Millis {
    genesis().epoch_start(Epoch(EPOCH.0 + 1)).plus(CLOSING_MS)
}

/// A coordinator of nobody else that has settled `epochs` of its own.
fn settled_alone(index: u64, epochs: &[u64]) -> (Orderer, Vec<u8>) {
    let mut orderer = opened(index);
    step(&mut orderer, amid(EPOCH), role(index, &[]));
    let mut file = Vec::new();
    for epoch in epochs.iter().copied().map(Epoch) {
        let claim = sound(&key(0), &key(index), 1_000 * index + epoch.0, 10, epoch);
        let now = amid(Epoch(epoch.0 + 1));
        let out = step(&mut orderer, now, Input::OwnClaim { epoch, claim: Some(claim) });
        assert!(out.iter().any(|output| matches!(output, Output::Settled(_))), "{out:?}");
        file.extend(persisted(&out));
    }
    (orderer, file)
}

/// Lets messages pass between these until nobody has more to say.
fn talk(now: Millis, orderers: &mut [&mut Orderer], first: Vec<(NodeId, Vec<Output>)>) -> usize {
    let mut queue: VecDeque<(NodeId, NodeId, Vec<u8>)> = VecDeque::new();
    let push = |queue: &mut VecDeque<_>, from: NodeId, out: Vec<Output>| {
        for output in out {
            if let Output::Send { to, bytes } = output {
                queue.push_back((from, to, bytes));
            }
        }
    };
    first.into_iter().for_each(|(from, out)| push(&mut queue, from, out));
    let mut messages = 0;
    while let Some((from, to, bytes)) = queue.pop_front() {
        messages += 1;
        assert!(messages < 500, "they never fall silent");
        if let Some(orderer) = orderers.iter_mut().find(|orderer| orderer.node == to) {
            let out = step(orderer, now, Input::Message { from, bytes });
            push(&mut queue, to, out);
        }
    }
    messages
}

#[test]
fn asks_for_a_claim_once_a_little_after_the_epoch() {
    let mut orderer = opened(1);
    assert_eq!(step(&mut orderer, Millis(closing().0 - 1), Input::Tick), vec![]);
    assert_eq!(step(&mut orderer, closing(), Input::Tick), vec![Output::ClaimDue { epoch: EPOCH }]);
    assert_eq!(step(&mut orderer, closing().plus(1), Input::Tick), vec![]);
    let grace_ms = orderer.grace_ms();
    let again = step(&mut orderer, closing().plus(grace_ms), Input::Tick);
    assert_eq!(again, vec![Output::ClaimDue { epoch: EPOCH }], "asks again where no answer came");
    step(&mut orderer, closing().plus(grace_ms), Input::OwnClaim { epoch: EPOCH, claim: None });
    assert_eq!(step(&mut orderer, closing().plus(3 * grace_ms), Input::Tick), vec![]);
    let claim = sound(&key(0), &key(1), 1, 10, EPOCH);
    let now = closing().plus(3 * grace_ms);
    step(&mut orderer, now, Input::OwnClaim { epoch: EPOCH, claim: Some(claim.clone()) });
    assert_eq!(orderer.pending_claim(), Some(&claim));
    let foreign = sound(&key(0), &key(2), 1, 10, EPOCH);
    assert_eq!(notes(&step(&mut orderer, now, Input::OwnClaim { epoch: EPOCH, claim: Some(foreign) })), 1);
}

#[test]
fn settles_when_all_have_answered_and_persists_before_it_tells() {
    let mut orderer = opened(0);
    step(&mut orderer, amid(EPOCH), role(0, &[1, 2]));
    for member in [1, 2] {
        let at = orderer.held.end();
        step(&mut orderer, amid(EPOCH), says(member, &Message::Tip { at, settled: false, considered: None }));
    }
    let claim = sound(&key(0), &key(1), 1, 10, EPOCH).into_envelope();
    step(&mut orderer, closing(), says(1, &Message::Submit { claim }));
    step(&mut orderer, closing(), Input::OwnClaim { epoch: EPOCH, claim: None });
    assert_eq!(orderer.state().height, 0, "member 2 has not answered");
    let out = step(&mut orderer, closing(), says(2, &Message::Nothing { epoch: EPOCH }));
    assert_eq!(orderer.state().height, 1);
    let persist = out.iter().position(|output| matches!(output, Output::Persist(_))).unwrap();
    let settled = out.iter().position(|output| matches!(output, Output::Settled(_))).unwrap();
    let blocks = |output: &Output| matches!(output, Output::Send { bytes, .. } if matches!(decode(bytes), Ok(Message::Blocks { .. })));
    let told = out.iter().position(blocks).unwrap();
    assert!(persist < settled && persist < told);
    assert_eq!(out.iter().filter(|output| blocks(output)).count(), 2);
}

#[test]
fn settles_without_the_silent_after_the_grace_and_nothing_without_claims() {
    let mut orderer = opened(0);
    step(&mut orderer, amid(EPOCH), role(0, &[1]));
    step(&mut orderer, closing(), Input::Tick);
    let claim = sound(&key(0), &key(0), 1, 10, EPOCH);
    step(&mut orderer, closing(), Input::OwnClaim { epoch: EPOCH, claim: Some(claim) });
    let grace_ms = orderer.grace_ms();
    step(&mut orderer, Millis(closing().plus(grace_ms).0 - 1), Input::Tick);
    assert_eq!(orderer.state().height, 0);
    step(&mut orderer, closing().plus(grace_ms), Input::Tick);
    assert_eq!((orderer.state().height, orderer.state().next_epoch), (1, Epoch(1)));
    let next = closing().plus(EPOCH_MS);
    step(&mut orderer, next, Input::OwnClaim { epoch: Epoch(1), claim: None });
    step(&mut orderer, next.plus(grace_ms), Input::Tick);
    assert_eq!((orderer.state().height, orderer.state().next_epoch), (1, Epoch(1)));
}

#[test]
fn bad_and_late_claims_are_refused_with_a_reason() {
    let (mut orderer, _) = settled_alone(0, &[0]);
    let now = amid(Epoch(1)).plus(EPOCH_MS);
    step(&mut orderer, now, role(0, &[1]));
    let refusal =
        |orderer: &mut Orderer, claim: Signed<Claim>| {
            let out = step(orderer, now, says(1, &Message::Submit { claim: claim.into_envelope() }));
            assert!(notes(&out) == 1, "{out:?}");
            let to_claimant = sent(&out).into_iter().filter(|(to, _)| *to == node(&key(1)));
            let mut reasons = to_claimant.filter_map(|(_, message)| {
                if let Message::Refused { why, .. } = message { Some(why) } else { None }
            });
            reasons.next().unwrap()
        };
    let late = refusal(&mut orderer, sound(&key(0), &key(1), 1, 10, EPOCH));
    assert!(late.contains("settled already, by block 1"), "{late}");
    let foreign = refusal(&mut orderer, sound(&key(0), &key(2), 1, 10, Epoch(1)));
    assert!(foreign.contains("it is the claim of"), "{foreign}");
    let mut story = Story::new(&key(0), &key(1), 1, 10, Epoch(1));
    story.accepted = Units(u64::MAX);
    let inflated = refusal(&mut orderer, signed(&key(1), unsigned(&key(1), Epoch(1), &[story.pair()])));
    assert!(inflated.contains("can be earned"), "{inflated}");

    // What the claimant makes of it.
    let mut member = opened(1);
    step(&mut member, now, role(0, &[0]));
    let claim = sound(&key(0), &key(1), 1, 10, EPOCH);
    step(&mut member, now, Input::OwnClaim { epoch: EPOCH, claim: Some(claim) });
    let refused = Message::refused(EPOCH, &late);
    assert_eq!(notes(&step(&mut member, now, says(2, &refused))), 0, "not from the coordinator");
    assert_eq!(notes(&step(&mut member, now, says(0, &refused))), 1);
    assert_eq!(notes(&step(&mut member, now, says(0, &refused))), 0, "said once");
}

#[test]
fn only_the_coordinator_is_followed() {
    let (mut other, file) = settled_alone(5, &[0]);
    let now = amid(Epoch(1));
    let block = other.held.following(&[other.held.places()[1]]).next().unwrap().clone();
    for (coordinator, height) in [(4, 0), (5, 1)] {
        let mut follower = opened(1);
        step(&mut follower, now, role(coordinator, &[4, 5]));
        let out = step(&mut follower, now, says(5, &Message::Blocks { blocks: vec![block.clone()] }));
        talk(now, &mut [&mut follower, &mut other], vec![(node(&key(1)), out)]);
        assert_eq!(follower.state().height, height);
    }
    assert_eq!(Orderer::open(genesis(), key(1), &file).unwrap().0.state(), other.state());
}

#[test]
fn a_block_of_an_epoch_that_is_not_over_is_not_applied() {
    let (mut other, _) = settled_alone(5, &[3]);
    let mut follower = opened(1);
    let early = Millis(genesis().epoch_start(Epoch(4)).0 - limits::CLOCK_SKEW_MS - 1);
    for (now, height) in [(early, 0), (early.plus(1), 1)] {
        step(&mut follower, now, role(4, &[]));
        let out = step(&mut follower, now, role(5, &[5]));
        let at = other.held.end();
        let tip = says(5, &Message::Tip { at, settled: true, considered: None });
        let more = step(&mut follower, now, tip);
        let me = node(&key(1));
        talk(now, &mut [&mut follower, &mut other], vec![(me, out), (me, more)]);
        assert_eq!(follower.state().height, height);
    }
}

#[test]
fn a_newcomer_in_office_takes_over_what_the_members_have() {
    // Its own short chain, from when it was alone, gives way to the one that more members hold.
    let (mut alone, _) = settled_alone(1, &[0, 1]);
    let (mut second, file) = settled_alone(2, &[0]);
    let (mut third, _) = Orderer::open(genesis(), key(3), &file).unwrap();
    let now = amid(Epoch(3));
    let tip = second.held.end();
    assert_ne!(alone.held.at(1), second.held.at(1));
    let mut first = Vec::new();
    for (index, orderer) in [(1, &mut alone), (2, &mut second), (3, &mut third)] {
        let mut out = step(orderer, now, role(9, &[]));
        out.extend(step(orderer, now, role(1, &[1, 2, 3])));
        first.push((node(&key(index)), out));
    }
    talk(now, &mut [&mut alone, &mut second, &mut third], first);
    for orderer in [&alone, &second, &third] {
        assert_eq!(orderer.held.end(), tip);
    }
}

#[test]
fn a_follower_gives_up_its_fork_only_once_the_coordinator_knows_it() {
    let (coordinator, _) = settled_alone(1, &[0, 1]);
    let (mut follower, _) = settled_alone(2, &[0]);
    let now = amid(Epoch(3));
    step(&mut follower, now, role(1, &[1]));
    let ours = follower.held.end();
    let blocks: Vec<_> = coordinator
        .held
        .following(&[Place { height: 0, tip: State::new(&genesis()).tip }])
        .cloned()
        .collect();
    let tip = |considered| Message::Tip { at: coordinator.held.end(), settled: true, considered };
    step(&mut follower, now, says(1, &tip(None)));
    let out = step(&mut follower, now, says(1, &Message::Blocks { blocks: blocks.clone() }));
    assert_eq!(follower.held.end(), ours);
    assert!(sent(&out).iter().any(|(_, message)| matches!(message, Message::Tip { at, .. } if *at == ours)));
    step(&mut follower, now, says(1, &tip(Some(ours.tip))));
    let out = step(&mut follower, now, says(1, &Message::Blocks { blocks }));
    assert_eq!(follower.state().height, 0, "undone, and waiting for claims");
    assert!(!persisted(&out).is_empty());
    // The coordinator falls silent, or turns out to have nothing: ours is put back.
    let out = step(&mut follower, now, Input::Role { coordinator: None, members: BTreeSet::new() });
    assert_eq!(follower.held.end(), ours);
    assert!(notes(&out) > 0);
}

#[test]
fn a_torn_tail_is_cut_and_damage_is_refused() {
    let (orderer, file) = settled_alone(1, &[0, 1, 2]);
    let whole = Orderer::open(genesis(), key(1), &file).unwrap();
    assert_eq!((whole.0.state(), whole.1), (orderer.state(), 0));
    assert_eq!(whole.0.settlements().count(), 3);
    for cut in [1, 9, 100, file.len() / 2, file.len() - 1] {
        let (mut torn, dropped) = Orderer::open(genesis(), key(1), &file[..cut]).unwrap();
        assert!(torn.state().height < 3);
        // What is left is a file to which more can be appended.
        let mut rest = file[..cut - dropped as usize].to_vec();
        step(&mut torn, amid(EPOCH), role(1, &[]));
        let claim = sound(&key(0), &key(1), 9_999, 10, Epoch(5));
        let out = step(&mut torn, amid(Epoch(6)), Input::OwnClaim { epoch: Epoch(5), claim: Some(claim) });
        rest.extend(persisted(&out));
        assert_eq!(Orderer::open(genesis(), key(1), &rest).unwrap().0.state(), torn.state());
    }
    let mut rotten = file.clone();
    rotten[40] ^= 1;
    assert!(matches!(Orderer::open(genesis(), key(1), &rotten), Err(OpenFault::Rotten { index: 0, .. })));
    let mut other = genesis();
    other.name.push('2');
    assert!(matches!(Orderer::open(other, key(1), &file), Err(OpenFault::Block { index: 1, .. })));
    let block_only = crate::record::scan(&file).records[1].clone();
    let orphan = crate::record::frame(&file[block_only]);
    assert!(matches!(Orderer::open(genesis(), key(1), &orphan), Err(OpenFault::LostClaim { index: 0 })));
}

#[test]
fn any_bytes_from_anyone_are_survived() {
    let (orderer, file) = settled_alone(0, &[0]);
    let state = orderer.state().clone();
    for seed in 0..400_u64 {
        let mut bytes = Digest::of(&seed.to_le_bytes()).0.repeat(1 + seed as usize % 5);
        bytes[0] = seed as u8 % 11;
        for mut orderer in [
            Orderer::open(genesis(), key(0), &[]).unwrap().0,
            Orderer::open(genesis(), key(1), &[]).unwrap().0,
        ] {
            step(&mut orderer, amid(Epoch(2)), role(0, &[2, 3]));
            step(&mut orderer, amid(Epoch(2)), Input::Message { from: node(&key(2)), bytes: bytes.clone() });
            step(&mut orderer, amid(Epoch(2)), Input::Message { from: node(&key(0)), bytes: bytes.clone() });
            assert_eq!(orderer.state().height, 0);
        }
    }
    assert_eq!(Orderer::open(genesis(), key(0), &file).unwrap().0.state(), &state);
}
