//! Counts payload bytes, and holds bulk streams back where the owner's line is to stay free.
//!
//! Control frames are counted and never held back: they are what keeps leases and jobs alive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may pass at once before a limit is felt, in time: packets come in bursts.
const BURST: Duration = Duration::from_millis(100);

/// Payload bytes that passed this agent, control frames and bulk streams together.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
    /// Bytes a second, in each direction; 0 is no limit.
    rate: AtomicU64,
    upwards: Mutex<Option<Instant>>,
    downwards: Mutex<Option<Instant>>,
}

impl Traffic {
    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts, and waits until the line may be used again.
    pub(crate) async fn sent_in_bulk(&self, bytes: usize) {
        self.add_sent(bytes);
        self.hold_back(&self.upwards, bytes).await;
    }

    /// Likewise; what is not read is not sent for long, because QUIC controls its flow.
    pub(crate) async fn received_in_bulk(&self, bytes: usize) {
        self.add_received(bytes);
        self.hold_back(&self.downwards, bytes).await;
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes a second for all bulk streams together, in each direction.
    pub(crate) fn limit(&self, bytes_per_s: Option<u64>) {
        self.rate.store(bytes_per_s.unwrap_or(0), Ordering::Relaxed);
    }

    async fn hold_back(&self, direction: &Mutex<Option<Instant>>, bytes: usize) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_over_all_streams_and_none_costs_nothing() {
        let traffic = Traffic::default();
        let started = Instant::now();
        smol::future::block_on(async {
            for _ in 0..1_000 {
                traffic.sent_in_bulk(1 << 20).await;
            }
        });
        assert!(started.elapsed() < Duration::from_millis(500));
        traffic.limit(Some(1_000_000));
        let started = Instant::now();
        smol::future::block_on(async {
            let one = || async {
                for _ in 0..5 {
                    traffic.sent_in_bulk(50_000).await;
                }
            };
            smol::future::zip(one(), one()).await;
        });
        // Half a megabyte at a megabyte a second, less the burst.
        assert!(started.elapsed() >= Duration::from_millis(390), "{:?}", started.elapsed());
        assert_eq!(traffic.sent(), (1_000 << 20) + 500_000);
        assert_eq!(traffic.received(), 0);
    }
}
