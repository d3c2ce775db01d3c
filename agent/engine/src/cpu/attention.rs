//! Owns attention: scores of a query against cached keys, their softmax, and the mix of the cached values.
//! Must never add in an order that depends on anything but the query's own position.
//!
//! Two passes over a query's pages: all scores, then all values. The heads that share keys and values are computed
//! together, each with its own sums.

use super::lanes::{Kernel, LANES, Lanes};
use super::math::{capped, exp};
use super::pages::{PAGE, Pages};
use super::pool::Pool;

/// Multiplications below which another thread does not pay for its waking.
const TASK_PRODUCTS: usize = 1 << 18;

/// What all queries of a layer have in common.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub cap: Option<f32>,
    /// Only so many positions are seen, the query's own included.
    pub window: Option<u32>,
}

/// One row of queries.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The pages of its session, from position 0 on. Those wholly before the window are not read.
    pub pages: &'a [u32],
    /// Its own position, whose key and value are already written.
    pub position: u32,
}

/// `out[r] = attention of queries[r]`, both row-major, all heads of a row one after the other.
///
/// # Panics
/// If the sizes do not fit, or a page is missing.
pub fn attend(
    pool: &Pool,
    pages: &Pages,
    layer: usize,
    attention: &Attention,
    rows: &[Row<'_>],
    queries: &[f32],
    out: &mut [f32],
) {
    assert_eq!(queries.len(), out.len(), "queries and outputs");
    if rows.is_empty() {
        return;
    }
    let width = queries.len() / rows.len();
    let shared = width / pages.kv_heads();
    let (heads, group) = (width / pages.head_width(), shared / pages.head_width());
    assert!(group > 0 && heads * pages.head_width() * rows.len() == queries.len(), "{heads} heads");
    assert_eq!(heads, group * pages.kv_heads(), "query heads are a multiple of the others");

    let positions: usize = rows.iter().map(|row| row.position as usize + 1).sum();
    let tasks = (positions * 2 * width / TASK_PRODUCTS).clamp(1, 4 * pool.threads());
    let pairs = (rows.len() * pages.kv_heads()).div_ceil(tasks);
    let parts: Vec<(usize, &mut [f32])> = out.chunks_mut(pairs * shared).enumerate().collect();
    pool.each(parts, |(part, out)| {
        let first = part * pairs;
        pool.set().run(Attend { pages, layer, attention, rows, queries, out, first, group });
    });
}

/// Consecutive pairs of a row and a key head, from the `first` on.
struct Attend<'a> {
    pages: &'a Pages,
    layer: usize,
    attention: &'a Attention,
    rows: &'a [Row<'a>],
    queries: &'a [f32],
    out: &'a mut [f32],
    first: usize,
    /// Query heads to a key head.
    group: usize,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let width = self.pages.head_width();
        let shared = self.group * width;
        let mut room = Room::default();
        for (pair, out) in (self.first..).zip(self.out.chunks_exact_mut(shared)) {
            let (row, kv_head) = (pair / self.pages.kv_heads(), pair % self.pages.kv_heads());
            let queries = &self.queries[pair * shared..][..shared];
            let mut head = 0;
            while head < self.group {
                let left = if L::MANY_REGISTERS { self.group - head } else { (self.group - head).min(2) };
                let job = Job {
                    pages: self.pages,
                    layer: self.layer,
                    attention: self.attention,
                    row: self.rows[row],
                    kv_head,
                };
                let (queries, out) = (&queries[head * width..], &mut out[head * width..]);
                match left {
                    1 => job.run::<L, 1>(lanes, queries, out, &mut room),
                    2 => job.run::<L, 2>(lanes, queries, out, &mut room),
                    3 => job.run::<L, 3>(lanes, queries, out, &mut room),
                    _ => job.run::<L, 4>(lanes, queries, out, &mut room),
                }
                head += left.min(4);
            }
        }
    }
}

/// Buffers that the jobs of a task use one after the other.
#[derive(Default)]
struct Room {
    /// `[head][element]`
    queries: Vec<f32>,
    /// `[head][position]`
    scores: Vec<f32>,
}

/// Some query heads of one row that share a key head.
struct Job<'a> {
    pages: &'a Pages,
    layer: usize,
    attention: &'a Attention,
    row: Row<'a>,
    kv_head: usize,
}

