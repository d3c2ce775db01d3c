//! The chain that an orderer holds: blocks, their claims, the state after them; and its file.
//!
//! The file is append-only: claims, then the block that names them, or the height to which the chain was
//! rolled back. An auditor replays it with [`Held::open`] and needs nothing but the genesis. Must never
//! change the state without returning the bytes that record the change.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use skein_proto::genesis::Genesis;
use skein_proto::ids::{Digest, Epoch};
use skein_proto::signed::{Envelope, Signed, decode, encode};

use super::OpenFault;
use super::limits::PLACES_MAX;
use super::wire::{Place, Record};
use crate::block::Block;
use crate::chain::{Applied, BlockFault, Proposal, State};
use crate::claim::{CheckedClaim, Claim};
use crate::record;

/// A chain, its claims and the state after it.
pub(super) struct Held {
    genesis: Genesis,
    state: State,
    blocks: Vec<Entry>,
    claims: BTreeMap<Digest, Envelope<Claim>>,
}

struct Entry {
    block: Signed<Block>,
    digest: Digest,
    checked: Vec<CheckedClaim>,
}

impl Held {
    /// Replays a file, verifying everything anew. Also says how many bytes a crash left torn at its end.
    pub(super) fn open(genesis: Genesis, bytes: &[u8]) -> Result<(Self, u64, Vec<Applied>), OpenFault> {
        let state = State::new(&genesis);
        let mut held = Self { genesis, state, blocks: Vec::new(), claims: BTreeMap::new() };
        let scan = record::scan(bytes);
        let torn = bytes.len() - scan.good_bytes();
        if let Some(flaw) = scan.fault.filter(|flaw| !flaw.torn) {
            return Err(OpenFault::Rotten { index: flaw.index, offset: flaw.offset, why: flaw.why });
        }
        let mut done = Vec::new();
        let mut loose = BTreeMap::new();
        for (index, payload) in scan.records.into_iter().enumerate() {
            let payload = bytes.get(payload).unwrap_or_default();
            let record = decode(payload).map_err(|fault| OpenFault::Malformed { index, fault })?;
            match record {
                Record::Claim(claim) => {
                    loose.insert(claim.digest(), claim);
                }
                Record::Block(block) => {
                    let named = &block.unverified().claims;
                    let claims: Option<Vec<_>> = named.iter().map(|claim| loose.remove(claim)).collect();
                    let claims = claims.ok_or(OpenFault::LostClaim { index })?;
                    let (applied, _) = held
                        .apply(&block, claims)
                        .map_err(|fault| OpenFault::Block { index, fault: Box::new(fault) })?;
                    done.push(applied);
                    loose.clear();
                }
                Record::Rollback(height) => {
                    if height >= held.state.height {
                        return Err(OpenFault::Rollback { index, height, at: held.state.height });
                    }
                    held.roll_back(height)
                        .map_err(|fault| OpenFault::Block { index, fault: Box::new(fault) })?;
                    done.truncate(held.blocks.len());
                }
            }
        }
        Ok((held, torn as u64, done))
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    pub(super) fn end(&self) -> Place {
        Place { height: self.state.height, tip: self.state.tip }
    }

    /// Whether this chain goes through `place`.
    pub(super) fn goes_through(&self, place: Place) -> bool {
        self.at(place.height) == Some(place.tip)
    }

    /// The block that settled `epoch`, if one did.
    pub(super) fn settled(&self, epoch: Epoch) -> Option<&Block> {
        let index = self.blocks.binary_search_by_key(&epoch, |entry| entry.block.statement().epoch).ok()?;
        self.blocks.get(index).map(|entry| entry.block.statement())
    }

    /// The next block, of `claims`.
    pub(super) fn propose(
        &self,
        epoch: Epoch,
        claims: &[Envelope<Claim>],
        key: &SigningKey,
    ) -> Option<Proposal> {
        self.state.propose(&self.genesis, epoch, claims, key)
    }

    /// Applies a block with its claims, in its order; the bytes are to be appended to the file.
    pub(super) fn apply(
        &mut self,
        block: &Envelope<Block>,
        claims: Vec<Envelope<Claim>>,
    ) -> Result<(Applied, Vec<u8>), BlockFault> {
        let applied = self.state.apply(&self.genesis, block, &claims)?;
        let signed = block.clone().open(&self.genesis.network_id())?;
        let mut bytes = Vec::new();
        for claim in claims {
            let digest = claim.digest();
            bytes.extend(record::frame(&encode(&Record::Claim(claim.clone()))));
            self.claims.insert(digest, claim);
        }
        bytes.extend(record::frame(&encode(&Record::Block(block.clone()))));
        let entry = Entry { block: signed, digest: self.state.tip, checked: applied.claims.clone() };
        self.blocks.push(entry);
        Ok((applied, bytes))
    }

    /// Forgets the blocks above `height`; the bytes are to be appended to the file.
    pub(super) fn roll_back(&mut self, height: u64) -> Result<Vec<u8>, BlockFault> {
        let keep = usize::try_from(height).unwrap_or(usize::MAX).min(self.blocks.len());
        let mut state = State::new(&self.genesis);
        for entry in self.blocks.iter().take(keep) {
            state.apply_checked(&entry.block, entry.checked.clone())?;
        }
        self.state = state;
        for entry in self.blocks.drain(keep..) {
            for claim in &entry.block.statement().claims {
                self.claims.remove(claim);
            }
        }
        Ok(record::frame(&encode(&Record::Rollback(height))))
    }

    /// Places of this chain from its end down, at doubling distances, the beginning last.
    pub(super) fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        let (mut height, mut step) = (self.state.height, 1);
        while height > 0 && places.len() + 1 < PLACES_MAX {
            places.extend(self.at(height).map(|tip| Place { height, tip }));
            height = height.saturating_sub(step);
            if places.len() >= 4 {
                step *= 2;
            }
        }
        places.extend(self.at(0).map(|tip| Place { height: 0, tip }));
        places
    }

    /// The blocks that follow the highest of `places` that this chain goes through.
    pub(super) fn following(&self, places: &[Place]) -> impl Iterator<Item = &Envelope<Block>> {
        let common = places.iter().filter(|place| self.goes_through(**place)).map(|place| place.height).max();
        let from = common.and_then(|height| usize::try_from(height).ok()).unwrap_or(usize::MAX);
        self.blocks.iter().skip(from).map(|entry| entry.block.envelope())
    }

    /// The blocks above `height`, each with its claims.
    pub(super) fn above(&self, height: u64) -> Vec<(Envelope<Block>, Vec<Envelope<Claim>>)> {
        let from = usize::try_from(height).unwrap_or(usize::MAX);
        let with_claims = |entry: &Entry| {
            let named = entry.block.statement().claims.iter();
            let claims = named.filter_map(|claim| self.claims.get(claim).cloned()).collect();
            (entry.block.envelope().clone(), claims)
        };
        self.blocks.iter().skip(from).map(with_claims).collect()
    }

    pub(super) fn claim(&self, digest: &Digest) -> Option<&Envelope<Claim>> {
        self.claims.get(digest)
    }

    /// The digest at `height`.
    pub(super) fn at(&self, height: u64) -> Option<Digest> {
        match height.checked_sub(1) {
            None => Some(Digest(self.genesis.network_id().0)),
            Some(index) => self.blocks.get(usize::try_from(index).ok()?).map(|entry| entry.digest),
        }
    }
}
