//! Owns guesses of the tokens to come, found in the tokens so far (prompt look-up: Saxena 2023), and how many to make.
//! Must never decide a token: a guess is checked against what the model chooses, so it changes the time and nothing else.
//!
//! Text that quotes its context (edits, summaries, code) repeats it. The last three or two tokens are looked up among all
//! before; what followed there is the guess. While a guess goes on being right its source is followed, which is a longer
//! match than any index would find. Each match length learns how far its guesses carry, and stops guessing for a while
//! when they do not, so that open prose loses next to nothing.

use std::collections::HashMap;

use crate::step::Pick;

/// Most tokens of one guess.
pub const DRAFT_MAX: usize = 32;
/// Tokens of the first guesses.
const DRAFT_START: usize = 8;
/// Longest pause, in tokens, after guesses that were all wrong.
const PAUSE_MAX: usize = 64;
/// Tokens that a look-up compares: the longer one is tried first.
const LONG: usize = 3;
const SHORT: usize = 2;
/// Tokens followed at one source from which on it counts as a match of its own kind: a quotation.
const QUOTED: usize = 8;

/// The tokens of one session, and what is known about guessing from them.
#[derive(Debug, Default)]
pub struct Drafter {
    tokens: Vec<u32>,
    /// Where the token after the latest occurrence of each n-gram lies.
    long: HashMap<[u32; LONG], usize>,
    short: HashMap<[u32; SHORT], usize>,
    /// Where the next token is expected to be copied from.
    source: Option<Source>,
    paces: [Pace; 3],
}

#[derive(Clone, Copy, Debug)]
struct Source {
    /// Index of the token that should come next.
    next: usize,
    /// Tokens before it that are known to agree.
    agreed: usize,
}

impl Source {
    /// Which of the paces it goes by.
    fn kind(self) -> usize {
        match self.agreed {
            ..LONG => 0,
            LONG..QUOTED => 1,
            _ => 2,
        }
    }
}

impl Drafter {
    /// Knows no tokens yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens so far.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Takes tokens that are certain: the prompt, and then what the model chose.
    pub fn extend(&mut self, tokens: &[u32]) {
        for token in tokens {
            self.push(*token);
        }
    }

    /// The guess: up to `most` tokens that may follow, none if nothing fits or guessing does not pay.
    #[must_use]
    pub fn propose(&self, most: usize) -> Vec<u32> {
        let Some(source) = self.source else { return Vec::new() };
        let pace = &self.paces[source.kind()];
        if pace.pause > 0 {
            return Vec::new();
        }
        // What follows the last token is the guess itself: text that repeats itself goes on repeating.
        let round = &self.tokens[source.next..];
        let length = most.min(DRAFT_MAX).min(pace.length());
        round.iter().cycle().take(length).copied().collect()
    }

    /// Learns how a guess went: call it before [`Drafter::extend`] with the tokens that came of it.
    pub fn learn(&mut self, proposed: usize, accepted: usize) {
        if let (Some(source), true) = (self.source, proposed > 0) {
            self.paces[source.kind()].learn(proposed, accepted);
        }
    }

    fn push(&mut self, token: u32) {
        if let Some(source) = self.source {
            let pace = &mut self.paces[source.kind()];
            pace.pause = pace.pause.saturating_sub(1);
        }
        let followed = self.source.filter(|source| self.tokens.get(source.next) == Some(&token));
        self.tokens.push(token);
        let end = self.tokens.len();
        let long = self.tokens.last_chunk::<LONG>().and_then(|gram| self.long.insert(*gram, end));
        let short = self.tokens.last_chunk::<SHORT>().and_then(|gram| self.short.insert(*gram, end));
        self.source = followed
            .map(|source| Source { next: source.next + 1, agreed: source.agreed + 1 })
            .filter(|source| source.agreed >= LONG || long.is_none())
            .or(long.map(|next| Source { next, agreed: LONG }))
            .or(short.map(|next| Source { next, agreed: SHORT }));
    }
}

/// How far the guesses of one kind of match carry.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Tokens to guess, learnt; none before the first guess.
    learnt: Option<usize>,
    /// Tokens to let pass before the next guess.
    pause: usize,
    /// The pause after the next guess that is all wrong.
    penalty: usize,
}

impl Pace {
    fn length(&self) -> usize {
        self.learnt.unwrap_or(DRAFT_START)
    }

    fn learn(&mut self, proposed: usize, accepted: usize) {
        if accepted == 0 {
            self.penalty = (self.penalty * 2).clamp(1, PAUSE_MAX);
            self.pause = self.penalty;
            self.learnt = Some((self.length() / 2).max(1));
        } else if accepted >= proposed {
            self.penalty = 0;
            self.learnt = Some((self.length() * 2).min(DRAFT_MAX));
        } else {
            self.penalty = 0;
            self.learnt = Some((accepted + 1).max(self.length() / 2));
        }
    }
}

