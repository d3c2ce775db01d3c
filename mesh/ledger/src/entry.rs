//! Entries of an agent's log, and what must hold for each before it may stand there.
//!
//! An entry is a receipt by the log's owner, or a coordinator's acceptance of a receipt that stands
//! earlier in the same log. Entries hold digests, never payloads, so they stay small. Must never let the
//! same receipt, or a second acceptance of it, into a log: each piece of work stands there once.

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};
use skein_proto::ids::{Digest, LeaseId, NetworkId, NodeId, Units};
use skein_proto::lease::{Acceptance, Receipt};
use skein_proto::signed::{Envelope, Forged, Malformed, decode, encode};

use crate::limits::ENTRY_BYTES_MAX;

/// What a log holds. Encoded by Borsh; the variants' order is part of the format.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "receipts are as common as acceptances, so boxing saves nothing"
)]
pub enum Entry {
    /// What the owner of the log executed.
    Receipt(Envelope<Receipt>),
    /// The coordinator's word that it will be paid.
    Acceptance(Envelope<Acceptance>),
}

/// Why an entry may not stand in a log. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// Too large for any log that other tools read.
    #[error("it has {0} bytes; the limit is {ENTRY_BYTES_MAX}")]
    TooLong(usize),
    /// Not an entry at all.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A key or signature in it is bad.
    #[error(transparent)]
    Forged(#[from] Forged),
    /// The receipt was signed by an agent whose log this is not.
    #[error("the receipt is signed by {0}, not by the log's owner")]
    ForeignReceipt(NodeId),
    /// The lease in the receipt, or the acceptance, names an agent whose log this is not.
    #[error("it names agent {0}, not the log's owner")]
    ForeignAgent(NodeId),
    /// The receipt stands in the log already.
    #[error("receipt {0} stands in the log already")]
    ReceiptTwice(Digest),
    /// The acceptance is about a receipt that does not stand before it.
    #[error("it accepts receipt {0}, which does not stand before it in the log")]
    UnknownReceipt(Digest),
    /// The receipt was accepted already.
    #[error("receipt {0} is accepted already")]
    AcceptedTwice(Digest),
    /// The acceptance names another lease than its receipt.
    #[error("it names lease {named}, but its receipt is under lease {held}")]
    OtherLease {
        /// The lease that the acceptance names.
        named: LeaseId,
        /// The lease in the receipt.
        held: LeaseId,
    },
    /// The acceptance was not signed by the coordinator that granted the lease.
    #[error("it is signed by {signer}, but the lease was granted by {coordinator}")]
    NotCoordinator {
        /// Who signed the acceptance.
        signer: NodeId,
        /// Who signed the lease.
        coordinator: NodeId,
    },
    /// The acceptance grants more work than the receipt states.
    #[error("it accepts {accepted} units of work where the receipt states {stated}")]
    TooMuchWork {
        /// Units in the acceptance.
        accepted: Units,
        /// Units in the receipt.
        stated: Units,
    },
}

impl Entry {
    /// The canonical bytes: the data of its Merkle leaf and the payload of its record.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads an entry from exactly `bytes`. Believes nothing in it.
    ///
    /// # Errors
    /// [`BadEntry::TooLong`] or [`BadEntry::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEntry> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(BadEntry::TooLong(bytes.len()));
        }
        Ok(decode(bytes)?)
    }

    /// Checks what can be seen in the entry alone: every signature on `network`, and that it belongs in
    /// the log of `owner`.
    ///
    /// # Errors
    /// [`BadEntry`] names the first thing wrong.
    pub fn check(&self, owner: &NodeId, network: &NetworkId) -> Result<(), BadEntry> {
        match self {
            Self::Receipt(envelope) => {
                if envelope.signer() != *owner {
                    return Err(BadEntry::ForeignReceipt(envelope.signer()));
                }
                let receipt = envelope.clone().open(network)?;
                let lease = receipt.statement().lease.clone().open(network)?;
                belongs_to(lease.statement().agent, owner)
            }
            Self::Acceptance(envelope) => {
                let acceptance = envelope.clone().open(network)?;
                belongs_to(acceptance.statement().agent, owner)
            }
        }
    }
}

