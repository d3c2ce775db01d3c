//! Owns a range of a model's layers with the sessions that use it: checks what strangers send, keeps the books of the
//! cache, packs the rows of all sessions into runs of the graph, and answers.
//! Must never compute a layer, and never let one session's nonsense touch another's.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::cache::Cache;
use crate::config::{BadConfig, ModelConfig};
use crate::cpu::graph::CpuGraph;
#[cfg(feature = "gpu")]
use crate::gpu::GpuGraph;
use crate::graph::{Batch, Computed, Graph, Hidden, PAGE_POSITIONS, Sequence};
use crate::limits::{ASKED_ROWS_MAX, CHUNK_ROWS_MAX, RUN_ROWS_MAX, SESSIONS_MAX};
use crate::rows::BadRow;
use crate::source::{SourceError, TensorSource};
use crate::step::{Chunk, Input, Output, StepError, Want, row_bytes};
use crate::tensors::{TensorsError, check_tensors};
use crate::{rows, sample};

/// How a stage is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which layers it holds.
    pub layers: Range<u32>,
    /// What computes.
    pub device: Device,
    /// Bytes that keys and values may take.
    pub cache_bytes: u64,
    /// Longest sequence, if shorter than the model's own.
    pub context: u32,
}

/// What computes a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu {
        /// Threads, 1 or more.
        threads: usize,
    },
    /// A GPU.
    #[cfg(feature = "gpu")]
    Gpu {
        /// Part of its adapter's name, or `wgpu:INDEX:NAME`.
        name: String,
    },
}

/// Why a stage could not be opened. Nothing is held.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The hyperparameters are no model.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// The tensors are not those of the model.
    #[error(transparent)]
    Tensors(#[from] TensorsError),
    /// A tensor could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The layers are not there.
    #[error("layers {}..{} are none of a model of {layers} layers", range.start, range.end)]
    Layers {
        /// Asked for.
        range: Range<u32>,
        /// There are.
        layers: u32,
    },
    /// Not even one page of the cache fits.
    #[error("{bytes} bytes of cache are too few: {PAGE_POSITIONS} tokens on these layers take {page_bytes}")]
    Cache {
        /// Given.
        bytes: u64,
        /// Of one page.
        page_bytes: u64,
    },
    /// The device refused.
    #[error("the device cannot hold the stage: {0}")]
    Device(String),
}

/// Layers of a model, ready to compute.
pub struct Stage {
    config: ModelConfig,
    layers: Range<u32>,
    context: u32,
    cache: Cache,
    graph: Box<dyn Graph>,
    tokens: Vec<u32>,
    rows: Vec<f32>,
}

impl Stage {
    /// Reads the weights of the layers. `progress` is told the bytes read and the bytes in all, after every tensor.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        source: &dyn TensorSource,
        options: &Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, OpenError> {
        let config = source.config().clone();
        config.validate()?;
        check_tensors(&config, source.tensors())?;
        let layers = options.layers.clone();
        if layers.is_empty() || layers.end > config.layers {
            return Err(OpenError::Layers { range: layers, layers: config.layers });
        }
        let context = options.context.min(config.context);
        let pages = pages(&config, layers.len() as u64, options.cache_bytes, context)?;
        let (graph, pages): (Box<dyn Graph>, u32) = match &options.device {
            Device::Cpu { threads } => {
                (Box::new(CpuGraph::open(source, layers.clone(), pages, *threads, progress)?), pages)
            }
            #[cfg(feature = "gpu")]
            Device::Gpu { name } => {
                let device = crate::gpu::Device::open(Some(name))
                    .map_err(|error| OpenError::Device(error.to_string()))?;
                let pages = pages.min(GpuGraph::pages_max(&device, &config));
                (Box::new(GpuGraph::open(device, source, layers.clone(), pages, progress)?), pages)
            }
        };
        let cache = Cache::new(pages);
        Ok(Self { config, layers, context, cache, graph, tokens: Vec::new(), rows: Vec::new() })
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Which layers this is.
    #[must_use]
    pub fn layers(&self) -> Range<u32> {
        self.layers.clone()
    }

    /// Longest sequence.
    #[must_use]
    pub fn context(&self) -> u32 {
        self.context
    }

    /// Tokens that are cached for a session.
    #[must_use]
    pub fn cached(&self, session: u64) -> u32 {
        self.cache.length(session)
    }

    /// Forgets a session. Whether there was one.
    pub fn close(&mut self, session: u64) -> bool {
        self.cache.close(session)
    }

    /// Bytes that weights, cache and buffers take.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.graph.resident_bytes()
    }

