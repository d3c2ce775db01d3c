//! One request answered: so many choices for each of its prompts, side by side, told in pieces as they come.
//!
//! Every choice takes a place of its own; dropping the answer ends them all and gives their places back at once.
//! Must never know HTTP or JSON: tokens in, pieces of text out.

use std::collections::VecDeque;
use std::sync::Arc;

use skein_engine::draft::DRAFT_MAX;
use skein_engine::graph::PAGE_POSITIONS;
use skein_engine::step::{Pick, Sampling};
use smol::{Task, channel};

use super::generation::{Broken, Generation};
use super::served::Served;
use super::slots::{QueueFull, Slot, Turn};
use super::text::Text;
use crate::limits::{CHOICES_MAX, PIECES_QUEUED_MAX, READER_STALLED_MAX, ROOM_STEP};

/// What is to be answered.
pub(crate) struct Question {
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Choices for each prompt.
    pub(crate) choices: usize,
    /// At most so many tokens a choice; without, as many as the context has room for.
    pub(crate) max_tokens: Option<usize>,
    /// How to choose. Choice i of a prompt is drawn with the seed + i.
    pub(crate) sampling: Sampling,
    /// A choice ends before any of these.
    pub(crate) stops: Vec<String>,
    /// Whether a choice goes on where the model would end it.
    pub(crate) ignore_ends: bool,
    /// At most so many tokens are guessed ahead; 0 for one token a lap. Changes no text.
    pub(crate) draft_tokens: usize,
}

/// Why a question is not answered at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error(
        "{0} choices are asked for, allowed are 1 to {CHOICES_MAX} over all prompts\nhint: send several requests"
    )]
    Choices(usize),
    #[error("the prompt has no tokens\nhint: the model goes on from at least one")]
    Empty,
    #[error(
        "the prompt has token {token}, but this model's tokens are 0 to {last}\nhint: were they made by another model's tokenizer?"
    )]
    Token { token: u32, last: u32 },
    #[error("at least one token must be generated, not {0}\nhint: leave max_tokens out for the default")]
    Nothing(usize),
    #[error("{}", too_long(*.prompt, *.max_tokens, *.context))]
    TooLong { prompt: usize, max_tokens: Option<usize>, context: usize },
    #[error("the model is busy: {0}\nhint: try again in a moment")]
    Full(#[from] QueueFull),
}

fn too_long(prompt: usize, max_tokens: Option<usize>, context: usize) -> String {
    let wanted = match max_tokens {
        Some(tokens) => format!("{tokens} more are asked for"),
        None => "at least one more is needed".to_owned(),
    };
    format!(
        "the prompt has {prompt} tokens and {wanted}, but this model's context holds {context} in all\nhint: shorten the prompt, or ask for fewer tokens"
    )
}

/// A piece of one choice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    /// Of which choice: prompt × choices per prompt + number of the choice.
    pub(crate) choice: usize,
    /// More of its text.
    pub(crate) text: String,
    /// The tokens of this text. A token that ends the answer, or lies behind a stop string, is not told.
    pub(crate) tokens: Vec<Pick>,
    /// Tokens generated since the last piece, told or not.
    pub(crate) generated: usize,
    /// Why the choice ends here, if it does.
    pub(crate) finish: Option<Finish>,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
}

/// Tokens that a question cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of all prompts, each counted once.
    pub(crate) prompt: usize,
    /// Generated, over all choices.
    pub(crate) generated: usize,
}

/// An answer under way.
pub(crate) struct Answer {
    pieces: channel::Receiver<Result<Piece, Broken>>,
    usage: Usage,
    _choices: Task<()>,
}

impl Answer {
    /// Queues the question; its choices begin as places become free.
    ///
    /// # Errors
    /// [`Refused`], at once.
    pub(crate) fn begin(served: Arc<Served>, question: Question) -> Result<Self, Refused> {
        let context = served.context as usize;
        question.check(context, served.manifest().config.vocabulary)?;
        let usage = Usage { prompt: question.prompts.iter().map(Vec::len).sum(), generated: 0 };
        let tokens = question.prompts.first().map_or(0, |prompt| question.room(prompt, context).first());
        let first = served.slots.queue(tokens)?;
        let (sender, pieces) = channel::bounded(PIECES_QUEUED_MAX);
        let _choices = skein_mesh::spawn(choices(served, question, first, sender));
        Ok(Self { pieces, usage, _choices })
    }

