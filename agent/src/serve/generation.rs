//! One answer under way: prompt in, tokens out, through as many pipelines as it takes.
//!
//! Keeps every token it has, so that when a stage dies they are sent again in one pass through the next
//! pipeline. A choice is a function of logits, seed and position, so the tokens that follow are those that
//! would have followed. Drafts ride along with the last token: those that equal what the model then chooses
//! cost no lap of their own. Keeps what the last stages commit to, so that the answer can be checked. Must never know
//! text: tokens only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use skein_engine::draft::{Drafter, accept};
use skein_engine::step::{Output, Pick, Sampling, Want};
use skein_proto::ids::{LeaseId, NodeId};
use skein_proto::message::StageAt;

use super::samples::{Claim, Sample};
use super::served::Served;
use crate::daemon::pipeline::{Answered, Session, SessionError};
use crate::limits::{PLACEMENT_POLL, PREFILL_ROWS, REPLAYS_MAX, REROUTE_WAIT};

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// No pipeline, or none that held.
    #[error("{0}")]
    Pipeline(String),
    /// Nobody serves the model any more, so no pipeline will come.
    #[error("{0}")]
    Withdrawn(String),
    /// A stage answered with what cannot be.
    #[error("the pipeline answered with {0}")]
    Nonsense(String),
}

/// An answer under way.
pub(crate) struct Generation {
    served: Arc<Served>,
    sampling: Sampling,
    /// Knows prompt and answer so far.
    drafter: Drafter,
    drafts: usize,
    prompt: usize,
    max_tokens: usize,
    session: Option<Session>,
    /// Tokens that the session's caches hold.
    cached: usize,
    /// Pipelines that broke one after the other, without a token between.
    replays: usize,
    /// Pipelines that broke in all.
    breaks: usize,
    claims: Vec<Claim>,
}

impl Generation {
    /// At most `max_tokens` after `prompt`, which has at least one token; both fit the context. At most `drafts` tokens
    /// are guessed ahead.
    pub(crate) fn new(
        served: Arc<Served>,
        prompt: &[u32],
        max_tokens: usize,
        sampling: Sampling,
        drafts: usize,
    ) -> Self {
        let mut drafter = Drafter::new();
        drafter.extend(prompt);
        let prompt = prompt.len();
        Self {
            served,
            sampling,
            drafter,
            drafts,
            prompt,
            max_tokens,
            session: None,
            cached: 0,
            replays: 0,
            breaks: 0,
            claims: Vec::new(),
        }
    }

    /// Tokens answered so far.
    pub(crate) fn answered(&self) -> usize {
        self.drafter.tokens().len() - self.prompt
    }

    /// The next tokens, one or more, but never beyond `max_tokens`.
    ///
    /// # Errors
    /// When no pipeline could be had, or too many broke.
    pub(crate) async fn next(&mut self) -> Result<Vec<Pick>, Broken> {
        loop {
            let broken = match self.lap().await {
                Ok(picks) => {
                    let chosen: Vec<u32> = picks.iter().map(|pick| pick.token).collect();
                    self.drafter.extend(&chosen);
                    self.replays = 0;
                    return Ok(picks);
                }
                Err(Broken::Withdrawn(why)) => return Err(Broken::Withdrawn(why)),
                Err(broken) => broken,
            };
            self.session = None;
            self.replays += 1;
            self.breaks += 1;
            tracing::info!(replays = self.replays, "{broken}; going through another pipeline");
            if self.replays > REPLAYS_MAX {
                let message = format!("gave up after {REPLAYS_MAX} pipelines that broke at once: {broken}");
                return Err(Broken::Pipeline(message));
            }
            // The coordinator needs a moment to notice what we noticed, and a crowded stage to have room again.
            smol::Timer::after(PLACEMENT_POLL * u32::try_from(self.replays).unwrap_or(1)).await;
        }
    }

