//! Answers kept to be checked: what was asked, what came, and what the agent that chose it committed to.
//!
//! The first answers of an agent are all kept, later ones the more rarely the more it gave (as BOINC's adaptive
//! replication does): `skein check` runs them again. Must never keep more than [`SAMPLES_MAX`], nor leave this machine:
//! they hold what customers wrote.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use skein_engine::step::Sampling;
use skein_engine::toploc::{Commitment, Span};
use skein_proto::ids::{Digest, LeaseId, NodeId};

use crate::daemon::lock;
use crate::identity::write_private;
use crate::limits::{SAMPLES_MAX, SAMPLES_SURE};

/// An answer that can be checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Digest of the model's manifest.
    pub(crate) model: Digest,
    /// By which name it was asked for.
    pub(crate) name: String,
    /// Who chose the last token.
    pub(crate) agent: NodeId,
    pub(crate) sampling: Drawn,
    /// Tokens asked.
    pub(crate) prompt: Vec<u32>,
    /// Tokens answered.
    pub(crate) answer: Vec<u32>,
    /// So many pipelines broke meanwhile.
    pub(crate) breaks: usize,
    pub(crate) claims: Vec<Claim>,
}

/// How the tokens were to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drawn {
    temperature: f32,
    top_p: f32,
    seed: u64,
}

impl From<Sampling> for Drawn {
    fn from(sampling: Sampling) -> Self {
        Self { temperature: sampling.temperature, top_p: sampling.top_p, seed: sampling.seed }
    }
}

impl From<Drawn> for Sampling {
    fn from(drawn: Drawn) -> Self {
        Self { temperature: drawn.temperature, top_p: drawn.top_p, seed: drawn.seed, top_logprobs: 0 }
    }
}

/// What an agent commits to of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) agent: NodeId,
    pub(crate) lease: LeaseId,
    /// Position of the first of `count` states.
    pub(crate) first: u32,
    pub(crate) count: u8,
    #[serde(with = "hex")]
    pub(crate) commitment: Vec<u8>,
}

impl Claim {
    pub(crate) fn new((agent, lease): (NodeId, LeaseId), span: Span) -> Self {
        Self { agent, lease, first: span.first, count: span.count, commitment: span.commitment.0 }
    }

    pub(crate) fn span(&self) -> Span {
        Span { first: self.first, count: self.count, commitment: Commitment(self.commitment.clone()) }
    }
}

/// The kept answers of one agent. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    directory: PathBuf,
    given: Arc<Mutex<BTreeMap<NodeId, u64>>>,
}

impl Samples {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("samples"), given: Arc::default() }
    }

    /// Keeps this one, perhaps.
    pub(crate) async fn offer(&self, sample: Sample) {
        let given = {
            let mut given = lock(&self.given);
            let given = given.entry(sample.agent).or_default();
            *given += 1;
            *given
        };
        let mut draw = [0; 8];
        if getrandom::fill(&mut draw).is_err() {
            return;
        }
        let number = u64::from_le_bytes(draw);
        if number % given >= SAMPLES_SURE {
            return;
        }
        let this = self.clone();
        let kept = smol::unblock(move || this.keep(&sample, number)).await;
        if let Err(error) = kept {
            tracing::warn!(%error, "cannot keep an answer to be checked");
        }
    }

    fn keep(&self, sample: &Sample, number: u64) -> std::io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let path = self.directory.join(format!("{:013}-{number:016x}.json", now.as_millis()));
        write_private(&path, &serde_json::to_vec(sample)?)?;
        let files = self.files()?;
        for old in files.iter().take(files.len().saturating_sub(SAMPLES_MAX)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    /// The files of all that are kept, oldest first.
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn files(&self) -> std::io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let mut paths: Vec<PathBuf> = paths.collect::<Result<_, _>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        Ok(paths)
    }
}