    /// The next piece of any choice; `None` when all have ended.
    ///
    /// # Errors
    /// When a choice broke off; the answer is useless then.
    pub(crate) async fn next(&mut self) -> Option<Result<Piece, Broken>> {
        let piece = self.pieces.recv().await.ok()?;
        if let Ok(piece) = &piece {
            self.usage.generated += piece.generated;
        }
        Some(piece)
    }

    /// Of the pieces taken so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }
}

impl Question {
    /// What a choice of this prompt may take.
    fn room(&self, prompt: &[u32], context: usize) -> Room {
        let max_tokens = self.max_tokens.unwrap_or_else(|| context.saturating_sub(prompt.len()));
        Room { prompt: prompt.len(), max_tokens }
    }

    fn check(&self, context: usize, vocabulary: u32) -> Result<(), Refused> {
        let choices = self.prompts.len().saturating_mul(self.choices);
        if !(1..=CHOICES_MAX).contains(&choices) {
            return Err(Refused::Choices(choices));
        }
        if self.max_tokens == Some(0) {
            return Err(Refused::Nothing(0));
        }
        for prompt in &self.prompts {
            if prompt.is_empty() {
                return Err(Refused::Empty);
            }
            if let Some(&token) = prompt.iter().find(|token| **token >= vocabulary) {
                return Err(Refused::Token { token, last: vocabulary.saturating_sub(1) });
            }
            if prompt.len().saturating_add(self.max_tokens.unwrap_or(1)) > context {
                let (prompt, max_tokens) = (prompt.len(), self.max_tokens);
                return Err(Refused::TooLong { prompt, max_tokens, context });
            }
        }
        Ok(())
    }
}

type Sender = channel::Sender<Result<Piece, Broken>>;

/// Begins one choice after the other, each as soon as it has a place, and sees them to their end.
async fn choices(served: Arc<Served>, question: Question, first: Turn, sender: Sender) {
    let mut first = Some(first);
    let mut under_way = Vec::new();
    for (at, prompt) in question.prompts.iter().enumerate() {
        let room = question.room(prompt, served.context as usize);
        for number in 0..question.choices {
            let turn = first.take().unwrap_or_else(|| served.slots.queue_further(room.first()));
            let slot = turn.wait().await;
            let seed = question.sampling.seed.wrapping_add(number as u64);
            let sampling = Sampling { seed, ..question.sampling };
            let drafts = question.draft_tokens;
            let generation = Generation::new(Arc::clone(&served), prompt, room.max_tokens, sampling, drafts);
            let wording =
                Wording::new(at * question.choices + number, question.stops.clone(), room.max_tokens);
            let ignore_ends = question.ignore_ends;
            let place = Place { slot: Some(slot), room };
            let choice = choice(Arc::clone(&served), generation, wording, ignore_ends, place, sender.clone());
            under_way.push(skein_mesh::spawn(choice));
        }
    }
    // The channel ends with the last choice.
    drop(sender);
    for choice in under_way {
        choice.await;
    }
}

/// What a choice may hold in the caches, in tokens.
#[derive(Clone, Copy, Debug)]
struct Room {
    prompt: usize,
    max_tokens: usize,
}

impl Room {
    /// With which it begins: answers are mostly short, and whoever reserves for the longest keeps others out.
    fn first(self) -> usize {
        self.after(0)
    }

    /// After so many tokens of its answer. Caches are made of pages.
    fn after(self, answered: usize) -> usize {
        let steps = answered / ROOM_STEP + 1;
        let tokens = self.max_tokens.min(steps.saturating_mul(ROOM_STEP) + DRAFT_MAX + 1);
        (self.prompt + tokens).next_multiple_of(PAGE_POSITIONS)
    }
}

/// A choice's place, which grows with its answer.
struct Place {
    /// None only while it waits for a larger one.
    slot: Option<Slot>,
    room: Room,
}

impl Place {
    /// Makes room for the next lap. Where there is none, the choice leaves, so that others come to their end, queues
    /// again, and goes on by replay.
    async fn fit(&mut self, served: &Served, generation: &mut Generation) {
        let wanted = self.room.after(generation.answered());
        if self.slot.as_mut().is_some_and(|slot| slot.tokens() >= wanted || slot.grow(wanted)) {
            return;
        }
        generation.pause().await;
        self.slot = None;
        self.slot = Some(served.slots.queue_further(wanted).wait().await);
    }
}

