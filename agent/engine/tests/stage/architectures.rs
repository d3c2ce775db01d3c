//! Owns the comparison of the graph with the reference, architecture by architecture.
//! Must never depend on how fast either is.

use skein_engine::dtype::Dtype;

use crate::reference::logprobs;
use crate::tiny::{ALL, Tiny, VOCABULARY, config, in_chunks, open, tokens};

/// By how much, in the root of the mean square, the log-probabilities of a stage differ from the reference's, and how
/// far those are spread.
fn difference(model: &Tiny) -> (f64, f64) {
    let layers = skein_engine::source::TensorSource::config(model).layers;
    let text = tokens(50, VOCABULARY, 3);
    let picks = in_chunks(&mut [open(model, 0..layers)], 1, &text, &[50]);
    let expected = logprobs(model, &text);
    let (mut squares, mut spread, mut count) = (0.0, 0.0, 0.0);
    for (pick, expected) in picks.iter().zip(&expected) {
        assert_eq!(pick.top.len(), VOCABULARY as usize);
        let mean = expected.iter().sum::<f64>() / expected.len() as f64;
        for (token, logprob) in &pick.top {
            let exact = expected[*token as usize];
            squares += (f64::from(*logprob) - exact).powi(2);
            spread += (exact - mean).powi(2);
            count += 1.0;
        }
    }
    assert_eq!(picks.len(), 50);
    ((squares / count).sqrt(), (spread / count).sqrt())
}

#[test]
fn every_architecture_agrees_with_the_reference() {
    for architecture in ALL {
        for (dtype, tied, tolerance) in [(Dtype::F32, false, 2e-3), (Dtype::Q8_0, true, 8e-2)] {
            let (difference, spread) = difference(&Tiny::new(config(architecture), dtype, tied));
            eprintln!("{architecture:?} {dtype:?}: {difference:.5} of {spread:.3}");
            assert!(difference < tolerance * spread, "{architecture:?} differs by {difference} of {spread}");
        }
    }
}