    /// Computes what many sessions bring, together. One answer per chunk; a bad one fails alone. Chunks of one session
    /// are computed in their order.
    pub fn step(&mut self, chunks: &[Chunk]) -> Vec<Result<Output, StepError>> {
        self.step_observed(chunks, &mut |_, _, _| {})
    }

    /// The same, and shows, on the last stage, the state after the last norm of every row asked for: the number of its
    /// chunk, its position, and `width` values.
    pub fn step_observed(
        &mut self,
        chunks: &[Chunk],
        observe: &mut dyn FnMut(usize, u32, &[f32]),
    ) -> Vec<Result<Output, StepError>> {
        let mut work: Vec<Work> = chunks.iter().map(|_| Work::Waiting).collect();
        loop {
            let pieces = self.pack(chunks, &mut work);
            if pieces.is_empty() {
                break;
            }
            self.run(chunks, &pieces, &mut work, observe);
        }
        work.into_iter().map(Work::into_result).collect()
    }

    /// Chooses what goes into the next run: the rows of the first chunks that are not done, as many as fit, of each
    /// session only its first chunk. Chunks are looked at when their turn comes, so that what a session's earlier
    /// chunk does to the cache is known.
    fn pack(&mut self, chunks: &[Chunk], work: &mut [Work]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut taken = BTreeSet::new();
        let (mut rows_left, mut asked_left) = (RUN_ROWS_MAX as u32, ASKED_ROWS_MAX as u32);
        for (number, (chunk, work)) in chunks.iter().zip(work).enumerate() {
            if taken.contains(&chunk.session) {
                continue;
            }
            if matches!(work, Work::Waiting) {
                *work = self.admit(chunk).map_or_else(Work::Done, Work::Open);
            }
            let Work::Open(open) = work else { continue };
            if open.done == open.rows {
                continue;
            }
            taken.insert(chunk.session);
            let before_asked = open.asked_from.saturating_sub(open.done);
            let rows = (open.rows - open.done).min(rows_left).min(before_asked.saturating_add(asked_left));
            if rows > 0 {
                let asked = rows.saturating_sub(before_asked);
                pieces.push(Piece { chunk: number, session: chunk.session, first: open.done, rows, asked });
                open.done += rows;
                rows_left -= rows;
                asked_left -= asked;
            }
            // What follows waits, or a long chunk could be overtaken for ever.
            if open.done < open.rows {
                break;
            }
        }
        pieces
    }

    /// Checks a chunk and makes room for it.
    fn admit(&mut self, chunk: &Chunk) -> Result<Open, StepError> {
        let (rows, decoded) = self.check_input(&chunk.input)?;
        let asked_from = self.check_want(&chunk.want, rows)?;
        let cached = self.cache.length(chunk.session);
        if chunk.position > cached {
            return Err(StepError::Gap { position: chunk.position, cached });
        }
        let end = chunk.position.checked_add(rows).filter(|end| *end <= self.context);
        let Some(end) = end else {
            let (position, context) = (chunk.position, self.context);
            return Err(StepError::Context { position, rows: rows as usize, context });
        };
        self.cache.resize(chunk.session, end).map_err(|full| StepError::Full { reason: full.to_string() })?;
        let output = if self.is_last() {
            match chunk.want {
                Want::Nothing | Want::Picks { .. } => Output::Picks(Vec::new()),
                Want::Scores { .. } => Output::Scores(Vec::new()),
            }
        } else {
            Output::Rows(Vec::new())
        };
        // Only the last stage answers.
        let asked_from = if self.is_last() { asked_from } else { rows };
        Ok(Open { rows, done: 0, asked_from, decoded, output })
    }

    fn is_last(&self) -> bool {
        self.layers.end == self.config.layers
    }

