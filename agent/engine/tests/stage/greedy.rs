//! Owns the comparison with llama.cpp on the real model: greedy continuations and perplexity.
//! Must never run without the model.

use skein_engine::evaluate::perplexity;
use skein_engine::stage::Stage;
use skein_engine::tokenizer::Tokenizer;

use crate::goldens::GOLDENS;
use crate::real;
use crate::speculation::{generate, plain};
use crate::tiny::GREEDY;

/// Part of the corpus (Shakespeare, public domain).
const CORPUS: &str = include_str!("corpus.txt");
/// What `llama-perplexity -c 256` says of it with the same model.
const LLAMA_PERPLEXITY: f64 = 44.2099;

fn continued(stage: &mut Stage, tokenizer: &Tokenizer, prompt: &str) -> String {
    let mut tokens = generate(stage, &tokenizer.prompt(prompt), 32, GREEDY, &mut plain());
    tokens.truncate(tokens.iter().position(|token| tokenizer.is_end(*token)).unwrap_or(tokens.len()));
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| tokenizer.bytes_of(*token)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn greedy_continuations_are_llama_cpps() {
    let Some((mut stage, tokenizer)) = real::stage() else { return };
    let mut equal = 0;
    for (prompt, expected) in GOLDENS {
        let found = continued(&mut stage, &tokenizer, prompt);
        if found == expected {
            equal += 1;
        } else {
            eprintln!("{prompt:?}\n  ours  {found:?}\n  llama {expected:?}");
        }
    }
    eprintln!("{equal} of {} continuations are equal", GOLDENS.len());
    assert!(equal >= 18, "only {equal} of {} continuations are llama.cpp's", GOLDENS.len());
}

#[test]
fn the_perplexity_is_llama_cpps() {
    let Some((mut stage, tokenizer)) = real::stage() else { return };
    let tokens = tokenizer.prompt(CORPUS);
    let mut told = Vec::new();
    let begin = tokenizer.prompt("").first().copied();
    let found =
        perplexity(&mut stage, &tokens, 256, begin, &mut |done, all, _| told.push((done, all))).unwrap();
    eprintln!("{found:?}, llama.cpp {LLAMA_PERPLEXITY}");
    let windows = tokens.len() / 256;
    assert_eq!(told, (1..=windows).map(|done| (done, windows)).collect::<Vec<_>>());
    assert_eq!(found.tokens, windows * 127);
    assert!(
        (found.perplexity / LLAMA_PERPLEXITY - 1.0).abs() < 0.01,
        "{found:?}, llama.cpp {LLAMA_PERPLEXITY}"
    );
    // The windows are longer than a chunk may be, and the numbers the same as in one run of many.
    let long = perplexity(&mut stage, &tokens, 700, begin, &mut |_, _, _| {}).unwrap();
    assert!(long.tokens == tokens.len() / 700 * 349 && long.perplexity < found.perplexity * 1.2, "{long:?}");
}
