//! Owns the one algorithm behind byte-pair encoding and SentencePiece: join the best pair until none is left.
//! Must never know what makes a pair good, or what tokens mean.
//!
//! A heap keeps the candidates, so a word of n symbols costs n log n whatever it holds; pairs of the same rank join
//! from the left.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No neighbour.
const NONE: usize = usize::MAX;

/// A stretch of the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// First byte.
    pub start: usize,
    /// One past the last byte; equal to `start` once the symbol was joined to its left neighbour.
    pub end: usize,
    /// Its token, if it is one.
    pub token: Option<u32>,
    previous: usize,
    next: usize,
}

/// A pair that could be joined: rank, left and right symbol, where the pair ended when it was found, and its token.
type Candidate = Reverse<(u32, usize, usize, usize, u32)>;

/// Symbols of a word, in order.
pub(super) struct Symbols {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

impl Symbols {
    pub(super) fn new() -> Self {
        Self { symbols: Vec::new(), queue: BinaryHeap::new() }
    }

    pub(super) fn push(&mut self, start: usize, end: usize, token: Option<u32>) {
        let index = self.symbols.len();
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        let previous = index.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { start, end, token, previous, next: NONE });
    }

    /// Joins the pairs that `join` ranks, lowest rank first, and hands every remaining symbol to `each`.
    pub(super) fn merge(
        &mut self,
        join: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
        mut each: impl FnMut(&Symbol),
    ) {
        for right in 1..self.symbols.len() {
            self.consider(right - 1, right, &join);
        }
        while let Some(Reverse((_, left, right, end, token))) = self.queue.pop() {
            // Candidates are never withdrawn, so those whose symbols have changed since are passed over.
            if self.symbols[left].next != right || self.symbols[right].end != end {
                continue;
            }
            let next = self.symbols[right].next;
            let gone = &mut self.symbols[right];
            gone.start = gone.end;
            gone.next = NONE;
            let joined = &mut self.symbols[left];
            joined.end = end;
            joined.token = Some(token);
            joined.next = next;
            let previous = joined.previous;
            if next != NONE {
                self.symbols[next].previous = left;
                self.consider(left, next, &join);
            }
            if previous != NONE {
                self.consider(previous, left, &join);
            }
        }
        self.symbols.iter().filter(|symbol| symbol.start < symbol.end).for_each(&mut each);
        self.symbols.clear();
    }

    fn consider(&mut self, left: usize, right: usize, join: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        if let Some((rank, token)) = join(&self.symbols[left], &self.symbols[right]) {
            self.queue.push(Reverse((rank, left, right, self.symbols[right].end, token)));
        }
    }
}