    /// The number of rows, and their values where they are none of tokens.
    fn check_input(&self, input: &Input) -> Result<(u32, Vec<f32>), StepError> {
        let start = self.layers.start;
        match input {
            Input::Tokens(_) if start > 0 => Err(StepError::Kind { start, wanted: "rows" }),
            Input::Rows(_) if start == 0 => Err(StepError::Kind { start, wanted: "tokens" }),
            Input::Tokens(tokens) => {
                if tokens.is_empty() || tokens.len() > CHUNK_ROWS_MAX {
                    let reason =
                        format!("{} tokens were sent, allowed are 1 to {CHUNK_ROWS_MAX}", tokens.len());
                    return Err(StepError::Tokens { reason });
                }
                let vocabulary = self.config.vocabulary;
                if let Some(token) = tokens.iter().find(|token| **token >= vocabulary) {
                    let reason = format!("token {token} is not in the vocabulary of {vocabulary}");
                    return Err(StepError::Tokens { reason });
                }
                Ok((tokens.len() as u32, Vec::new()))
            }
            Input::Rows(bytes) => {
                let width = self.config.width as usize;
                let row_bytes = row_bytes(width);
                let bad = || StepError::Rows { bytes: bytes.len(), row_bytes, rows_max: CHUNK_ROWS_MAX };
                let rows = bytes.len() / row_bytes;
                if rows == 0 || rows > CHUNK_ROWS_MAX {
                    return Err(bad());
                }
                let mut decoded = Vec::new();
                rows::decode(bytes, width, &mut decoded).map_err(|_| bad())?;
                Ok((rows as u32, decoded))
            }
        }
    }

    /// The first row that is asked for; one past the last for none.
    fn check_want(&self, want: &Want, rows: u32) -> Result<u32, StepError> {
        let bad = |reason| Err(StepError::Want { reason });
        let beyond = |from: u32| format!("rows from {from} on are asked for, but {rows} were sent");
        match want {
            Want::Nothing => Ok(rows),
            Want::Picks { from, .. } | Want::Scores { from, .. } if *from >= rows => bad(beyond(*from)),
            Want::Picks { from, sampling } => match sample::fault(sampling) {
                Some(fault) => bad(fault),
                None => Ok(*from),
            },
            Want::Scores { from, targets } => {
                let vocabulary = self.config.vocabulary;
                if targets.len() as u64 != u64::from(rows - from) {
                    let asked = rows - from;
                    return bad(format!(
                        "{} targets were sent for {asked} rows from {from} on",
                        targets.len()
                    ));
                }
                if let Some(target) = targets.iter().find(|target| **target >= vocabulary) {
                    return bad(format!("target {target} is not in the vocabulary of {vocabulary}"));
                }
                Ok(*from)
            }
        }
    }

