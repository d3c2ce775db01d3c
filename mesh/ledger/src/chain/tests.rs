//! Tests of the state machine: equal for all, conserving, and deaf to every block that is not exact.

use proptest::prelude::*;
use skein_proto::ids::Units;

use super::*;
use crate::claim::fixture::{Story, genesis, key, node, signed, sound, unsigned};

fn claims(epoch: Epoch, workers: &[(u64, u64)]) -> Vec<Envelope<Claim>> {
    let claim = |(worker, tokens): &(u64, u64)| {
        sound(&key(0), &key(*worker), epoch.0 * 100 + worker, *tokens, epoch).into_envelope()
    };
    workers.iter().map(claim).collect()
}

fn propose(state: &State, epoch: Epoch, workers: &[(u64, u64)]) -> Proposal {
    state.propose(&genesis(), epoch, &claims(epoch, workers), &key(0)).unwrap()
}

/// A block with exactly these words and claims, signed by the proposer.
fn forged(proposal: &Proposal, change: impl FnOnce(&mut Block)) -> Envelope<Block> {
    let mut block = proposal.block.statement().clone();
    change(&mut block);
    Signed::new(block, &genesis().network_id(), &key(0)).into_envelope()
}

#[test]
fn proposer_and_followers_reach_the_same_state() {
    let (mut proposer, mut follower) = (State::new(&genesis()), State::new(&genesis()));
    for epoch in [0, 1, 4] {
        let epoch = Epoch(epoch);
        let proposal = propose(&proposer, epoch, &[(1, 30), (2, 10)]);
        for state in [&mut proposer, &mut follower] {
            let applied = state.apply(&genesis(), proposal.block.envelope(), &proposal.claims).unwrap();
            assert_eq!((applied.epoch, applied.minted), (epoch, emission::of_epoch(epoch)));
            assert_eq!(applied.payouts.values().map(|amount| amount.0).sum::<u64>(), applied.minted.0);
            let (big, small) = (applied.payouts[&node(&key(1))].0, applied.payouts[&node(&key(2))].0);
            assert!(big.abs_diff(3 * small) <= 3, "30 tokens earn three times as much as 10");
            assert_eq!(applied.proposer, node(&key(0)));
        }
    }
    assert_eq!(proposer, follower);
    assert_eq!((proposer.height, proposer.next_epoch), (3, Epoch(5)));
    let minted: u64 = [0, 1, 4].map(|epoch| emission::of_epoch(Epoch(epoch)).0).iter().sum();
    assert_eq!(proposer.minted, Amount(minted), "skipped epochs are never minted");
}

#[test]
fn the_order_of_arrival_does_not_matter() {
    let state = State::new(&genesis());
    let mut arrived = claims(Epoch(0), &[(1, 10), (2, 20), (3, 30)]);
    let first = state.propose(&genesis(), Epoch(0), &arrived, &key(0)).unwrap();
    arrived.reverse();
    assert_eq!(state.propose(&genesis(), Epoch(0), &arrived, &key(0)).unwrap(), first);
}

#[test]
fn a_proposal_drops_what_cannot_be_paid() {
    let state = State::new(&genesis());
    let mut inflated = Story::new(&key(0), &key(2), 7, 10, Epoch(0));
    inflated.accepted.0 += 1;
    let inflated = signed(&key(2), unsigned(&key(2), Epoch(0), &[inflated.pair()])).into_envelope();
    let mut arrived = claims(Epoch(0), &[(1, 10)]);
    arrived.extend([inflated.clone(), arrived[0].clone()]);
    arrived.extend(claims(Epoch(1), &[(3, 10)]));
    let proposal = state.propose(&genesis(), Epoch(0), &arrived, &key(0)).unwrap();
    assert_eq!(proposal.claims, arrived[..1]);
    assert_eq!(state.propose(&genesis(), Epoch(0), &[inflated], &key(0)), None);
    assert_eq!(state.propose(&genesis(), Epoch(0), &[], &key(0)), None);
}

