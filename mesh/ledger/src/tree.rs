//! The Merkle tree of RFC 6962: roots, inclusion proofs, consistency proofs and their verification.
//!
//! A leaf is SHA-256(0x00 ‖ data), a node SHA-256(0x01 ‖ left ‖ right), so neither can pass for the
//! other. Proofs are verified by the algorithms of RFC 9162, sections 2.1.3.2 and 2.1.4.2. Must never
//! know what an entry means, and must never change a leaf once it is appended.

use sha2::{Digest as _, Sha256};

use crate::limits::PROOF_HASHES_MAX;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Why a proof was not believed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProof {
    /// The leaf cannot be in a tree of that size.
    #[error("entry {index} is not in a tree of {size} entries")]
    OutOfRange {
        /// The leaf, counted from 0.
        index: u64,
        /// Leaves in the tree.
        size: u64,
    },
    /// The older tree is larger than the newer.
    #[error("a tree of {old} entries is not an earlier state of one of {new}")]
    Shrinks {
        /// Leaves in the older tree.
        old: u64,
        /// Leaves in the newer tree.
        new: u64,
    },
    /// Too few or too many hashes for these sizes.
    #[error("the proof has {0} hashes, which is not what these sizes need")]
    Length(usize),
    /// The hashes lead elsewhere.
    #[error("the proof leads to root {computed}, not to {expected}")]
    Root {
        /// Where the proof leads, in hexadecimal.
        computed: String,
        /// What was to be proven, in hexadecimal.
        expected: String,
    },
}

/// The hash of a leaf that holds `data`.
pub fn leaf_hash(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// The hash of the node above `left` and `right`.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The root of the tree without leaves: SHA-256 of nothing.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// An append-only tree that keeps the hash of every complete subtree: 64 bytes a leaf, and no proof
/// needs more than O(log n) hashing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// `levels[k][i]` covers leaves `i·2^k .. (i+1)·2^k`; level 0 are the leaves.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// The tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leaves it has.
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// Adds a leaf by its [`leaf_hash`]. Costs one hash on average, log n at most.
    pub fn push(&mut self, leaf: Hash) {
        let mut carried = leaf;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let row = &mut self.levels[level];
            row.push(carried);
            if row.len() % 2 == 1 {
                break;
            }
            carried = node_hash(&row[row.len() - 2], &row[row.len() - 1]);
        }
    }

    /// The hash of leaf `index`.
    pub fn leaf(&self, index: u64) -> Option<&Hash> {
        self.levels.first()?.get(usize::try_from(index).ok()?)
    }

    /// The root over all leaves.
    pub fn root(&self) -> Hash {
        self.range(0, self.size())
    }

    /// The root as it was at `size` leaves; none when there are not so many.
    pub fn root_at(&self, size: u64) -> Option<Hash> {
        (size <= self.size()).then(|| self.range(0, size))
    }

    /// The proof that leaf `index` is in the tree of the first `size` leaves (RFC 6962, 2.1.1), from the
    /// leaf upwards. None when there is no such leaf or no such tree.
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        if index >= size || size > self.size() {
            return None;
        }
        let mut proof = Vec::new();
        let (mut start, mut end) = (0, size);
        while end - start > 1 {
            let middle = start + largest_power_below(end - start);
            if index < middle {
                proof.push(self.range(middle, end));
                end = middle;
            } else {
                proof.push(self.range(start, middle));
                start = middle;
            }
        }
        proof.reverse();
        Some(proof)
    }

    /// The proof that the tree of the first `old` leaves is a prefix of that of the first `new`
    /// (RFC 6962, 2.1.2). Empty for `old` 0 or equal to `new`; none when there are no such trees.
    pub fn consistency_proof(&self, old: u64, new: u64) -> Option<Vec<Hash>> {
        if old > new || new > self.size() {
            return None;
        }
        if old == 0 || old == new {
            return Some(Vec::new());
        }
        let mut proof = Vec::new();
        let (mut start, mut end) = (0, new);
        // Descend to the subtree that ends where the older tree ended.
        while old != end {
            let middle = start + largest_power_below(end - start);
            if old <= middle {
                proof.push(self.range(middle, end));
                end = middle;
            } else {
                proof.push(self.range(start, middle));
                start = middle;
            }
        }
        // The verifier knows the old root already when that subtree is the whole older tree.
        if start != 0 {
            proof.push(self.range(start, end));
        }
        proof.reverse();
        Some(proof)
    }

    /// The root over leaves `start..end`, where `start` is a multiple of the smallest power of two that
    /// is not below the number of leaves: every range that the RFC's recursion meets is such.
    fn range(&self, start: u64, end: u64) -> Hash {
        let count = end - start;
        if count == 0 {
            return empty_root();
        }
        if count.is_power_of_two() {
            let level = count.trailing_zeros();
            return self.levels[level as usize][(start >> level) as usize];
        }
        let middle = start + largest_power_below(count);
        node_hash(&self.range(start, middle), &self.range(middle, end))
    }
}

