//! When an automatic check is due: once a day, each node at its own time of day.
//!
//! Pure: no clock, no files. The node's id decides the time, so that a server is asked evenly over the day and a
//! restart asks no sooner.

use sha2::{Digest as _, Sha256};

/// One day in milliseconds.
pub const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The node's own time of day, in milliseconds after midnight UTC.
pub fn time_of_day_ms(node_id: &[u8]) -> u64 {
    let digest = Sha256::new().chain_update(b"skein update time").chain_update(node_id).finalize();
    let bytes: [u8; 8] = std::array::from_fn(|index| digest[index]);
    u64::from_be_bytes(bytes) % DAY_MS
}

/// Whether a check is due now. A machine that was off at its time checks when it is back; a last check that lies
/// in the future means that the clock was wrong, and counts as none.
pub fn is_due(last_check_ms: Option<u64>, node_id: &[u8], now_ms: u64) -> bool {
    next_check_ms(last_check_ms, node_id, now_ms) <= now_ms
}

/// When the next check is due, in milliseconds since 1970; not after `now_ms` means at once.
pub fn next_check_ms(last_check_ms: Option<u64>, node_id: &[u8], now_ms: u64) -> u64 {
    match last_check_ms {
        Some(last) if last <= now_ms => {
            let today = last / DAY_MS * DAY_MS + time_of_day_ms(node_id);
            if today > last { today } else { today + DAY_MS }
        }
        _ => now_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_392_000_000;

    #[test]
    fn once_a_day_at_the_nodes_own_time() {
        for seed in 0..50_u8 {
            let node = [seed; 32];
            let mut last = None;
            let mut checks = Vec::new();
            // Ten days in steps of ten minutes.
            for step in 0..1440 {
                let now = NOW + step * 600_000;
                if is_due(last, &node, now) {
                    checks.push(now);
                    last = Some(now);
                }
            }
            assert!((10..=11).contains(&checks.len()), "node {seed}: {} checks", checks.len());
            for now in &checks[1..] {
                let late = (now % DAY_MS + DAY_MS - time_of_day_ms(&node)) % DAY_MS;
                assert!(late < 600_000, "node {seed} checks {late} ms after its time");
            }
        }
    }

    #[test]
    fn nodes_spread_over_the_day() {
        let mut hours = [0; 24];
        for seed in 0..2400_u32 {
            hours[usize::try_from(time_of_day_ms(&seed.to_be_bytes()) / 3_600_000).unwrap()] += 1;
        }
        assert!(hours.iter().all(|&count| (50..=150).contains(&count)), "{hours:?}");
    }

    #[test]
    fn odd_clocks() {
        let node = [7; 32];
        assert!(is_due(None, &node, NOW), "never checked");
        assert!(!is_due(Some(NOW), &node, NOW), "just checked");
        assert!(is_due(Some(NOW - 3 * DAY_MS), &node, NOW), "was off for days");
        assert!(is_due(Some(NOW + 1), &node, NOW), "the clock was in the future");
        let next = next_check_ms(Some(NOW), &node, NOW);
        assert!(next > NOW && next <= NOW + DAY_MS);
    }
}