/// One choice from its first token to its last, unless nobody listens any more.
async fn choice(
    served: Arc<Served>,
    mut generation: Generation,
    mut wording: Wording,
    ignore_ends: bool,
    mut place: Place,
    sender: Sender,
) {
    let tokenizer = &served.model.tokenizer;
    let spell = |token| (ignore_ends || !tokenizer.is_end(token)).then(|| tokenizer.bytes_of(token));
    loop {
        place.fit(&served, &mut generation).await;
        let piece = match generation.next().await {
            Ok(picks) => wording.add(picks, spell).map(Ok),
            Err(broken) => Some(Err(broken)),
        };
        let Some(piece) = piece else { continue };
        let last = piece.as_ref().map_or(true, |piece| piece.finish.is_some());
        let stalled = async {
            smol::Timer::after(READER_STALLED_MAX).await;
            false
        };
        let heard = smol::future::or(async { sender.send(piece).await.is_ok() }, stalled).await;
        if last || !heard {
            break;
        }
    }
    // The client has its answer already, and need not wait for what the agents still have to say of it.
    drop(sender);
    let ending = async move {
        let sample = generation.end().await;
        drop(place);
        if let Some(sample) = sample {
            served.samples.offer(sample).await;
        }
    };
    skein_mesh::spawn(ending).detach();
}

/// The wording of one choice: tokens in, pieces out.
struct Wording {
    choice: usize,
    text: Text,
    /// Tokens left to generate.
    left: usize,
    generated: usize,
    untold: VecDeque<Untold>,
}

/// A token whose text is held back, and where in the text it stands.
struct Untold {
    pick: Pick,
    begin: usize,
    end: usize,
}

impl Wording {
    fn new(choice: usize, stops: Vec<String>, max_tokens: usize) -> Self {
        Self { choice, text: Text::new(stops), left: max_tokens, generated: 0, untold: VecDeque::new() }
    }

