//! Tests of claims: what is assembled is accepted, and every forgery is refused for its own reason.

use proptest::prelude::*;
use skein_proto::ids::{Digest, Millis};

use super::fixture::{EPOCH_MS, Story, UNITS, genesis, key, node, signed, sound, unsigned};
use super::*;

const EPOCH: Epoch = Epoch(3);

fn story() -> Story {
    Story::new(&key(0), &key(1), 1, 10, EPOCH)
}

/// What is said about a claim over this one story.
fn fault(story: &Story) -> WorkFault {
    let claim = signed(&story.worker, unsigned(&story.worker, EPOCH, &[story.pair()]));
    match check(claim.envelope(), &genesis()) {
        Err(ClaimFault::Work { index: 0, fault }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sound_claim_is_believed() {
    let claim = sound(&key(0), &key(1), 1, 10, EPOCH);
    let checked = check(claim.envelope(), &genesis()).unwrap();
    assert_eq!((checked.node, checked.epoch), (node(&key(1)), EPOCH));
    assert_eq!(checked.units, Units(10 * UNITS));
    assert_eq!(checked.leases, BTreeSet::from([story().lease.id()]));
}

#[test]
fn units_are_bounded_by_acceptance_receipt_and_lease() {
    let mut inflated = story();
    inflated.accepted = Units(inflated.stated.0 + 1);
    assert!(matches!(fault(&inflated), WorkFault::Inflated { .. }), "above the receipt");
    inflated.stated = Units(u64::MAX);
    assert!(matches!(fault(&inflated), WorkFault::Inflated { .. }), "above the lease's tokens");
    let mut inflated = story();
    inflated.lease.units = Units(UNITS + 1);
    (inflated.stated, inflated.accepted) = (Units(10 * UNITS + 1), Units(10 * UNITS + 1));
    assert!(matches!(fault(&inflated), WorkFault::Inflated { .. }), "above the shard's arithmetic");
    let mut nothing = story();
    nothing.accepted = Units(0);
    assert_eq!(fault(&nothing), WorkFault::NoUnits);
}

#[test]
fn only_the_granter_accepts() {
    let mut foreign = story();
    foreign.accepter = key(2);
    assert!(matches!(fault(&foreign), WorkFault::ForeignAcceptance { .. }));
}

#[test]
fn only_the_leased_node_is_paid() {
    let mut other = story();
    other.lease.agent = node(&key(2));
    assert!(matches!(fault(&other), WorkFault::ForeignReceipt { .. }), "leased to another");
    let stolen = signed(&key(2), unsigned(&key(2), EPOCH, &[story().pair()]));
    let refused = check(stolen.envelope(), &genesis());
    assert!(matches!(refused, Err(ClaimFault::Work { fault: WorkFault::ForeignReceipt { .. }, .. })));
    let named = signed(&key(2), unsigned(&key(1), EPOCH, &[story().pair()]));
    assert!(matches!(check(named.envelope(), &genesis()), Err(ClaimFault::ForeignClaim { .. })));
}

#[test]
fn only_completed_work_is_paid() {
    for end in [End::Failed, End::Cancelled, End::Expired] {
        let mut failed = story();
        failed.end = end;
        assert_eq!(fault(&failed), WorkFault::NotCompleted(end));
    }
}

#[test]
fn the_acceptance_must_be_about_this_receipt() {
    let network = genesis().network_id();
    let change = |change: fn(&mut Acceptance)| {
        let mut word = story().acceptance();
        change(&mut word);
        let acceptance = Signed::new(word, &network, &key(0)).into_envelope();
        let claim = signed(&key(1), unsigned(&key(1), EPOCH, &[(story().receipt(), acceptance)]));
        check(claim.envelope(), &genesis())
    };
    assert!(change(|_| ()).is_ok());
    for bad in [
        change(|word| word.receipt = Digest([0; 32])),
        change(|word| word.lease = LeaseId([0; 32])),
        change(|word| word.agent = NodeId([0; 32])),
    ] {
        assert!(matches!(bad, Err(ClaimFault::Work { fault: WorkFault::OtherReceipt(_), .. })), "{bad:?}");
    }
}

#[test]
fn the_epoch_is_that_of_the_acceptance_to_the_millisecond() {
    let start = genesis().epoch_start(EPOCH);
    for (at, good) in [
        (Millis(start.0 - 1), false),
        (start, true),
        (start.plus(EPOCH_MS - 1), true),
        (start.plus(EPOCH_MS), false),
    ] {
        let mut story = story();
        story.accepted_at = at;
        let claim = signed(&story.worker, unsigned(&story.worker, EPOCH, &[story.pair()]));
        assert_eq!(check(claim.envelope(), &genesis()).is_ok(), good, "accepted at {at}");
    }
    let mut early = Story::new(&key(0), &key(1), 1, 10, Epoch(0));
    early.accepted_at = Millis(0);
    let claim = signed(&early.worker, unsigned(&early.worker, Epoch(0), &[early.pair()]));
    assert!(check(claim.envelope(), &genesis()).is_err(), "accepted before genesis");
}

#[test]
fn old_leases_are_not_paid() {
    let epoch = Epoch(LEASE_EPOCHS_MAX + 5);
    for (granted, good) in [(Epoch(4), false), (Epoch(5), true), (Epoch(epoch.0 + 1), true)] {
        let mut story = Story::new(&key(0), &key(1), 1, 10, epoch);
        story.lease.granted_at = genesis().epoch_start(granted);
        let claim = signed(&story.worker, unsigned(&story.worker, epoch, &[story.pair()]));
        assert_eq!(check(claim.envelope(), &genesis()).is_ok(), good, "granted in {granted}");
    }
}

#[test]
fn a_lease_counts_once() {
    let (first, mut again) = (story(), story());
    again.accepted_at = again.accepted_at.plus(1);
    let claim = signed(&key(1), unsigned(&key(1), EPOCH, &[first.pair(), again.pair()]));
    let lease = first.lease.id();
    assert_eq!(check(claim.envelope(), &genesis()), Err(ClaimFault::DuplicateLease(lease)));
}

#[test]
fn what_is_not_logged_is_not_paid() {
    let second = Story::new(&key(0), &key(1), 2, 10, EPOCH);
    let good = unsigned(&key(1), EPOCH, &[story().pair(), second.pair()]);
    assert!(check(signed(&key(1), good.clone()).envelope(), &genesis()).is_ok());
    let changed = |change: &dyn Fn(&mut Claim)| {
        let mut claim = good.clone();
        change(&mut claim);
        check(signed(&key(1), claim).envelope(), &genesis())
    };
    type Change = dyn Fn(&mut Claim);
    let unlogged: [&Change; 5] = [
        &|claim| claim.work[0].receipt_index = 2,
        &|claim| claim.work[1].acceptance_index = u64::MAX,
        &|claim| claim.work[0].receipt_proof[0][5] ^= 1,
        &|claim| claim.work[0].acceptance_proof.clear(),
        &|claim| {
            (claim.work[0].receipt, claim.work[0].acceptance) =
                Story::new(&key(0), &key(1), 3, 10, EPOCH).pair()
        },
    ];
    for change in unlogged {
        let refused = changed(change);
        assert!(
            matches!(refused, Err(ClaimFault::Work { fault: WorkFault::NotLogged { .. }, .. })),
            "{refused:?}"
        );
    }
    let long = changed(&|claim| claim.work[0].receipt_proof = vec![[0; 32]; PROOF_HASHES_MAX + 1]);
    assert!(matches!(long, Err(ClaimFault::Work { fault: WorkFault::LongProof { .. }, .. })));
    let foreign = unsigned(&key(2), EPOCH, &[story().pair()]).checkpoint;
    let foreign = changed(&|claim| claim.checkpoint.clone_from(&foreign));
    assert!(matches!(foreign, Err(ClaimFault::Checkpoint(_))), "{foreign:?}");
    let long = changed(&|claim| claim.checkpoint = "x".repeat(NOTE_BYTES_MAX + 1));
    assert!(matches!(long, Err(ClaimFault::LongCheckpoint { .. })));
    assert_eq!(changed(&|claim| claim.work.clear()), Err(ClaimFault::Empty));
}

#[test]
fn another_networks_claim_is_refused() {
    let claim = sound(&key(0), &key(1), 1, 10, EPOCH);
    let mut other = genesis();
    other.name.push('2');
    assert!(matches!(check(claim.envelope(), &other), Err(ClaimFault::Signature(_))));
}

fn log_of(stories: &[Story]) -> Log {
    let mut log = Log::new(genesis().network_id(), node(&key(1)));
    for story in stories {
        let (receipt, acceptance) = story.pair();
        log.append(vec![Entry::Receipt(receipt), Entry::Acceptance(acceptance)]).unwrap();
    }
    log
}

#[test]
fn assembles_exactly_the_accepted_work_of_the_epoch() {
    let mut failed = Story::new(&key(0), &key(1), 5, 10, EPOCH);
    failed.end = End::Failed;
    let stories = [
        story(),
        Story::new(&key(0), &key(1), 2, 20, Epoch(EPOCH.0 - 1)),
        Story::new(&key(0), &key(1), 3, 30, Epoch(EPOCH.0 + 1)),
        Story::new(&key(9), &key(1), 4, 40, EPOCH),
        failed,
    ];
    let mut log = log_of(&stories);
    let waiting = Story::new(&key(0), &key(1), 6, 50, EPOCH).receipt();
    log.append(vec![Entry::Receipt(waiting)]).unwrap();
    let claim = assemble(&log, EPOCH, &genesis(), &key(1)).unwrap();
    let checked = check(claim.envelope(), &genesis()).unwrap();
    assert_eq!(checked.units, Units(50 * UNITS));
    assert_eq!(checked.leases, BTreeSet::from([stories[0].lease.id(), stories[3].lease.id()]));
    assert_eq!(assemble(&log, Epoch(9), &genesis(), &key(1)), None);
}

#[test]
fn a_lease_accepted_again_later_is_claimed_for_its_first_epoch_only() {
    let (first, mut again) = (story(), story());
    again.accepted_at = genesis().epoch_start(Epoch(EPOCH.0 + 1));
    let log = log_of(&[first, again]);
    assert!(assemble(&log, EPOCH, &genesis(), &key(1)).is_some());
    assert_eq!(assemble(&log, Epoch(EPOCH.0 + 1), &genesis(), &key(1)), None);
}

#[test]
fn a_claim_never_outgrows_a_frame() {
    // Receipts with many inputs, so that few pieces fill the claim.
    let network = genesis().network_id();
    let mut log = Log::new(network, node(&key(1)));
    for sequence in 0..40 {
        let story = Story::new(&key(0), &key(1), sequence, 10, EPOCH);
        let mut receipt = story.receipt().unverified().clone();
        receipt.inputs = vec![Digest([1; 32]); 1_000];
        let receipt = Signed::new(receipt, &network, &key(1)).into_envelope();
        let mut word = story.acceptance();
        word.receipt = receipt.digest();
        let acceptance = Signed::new(word, &network, &key(0)).into_envelope();
        log.append(vec![Entry::Receipt(receipt), Entry::Acceptance(acceptance)]).unwrap();
    }
    let claim = assemble(&log, EPOCH, &genesis(), &key(1)).unwrap();
    let bytes = encode(claim.envelope()).len();
    assert!(bytes <= CLAIM_BYTES_MAX && bytes > CLAIM_BYTES_MAX - 40_000, "{bytes} bytes");
    let places: Vec<u64> = claim.statement().work.iter().map(|work| work.receipt_index).collect();
    let expected: Vec<u64> = (0..places.len() as u64).map(|place| 2 * place).collect();
    assert_eq!(places, expected, "the first come first");
    assert!(check(claim.envelope(), &genesis()).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_flipped_bit_survives(position in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let claim = sound(&key(0), &key(1), 1, 10, EPOCH);
        let mut bytes = encode(claim.envelope());
        let position = position.index(bytes.len());
        bytes[position] ^= 1 << bit;
        if let Ok(changed) = skein_proto::signed::decode::<Envelope<Claim>>(&bytes) {
            prop_assert!(check(&changed, &genesis()).is_err());
        }
    }
}
