//! The emission of the reward policy `io`: how much each epoch pays, in exact integers.
//!
//! 500,000,000 coins exist at genesis. The first hour pays A = 500,000,000 × 8 % ÷ 8760 coins, each
//! further hour q = 1 − 0.0000138869523959793 times the one before, so h hours pay A·(1 − qʰ)/(1 − q),
//! until 300,000,000 coins are reached in hour 175,319. Cumulative amounts are floored to base units and
//! an hour pays the difference of two of them, so no base unit is ever lost to rounding. Must never use
//! floats: two builds that differ in one base unit are two networks.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use num_bigint::BigUint;
use serde::{Deserialize, Serialize};
use skein_proto::ids::Epoch;

/// An amount of coins in base units of 10⁻⁸ coin.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct Amount(pub u64);

/// Base units in one coin.
pub const COIN: u64 = 100_000_000;
/// What exists at genesis.
pub const GENESIS_SUPPLY: Amount = Amount(500_000_000 * COIN);
/// What all epochs together pay.
pub const EMISSION_CAP: Amount = Amount(300_000_000 * COIN);
/// What can ever exist.
pub const CAP: Amount = Amount(GENESIS_SUPPLY.0 + EMISSION_CAP.0);
/// After so many hours everything is paid; the last of them is clamped.
pub const EMISSION_HOURS: u64 = 175_319;

/// A = FIRST_HOUR_PARTS ÷ HOURS_PER_YEAR base units: 8 % of the genesis supply, spread over a year.
const FIRST_HOUR_PARTS: u64 = GENESIS_SUPPLY.0 / 100 * 8;
const HOURS_PER_YEAR: u64 = 8_760;
/// 1 − q = DECAY_PARTS ÷ DECAY_SCALE.
const DECAY_PARTS: u64 = 138_869_523_959_793;
const DECAY_SCALE: u64 = 10_000_000_000_000_000_000;
/// Fraction bits of the first attempt: 55 for the integer part's error, some 6 for 36 roundings, and the
/// rest guards the floor.
const FRACTION_BITS: u64 = 192;

impl Amount {
    /// The sum; none when it does not fit, which no amount within [`CAP`] can cause.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference; none when `other` is larger.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
}

impl fmt::Display for Amount {
    /// Coins with all eight decimals and no separators: `4566.21004566`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{:08}", self.0 / COIN, self.0 % COIN))
    }
}

/// What the first `hours` epochs pay together.
pub fn cumulative(hours: u64) -> Amount {
    if hours == 0 {
        return Amount(0);
    }
    if hours >= EMISSION_HOURS {
        return EMISSION_CAP;
    }
    // Ends: for hours > 0 the exact value is never an integer. Its denominator keeps the 3 · 73 of 8760
    // in hour 1, and later a power of ten, because the numerator of q ends in 7. So bounds that
    // are close enough floor equally.
    let mut bits = FRACTION_BITS;
    loop {
        let (low, high) = bounds(hours, bits);
        if low == high
            && let Ok(paid) = u64::try_from(low)
        {
            return Amount(paid).min(EMISSION_CAP);
        }
        bits *= 2;
    }
}

/// What `epoch` pays to all agents together.
pub fn of_epoch(epoch: Epoch) -> Amount {
    let (before, after) = (cumulative(epoch.0), cumulative(epoch.0.saturating_add(1)));
    Amount(after.0.saturating_sub(before.0))
}

/// The floors of a lower and an upper bound of A·(1 − qʰ)/(1 − q), unclamped, in base units, computed
/// with `bits` fraction bits.
fn bounds(hours: u64, bits: u64) -> (BigUint, BigUint) {
    let one = BigUint::from(1_u8) << bits;
    let (power_low, power_high) = power(hours, bits);
    let floor = |power: BigUint| -> BigUint {
        let paid = (&one - power) * FIRST_HOUR_PARTS * DECAY_SCALE;
        (paid / (BigUint::from(HOURS_PER_YEAR) * DECAY_PARTS)) >> bits
    };
    (floor(power_high), floor(power_low))
}

