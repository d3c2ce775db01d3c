//! A model that is being served, as its user sees it: tokenizer, template, and the way to its pipeline.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use skein_engine::chat::ChatTemplate;
use skein_engine::import;
use skein_engine::manifest::{Manifest, PieceSource};
use skein_engine::tokenizer::Tokenizer;
use skein_mesh::{BlobStore, Mesh, fetch_blobs};
use skein_proto::ids::{Digest, JobId, NodeId};
use skein_proto::message::StageAt;
use smol::channel;

use super::samples::Samples;
use super::slots::Slots;
use crate::daemon::pipeline::Pipeline;
use crate::daemon::{Call, Event, lock};
use crate::limits::{MANIFEST_BYTES_MAX, MODELS_LOADED_MAX};

/// A model without its weights: what turns text into tokens and back.
pub(crate) struct Model {
    pub(crate) manifest: Manifest,
    pub(crate) tokenizer: Tokenizer,
    /// None where the model's author gave no chat template that can be used.
    pub(crate) template: Result<ChatTemplate, String>,
}

/// Models by digest, fetched when first asked for.
#[derive(Clone)]
pub(crate) struct Library {
    mesh: Mesh,
    store: BlobStore,
    loaded: Arc<Mutex<BTreeMap<Digest, Arc<Model>>>>,
}

impl Library {
    pub(crate) fn new(mesh: Mesh, store: BlobStore) -> Self {
        Self { mesh, store, loaded: Arc::default() }
    }

    /// The model, with manifest and vocabulary fetched from whoever has them.
    ///
    /// # Errors
    /// In words: nobody has it, or it is broken.
    pub(crate) async fn load(&self, digest: Digest) -> Result<Arc<Model>, String> {
        if let Some(model) = lock(&self.loaded).get(&digest) {
            return Ok(Arc::clone(model));
        }
        let holders: Vec<NodeId> = self.mesh.peers().into_iter().map(|(node, _)| node).collect();
        let manifest = manifest(&self.mesh, &self.store, digest, &holders).await?;
        let pieces: Vec<(Digest, u64)> =
            manifest.vocabulary_pieces().into_iter().map(|(piece, bytes)| (Digest(piece), bytes)).collect();
        let fetched = fetch_blobs(&self.mesh, &self.store, &pieces, &holders, |_| {}).await;
        fetched.map_err(|error| error.to_string())?;
        let store = self.store.clone();
        let pieces = PieceSource::new(manifest, Box::new(move |piece| store.path(&Digest(*piece))));
        let model = smol::unblock(move || Model::open(&pieces)).await?;
        let model = Arc::new(model);
        let mut loaded = lock(&self.loaded);
        if loaded.len() >= MODELS_LOADED_MAX {
            // Whoever uses one still has it.
            loaded.clear();
        }
        loaded.insert(digest, Arc::clone(&model));
        Ok(model)
    }
}

/// The manifest of a model, fetched if it is not here.
///
/// # Errors
/// In words: nobody has it, or it is broken.
pub(crate) async fn manifest(
    mesh: &Mesh,
    store: &BlobStore,
    digest: Digest,
    holders: &[NodeId],
) -> Result<Manifest, String> {
    fetch_blobs(mesh, store, &[(digest, MANIFEST_BYTES_MAX)], holders, |_| {})
        .await
        .map_err(|error| error.to_string())?;
    let bytes = store.load(digest, MANIFEST_BYTES_MAX).await.map_err(|error| error.to_string())?;
    Manifest::decode(&bytes).map_err(|error| error.to_string())
}

impl Model {
    fn open(pieces: &PieceSource) -> Result<Self, String> {
        let vocabulary = pieces.vocabulary().map_err(|error| error.to_string())?;
        let vocabulary = import::decode(&vocabulary).map_err(|error| error.to_string())?;
        let template = ChatTemplate::new(&vocabulary).map_err(|error| error.to_string());
        let tokenizer = Tokenizer::new(vocabulary).map_err(|error| error.to_string())?;
        Ok(Self { manifest: pieces.manifest().clone(), tokenizer, template })
    }
}

/// A model and the job that serves it.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) job: JobId,
    /// Digest of the model's manifest.
    pub(crate) digest: Digest,
    pub(crate) model: Arc<Model>,
    pub(crate) slots: Slots,
    /// Longest sequence that its stages take, in tokens.
    pub(crate) context: u32,
    pub(super) pipeline: Pipeline,
    pub(super) samples: Samples,
    pub(super) feed: channel::Sender<Event>,
}

impl Served {
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.model.manifest
    }

    pub(crate) fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// The stages as the coordinator placed them last; none while a stage is missing.
    ///
    /// # Errors
    /// In words, when the job has ended.
    pub(crate) async fn stages(&self) -> Result<Vec<StageAt>, String> {
        let (answer, heard) = channel::bounded(1);
        let leaving = || "the agent is leaving".to_owned();
        self.feed.send(Event::Call(Call::Jobs(answer))).await.map_err(|_| leaving())?;
        let jobs = heard.recv().await.map_err(|_| leaving())?;
        let job = jobs.into_iter().find(|job| job.id == self.job);
        let job = job.ok_or_else(|| format!("`{}` is not served any more", self.name))?;
        if job.phase.is_final() {
            return Err(format!(
                "`{}` is not served any more: {}",
                self.name,
                crate::cmd::jobs::phase_text(&job.phase)
            ));
        }
        Ok(job.stages)
    }
}