#[test]
fn every_difference_is_refused_and_changes_nothing() {
    let mut state = State::new(&genesis());
    let first = propose(&state, Epoch(2), &[(1, 10)]);
    state.apply(&genesis(), first.block.envelope(), &first.claims).unwrap();
    let good = propose(&state, Epoch(3), &[(1, 10), (2, 20)]);
    let before = state.clone();
    let thief = node(&key(9));
    type Change = Box<dyn FnOnce(&mut Block)>;
    let changes: Vec<Change> = vec![
        Box::new(|block| block.height += 1),
        Box::new(|block| block.height = 0),
        Box::new(|block| block.previous = Digest([0; 32])),
        Box::new(|block| block.epoch = Epoch(2)),
        Box::new(|block| block.epoch = Epoch(4)),
        Box::new(|block| block.epoch = Epoch(u64::MAX)),
        Box::new(|block| block.claims.reverse()),
        Box::new(|block| block.claims.truncate(1)),
        Box::new(|block| block.claims.push(Digest([0; 32]))),
        Box::new(|block| block.payouts.reverse()),
        Box::new(|block| block.payouts[0].1.0 += 1),
        Box::new(move |block| block.payouts[0].0 = thief),
        Box::new(move |block| block.payouts.push((thief, Amount(0)))),
        Box::new(|block| block.minted.0 += 1),
        Box::new(|block| block.minted.0 -= 1),
        Box::new(|block| block.state = Digest([0; 32])),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let bad = forged(&good, change);
        assert!(state.apply(&genesis(), &bad, &good.claims).is_err(), "change {index}");
        assert_eq!(state, before, "change {index}");
    }
    assert!(state.apply(&genesis(), good.block.envelope(), &good.claims[..1]).is_err());
    let mut bytes = encode(good.block.envelope());
    *bytes.last_mut().unwrap() ^= 1;
    let unsigned: Envelope<Block> = skein_proto::signed::decode(&bytes).unwrap();
    let refused = state.apply(&genesis(), &unsigned, &good.claims);
    assert!(matches!(refused, Err(BlockFault::Signature(_))));
    assert_eq!(state, before);
    state.apply(&genesis(), good.block.envelope(), &good.claims).unwrap();
    assert!(state.apply(&genesis(), good.block.envelope(), &good.claims).is_err(), "twice");
}

#[test]
fn a_block_that_recomputes_but_holds_bad_claims_is_refused() {
    let state = State::new(&genesis());
    let epoch = Epoch(0);
    let good = propose(&state, epoch, &[(1, 10)]);
    let refuse = |claims: Vec<Envelope<Claim>>| {
        let block = forged(&good, |block| block.claims = claims.iter().map(Envelope::digest).collect());
        state.clone().apply(&genesis(), &block, &claims).unwrap_err()
    };
    let twice = vec![good.claims[0].clone(), good.claims[0].clone()];
    assert!(matches!(refuse(twice), BlockFault::Unpayable { index: 1, fault: Unpayable::Paid { .. } }));
    let mut ordered = propose(&state, epoch, &[(1, 10), (2, 10)]).claims;
    ordered.reverse();
    assert!(matches!(refuse(ordered), BlockFault::Unpayable { index: 1, fault: Unpayable::Order(_) }));
    let early = claims(Epoch(1), &[(1, 10)]);
    assert!(matches!(refuse(early), BlockFault::Unpayable { fault: Unpayable::OtherEpoch { .. }, .. }));
    assert_eq!(refuse(vec![]), BlockFault::NoWork);
    let mut stolen = Story::new(&key(0), &key(1), 1, 10, epoch);
    stolen.accepter = key(1);
    let stolen = signed(&key(1), unsigned(&key(1), epoch, &[stolen.pair()])).into_envelope();
    assert!(matches!(refuse(vec![stolen]), BlockFault::Claim { index: 0, .. }));
}