/// How many tokens of a draft are what the model chose: `picks[i]` is its choice where `draft[i]` was guessed. The
/// pick after the last accepted one is the model's own next token.
#[must_use]
pub fn accept(draft: &[u32], picks: &[Pick]) -> usize {
    draft.iter().zip(picks).take_while(|(guess, pick)| **guess == pick.token).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drafter(tokens: &[u32]) -> Drafter {
        let mut drafter = Drafter::new();
        drafter.extend(tokens);
        drafter
    }

    fn picks(tokens: &[u32]) -> Vec<Pick> {
        tokens.iter().map(|token| Pick { token: *token, logprob: 0.0, top: Vec::new() }).collect()
    }

    #[test]
    fn the_longest_match_is_continued() {
        // After 1 2 3 came 4; after the later 9 2 3 came 5.
        assert_eq!(drafter(&[1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]).propose(1), [4]);
        // Only two tokens agree: the latest occurrence is continued.
        assert_eq!(drafter(&[1, 2, 3, 4, 9, 2, 3, 5, 7, 2, 3]).propose(3), [5, 7, 2]);
        assert_eq!(drafter(&[1, 2, 3, 4, 5]).propose(8), [] as [u32; 0]);
        assert_eq!(drafter(&[]).propose(8), [] as [u32; 0]);
    }

    #[test]
    fn a_source_is_followed_past_a_later_occurrence() {
        // 1 2 3 4 5 … is quoted again, though 3 4 5 occurred since with another end.
        let tokens = [1, 2, 3, 4, 5, 6, 8, 3, 4, 5, 7, 1, 2, 3, 4, 5];
        assert_eq!(drafter(&tokens).propose(1), [6]);
    }

    #[test]
    fn a_loop_is_expected_to_go_on() {
        assert_eq!(drafter(&[7, 7, 7, 7]).propose(5), [7; 5]);
        assert_eq!(drafter(&[1, 2, 3, 1, 2, 3]).propose(7), [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn what_the_model_did_not_choose_is_not_accepted() {
        assert_eq!(accept(&[1, 2, 3], &picks(&[1, 2, 9, 4])), 2);
        assert_eq!(accept(&[1, 2], &picks(&[1, 2, 3])), 2);
        assert_eq!(accept(&[1, 2, 3], &picks(&[1])), 1, "rows that were not answered are not accepted");
        assert_eq!(accept(&[], &picks(&[1])), 0);
    }

    /// Plays a text whose tokens are known: how many were guessed wrong, and how many steps it took.
    fn play(prompt: &[u32], text: &[u32]) -> (usize, usize) {
        let mut drafter = drafter(prompt);
        let (mut done, mut wrong, mut steps) = (0, 0, 0);
        while done < text.len() {
            let draft = drafter.propose(DRAFT_MAX);
            let accepted = accept(&draft, &picks(&text[done..]));
            drafter.learn(draft.len(), accepted);
            let end = (done + accepted + 1).min(text.len());
            drafter.extend(&text[done..end]);
            wrong += draft.len() - accepted;
            (done, steps) = (end, steps + 1);
        }
        (wrong, steps)
    }

    /// Tokens without a pattern, of few values, so that pairs and triples repeat by chance.
    fn noise(count: usize, values: u64) -> Vec<u32> {
        let mut state = 1_u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % values) as u32
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn a_quotation_takes_few_steps() {
        let prompt = noise(400, 5_000);
        let (wrong, steps) = play(&prompt, &prompt[100..300]);
        assert!(steps <= 20 && wrong <= 8, "{steps} steps, {wrong} wrong guesses for 200 quoted tokens");
    }

    #[test]
    fn noise_costs_few_wrong_guesses() {
        // Every triple of eight values has been seen after 2,000 tokens, and foretells nothing.
        let text = noise(4_000, 8);
        let (wrong, _) = play(&text[..2_000], &text[2_000..]);
        assert!(wrong <= 300, "{wrong} wrong guesses for 2,000 tokens of noise");
    }

    proptest! {
        #[test]
        fn guesses_are_bounded_and_taken_from_the_tokens(
            tokens in prop::collection::vec(0_u32..4, 0..200), most in 0_usize..100,
        ) {
            let drafter = drafter(&tokens);
            let draft = drafter.propose(most);
            prop_assert!(draft.len() <= most.min(DRAFT_MAX));
            // Tokens and guess together: the end of the tokens, wherever else it occurs, is followed by the guess.
            let both = [tokens.clone(), draft.clone()].concat();
            let known = &both[tokens.len() - if draft.is_empty() { 0 } else { SHORT }..];
            let earlier = both.windows(known.len().max(1)).filter(|window| *window == known).count();
            prop_assert!(draft.is_empty() || earlier >= 2);
        }
    }
}