fn belongs_to(agent: NodeId, owner: &NodeId) -> Result<(), BadEntry> {
    if agent == *owner { Ok(()) } else { Err(BadEntry::ForeignAgent(agent)) }
}

/// What the receipts of a log are waiting for: enough to judge the next entry by those before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ties {
    receipts: BTreeMap<Digest, Tie>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tie {
    lease: LeaseId,
    coordinator: NodeId,
    units: Units,
    accepted: bool,
}

impl Ties {
    /// Takes the next entry, if it fits those before it. Looks at no signature.
    pub(crate) fn tie(&mut self, entry: &Entry) -> Result<(), BadEntry> {
        match entry {
            Entry::Receipt(envelope) => {
                let digest = envelope.digest();
                if self.receipts.contains_key(&digest) {
                    return Err(BadEntry::ReceiptTwice(digest));
                }
                let receipt = envelope.unverified();
                let tie = Tie {
                    lease: receipt.lease.unverified().id(),
                    coordinator: receipt.lease.signer(),
                    units: receipt.units,
                    accepted: false,
                };
                self.receipts.insert(digest, tie);
                Ok(())
            }
            Entry::Acceptance(envelope) => {
                let acceptance = envelope.unverified();
                let digest = acceptance.receipt;
                let tie = self.receipts.get_mut(&digest).ok_or(BadEntry::UnknownReceipt(digest))?;
                if acceptance.lease != tie.lease {
                    return Err(BadEntry::OtherLease { named: acceptance.lease, held: tie.lease });
                }
                let (signer, coordinator) = (envelope.signer(), tie.coordinator);
                if signer != coordinator {
                    return Err(BadEntry::NotCoordinator { signer, coordinator });
                }
                let (accepted, stated) = (acceptance.units, tie.units);
                if accepted > stated {
                    return Err(BadEntry::TooMuchWork { accepted, stated });
                }
                if tie.accepted {
                    return Err(BadEntry::AcceptedTwice(digest));
                }
                tie.accepted = true;
                Ok(())
            }
        }
    }

    /// Forgets `entry`, the latest that was tied.
    pub(crate) fn untie(&mut self, entry: &Entry) {
        match entry {
            Entry::Receipt(envelope) => {
                self.receipts.remove(&envelope.digest());
            }
            Entry::Acceptance(envelope) => {
                if let Some(tie) = self.receipts.get_mut(&envelope.unverified().receipt) {
                    tie.accepted = false;
                }
            }
        }
    }
}

/// A network with one coordinator and one agent, and what they sign, for the tests of this crate.
#[cfg(test)]
pub(crate) mod samples {
    use ed25519_dalek::SigningKey;
    use skein_proto::ids::{JobId, Millis, Term};
    use skein_proto::job::{Method, Shard, TrainSize, TrainSpec};
    use skein_proto::lease::{End, Fence, Lease};
    use skein_proto::signed::Signed;

    use super::*;
    use crate::log::Log;

    pub(crate) const NETWORK: NetworkId = NetworkId([0xab; 32]);

    pub(crate) fn agent() -> SigningKey {
        SigningKey::from_bytes(&[1; 32])
    }

    pub(crate) fn coordinator() -> SigningKey {
        SigningKey::from_bytes(&[2; 32])
    }

    pub(crate) fn id_of(key: &SigningKey) -> NodeId {
        NodeId(key.verifying_key().to_bytes())
    }

