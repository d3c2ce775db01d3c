//! The division of one epoch's emission among those who worked, in proportion to their work.
//!
//! Each is paid the floor of its exact share; the base units left over go one each to the largest
//! remainders (Hamilton's method), ties to the smaller node id. So the sum is exact, and whoever has the
//! work table gets the same payments. Must never use floats, and never create or lose a base unit.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use skein_proto::ids::{NodeId, Units};

use crate::emission::Amount;

/// Divides `emission` in proportion to `work`. The payments sum to exactly `emission`; nobody without
/// work is listed. Empty when nobody worked: then nothing is paid.
pub fn settle(emission: Amount, work: &BTreeMap<NodeId, Units>) -> BTreeMap<NodeId, Amount> {
    let workers = || work.iter().filter(|(_, units)| units.0 > 0);
    // 2^64 summands below 2^64 fit 128 bits, and so does a product of two 64-bit numbers.
    let total: u128 = workers().map(|(_, units)| u128::from(units.0)).sum();
    let mut payments = BTreeMap::new();
    let mut remainders = Vec::new();
    let mut left = emission.0;
    for (node, units) in workers() {
        let share = u128::from(emission.0) * u128::from(units.0);
        // At most `emission`, because no one's work exceeds the total.
        let floor = (share / total) as u64;
        payments.insert(*node, Amount(floor));
        remainders.push((Reverse(share % total), *node));
        left -= floor;
    }
    // Fewer units are left than there are remainders above zero, since each is below one unit.
    remainders.sort_unstable();
    for (_, node) in remainders.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        if let Some(payment) = payments.get_mut(node) {
            payment.0 += 1;
        }
    }
    payments
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(units: &[u64]) -> BTreeMap<NodeId, Units> {
        units.iter().enumerate().map(|(index, units)| (node(index), Units(*units))).collect()
    }

    fn node(index: usize) -> NodeId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(index as u64).to_be_bytes());
        NodeId(id)
    }

    fn paid(emission: u64, units: &[u64]) -> Vec<u64> {
        settle(Amount(emission), &table(units)).values().map(|amount| amount.0).collect()
    }

    #[test]
    fn known_divisions() {
        assert_eq!(paid(100, &[1, 1, 1]), [34, 33, 33], "a tie goes to the smaller id");
        assert_eq!(paid(100, &[1, 1, 2]), [25, 25, 50]);
        assert_eq!(paid(10, &[15, 16, 17]), [3, 3, 4], "3.125 3.333 3.542");
        assert_eq!(paid(2, &[1, 3, 3]), [0, 1, 1]);
        assert_eq!(paid(0, &[1, 2]), [0, 0]);
        assert_eq!(paid(7, &[0, 5, 0]), [7], "who did not work is not listed");
        assert_eq!(paid(7, &[0, 0]), [0; 0]);
        assert_eq!(paid(7, &[]), [0; 0]);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        assert_eq!(paid(u64::MAX, &[u64::MAX]), [u64::MAX]);
        assert_eq!(paid(u64::MAX, &[u64::MAX; 5]), [u64::MAX / 5; 5]);
        assert_eq!(paid(u64::MAX, &[u64::MAX, 1]), [u64::MAX - 1, 1]);
    }

    fn units() -> impl Strategy<Value = Vec<u64>> {
        let one = prop_oneof![0..4_u64, 0..1_000_000_u64, any::<u64>()];
        prop::collection::vec(one, 1..40)
    }

    fn emission() -> impl Strategy<Value = u64> {
        prop_oneof![0..100_u64, Just(456_621_004_566), any::<u64>()]
    }

    proptest! {
        #[test]
        fn the_sum_is_exact_and_each_is_within_a_unit_of_its_share(
            emission in emission(), units in units(),
        ) {
            let total: u128 = units.iter().map(|units| u128::from(*units)).sum();
            prop_assume!(total > 0);
            let payments = settle(Amount(emission), &table(&units));
            let sum: u128 = payments.values().map(|amount| u128::from(amount.0)).sum();
            prop_assert_eq!(sum, u128::from(emission));
            for (index, units) in units.iter().enumerate() {
                let exact = u128::from(emission) * u128::from(*units) / total;
                let paid = payments.get(&node(index)).map_or(0, |amount| u128::from(amount.0));
                prop_assert!(paid == exact || paid == exact + 1);
            }
        }

        #[test]
        fn arrival_order_does_not_matter(
            emission in emission(), units in units(),
            swaps in prop::collection::vec(any::<(usize, usize)>(), 40),
        ) {
            let mut arrivals: Vec<(NodeId, Units)> = table(&units).into_iter().collect();
            for (a, b) in swaps {
                let length = arrivals.len();
                arrivals.swap(a % length, b % length);
            }
            let shuffled = arrivals.into_iter().collect();
            prop_assert_eq!(settle(Amount(emission), &shuffled), settle(Amount(emission), &table(&units)));
        }

        #[test]
        fn more_work_never_pays_less(
            emission in emission(), units in units(),
            who in any::<prop::sample::Index>(), more in any::<u64>(),
        ) {
            let before = settle(Amount(emission), &table(&units));
            let who = who.index(units.len());
            let mut grown = units.clone();
            grown[who] = grown[who].saturating_add(more);
            let after = settle(Amount(emission), &table(&grown));
            prop_assert!(after.get(&node(who)) >= before.get(&node(who)));
            for a in 0..units.len() {
                for b in 0..units.len() {
                    prop_assert!(units[a] <= units[b] || before.get(&node(a)) >= before.get(&node(b)));
                }
            }
        }

        #[test]
        fn splitting_an_identity_gains_at_most_a_base_unit_a_piece(
            emission in emission(), units in units(), cuts in prop::collection::vec(any::<u64>(), 1..6),
        ) {
            let whole = settle(Amount(emission), &table(&units));
            let whole = whole.get(&node(0)).map_or(0, |amount| amount.0);
            let mut pieces = Vec::new();
            let mut left = units[0];
            for cut in &cuts {
                let piece = cut % left.saturating_add(1).max(1);
                pieces.push(piece);
                left -= piece;
            }
            pieces.push(left);
            let count = pieces.len() as u64;
            let mut split = units.clone();
            split[0] = 0;
            let first_piece = split.len();
            split.extend(pieces);
            let payments = settle(Amount(emission), &table(&split));
            let sum: u64 = (first_piece..split.len())
                .map(|index| payments.get(&node(index)).map_or(0, |amount| amount.0))
                .sum();
            prop_assert!(sum <= whole.saturating_add(count), "{sum} {whole}");
        }
    }
}
