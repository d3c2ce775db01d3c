//! The loss curves of this owner's training jobs: a point for every outer step after which the loss was measured, one line of
//! JSON each. Steps that follow each other faster than the coordinator tells of them share one.
//!
//! The file outlives the job and the agent; what is in it is never rewritten. Must never hold up the daemon: a curve
//! that cannot be kept is a line in the log.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use skein_proto::ids::{JobId, Millis};
use skein_proto::job::Work;
use skein_proto::message::JobStatus;

use super::lock;

/// Where a job stood after an outer step; step 0 is before the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) round: u32,
    /// Trained on so far, over all agents.
    pub(crate) tokens: u64,
    /// That agents sent each other so far.
    #[serde(default)]
    pub(crate) sent_bytes: u64,
    pub(crate) at_ms: Millis,
    pub(crate) agents: u16,
    /// The latest training loss, in millionths of a nat per byte.
    pub(crate) loss_micronats: Option<i64>,
    /// The loss on what is never trained on, likewise.
    pub(crate) held_out_micronats: Option<i64>,
}

/// The curves of an agent. Clones share the directory.
#[derive(Clone, Debug)]
pub(crate) struct Curves {
    directory: PathBuf,
    /// What is last in the file, of jobs that moved lately.
    last: Arc<Mutex<BTreeMap<JobId, Last>>>,
}

/// An outer step, and the held-out loss after it.
type Last = (u32, Option<i64>);

/// So many jobs' last steps are remembered; of others the file is read.
const REMEMBERED_MAX: usize = 1_024;

impl Curves {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("curves"), last: Arc::default() }
    }

    /// Adds a point, if the job has come further than its last one.
    pub(crate) fn follow(&self, now: Millis, job: &JobStatus) {
        if !matches!(job.work, Work::Train(_)) || job.held_out_micronats.is_none() {
            return;
        }
        if let Err(error) = self.add(now, job) {
            tracing::warn!(job = %job.id.short(), %error, "cannot keep the loss curve");
        }
    }

    fn add(&self, now: Millis, job: &JobStatus) -> std::io::Result<()> {
        let remembered = lock(&self.last).get(&job.id).copied();
        let last = match remembered {
            Some(last) => Some(last),
            None => self.points(job.id)?.last().map(|point| (point.round, point.held_out_micronats)),
        };
        // A loss that stayed the same to the millionth was not measured again.
        if last.is_some_and(|(round, loss)| round >= job.round || loss == job.held_out_micronats) {
            return Ok(());
        }
        let point = Point {
            round: job.round,
            tokens: job.tokens,
            sent_bytes: job.sent_bytes,
            at_ms: now,
            agents: job.agents,
            loss_micronats: job.loss_micronats,
            held_out_micronats: job.held_out_micronats,
        };
        fs::create_dir_all(&self.directory)?;
        let mut file = File::options().create(true).append(true).open(self.path(job.id))?;
        // A line that a crash cut short is ended first, and left out when read.
        writeln!(file, "\n{}", serde_json::to_string(&point)?)?;
        let mut last = lock(&self.last);
        if last.len() >= REMEMBERED_MAX {
            last.clear();
        }
        last.insert(job.id, (job.round, job.held_out_micronats));
        Ok(())
    }

    /// All points of a job, in order; none for a job of which there are none.
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn points(&self, job: JobId) -> std::io::Result<Vec<Point>> {
        match fs::read_to_string(self.path(job)) {
            Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.directory.join(format!("{job}.jsonl"))
    }
}