/// A lower and an upper bound of qʰ as fixed-point numbers with `bits` fraction bits, by squaring.
fn power(hours: u64, bits: u64) -> (BigUint, BigUint) {
    let one = BigUint::from(1_u8) << bits;
    let ratio = BigUint::from(DECAY_SCALE - DECAY_PARTS) << bits;
    let mut square = (&ratio / DECAY_SCALE, round_up_division(&ratio, DECAY_SCALE));
    let mut power = (one.clone(), one);
    let mut left = hours;
    while left > 0 {
        if left & 1 == 1 {
            power = ((&power.0 * &square.0) >> bits, round_up_shift(&power.1 * &square.1, bits));
        }
        left >>= 1;
        square = ((&square.0 * &square.0) >> bits, round_up_shift(&square.1 * &square.1, bits));
    }
    power
}

fn round_up_division(dividend: &BigUint, divisor: u64) -> BigUint {
    (dividend + (divisor - 1)) / divisor
}

fn round_up_shift(value: BigUint, bits: u64) -> BigUint {
    (value + ((BigUint::from(1_u8) << bits) - 1_u8)) >> bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_row_of_the_golden_file() {
        let rows = include_str!("../tests/golden/emission.csv").lines();
        let mut checked = 0;
        for row in rows.filter(|row| row.starts_with(|c: char| c.is_ascii_digit())) {
            let (hours, amount) = row.split_once(',').unwrap();
            assert_eq!(cumulative(hours.parse().unwrap()), Amount(amount.parse().unwrap()), "{hours} hours");
            checked += 1;
        }
        assert_eq!(checked, 37);
    }

    #[test]
    fn the_cap_is_reached_in_the_last_hour_and_not_before() {
        let cap = BigUint::from(EMISSION_CAP.0);
        assert!(bounds(EMISSION_HOURS, FRACTION_BITS).0 >= cap, "the last hour is clamped");
        assert!(bounds(EMISSION_HOURS - 1, FRACTION_BITS).1 < cap, "the hour before is not");
        assert_eq!(cumulative(EMISSION_HOURS), EMISSION_CAP);
        assert_eq!(of_epoch(Epoch(EMISSION_HOURS)), Amount(0));
        assert_eq!(of_epoch(Epoch(u64::MAX)), Amount(0));
        assert_eq!(CAP, Amount(800_000_000 * COIN));
    }

    /// Below the 192 bits used, so that raising the precision is seen to change nothing.
    #[test]
    fn bounds_close_in_on_one_value() {
        for hours in [1, 2, 3, 1_000, 100_000, 175_318] {
            let (low, high) = bounds(hours, 80);
            let exact = BigUint::from(cumulative(hours).0);
            assert!(low <= exact && exact <= high, "{hours} hours: {low} {high}");
            let (low, high) = bounds(hours, 2 * FRACTION_BITS);
            assert_eq!((&low, &high), (&exact, &exact), "{hours} hours");
        }
        assert_ne!(bounds(100_000, 60).0, bounds(100_000, 60).1, "60 bits are too few: the bounds show it");
    }

    #[test]
    fn the_first_hours_in_coins() {
        let hours: Vec<String> = (0..3).map(|hour| of_epoch(Epoch(hour)).to_string()).collect();
        assert_eq!(hours, ["4566.21004566", "4566.14663492", "4566.08322506"]);
        assert_eq!(format!("[{:>12}]", Amount(1)), "[  0.00000001]");
    }

    proptest! {
        #[test]
        fn grows_by_less_each_hour_and_sums_to_the_difference(
            hour in 0..EMISSION_HOURS - 2, hours in 0..100_u64,
        ) {
            // Flooring can make two neighbours differ by one base unit either way.
            let (this, next) = (of_epoch(Epoch(hour)), of_epoch(Epoch(hour + 1)));
            prop_assert!(this.0 + 1 >= next.0 && next.0 > 0);
            let sum: u64 = (hour..hour + hours).map(|hour| of_epoch(Epoch(hour)).0).sum();
            prop_assert_eq!(Amount(cumulative(hour).0 + sum), cumulative(hour + hours));
        }
    }
}