/// Verifies that `leaf` is entry `index` of the tree of `size` entries whose root is `root`.
///
/// # Errors
/// [`BadProof`] says how the proof fails.
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), BadProof> {
    if index >= size {
        return Err(BadProof::OutOfRange { index, size });
    }
    if proof.len() > PROOF_HASHES_MAX {
        return Err(BadProof::Length(proof.len()));
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(BadProof::Length(proof.len()));
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            skip_levels_without_sibling(&mut node, &mut last);
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(BadProof::Length(proof.len()));
    }
    same(&hash, root)
}

/// Verifies that the tree of `old` entries with `old_root` is a prefix of that of `new` entries with
/// `new_root`: nothing was changed, removed or reordered in between.
///
/// # Errors
/// [`BadProof`] says how the proof fails.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), BadProof> {
    if old > new {
        return Err(BadProof::Shrinks { old, new });
    }
    if proof.len() > PROOF_HASHES_MAX {
        return Err(BadProof::Length(proof.len()));
    }
    if old == 0 || old == new {
        if !proof.is_empty() {
            return Err(BadProof::Length(proof.len()));
        }
        let known = if old == 0 { empty_root() } else { *new_root };
        return same(&known, old_root);
    }
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    // When the older tree is one complete subtree, its root is where both sums begin.
    let mut hashes = proof.iter();
    let seed = if old.is_power_of_two() { Some(old_root) } else { hashes.next() };
    let Some(seed) = seed else { return Err(BadProof::Length(proof.len())) };
    let (mut old_hash, mut new_hash) = (*seed, *seed);
    for sibling in hashes {
        if last == 0 {
            return Err(BadProof::Length(proof.len()));
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            skip_levels_without_sibling(&mut node, &mut last);
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(BadProof::Length(proof.len()));
    }
    same(&old_hash, old_root)?;
    same(&new_hash, new_root)
}

/// The rightmost node of an incomplete tree is its own parent until it is a right child.
fn skip_levels_without_sibling(node: &mut u64, last: &mut u64) {
    while *node & 1 == 0 && *node != 0 {
        *node >>= 1;
        *last >>= 1;
    }
}

fn same(computed: &Hash, expected: &Hash) -> Result<(), BadProof> {
    if computed == expected {
        return Ok(());
    }
    Err(BadProof::Root { computed: hex::encode(computed), expected: hex::encode(expected) })
}

