//! Bytes over the mesh in this calendar month, kept over restarts: some lines are paid by the gigabyte.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limits::TRAFFIC_SAVED_EVERY_MS;

/// The count, and where it is kept.
pub(crate) struct Traffic {
    path: PathBuf,
    counted: Counted,
    /// Bytes since the agent's start that are in the count.
    seen: u64,
    saved_at_ms: u64,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Counted {
    /// Months since January 1970, in UTC.
    month: u32,
    bytes: u64,
}

impl Traffic {
    /// The count as it was last kept; from zero if there is none.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("traffic.json");
        let kept = std::fs::read(&path).ok();
        let counted = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, counted, seen: 0, saved_at_ms: 0 }
    }

    /// The bytes of this month, when `total` bytes went over the mesh since the agent's start.
    pub(crate) fn count(&mut self, now_ms: u64, total: u64) -> u64 {
        let month = month(now_ms);
        if self.counted.month < month {
            self.counted.bytes = 0;
        }
        // A clock that is set back begins no new month, and one that was wrong does not hold off the next.
        self.counted.month = month;
        self.counted.bytes = self.counted.bytes.saturating_add(total.saturating_sub(self.seen));
        self.seen = total;
        if now_ms.abs_diff(self.saved_at_ms) >= TRAFFIC_SAVED_EVERY_MS {
            self.saved_at_ms = now_ms;
            self.save();
        }
        self.counted.bytes
    }

    /// Keeps the count; a disk that does not take it costs a count, not the agent.
    pub(crate) fn save(&self) {
        let bytes = serde_json::to_vec(&self.counted).unwrap_or_default();
        if let Err(error) = crate::identity::write_private(&self.path, &bytes) {
            tracing::warn!(%error, "cannot keep the count of this month's traffic");
        }
    }
}

/// Months since January 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn month(unix_ms: u64) -> u32 {
    let days = unix_ms / 86_400_000 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Counted from March, so that leap days come last.
    let months = era * 4_800 + year * 12 + (5 * of_year + 2) / 153 + 2;
    u32::try_from(months.saturating_sub(1_970 * 12)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_on_their_first_day() {
        assert_eq!(month(0), 0);
        assert_eq!(month(31 * 86_400_000 - 1), 0);
        assert_eq!(month(31 * 86_400_000), 1);
        // 2024-02-29 23:59:59.999 and a millisecond later.
        assert_eq!(month(1_709_251_199_999), 54 * 12 + 1);
        assert_eq!(month(1_709_251_200_000), 54 * 12 + 2);
        // 2026-11-23.
        assert_eq!(month(1_795_392_000_000), 56 * 12 + 10);
    }

    #[test]
    fn what_was_counted_survives_and_a_new_month_begins_at_zero() {
        let folder = tempfile::tempdir().unwrap();
        let november = 1_795_392_000_000;
        let mut traffic = Traffic::open(folder.path());
        assert_eq!(traffic.count(november, 1_000), 1_000);
        assert_eq!(traffic.count(november + 1, 1_500), 1_500);
        traffic.save();
        let mut again = Traffic::open(folder.path());
        assert_eq!(
            again.count(november + 2, 100),
            1_600,
            "a restart begins to count from zero, the month does not"
        );
        let december = november + 40 * 86_400_000;
        assert_eq!(again.count(december, 150), 50);
        assert_eq!(again.count(november, 200), 100, "the clock was set back");
        assert_eq!(again.count(december, 250), 50);
    }
}
