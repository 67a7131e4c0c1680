//! Working memory of one verification: a few blocks, and lists of at most a row.

use std::ops::Range;

use crate::rows::Buffer;
use crate::rows::simd::{BLOCK, Kernels, Window};

/// Buffers that are reused from row to row; nothing in them outlives a question.
#[derive(Debug)]
pub struct Scratch {
    /// Raw and scaled logits of a block.
    pub(crate) buffers: [Buffer; 2],
    /// A block's weights as they are computed.
    pub(crate) terms: Buffer,
    /// A block's weights in `f64`.
    pub(crate) weights: [f64; BLOCK],
    /// What is taken from them.
    pub(crate) taken: [f64; BLOCK],
    /// Places in a block.
    pub(crate) places: [u32; BLOCK],
    /// The block sums of the row that was shaped last, if it left any.
    pub(crate) sums: Vec<f64>,
    /// The exponents under which blocks were summed.
    pub(super) exponents: Vec<i32>,
    /// Some of a row's tokens.
    pub(crate) list: List,
    /// The kept tokens of the row that was shaped last, if its shaping listed them; else none.
    pub(crate) kept: List,
    /// Values to be put in order, or some of a block's.
    pub(super) values: Vec<f32>,
    /// The best of a row's tokens so far.
    pub(super) ranked: Vec<(f32, u32)>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            buffers: [[0.0; BLOCK]; 2],
            terms: [0.0; BLOCK],
            weights: [0.0; BLOCK],
            taken: [0.0; BLOCK],
            places: [0; BLOCK],
            sums: Vec::new(),
            exponents: Vec::new(),
            list: List::default(),
            kept: List::default(),
            values: Vec::new(),
            ranked: Vec::new(),
        }
    }
}

/// Tokens with their scaled logits and weights, side by side.
#[derive(Debug, Default, Clone)]
pub(crate) struct List {
    pub(crate) tokens: Vec<u32>,
    pub(super) values: Vec<f32>,
    pub(crate) weights: Vec<f32>,
}

impl List {
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.values.clear();
        self.weights.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Keeps the tokens of which `is_kept(value, token)` holds; their weights have to be computed anew.
    pub(super) fn retain(&mut self, is_kept: impl Fn(f32, u32) -> bool) {
        let mut count = 0;
        for at in 0..self.len() {
            if is_kept(self.values[at], self.tokens[at]) {
                self.values[count] = self.values[at];
                self.tokens[count] = self.tokens[at];
                count += 1;
            }
        }
        self.values.truncate(count);
        self.tokens.truncate(count);
        self.weights.clear();
    }

    /// Appends tokens of a block that begins with the token `start`.
    pub(super) fn extend(&mut self, start: usize, values: &[f32], places: &[u32]) {
        self.tokens.extend(places.iter().map(|&place| start as u32 + place));
        self.values.extend(places.iter().map(|&place| values[place as usize]));
    }

    /// Keeps the tokens whose value lies in a range, with their weights.
    pub(super) fn retain_between(
        &mut self,
        kernels: &Kernels,
        range: Range<f32>,
        places: &mut [u32; BLOCK],
    ) {
        let mut count = 0;
        for start in (0..self.len()).step_by(BLOCK) {
            let values = &self.values[start..self.len().min(start + BLOCK)];
            let found = (kernels.gather_between)(values, range.start, range.end, places);
            for &place in &places[..found] {
                let at = start + place as usize;
                self.values[count] = self.values[at];
                self.tokens[count] = self.tokens[at];
                self.weights[count] = self.weights[at];
                count += 1;
            }
        }
        self.values.truncate(count);
        self.tokens.truncate(count);
        self.weights.truncate(count);
    }

    /// Computes the weights of all tokens.
    pub(super) fn weigh(&mut self, kernels: &Kernels, window: &Window, cut: f32) {
        self.weights.clear();
        self.weights.resize(self.values.len(), 0.0);
        (kernels.weigh)(&self.values, window, cut, &mut self.weights);
    }
}