#[test]
fn a_lease_accepted_twice_is_paid_once() {
    let mut state = State::new(&genesis());
    let story = Story::new(&key(0), &key(1), 1, 10, Epoch(0));
    let claim =
        |story: &Story, epoch| signed(&key(1), unsigned(&key(1), epoch, &[story.pair()])).into_envelope();
    let first = state.propose(&genesis(), Epoch(0), &[claim(&story, Epoch(0))], &key(0)).unwrap();
    state.apply(&genesis(), first.block.envelope(), &first.claims).unwrap();
    for later in [Epoch(1), Epoch(LEASE_EPOCHS_MAX)] {
        let mut again = story.clone();
        again.accepted_at = genesis().epoch_start(later);
        let again = claim(&again, later);
        let checked = claim::check(&again, &genesis()).unwrap();
        assert!(matches!(state.payable(&checked, later), Err(Unpayable::Paid { .. })));
        assert_eq!(state.propose(&genesis(), later, &[again], &key(0)), None);
        // Even after the longest pause in which it could still be paid.
        let other = propose(&state, Epoch(later.0 - 1).max(state.next_epoch), &[(2, 10)]);
        if other.block.statement().epoch < later {
            state.apply(&genesis(), other.block.envelope(), &other.claims).unwrap();
        }
    }
}

#[test]
fn paid_leases_are_remembered_as_long_as_they_could_be_paid_and_no_longer() {
    let mut state = State::new(&genesis());
    let lease = LeaseId([1; 32]);
    let claim = |epoch, leases: &[LeaseId]| CheckedClaim {
        node: node(&key(1)),
        epoch,
        units: Units(1),
        leases: leases.iter().copied().collect(),
    };
    // Granted in epoch 1, it is payable from epoch 0 to 1 + LEASE_EPOCHS_MAX.
    state = state.after(Epoch(0), &[claim(Epoch(0), &[lease])]).unwrap().state;
    let last = Epoch(1 + LEASE_EPOCHS_MAX);
    state = state.after(Epoch(last.0 - 1), &[claim(Epoch(last.0 - 1), &[])]).unwrap().state;
    assert!(state.payable(&claim(last, &[lease]), last).is_err());
    state = state.after(last, &[claim(last, &[])]).unwrap().state;
    assert!(state.paid.is_empty());
}

#[test]
fn golden_state_digest() {
    // A change of this digest is a change of the protocol: every ledger so far would be refused.
    let state = State::new(&genesis());
    let empty = [vec![0; 8 + 8 + 4 + 8 + 4]].concat();
    assert_eq!(state.digest(), Digest::of(&empty));
}

proptest! {
    #[test]
    fn conservation_holds_whatever_is_settled(
        steps in prop::collection::vec((0_u64..3_000, prop::collection::btree_map(0_u64..6, 1_u64.., 0..6)), 1..12)
    ) {
        let mut state = State::new(&genesis());
        let mut minted = 0;
        let mut lease = 0_u64;
        for (skip, work) in steps {
            let epoch = Epoch(state.next_epoch.0 + skip);
            let mut checked: Vec<CheckedClaim> = work
                .iter()
                .map(|(worker, units)| {
                    lease += 1;
                    let lease = LeaseId(Digest::of(&lease.to_le_bytes()).0);
                    let node = NodeId(Digest::of(&worker.to_le_bytes()).0);
                    CheckedClaim { node, epoch, units: Units(*units), leases: [lease].into() }
                })
                .collect();
            checked.sort_by_key(|claim| claim.node);
            match state.after(epoch, &checked) {
                Ok(after) => {
                    prop_assert_eq!(after.minted, emission::of_epoch(epoch));
                    minted += after.minted.0;
                    prop_assert_eq!(after.state.next_epoch, Epoch(epoch.0 + 1));
                    state = after.state;
                }
                Err(fault) => {
                    prop_assert!(work.is_empty(), "{}", fault);
                    prop_assert_eq!(fault, BlockFault::NoWork);
                }
            }
            prop_assert_eq!(state.minted, Amount(minted));
            prop_assert_eq!(state.balances.values().map(|amount| amount.0).sum::<u64>(), minted);
            prop_assert!(state.after(Epoch(state.next_epoch.0.wrapping_sub(1)), &checked).is_err());
        }
    }
}