    /// Sends what the caches lack, and a draft; returns what the model chose.
    async fn lap(&mut self) -> Result<Vec<Pick>, Broken> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                self.cached = 0;
                self.open().await?
            }
        };
        let left = self.max_tokens - self.answered();
        // A draft of as many tokens as are left, less the one that comes in any case.
        let draft = self.drafter.propose(left.saturating_sub(1).min(self.drafts));
        let tokens = self.drafter.tokens();
        let mut sent = 0;
        let mut answers = 0;
        let mut picks = Vec::new();
        let broken = |error: SessionError| Broken::Pipeline(error.to_string());
        while self.cached < tokens.len() || answers < sent {
            // So many steps at once that every stage has one, and one waits before each.
            while self.cached < tokens.len() && sent - answers < 2 * session.stages() {
                let end = tokens.len().min(self.cached + PREFILL_ROWS);
                let mut rows = tokens[self.cached..end].to_vec();
                let mut want = Want::Nothing;
                if end == tokens.len() {
                    let from = u32::try_from(rows.len() - 1).unwrap_or(u32::MAX);
                    want = Want::Picks { from, sampling: self.sampling };
                    rows.extend(&draft);
                }
                let position = u32::try_from(self.cached).unwrap_or(u32::MAX);
                session.send(position, &rows, want).await.map_err(broken)?;
                self.cached = end;
                sent += 1;
            }
            let Answered { output, spans } = session.answer().await.map_err(broken)?;
            self.claims.extend(spans.into_iter().map(|span| Claim::new(session.last(), span)));
            match output {
                Output::Picks(answered) => picks = answered,
                Output::Rows(_) | Output::Scores(_) => {
                    return Err(Broken::Nonsense("other than picks".into()));
                }
            }
            answers += 1;
        }
        self.check(&picks, draft.len())?;
        let good = accept(&draft, &picks);
        self.drafter.learn(draft.len(), good);
        self.cached += good;
        picks.truncate(good + 1);
        self.session = Some(session);
        Ok(picks)
    }

    /// Frees what it holds at the stages; the next lap sends everything again. Who chose last, if anybody.
    pub(crate) async fn pause(&mut self) -> Option<(NodeId, LeaseId)> {
        let session = self.session.take()?;
        let last = session.last();
        let length = u32::try_from(self.cached).unwrap_or(u32::MAX);
        match session.end(length).await {
            Ok(spans) => self.claims.extend(spans.into_iter().map(|span| Claim::new(last, span))),
            Err(error) => {
                tracing::debug!(%error, "a session did not end well");
                self.breaks += 1;
            }
        }
        Some(last)
    }

    /// Ends the session. What can be checked of the answer, if it has one.
    pub(crate) async fn end(mut self) -> Option<Sample> {
        let last = self.pause().await?;
        let (prompt, answer) = self.drafter.tokens().split_at(self.prompt);
        Some(Sample {
            model: self.served.digest,
            name: self.served.name.clone(),
            agent: last.0,
            sampling: self.sampling.into(),
            prompt: prompt.to_vec(),
            answer: answer.to_vec(),
            breaks: self.breaks,
            claims: self.claims,
        })
    }

    /// A stage is a stranger: its picks must be so many, and tokens of this model.
    fn check(&self, picks: &[Pick], draft: usize) -> Result<(), Broken> {
        if picks.len() != draft + 1 {
            return Err(Broken::Nonsense(format!(
                "{} tokens where {} were asked for",
                picks.len(),
                draft + 1
            )));
        }
        let vocabulary = self.served.manifest().config.vocabulary;
        let known = |pick: &Pick| {
            pick.token < vocabulary
                && pick.logprob.is_finite()
                && pick.top.len() <= usize::from(self.sampling.top_logprobs)
                && pick.top.iter().all(|(token, logprob)| *token < vocabulary && logprob.is_finite())
        };
        if picks.iter().all(known) {
            Ok(())
        } else {
            Err(Broken::Nonsense("a token that the model lacks".into()))
        }
    }

    async fn open(&self) -> Result<Session, Broken> {
        let stages = self.ready_stages().await?;
        let opened = self.served.pipeline().open(&stages).await;
        opened.map_err(|error| Broken::Pipeline(error.to_string()))
    }

    /// The stages of the pipeline, as soon as it is complete.
    async fn ready_stages(&self) -> Result<Vec<StageAt>, Broken> {
        let started = Instant::now();
        loop {
            let stages = self.served.stages().await.map_err(Broken::Withdrawn)?;
            if !stages.is_empty() {
                return Ok(stages);
            }
            if started.elapsed() > REROUTE_WAIT {
                let seconds = REROUTE_WAIT.as_secs();
                return Err(Broken::Pipeline(format!("no complete pipeline within {seconds} s")));
            }
            smol::Timer::after(Duration::from_millis(20).max(PLACEMENT_POLL / 4)).await;
        }
    }
}
