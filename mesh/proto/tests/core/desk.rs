//! A coordinator's office in a test's hands: agent 1 is in office, agents 2 and up are hands, agent 3 owns the
//! jobs.
//!
//! Must never sleep: time is a number.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names the one variant that it expects")]

use skein_proto::ids::{Digest, JobId, LeaseId, Millis, NodeId, Term};
use skein_proto::job::JobSpec;
use skein_proto::lease::{End, Lease, Pace, Receipt};
use skein_proto::message::{JobStatus, Message};
use skein_proto::office::{Letter, Office};
use skein_proto::placement::Hand;
use skein_proto::signed::{Envelope, Signed};

use crate::fixture;

pub(crate) struct Desk {
    pub(crate) office: Office,
    pub(crate) hands: Vec<Hand>,
    pub(crate) now: u64,
    pub(crate) letters: Vec<Letter>,
}

impl Desk {
    pub(crate) fn new(hands: &[u8]) -> Self {
        let mut office = Office::new(fixture::network(), fixture::key(1), Term(5));
        for &hand in hands {
            office.links_told(fixture::id(hand), Vec::new());
        }
        let hands = hands.iter().map(|&hand| fixture::hand(fixture::id(hand))).collect();
        Self { office, hands, now: 1_000, letters: Vec::new() }
    }

    pub(crate) fn submit(&mut self, spec: JobSpec) -> JobId {
        let job = Signed::new(spec, &fixture::network(), &fixture::key(3));
        self.office.submit(&job, None).unwrap();
        JobId(job.digest().0)
    }

    pub(crate) fn pass(&mut self, ms: u64) {
        self.now += ms;
        let members: Vec<NodeId> = self.hands.iter().map(|hand| hand.worker.node).collect();
        self.office.tick(Millis(self.now), &members, &self.hands, &mut self.letters);
    }

    /// The leases granted since last asked.
    pub(crate) fn granted(&mut self) -> Vec<Envelope<Lease>> {
        self.letters
            .extract_if(.., |(_, message)| matches!(message, Message::Grant { .. }))
            .filter_map(|(_, message)| match message {
                Message::Grant { lease, .. } => Some(lease),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn released(&mut self) -> Vec<LeaseId> {
        let of = |(_, message): &Letter| match message {
            Message::Release(lease) => Some(*lease),
            _ => None,
        };
        self.letters.iter().filter_map(of).collect()
    }

    /// What the owner was told last.
    pub(crate) fn status(&self) -> &JobStatus {
        let told = self.letters.iter().rev().find_map(|(_, message)| match message {
            Message::Job(status) => Some(status),
            _ => None,
        });
        told.unwrap()
    }

    pub(crate) fn finish(&mut self, lease: &Envelope<Lease>, end: End, output: &[u8]) -> Message {
        let receipt = receipt(lease, end, output);
        self.office.receipt(Millis(self.now), &receipt, &mut self.letters)
    }
}

/// The receipt of `lease`, signed by its agent.
pub(crate) fn receipt(lease: &Envelope<Lease>, end: End, output: &[u8]) -> Signed<Receipt> {
    let statement = lease.unverified();
    let receipt = Receipt {
        lease: lease.clone(),
        end,
        outputs: vec![Digest::of(output)],
        units: statement.units,
        ..fixture::receipt()
    };
    let signer = (1..=8).find(|&number| fixture::id(number) == statement.agent).unwrap();
    Signed::new(receipt, &fixture::network(), &fixture::key(signer))
}

pub(crate) fn accepted(message: &Message) -> bool {
    matches!(message, Message::Accepted(_))
}

pub(crate) fn agent(lease: &Envelope<Lease>) -> NodeId {
    lease.unverified().agent
}

pub(crate) fn pace(done: u32, of: u32) -> Pace {
    Pace { done, of, loss_micronats: None }
}