    pub(crate) fn receipt(sequence: u64) -> Receipt {
        let size = TrainSize {
            layers: 2,
            width: 64,
            feed_width: 176,
            heads: 2,
            vocabulary: 256,
            weights: 100_000,
            resident: 100_000,
            trained: 100_000,
        };
        let spec = TrainSpec {
            model: Digest([7; 32]),
            size,
            method: Method::Full,
            data: Digest([4; 32]),
            context: 64,
            rounds: 1,
            inner_steps: 1,
            batch: 1,
            learning_rate_millionths: 1,
            outer_rate_millionths: 1,
            outer_momentum_millionths: 1,
            seed: 9,
            delta_bits: 4,
            check_millionths: 0,
        };
        let lease = Lease {
            job: JobId([3; 32]),
            shard: Shard::Init { spec, judge: true },
            agent: id_of(&agent()),
            worker: 0,
            fence: Fence { term: Term(5), sequence },
            granted_at: Millis(1_000),
            ttl_ms: 15_000,
            units: Units(70),
        };
        Receipt {
            lease: Signed::new(lease, &NETWORK, &coordinator()).into_envelope(),
            end: End::Completed,
            started_at: Millis(1_100),
            finished_at: Millis(1_900),
            inputs: vec![Digest([4; 32])],
            outputs: vec![Digest([6; 32])],
            tokens: 11,
            received_bytes: 12,
            units: Units(70),
            loss_micronats: Some(-8),
        }
    }

    pub(crate) fn acceptance(receipt: &Envelope<Receipt>) -> Acceptance {
        Acceptance {
            receipt: receipt.digest(),
            lease: receipt.unverified().lease.unverified().id(),
            agent: id_of(&agent()),
            units: Units(70),
            accepted_at: Millis(2_000),
        }
    }

    pub(crate) fn sign_receipt(receipt: Receipt) -> Envelope<Receipt> {
        Signed::new(receipt, &NETWORK, &agent()).into_envelope()
    }

    pub(crate) fn sign_acceptance(acceptance: Acceptance) -> Envelope<Acceptance> {
        Signed::new(acceptance, &NETWORK, &coordinator()).into_envelope()
    }

    /// Whose log the samples stand in.
    pub(crate) fn node() -> NodeId {
        id_of(&agent())
    }

    /// A log of these entries, its file, and where each record ends in it.
    pub(crate) fn written(entries: Vec<Entry>) -> (Log, Vec<u8>, Vec<usize>) {
        let mut log = Log::new(NETWORK, node());
        let mut file = log.header_bytes();
        let mut ends = Vec::new();
        for entry in entries {
            file.extend(log.append(vec![entry]).unwrap().bytes);
            ends.push(file.len());
        }
        (log, file, ends)
    }

