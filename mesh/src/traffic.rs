//! Counts bytes, and holds bulk streams back where the owner's line is to stay free.
//!
//! Control frames are counted and never held back: they are what keeps leases and jobs alive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{BLOB_FETCH_SHARE_BYTES, BLOB_FETCHES_LIMITED_MIN, BLOB_SERVE_SHARE_BYTES};
use crate::turns::Turns;

/// What may pass at once before a limit is felt, in time: packets come in bursts.
const BURST: Duration = Duration::from_millis(100);
/// A stream has this part of a second's bytes at a time, so that none waits long for the others...
const PIECES_A_SECOND: u64 = 64;
/// ...but no less than fills a packet...
const PIECE_BYTES_MIN: u64 = 1 << 10;
/// ...and no more than this.
const PIECE_BYTES_MAX: u64 = 64 << 10;

/// Bytes that passed this agent, and the limit that is set for them.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Payload: control frames and bulk streams together.
    sent: AtomicU64,
    received: AtomicU64,
    /// What the socket sent and received for it.
    on_line: AtomicU64,
    /// Bytes a second, in each direction; 0 is no limit.
    rate: AtomicU64,
    upwards: Mutex<Option<Instant>>,
    downwards: Mutex<Option<Instant>>,
    /// Blobs that are sent.
    pub(crate) serving: Arc<Turns>,
    /// Blobs that are fetched.
    pub(crate) fetching: Arc<Turns>,
}

impl Traffic {
    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_on_line(&self, bytes: usize) {
        self.on_line.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Waits until the line may carry so many bytes more of a bulk stream. Nobody's fault but the limit's: this wait
    /// belongs outside of any time that a peer is given.
    pub(crate) async fn before_sending(&self, bytes: usize) {
        self.hold_back(&self.upwards, bytes).await;
    }

    /// Likewise, behind what came; what is not read is not sent for long, because QUIC controls its flow.
    pub(crate) async fn after_receiving(&self, bytes: usize) {
        self.hold_back(&self.downwards, bytes).await;
    }

    /// Bytes that a bulk stream best writes or reads at a time.
    pub(crate) fn piece(&self) -> usize {
        piece(self.rate.load(Ordering::Relaxed))
    }

    pub(crate) fn on_line(&self) -> u64 {
        self.on_line.load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes a second for all bulk streams together, in each direction.
    pub(crate) fn limit(&self, bytes_per_s: Option<u64>) {
        let rate = bytes_per_s.unwrap_or(0);
        self.rate.store(rate, Ordering::Relaxed);
        let at_once = |share: u64, least: usize| match rate {
            0 => usize::MAX,
            rate => usize::try_from(rate / share).unwrap_or(usize::MAX).max(least),
        };
        self.serving.limit(at_once(BLOB_SERVE_SHARE_BYTES, 1));
        self.fetching.limit(at_once(BLOB_FETCH_SHARE_BYTES, BLOB_FETCHES_LIMITED_MIN));
    }

    async fn hold_back(&self, direction: &Mutex<Option<Instant>>, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let rate = self.rate.load(Ordering::Relaxed);
            if rate == 0 {
                return;
            }
            // By pieces, so that other streams get in between those of a large frame.
            let bytes = left.min(piece(rate));
            left -= bytes;
            let wait = {
                let mut free_at = direction.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                #[expect(clippy::cast_precision_loss, reason = "of a duration")]
                let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
                let then = free_at.unwrap_or(now).max(now) + takes;
                *free_at = Some(then);
                then.saturating_duration_since(now + BURST)
            };
            if !wait.is_zero() {
                smol::Timer::after(wait).await;
            }
        }
    }
}

fn piece(rate: u64) -> usize {
    match rate {
        0 => usize::MAX,
        rate => (rate / PIECES_A_SECOND).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX) as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{
        BLOB_RATE_BYTES_MIN, BLOB_RATE_WINDOW, BLOB_STALL_TIMEOUT, BLOB_TAKE_TIMEOUT, BLOB_TURN_WORD_EVERY,
        CONNECTION_WINDOW_BYTES, LIMIT_BYTES_MIN, STREAM_WINDOW_BYTES,
    };

    #[test]
    fn the_slowest_limit_gives_nobody_up() {
        let traffic = Traffic::default();
        traffic.limit(Some(LIMIT_BYTES_MIN));
        let (serving, fetching) = (traffic.serving.at_once(), traffic.fetching.at_once());
        assert_eq!((serving, fetching), (1, BLOB_FETCHES_LIMITED_MIN));
        // The one that is sent has twice what a fetcher asks for.
        assert!(LIMIT_BYTES_MIN * BLOB_RATE_WINDOW.as_secs() > 2 * BLOB_RATE_BYTES_MIN);
        // One that is fetched tells its holder of new room in time, and none of them is in the control frames' way.
        let share = LIMIT_BYTES_MIN / fetching as u64;
        assert!(u64::from(STREAM_WINDOW_BYTES) / 8 < share * BLOB_TAKE_TIMEOUT.as_secs());
        assert!(fetching as u64 * u64::from(STREAM_WINDOW_BYTES) < u64::from(CONNECTION_WINDOW_BYTES));
        assert!(2 * BLOB_TURN_WORD_EVERY < BLOB_STALL_TIMEOUT);
        traffic.limit(None);
        assert_eq!((traffic.serving.at_once(), traffic.piece()), (usize::MAX, usize::MAX));
    }

    #[test]
    fn a_large_frame_lets_small_ones_pass() {
        let traffic = Traffic::default();
        traffic.limit(Some(100_000));
        let started = Instant::now();
        smol::future::block_on(smol::future::or(traffic.before_sending(10_000_000), async {
            for _ in 0..10 {
                traffic.before_sending(100).await;
            }
        }));
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }

    #[test]
    fn a_limit_holds_over_all_streams_and_none_costs_nothing() {
        let traffic = Traffic::default();
        let started = Instant::now();
        smol::future::block_on(async {
            for _ in 0..1_000 {
                traffic.before_sending(1 << 20).await;
            }
        });
        assert!(started.elapsed() < Duration::from_millis(500));
        traffic.limit(Some(1_000_000));
        let started = Instant::now();
        smol::future::block_on(async {
            let one = || async {
                for _ in 0..5 {
                    traffic.before_sending(50_000).await;
                }
            };
            smol::future::zip(one(), one()).await;
        });
        // Half a megabyte at a megabyte a second, less the burst.
        assert!(started.elapsed() >= Duration::from_millis(390), "{:?}", started.elapsed());
    }
}
