//! What sensors said over the last day, for the dashboard: one point every ten seconds, in memory alone.

use std::collections::VecDeque;

use serde::Serialize;
use skein_policy::State;
use skein_policy::readings::{Gpu, Reading};

use crate::limits::{HISTORY_EVERY_MS, HISTORY_POINTS_MAX};

/// A day of points.
#[derive(Default)]
pub(crate) struct History {
    points: VecDeque<Point>,
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

    /// The points after `since_ms`.
    pub(crate) fn since(&self, since_ms: u64) -> Vec<Point> {
        self.points.iter().filter(|point| point.at_ms > since_ms).cloned().collect()
    }
}
