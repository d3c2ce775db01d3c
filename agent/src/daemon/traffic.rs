//! Bytes over the mesh in this calendar month, kept over restarts: some lines are paid by the gigabyte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limits::{
    TRAFFIC_MONTHS_MAX, TRAFFIC_SAVED_EVERY_MS, TRAFFIC_UNSAVED_BYTES_MAX, TRAFFIC_UNSAVED_MS_MAX,
};

/// The count, and where it is kept.
pub(crate) struct Traffic {
    path: PathBuf,
    counted: Counted,
    /// Bytes since the agent's start that are in the count.
    seen: u64,
    /// Bytes of the count that are not on the disk yet.
    unsaved: u64,
    saved_at_ms: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Counted {
    /// Months since January 1970, in UTC.
    month: u32,
    bytes: u64,
    /// What other months came to: a clock may say 1970 until somebody tells it the time, and then this month again.
    #[serde(default)]
    others: BTreeMap<u32, u64>,
}

impl Counted {
    /// Goes on with what was counted in that month before.
    fn turn_to(&mut self, month: u32) {
        if self.month == month {
            return;
        }
        let bytes = self.others.remove(&month).unwrap_or_default();
        let left = std::mem::replace(&mut self.bytes, bytes);
        if left > 0 {
            self.others.insert(self.month, left);
        }
        self.month = month;
        while self.others.len() > TRAFFIC_MONTHS_MAX {
            self.others.pop_first();
        }
    }
}

impl Traffic {
    /// The count as it was last kept; from zero if there is none.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("traffic.json");
        let kept = std::fs::read(&path).ok();
        let counted = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, counted, seen: 0, unsaved: 0, saved_at_ms: 0 }
    }

    /// The bytes of this month, when `total` bytes went over the mesh since the agent's start.
    pub(crate) fn count(&mut self, now_ms: u64, total: u64) -> u64 {
        self.counted.turn_to(month(now_ms));
        let more = total.saturating_sub(self.seen);
        self.counted.bytes = self.counted.bytes.saturating_add(more);
        self.seen = total;
        self.unsaved = self.unsaved.saturating_add(more);
        // Seldom, since a disk that sleeps is woken by it: an agent at rest says a little to its peers all the time.
        let many = self.unsaved >= TRAFFIC_UNSAVED_BYTES_MAX;
        let every_ms = if many { TRAFFIC_SAVED_EVERY_MS } else { TRAFFIC_UNSAVED_MS_MAX };
        if self.unsaved > 0 && now_ms.abs_diff(self.saved_at_ms) >= every_ms {
            self.saved_at_ms = now_ms;
            self.save();
        }
        self.counted.bytes
    }

    /// Keeps the count if there is anything new; a disk that does not take it costs a count, not the agent.
    pub(crate) fn save(&mut self) {
        if self.unsaved == 0 {
            return;
        }
        let bytes = serde_json::to_vec(&self.counted).unwrap_or_default();
        match crate::identity::write_private(&self.path, &bytes) {
            Ok(()) => self.unsaved = 0,
            Err(error) => tracing::warn!(%error, "cannot keep the count of this month's traffic"),
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
        assert_eq!(again.count(november, 200), 1_650, "the clock was set back, and November goes on");
        assert_eq!(again.count(december, 250), 100);
    }

    #[test]
    fn a_clock_that_says_1970_for_a_while_makes_nothing_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let november = 1_795_392_000_000;
        let mut traffic = Traffic::open(folder.path());
        assert_eq!(traffic.count(november, 9_000), 9_000);
        traffic.save();
        // It starts without a battery for its clock, and is ended before it is told the time.
        let mut lost = Traffic::open(folder.path());
        assert_eq!(lost.count(5_000, 10), 10);
        lost.save();
        let mut again = Traffic::open(folder.path());
        assert_eq!(again.count(6_000, 20), 30);
        assert_eq!(again.count(november, 120), 9_100);
        // Nor does a clock that runs wild fill the file with months.
        for number in 0..40 {
            again.count(number * 31 * 86_400_000, 121 + number);
        }
        assert_eq!(again.counted.others.len(), TRAFFIC_MONTHS_MAX);
        assert_eq!(again.count(november, 160), 9_100);
    }

    #[test]
    fn the_file_of_earlier_versions_is_read_and_they_read_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("traffic.json");
        let november = 1_795_392_000_000;
        std::fs::write(&path, r#"{"month":682,"bytes":7000}"#).unwrap();
        let mut traffic = Traffic::open(folder.path());
        assert_eq!(traffic.count(november, 5), 7_005);
        traffic.save();
        let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((kept["month"].as_u64(), kept["bytes"].as_u64()), (Some(682), Some(7_005)));
    }

    #[test]
    fn the_disk_is_left_alone_while_nothing_much_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("traffic.json");
        let mut now_ms = 1_795_392_000_000;
        let mut traffic = Traffic::open(folder.path());
        let mut is_written_at = |at_ms: u64, total: u64| {
            // A file that is not there any more tells whether it was written.
            let _ = std::fs::remove_file(&path);
            traffic.count(at_ms, total);
            path.exists()
        };
        assert!(!is_written_at(now_ms, 0));
        assert!(is_written_at(now_ms, 1), "the first bytes");
        now_ms += TRAFFIC_SAVED_EVERY_MS;
        assert!(!is_written_at(now_ms, 1_000), "a few bytes more");
        assert!(is_written_at(now_ms, TRAFFIC_UNSAVED_BYTES_MAX + 1_000), "many");
        assert!(!is_written_at(now_ms + 1, 3 * TRAFFIC_UNSAVED_BYTES_MAX), "many, but just now");
        now_ms += TRAFFIC_SAVED_EVERY_MS;
        assert!(is_written_at(now_ms, 3 * TRAFFIC_UNSAVED_BYTES_MAX));
        now_ms += 2 * TRAFFIC_UNSAVED_MS_MAX;
        assert!(!is_written_at(now_ms, 3 * TRAFFIC_UNSAVED_BYTES_MAX), "none");
        assert!(is_written_at(now_ms, 3 * TRAFFIC_UNSAVED_BYTES_MAX + 1), "the first since long");
    }
}