    /// Adds the tokens that the model chose, up to the one that ends the answer; a piece, if there is something to
    /// tell. `spell` gives a token's bytes, and none for a token that ends an answer.
    fn add<'a>(&mut self, picks: Vec<Pick>, spell: impl Fn(u32) -> Option<&'a [u8]>) -> Option<Piece> {
        let mut finish = None;
        for pick in picks {
            self.left = self.left.saturating_sub(1);
            self.generated += 1;
            let begin = self.text.len();
            let stopped = match spell(pick.token) {
                None => true,
                Some(bytes) => {
                    self.untold.push_back(Untold { pick, begin, end: begin + bytes.len() });
                    self.text.push(bytes)
                }
            };
            finish = if stopped { Some(Finish::Stop) } else { (self.left == 0).then_some(Finish::Length) };
            if finish.is_some() {
                break;
            }
        }
        let text = self.text.fresh(finish.is_some());
        let told = self.text.told();
        // A token that was cut by a stop string is told with what is left of it.
        let tellable = |token: &&Untold| token.end <= told || (finish.is_some() && token.begin < told);
        let ready = self.untold.iter().take_while(tellable).count();
        if finish.is_none() && ready == 0 && text.is_empty() {
            return None;
        }
        let tokens = self.untold.drain(..ready).map(|token| token.pick).collect();
        let generated = std::mem::take(&mut self.generated);
        Some(Piece { choice: self.choice, text, tokens, generated, finish })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: [&str; 6] = ["one ", "two ", "STO", "P", "RM", "\u{20ac}"];
    const END: u32 = 99;
    /// The Euro sign byte by byte.
    const EURO: [&[u8]; 3] = [b"\xe2", b"\x82", b"\xac"];

    fn spell(token: u32) -> Option<&'static [u8]> {
        match token {
            END => None,
            100.. => Some(EURO[token as usize - 100]),
            _ => Some(VOCABULARY[token as usize].as_bytes()),
        }
    }

    fn picks(tokens: &[u32]) -> Vec<Pick> {
        tokens.iter().map(|&token| Pick { token, logprob: -1.0, top: Vec::new() }).collect()
    }

    /// Text, tokens, count and end of the piece that these tokens give.
    fn add(wording: &mut Wording, tokens: &[u32]) -> Option<(String, Vec<u32>, usize, Option<Finish>)> {
        let piece = wording.add(picks(tokens), spell)?;
        assert_eq!(piece.choice, 3);
        let tokens = piece.tokens.iter().map(|pick| pick.token).collect();
        Some((piece.text, tokens, piece.generated, piece.finish))
    }

    #[test]
    fn tokens_are_told_with_their_text_and_none_behind_the_end() {
        let mut wording = Wording::new(3, vec!["STOP".into()], 20);
        assert_eq!(add(&mut wording, &[0]), Some(("one ".into(), vec![0], 1, None)));
        // May be a stop string's beginning.
        assert_eq!(add(&mut wording, &[2]), None);
        assert_eq!(add(&mut wording, &[4, 2]), Some(("STORM".into(), vec![2, 4], 3, None)));
        // A draft that was right beyond the end counts for nothing.
        assert_eq!(add(&mut wording, &[3, 0, 0]), Some((String::new(), vec![], 1, Some(Finish::Stop))));
    }

    #[test]
    fn the_end_token_ends_and_is_counted_but_not_told() {
        let mut wording = Wording::new(3, vec![], 20);
        let piece = add(&mut wording, &[0, 1, END, 0]);
        assert_eq!(piece, Some(("one two ".into(), vec![0, 1], 3, Some(Finish::Stop))));
    }

    #[test]
    fn the_last_token_allowed_ends_by_length_unless_it_ends_anyway() {
        let mut wording = Wording::new(3, vec!["STOP".into()], 3);
        let piece = add(&mut wording, &[0, 1, 2, 0]);
        assert_eq!(piece, Some(("one two STO".into(), vec![0, 1, 2], 3, Some(Finish::Length))));
        let mut wording = Wording::new(3, vec!["STOP".into()], 2);
        assert_eq!(add(&mut wording, &[2, 3]), Some((String::new(), vec![], 2, Some(Finish::Stop))));
        let mut wording = Wording::new(3, vec![], 2);
        assert_eq!(add(&mut wording, &[0, END]), Some(("one ".into(), vec![0], 2, Some(Finish::Stop))));
    }

    #[test]
    fn a_character_of_three_tokens_is_told_with_all_three() {
        let mut wording = Wording::new(3, vec![], 20);
        assert_eq!(add(&mut wording, &[100]), None);
        assert_eq!(add(&mut wording, &[101]), None);
        assert_eq!(add(&mut wording, &[102]), Some(("\u{20ac}".into(), vec![100, 101, 102], 3, None)));
    }

    #[test]
    fn a_stop_string_inside_a_token_keeps_the_token_that_began_before_it() {
        let mut wording = Wording::new(3, vec!["e ".into()], 20);
        assert_eq!(add(&mut wording, &[1, 0]), Some(("two on".into(), vec![1, 0], 2, Some(Finish::Stop))));
        let mut wording = Wording::new(3, vec!["o one".into()], 20);
        assert_eq!(add(&mut wording, &[1]), Some(("tw".into(), vec![], 1, None)));
        assert_eq!(add(&mut wording, &[0]), Some((String::new(), vec![1], 1, Some(Finish::Stop))));
        let mut wording = Wording::new(3, vec!["TORM".into(), "O".into()], 20);
        assert_eq!(add(&mut wording, &[2]), Some(("ST".into(), vec![2], 1, Some(Finish::Stop))));
    }

    fn question(prompts: Vec<Vec<u32>>, choices: usize, max_tokens: Option<usize>) -> Question {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 0, top_logprobs: 0 };
        Question {
            prompts,
            choices,
            max_tokens,
            sampling,
            stops: Vec::new(),
            ignore_ends: false,
            draft_tokens: 0,
        }
    }

    #[test]
    fn what_cannot_be_answered_is_refused_with_its_reason() {
        let check = |prompts, choices, max_tokens| question(prompts, choices, max_tokens).check(10, 50);
        let prompt = vec![1_u32; 6];
        assert_eq!(check(vec![prompt.clone()], 1, Some(4)), Ok(()));
        assert_eq!(check(vec![prompt.clone()], 1, None), Ok(()));
        assert_eq!(check(vec![prompt.clone(); 2], 64, None), Ok(()));
        assert_eq!(check(vec![prompt.clone(); 2], 65, None), Err(Refused::Choices(130)));
        assert_eq!(check(vec![prompt.clone(); 2], usize::MAX, None), Err(Refused::Choices(usize::MAX)));
        assert_eq!(check(vec![], 1, None), Err(Refused::Choices(0)));
        assert_eq!(check(vec![prompt.clone(), vec![]], 1, None), Err(Refused::Empty));
        assert_eq!(check(vec![prompt.clone()], 1, Some(0)), Err(Refused::Nothing(0)));
        assert_eq!(check(vec![vec![50]], 1, None), Err(Refused::Token { token: 50, last: 49 }));
        let error = check(vec![prompt.clone()], 1, Some(5));
        assert_eq!(error, Err(Refused::TooLong { prompt: 6, max_tokens: Some(5), context: 10 }));
        assert!(matches!(check(vec![prompt], 1, Some(usize::MAX)), Err(Refused::TooLong { .. })));
        assert!(matches!(check(vec![vec![1; 10]], 1, None), Err(Refused::TooLong { .. })));
    }
}
