//! What sensors said over the last day, for the dashboard: one point every ten seconds, in memory alone.

use std::collections::VecDeque;

use serde::Serialize;
use skein_policy::State;
use skein_policy::readings::{Gpu, Reading};

use crate::limits::{HISTORY_EVERY_MS, HISTORY_POINTS_MAX, HISTORY_SAMPLES_MAX};

/// A day of points.
#[derive(Default)]
pub(crate) struct History {
    points: VecDeque<Point>,
}

/// `GET /api/history`.
#[derive(Debug, Serialize)]
pub(crate) struct Past {
    /// Between two points.
    every_s: u64,
    points: Vec<Point>,
}

/// One moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Point {
    /// Unix milliseconds.
    pub(crate) at_ms: u64,
    /// In the order of their addresses.
    pub(crate) gpus: Vec<GpuPoint>,
    pub(crate) state: State,
    /// Payload bytes over the mesh since the agent's start.
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

/// One GPU at one moment; what no sensor knows is absent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GpuPoint {
    id: String,
    busy_percent: Option<u8>,
    temperature_c: Option<u16>,
    power_mw: Option<u64>,
    memory_used_bytes: Option<u64>,
}

impl GpuPoint {
    pub(crate) fn of(gpu: &Gpu) -> Self {
        Self {
            id: gpu.id.clone(),
            busy_percent: gpu.busy_percent.known().copied(),
            temperature_c: gpu.temperature_c.known().copied(),
            power_mw: gpu.power_mw.known().copied(),
            memory_used_bytes: gpu.memory_used_bytes.known().copied(),
        }
    }
}

/// The GPUs of a reading; none if nothing is known.
pub(crate) fn gpus(reading: &Reading<Vec<Gpu>>) -> &[Gpu] {
    reading.known().map_or(&[], Vec::as_slice)
}

impl History {
    /// Whether the next point is due.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        self.points.back().is_none_or(|last| now_ms.abs_diff(last.at_ms) >= HISTORY_EVERY_MS)
    }

    pub(crate) fn add(&mut self, point: Point) {
        if self.points.len() >= HISTORY_POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// The points after `since_ms`, the last of them always, and others left out evenly where they are many: of a rig with
    /// more GPUs it tells fewer moments.
    pub(crate) fn since(&self, since_ms: u64) -> Past {
        let wanted = self.points.iter().filter(|point| point.at_ms > since_ms);
        let samples: usize = wanted.clone().map(|point| point.gpus.len().max(1)).sum();
        let stride = samples.div_ceil(HISTORY_SAMPLES_MAX).max(1);
        let mut points: Vec<Point> = wanted.rev().step_by(stride).cloned().collect();
        points.reverse();
        Past { every_s: HISTORY_EVERY_MS / 1_000 * stride as u64, points }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at_ms: u64, gpus: usize) -> Point {
        let gpu = GpuPoint {
            id: "0000:01:00.0".to_owned(),
            busy_percent: Some(100),
            temperature_c: Some(100),
            power_mw: Some(400_000),
            memory_used_bytes: Some(24_000_000_000),
        };
        Point { at_ms, gpus: vec![gpu; gpus], state: State::Working, sent_bytes: 0, received_bytes: 0 }
    }

    #[test]
    fn a_day_of_many_gpus_is_told_in_few_bytes_and_its_last_moment_always() {
        for (gpus, since, every_s, count) in [
            (1, 8_280, 10, 360),
            (2, 8_280, 10, 360),
            (12, 8_280, 60, 60),
            (1, 0, 120, 720),
            (12, 0, 1_440, 60),
        ] {
            let mut history = History::default();
            for at in 1..=8_640 {
                history.add(point(at * HISTORY_EVERY_MS, gpus));
            }
            let past = history.since(since * HISTORY_EVERY_MS);
            assert_eq!((past.every_s, past.points.len()), (every_s, count), "{gpus} GPUs");
            assert_eq!(past.points.last().unwrap().at_ms, 8_640 * HISTORY_EVERY_MS);
            assert!(past.points.windows(2).all(|pair| pair[1].at_ms - pair[0].at_ms == every_s * 1_000));
            let bytes = serde_json::to_string(&past).unwrap().len();
            assert!(bytes < 140_000, "{gpus} GPUs: {bytes} bytes");
        }
        assert!(History::default().since(0).points.is_empty());
    }
}