    /// Receipt, acceptance, receipt, acceptance, … of `pieces` pieces of work.
    pub(crate) fn entries(pieces: u64) -> Vec<Entry> {
        (1..=pieces)
            .flat_map(|sequence| {
                let receipt = sign_receipt(receipt(sequence));
                let acceptance = sign_acceptance(acceptance(&receipt));
                [Entry::Receipt(receipt), Entry::Acceptance(acceptance)]
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::samples::*;
    use super::*;
    use skein_proto::signed::Signed;

    fn check(entry: &Entry) -> Result<(), BadEntry> {
        entry.check(&id_of(&agent()), &NETWORK)
    }

    #[test]
    fn golden_encodings() {
        // Frozen: Merkle leaves are made of these bytes.
        let entries = entries(1);
        let golden: Vec<&str> = include_str!("../tests/golden/entries.hex").lines().collect();
        assert_eq!(entries.iter().map(|entry| hex::encode(entry.encode())).collect::<Vec<_>>(), golden);
        for entry in &entries {
            assert_eq!(Entry::decode(&entry.encode()).as_ref(), Ok(entry));
        }
    }

    #[test]
    fn an_entry_is_read_whole_and_within_its_bound() {
        let mut bytes = entries(1)[0].encode();
        bytes.push(0);
        assert!(matches!(Entry::decode(&bytes), Err(BadEntry::Malformed(_))));
        assert!(matches!(Entry::decode(&[2]), Err(BadEntry::Malformed(_))));
        assert_eq!(Entry::decode(&[0; 65_536]), Err(BadEntry::TooLong(65_536)));
    }

    #[test]
    fn honest_entries_pass() {
        let mut ties = Ties::default();
        for entry in entries(3) {
            assert_eq!(check(&entry), Ok(()));
            assert_eq!(ties.tie(&entry), Ok(()));
        }
    }

    #[test]
    fn every_flipped_byte_breaks_a_signature() {
        for entry in entries(1) {
            let bytes = entry.encode();
            for position in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[position] ^= 1 << (position % 8);
                let refused = Entry::decode(&bad).and_then(|entry| check(&entry));
                assert!(refused.is_err(), "byte {position}");
            }
        }
    }

    #[test]
    fn strangers_do_not_stand_in_my_log() {
        let by_stranger = Signed::new(receipt(1), &NETWORK, &coordinator()).into_envelope();
        let stranger = id_of(&coordinator());
        assert_eq!(check(&Entry::Receipt(by_stranger)), Err(BadEntry::ForeignReceipt(stranger)));
        let mut lease = receipt(1).lease.unverified().clone();
        lease.agent = stranger;
        let mut borrowed = receipt(1);
        borrowed.lease = Signed::new(lease, &NETWORK, &coordinator()).into_envelope();
        assert_eq!(check(&Entry::Receipt(sign_receipt(borrowed))), Err(BadEntry::ForeignAgent(stranger)));
        // A lease that the coordinator never signed, in a receipt that the agent did sign.
        let mut bytes = encode(&receipt(1).lease);
        *bytes.last_mut().unwrap() ^= 1;
        let mut invented = receipt(1);
        invented.lease = decode(&bytes).unwrap();
        assert!(matches!(check(&Entry::Receipt(sign_receipt(invented))), Err(BadEntry::Forged(_))));
        let mut other = acceptance(&sign_receipt(receipt(1)));
        other.agent = stranger;
        assert_eq!(check(&Entry::Acceptance(sign_acceptance(other))), Err(BadEntry::ForeignAgent(stranger)));
        let entry = Entry::Receipt(sign_receipt(receipt(1)));
        let elsewhere = entry.check(&id_of(&agent()), &NetworkId([0; 32]));
        assert!(matches!(elsewhere, Err(BadEntry::Forged(_))));
    }

    #[test]
    fn an_acceptance_must_match_its_receipt() {
        let mut ties = Ties::default();
        let receipt = sign_receipt(receipt(1));
        let good = acceptance(&receipt);
        let entry = |acceptance| Entry::Acceptance(sign_acceptance(acceptance));
        let unknown = BadEntry::UnknownReceipt(receipt.digest());
        assert_eq!(ties.tie(&entry(good.clone())), Err(unknown));
        assert_eq!(ties.tie(&Entry::Receipt(receipt.clone())), Ok(()));
        let twice = BadEntry::ReceiptTwice(receipt.digest());
        assert_eq!(ties.tie(&Entry::Receipt(receipt.clone())), Err(twice));

        let named = LeaseId([0; 32]);
        let other_lease = ties.tie(&entry(Acceptance { lease: named, ..good.clone() }));
        assert_eq!(other_lease, Err(BadEntry::OtherLease { named, held: good.lease }));
        let greedy = ties.tie(&entry(Acceptance { units: Units(71), ..good.clone() }));
        assert_eq!(greedy, Err(BadEntry::TooMuchWork { accepted: Units(71), stated: Units(70) }));
        let by_agent = Entry::Acceptance(Signed::new(good.clone(), &NETWORK, &agent()).into_envelope());
        let (signer, coordinator) = (id_of(&agent()), id_of(&coordinator()));
        assert_eq!(ties.tie(&by_agent), Err(BadEntry::NotCoordinator { signer, coordinator }));

        assert_eq!(ties.tie(&entry(good.clone())), Ok(()));
        let again = Acceptance { units: Units(69), ..good.clone() };
        assert_eq!(ties.tie(&entry(again)), Err(BadEntry::AcceptedTwice(receipt.digest())));
        ties.untie(&entry(good.clone()));
        assert_eq!(ties.tie(&entry(good)), Ok(()));
    }
}
