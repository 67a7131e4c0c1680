//! Working memory of one verification: a few blocks, and lists of at most a row.

use std::ops::{Deref, DerefMut};

use crate::dist::Side;
use crate::rows::Buffer;
use crate::simd::BLOCK;

/// Buffers that are reused from row to row; nothing in them outlives a question.
#[derive(Debug)]
pub struct Scratch {
    /// Raw and scaled logits of a block.
    pub(crate) buffers: [Buffer; 2],
    /// A block's weights.
    pub(crate) weights: [f64; BLOCK],
    /// What is taken from them.
    pub(crate) taken: [f64; BLOCK],
    /// The block sums of the row that was shaped last.
    pub(super) sums: BlockSums,
    pub(super) values: Vec<f32>,
    pub(super) ranked: Vec<(f32, u32)>,
    pub(super) mass: Vec<f64>,
    pub(super) steps: Vec<u32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            buffers: [[0.0; BLOCK]; 2],
            weights: [0.0; BLOCK],
            taken: [0.0; BLOCK],
            sums: BlockSums::default(),
            values: Vec::new(),
            ranked: Vec::new(),
            mass: Vec::new(),
            steps: Vec::new(),
        }
    }
}

impl Scratch {
    /// Drops what is kept of the row that was shaped last, before rows of another matrix are shaped.
    pub(crate) fn forget(&mut self) {
        self.sums.forget();
    }
}

/// The sums of a row's blocks, and which row that is.
#[derive(Debug, Default)]
pub(super) struct BlockSums {
    sums: Vec<f64>,
    row: Option<(Side, usize)>,
}

impl BlockSums {
    pub(super) fn forget(&mut self) {
        self.sums.clear();
        self.row = None;
    }

    pub(super) fn remember(&mut self, side: Side, row: usize) {
        self.row = Some((side, row));
    }

    pub(super) fn of(&self, side: Side, row: usize) -> Option<&[f64]> {
        (self.row == Some((side, row))).then_some(&self.sums)
    }

    pub(super) fn total(&self) -> f64 {
        self.sums.iter().sum()
    }
}

impl Deref for BlockSums {
    type Target = Vec<f64>;

    fn deref(&self) -> &Vec<f64> {
        &self.sums
    }
}

impl DerefMut for BlockSums {
    fn deref_mut(&mut self) -> &mut Vec<f64> {
        &mut self.sums
    }
}