impl Job<'_> {
    #[inline(always)]
    fn run<L: Lanes, const H: usize>(&self, lanes: L, queries: &[f32], out: &mut [f32], room: &mut Room) {
        let width = self.pages.head_width();
        let last = self.row.position as usize;
        let window = self.attention.window.unwrap_or(u32::MAX) as usize;
        let first = (last + 1).saturating_sub(window);
        let (page, end) = (first / PAGE, last / PAGE + 1);
        let used = &self.row.pages[page..end];
        let origin = page * PAGE;
        let length = used.len() * PAGE;

        room.queries.clear();
        room.queries.extend(queries[..H * width].iter().map(|query| query * self.attention.scale));
        room.scores.resize(H * length, 0.0);
        let scores = &mut room.scores[..H * length];
        for (index, page) in used.iter().enumerate() {
            let (keys, _) = self.pages.head(self.layer, self.kv_head, *page);
            score::<L, H>(lanes, keys, &room.queries, scores, length, index * PAGE);
        }
        let mut shares = [0.0; H];
        for (head, scores) in scores.chunks_exact_mut(length).enumerate() {
            if let Some(cap) = self.attention.cap {
                for scores in scores.as_chunks_mut::<LANES>().0 {
                    lanes.store(capped(lanes, lanes.load(scores), cap), scores);
                }
            }
            scores[..first - origin].fill(f32::NEG_INFINITY);
            scores[last + 1 - origin..].fill(f32::NEG_INFINITY);
            shares[head] = 1.0 / exponentials(lanes, scores);
        }

        let vectors = width.div_ceil(LANES);
        let mut from = 0;
        while from < vectors {
            let range = first - origin..last + 1 - origin;
            let mix = Mix { job: self, used, scores, length, range, from, shares };
            if L::MANY_REGISTERS && from + 4 <= vectors {
                mix.run::<L, 4>(lanes, out);
                from += 4;
            } else if from + 2 <= vectors {
                mix.run::<L, 2>(lanes, out);
                from += 2;
            } else {
                mix.run::<L, 1>(lanes, out);
                from += 1;
            }
        }
    }
}

/// Scores of `H` queries against the sixteen keys of a page.
#[inline(always)]
fn score<L: Lanes, const H: usize>(
    lanes: L,
    keys: &[[u16; PAGE]],
    queries: &[f32],
    scores: &mut [f32],
    length: usize,
    at: usize,
) {
    let width = keys.len();
    // Even and odd elements apart, so that additions need not wait for each other.
    let mut sums = [[lanes.splat(0.0); 2]; H];
    for (pair, two) in keys.as_chunks::<2>().0.iter().enumerate() {
        for odd in 0..2 {
            let keys = lanes.load_half_words(&two[odd]);
            for head in 0..H {
                let query = lanes.splat(queries[head * width + 2 * pair + odd]);
                sums[head][odd] = lanes.fma(query, keys, sums[head][odd]);
            }
        }
    }
    for head in 0..H {
        if let Some(to) = scores[head * length + at..].first_chunk_mut() {
            lanes.store(lanes.add(sums[head][0], sums[head][1]), to);
        }
    }
}

/// Replaces scores by e^(score − greatest) and returns their sum.
#[inline(always)]
fn exponentials<L: Lanes>(lanes: L, scores: &mut [f32]) -> f32 {
    let scores = scores.as_chunks_mut::<LANES>().0;
    let mut greatest = lanes.splat(f32::NEG_INFINITY);
    for scores in &*scores {
        greatest = lanes.max(lanes.load(scores), greatest);
    }
    let greatest = lanes.splat(lanes.greatest(greatest));
    let mut sums = lanes.splat(0.0);
    for scores in scores {
        let weights = exp(lanes, lanes.sub(lanes.load(scores), greatest));
        lanes.store(weights, scores);
        sums = lanes.add(sums, weights);
    }
    lanes.sum(sums)
}

/// The values of `H` heads weighted by their scores, some vectors of elements.
struct Mix<'a, const H: usize> {
    job: &'a Job<'a>,
    used: &'a [u32],
    /// `[head][position]`
    scores: &'a [f32],
    /// Positions of `scores`.
    length: usize,
    /// Those that count: the others may hold anything.
    range: std::ops::Range<usize>,
    /// First vector of elements.
    from: usize,
    /// What the sums are multiplied by.
    shares: [f32; H],
}

impl<const H: usize> Mix<'_, H> {
    /// `V` vectors.
    #[inline(always)]
    fn run<L: Lanes, const V: usize>(&self, lanes: L, out: &mut [f32]) {
        let width = self.job.pages.head_width();
        let vectors = width.div_ceil(LANES);
        let mut sums = [[lanes.splat(0.0); V]; H];
        for (index, page) in self.used.iter().enumerate() {
            let (_, values) = self.job.pages.head(self.job.layer, self.job.kv_head, *page);
            let start = index * PAGE;
            let from = self.range.start.max(start);
            let to = self.range.end.min(start + PAGE);
            for position in from..to {
                let row = &values[(position - start) * vectors + self.from..][..V];
                for vector in 0..V {
                    let value = lanes.load_half_words(&row[vector]);
                    for (head, sums) in sums.iter_mut().enumerate() {
                        let weight = lanes.splat(self.scores[head * self.length + position]);
                        sums[vector] = lanes.fma(weight, value, sums[vector]);
                    }
                }
            }
        }
        for head in 0..H {
            let out = &mut out[head * width..][..width][self.from * LANES..];
            for (vector, out) in out.chunks_mut(LANES).take(V).enumerate() {
                let mut result = [0.0; LANES];
                lanes.store(lanes.mul(sums[head][vector], lanes.splat(self.shares[head])), &mut result);
                out.copy_from_slice(&result[..out.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
