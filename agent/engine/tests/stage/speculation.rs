//! Owns the promise that drafts change the time and nothing else, and shows what time they save.
//! Must never compare with a tolerance.

use skein_engine::draft::{Drafter, accept};
use skein_engine::stage::Stage;
use skein_engine::step::{Chunk, Input, Output, Pick, Sampling, Want};

use crate::real;
use crate::tiny::GREEDY;

const SESSION: u64 = 77;

/// Tokens after a prompt, with drafts from `propose`, which is told all tokens so far, and how many it guessed and
/// how many of those were right last time.
pub(crate) fn generate(
    stage: &mut Stage,
    prompt: &[u32],
    count: usize,
    sampling: Sampling,
    propose: &mut dyn FnMut(&[u32], usize, usize) -> Vec<u32>,
) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    let mut picks = Vec::new();
    for (number, part) in prompt.chunks(512).enumerate() {
        picks = pick(stage, 512 * number, part, part.len() - 1, sampling);
    }
    let mut draft: Vec<u32> = Vec::new();
    while tokens.len() < prompt.len() + count {
        let accepted = accept(&draft, &picks);
        tokens.extend(picks[..=accepted].iter().map(|pick| pick.token));
        draft = propose(&tokens, draft.len(), accepted);
        let sent: Vec<u32> = tokens[tokens.len() - 1..].iter().chain(&draft).copied().collect();
        picks = pick(stage, tokens.len() - 1, &sent, 0, sampling);
    }
    stage.close(SESSION);
    tokens[prompt.len()..prompt.len() + count].to_vec()
}

fn pick(stage: &mut Stage, position: usize, tokens: &[u32], from: usize, sampling: Sampling) -> Vec<Pick> {
    let (input, want) = (Input::Tokens(tokens.to_vec()), Want::Picks { from: from as u32, sampling });
    let chunk = Chunk { session: SESSION, position: position as u32, input, want };
    match stage.step(&[chunk]).pop().unwrap().unwrap() {
        Output::Picks(picks) => picks,
        Output::Rows(_) | Output::Scores(_) => panic!("not what was asked for"),
    }
}

/// No drafts at all.
pub(crate) fn plain() -> impl FnMut(&[u32], usize, usize) -> Vec<u32> {
    |_, _, _| Vec::new()
}

/// Look-up of the prompt, at most `most` tokens at a time; counts steps and wrong guesses.
fn lookup(most: usize, steps: &mut usize, wrong: &mut usize) -> impl FnMut(&[u32], usize, usize) -> Vec<u32> {
    let mut drafter = Drafter::new();
    move |tokens, proposed, accepted| {
        drafter.learn(proposed, accepted);
        drafter.extend(&tokens[drafter.tokens().len()..]);
        (*steps, *wrong) = (*steps + 1, *wrong + proposed - accepted);
        drafter.propose(most)
    }
}

const QUOTING: &str = "<|im_start|>user\nRepeat this text word for word: The house stood at the end of a long lane, \
    and nobody had lived in it for thirty years. The windows were broken, the door hung on one hinge, and the garden \
    had long since become a wood. Still the children of the village dared each other to touch its wall.<|im_end|>\n\
    <|im_start|>assistant\nThe house stood at the end";
const PROSE: &str =
    "<|im_start|>user\nTell me a story about a lighthouse.<|im_end|>\n<|im_start|>assistant\n";

#[test]
fn drafts_of_any_length_change_nothing() {
    let Some((mut stage, tokenizer)) = real::stage() else { return };
    for prompt in [QUOTING, PROSE] {
        let prompt = tokenizer.prompt(prompt);
        for sampling in [GREEDY, Sampling { temperature: 0.8, top_p: 0.95, seed: 42, top_logprobs: 0 }] {
            let expected = generate(&mut stage, &prompt, 64, sampling, &mut plain());
            for most in [1, 3, 8, 32] {
                let (mut steps, mut wrong) = (0, 0);
                let found =
                    generate(&mut stage, &prompt, 64, sampling, &mut lookup(most, &mut steps, &mut wrong));
                assert_eq!(found, expected, "drafts of up to {most}, temperature {}", sampling.temperature);
                let temperature = sampling.temperature;
                eprintln!(
                    "64 tokens, drafts of up to {most}, temperature {temperature}: {steps} steps, {wrong} wrong"
                );
            }
            // Guesses that are all wrong, and guesses that are wrong in the middle.
            let whole = [prompt.clone(), expected.clone()].concat();
            for wrong_at in [0, 1, 4] {
                let mut oracle = |tokens: &[u32], _, _| {
                    let mut draft: Vec<u32> =
                        whole[tokens.len().min(whole.len())..].iter().take(6).copied().collect();
                    if let Some(token) = draft.get_mut(wrong_at) {
                        *token = (*token + 1) % 1_000;
                    }
                    draft
                };
                assert_eq!(generate(&mut stage, &prompt, 64, sampling, &mut oracle), expected);
            }
        }
    }
}

#[test]
fn quotations_take_half_the_steps_and_prose_few_wrong_guesses() {
    let Some((mut stage, tokenizer)) = real::stage() else { return };
    let mut count = |prompt: &str| {
        let (mut steps, mut wrong) = (0, 0);
        generate(&mut stage, &tokenizer.prompt(prompt), 64, GREEDY, &mut lookup(32, &mut steps, &mut wrong));
        (steps, wrong)
    };
    let (steps, wrong) = count(QUOTING);
    assert!(steps <= 32, "{steps} steps for 64 quoted tokens, {wrong} wrong");
    let (steps, wrong) = count(PROSE);
    assert!(wrong <= 32, "{wrong} wrong guesses for 64 tokens of prose, {steps} steps");
}
