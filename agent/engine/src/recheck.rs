//! Owns the check of an answer that somebody else computed: the same tokens once more, in one pass instead of one by one.
//! Must never trust a span: it comes from the one who is checked.

use crate::limits::CHUNK_ROWS_MAX;
use crate::stage::Stage;
use crate::step::{Chunk, Input, Output, Sampling, StepError, Want};
use crate::toploc::{Comparison, Span, TOKENS, compare};

/// Rows computed at once.
const ROWS: usize = if CHUNK_ROWS_MAX < 256 { CHUNK_ROWS_MAX } else { 256 };

/// Of a hundred tokens, those that the re-run must draw too. Of honest runs on another backend it drew 78 and more at
/// temperature 0.8 (`tests/stage/commitments.rs`): a draw between two tokens may fall to the other side.
const PICKS_PERCENT_MIN: usize = 50;
/// So many may differ in any case, or chance would condemn short answers.
const PICKS_FORGIVEN: usize = 4;

/// What a re-run found.
#[derive(Clone, Debug, PartialEq)]
pub struct Recheck {
    /// For every span, how it compares; `None` where it is none of this answer's.
    pub spans: Vec<Option<Comparison>>,
    /// States behind the answer, one for each token.
    pub states: usize,
    /// Those that no span covers.
    pub uncovered: usize,
    /// Tokens that the re-run chose too.
    pub picks_equal: usize,
}

impl Recheck {
    /// Whether an honest agent's answer looks so. `breaks` is how often its pipeline broke: what was computed since the
    /// last span was then never committed to.
    #[must_use]
    pub fn passes(&self, breaks: usize) -> bool {
        self.spans.iter().all(|span| span.is_some_and(|comparison| comparison.passes()))
            && self.uncovered <= breaks.saturating_mul(2 * TOKENS)
            && (self.picks_equal + PICKS_FORGIVEN) * 100 >= self.states * PICKS_PERCENT_MIN
    }
}

/// Runs `prompt` and `answer` through a stage of all layers, and compares with what was committed to. Neither may be
/// empty.
///
/// # Errors
/// [`StepError`] if these are no tokens of the model, or too many.
pub fn recheck(
    stage: &mut Stage,
    prompt: &[u32],
    answer: &[u32],
    sampling: Sampling,
    spans: &[Span],
) -> Result<Recheck, StepError> {
    let tokens: Vec<u32> = prompt.iter().chain(answer).copied().collect();
    let sent = tokens.len().saturating_sub(1);
    let first = prompt.len().saturating_sub(1);
    let width = stage.config().width as usize;
    let (mut states, mut picks) = (Vec::with_capacity(answer.len() * width), Vec::new());
    for start in (0..sent).step_by(ROWS) {
        let end = sent.min(start + ROWS);
        let want = if end > first {
            Want::Picks { from: first.saturating_sub(start) as u32, sampling }
        } else {
            Want::Nothing
        };
        let input = Input::Tokens(tokens[start..end].to_vec());
        let chunk = Chunk { session: 0, position: start as u32, input, want };
        let answered = stage.step_observed(&[chunk], &mut |_, _, state| states.extend_from_slice(state));
        if let Some(Output::Picks(more)) = answered.into_iter().next().transpose()? {
            picks.extend(more.into_iter().map(|pick| pick.token));
        }
    }
    stage.close(0);
    let mut covered = vec![false; answer.len()];
    let compared = spans.iter().map(|span| {
        let from = (span.first as usize).checked_sub(first)?;
        let rows = from..from.checked_add(usize::from(span.count))?;
        covered.get_mut(rows.clone())?.fill(true);
        compare(&span.commitment, states.get(rows.start * width..rows.end * width)?)
    });
    let spans = compared.collect();
    Ok(Recheck {
        spans,
        states: answer.len(),
        uncovered: covered.iter().filter(|covered| !**covered).count(),
        picks_equal: picks.iter().zip(answer).filter(|(own, theirs)| own == theirs).count(),
    })
}
