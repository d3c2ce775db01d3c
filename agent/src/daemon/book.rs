//! The training jobs of this owner: what was ordered, and how it stood last, one small file each.
//!
//! They outlive the agent, so that one that was killed goes on with its jobs when it is back, and one that ended can be
//! taken up again. Must never hold up the daemon: a file that cannot be written is a line in the log.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skein_proto::ids::JobId;
use skein_proto::job::{JobSpec, Work};
use skein_proto::limits::ORDERS_MAX;
use skein_proto::message::JobStatus;

use crate::identity::write_private;

/// A job that was ordered here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) spec: JobSpec,
    pub(crate) status: JobStatus,
}

/// The files, and what changed since they were written.
#[derive(Debug)]
pub(crate) struct Book {
    directory: PathBuf,
    /// Of each order, how far its file tells: outer steps, and whether it ended.
    told: BTreeMap<JobId, (u32, bool)>,
}

impl Book {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("jobs"), told: BTreeMap::new() }
    }

    /// Every order, the latest last; what cannot be read is left out and named in the log.
    pub(crate) fn orders(&mut self) -> Vec<Order> {
        let Ok(files) = fs::read_dir(&self.directory) else { return Vec::new() };
        let mut found: Vec<_> = files.flatten().filter_map(|file| read(&file.path())).collect();
        found.sort_by_key(|(written, order)| (*written, order.status.id));
        // Old ones that ended make room.
        for (_, order) in found.drain(..found.len().saturating_sub(ORDERS_MAX)) {
            if order.status.phase.is_final() {
                let _ = fs::remove_file(self.path(order.status.id));
            }
        }
        let orders: Vec<Order> = found.into_iter().map(|(_, order)| order).collect();
        let told = |order: &Order| (order.status.id, (order.status.round, order.status.phase.is_final()));
        self.told = orders.iter().map(told).collect();
        orders
    }

    /// The order of this id.
    pub(crate) fn order(&self, id: JobId) -> Option<Order> {
        read(&self.path(id)).map(|(_, order)| order)
    }

    /// Writes down a new order.
    pub(crate) fn open(&mut self, spec: JobSpec, status: JobStatus) {
        if matches!(spec.work, Work::Train(_)) {
            self.write(&Order { spec, status });
        }
    }

    /// Writes down how an order stands, if it has come further.
    pub(crate) fn follow(&mut self, status: &JobStatus) {
        let now = (status.round, status.phase.is_final());
        if self.told.get(&status.id).is_none_or(|told| *told == now) {
            return;
        }
        if let Some(order) = self.order(status.id) {
            self.write(&Order { status: status.clone(), ..order });
        }
    }

    fn write(&mut self, order: &Order) {
        let Order { status, .. } = order;
        let written = fs::create_dir_all(&self.directory)
            .and_then(|()| Ok(serde_json::to_vec_pretty(order)?))
            .and_then(|bytes| write_private(&self.path(status.id), &bytes));
        match written {
            Ok(()) => drop(self.told.insert(status.id, (status.round, status.phase.is_final()))),
            Err(error) => {
                tracing::warn!(job = %status.id.short(), %error, "cannot write down how a job stands")
            }
        }
    }

    fn path(&self, id: JobId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

fn read(path: &Path) -> Option<(std::time::SystemTime, Order)> {
    let parsed = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => Err(error.to_string()),
    };
    let written = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    let warn = |error: &String| tracing::warn!(path = %path.display(), "a job is left out: {error}");
    parsed.inspect_err(warn).ok().map(|order| (written, order))
}
