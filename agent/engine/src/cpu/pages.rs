//! Owns the memory of cached keys and values: pages of sixteen positions, for all layers of a stage.
//! Must never know whose they are: that a page is written by one session at a time is the caller's to see to.
//!
//! In a page, of every layer and head: the keys as f16 `[element][position]`, so that one vector is one element of all
//! positions, then the values as f16 `[position][element]`, so that one vector is sixteen elements of one position.
//! Neither scores nor mixing adds across lanes.

use super::lanes::{InstructionSet, Kernel, LANES, Lanes};

/// Positions of a page.
pub const PAGE: usize = LANES;

/// Pages for one stage; each takes memory from when it is first written.
#[derive(Debug)]
pub struct Pages {
    layers: usize,
    kv_heads: usize,
    head_width: usize,
    pages: Vec<Option<Box<[u16]>>>,
}

impl Pages {
    /// `count` pages for `layers` layers of `kv_heads` heads.
    ///
    /// # Panics
    /// If a head's width is odd.
    #[must_use]
    pub fn new(layers: usize, kv_heads: usize, head_width: usize, count: usize) -> Self {
        assert!(head_width.is_multiple_of(2), "a head of {head_width} elements");
        Self { layers, kv_heads, head_width, pages: (0..count).map(|_| None).collect() }
    }

    /// Bytes that the pages take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let written = self.pages.iter().flatten().count();
        2 * written * self.page_words()
    }

    /// Writes the key and the value of one position, all heads one after the other.
    ///
    /// # Panics
    /// If anything is out of range.
    pub fn write(
        &mut self,
        set: InstructionSet,
        layer: usize,
        page: u32,
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let (width, words) = (self.head_width, self.words());
        let expected = self.kv_heads * width;
        assert!(slot < PAGE && key.len() == expected && value.len() == expected, "{slot} {}", key.len());
        let start = self.start(layer, 0);
        let page_words = self.page_words();
        let page = self.pages[page as usize].get_or_insert_with(|| vec![0; page_words].into_boxed_slice());
        let heads = &mut page[start..][..self.kv_heads * words];
        set.run(Write { width, slot, key, value, heads, words });
    }

    /// Keys `[element][position]` and values `[position][padded element]` of one head.
    pub(crate) fn head(&self, layer: usize, head: usize, page: u32) -> (&[[u16; PAGE]], &[[u16; LANES]]) {
        let Some(page) = &self.pages[page as usize] else { panic!("page {page} was never written") };
        let words = &page[self.start(layer, head)..][..self.words()];
        words.as_chunks().0.split_at(self.head_width)
    }

    /// Elements of a head.
    pub(crate) fn head_width(&self) -> usize {
        self.head_width
    }

    /// Key and value heads.
    pub(crate) fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Words of one head in one layer.
    fn words(&self) -> usize {
        PAGE * (self.head_width + self.head_width.next_multiple_of(LANES))
    }

    /// Words of a page.
    fn page_words(&self) -> usize {
        self.layers * self.kv_heads * self.words()
    }

    fn start(&self, layer: usize, head: usize) -> usize {
        assert!(layer < self.layers && head < self.kv_heads, "layer {layer}, head {head}");
        (layer * self.kv_heads + head) * self.words()
    }
}

struct Write<'a> {
    width: usize,
    slot: usize,
    key: &'a [f32],
    value: &'a [f32],
    heads: &'a mut [u16],
    /// Of one head.
    words: usize,
}

impl Kernel for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let inputs = self.key.chunks_exact(self.width).zip(self.value.chunks_exact(self.width));
        for (head, (key, value)) in self.heads.chunks_exact_mut(self.words).zip(inputs) {
            let (keys, values) = head.split_at_mut(PAGE * self.width);
            for (elements, keys) in key.chunks(LANES).zip(keys.chunks_mut(LANES * PAGE)) {
                let words = halves(lanes, elements);
                for (word, positions) in words.iter().zip(keys.chunks_exact_mut(PAGE)) {
                    positions[self.slot] = *word;
                }
            }
            let padded = self.width.next_multiple_of(LANES);
            let values = &mut values[self.slot * padded..][..padded];
            for (elements, words) in value.chunks(LANES).zip(values.as_chunks_mut().0) {
                *words = halves(lanes, elements);
            }
        }
    }
}

/// Up to sixteen numbers as f16, padded with zeros.
#[inline(always)]
fn halves<L: Lanes>(lanes: L, elements: &[f32]) -> [u16; LANES] {
    let mut padded = [0.0; LANES];
    padded[..elements.len()].copy_from_slice(elements);
    let mut words = [0; LANES];
    lanes.store_half_words(lanes.load(&padded), &mut words);
    words
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn what_is_written_is_where_it_belongs() {
        for width in [8, 24, 64] {
            for set in InstructionSet::available() {
                let mut pages = Pages::new(2, 3, width, 2);
                let page = 1;
                let key: Vec<f32> = (0..3 * width).map(|i| i as f32 + 0.1).collect();
                let value: Vec<f32> = key.iter().map(|x| -x).collect();
                pages.write(set, 1, page, 5, &key, &value);
                for head in 0..3 {
                    let (keys, values) = pages.head(1, head, page);
                    let values = values.as_flattened();
                    for i in 0..width {
                        let want = f16::from_f32(key[head * width + i]);
                        assert_eq!(f16::from_bits(keys[i][5]), want);
                        let at = 5 * width.next_multiple_of(LANES) + i;
                        assert_eq!(f16::from_bits(values[at]), -want);
                    }
                    let written = |words: &[u16]| words.iter().filter(|word| **word != 0).count();
                    assert_eq!(written(keys.as_flattened()), width);
                    assert_eq!(written(values), width);
                    assert_eq!(written(pages.head(0, head, page).0.as_flattened()), 0);
                }
            }
        }
    }

    #[test]
    fn pages_take_memory_once_they_are_written() {
        let mut pages = Pages::new(1, 1, 16, 1_000_000);
        assert_eq!(pages.bytes(), 0);
        for page in [7, 7, 999_999] {
            pages.write(InstructionSet::detect(), 0, page, 0, &[1.0; 16], &[1.0; 16]);
        }
        assert_eq!(pages.bytes(), 2 * 2 * 2 * 16 * 16);
    }
}