    /// Computes one batch and hands out the answers.
    fn run(
        &mut self,
        chunks: &[Chunk],
        pieces: &[Piece],
        work: &mut [Work],
        observe: &mut dyn FnMut(usize, u32, &[f32]),
    ) {
        let (width, vocabulary) = (self.config.width as usize, self.config.vocabulary as usize);
        self.tokens.clear();
        self.rows.clear();
        for piece in pieces {
            let range = piece.first as usize..(piece.first + piece.rows) as usize;
            match (&chunks[piece.chunk].input, &work[piece.chunk]) {
                (Input::Tokens(tokens), _) => self.tokens.extend(&tokens[range]),
                (Input::Rows(_), Work::Open(open)) => {
                    self.rows.extend(&open.decoded[range.start * width..range.end * width]);
                }
                (Input::Rows(_), Work::Waiting | Work::Done(_)) => {}
            }
        }
        let sequences: Vec<Sequence<'_>> = pieces
            .iter()
            .map(|piece| Sequence {
                pages: self.cache.pages(piece.session),
                position: chunks[piece.chunk].position + piece.first,
                rows: piece.rows,
                asked: piece.asked,
            })
            .collect();
        let first = self.layers.start == 0;
        let input = if first { Hidden::Tokens(&self.tokens) } else { Hidden::Rows(&self.rows) };
        let mut failed = Vec::new();
        match self.graph.run(&Batch { sequences: &sequences, input }) {
            Err(reason) => failed.extend(pieces.iter().map(|piece| (piece, reason.clone()))),
            Ok(Computed::Rows(computed)) => {
                let mut computed = computed.chunks_exact(width);
                for piece in pieces {
                    let Work::Open(open) = &mut work[piece.chunk] else { continue };
                    for row in (0..piece.rows).zip(computed.by_ref()).map(|(_, row)| row) {
                        if let Err(error) = open.pass_on(row) {
                            failed.push((piece, error.to_string()));
                        }
                    }
                }
            }
            Ok(Computed::Asked { logits, hidden }) => {
                let mut answers = logits.chunks_exact(vocabulary).zip(hidden.chunks_exact(width));
                for piece in pieces {
                    let Work::Open(open) = &mut work[piece.chunk] else { continue };
                    let chunk = &chunks[piece.chunk];
                    for (row, (logits, hidden)) in
                        (piece.first_asked()..).zip(answers.by_ref()).take(piece.asked as usize)
                    {
                        let position = chunk.position + row;
                        match open.answer(&chunk.want, row, position, logits) {
                            Some(()) => observe(piece.chunk, position, hidden),
                            None => failed.push((piece, "logits are not finite".to_owned())),
                        }
                    }
                }
            }
        }
        for (piece, reason) in failed {
            self.cache.close(piece.session);
            work[piece.chunk] = Work::Done(StepError::Device(reason));
        }
    }
}

/// Pages of the cache: what the budget holds, and no more than all sessions together can use.
fn pages(config: &ModelConfig, layers: u64, bytes: u64, context: u32) -> Result<u32, OpenError> {
    let page_bytes = config.cache_bytes_per_token_and_layer() * layers * PAGE_POSITIONS as u64;
    let most = SESSIONS_MAX as u64 * u64::from(context.div_ceil(PAGE_POSITIONS as u32));
    let pages = (bytes / page_bytes).min(most);
    u32::try_from(pages).ok().filter(|pages| *pages > 0).ok_or(OpenError::Cache { bytes, page_bytes })
}

/// Where a chunk stands.
enum Work {
    /// Not looked at.
    Waiting,
    /// Checked, with room in the cache; computed once all its rows went into runs.
    Open(Open),
    /// Refused, or failed.
    Done(StepError),
}

impl Work {
    fn into_result(self) -> Result<Output, StepError> {
        match self {
            Self::Open(open) => Ok(open.output),
            Self::Done(error) => Err(error),
            Self::Waiting => Err(StepError::Device("the chunk was never computed".to_owned())),
        }
    }
}

struct Open {
    rows: u32,
    /// Rows that went into runs.
    done: u32,
    asked_from: u32,
    /// `[rows, width]`, empty for tokens.
    decoded: Vec<f32>,
    output: Output,
}

impl Open {
    /// Adds a row for the next stage.
    fn pass_on(&mut self, row: &[f32]) -> Result<(), BadRow> {
        match &mut self.output {
            Output::Rows(bytes) => rows::encode(row, row.len(), bytes),
            Output::Picks(_) | Output::Scores(_) => Ok(()),
        }
    }

    /// Adds what the row's logits answer; `None` if they are not finite.
    fn answer(&mut self, want: &Want, row: u32, position: u32, logits: &[f32]) -> Option<()> {
        match (want, &mut self.output) {
            (Want::Picks { sampling, .. }, Output::Picks(picks)) => {
                picks.push(sample::choose(logits, sampling, position + 1)?);
            }
            (Want::Scores { from, targets }, Output::Scores(scores)) => {
                scores.push(sample::score(logits, *targets.get((row - from) as usize)?)?);
            }
            (Want::Nothing, _) | (_, Output::Rows(_) | Output::Picks(_) | Output::Scores(_)) => {}
        }
        Some(())
    }
}

/// Rows of one chunk that go into one run.
struct Piece {
    chunk: usize,
    session: u64,
    /// Its first row, within the chunk.
    first: u32,
    rows: u32,
    /// Of its last rows.
    asked: u32,
}

impl Piece {
    fn first_asked(&self) -> u32 {
        self.first + self.rows - self.asked
    }
}