/// The largest power of two below `count`, which is at least 2.
fn largest_power_below(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The reference tree of the certificate-transparency project (merkletree tests): leaves and the
    /// root after each.
    const REFERENCE: [(&str, &str); 8] = [
        ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
        ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
        ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
        ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
        ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
        ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
        ("5051525354555657", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
        (
            "606162636465666768696a6b6c6d6e6f",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ),
    ];

    fn hash(text: &str) -> Hash {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    fn reference() -> Tree {
        let mut tree = Tree::new();
        for (leaf, _) in REFERENCE {
            tree.push(leaf_hash(&hex::decode(leaf).unwrap()));
        }
        tree
    }

    #[test]
    fn roots_of_the_reference_tree() {
        let tree = reference();
        assert_eq!(
            hex::encode(tree.root_at(0).unwrap()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for (size, (_, root)) in (1..).zip(REFERENCE) {
            assert_eq!(hex::encode(tree.root_at(size).unwrap()), root, "size {size}");
        }
        assert_eq!(tree.root_at(9), None);
    }

    #[test]
    fn published_proofs_of_the_reference_tree() {
        let tree = reference();
        let inclusion = [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ];
        assert_eq!(tree.inclusion_proof(0, 8), Some(inclusion.map(hash).to_vec()));
        assert_eq!(tree.consistency_proof(1, 8), Some(inclusion.map(hash).to_vec()));
        let consistency = [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ];
        assert_eq!(tree.consistency_proof(6, 8), Some(consistency.map(hash).to_vec()));
        let consistency = [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ];
        assert_eq!(tree.consistency_proof(2, 5), Some(consistency.map(hash).to_vec()));
    }

    #[test]
    fn every_proof_of_small_trees_verifies_and_no_altered_one_does() {
        let mut tree = Tree::new();
        for leaf in 0..20_u64 {
            tree.push(leaf_hash(&leaf.to_le_bytes()));
        }
        let other = leaf_hash(b"other");
        for new in 0..=20 {
            let root = tree.root_at(new).unwrap();
            for index in 0..new {
                let leaf = tree.leaf(index).unwrap();
                let proof = tree.inclusion_proof(index, new).unwrap();
                let verify = |leaf, index, proof: &[Hash]| verify_inclusion(leaf, index, new, proof, &root);
                assert_eq!(verify(leaf, index, &proof), Ok(()));
                assert!(verify(&other, index, &proof).is_err());
                assert!((0..new + 1).all(|wrong| wrong == index || verify(leaf, wrong, &proof).is_err()));
                each_altered(&proof, |bad| assert!(verify(leaf, index, bad).is_err()));
            }
            assert!(verify_inclusion(&other, new, new, &[], &root).is_err());
            assert_eq!(tree.inclusion_proof(new, new), None);
            for old in 0..=new {
                let old_root = tree.root_at(old).unwrap();
                let proof = tree.consistency_proof(old, new).unwrap();
                let verify =
                    |old_root, root, proof: &[Hash]| verify_consistency(old, old_root, new, root, proof);
                assert_eq!(verify(&old_root, &root, &proof), Ok(()), "{old} {new}");
                assert!(verify(&other, &root, &proof).is_err());
                assert!(old == 0 || verify(&old_root, &other, &proof).is_err());
                each_altered(&proof, |bad| assert!(verify(&old_root, &root, bad).is_err(), "{old} {new}"));
            }
        }
        assert_eq!(tree.consistency_proof(3, 21), None);
        assert_eq!(verify_consistency(2, &other, 1, &other, &[]), Err(BadProof::Shrinks { old: 2, new: 1 }));
    }

    /// Every hash flipped, one dropped, one added.
    fn each_altered(proof: &[Hash], check: impl Fn(&[Hash])) {
        for position in 0..proof.len() {
            let mut bad = proof.to_vec();
            bad[position][7] ^= 1;
            check(&bad);
            bad.remove(position);
            check(&bad);
        }
        for end in [0, proof.len()] {
            let mut bad = proof.to_vec();
            bad.insert(end, leaf_hash(b"extra"));
            check(&bad);
        }
    }

    /// The definition of RFC 6962, section 2.1, word for word.
    fn naive(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => empty_root(),
            [leaf] => leaf_hash(leaf),
            more => {
                let mut split = 1;
                while split * 2 < more.len() {
                    split *= 2;
                }
                node_hash(&naive(&more[..split]), &naive(&more[split..]))
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_recursive_definition(
            leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..200),
            picks in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let mut tree = Tree::new();
            leaves.iter().for_each(|leaf| tree.push(leaf_hash(leaf)));
            prop_assert_eq!(tree.root(), naive(&leaves));
            let new = picks.0.index(leaves.len() + 1);
            let old = picks.1.index(new + 1);
            let (old_root, new_root) = (naive(&leaves[..old]), naive(&leaves[..new]));
            let proof = tree.consistency_proof(old as u64, new as u64).unwrap();
            prop_assert_eq!(
                verify_consistency(old as u64, &old_root, new as u64, &new_root, &proof), Ok(())
            );
            if old < new {
                let proof = tree.inclusion_proof(old as u64, new as u64).unwrap();
                let leaf = leaf_hash(&leaves[old]);
                prop_assert_eq!(
                    verify_inclusion(&leaf, old as u64, new as u64, &proof, &new_root), Ok(())
                );
            }
        }

        #[test]
        fn nothing_made_up_panics(
            index in any::<u64>(), size in any::<u64>(),
            proof in prop::collection::vec(any::<Hash>(), 0..70),
        ) {
            let root = [7; 32];
            prop_assert!(verify_inclusion(&root, index, size, &proof, &root).is_err() || size == 1);
            let _ = verify_consistency(index, &root, size, &root, &proof);
        }
    }
}
